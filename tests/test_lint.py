"""Ruff and mypy, by the settings in pyproject.toml: no more findings of a kind than stand here.

The numbers may only fall: lower them when the test prints smaller ones. A kind that is not listed may not
occur.
python tests/test_lint.py prints both counts, in the form in which they stand here.
"""
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

RUFF = {
    "B007": 2, "B008": 1, "B018": 3, "B023": 16, "B905": 63, "C416": 3, "E501": 181, "E702": 22, "E731":
    15, "E741": 5, "F841": 1, "I001": 36, "UP035": 17,
}
MYPY = {
    "arg-type": 38, "assignment": 14, "attr-defined": 12, "call-arg": 8, "call-overload": 5,
    "dict-item": 1, "func-returns-value": 1, "has-type": 3, "index": 4, "list-item": 2, "misc": 5,
    "operator": 6, "return-value": 5, "union-attr": 44, "var-annotated": 7,
}


def ruff(*paths: str) -> Counter:
    "Findings by rule."
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "--exit-zero", *paths]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Counter(str(finding["code"]) for finding in json.loads(run.stdout))


def mypy(*paths: str) -> Counter:
    "Findings by error code."
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", *paths]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stdout[-2000:] + run.stderr[-2000:]
    return Counter(re.findall(r"^[^\n]*: error: [^\n]*\[([\w-]+)\]$", run.stdout, re.M))


def compare(now: Counter, limits: dict[str, int]) -> list[str]:
    "What has grown."
    print(dict(sorted(now.items())))
    grown = [kind for kind in sorted(now) if now[kind] > limits.get(kind, 0)]
    return [f"{kind}: {now[kind]}, at most {limits.get(kind, 0)}" for kind in grown]


def test_ruff_finds_no_more_than_it_did():
    assert compare(ruff("alexnet_nb", "tests", "tools"), RUFF) == []


def test_mypy_finds_no_more_than_it_did():
    assert compare(mypy(), MYPY) == []


BAD = [("import os", "F401"), ("x = 1;", "E703"), ("y = " + "1 + " * 40 + "1", "E501")]


@pytest.mark.parametrize("line, rule", BAD, ids=[rule for _, rule in BAD])
def test_ruff_would_find_it(line, rule, tmp_path):
    (tmp_path / "bad.py").write_text(f"{line}\n")
    command = ["--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
    assert ruff(*command)[rule] == 1


def test_mypy_would_find_it(tmp_path):
    (tmp_path / "bad.py").write_text("def f(x: int) -> str:\n    return x\n")
    assert mypy(str(tmp_path / "bad.py")) == {"return-value": 1}


if __name__ == "__main__":
    print("RUFF =", dict(sorted(ruff("alexnet_nb", "tests", "tools").items())))
    print("MYPY =", dict(sorted(mypy().items())))
