"""Several processes make one run: the same losses as one process, one writer, one decision, and a resume with
any number of them."""
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from alexnet_nb import train
from alexnet_nb.base import errors as base_errors
from alexnet_nb.base.errors import InputError
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.config import make_config
from alexnet_nb.engine.loaders import EpochBatches
from alexnet_nb.engine.processes import _World, launch, share
from common import STEPS, TESTS, differences, lines, load, one_step, tiny

pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or os.name == "nt",
                                reason="needs torch.distributed with gloo, and POSIX signals")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
THREE = dict(training__num_epochs=3)


def torchrun(*argv, processes: int = 2, options=(), **more) -> subprocess.Popen:
    "Start a module or a script in several processes."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(processes), *options, *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
                            **more)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    "Exit code and what was said."
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train_by_two(*argv) -> str:
    "alexnet_train in two processes, to the end; what it printed."
    code, out, err = ended(torchrun("-m", "alexnet_nb.train", *argv))
    assert code == 0, err[-3000:]
    return out


@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 9), st.booleans())
def test_shares_are_the_batches_cut(n, batch_size, size, drop_last):
    parts = [list(EpochBatches(np.arange(n), batch_size, 3, drop_last, partial(share, place=r, size=size)))
             for r in range(size)]
    whole = EpochBatches(np.arange(n), batch_size, 3, drop_last)
    assert [sum(shares, []) for shares in zip(*parts, strict=True)] == list(whole)
    assert [whole.images_in(b) for b in range(len(whole))] == [len(batch) for batch in whole]
    for shares in zip(*parts, strict=True): assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---------------------------------------------------------------- the same numbers

def numbers(folder: Path, dtype: str, epochs: int = 3) -> dict:
    """The config of a run whose steps are compared: no dropout; 41 images in batches of 8, so that one share
    of the last batch is empty."""
    given = dict(model=dict(width=1 / 24, dropout=0.0),
                 data=dict(dataset="drawings", train_images=41, val_images=10, test_images=10,
                           recipe="paper"),
                 training=dict(num_epochs=epochs, batch_size=8, warmup_steps=3, learning_rate=0.03, seed=5),
                 paths=dict(output_dir=str(folder), checkpoint_dir=str(folder), log_dir=str(folder)),
                 device=dict(use_cuda=False, precision="fp32"))
    return dict(config=given, dtype=dtype)


def twenty_steps(config: dict, dtype: str, halves: bool = False) -> tuple[list[float], torch.Tensor]:
    """Losses of twenty steps and the weights after them; with `halves` each batch goes through the network in
    two parts."""
    from alexnet_nb.engine.processes import all_reduce_sum, replicated, world_size
    cfg, kind, losses = make_config(config), getattr(torch, dtype), []
    run = engine_setup.start(cfg)
    run.model.to(kind)
    run.net = replicated(run.model, run.device)
    while True:
        batches = run.train.batch_sampler
        batches.epoch, run.progress.batch = run.progress.epoch, 0
        for x, y, _ in run.train:
            n, x = batches.images_in(run.progress.batch), x.to(kind)
            if halves:
                run.optimizer.zero_grad()
                train.set_rate(run.optimizer, run.scheduler.get_last_lr(), run.progress.step,
                               run.options.warmup_steps)
                parts = [F.cross_entropy(run.model(x[part]), y[part], reduction="sum") / n
                         for part in (share(n, 0, 2), share(n, 1, 2))]
                for part in parts: part.backward()
                run.optimizer.step()
                loss = sum(part.detach() for part in parts)
            else: loss, _ = one_step(run, x, y)
            losses.append(all_reduce_sum(loss / world_size()).item())
            run.progress.step, run.progress.batch = run.progress.step + 1, run.progress.batch + 1
            if len(losses) == 20:
                return losses, torch.cat([p.detach().flatten() for p in run.model.parameters()])
        run.progress.epoch += 1


SCRIPT = """
import json, sys, torch
sys.path[:0] = {tests!r}
from test_distributed import twenty_steps
from alexnet_nb.engine.processes import *
with process_group(find_world(), torch.device("cpu")):
    for name, given in json.loads({given!r}).items():
        losses, weights = twenty_steps(**given)
        torch.save((losses, weights), f"{out}/{{name}}.{{rank()}}")
"""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    "Twenty steps in 64 and in 32 bits by two processes: {name: [(losses, weights) of each]}."
    out = tmp_path_factory.mktemp("by_two")
    given = {name: numbers(out, name) for name in ("float64", "float32")}
    tests = [str(TESTS), str(Path(__file__).parent)]
    (out / "script.py").write_text(SCRIPT.format(tests=tests, given=json.dumps(given), out=out))
    code, _, err = ended(torchrun(out / "script.py"))
    assert code == 0, err[-3000:]
    return {name: [torch.load(out / f"{name}.{r}", weights_only=True) for r in (0, 1)] for name in given}


def test_two_processes_are_one_in_64_bits(by_two, tmp_path):
    losses, weights = twenty_steps(**numbers(tmp_path, "float64"))
    for theirs, copied in by_two["float64"]:
        assert len(theirs) == 20 and max(abs(a - b) for a, b in zip(losses, theirs, strict=True)) < 1e-10
        assert (weights - copied).abs().max() < 1e-10
    assert losses[-1] != losses[0] and torch.equal(by_two["float64"][0][1], by_two["float64"][1][1])


def test_in_32_bits_they_lie_no_further_than_a_split_batch(by_two, tmp_path):
    given = numbers(tmp_path, "float32")
    (_, alone), (_, split) = twenty_steps(**given), twenty_steps(**given, halves=True)
    two = by_two["float32"][0][1]
    assert 0 < (two - alone).norm() <= (split - alone).norm()


# ---------------------------------------------------------------- whole runs

@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    "Three epochs by two processes, dropout on, without a break."
    out = tmp_path_factory.mktemp("straight")
    said = train_by_two(*tiny(out, **THREE))
    assert said.count("epoch 3 of 3") == 1
    assert ("2 processes, by gloo: each batch of 8 is shared, 4 images to a process; the rate stays 0.01"
            in said)
    return out


CLOCK = ("progress.seconds", "config.paths", "config.training.checkpoint_minutes")


def test_one_writer(straight):
    assert (len(list((straight / "tblogs").iterdir())) == 1
            and len(list((straight / "tblogs/run-001/train").iterdir())) == 1)
    assert ([row["step"] for row in lines(straight)] == list(range(1, 3 * STEPS + 1))
            and [row["epoch"] for row in lines(straight, "epochs")] == [1, 2, 3])
    result = json.loads((straight / "results.json").read_text())
    assert (result["processes"] == 2 and result["train_images"] == 48 and result["test_images"] == 20
            and sum(map(sum, result["confusion"])) == 20)
    assert len(load(straight / "models/alexnet_final.pkl")["random_others"]) == 1


def test_stopped_and_resumed_by_two_it_is_the_same_run(straight, tmp_path):
    code, out, err = ended(torchrun("-m", "alexnet_nb.train", *tiny(tmp_path, **THREE), "--minutes", "1e-9"))
    assert code == 0 and "stopped (time is up) after 1 step" in out, err[-2000:]
    train_by_two("--resume", tmp_path / "models/alexnet_last.pkl", *tiny(tmp_path, **THREE))
    a, b = (load(folder / "models/alexnet_final.pkl") for folder in (tmp_path, straight))
    assert differences(a, b, but=CLOCK) == []
    for kind in ("steps", "epochs"): assert lines(tmp_path, kind) == lines(straight, kind)


def test_another_number_of_processes_goes_on(tmp_path, no_panels):
    plain = tiny(tmp_path, **THREE, model__dropout=0.0, device__precision="fp32")
    assert train.main([*plain, "--minutes", "1e-9"]) == 0
    train_by_two("--resume", tmp_path / "models/alexnet_last.pkl", *plain, "--minutes", "1e-9")
    assert load(tmp_path / "models/alexnet_last.pkl")["total_steps"] == 2
    assert train.main(["--resume", str(tmp_path / "models/alexnet_last.pkl"), *plain]) == 0
    alone = tmp_path / "alone"
    assert train.main(tiny(alone, **THREE, model__dropout=0.0, device__precision="fp32")) == 0
    ours, theirs = ([row["loss"] for row in lines(folder)] for folder in (tmp_path / "tblogs", alone))
    assert len(ours) == 3 * STEPS and ours == pytest.approx(theirs, abs=1e-4)


def children(pid: int) -> dict[int, int]:
    "Ranks of a process's children and their numbers."
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) != pid: continue
            env = dict(entry.partition("=")[::2] for entry in (path / "environ").read_text().split("\0"))
        except OSError: continue
        if "RANK" in env: found[int(env["RANK"])] = int(path.name)
    return found


def wait_for_steps(process: subprocess.Popen, out: Path, n: int) -> None:
    "Until so many steps are in the log."
    log, until = out / "tblogs/run-001/steps.jsonl", time.monotonic() + 200
    while not (log.exists() and log.read_bytes().count(b"\n") >= n):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1][-2000:]
        time.sleep(0.005)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_again_after_one_is_killed(rank, straight, tmp_path):
    process = torchrun("-m", "alexnet_nb.train", *tiny(tmp_path, **THREE, training__checkpoint_minutes=1e-9),
                       options=["--max-restarts", "2"])
    wait_for_steps(process, tmp_path, STEPS + 1)
    os.kill(children(process.pid)[rank], signal.SIGKILL)
    code, out, err = ended(process)
    # it went on, and did not begin anew
    assert code == 0 and [out.count(f"epoch {e} of 3") for e in (1, 2, 3)] == [1, 1, 1], err[-3000:]
    assert differences(*(load(folder / "models/alexnet_final.pkl")
                         for folder in (tmp_path, straight)), but=CLOCK) == []
    for kind in ("steps", "epochs"): assert lines(tmp_path, kind) == lines(straight, kind)


LAUNCHER = """
import sys
from alexnet_nb.engine.processes import launch
sys.exit(launch(2, [sys.executable, '-m', 'alexnet_nb.train', *sys.argv[1:]]))
"""


def launched(*argv) -> subprocess.Popen:
    "What a config with two GPUs starts, on the CPU."
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, *map(str, argv)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=ENV)


@pytest.mark.parametrize("place, says", [(0, "alexnet_train: no such folder\n"), (1, "")])
def test_each_machine_says_once_what_it_lacks(place, says, monkeypatch, tmp_path, capsys):
    "Of the processes of another machine, the first; the leader cannot know."
    def lacking(args): raise InputError("no such folder")
    stand_ins = dict(find_world=lambda: _World(2 + place, 4, place, 2),
                     process_group=lambda *args: nullcontext(), leader=lambda: False, _train=lacking)
    for name, value in stand_ins.items(): monkeypatch.setattr(engine_train_command, name, value)
    assert train.main(tiny(tmp_path)) == 2 and capsys.readouterr().err == says


def test_what_both_lack_is_said_once(tmp_path):
    code, out, err = ended(torchrun("-m", "alexnet_nb.train", "--resume", tmp_path / "none.pkl"))
    assert code != 0 and err.count("alexnet_train: ") == 1, err[-3000:]
    assert f"alexnet_train: {tmp_path / 'none.pkl'}: " in err, err[-3000:]


LEAVING = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from alexnet_nb.engine.processes import *

def step():
    net = replicated(torch.nn.Linear(3, 1), torch.device("cpu"))
    net(torch.ones(2, 3)).sum().backward()
    if sys.argv[1] == "fails": raise ValueError("in the middle")

try:
    with process_group(find_world(), torch.device("cpu")): step()
except ValueError as e: error = e  # with its traceback, and so with the frame of `step`
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
sys.exit(any("gloo" in name for name in names) or dist.is_initialized())
"""


@needs_proc
@pytest.mark.parametrize("how", ["ends", "fails"])
def test_the_threads_of_the_group_end_with_it(how, tmp_path):
    "One that needs Python while Python is closing would abort the process after its work."
    (tmp_path / "leaving.py").write_text(LEAVING)
    code, out, err = ended(torchrun(tmp_path / "leaving.py", how))
    assert code == 0, err[-3000:]


def test_who_ends_last_may_write_first(tmp_path):
    """Stopped, all end with a code that is not 0; the leader, who has files to write, is not cut off because
    another was quicker."""
    code = f"""
import os, pathlib, sys, time
if os.environ['RANK'] == '0':
    time.sleep(0.7)
    pathlib.Path({str(tmp_path / 'last words')!r}).touch()
sys.exit(130)
"""
    assert launch(2, [sys.executable, "-c", code]) == 130
    assert (tmp_path / "last words").exists()


def test_who_cannot_all_be_started_are_ended(monkeypatch):
    started, real = [], subprocess.Popen
    def second_fails(*args, **how):
        if started: raise OSError("no more processes")
        started.append(real(*args, **how))
        return started[0]
    monkeypatch.setattr("alexnet_nb.engine.processes.subprocess.Popen", second_fails)
    with pytest.raises(OSError, match="no more"):
        launch(2, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert started[0].wait(timeout=20) != 0


def test_a_signal_to_the_launcher_stops_all(tmp_path):
    process = launched(*tiny(tmp_path, **THREE))
    wait_for_steps(process, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 143 and "Traceback" not in err, err[-2000:]
    assert (out.splitlines()[-1].startswith("stopped (SIGTERM) after ")
            and load(tmp_path / "models/alexnet_last.pkl")["total_steps"] == len(lines(tmp_path)))


def test_bad_input_is_said_once(tmp_path):
    code, _, err = ended(launched(*tiny(tmp_path / "out", data__dataset="ImageFolder",
                                        data__data_dir=str(tmp_path / "nowhere"))))
    said = [line for line in err.splitlines() if "alexnet_train" in line]
    assert code == 2 and len(said) == 1 and "no such folder" in said[0], err[-2000:]
    assert "Traceback" not in err, err[-2000:]


@needs_proc
def test_a_killed_process_takes_the_others_along(tmp_path):
    process = launched(*tiny(tmp_path, **THREE))
    wait_for_steps(process, tmp_path, 2)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1 and "Traceback" not in err and "if it had saved, go on with --resume" in err, err[-2000:]


@needs_proc
def test_processes_without_their_launcher_stop_with_a_checkpoint(tmp_path):
    process = launched(*tiny(tmp_path, **THREE | dict(training__num_epochs=50)))
    wait_for_steps(process, tmp_path, 2)
    ours, until = children(process.pid), time.monotonic() + 100
    process.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in ours.values()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours.values())
    assert load(tmp_path / "models/alexnet_last.pkl")["total_steps"] == len(lines(tmp_path))


# ---------------------------------------------------------------- several GPUs in a config

@pytest.fixture
def two_gpus(monkeypatch):
    "torch claims to have two."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_ids_in_a_config_start_a_process_each(two_gpus, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(engine_train_command, "launch", lambda size, command: asked.append((size, command))
                        or 0)
    argv = [*tiny(tmp_path, device__use_cuda=True), "--set", "device.device_ids=[0, 1]"]
    assert train.main(argv) == 0
    assert asked == [(2, [sys.executable, "-m", "alexnet_nb.train", *argv])]


def test_a_run_on_two_gpus_is_resumed_on_two(two_gpus, monkeypatch, tmp_path, trained):
    "The checkpoint says so, and nobody has to say it again."
    stored = load(trained / "models/alexnet_last.pkl")
    stored["config"]["device"] |= dict(use_cuda=True, device_ids=[1, 0])
    torch.save(stored, tmp_path / "two.pkl")
    asked = []
    monkeypatch.setattr(engine_train_command, "launch", lambda size, command: asked.append(size) or 0)
    assert train.main(["--resume", str(tmp_path / "two.pkl")]) == 0 and asked == [2]


def test_an_id_that_is_not_there_is_refused_before(two_gpus, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engine_train_command, "launch", None)
    assert train.main([*tiny(tmp_path, device__use_cuda=True), "--set", "device.device_ids=[0, 2]"]) == 2
    assert "device.device_ids names GPU 2, but there are 2" in capsys.readouterr().err


def test_fewer_images_than_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(engine_setup, "world_size", lambda: 9)
    monkeypatch.setattr(engine_setup, "by_leader", lambda work, then_all=False: work())
    with pytest.raises(base_errors.InputError, match="training.batch_size is 8, but 9 processes share it"):
        engine_setup.start(make_config(numbers(tmp_path, "float32")["config"]))
