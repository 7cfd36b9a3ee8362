"""All that this project wants from a GPU, in order of worth, in so many minutes; and its way back.

    python tools/on_gpu.py --out DIR --data cifar10-jpeg.tar.xz --minutes 8   run it
    python tools/on_gpu.py --out DIR --dry                                    each kind, small, on a CPU
    python tools/on_gpu.py --merge DIR                                        what came back, into nbs/results

Every part is a process of its own. In the first minute each kind with a short form is tried, and what is
broken is printed; then they run in the order of PARTS, side by side where they do not fill the device,
till time is up. DIR gets three files, whole at any time: on_gpu.json (how each part ended, and the JSON that
it wrote), log.txt and the compressed network. --data is a folder with CIFAR-10, or a tar archive of one.
Where the machine lacks packages, --wheels names a folder that has them.
"""
import argparse
import ast
import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from notebooks import ROOT, all_notebooks, directives, name_of, read_cells

sys.path.insert(0, str(ROOT))
from alexnet_nb.claims.plans import EXPERIMENTS, choose

RESULTS, WEIGHTS = ROOT / "nbs" / "results", ROOT / "alexnet_nb" / "weights"
TRIAL_SECONDS, LAST_SECONDS = 60, 12  # for trying every part; to stop, saved, before the end
NEEDS = ("pydantic", "filelock", "tensorboard", "safetensors", "yaml")


@dataclass(frozen=True)
class Part:
    "A process. In its arguments {minutes}, {data}, {work}, {json} and {out} are filled in."
    name: str                       # its first word is its kind
    full: list[str]                 # arguments of python
    trial: list[str] | None = None  # the same for a few steps
    dry: list[str] | None = None    # the same on a CPU, on drawings; None: as it is
    alone: bool = False             # is the only one while it runs
    share: float = 1.0              # of the time that is left, at most
    after: str = ""                 # the part whose files it reads

    @property
    def kind(self) -> str: return self.name.split()[0]


@dataclass
class Running:
    "A part under way, or what became of it."
    part: Part
    state: str = "waiting"  # then running; in the end ok, failed, stopped or skipped
    process: subprocess.Popen | None = None
    began: float = 0.0
    seconds: float = 0.0
    said: str = ""
    log: Path | None = field(default=None, repr=False)


def _train(name: str, *more: str, seed: int = 42, epochs: int = 90) -> dict:
    "A run of `alexnet_train` on CIFAR-10: in full, tried, and dry."
    out = f"{{work}}/{name}"
    command = ["-m", "alexnet_nb.train", "--config", "default", "--results", f"{{json}}/{name}.json"]
    values = ["data.data_dir={data}", "data.download=false", f"training.seed={seed}",
              f"paths.output_dir={out}", f"paths.checkpoint_dir={out}/models", f"paths.log_dir={out}/tblogs",
              *more]
    def said(*values: str) -> list[str]: return [part for value in values for part in ("--set", value)]
    few = ["training.num_epochs=1", "data.val_images=20", "data.test_images=20", "training.warmup_steps=1"]
    full = [*command, "--minutes", "{minutes}", *said(*values, f"training.num_epochs={epochs}")]
    return dict(full=full, trial=[*command, *said(*values, *few, "data.train_images=1024")],
                dry=[*command, *said(*values, *few, "data.train_images=40", "training.batch_size=8",
                                     "model.width=0.05", "device.use_cuda=false")])


def _experiment(name: str, title: str, scale: str, seed: int | None, arms: list[str],
                tiny: list[str]  # arms of the dry run
               ) -> dict:
    "Some arms of an experiment, with one seed or, where a rate has to be found first, with all of them."
    one = title.replace(" ", "-").replace(",", "")
    command = ["-m", "alexnet_nb.claims.experiment", name, "--results", f"{{json}}/{one}.json",
               "--output", f"{{work}}/{one}", "--data", "{data}"]
    seeds = [] if seed is None else ["--seeds", str(seed)]
    full = [*command, "--scale", scale, "--arms", *arms, *seeds]
    return dict(full=[*full, "--minutes", "{minutes}"], trial=[*full, "--minutes", "0.3"],
                dry=[*command, "--scale", "tiny", "--arms", *tiny, "--seeds", "0"])


def _parts() -> list[Part]:
    "In order of worth."
    tests = ["tests/engine/test_device.py", "tests/engine/test_loaders.py", "tests/base/test_resize.py",
             "tests/base/test_lrn_triton.py", "tests/claims/test_small_nets.py"]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfs"]
    bench = ["-m", "alexnet_nb.engine.bench", "--results", "{json}/bench_cuda.json"]
    trained, drawn = "{work}/cifar10_gpu/models/alexnet_final.pkl", ["--val-images", "20", "--rank", "4"]
    small = ["-m", "alexnet_nb.engine.compress", "--checkpoint", trained, "--data-dir", "{data}",
             "--data-name", "JPEG copy of CIFAR-10", "--out", "{out}/cifar10.safetensors",
             "--results", "{json}/compress_gpu.json"]
    views = ["tools/ten_views.py", trained, "{data}"]
    parts = [
        Part("check", [*pytest, *tests, "-k", "cuda or device"], dry=[*pytest, *tests[:1], "-k", "lrn"],
             alone=True, share=0.3),
        Part("cells", ["tools/on_gpu.py", "--cells"], alone=True, share=0.2),
        Part("bench", [*bench, "--device", "cuda", "--precision", "all", "--minutes", "{minutes}"],
             [*bench, "--device", "cuda", "--small", "--repeats", "1"],
             [*bench, "--device", "cpu", "--small", "--repeats", "1", "--precision", "fp32"],
             alone=True, share=0.3),
        Part("cifar10_gpu", **_train("cifar10_gpu")),
        Part("compress_gpu", small, dry=[*small, *drawn], after="cifar10_gpu"),
        Part("ten_views_gpu", [*views, "1000", "--out", "{json}/ten_views_gpu.json"],
             dry=[*views, "20", "--out", "{json}/ten_views_gpu.json"], after="cifar10_gpu"),
    ]
    lrn = ["13pct", "11pct_first, 160 epochs", "11pct_first", "11pct", "11pct, 160 epochs"]
    for seed in range(5):
        for arm in lrn:
            title = f"lrn_13_to_11 {arm} {seed}"
            parts.append(Part(title, **_experiment("lrn_13_to_11", title, "full", seed, [arm], ["13pct"])))
    families: dict[str, list[str]] = {}  # all rates of one network and nonlinearity: the fastest is chosen
    for arm in EXPERIMENTS["relu_vs_tanh"]["full"].arms:
        families.setdefault(arm.rpartition(" ")[0], []).append(arm)
    for family, arms in families.items():
        title = f"relu_vs_tanh {family}"
        parts.append(Part(title, **_experiment("relu_vs_tanh", title, "full", None, arms, ["relu 0.001"])))
    rows = ("base", "no LRN", "pooling 2/2", "no dropout", "without conv3", "tanh", "no colour", "two towers")
    for seed in range(3):
        for arm in rows:
            title = f"ablations {arm} {seed}".replace("/", " of ")
            parts.append(Part(title, **_experiment("ablations", title, "gpu", seed, [arm], ["base"])))
    parts += [Part(f"cifar10_gpu_seed{seed}", **_train(f"cifar10_gpu_seed{seed}", seed=seed))
              for seed in (43, 44)]
    parts.append(Part("two_towers", **_train("two_towers", "model.towers=2")))
    look = ["tools/look_inside.py", "{work}/two_towers/models/alexnet_final.pkl", "{data}",
            "--name", "two_towers", "--out", "{json}"]
    parts.append(Part("inside_two_towers", look, dry=[*look, "--train-images", "40", "--test-images", "20"],
                      after="two_towers"))
    return parts


PARTS = _parts()
DRY = {"check", "cells", "bench", "cifar10_gpu", "compress_gpu", "ten_views_gpu", "lrn_13_to_11 13pct 0",
       "relu_vs_tanh relu", "ablations base 0", "two_towers", "inside_two_towers"}  # one of each kind


# --- running ---

class Session:
    "What runs, what ran, and the report on it."
    def __init__(self, out: Path, work: Path, data: Path, minutes: float, about: dict, slots: int):
        self.out, self.work, self.data, self.about, self.slots = out, work, data, about, slots
        self.began = time.monotonic()
        self.deadline = self.began + 60 * minutes
        self.runs: dict[str, Running] = {}
        self.tried: dict[str, dict] = {}
        (work / "json").mkdir(parents=True, exist_ok=True)
        (work / "logs").mkdir(exist_ok=True)

    def argv(self, arguments: list[str], minutes: float) -> list[str]:
        places = dict(minutes=f"{max(minutes, 0.01):.3f}", data=self.data, work=self.work, out=self.out,
                      json=self.work / "json")
        return [sys.executable, *(word.format(**places) for word in arguments)]

    def start(self, run: Running, arguments: list[str], seconds: float) -> None:
        "Begin a part; what it prints goes to a file."
        run.began, run.state = time.monotonic(), "running"
        run.log = self.work / "logs" / f"{run.part.name.replace(' ', '-').replace(',', '')}.txt"
        with open(run.log, "ab") as log:
            run.process = subprocess.Popen(self.argv(arguments, seconds / 60), cwd=ROOT, stdout=log,
                                           stderr=subprocess.STDOUT, start_new_session=True)

    def look(self, run: Running) -> None:
        "Note whether a part has ended."
        if run.process is None or run.state != "running": return
        run.seconds = round(time.monotonic() - run.began, 1)
        if (code := run.process.poll()) is None: return
        lines = run.log.read_text(errors="replace").split("\n") if run.log else []
        run.said = next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "")
        run.state = "ok" if code == 0 else "failed"

    def report(self) -> None:
        "on_gpu.json and log.txt, whole at any time."
        parts = {name: dict(state=run.state, seconds=run.seconds, said=run.said)
                 for name, run in self.runs.items()}
        files = {path.name: value for path in sorted((self.work / "json").glob("*.json"))
                 if (value := _read(path)) is not None}
        report = self.about | dict(seconds=round(time.monotonic() - self.began, 1), tried=self.tried,
                                   parts=parts, files=files)
        _write(self.out / "on_gpu.json", report)
        logs = "\n".join(f"=== {path.stem}\n{path.read_text(errors='replace')[-4000:]}"
                         for path in sorted((self.work / "logs").glob("*.txt")))
        _replace(self.out / "log.txt", logs)


def _read(path: Path) -> dict | None:
    "A JSON file that may be half written just now."
    try: return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError): return None


def _replace(path: Path, text: str) -> None:
    "The former file is whole until the new one is."
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _write(path: Path, value: dict) -> None: _replace(path, json.dumps(value))


def _stored(path: Path) -> dict | None:
    "A results file that is to be added to; None if there is none. Raises `ValueError` if it is not whole."
    if not path.exists(): return None
    try: return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e: raise ValueError(f"{path}: cannot be read ({e}); mend it, or move it") from None


def _stop(runs: list[Running], seconds: float) -> None:
    "Ask processes to stop, saved; then end those that did not, and all that they started."
    left = [run for run in runs if run.process and run.process.poll() is None]
    for run in left: _send(run, signal.SIGTERM)
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(run.process.poll() is None for run in left): time.sleep(0.1)
    for run in left:
        if run.process.poll() is None: _send(run, signal.SIGKILL)
        run.process.wait()
        run.state, run.seconds = "stopped", round(time.monotonic() - run.began, 1)


def _send(run: Running, number: int) -> None:
    try: os.killpg(run.process.pid, number)
    except ProcessLookupError: pass


def try_parts(session: Session, parts: list[Part], seconds: float, key: str = "trial") -> None:
    "One part of each kind for a few steps, as many at once as there are slots; says what is broken."
    kinds = {part.kind: part for part in reversed(parts) if getattr(part, key)}  # the first of each
    waiting = [Running(part) for part in parts if kinds.get(part.kind) is part]
    every, until = list(waiting), time.monotonic() + seconds
    while waiting or any(run.state == "running" for run in every):
        for run in every: session.look(run)
        busy = sum(run.state == "running" for run in every)
        while waiting and busy < session.slots:
            session.start(run := waiting.pop(0), getattr(run.part, key), until - time.monotonic())
            busy += 1
        if time.monotonic() > until: break
        time.sleep(0.1)
    _stop(every, 3)
    for run in every:
        state = run.state if run.process else "skipped"
        session.tried[run.part.name] = dict(state=state, seconds=run.seconds, said=run.said)
        if state == "failed": print(f"broken: {run.part.name}: {run.said}", flush=True)
    for path in [*(session.work / "json").glob("*.json")]: path.unlink()  # of a few steps only
    for path in session.work.iterdir():
        if path.name not in ("json", "logs"): shutil.rmtree(path, ignore_errors=True)
    session.report()


def run_parts(session: Session, parts: list[Part], key: str = "full") -> None:
    "The parts in their order, until all have ended or time is up."
    runs = session.runs = {part.name: Running(part) for part in parts}
    every = list(runs.values())
    last, noted, report_at = session.deadline - LAST_SECONDS, "", 0.0
    while any(run.state in ("waiting", "running") for run in every) and time.monotonic() < last:
        for run in every: session.look(run)
        _over_time(session, every)
        _start_what_may(session, every, last, key)
        now = " ".join(run.state for run in every)
        if now != noted: print(_line(session, every), flush=True)
        if now != noted or time.monotonic() > report_at:
            noted, report_at = now, time.monotonic() + 10
            session.report()
        time.sleep(0.2)
    _stop(every, LAST_SECONDS - 4)
    for run in every:
        session.look(run)
        if run.state == "waiting": run.state, run.said = "skipped", "time was up"
    session.report()


def _start_what_may(session: Session, every: list[Running], last: float, key: str) -> None:
    "Begin the next parts: one that has to be alone waits for the others, and they for it."
    for run in every:
        busy = [other for other in every if other.state == "running"]
        if run.state != "waiting": continue
        before = session.runs.get(run.part.after)
        if run.part.after and before is None: run.state, run.said = "skipped", f"needs {run.part.after}"
        elif before and before.state in ("waiting", "running"): continue
        elif before and before.state != "ok": run.state, run.said = "skipped", f"needs {before.part.name}"
        elif len(busy) >= session.slots or any(other.part.alone for other in busy): return
        elif run.part.alone and busy: return
        elif arguments := getattr(run.part, key) or run.part.full:
            session.start(run, arguments, (last - time.monotonic()) * run.part.share)


def _over_time(session: Session, every: list[Running]) -> None:
    "Stop a part that has a share of the time and is over it."
    for run in every:
        if run.state != "running" or run.part.share >= 1: continue
        most = (session.deadline - LAST_SECONDS - run.began) * run.part.share
        if time.monotonic() - run.began > most + 5: _stop([run], 3)


def _line(session: Session, every: list[Running]) -> str:
    counts = {state: [run.part.name for run in every if run.state == state]
              for state in ("ok", "failed", "stopped", "running")}
    return (f"{time.monotonic() - session.began:4.0f} s  ok {len(counts['ok'])}, failed "
            f"{', '.join(counts['failed']) or 0}, running {', '.join(counts['running']) or 0}")


# --- what a session needs ---

def _find_wheels(folder: Path | None) -> None:
    "Install what this machine lacks from a folder of wheels, away from its own packages."
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if not missing: return
    if folder is None: sys.exit(f"on_gpu: this Python lacks {', '.join(missing)}; name their --wheels")
    site = tempfile.mkdtemp(prefix="on_gpu_site_")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", site,
                    *map(str, folder.glob("*.whl"))], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])


def _unpacked(data: Path, folder: Path) -> Path:
    "The folder with CIFAR-10 that a folder or an archive is."
    if data.is_dir(): return data.resolve()
    with tarfile.open(data) as archive: archive.extractall(folder, filter="data")
    inside = [*folder.iterdir()]
    return inside[0] if len(inside) == 1 else folder


def _draw(folder: Path) -> Path:
    "Drawings in class folders, in place of CIFAR-10."
    from alexnet_nb.base.drawings import drawings
    for name, n, seed in (("train", 60, 0), ("test", 20, 1)):
        images = drawings(n, seed)
        for i in range(n):
            place = folder / name / images.classes[images.labels[i]]
            place.mkdir(parents=True, exist_ok=True)
            images[i].save(place / f"{i:03d}.png")
    return folder


def _about(dry: bool, minutes: float) -> dict:
    import torch

    from alexnet_nb.base.device import describe_device, pick_device
    from alexnet_nb.base.results import versions
    device = torch.device("cpu") if dry else pick_device()
    return dict(date=datetime.date.today().isoformat(), device=describe_device(device), dry=dry,
                minutes=minutes, cores=os.cpu_count(), versions=versions())


def names_of(path: Path) -> dict:
    "What a flagged cell of a notebook may use: its module's names, and what its import cells import."
    space: dict = {"__name__": name_of(path)}
    for cell in read_cells(path, "code"):
        if module := directives(cell["source"]).get("default_exp"):
            space |= vars(importlib.import_module(f"alexnet_nb.{module}"))
        body = ast.parse(re.sub(r"^[!%].*", "", cell["source"], flags=re.M)).body
        for node in (node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))):
            with contextlib.suppress(ModuleNotFoundError):  # such as IPython, which a bare machine lacks
                exec(compile(ast.Module([node], []), str(path), "exec"), space)
    return space


def flagged_cells() -> dict[Path, list[dict]]:
    "The cells flagged `cuda`, by notebook."
    found = {path: [cell for cell in read_cells(path, "code") if "cuda" in directives(cell["source"])]
             for path in all_notebooks()}
    return {path: cells for path, cells in found.items() if cells}


def run_cells() -> int:
    "Every cell flagged `cuda`, notebook by notebook, as a plain script; how many raised."
    wrong = 0
    for path, cells in flagged_cells().items():
        space = names_of(path)
        for cell in cells:
            print(f"{name_of(path)}, cell {cell['id']}", flush=True)
            try: exec(compile(cell["source"], f"{name_of(path)}#{cell['id']}", "exec"), space)
            except Exception as e:
                wrong += 1
                print(f"  raised {type(e).__name__}: {e}", flush=True)
    return wrong


def run(args: argparse.Namespace) -> int:
    "A session; 1 if a part failed, or none came to its end."
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    _find_wheels(args.wheels)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = args.only or ([part.name for part in PARTS if part.name in DRY] if args.dry else
                           [part.name for part in PARTS])
    parts = [part for part in PARTS if part.name in wanted or part.kind in wanted]
    known = {name for part in PARTS for name in (part.name, part.kind)}
    if other := sorted({*wanted} - known): sys.exit(f"on_gpu: no part is called {', '.join(other)}")
    with tempfile.TemporaryDirectory(prefix="on_gpu_") as folder:
        pictures = Path(folder) / "pictures"
        data = _draw(pictures) if args.dry else _unpacked(args.data, pictures)
        session = Session(args.out.resolve(), Path(folder) / "session", data, args.minutes,
                          _about(args.dry, args.minutes), args.slots)
        if not args.dry: try_parts(session, parts, min(TRIAL_SECONDS, 6 * args.minutes))
        run_parts(session, parts, "dry" if args.dry else "full")
    failed = [name for name, one in session.runs.items() if one.state == "failed"]
    for name in failed: print(f"failed: {name}: {session.runs[name].said}")
    states = [one.state for one in session.runs.values()]
    print(f"{len(states)} parts: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    return 1 if failed or not {"ok", "stopped"} & {*states} else 0


# --- the way back ---

def join_trials(results: list[dict]) -> dict:
    "Results of one experiment, of any arms and seeds, as one; of a trial twice there, the one further on."
    first, best = results[0], {}
    for key in ("experiment", "scale", "images", "race", "base", "arms", "data"):
        if any(one.get(key) != first.get(key) for one in results):
            raise ValueError(f"{first['experiment']}: two files differ in {key}")
    for trial in (trial for one in results for trial in one["trials"]):
        old = best.get(key := (trial["arm"], trial["seed"]))
        if old is None or (len(trial["epochs"]), trial["finished"]) > (len(old["epochs"]), old["finished"]):
            best[key] = trial
    order = [*first["arms"]]
    trials = sorted(best.values(), key=lambda trial: (trial["seed"], order.index(trial["arm"])))
    devices = dict.fromkeys(one for result in results for one in result["device"].split("; ") if one)
    plan = EXPERIMENTS[first["experiment"]][first["scale"]]
    newest = max(results, key=lambda one: one["date"])
    return newest | dict(trials=trials, device="; ".join(devices), chosen=choose(plan, trials),
                         command=f"alexnet_experiment {first['experiment']} --scale {first['scale']} "
                                 "--data alexnet_data_in")


def merge(folder: Path, results: Path = RESULTS, weights: Path = WEIGHTS) -> list[Path]:
    "Put what a session brought into the results; the network into the package, if it is the better one."
    report = json.loads((folder / "on_gpu.json").read_text(encoding="utf-8"))
    if report["dry"]: raise ValueError("was a dry run: its numbers mean nothing")
    files, written = report["files"], []
    def put(name: str, value: dict) -> None:
        _write(results / name, value)
        written.append(results / name)
    groups: dict[str, list[dict]] = {}
    plain = {name: value for name, value in files.items() if "trials" not in value}
    for value in (value for name, value in files.items() if name not in plain):
        groups.setdefault(f"{value['experiment']}_{value['scale']}.json", []).append(value)
    joined = {name: join_trials([*filter(None, [_stored(results / name)]), *group])
              for name, group in groups.items()}
    for name, value in (plain | joined).items(): put(name, value)
    told = ("date", "device", "minutes", "seconds", "versions", "tried", "parts")
    put("on_gpu.json", {key: report[key] for key in told})
    new, old = files.get("compress_gpu.json"), _stored(results / "compress.json")
    network, packaged = folder / "cifar10.safetensors", weights / "cifar10.safetensors"
    if new and network.exists() and old and new["accuracy"] > old["accuracy"]:
        shutil.copy(network, packaged)
        put("compress.json", old | new)
        put("cifar10.json", files["cifar10_gpu.json"])
        if views := files.get("ten_views_gpu.json"): put("ten_views.json", views)
        written.append(packaged)
    return written


def main(argv: list[str] | None = None) -> int:
    "See the top of this file."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("on_gpu", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--minutes", type=float, default=8)
    add("--out", type=Path)
    add("--data", type=Path)
    add("--only", nargs="+", metavar="PART", help="these parts: check, bench, lrn_13_to_11, ...")
    add("--slots", type=int, default=max(2, (os.cpu_count() or 2) - 4), help="processes at once")
    add("--wheels", type=Path)
    add("--dry", action="store_true")
    add("--merge", type=Path, metavar="DIR")
    add("--cells", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.cells: return 1 if run_cells() else 0
    if args.merge:
        for path in merge(args.merge): print(path.relative_to(ROOT))
        print("now run the pages that show them: python tools/rerun.py --write")
        return 0
    if args.out is None: parser.error("--out is missing")
    if args.data is None and not args.dry: parser.error("--data is missing")
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
