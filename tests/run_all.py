"""Run every test: each notebook under nbdev_test, then pytest, then each notebook again in a real kernel, its
outputs compared with the stored ones. Flags pass through: python tests/run_all.py --flags slow

The line before the last says how much ran, so that a list which lost something shows; the last line counts.
"""
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(sys.executable).parent
sys.path.append(str(ROOT / "tools"))
from notebooks import all_modules, all_notebooks, name_of, read_cells, runs

JOBS = min(2, os.cpu_count() or 1)  # notebooks at a time: starting a kernel takes longer than most of them


def alone(notebook: Path, flags: list[str], env: dict[str, str]) -> tuple[bool, str]:
    "Whether a notebook passes nbdev_test, and what was printed."
    command = ["nbdev_test", "--path", str(notebook), "--n_workers", "1"]
    if flags: command += ["--flags", " ".join(flags)]
    env = env | {"OMP_NUM_THREADS": env.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // JOBS))}
    run = subprocess.run(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    return run.returncode == 0, run.stdout


def main(argv: list[str]) -> int:
    "Run them; the last line counts."
    flags = argv[argv.index("--flags") + 1:] if "--flags" in argv else []
    env = os.environ | {"PATH": f"{HERE}{os.pathsep}{os.environ['PATH']}"}
    passed = failed = skipped = cells = 0
    notebooks = all_notebooks()
    with ThreadPoolExecutor(JOBS) as pool:
        results = pool.map(lambda notebook: alone(notebook, flags, env), notebooks)
        for notebook, (good, said) in zip(notebooks, results, strict=True):
            print(f"{said}nbdev_test {name_of(notebook)}: {'passed' if good else 'FAILED'}", flush=True)
            passed, failed = passed + good, failed + (not good)
            cells += sum(runs(cell, set(" ".join(flags).split())) for cell in read_cells(notebook))

    command = [sys.executable, "-m", "pytest", "-q", *(["--flags", *flags] if flags else [])]
    run = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    print(run.stdout, flush=True)
    last = run.stdout.splitlines()[-1] if run.stdout else ""
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}
    passed, skipped = passed + counts.get("passed", 0), skipped + counts.get("skipped", 0)
    failed += counts.get("failed", 0) + counts.get("error", 0) + (run.returncode not in (0, 1))

    command = [sys.executable, "tools/rerun.py", "--check", "--jobs", str(JOBS)]
    if flags: command += ["--flags", *flags]
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
