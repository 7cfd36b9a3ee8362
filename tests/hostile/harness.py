"""What is thrown at alexnet_nb, in one command: kills, signals, mutated images, archives, checkpoints,
configs and logs.

`python tests/hostile/harness.py` runs it small, with `--full --results nbs/results/harness.json` as the
results tell. The tests run each part small.
"""
import argparse
import datetime
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import faults
import hostile_files
import hostile_state

from alexnet_nb.base.device import describe_device, pick_device
from alexnet_nb.base.results import versions

SMALL = dict(faults=dict(n_kills=5, n_signals=4), files=dict(images=200, archives=20),
             state=dict(n_checkpoints=40, n_configs=40, n_logs=10))
FULL = dict(faults=dict(n_kills=50, n_signals=20), files=dict(images=10_000, archives=500),
            state=dict(n_checkpoints=2_000, n_configs=2_000, n_logs=500))
PARTS = dict(faults=faults.run, files=hostile_files.run, state=hostile_state.run)


def failures_in(found) -> list:
    "Every failure in a report, however deep."
    if not isinstance(found, dict): return []
    return [*found.get("failures", []), *(each for part in found.values() for each in failures_in(part))]


def main() -> int:
    """Run the parts, each into the results file as it ends; what the file has of other parts stays. 1 if a
    promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="half an hour instead of minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="a JSON file")
    args = parser.parse_args()
    report = json.loads(args.results.read_text()) if args.results and args.results.exists() else {}
    for part in args.parts:
        began = time.monotonic()
        found = PARTS[part](**(FULL if args.full else SMALL)[part], seed=args.seed)
        report[part] = found | dict(seed=args.seed, full=args.full, date=datetime.date.today().isoformat(),
                                    device=describe_device(pick_device(False)),
                                    versions=versions(), wall_seconds=round(time.monotonic() - began))
        print(part, json.dumps(found)[:2000], flush=True)
        if args.results: args.results.write_text(json.dumps(report, indent=1) + "\n")
    failures = [failure for part in args.parts for failure in failures_in(report[part])]
    for failure in failures: print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__": sys.exit(main())
