"""Run every test: the notebooks under nbdev_test, then pytest, then each notebook again in a real kernel, its
outputs compared with the stored ones. Flags pass through: python tests/run_all.py --flags slow
With $ALEXNET_NB_ALONE, a Python that has the library and a kernel, the last are run in it, in empty folders.

The line before the last says how much ran, so that a list which lost something shows; the last line counts.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(sys.executable).parent
sys.path.append(str(ROOT / "tools"))
from notebooks import all_modules, all_notebooks, read_cells, runs

JOBS = min(2, os.cpu_count() or 1)  # notebooks at a time
FILES = JOBS + 1  # files of tests at a time: many wait for a process most of the while


def notebooks_as_tests(flags: list[str], env: dict[str, str]) -> tuple[int, int]:
    "How many notebooks pass nbdev_test, and how many fail."
    command = ["nbdev_test", "--n_workers", str(JOBS), "--timing"]
    if flags: command += ["--flags", " ".join(flags)]
    run = subprocess.run(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    print(run.stdout, flush=True)
    names = [path.name for path in all_notebooks()]
    timed = re.findall(r"^(\S+\.ipynb): \d+ secs", run.stdout, re.M)
    if run.returncode == 0 and sorted(timed) == sorted(names): return len(names), 0
    listed = run.stdout.rpartition("Failed On The Following Notebooks:")[2]
    failed = len(set(re.findall(r"^\s*(\S+\.ipynb)$", listed, re.M))) or 1
    return len(names) - failed, failed


def main(argv: list[str]) -> int:
    "Run them; the last line counts."
    flags = argv[argv.index("--flags") + 1:] if "--flags" in argv else []
    env = os.environ | {"PATH": f"{HERE}{os.pathsep}{os.environ['PATH']}"}
    alone = env.pop("ALEXNET_NB_ALONE", "")
    threads = env.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // JOBS))
    notebooks, wanted, skipped = all_notebooks(), set(" ".join(flags).split()), 0
    cells = sum(runs(cell, wanted) for notebook in notebooks for cell in read_cells(notebook))
    passed, failed = notebooks_as_tests(flags, env | {"OMP_NUM_THREADS": threads})

    command = [sys.executable, "-m", "pytest", "-q", "-n", str(FILES), "--dist", "loadfile",
               "--no-loadscope-reorder",  # files of few tests are often the long ones: not all of them last
               *(["--flags", *flags] if flags else [])]
    run = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    print(run.stdout, flush=True)
    last = run.stdout.splitlines()[-1] if run.stdout else ""
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}
    passed, skipped = passed + counts.get("passed", 0), skipped + counts.get("skipped", 0)
    failed += counts.get("failed", 0) + counts.get("error", 0) + (run.returncode not in (0, 1))

    command = [sys.executable, "tools/rerun.py", "--check", "--jobs", str(JOBS)]
    if flags: command += ["--flags", *flags]
    if alone: command += ["--alone", alone]
    again = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    print(again.stdout, flush=True)
    verdicts = re.findall(r"^(ok|not yet|FAILED) +\S+: \d+ cells run", again.stdout, re.M)
    good = sum(verdict != "FAILED" for verdict in verdicts)
    passed, failed = passed + good, failed + len(notebooks) - good  # one that was not heard of has failed
    if again.returncode and good == len(notebooks): failed += 1     # too many cells vary, taken together

    tests, files = sum(counts.values()), len(list((ROOT / "tests").rglob("test_*.py")))
    print(f"{len(notebooks)} notebooks with {cells} cells, {len(all_modules())} modules, "
          f"{tests} tests in {files} files, {len(verdicts)} notebooks run again")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or run.returncode or again.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
