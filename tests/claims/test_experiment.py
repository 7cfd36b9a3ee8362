"""`alexnet_experiment`: tables, rule, order, exact resumption, refusals, divergence, and the directions that
its small forms must show."""
import copy
import errno
import json
import math
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import CLASSES
from alexnet_nb.claims import experiment as claims_experiment
from alexnet_nb.claims import plans as claims_plans
from alexnet_nb.claims.small_nets import NETS
from alexnet_nb.engine import files as engine_files
from alexnet_nb.engine import signals as engine_signals
from alexnet_nb.engine.config import make_config
from common import class_folders, snapshot

# Networks of the authors on 8 x 8 drawings: an epoch takes hundredths of a second. Nothing reaches an error
# of 1 %.
RACE = claims_plans.Experiment("convnet", (80, 0),
                               dict(crops=False, decay=False, batch_size=16, until=0.01, epochs=4),
                               claims_plans.rate_arms("19pct", 8, (.001, .002), (.001, .002)),
                               (0, 1), "a rule", race=2)
STAGES = [[[1, 2, 3, 4], 2, .001], [[1, 2, 3, 4, 5], 1, .0001]]
PAIR = claims_plans.Experiment("convnet", (80, 30),
                               dict(side=8, activation="relu", crops=True, decay=True, batch_size=16,
                                    stages=STAGES),
                               {"13pct": dict(net="13pct"), "11pct": dict(net="11pct", seeds=[0])},
                               (0, 1), "a rule")
_TINY = claims_plans.EXPERIMENTS["ablations"]["tiny"]
ALEXNET = replace(_TINY, images=(24, 10), base=_TINY.base | {"device.use_cuda": False},
                  arms={name: _TINY.arms[name] for name in ("no dropout", "two towers")})


@pytest.fixture(scope="module", autouse=True)
def on_cpu():
    "Bits are compared, which a GPU does not promise."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(claims_experiment, "pick_device", lambda: torch.device("cpu"))
        yield


@pytest.fixture
def known(monkeypatch):
    "Small experiments under the names race, pair and alexnet."
    for name, experiment in dict(race=RACE, pair=PAIR, alexnet=ALEXNET).items():
        monkeypatch.setitem(claims_plans.EXPERIMENTS, name, {"tiny": experiment})


def run(name: str, *argv: str, file: str = "r.json", folder: str = "states") -> int:
    return claims_experiment.main([name, "--results", file, "--output", folder, *argv])


def read(file: str = "r.json", clock: bool = False) -> dict:
    "A results file, which must be strict JSON; without what depends on the clock."
    def refuse(text): raise AssertionError(f"{text} is not JSON")
    results = json.loads(Path(file).read_text(), parse_constant=refuse)
    for trial in results["trials"] if not clock else []:
        for record in (trial, *trial["epochs"]): del record["seconds"]
    return results


def errors(trial: dict) -> list[float]: return [epoch["error"] for epoch in trial["epochs"]]


def trial(*errors: float, arm: str = "relu 0.001", seed: int = 0, stopped: str | None = "2 epochs") -> dict:
    "A made-up record."
    epochs = [dict(loss=1.0, error=e, seconds=1.0) for e in errors]
    return (claims_plans.new_trial(arm, seed)
            | dict(epochs=epochs, stopped=stopped, finished=stopped is not None))


# --- the tables

def test_ablations_change_one_thing_each():
    for scale, e in claims_plans.EXPERIMENTS["ablations"].items():
        assert e.arms["base"] == {} and len(e.arms) == (12 if scale in ("cpu", "gpu") else 14)
        for arm, own in e.arms.items(): assert len(own) == (arm != "base"), arm
        for arm in e.arms:
            lab = claims_experiment._Lab(e, {}, Path("r.json"), Path("states"), torch.device("cpu"), None,
                                         engine_signals.StopFlag())
            cfg, base = (make_config(claims_experiment._alexnet_config(lab, trial)).model_dump()
                         for trial in (claims_plans.new_trial(a, 3) for a in (arm, "base")))
            changed = [f"{s}.{k}" for s in cfg for k in cfg[s] if cfg[s][k] != base[s][k] and s != "paths"]
            assert changed == list(e.arms[arm]), "the switch must do something, and nothing else may differ"
            assert cfg["data"]["recipe"] == "paper" and cfg["training"]["seed"] == 3
    default = make_config({}).model_dump()
    full = claims_plans.EXPERIMENTS["ablations"]["full"]
    assert (full.seeds == (0, 1, 2)
            and full.base["training.num_epochs"] == default["training"]["num_epochs"] == 90)
    assert full.images[0] + default["data"]["val_images"] == 50_000


def test_figure_1_is_unregularised_and_each_side_has_its_grid():
    both = dict(relu=9, tanh=9)
    for scale, rates, seeds, race in (("cpu", dict(relu=5, tanh=7), 3, 12), ("full", both, 10, 40)):
        e = claims_plans.EXPERIMENTS["relu_vs_tanh"][scale]
        assert (e.base == dict(crops=False, decay=False, batch_size=128, until=0.25, epochs=40)
                and e.images == (50_000, 0))
        assert (e.seeds == tuple(range(seeds)) and e.race == race and f"within {race} epochs" in e.rule
                and "25 %" in e.rule)
        for act in ("relu", "tanh"):
            grid = [a["rate"] for a in e.arms.values() if a["activation"] == act and a["net"] == "13pct"]
            assert (len(grid) == rates[act] and grid == sorted(grid)
                    and all(math.isclose(b, 2 * a) for a, b in pairwise(grid)))
        sizes = {("13pct", 24), ("19pct", 32)} if scale == "full" else {("13pct", 24)}
        assert {(a["net"], a["side"]) for a in e.arms.values()} == sizes


def test_lrn_arms_have_equal_training_or_the_authors():
    def lengths(e): return {arm: claims_plans.full_length(e, arm) for arm in e.arms}
    cpu, full = (claims_plans.EXPERIMENTS["lrn_13_to_11"][scale] for scale in ("cpu", "full"))
    assert lengths(cpu) == {"13pct": 20, "11pct_first": 20, "11pct": 20} and "20 epochs" in cpu.shortened
    rates = [rate for _, rate in claims_plans.rates_by_epoch(claims_plans.settings(cpu, "11pct"))]
    assert rates == [1e-3] * 14 + [1e-4] * 3 + [1e-5] * 3
    assert lengths(full) == {"13pct": 160, "11pct_first": 470, "11pct": 520, "11pct_first, 160 epochs": 160,
                             "11pct, 160 epochs": 160}
    for e in (cpu, full):
        for arm in e.arms:
            own = claims_plans.settings(e, arm)
            assert own["net"] in NETS and own["crops"] and own["decay"]
    around = claims_plans.rates_by_epoch(claims_plans.settings(full, "13pct"))[99:101]
    assert around == [((1, 2, 3, 4), 1e-3), ((1, 2, 3, 4, 5), 1e-3)]
    order = [(a, s) for a, s, _ in claims_plans.plan(cpu, [])]
    assert order == [("13pct", 0), ("11pct_first", 0), ("11pct", 0), ("13pct", 1), ("11pct_first", 1)]


# --- the rule and the order

def chosen(*trials: dict) -> dict: return claims_plans.choose(RACE, list(trials))


def test_rule_fewest_epochs_then_lower_error():
    tanh = [trial(.9, .8, arm=f"tanh {rate}") for rate in (.001, .002)]
    fast, slow = trial(.5, .01, arm="relu 0.001"), trial(.6, .5, arm="relu 0.002")
    assert chosen(fast, slow, *tanh)["relu"] == dict(arm="relu 0.001", rate=.001, reached=True, at_edge=True)
    assert chosen(trial(.5, .4, arm="relu 0.001"), trial(.2, .3, arm="relu 0.002"),
                  *tanh)["relu"]["arm"] == "relu 0.002", "the error at the cut, not the lowest"
    assert chosen(trial(.5, .01, arm="relu 0.001"), trial(.5, .005, arm="relu 0.002"),
                  *tanh)["relu"]["arm"] == "relu 0.002", "a tie"
    first = trial(.01, arm="relu 0.002", stopped="reached 1 %")
    assert chosen(trial(.5, .001, arm="relu 0.001"), first,
                  *tanh)["relu"]["arm"] == "relu 0.002", "epochs come before error"
    gone = trial(.02, arm="relu 0.002", stopped="diverged")
    assert chosen(trial(.9, .89, arm="relu 0.001"), gone,
                  *tanh)["relu"]["arm"] == "relu 0.001", "a run that diverged is the slowest"
    none = [trial(arm=f"relu {rate}", stopped="diverged") for rate in (.001, .002)]
    assert list(chosen(*none, *tanh)) == ["tanh"]


def test_rule_waits_for_every_first_run_and_looks_no_further():
    trials = [trial(.5, .4, arm=f"{act} {rate}") for act in ("relu", "tanh") for rate in (.001, .002)]
    before = chosen(*trials)
    assert set(before) == {"relu", "tanh"} and before["relu"]["arm"] == "relu 0.001"
    assert ({*chosen(*trials[:3])} == {*chosen(*trials[:3], trials[3] | dict(finished=False))} == {"relu"}
            and chosen(trials[0], trials[2]) == {})
    later = trial(.5, .4, .0, .0, arm="relu 0.001", stopped=None)   # the chosen one, under way again
    assert chosen(later, *trials[1:]) == before
    assert chosen(trial(.5, .45, .0, .0, arm="relu 0.001", stopped="4 epochs"),
                  *trials[1:])["relu"]["arm"] == "relu 0.002"


def test_edge_of_the_grid():
    e = replace(RACE, arms=claims_plans.rate_arms("19pct", 8, (.1, .2, .3), (.1,)))
    for best, at_edge in ((.1, True), (.2, False), (.3, True)):
        relu = [trial(.5, .4 - .1 * (rate == best), arm=f"relu {rate}") for rate in (.1, .2, .3)]
        found = claims_plans.choose(e, [*relu, trial(.5, .5, arm="tanh 0.1")])
        assert found["relu"]["at_edge"] == at_edge, best


@pytest.mark.parametrize("name, scale", [(n, s) for n, scales in claims_plans.EXPERIMENTS.items()
                                         for s in scales])
def test_one_seed_of_all_arms_comes_before_a_second_of_any(name, scale):
    e, trials, order = claims_plans.EXPERIMENTS[name][scale], [], []
    while task := claims_plans.next_trial(e, trials):
        arm, seed, limit = task
        order.append((arm, seed, limit))
        done = claims_plans.find_trial(trials, arm, seed)
        if done is None: trials.append(done := claims_plans.new_trial(arm, seed))
        done |= trial(*[.9] * limit, arm=arm, seed=seed, stopped=f"{limit} epochs")
    seeds = [seed for _, seed, _ in order]
    assert seeds == sorted(seeds) and len(set(order)) == len(order)
    for seed in set(seeds[len(e.arms) * bool(e.race):]): assert seed in e.seeds
    if e.race:
        assert order[:len(e.arms)] == [(arm, 0, e.race) for arm in e.arms]
        families = len(claims_plans.choose(e, trials))
        # the first round has then run the chosen arms to the end with seed 0
        over = e.race == e.base["epochs"]
        assert (len(order) == len(e.arms) + families * (len(e.seeds) - over)
                and all(t[2] == e.base["epochs"] for t in order[len(e.arms):]))


def test_arms_by_themselves_give_the_same_numbers_and_spare_the_others_states(known, monkeypatch, capsys):
    assert run("pair", "--seeds", "0", file="whole.json", folder="a") == 0
    def stop_after_an_epoch(lab, note=claims_experiment._note):
        note(lab)
        lab.flag.signal = signal.SIGTERM
    with monkeypatch.context() as m:
        m.setattr(claims_experiment, "_note", stop_after_an_epoch)
        assert run("pair", "--seeds", "0", "--arms", "11pct") == 143
    assert run("pair", "--seeds", "0", "--arms", "13pct") == 0
    assert [*Path("states").rglob("*.pkl")], "the state of 11pct is still there"
    assert read()["command"] == "alexnet_experiment pair --scale tiny --arms 13pct --seeds 0"
    assert run("pair", "--seeds", "0", "--arms", "11pct") == 0
    def by_arm(file): return {t["arm"]: t for t in read(file)["trials"]}
    assert by_arm("r.json") == by_arm("whole.json") and len(by_arm("r.json")) == 2
    assert run("pair", "--arms", "12pct") == 2 and run("pair", "--scale", "gpu") == 2
    said = capsys.readouterr().err
    assert "--arms 12pct: pair has 13pct, 11pct" in said and "--scale gpu: pair has tiny" in said


# --- exact resumption

@pytest.mark.parametrize("name", ["race", "pair"])
def test_stopped_after_any_epoch_goes_on_with_the_same_numbers(known, monkeypatch, name):
    assert run(name, file="whole.json", folder="a") == 0
    sessions, note = 0, claims_experiment._note
    def note_and_stop(lab):
        note(lab)
        lab.flag.signal = signal.SIGTERM
    monkeypatch.setattr(claims_experiment, "_note", note_and_stop)
    while (code := run(name, file="cut.json", folder="b")) != 0:
        assert code == 143
        sessions += 1
        torch.manual_seed(sessions)   # another process has other generators
        np.random.seed(sessions)
        assert sessions < 60
    whole, cut = read("whole.json"), read("cut.json")
    assert (sum(len(t["epochs"]) for t in whole["trials"]) == (2 * 2 + 4 * 4 if name == "race" else 3 * 3)
            and sessions >= 8)
    assert cut == whole
    assert not list(Path("b").rglob("*.pkl")), "states of finished trials are removed"
    assert all(t["finished"] and t["stopped"] in ("2 epochs", "4 epochs", "3 epochs") for t in cut["trials"])


@pytest.mark.parametrize("where", ["before the state", "between state and results", "while testing"])
def test_killed_anywhere_goes_on_with_the_same_numbers(known, monkeypatch, where):
    assert run("pair", "--seeds", "1", file="whole.json", folder="a") == 0
    name, epochs = {"before the state": ("save_checkpoint", 1), "between state and results": ("_note", 1),
                    "while testing": ("view_probabilities", 3)}[where]
    module = claims_experiment.small_nets if where == "while testing" else claims_experiment
    real, calls = getattr(module, name), 0

    def die_the_second_time(*args, **options):
        nonlocal calls
        calls += 1
        if calls == 2: raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as m:
        m.setattr(module, name, die_the_second_time)
        assert run("pair", "--seeds", "1", file="cut.json", folder="b") == 130
    before = read("cut.json")["trials"][0]
    assert not before["finished"] and len(before["epochs"]) == epochs
    assert run("pair", "--seeds", "1", file="cut.json", folder="b") == 0
    assert read("cut.json") == read("whole.json")


def test_minutes_and_more_seeds(known):
    assert run("pair", "--minutes", "1e-9") == 0 and not Path("r.json").exists()
    assert run("pair", "--seeds", "0") == 0
    first = copy.deepcopy(read()["trials"])
    assert run("pair", "--seeds", "0", "3", "3") == 0
    trials = read()["trials"]
    assert trials[:2] == first
    assert ([(t["arm"], t["seed"]) for t in trials]
            == [("13pct", 0), ("11pct", 0), ("13pct", 3), ("11pct", 3)])
    assert errors(trials[0]) != errors(trials[2]), "another seed, other weights and crops"
    assert read()["command"] == "alexnet_experiment pair --scale tiny --seeds 0 3 3"


def test_a_finished_trial_is_never_repeated(known, monkeypatch):
    assert run("race", "--seeds", "0") == 0
    before = read(clock=True)
    monkeypatch.setattr(claims_experiment.small_nets, "train_epoch", None)
    assert run("race", "--seeds", "0") == 0
    assert read(clock=True) == before


def test_alexnet_stops_within_an_epoch_and_goes_on(known, no_panels, monkeypatch):
    assert run("alexnet", file="whole.json", folder="a") == 0
    steps = 0

    def stop_now_and_then(self, check=engine_signals.StopFlag.check):
        nonlocal steps
        steps += 1
        if steps % 5 == 3: self.signal = signal.SIGINT
        check(self)

    codes, left = [], []
    with monkeypatch.context() as m:
        m.setattr(engine_signals.StopFlag, "check", stop_now_and_then)
        while not codes or codes[-1]:
            codes.append(run("alexnet", file="cut.json", folder="b"))
            assert len(codes) < 30, "every session must get further"
            for t in read("cut.json")["trials"] if Path("cut.json").exists() else []:
                left.append((t["finished"], bool(list(Path("b").rglob(f"{t['arm'][:2]}*/**/*.pkl")))))
    assert (False, True) in left, "checkpoints of a trial are there while it runs"
    assert (True, True) not in left, "and gone once it is finished"
    assert set(codes) == {130, 0} and len(codes) > 3
    whole, cut = read("whole.json"), read("cut.json")
    assert cut == whole
    assert not list(Path("b").rglob("*.pkl")), "checkpoints go"
    assert list(Path("b").rglob("steps.jsonl")), "logs stay"
    single, double = cut["trials"]
    assert single["parameters"] > double["parameters"], "two towers have fewer connections"
    assert single["macs"] > double["macs"]
    for t in cut["trials"]:
        assert (t["stopped"] == "2 epochs" and all(0 <= e["val_error"] <= 1 for e in t["epochs"])
                and t["choices"]["precision"] in ("fp32", "bf16"))
        assert set(t["test"]) == {"ten_views", "one_view"} and all(0 <= v <= 1 for v in t["test"].values())


# --- what is stored

def test_results_file(known, capsys):
    assert run("pair") == 0
    results, text = read(clock=True), Path("r.json").read_text()
    assert str(Path.cwd()) not in text and str(Path.home()) not in text
    expected = dict(experiment="pair", scale="tiny", data="drawings", images=dict(training=80, test=30),
                    rule="a rule", chosen={}, race=0)
    assert {k: results[k] for k in expected} == expected
    assert (results["arms"] == {"13pct": {"net": "13pct"}, "11pct": {"net": "11pct", "seeds": [0]}}
            and results["base"]["stages"] == STAGES)
    assert (results["device"].startswith("cpu") and results["threads"] == torch.get_num_threads()
            and "torch" in results["versions"] and len(results["date"]) == 10)
    for t in results["trials"]:
        assert list(t) == ["arm", "seed", "epochs", "stopped", "finished", "test", "parameters", "macs",
                           "seconds"]
        assert (t["finished"]
                and math.isclose(t["seconds"], sum(e["seconds"] for e in t["epochs"]), abs_tol=.06))
        assert all(set(e) == {"loss", "error", "seconds"} and 0 <= e["error"] <= 1 for e in t["epochs"])
    shown = capsys.readouterr().out
    assert shown.startswith("results: r.json;") and "13pct, seed 1: 3 epochs, training error" in shown


def test_a_second_device_is_named_too(known):
    assert run("race", "--seeds", "0") == 0
    changed = read(clock=True) | dict(device="cuda:0 (some GPU)")
    Path("r.json").write_text(json.dumps(changed))
    assert run("race", "--seeds", "0") == 0
    assert read()["device"].startswith("cuda:0 (some GPU); cpu")


def test_a_full_disk_leaves_the_former_file(known, monkeypatch, capsys):
    assert run("pair", "--seeds", "0") == 0
    before = Path("r.json").read_bytes()

    def full(*args, **options): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(engine_files.json, "dump", full)
    assert run("pair", "--seeds", "0", "1") == 1
    assert "No space left" in capsys.readouterr().err and Path("r.json").read_bytes() == before
    assert not list(Path().glob(".r.json*"))


def test_a_second_run_on_the_folder_is_refused(known, capsys):
    "It would write over the first one's states; the line names the process that has them."
    assert run("race") == 0
    before = snapshot(Path("states/race-tiny"))
    with engine_files.lock_folders("states/race-tiny"): assert run("race") == 2
    assert (f"another run writes there (process {os.getpid()} on" in capsys.readouterr().err
            and snapshot(Path("states/race-tiny")) == before)


def test_default_place(monkeypatch):
    place = claims_experiment._default_file
    assert place("ablations", "cpu") == Path("alexnet_data_out/experiments/ablations.json")
    Path("nbs/results").mkdir(parents=True)
    assert place("ablations", "cpu") == Path("nbs/results/ablations.json")
    assert place("ablations", "gpu") == Path("nbs/results/ablations_gpu.json")
    assert "nbs" not in place("ablations", "tiny").parts, "drawings must not pass for results"


# --- refusals

@pytest.mark.parametrize("key, value", [("experiment", "race"), ("scale", "cpu"), ("data", "CIFAR-10"),
                                        ("images", {"training": 81, "test": 30}), ("race", 3), ("base", {}),
                                        ("arms", {"13pct": {"net": "13pct"}})])
def test_foreign_results_are_refused_and_left_alone(known, capsys, key, value):
    assert run("pair", "--minutes", "1e-9") == 0
    mine = claims_experiment._identity("pair", "tiny", "drawings")
    Path("r.json").write_text(json.dumps(mine | {"device": "", "trials": [], key: value}))
    before = snapshot(Path())
    capsys.readouterr()
    assert run("pair") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "r.json" in error and key in error and "move it away" in error
    assert snapshot(Path()) == before


def test_other_refusals(known, capsys):
    for text in ("{", "[1, 2]", "null"):
        Path("r.json").write_text(text)
        assert run("pair") == 2 and "r.json" in capsys.readouterr().err and Path("r.json").read_text() == text
    Path("r.json").unlink()
    Path("states/pair-tiny").mkdir(parents=True)
    other = claims_experiment._identity("pair", "tiny", "drawings") | {"base": {}}
    Path("states/pair-tiny/identity.json").write_text(json.dumps(other))
    assert run("pair") == 2 and "identity.json" in capsys.readouterr().err and not Path("r.json").exists()
    for argv in (["--minutes", "0"], ["--minutes", "nan"], ["--seeds", "1", "-1"]):
        assert run("pair", *argv, folder="other") == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as e: claims_experiment.main(["no_such"])
    assert e.value.code == 2


def test_data_that_is_too_little_or_of_another_size(capsys):
    class_folders(Path("few"))
    assert run("relu_vs_tanh", "--scale", "cpu", "--data", "few") == 2
    assert ("has 40 training images, the experiment takes 50000" in capsys.readouterr().err
            and not Path("r.json").exists() and not Path("states").exists())
    with pytest.raises(InputError, match="32 x 32"):
        Image.new("RGB", (40, 40)).save("few/train/cat/0.png")
        claims_experiment._load_pictures(Path("few"), True, 40, torch.device("cpu"))


def test_data_is_named_and_put_in_one_order():
    root = class_folders(Path("cifar"))
    assert (claims_experiment._find_data(None, (80, 30)) == "drawings"
            and claims_experiment._find_data(root, (40, 20)) == "CIFAR-10")
    one, two = (claims_experiment._load_pictures(root, True, 40, torch.device("cpu")) for _ in range(2))
    assert (torch.equal(one.pixels, two.pixels) and torch.equal(one.labels, two.labels)
            and one.pixels.dtype == torch.uint8)
    assert sorted(one.labels.tolist()) == sorted(list(range(10)) * 4)
    assert len(set(one.labels[:10].tolist())) > 4, "folders are sorted by class; this order is not"
    picture = np.asarray(Image.open(root / "train" / CLASSES[int(one.labels[0])] / "0.png"))
    assert any(np.array_equal(one.pixels[i].permute(1, 2, 0).numpy(), picture) for i in range(40)
               if one.labels[i] == one.labels[0])
    for path in root.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert claims_experiment._find_data(root, (40, 0)) == "JPEG copy of CIFAR-10"


# --- listing

def test_list_runs_nothing(known, monkeypatch, capsys):
    assert run("race", "--list") == 0 and list(Path().iterdir()) == []
    out = capsys.readouterr().out
    assert out.count("to do") == 4 and "then the chosen arms with seeds 0, 1" in out and "a rule" in out
    assert (claims_experiment.main(["lrn_13_to_11", "--scale", "cpu", "--data", "nowhere", "--list"]) == 0
            and capsys.readouterr().out.count("to do") == 5)
    assert run("race") == 0
    monkeypatch.setattr(claims_experiment, "_run_trial", None)
    capsys.readouterr()
    before = snapshot(Path())
    assert run("race", "--list") == 0 and snapshot(Path()) == before
    out = capsys.readouterr().out
    assert "to do" not in out and out.count("at most 4 epochs: 4 epochs, training error") == 4


def test_a_first_round_that_went_on_is_not_said_to_have_done_so_in_fewer_epochs(known, capsys):
    assert run("race") == 0
    results = read(clock=True)
    for trial in results["trials"]: trial["epochs"] *= 2
    Path("r.json").write_text(json.dumps(results))
    capsys.readouterr()
    assert run("race", "--list") == 0
    assert "at most 4 epochs: done, and later 4 epochs, training error" in capsys.readouterr().out


# --- some arms, some seeds, two at once

def test_fewer_seeds_leave_the_states_of_others(known, monkeypatch):
    monkeypatch.setattr(claims_plans, "is_done", lambda trial, limit: bool(trial and trial["finished"]))
    state = Path("states/race-tiny/tanh-0.001-seed-1/state.pkl")
    state.parent.mkdir(parents=True)
    state.touch()
    assert run("race", "--seeds", "0") == 0 and state.exists()


def test_a_loser_is_not_chosen_among_itself(known):
    assert run("race") == 0
    before = read()
    arms = {t["arm"] for t in before["trials"]} - {one["arm"] for one in before["chosen"].values()}
    assert run("race", "--arms", *sorted(arms)) == 0
    after = read()
    assert after["chosen"] == before["chosen"] and after["trials"] == before["trials"]


def test_all_arms_of_a_family_are_enough_for_its_choice(known):
    relu = [arm for arm in claims_plans.EXPERIMENTS["race"]["tiny"].arms if arm.startswith("relu")]
    assert run("race", "--arms", *relu) == 0
    results = read()
    assert list(results["chosen"]) == ["relu"]
    assert {(t["arm"], t["seed"]) for t in results["trials"]} == {
        *((arm, 0) for arm in relu), (results["chosen"]["relu"]["arm"], 1)}


def test_another_run_on_the_same_file_is_noticed(known, monkeypatch, capsys):
    "Its trials would be lost, for each writes what it knows."
    work = claims_experiment._work
    def meanwhile(*args):
        Path("r.json").write_text("{}")
        os.utime("r.json", (1, 1))
        return work(*args)
    monkeypatch.setattr(claims_experiment, "_work", meanwhile)
    assert run("race") == 1
    assert "r.json: another run writes there; give each" in capsys.readouterr().err
    assert Path("r.json").read_text() == "{}"


# --- divergence

def test_divergence_is_recorded_and_the_experiment_goes_on(monkeypatch):
    wild = replace(RACE, arms=claims_plans.rate_arms("19pct", 8, (1e38, .001), (1e38,)))
    monkeypatch.setitem(claims_plans.EXPERIMENTS, "wild", {"tiny": wild})
    assert run("wild") == 0
    results = read()
    stopped = {(t["arm"], t["seed"]): t["stopped"] for t in results["trials"]}
    assert stopped == {("relu 1e+38", 0): "diverged", ("relu 0.001", 0): "4 epochs",
                       ("tanh 1e+38", 0): "diverged", ("relu 0.001", 1): "4 epochs"}
    assert list(results["chosen"]) == ["relu"] and results["chosen"]["relu"]["at_edge"]
    assert all(t["finished"] and t["test"] is None for t in results["trials"])


def test_alexnet_that_diverges(no_panels, monkeypatch):
    changes = {"training.learning_rate": 1e30, "training.num_epochs": 1, "views": 1}
    wild = replace(ALEXNET, base=ALEXNET.base | changes, arms={"base": {}})
    monkeypatch.setitem(claims_plans.EXPERIMENTS, "wild", {"tiny": wild})
    assert run("wild") == 0
    only, = read()["trials"]
    assert (only["stopped"] == "diverged" and only["finished"] and only["epochs"] == []
            and only["test"] is None)
    assert not list(Path().rglob("*.pkl"))


# --- directions

@pytest.fixture(scope="module")
def figure_1(tmp_path_factory) -> dict:
    "The whole of relu_vs_tanh, on drawings."
    folder = tmp_path_factory.mktemp("figure_1")
    assert run("relu_vs_tanh", file=str(folder / "r.json"), folder=str(folder / "states")) == 0
    return json.loads((folder / "r.json").read_text())


def test_relu_is_sooner_than_tanh_with_every_seed(figure_1):
    arms = {family: choice["arm"] for family, choice in figure_1["chosen"].items()}
    assert set(arms) == {"relu", "tanh"}
    sooner = 0
    for seed in (0, 1, 2):
        relu, tanh = (claims_plans.find_trial(figure_1["trials"], arms[act], seed)
                      for act in ("relu", "tanh"))
        assert relu["stopped"] == "reached 50 %" and errors(relu)[-1] <= .5 < min(errors(relu)[:-1])
        assert relu["parameters"] == tanh["parameters"] and relu["macs"] == tanh["macs"]
        sooner += (len(relu["epochs"]) < len(tanh["epochs"])
                   and min(errors(tanh)[:len(relu["epochs"])]) > errors(relu)[-1])
    assert sooner == 3


def test_figure_1_follows_its_own_rule(figure_1):
    e, race = claims_plans.EXPERIMENTS["relu_vs_tanh"]["tiny"], figure_1["race"]
    for family, choice in figure_1["chosen"].items():
        after = {arm: errors(claims_plans.find_trial(figure_1["trials"], arm, 0))[race - 1]
                 for arm in e.arms if arm.startswith(family)}
        assert choice["arm"] == min(after, key=after.get) and not choice["reached"]
    assert ([(t["arm"], t["seed"]) for t in figure_1["trials"][:4]] == [(arm, 0) for arm in e.arms]
            and len(figure_1["trials"]) == 8)


def test_every_setting_of_an_arm_is_obeyed(known):
    def loss(**changes):
        changed = replace(PAIR, base=PAIR.base | changes, arms={"13pct": dict(net="13pct")})
        claims_plans.EXPERIMENTS["pair"]["tiny"] = changed
        name = f"run {len(list(Path().glob('*.json')))}"
        assert run("pair", "--seeds", "0", file=f"{name}.json", folder=name) == 0
        return [e["loss"] for e in read(f"{name}.json")["trials"][0]["epochs"]]
    base = loss()
    assert base[-1] < base[0] < 2.5, "training pays"
    for changes in (dict(crops=False), dict(decay=False), dict(activation="tanh"), dict(batch_size=8)):
        assert loss(**changes) != base, changes
    later = loss(stages=[STAGES[0], [[1, 2, 3, 4, 5], 1, .01]])
    assert later[:2] == base[:2], "the rate of the last stage is not that of the stages before"
    assert later[2] != base[2], "but of the last stage"
    fourth = loss(stages=[[[1, 2, 3, 4, 5], 2, .001], STAGES[1]])
    assert fourth[0] != base[0], "a stage may leave out a batch"


def test_biases_learn_twice_as_fast_as_weights_at_first(known, monkeypatch):
    seen, make = [], claims_experiment.small_nets.net_optimizer
    def noting(net, rate, bias_rate, decay):
        seen.append((rate, bias_rate, decay))
        return make(net, rate, bias_rate, decay=decay)
    monkeypatch.setattr(claims_experiment.small_nets, "net_optimizer", noting)
    assert run("race", "--seeds", "0") == 0 and run("pair", "--seeds", "0", file="p.json") == 0
    assert seen[:2] == [(.001, .002, False), (.002, .004, False)] and set(seen[-2:]) == {(.001, .002, True)}


def test_crops_depend_on_seed_and_epoch(known, monkeypatch):
    seen, draw = [], claims_experiment.small_nets.chances
    def noting(*numbers):
        seen.append(numbers)
        return draw(*numbers)
    monkeypatch.setattr(claims_experiment.small_nets, "chances", noting)
    assert run("pair") == 0
    every = [(seed, epoch, 80, 8) for seed in (0, 0, 1) for epoch in range(3)]
    assert seen == every, "crops do not depend on the arm"
