"""The one command for a GPU, without one: all of it small, with a fault planted, and its way back."""
import ast
import builtins
import dis
import json
import re
import shutil
import subprocess
import symtable
import sys
import time
from pathlib import Path

import pytest

from alexnet_nb.base import results as results_module
from common import NBS, ROOT

sys.path.append(str(ROOT / "tools"))
import on_gpu
from notebooks import read_cells
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
    assert {part.kind for part in on_gpu.PARTS if "_seed" not in part.name} == kinds
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


def test_the_trial_takes_the_first_of_each_kind(tmp_path):
    def tried(name): return Part(name, ["-c", "pass"], trial=["-c", "pass"])
    try_parts(session := held(tmp_path), [tried("lrn 1"), tried("relu 1"), tried("lrn 2")], seconds=10)
    assert session.tried.keys() == {"lrn 1", "relu 1"}


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
        date="2026-01-01", versions=dict(torch="2.11.0"), threads=1)


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
    for pattern in ("*_full.json", "*_gpu.json", "*_cuda.json", "on_gpu.json"):  # what was really measured
        for path in results.glob(pattern): path.unlink()
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


# --- the pages, after it

def code_of(page: str) -> list[str]:
    "A page's code cells, without magics."
    cells = read_cells(NBS / f"{page}.ipynb", "code")
    return [re.sub(r"^[!%].*", "", cell["source"], flags=re.M) for cell in cells]


def defined(source: str) -> set[str]:
    "The names that a cell gives a meaning to."
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def wanted(source: str) -> set[str]:
    "The names that a cell takes from elsewhere."
    top = symtable.symtable(source, "cell", "exec")
    own = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    found, scopes = set(), [top]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        found |= {s.get_name() for s in scope.get_symbols()
                  if s.is_referenced() and (scope is top or s.is_global())}
    return found - own


def space_for(page: str, last: str) -> dict:
    "What `last`, a cell of a page or a call, finds on the page; only the cells are run that it needs."
    cells = code_of(page)
    if last in cells: cells = cells[:cells.index(last)]
    needed, todo = set(), [last]
    while todo:
        for name in wanted(todo.pop()):
            where = max((i for i, source in enumerate(cells) if name in defined(source)), default=None)
            if where is not None and where not in needed:
                needed.add(where)
                todo.append(cells[where])
    space: dict = {}
    for i in sorted(needed): exec(compile(cells[i], page, "exec"), space)
    return space


def shown(last: str, space: dict) -> str:
    "What a cell or a call shows."
    *body, end = ast.parse(last).body
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    value = eval(compile(ast.Expression(end.value), "cell", "eval"), space)
    return getattr(value, "data", str(value))


def made_up() -> dict:
    "What a session on a GPU might bring."
    from alexnet_nb.claims.plans import EXPERIMENTS
    arms = EXPERIMENTS["relu_vs_tanh"]["full"].arms
    relu, tanh = (.5, .24), (.5, .4, .3, .28, .24)
    race = [trial(arm, 0, *(relu if own["activation"] == "relu" else tanh)) for arm, own in arms.items()]
    seeds = [trial(arm, seed, *errors) for seed in (1, 2) for arm, errors in (("relu 0.000125", relu),
                                                                             ("tanh 0.000125", tanh))]
    pairs = [trial(arm, seed, .2, .1, test=test) for seed in range(3)
             for arm, test in (("13pct", .13), ("11pct_first, 160 epochs", .11))]
    rows = [trial(arm, seed, .2, test=test + seed / 1000) | dict(parameters=1, macs=1)
            for seed in range(2) for arm, test in (("base", .2), ("no LRN", .25))]
    return {"relu.json": experiment("relu_vs_tanh", "full", race + seeds),
            "lrn.json": experiment("lrn_13_to_11", "full", pairs),
            "ablations.json": experiment("ablations", "gpu", rows)}


# A page, and a part of one of its cells (on the errata's page a call): what it then says.
PAGES = {
    ("claims/relu_vs_tanh", "Markdown(in_full(full)"): "Every tanh run took longer than every ReLU run",
    ("claims/lrn_13_to_11", "full else status(None"): "the mean change is -2.00 points",
    ("claims/ablations", 'longer = read_results("ablations_gpu")'): "Outside: no LRN (-5.0)",
    ("engine/speed", "told_of_gpu(read_results"): "cuda:0 (made up), 2026-01-01",
    ("claims/errata", "figure_1()"): "**2.5 times**",
    ("claims/errata", "thirteen_to_eleven()"): "after 160 epochs 13.0 % without, 11.0 % with",
    ("claims/errata", 'without("no LRN")'): "+5.0 points of test error', True",
}


def test_a_merge_changes_the_pages_that_show_it(tmp_path, places, monkeypatch):
    monkeypatch.setattr(results_module, "_PACKAGE", tmp_path)
    cells = {(page, part): part if page == "claims/errata" else
             next(source for source in code_of(page) if part in source) for page, part in PAGES}
    spaces = {key: space_for(key[0], cells[key]) for key in PAGES}
    before = {key: shown(cells[key], spaces[key]) for key in PAGES}
    merge(report(tmp_path, made_up()), *places)
    after = {key: shown(cells[key], spaces[key]) for key in PAGES}
    for key, words in PAGES.items():
        assert words not in before[key] and words in after[key], (key, before[key], after[key])
    assert sum("ot yet run" in text for text in before.values()) == 4
    assert not any("ot yet run" in text for text in after.values())


def test_a_merge_never_replaces_what_it_cannot_read(tmp_path, places):
    results, weights = places
    brought = json.loads((ROOT / "nbs" / "results" / "lrn_13_to_11_full.json").read_text())
    spoilt = "<<<<<<< ours\n" + json.dumps(brought)
    (results / "lrn_13_to_11_full.json").write_text(spoilt)
    folder = report(tmp_path, {"bench_cuda.json": dict(rows=[]), "lrn_13_to_11.json": brought})
    before = sorted(results.iterdir())
    with pytest.raises(ValueError, match="cannot be read"): merge(folder, results, weights)
    assert (results / "lrn_13_to_11_full.json").read_text() == spoilt and sorted(results.iterdir()) == before


def test_a_part_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no part is called bnech"):
        on_gpu.main(["--out", str(tmp_path), "--dry", "--only", "check", "bnech"])
