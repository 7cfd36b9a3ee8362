"Ruff and mypy, by the settings in pyproject.toml, find nothing."
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

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


def test_ruff_finds_nothing(): assert ruff("alexnet_nb", "tests", "tools", "setup.py") == {}


def test_mypy_finds_nothing(): assert mypy() == {}


BAD = [("import os", "F401"), ("x = 1;", "E703"), ("y = " + "1 + " * 40 + "1", "E501")]


@pytest.mark.parametrize("line, rule", BAD, ids=[rule for _, rule in BAD])
def test_ruff_would_find_it(line, rule, tmp_path):
    (tmp_path / "bad.py").write_text(f"{line}\n")
    command = ["--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
    assert ruff(*command)[rule] == 1


def test_mypy_would_find_it(tmp_path):
    (tmp_path / "bad.py").write_text("def f(x: int) -> str:\n    return x\n")
    assert mypy(str(tmp_path / "bad.py")) == {"return-value": 1}
