"""Run every test: each notebook under nbdev_test, then pytest. Flags pass through: python tests/run_all.py --flags slow"""
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(sys.executable).parent


def main(argv: list[str]) -> int:
    "Run them; the last line counts."
    flags = argv[argv.index("--flags") + 1:] if "--flags" in argv else []
    env = os.environ | {"PATH": f"{HERE}{os.pathsep}{os.environ['PATH']}"}
    passed = failed = skipped = 0
    for notebook in sorted((ROOT / "nbs").glob("*.ipynb")):
        command = ["nbdev_test", "--path", str(notebook), "--n_workers", "1", *(["--flags", " ".join(flags)] if flags else [])]
        run = subprocess.run(command, cwd=ROOT, env=env)
        print(f"nbdev_test {notebook.name}: {'passed' if run.returncode == 0 else 'FAILED'}", flush=True)
        passed, failed = passed + (run.returncode == 0), failed + (run.returncode != 0)
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", *(["--flags", *flags] if flags else [])], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    print(run.stdout)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", run.stdout.splitlines()[-1] if run.stdout else "")}
    passed, skipped = passed + counts.get("passed", 0), counts.get("skipped", 0)
    failed += counts.get("failed", 0) + counts.get("error", 0) + (run.returncode not in (0, 1))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or run.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
