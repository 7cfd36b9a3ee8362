"""Checkpoints, configs, logs and results from strangers: what SECURITY.md promises of them. The corpus is in
hostile_state.py; what it found is kept here, one by one."""
import contextlib
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("resource", reason="needs the limits and signals of POSIX")

import harness
import hostile_state as hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watch import Evil

from alexnet_nb import inference, train
from alexnet_nb.base import plots as base_plots
from alexnet_nb.base import results as base_results
from alexnet_nb.base.errors import InputError, brief, one_line
from alexnet_nb.claims import experiment as claims_experiment
from alexnet_nb.claims import plans as claims_plans
from alexnet_nb.engine import checkpoint as engine_checkpoint
from alexnet_nb.engine import logs as engine_logs
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.checkpoint import (
    _schedule_state,
    build_model,
    group_state,
    read_checkpoint,
    set_random_state,
    stored_recipe,
)
from alexnet_nb.engine.command import run_command
from alexnet_nb.engine.config import (
    Config,
    _parse_overrides,
    _parse_yaml,
    load_config,
    make_config,
    merge,
    to_yaml,
)
from alexnet_nb.engine.files import save_checkpoint
from alexnet_nb.model import AlexNet
from common import ROOT, load, refused, snapshot, tiny

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def test_the_harness_fails_where_a_part_does(monkeypatch, capsys):
    "Failures are found however deep a part's report holds them."
    found = {"pictures": {"failures": []}, "archives": {"failures": []}}
    monkeypatch.setattr(harness, "PARTS", {"files": lambda **how: found})
    monkeypatch.setattr(sys, "argv", ["harness.py", "--parts", "files"])
    assert harness.main() == 0
    found["archives"]["failures"].append({"number": 3})
    assert harness.main() == 1 and "FAILED {'number': 3}" in capsys.readouterr().out


@contextmanager
def within(seconds: int):
    "Fail rather than wait for ever."
    def late(number, frame): raise TimeoutError(f"more than {seconds} seconds")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- the corpus, in its small form

@pytest.fixture(scope="module")
def report():
    return hostile.run(100, 150, 24, seed=1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits on memory")
@pytest.mark.parametrize("kind", ["checkpoints", "configs", "logs"])
def test_corpus(report, kind):
    """A part of the 4,500 inputs, through every door: no failure; some are taken and some refused, so it is
    no mere heap of rubbish."""
    part = report[kind]
    assert part["failures"] == []
    assert part["tried"] == {"checkpoints": 100, "configs": 150, "logs": 24}[kind]
    assert part["slowest_seconds"] < hostile.SECONDS and part["most_megabytes"] < hostile.MEGABYTES
    for door in {name.split()[0] for name in part["doors"]} - {"list", "results"}:
        assert part["doors"].get(f"{door} accepted", 0) >= 3, part["doors"]
        assert kind == "logs" or part["doors"].get(f"{door} refused", 0) >= 20, part["doors"]


def test_corpus_is_the_same_each_time(tmp_path, final):
    "Inputs depend on the seed and their number alone, and are many different ones."
    data = final.read_bytes()
    base = dict(whole=data, six=data, old=data)
    one, other = ([hostile.checkpoint(3, n, base, tmp_path / "marker") for n in range(500, 540)]
                  for _ in range(2))
    assert [what for what, _ in one] == [what for what, _ in other] and len({data for _, data in one}) > 35
    for a, b in zip(one, other, strict=True):
        assert a == b or a[0] == "old", "only torch's old form holds addresses of memory"
    one, other = ([hostile.config(3, n, tmp_path)[1] for n in range(80)] for _ in range(2))
    assert one == other


@pytest.mark.parametrize("code, said", [(1, "Traceback (most recent call last)\na: x"), (2, "a: \x1b[2J"),
                                        (2, "a: one\na: two"), (2, "none of ours"), (3, "a: x")])
def test_the_harness_sees_bad_words(code, said, tmp_path):
    def main(argv):
        print(said, file=sys.stderr)
        return code
    lab = hostile.Lab(tmp_path)
    lab.call("a", main, [])
    assert lab.faults


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("deed, fault", [("raise", "ValueError: odd"), ("write outside", "written outside"),
                                         ("start", "subprocess.Popen"), ("marker", "code was run"),
                                         ("nothing", "")])
def test_the_harness_sees_bad_deeds(deed, fault, tmp_path, monkeypatch):
    lab = hostile.Lab(tmp_path)
    monkeypatch.chdir(lab.fresh())
    def work():
        if deed == "raise": raise ValueError("odd")
        if deed == "write outside": (tmp_path / "precious.txt").write_text("spoilt")
        if deed == "start": subprocess.run([sys.executable, "-c", ""], check=True)
        if deed == "marker": lab.marker.touch()
        return {}
    monkeypatch.setitem(hostile.KINDS, "bad", lambda *given: dict(what="", work=work))
    faults = hostile.attempt(lab, "bad", 0, 0)["faults"]
    assert any(fault in line for line in faults) if fault else faults == []


def test_torch_alone_takes_what_claims_100_gb(tmp_path):
    "So our questions before it are needed, and this input asks them."
    made = hostile.archive(hostile.programs(tmp_path / "marker")["strides of nothing"])
    (tmp_path / "a.pkl").write_bytes(made)
    assert torch.load(tmp_path / "a.pkl", weights_only=True)["model"]["w"].numel() == 10**11
    assert "claims more than is stored" in refused(read_checkpoint, tmp_path / "a.pkl")


# ---------------------------------------------------------------- checkpoints: the file

@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
def test_programs(tmp_path, old):
    """Pickles that would run code, fill the memory or never end are refused before torch sees them; a few odd
    ones are harmless."""
    marker = tmp_path / "marker"
    harmless = {"no size", "sizes of nothing", "bytes as booleans", "nowhere", "cuda", "a text in lists",
                "surrogate"}
    for name, program in hostile.programs(marker).items():
        (tmp_path / "p.pkl").write_bytes(hostile.legacy(program) if old else hostile.archive(program))
        with within(20):
            if name in harmless:
                try: read_checkpoint(tmp_path / "p.pkl")
                except InputError: pass
            else: refused(read_checkpoint, tmp_path / "p.pkl")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["p.pkl"], name


def test_only_weights_are_read(tmp_path, monkeypatch, final):
    "Torch is asked once, with `weights_only=True`, and not at all for a file that fails our questions."
    asked = []
    monkeypatch.setattr(engine_checkpoint.torch, "load",
                        lambda *args, load=torch.load, **how: (asked.append(how), load(*args, **how))[1])
    read_checkpoint(final)
    assert [how["weights_only"] for how in asked] == [True]
    torch.save({"model": Evil(tmp_path / "marker")}, tmp_path / "trojan.pkl")
    assert "it would run code" in refused(read_checkpoint, tmp_path / "trojan.pkl")
    assert len(asked) == 1 and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("weight", [torch.zeros(1).expand(25_000, 1_000_000), torch.zeros(1).expand(2**50),
                                    torch.ones(4).as_strided((3, 3), (1, 0))],
                         ids=["100 GB", "a petabyte", "overlapping"])
def test_more_than_is_stored(tmp_path, weight):
    torch.save({"model": {"w": weight}}, tmp_path / "a.pkl")
    assert refused(read_checkpoint, tmp_path / "a.pkl") == (
        f"{tmp_path / 'a.pkl'}: cannot be read as a checkpoint (a tensor claims more than is stored); "
        "give one that alexnet_train wrote")


def test_many_tensors_of_one_storage(tmp_path):
    "Each fits, together they would take a thousand times the file."
    one = torch.zeros(10_000)
    torch.save({"model": {f"w{i}": one.view(100, 100) for i in range(1000)}}, tmp_path / "a.pkl")
    assert "claim more than is stored" in refused(read_checkpoint, tmp_path / "a.pkl")
    torch.save({"model": {"w": one}, "best": {"w": one.view(100, 100)}}, tmp_path / "b.pkl")
    assert read_checkpoint(tmp_path / "b.pkl")["best"]["w"].shape == (100, 100)


def zipped(path: Path, members: list[tuple[str, bytes]], method=zipfile.ZIP_STORED, comment=b"") -> Path:
    twice = len({n for n, _ in members}) < len(members)
    with pytest.warns() if twice else contextlib.nullcontext(), zipfile.ZipFile(path, "w", method) as z:
        for name, data in members: z.writestr(name, data)
        z.comment = comment
    return path


@pytest.mark.parametrize("change, words", [
    (lambda m: dict(members=m + [m[0]]), "a name occurs twice in it"),
    (lambda m: dict(members=m + [(m[0][0].upper(), b"x")]), "a name occurs twice in it"),
    (lambda m: dict(members=m + [("archive/../../out", b"x")]), "a name in it leads out of it"),
    (lambda m: dict(members=m + [("/tmp/out", b"x")]), "a name in it leads out of it"),
    (lambda m: dict(members=m, method=zipfile.ZIP_DEFLATED), "it is compressed"),
    (lambda m: dict(members=[(n, bytes(10**8) if n.endswith("data.pkl") else d) for n, d in m],
                    method=zipfile.ZIP_DEFLATED), "it is compressed"),
    (lambda m: dict(members=[(n, bytes(2**19 + 1) if n.endswith("data.pkl") else d) for n, d in m]),
     "its description is too long"),
    (lambda m: dict(members=m, comment=b"PK\5\6" + bytes(18)), "its directory is not where it should be"),
    (lambda m: dict(members=m + [(f"archive/{i:08d}" + "x" * 100, b"") for i in range(10_000)]),
     "its directory is not where it should be"),
    (lambda m: dict(members=[(n, d[:-4] if "/data/" in n else d) for n, d in m]),
     "a tensor claims more than is stored"),
    (lambda m: dict(members=[(n, d) for n, d in m if "/data/" not in n]),
     "a tensor claims more than is stored"),
], ids=["twice", "twice but for case", "out of it", "absolute", "compressed", "bomb", "long pickle",
        "comment", "many members", "short record", "no record"])
def test_directory_of_the_archive(tmp_path, change, words):
    save_checkpoint(tmp_path / "honest.pkl", {"model": {"w": torch.ones(8)}})
    with zipfile.ZipFile(tmp_path / "honest.pkl") as z:
        members = [(i.filename, z.read(i)) for i in z.infolist()]
    same = read_checkpoint(zipped(tmp_path / "same.pkl", members))
    assert same["model"]["w"].sum() == 8, "the same members in a directory of Python's making"
    before = snapshot(tmp_path)
    assert words in refused(read_checkpoint, zipped(tmp_path / "changed.pkl", **change(members)))
    assert ({k: v for k, v in snapshot(tmp_path).items() if k != "changed.pkl"} == before
            and not Path("/tmp/out").exists())


def test_only_records_count_as_records(tmp_path):
    "A member beside `data/` may not lend its size to a record of the same name."
    claims = hostile.Steps().model(
        lambda out: out.tensor(size=(1000,), stride=(1,), key="archive/x", n=1000))
    made = hostile.archive(claims, records={"archive/x": bytes(4)}, more={"x": bytes(4000)})
    (tmp_path / "a.pkl").write_bytes(made)
    assert "claims more than is stored" in refused(read_checkpoint, tmp_path / "a.pkl")


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"),
], ids=["Python", "torch", "mmap"])
def test_a_lack_of_memory_is_not_called_damage(error, final, monkeypatch, capsys):
    def load(*args, **how): raise error
    monkeypatch.setattr(engine_checkpoint.torch, "load", load)
    assert (train.main(["--resume", str(final)]) == 1
            and capsys.readouterr().err.startswith("alexnet_train: out of memory"))


def test_a_hundred_processes_have_room(tmp_path, final):
    "The random states of all of them stand in the pickle, which may not be longer than half a mebibyte."
    checkpoint = load(final)
    checkpoint["random_others"] = [copy.deepcopy(checkpoint["random"]) for _ in range(99)]
    save_checkpoint(tmp_path / "many.pkl", checkpoint)
    assert len(read_checkpoint(tmp_path / "many.pkl")["random_others"]) == 99


def test_tar_without_its_mark(tmp_path):
    "Torch tries tar first, and Python's tarfile asks for a right checksum alone."
    head = bytearray(tarfile.TarInfo("pickle").tobuf(tarfile.USTAR_FORMAT))
    head[257:265], head[148:156] = bytes(8), b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (tmp_path / "a.pkl").write_bytes(bytes(head) + bytes(1024))
    assert tarfile.open(tmp_path / "a.pkl").getnames() == ["pickle"]
    assert "it is a tar archive" in refused(read_checkpoint, tmp_path / "a.pkl")


def test_something_before_or_after_the_archive(tmp_path, final):
    for name, data in (("before", b"x" * 10 + final.read_bytes()), ("after", final.read_bytes() + b"x"),
                       ("twice", final.read_bytes() * 2)):
        (tmp_path / name).write_bytes(data)
        refused(read_checkpoint, tmp_path / name)


def test_old_form(tmp_path, final):
    """Torch's form of before 2020 is read under the same questions; a tar archive and a pickle of Python's
    own are not."""
    torch.save(load(final), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    read, stored = read_checkpoint(tmp_path / "old.pkl")["model"], load(final)["model"]
    assert all(torch.equal(a, b) for a, b in zip(read.values(), stored.values(), strict=True))
    torch.save({"model": {"w": torch.zeros(1).expand(10**9)}}, tmp_path / "claims.pkl",
               _use_new_zipfile_serialization=False)
    assert "claims more than is stored" in refused(read_checkpoint, tmp_path / "claims.pkl")
    for number in range(60):
        other = hostile.other_file(random.Random(number), dict(whole=final.read_bytes()), tmp_path / "marker")
        (tmp_path / "other.pkl").write_bytes(other)
        refused(read_checkpoint, tmp_path / "other.pkl")
    assert not (tmp_path / "marker").exists()


def test_not_a_file(tmp_path):
    "A pipe is not waited for, a device not read to its end, a circle of links not followed."
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    with within(10):
        for name in ("pipe", "."): assert "is not a file" in refused(read_checkpoint, tmp_path / name)
        if Path("/dev/zero").exists(): assert "is not a file" in refused(read_checkpoint, "/dev/zero")
        for name in ("loop", "a", "none", "x" * 1000, "loop/x"):
            assert "no such checkpoint" in refused(read_checkpoint, tmp_path / name)
        with pytest.raises(InputError, match="no such checkpoint"): read_checkpoint(tmp_path / "a\0b")
        for name in ("pipe", "loop", "."): refused(load_config, tmp_path / name)


def test_nests(tmp_path):
    "Deep, wide, in a circle, or small in the file and without end when walked through."
    laughs: list = [0]
    for _ in range(40): laughs = [laughs, laughs]
    circle: list = []
    circle.append(circle)
    deep: list = []
    for _ in range(200): deep = [deep]
    for extra in (laughs, circle, deep, {"x": laughs}):
        torch.save({"model": {"w": torch.ones(1)}, "extra": extra}, tmp_path / "a.pkl")
        with within(20): assert "nested without end" in refused(read_checkpoint, tmp_path / "a.pkl")


def test_nothing_hangs_on_the_tensors(tmp_path):
    "Parameters, gradients and hooks do not come along."
    torch.save({"model": {"w": torch.nn.Parameter(torch.ones(2))},
                "other": [torch.ones(2, requires_grad=True)]}, tmp_path / "a.pkl")
    read = read_checkpoint(tmp_path / "a.pkl")
    assert (type(read["model"]["w"]) is torch.Tensor and not read["model"]["w"].requires_grad
            and not read["other"][0].requires_grad)


# ---------------------------------------------------------------- checkpoints: what is in them

@pytest.mark.parametrize("change, words", [
    (dict(run="../../out"), "its run is '../../out'"),
    (dict(run="/tmp/out"), "its run is"),
    (dict(run=".."), "its run is"),
    (dict(run=3), "its run is 3"),
    (dict(run="run-001\n"), "its run is"),
    (dict(epoch=-1), "its epoch is -1"),
    (dict(epoch="1"), "its epoch is '1'"),
    (dict(total_steps=2**60), "its total_steps is"),
    (dict(seed=-1), "its seed is -1"),
    (dict(progress={"step": -5}), "its progress.step is -5"),
    (dict(progress={"loss_sum": float("nan")}), "its progress.loss_sum is nan"),
    (dict(progress=[]), "its progress is []"),
    (dict(progress=None), "its progress is None"),
    (dict(classes=[1, 2]), "its classes"),
    (dict(classes=["x" * 300]), "its classes"),
    (dict(classes="cat"), "its classes is 'cat'"),
    (dict(recipe={"size": 10**9}), "its recipe"),
    (dict(recipe=5), "its recipe is 5"),
    (dict(config=5), "its config is 5"),
    (dict(optimizer=[1]), "its optimizer is [1]"),
    (dict(random="x"), "its random is 'x'"),
    (dict(model=5), "holds no 'model'"),
    (dict(model={1: torch.ones(1)}), "holds no 'model'"),
    (dict(model={"a": 1}), "holds no 'model'"),
    (dict(model={}), "holds no 'model'"),
])
def test_parts_of_the_wrong_kind(tmp_path, final, change, words):
    save_checkpoint(tmp_path / "a.pkl", load(final) | change)
    assert words in refused(read_checkpoint, tmp_path / "a.pkl")


@pytest.mark.parametrize("change", [
    {"width": 0.5}, {"width": float("nan")}, {"width": 1e300}, {"num_classes": 10**9}, {"num_classes": 2**70},
    {"towers": 3}, {"image_dim": 10**6}, {"without": ["conv3"]}, {"without": "conv3"}, {"unknown": 1},
    {"activation": []},
], ids=str)
def test_network_that_the_weights_do_not_fit(final, change):
    """What a checkpoint says of its network is checked like a config, and no memory is taken before names and
    shapes agree."""
    checkpoint = read_checkpoint(final)
    checkpoint["config"]["model"] |= change
    with within(10): refused(build_model, checkpoint)


@pytest.mark.parametrize("change", [lambda w: w.int(), lambda w: w.bool(), lambda w: w[None],
                                    lambda w: w.flatten(), lambda w: w[:0]],
                         ids=["int", "bool", "a dimension more", "flat", "none"])
def test_weights_of_another_type_or_shape(final, change):
    checkpoint = read_checkpoint(final)
    checkpoint["model"]["classifier.4.weight"] = change(checkpoint["model"]["classifier.4.weight"])
    refused(build_model, checkpoint)
    del checkpoint["config"]
    refused(build_model, checkpoint)


def test_recipe_for_another_size(final):
    checkpoint = read_checkpoint(final)
    assert stored_recipe(checkpoint).size == 227
    other = checkpoint | {"recipe": checkpoint["recipe"] | {"size": 224}}
    assert "pictures of 224 pixels" in refused(stored_recipe, other)


@pytest.mark.parametrize("position", [-1, 625, 10**9, 2**70])
def test_random_states(position):
    "NumPy takes any position and would read beyond its memory."
    before = engine_checkpoint.random_state()
    state = before | {"numpy": (*before["numpy"][:2], position, *before["numpy"][3:])}
    assert "random states" in refused(set_random_state, state)
    for key, value in (("torch", torch.zeros(3)), ("torch", "x"), ("numpy", ()), ("python", (3, (1,), None)),
                       ("python", [3, [1] * 625, None])):
        refused(set_random_state, before | {key: value})
    set_random_state(before)
    assert np.random.get_state()[2] == before["numpy"][2]


def test_optimizer_state_of_a_stranger(final):
    """Only momentum and rate are taken from it; what else it says of a group would change how training
    computes."""
    checkpoint, state = read_checkpoint(final), load(final)["optimizer"]
    model = build_model(checkpoint)
    optimizer = train.make_optimizer(model, 0.01)
    ours = optimizer.state_dict()["param_groups"]
    groups = [g | {"momentum": "x", "differentiable": True, "foreach": True, "nesterov": 7, "own": [1]}
              for g in state["param_groups"]]
    taken = group_state(state | {"param_groups": groups}, optimizer, model)["param_groups"]
    for a, b in zip(taken, ours, strict=True): assert a | {"lr": 0} == b | {"lr": 0}
    first = state["state"][0]["momentum_buffer"]
    for bad in (dict(param_groups=[]), dict(param_groups=[groups[0]]),
                dict(param_groups=[g | {"lr": float("nan")} for g in groups]),
                dict(param_groups=[g | {"lr": -1.0} for g in groups]),
                dict(param_groups=[g | {"params": [0]} for g in groups]),
                dict(state={0: {"momentum_buffer": first[0]}}),
                dict(state={0: {"momentum_buffer": first.int()}}), dict(state={0: []}), dict(state=5)):
        with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
            group_state(state | bad, optimizer, model)


@pytest.mark.parametrize("n", [15, 17], ids=["too few", "too many"])
def test_one_group_of_another_number_of_parameters(n, final):
    "A foreign state is mapped by their order, and not cut to size."
    model = build_model(read_checkpoint(final))
    assert len(list(model.parameters())) == 16
    with pytest.raises(ValueError, match="another number"):
        group_state(dict(state={}, param_groups=[dict(params=list(range(n)), lr=0.1)]),
                    train.make_optimizer(model, 0.01), model)


def test_momentum_that_only_some_have(final):
    """A fused optimizer takes momentum for all tensors or for none; what lacks it starts from zero, as in
    torch."""
    checkpoint = read_checkpoint(final)
    model = build_model(checkpoint)
    optimizer = train.make_optimizer(model, 0.01)
    state = checkpoint["optimizer"]["state"]
    for lacking in (state | {0: {}}, state | {1: {"momentum_buffer": None}}, {2: state[2]}):
        fitted = group_state(checkpoint["optimizer"] | {"state": lacking}, optimizer, model)
        assert all(torch.equal(fitted["state"][i]["momentum_buffer"],
                               (lacking.get(i, {}).get("momentum_buffer", None)
                                if lacking.get(i, {}).get("momentum_buffer") is not None
                                else torch.zeros_like(p)))
                   for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]))
    assert group_state(checkpoint["optimizer"] | {"state": {}}, optimizer, model)["state"] == {}


def test_schedule_of_a_stranger(final):
    "It may set the numbers that our schedule has, and nothing else of it."
    scheduler = engine_setup._schedule_of(Config(), train.make_optimizer(AlexNet(width=1 / 96), 0.01))
    honest = scheduler.state_dict()
    assert _schedule_state(honest | {"optimizer": 1, "step": 2, "get_lr": None}, scheduler) == honest
    waiting = make_config({"training": {"schedule": "plateau"}})
    best = engine_setup._schedule_of(waiting, train.make_optimizer(AlexNet(width=1 / 96), 0.01))
    assert _schedule_state(best.state_dict() | {"best": 0.0, "num_bad_epochs": 3}, best)["best"] == 0.0
    for bad in ({"step_size": "x"}, {"gamma": float("nan")}, {"base_lrs": [0.1]}, {"base_lrs": ["x", "y"]},
                {"_last_lr": 5}, {"last_epoch": 2**60}, {"step_size": 0}, {"step_size": 1.5}, {"gamma": 0.0}):
        with pytest.raises(ValueError): _schedule_state(honest | bad, scheduler)


@pytest.fixture
def half(tmp_path, no_panels) -> Path:
    "The checkpoint of a run that stopped in the middle of its second epoch."
    engine_train_command.fit(load_config(None, [a for a in tiny(tmp_path / "out") if a != "--set"]),
                             max_steps=8, show_bar=False)
    return tmp_path / "out" / "models" / "alexnet_last.pkl"


def test_resume_from_a_stranger(half, tmp_path, capsys):
    "One line, exit 2, and no folder beside the one for logs."
    good = load(half)
    for change in (dict(run="../../../stranger"),
                   dict(model={k: v for k, v in good["model"].items() if k != "classifier.6.bias"}),
                   dict(scheduler=good["scheduler"] | {"base_lrs": "x"}),
                   dict(optimizer={"param_groups": [{}], "state": {}}), dict(random={"torch": 1}),
                   dict(progress=good["progress"] | {"seen": 0}),
                   dict(progress={"batch": 10**9, "epoch": 1})):
        save_checkpoint(tmp_path / "stranger.pkl", good | change)
        capsys.readouterr()
        assert train.main(["--resume", str(tmp_path / "stranger.pkl"), *tiny(tmp_path / "new" / "deep")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("alexnet_train: ") and err.count("\n") == 1, err
    assert (sorted(p.name for p in tmp_path.iterdir()) == ["new", "out", "stranger.pkl"]
            and [p.name for p in (tmp_path / "new").iterdir()] == ["deep"])


def test_class_names_do_not_reach_the_terminal_as_they_are(final, tmp_path, pictures, capsys):
    save_checkpoint(tmp_path / "a.pkl", load(final) | {"classes": [f"\x1b[3{i}m\n{i}" for i in range(10)]})
    argv = ["--checkpoint", str(tmp_path / "a.pkl"), "--image", str(pictures / "000.png")]
    assert inference.main([*argv, "--show-all-probs"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) == 11


# ---------------------------------------------------------------- configs

@pytest.mark.parametrize("name", hostile.BOMBS)
def test_yaml_bombs(name, tmp_path):
    text = hostile.BOMBS[name].replace("MARKER", str(tmp_path / "marker"))
    (tmp_path / "a.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with within(10):
        if name in ("crlf", "bom"): assert load_config(tmp_path / "a.yaml").training.seed == 1
        else: refused(load_config, tmp_path / "a.yaml")
    assert not (tmp_path / "marker").exists()


def test_keys_given_twice_and_aliases():
    assert (refused(_parse_yaml, "a: 1\nb: 2\na: 3\n")
            == "config:3: not valid YAML (the key 'a' is given twice)")
    assert _parse_yaml("a: &x 1\nb: *x\n") == {"a": 1, "b": 1}
    assert "may repeat a single value" in refused(_parse_yaml, "a: &x [1]\nb: *x\n")


@pytest.mark.parametrize("text", ["!!timestamp x", "!!bool x", "!!int ''", "!!int x", "!!float x",
                                  "!!binary x", "2001-12-14 21:59:43 -99:99", "9" * 6000, "[" * 3000])
def test_values_that_made_pyyaml_stumble(text): refused(_parse_yaml, text)


@pytest.mark.parametrize("key, value", [("training.num_epochs", 2**31), ("training.batch_size", 10**30),
                                        ("data.num_workers", 10**9), ("model.num_classes", 2**31),
                                        ("data.train_images", int("9" * 400)), ("training.seed", 16**6000),
                                        ("training.seed", "x" * 10**6), ("paths.output_dir", "a\0b"),
                                        ("paths.log_dir", "\ud800"), ("data.data_dir", "a\0b"),
                                        ("training.seed", [[[["x"] * 1000] * 1000] * 1000] * 1000)],
                         ids=lambda v: str(v)[:20] if not isinstance(v, (int, list)) else "")
def test_values_beyond_measure(key, value):
    "Refused with a short line, whatever it would take to write the value out."
    section, name = key.split(".")
    with within(10): assert len(refused(make_config, {section: {name: value}})) < 400


def test_unknown_key_of_a_million_letters():
    with within(10): refused(make_config, {"training": {"x" * 10**6: 1}})


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
keys = st.sampled_from(["seed", "data_dir", "input_root_dir", "width", "x"])
sections = st.dictionaries(st.sampled_from([*Config.model_fields, "other"]) | st.text(max_size=5),
                           anything | st.dictionaries(keys, anything), max_size=4)


@quick
@given(sections, sections)
def test_any_nest_is_a_config_or_refused(one, other):
    "And merging never changes what it is given."
    before = json.dumps([one, other])
    merged = merge(one, other)
    assert (json.dumps([one, other]) == before and merge(merged) == merge(merge(merged))
            and set(merged) <= set(one) | set(other))
    try: cfg = make_config(merged)
    except InputError as e: assert len(str(e)) < 5000
    else: assert make_config(_parse_yaml(to_yaml(cfg))) == cfg


folders = st.text(st.characters(categories=["L", "N", "P"], max_codepoint=0xD7FF), min_size=1)
honest = st.fixed_dictionaries({}, optional={
    "training": st.fixed_dictionaries({}, optional={
        "seed": st.integers(0, 2**32 - 1),
        "learning_rate": st.floats(1e-300, 1e300),
        "momentum": st.floats(0, 1, exclude_max=True),
        "num_epochs": st.integers(1, 2**31 - 1),
        "schedule": st.sampled_from(["step", "plateau"])}),
    "model": st.fixed_dictionaries({}, optional={
        "width": st.floats(0, 1, exclude_min=True),
        "without": st.lists(st.sampled_from(["conv3", "conv4", "conv5"])),
        "overlapping_pooling": st.booleans()}),
    "paths": st.fixed_dictionaries({}, optional={"output_dir": folders, "log_dir": folders})})


@quick
@given(honest)
def test_there_and_back(given_):
    "A config, its YAML and its `--set` texts say the same."
    cfg = make_config(given_)
    assert make_config(_parse_yaml(to_yaml(cfg))) == cfg
    texts = [f"{section}.{key}={json.dumps(value, ensure_ascii=False)}" for section, keys in given_.items()
             for key, value in keys.items()]
    assert make_config(_parse_overrides(texts)) == cfg


@quick
@given(st.lists(st.text(max_size=30), max_size=3), st.text(max_size=40))
def test_any_override_is_taken_or_refused(texts, one):
    for pairs in (texts, [f"training.seed={one}"], [f"{one}=1"], [f"training.{one}=1"]):
        try: load_config(None, pairs)
        except InputError as e: assert len(str(e)) < 3000


@quick
@given(anything)
def test_brief_and_one_line(value):
    text = one_line(brief(value))
    assert text.isprintable() and len(text) < 5000
    assert one_line(text) == text


def test_a_value_of_several_lines_is_quoted_in_one(tmp_path, final):
    save_checkpoint(tmp_path / "a.pkl", load(final) | {"epoch": torch.ones(3, 3)})
    assert "its epoch is tensor([[1., 1., 1.],\\n" in refused(read_checkpoint, tmp_path / "a.pkl")


def test_a_command_says_one_line_whatever_it_is_told(capsys):
    def work(): raise InputError("two\nlines, \x1b[31mred\x1b]0;title\x07, \ud800 and é")
    assert run_command("alexnet_x", work) == 2
    assert capsys.readouterr().err == (
        "alexnet_x: two\\nlines, \\x1b[31mred\\x1b]0;title\\x07, \\ud800 and é\n")


# ---------------------------------------------------------------- logs and results

def test_lines_of_a_log_that_are_no_lines_of_ours(tmp_path):
    """They are dropped when a run goes on, so that nothing stumbles over them in the last minute of its
    training."""
    good = [{"step": s, "epoch": 1, "loss": 2.0, "accuracy": 0.1} for s in (1, 2, 3)]
    bad = ["", "3", "[]", "null", '{"step": 1}', '{"epoch": 1}', '{"step": "1", "epoch": 1}',
           '{"step": 1, "epoch": null}', '{"step": 1, "epoch": 1, "loss": NaN}',
           '{"step": 1, "epoch": 1, "loss": 1e999}', '{"step": 1, "epoch": 1, "loss": [1]}',
           "[" * 100_000, '{"step": ' + "9" * 6000 + ', "epoch": 1}', "\x00\x01", '{"step": 1, "epo']
    (tmp_path / "steps.jsonl").write_bytes(b"\xff\xfe\n" + "\n".join([*bad, *map(json.dumps, good)]).encode())
    log = engine_logs.Log(tmp_path, 2)
    log.close()
    assert engine_logs.read_log(tmp_path) == good[:2]
    base_plots.draw_curves(engine_logs.read_log(tmp_path), [{"step": 1, "epoch": 1}])


def test_log_that_is_a_pipe_or_a_link(tmp_path):
    (tmp_path / "precious").write_text("stay")
    (tmp_path / "log").mkdir()
    os.mkfifo(tmp_path / "log" / "steps.jsonl")
    (tmp_path / "log" / "epochs.jsonl").symlink_to(tmp_path / "precious")
    with within(20): engine_logs.Log(tmp_path / "log", 5).close()
    assert ((tmp_path / "precious").read_text() == "stay"
            and not (tmp_path / "log" / "epochs.jsonl").is_symlink())


def test_folders_and_event_files_with_odd_names(tmp_path):
    for name in ("run-²", "run-" + "9" * 240, "run--1", "run-x", "run-007"): (tmp_path / name).mkdir()
    assert engine_setup._new_folder(tmp_path).name == "run-008"
    now = int(engine_run.time.time())
    (tmp_path / "train").mkdir()
    for second in range(now, now + 60): (tmp_path / "train" / f"events.out.tfevents.{second}.x").touch()
    with within(20): engine_logs._wait_for_a_new_second(tmp_path)


@pytest.mark.parametrize("change", [dict(trials=5), dict(trials=[5]), dict(trials=[{}]), dict(device=5),
                                    "finished", "epochs", "nan", "painted"], ids=str)
def test_results_file_of_a_stranger(tmp_path, change):
    mine = claims_experiment._identity("relu_vs_tanh", "tiny", "drawings")
    trial = json.loads(json.dumps(claims_plans.new_trial("relu 0.001", 0)))
    named = {"finished": dict(finished=True), "epochs": dict(epochs=[{"loss": 1}]),
             "nan": dict(epochs=[dict(loss=float("nan"), error=1.0, seconds=1.0)]),
             "painted": dict(stopped="\x1b[31m")}
    if isinstance(change, str): change = dict(trials=[trial | named[change]])
    (tmp_path / "r.json").write_text(json.dumps(mine | dict(device="cpu", trials=[trial])))
    assert claims_experiment._same_identity(tmp_path / "r.json", mine)["trials"] == [trial]
    (tmp_path / "r.json").write_text(json.dumps(mine | dict(device="cpu", trials=[trial]) | change))
    # JSON knows no NaN
    expected = ("cannot be read as JSON" if "NaN" in (tmp_path / "r.json").read_text()
                else "which no experiment writes")
    assert expected in refused(claims_experiment._same_identity, tmp_path / "r.json", mine)


def test_results_that_are_not_results(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(base_results, "_PACKAGE", tmp_path)
    for text in ("", "[" * 100_000, "5", "[]", "{", '{"a": ' + "9" * 6000 + "}"):
        (tmp_path / "results" / "mine.json").write_text(text)
        refused(base_results.read_results, "mine")
    assert base_results.read_results("none of ours") is None


# ---------------------------------------------------------------- what SECURITY.md says

def test_the_promises_name_their_tests():
    "Every test file and test that SECURITY.md, README.md and the page of the commands name is there."
    security, readme, commands = ((ROOT / name).read_text(encoding="utf-8")
                                  for name in ("SECURITY.md", "README.md", "nbs/commands.ipynb"))
    assert len(security.splitlines()) < 80
    text = security + readme + commands
    files, names = set(re.findall(r"`(tests/[\w/]+\.py)`", text)), set(re.findall(r"`(test_\w+)`", text))
    assert len(files) > 5 and len(names) > 10
    for file in files: assert (ROOT / file).is_file(), file
    everything = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    for name in names: assert f"def {name}(" in everything, name


def test_the_floor_of_torch():
    "The first release without a known hole in `weights_only`."
    floor = re.search(r"torch>=(\d+)\.(\d+)", (ROOT / "settings.ini").read_text(encoding="utf-8"))
    assert tuple(map(int, floor.groups())) >= (2, 10)
