"""Where each test of version 0.1 is now: `python tests/ids_map.py` prints the whole map, `tests/test_ids.py`
checks it.

A test keeps its name and its parameters, in whichever file of its successors it stands; what is otherwise
stands in the tables below.
"""
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parent
OLD = TESTS / "ids_of_0_1.txt"

FILES = {  # file of 0.1: the files that its tests are in now, by name alone: folders may change
    "test_cuda_convnet": ("test_small_nets",),
    "test_device_data": ("test_resize", "test_pictures", "test_data", "test_loaders"),
    "test_inspection": ("test_inspection", "test_inside", "test_two_towers"),
    "test_lrn": ("test_lrn", "test_lrn_rows", "test_lrn_triton"),
    "test_speed": ("test_bench",),
    "test_two_gpus": ("test_two_towers",),
}
PAGES = {  # notebook of 0.1: the page that holds most of it
    "00_config": "engine/config",
    "03b_checkpoint": "engine/checkpoint",
    "03c_distributed": "engine/processes",
    "06_speed": "engine/speed",
    "07_cuda_convnet": "claims/small_nets",
    "07b_experiment": "claims/experiment",
    "08_relu_vs_tanh": "claims/relu_vs_tanh",
    "09_lrn_13_to_11": "claims/lrn_13_to_11",
    "10_ablations": "claims/ablations",
    "11_looking_inside": "06_looking_inside",
    "12_two_gpus": "claims/two_towers",
}
MODULES = {  # module of 0.1: the one that holds most of it
    "checkpoint": "engine.checkpoint",
    "config": "engine.config",
    "cuda_convnet": "claims.small_nets",
    "distributed": "engine.processes",
    "experiment": "claims.experiment",
    "speed": "engine.bench",
    "two_gpus": "claims.two_towers",
}
PARAMETERS = {"test_notebooks": PAGES, "test_practice": PAGES, "test_repository": PAGES,
              "test_package": MODULES}
RENAMED = {  # test of 0.1: its name now
    "test_package::test_imports_run_from_a_higher_notebook_to_a_lower_one":
        "test_imports_run_downward",
    "test_practice::test_exercises_of_four_kinds_have_solutions_that_assert":
        "test_exercises_have_solutions_that_assert",
}
GONE = {  # test of 0.1: why there is none now
    "test_notebooks::test_runs_in_a_kernel":
        "tools/rerun.py runs every notebook in a kernel and compares what comes with what is stored; "
        "tests/run_all.py calls it",
}
NO_QUOTA = ("this page has no such section any more: questions, exercises and tables of symptoms stand where "
            "they teach something")
# made for the pages that have what they look at
WHERE_THERE = {"test_symptoms_have_causes", "test_questions_are_folded",
               "test_exercises_have_solutions_that_assert", "test_a_widget_has_a_picture_a_line_and_a_check"}
EVERY_LESSON = {"test_sections_stand_in_order":
                "only the lesson promises certain sections; tests/test_budgets.py measures all pages"}


def collected() -> list[str]:
    "The ids of all tests that there are."
    # the tests of a broken file are then missing, and so reported as lost
    collect = ["--collect-only", "--continue-on-collection-errors", "-q"]
    run = subprocess.run([sys.executable, "-m", "pytest", *collect, str(TESTS)], cwd=TESTS.parent,
                         capture_output=True, text=True)
    found = [line for line in run.stdout.splitlines() if re.match(r"tests/[\w/]+\.py::", line)]
    if not found:
        raise RuntimeError(f"pytest could not collect the tests: {run.stdout[-2000:]}{run.stderr[-2000:]}")
    return found


def new_home(old: str, now: dict[tuple[str, str], list[str]]) -> str:
    """The id that a test of 0.1 has now, or why there is none, after a #; '' if neither is known. `now`: ids
    by name of the file and test."""
    path, _, test = old.partition("::")
    file, (name, bracket, parameters) = Path(path).stem, test.partition("[")
    if why := GONE.get(f"{file}::{name}"): return f"# {why}"
    name = RENAMED.get(f"{file}::{name}", name)
    if file in PARAMETERS and bracket:
        one = parameters.removesuffix("]")
        parameters = f"{PARAMETERS[file].get(one, one)}]"
    found = [id for new in FILES.get(file, (file,))
             for id in now.get((new, f"{name}{bracket}{parameters}"), ())]
    if len(found) == 1: return found[0]
    if not found and name in WHERE_THERE: return f"# {NO_QUOTA}"
    if not found and name in EVERY_LESSON and "/" in parameters: return f"# {EVERY_LESSON[name]}"
    return ""


def whole_map(ids: list[str]) -> dict[str, str]:
    "Every id of 0.1 and what became of it."
    now = defaultdict(list)
    for id in ids:
        path, _, test = id.partition("::")
        now[Path(path).stem, test].append(id)
    return {old: new_home(old, now) for old in OLD.read_text(encoding="utf-8").split("\n") if old}


if __name__ == "__main__":
    for old, new in whole_map(collected()).items(): print(f"{old} -> {new or 'NOWHERE'}")
