"""The one command for a GPU, without one: all of it small, with a fault planted, and its way back."""
import builtins
import dis
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import ROOT

sys.path.append(str(ROOT / "tools"))
import on_gpu
from on_gpu import Part, Session, flagged_cells, join_trials, merge, names_of, run_parts, try_parts

ABOUT = dict(date="2026-01-01", device="cuda:0 (made up)", dry=False, minutes=1, versions={})


def test_dry_runs_one_part_of_each_kind(tmp_path):
    began = time.monotonic()
    run = subprocess.run([sys.executable, ROOT / "tools" / "on_gpu.py", "--dry", "--out", tmp_path],
                         capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "on_gpu.json").read_text())
    assert {one["state"] for one in report["parts"].values()} == {"ok"} and report["dry"]
    kinds = {name.split()[0] for name in report["parts"]}
    assert {part.name.split()[0] for part in on_gpu.PARTS if "seed" not in part.name} - kinds <= {
        "two_towers", "inside_two_towers"}  # the same commands as cifar10_gpu and tools/look_inside.py
    assert {"cifar10_gpu.json", "compress_gpu.json", "ten_views_gpu.json", "bench_cuda.json",
            "lrn_13_to_11-13pct-0.json"} <= report["files"].keys()
    assert (tmp_path / "cifar10.safetensors").stat().st_size > 0 and (tmp_path / "log.txt").stat().st_size > 0
    assert len([*tmp_path.iterdir()]) == 3 and time.monotonic() - began < 600
    with pytest.raises(ValueError, match="dry run"): merge(tmp_path)


def python(name: str, code: str, **more) -> Part:
    return Part(name, ["-c", code, "{json}", "{minutes}"], **more)


def write(name: str) -> str:
    return f"import json, sys; json.dump(dict(n=1), open(sys.argv[1] + '/{name}.json', 'w'))"


def held(tmp_path, minutes: float = 1.0) -> Session:
    out = tmp_path / "out"
    out.mkdir()
    return Session(out, tmp_path / "work", tmp_path, minutes, ABOUT, slots=2)


def test_a_planted_fault_stops_no_other_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(on_gpu, "LAST_SECONDS", 5)
    parts = [python("first", write("first"), alone=True),
             python("broken", "raise SystemExit('no such kernel')"),
             python("killed", "import os; os.kill(os.getpid(), 9)"), python("good", write("good")),
             python("follows", write("follows"), after="good"),
             python("lost", write("lost"), after="broken"), python("last", write("last"), alone=True)]
    run_parts(session := held(tmp_path), parts)
    report = json.loads((tmp_path / "out" / "on_gpu.json").read_text())
    states = {name: one["state"] for name, one in report["parts"].items()}
    assert states == {"first": "ok", "broken": "failed", "killed": "failed", "good": "ok", "follows": "ok",
                      "lost": "skipped", "last": "ok"}
    assert report["parts"]["broken"]["said"] == "no such kernel"
    assert report["files"].keys() == {"first.json", "good.json", "follows.json", "last.json"}
    assert "failed broken" in capsys.readouterr().out and session.runs["last"].seconds >= 0


def test_time_that_is_up_stops_what_runs_and_keeps_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "LAST_SECONDS", 5)
    stubborn = write("stubborn") + "; import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    parts = [python("stubborn", stubborn, share=0.5),
             python("long", write("long") + "; import time; time.sleep(60)"),
             python("never", write("never"))]
    began = time.monotonic()
    run_parts(held(tmp_path, minutes=10 / 60), parts)
    report = json.loads((tmp_path / "out" / "on_gpu.json").read_text())
    assert [one["state"] for one in report["parts"].values()] == ["stopped", "stopped", "skipped"]
    assert {"stubborn.json", "long.json"} <= report["files"].keys() and time.monotonic() - began < 25


def test_the_trial_names_what_is_broken_and_leaves_nothing(tmp_path, capsys):
    def tried(name, code): return Part(name, ["-c", "pass"], trial=["-c", code, "{json}"])
    session = held(tmp_path)
    try_parts(session, [tried("good", write("good")), tried("broken", "raise SystemExit('no tf32 here')"),
                        tried("slow", "import time; time.sleep(60)")], seconds=5)
    assert "broken: broken: no tf32 here" in capsys.readouterr().out
    assert {name: one["state"] for name, one in session.tried.items()} == {
        "good": "ok", "broken": "failed", "slow": "stopped"}
    assert not [*(tmp_path / "work" / "json").iterdir()]


def test_flagged_cells_find_all_their_names():
    "What they would only look up where there is a GPU."
    cells = flagged_cells()
    assert len(cells) >= 3
    for path, found in cells.items():
        space = set(names_of(path)) | set(vars(builtins))
        for cell in found:
            code = compile(cell["source"], path.name, "exec")
            stack, used, made = [code], set(), set()
            while stack:
                one = stack.pop()
                stack += [c for c in one.co_consts if hasattr(c, "co_names")]
                used |= {name for op, name in instructions(one) if op in ("LOAD_NAME", "LOAD_GLOBAL")}
                made |= {name for op, name in instructions(one) if op == "STORE_NAME"}
            space |= made
            assert used <= space, (path.name, used - space)


def instructions(code) -> list[tuple[str, object]]:
    return [(i.opname, i.argval) for i in dis.get_instructions(code)]


# --- the way back ---

def experiment(name: str, scale: str, trials: list[dict]) -> dict:
    "Made-up results of an experiment."
    from alexnet_nb.claims.experiment import _identity
    from alexnet_nb.claims.plans import EXPERIMENTS
    e = EXPERIMENTS[name][scale]
    return _identity(name, scale, "JPEG copy of CIFAR-10") | dict(
        rule=e.rule, shortened=e.shortened, device="cuda:0 (made up)", chosen={}, trials=trials, command="",
        date="2026-01-01", versions={}, threads=1)


def trial(arm: str, seed: int, *errors: float, finished: bool = True, test: float | None = None) -> dict:
    "A made-up trial."
    return dict(arm=arm, seed=seed, epochs=[dict(loss=1.0, error=e, seconds=1.0) for e in errors],
                stopped="reached 25 %" if errors[-1] <= 0.25 else f"{len(errors)} epochs", finished=finished,
                test=None if test is None else dict(ten_views=test, one_view=test + 0.02), seconds=1.0)


def test_trials_of_several_files_are_one_result():
    unfinished = trial("13pct", 0, .5, finished=False)
    a = experiment("lrn_13_to_11", "full", [unfinished, trial("11pct", 1, .4, .3)])
    b = experiment("lrn_13_to_11", "full", [trial("13pct", 0, .5, .4, test=.13)])
    b["device"] = "cuda:1 (other)"
    both = join_trials([a, b])
    assert [(t["arm"], t["seed"], t["finished"]) for t in both["trials"]] == [("13pct", 0, True),
                                                                              ("11pct", 1, True)]
    assert both["device"] == "cuda:0 (made up); cuda:1 (other)"
    assert both["command"] == "alexnet_experiment lrn_13_to_11 --scale full --data alexnet_data_in"
    with pytest.raises(ValueError, match="two files differ in data"):
        join_trials([a, b | dict(data="CIFAR-10")])


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    "Copies of the results and of the package's network."
    results, weights = tmp_path / "results", tmp_path / "weights"
    shutil.copytree(ROOT / "nbs" / "results", results)
    shutil.copytree(ROOT / "alexnet_nb" / "weights", weights)
    return results, weights


def report(tmp_path, files: dict, network: bytes | None = None) -> Path:
    "What a session with these files would have brought back."
    folder = tmp_path / "back"
    folder.mkdir()
    (folder / "on_gpu.json").write_text(json.dumps(ABOUT | dict(
        seconds=60.0, tried={}, parts={"check": dict(state="ok", seconds=20, said="9 passed")}, files=files)))
    if network: (folder / "cifar10.safetensors").write_bytes(network)
    return folder


@pytest.mark.parametrize("accuracy, replaced", [(0.9, True), (0.5, False)])
def test_a_better_network_takes_the_packages_place(tmp_path, places, accuracy, replaced):
    results, weights = places
    before = (weights / "cifar10.safetensors").read_bytes()
    files = {"compress_gpu.json": dict(accuracy=accuracy, rank=64),
             "cifar10_gpu.json": dict(test_accuracy=accuracy)}
    written = merge(report(tmp_path, files, b"new"), results, weights)
    assert (weights / "cifar10.safetensors").read_bytes() == (b"new" if replaced else before)
    assert (json.loads((results / "cifar10.json").read_text()).get("test_accuracy") == accuracy) == replaced
    assert ("compress.json" in {path.name for path in written}) == replaced
    assert {"cifar10_gpu.json", "compress_gpu.json", "on_gpu.json"} <= {path.name for path in written}


def test_merging_twice_changes_nothing(tmp_path, places):
    files = {"a.json": experiment("lrn_13_to_11", "full", [trial("13pct", 0, .5, .4, test=.13)])}
    folder = report(tmp_path, files)
    merge(folder, *places)
    first = (places[0] / "lrn_13_to_11_full.json").read_bytes()
    merge(folder, *places)
    assert (places[0] / "lrn_13_to_11_full.json").read_bytes() == first
