"""Training runs that are killed, stopped, crossed and starved at random moments; each must go on and end as
if nothing had happened.

`python faults.py --kills 50 --signals 20` prints a report in JSON. The tests run it small, harness.py in
full.
"""
import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from alexnet_nb import train
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine.checkpoint import read_checkpoint
from common import EACH_STEP, LONG, check_equal, load, tiny
from planting import plant

CHANGES = LONG | EACH_STEP  # four epochs of six steps, a checkpoint after every one


class Fault(Exception):
    "A promise that was not kept."


def start(argv: list[str], said: Path) -> int:
    """A run in a process of its own, forked so that torch need not be imported again; its number. What it
    says goes to a file."""
    if (pid := os.fork()) > 0: return pid
    code = 70
    try:
        os.setsid()
        with open(said, "ab", buffering=0) as f:
            for number in (1, 2): os.dup2(f.fileno(), number)
        # they take longer than a tiny network's training
        plant(engine_run, "write_panels", lambda *args: None)
        code = train.main(argv)
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def end(pid: int, seconds: float = 120) -> int:
    "Wait for a process; its exit code, negative for a signal."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise Fault(f"still running after {seconds} s")


def argv_of(out: Path) -> list[str]:
    "Begin a run below `out`, or go on with it."
    last = out / "models" / "alexnet_last.pkl"
    return [*(["--resume", str(last)] if last.exists() else []), *tiny(out, **CHANGES)]


def whole_files(out: Path) -> None:
    "No half file has the name of a whole one; only a log's last line may be torn."
    for path in (out / "models").glob("*.pkl"): read_checkpoint(path)
    for path in (out / "tblogs").glob("*/*.jsonl"):
        *rows, _ = path.read_bytes().split(b"\n")
        for row in rows: json.loads(row)


def finished(out: Path) -> bool:
    "Whether the run below `out` is at its end."
    return ((out / "models" / "alexnet_final.pkl").exists()
            and load(out / "models" / "alexnet_last.pkl")["progress"]["finished"])


def complete(out: Path, straight: Path) -> None:
    "Go on to the end, and compare with the run that was left alone."
    if (code := end(start(argv_of(out), out / "said"))) != 0:
        raise Fault(f"resuming ended with {code}: {(out / 'said').read_text()[-400:]}")
    check_equal(out, straight)
    if not (out / "results.json").exists(): raise Fault("results.json is missing")
    if "Traceback" in (out / "said").read_text():
        raise Fault(f"a traceback: {(out / 'said').read_text()[-600:]}")


def strike(pid: int, out: Path, number: int, rng: random.Random, longest: float) -> tuple[int, bool]:
    """Send a signal at a random moment, every other time while a checkpoint is being written; exit code and
    whether one was."""
    until, writing = time.monotonic() + rng.uniform(0, longest), rng.random() < 0.5
    while time.monotonic() < until: time.sleep(0.0005)
    half = False
    while writing and not half:
        half = any((out / "models").glob(".*.part"))
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status), half
    os.kill(pid, number)
    return end(pid), half


def kills(n: int, folder: Path, straight: Path, longest: float, seed: int) -> dict:
    "kill -9, n times: each run is killed and resumed until it is through, then compared."
    rng, out, runs = random.Random(seed), folder / "killed-0", 0
    report = dict(kills=0, while_saving=0, before_the_first_checkpoint=0, runs_completed=0)
    while report["kills"] < n:
        out.mkdir(exist_ok=True)
        code, half = strike(start(argv_of(out), out / "said"), out, signal.SIGKILL, rng, longest)
        if code not in (0, -signal.SIGKILL):
            raise Fault(f"seed {seed}, kill {report['kills']}: exit code {code}: "
                        f"{(out / 'said').read_text()[-400:]}")
        whole_files(out)
        report["kills"] += code != 0
        report["while_saving"] += code != 0 and bool(list((out / "models").glob(".*.part")))
        # nothing to go on from: the next one begins anew
        if not (out / "models" / "alexnet_last.pkl").exists():
            report["before_the_first_checkpoint"] += 1
            shutil.rmtree(out)
        elif finished(out):
            complete(out, straight)
            shutil.rmtree(out)
            report["runs_completed"] += 1
            out = folder / f"killed-{(runs := runs + 1)}"
    if out.exists() and any(out.iterdir()):
        complete(out, straight)
        report["runs_completed"] += 1
    return report


def signals(n: int, folder: Path, straight: Path, longest: float, seed: int) -> dict:
    "SIGTERM and SIGINT in turn, n times: a checkpoint, a line that says how to go on, the right exit code."
    rng = random.Random(seed)
    report = dict(signals=0, stopped_with_checkpoint=0, before_work_began=0, after_the_end=0)
    for k in range(n):
        out, number = folder / f"signal-{k}", (signal.SIGTERM, signal.SIGINT)[k % 2]
        out.mkdir()
        code, _ = strike(start(argv_of(out), out / "said"), out, number, rng, longest)
        said = (out / "said").read_text()
        last = said.strip().splitlines()[-1] if said.strip() else ""
        report["signals"] += 1
        if code == 0 or finished_or_not_begun(out, code, number):
            report["after_the_end" if code == 0 or finished_at(out) else "before_work_began"] += 1
        elif code != 128 + number or "go on with --resume" not in said or not last.startswith("stopped (SIG"):
            raise Fault(f"{number.name}: exit code {code}, said {said[-400:]}")
        else: report["stopped_with_checkpoint"] += 1
        whole_files(out)
        if (out / "models" / "alexnet_last.pkl").exists(): complete(out, straight)
        shutil.rmtree(out)
    return report


def finished_at(out: Path) -> bool:
    "Whether a run got to its end before the signal."
    return (out / "models" / "alexnet_last.pkl").exists() and finished(out)


def finished_or_not_begun(out: Path, code: int, number: int) -> bool:
    "Whether the signal came before the first step or after the last file, where there is nothing to save."
    return (code in (-number, 128 + number)
            and (finished_at(out) or not (out / "models" / "alexnet_last.pkl").exists()))


def two_at_once(folder: Path, straight: Path) -> dict:
    "A second run on the same folder is refused, names the first, and changes nothing."
    out = folder / "shared"
    out.mkdir()
    first = start(argv_of(out), out / "said")
    until = time.monotonic() + 60
    while not (out / "models" / ".running.json").exists() and time.monotonic() < until: time.sleep(0.001)
    code = end(start(tiny(out, **CHANGES), folder / "second"))
    said = (folder / "second").read_text()
    if code != 2 or f"another run writes there (process {first} on " not in said:
        raise Fault(f"the second run: exit code {code}, {said[-300:]}")
    if end(first) != 0: raise Fault(f"the first run: {(out / 'said').read_text()[-300:]}")
    complete(out, straight)
    return dict(refused=1)


def run(n_kills: int, n_signals: int, seed: int = 0) -> dict:
    "All of it; raises `Fault` or `AssertionError` at the first promise that is not kept."
    with tempfile.TemporaryDirectory(prefix="alexnet_faults_") as name:
        folder, began = Path(name), time.monotonic()
        straight = folder / "straight"
        straight.mkdir()
        if (code := end(start(tiny(straight, **LONG), straight / "said"))) != 0:
            raise Fault(f"the run left alone ended with {code}: {(straight / 'said').read_text()[-800:]}")
        longest = 1.5 * (time.monotonic() - began)
        return dict(seed=seed, **kills(n_kills, folder, straight, longest, seed),
                    **signals(n_signals, folder, straight, longest, seed + 1),
                    **two_at_once(folder, straight), seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--signals", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(run(args.kills, args.signals, args.seed)))
