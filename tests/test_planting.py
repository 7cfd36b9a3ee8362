"What tests put in the place of a name reaches whoever reads it, or fails."
import re

import pytest

from alexnet_nb import train
from alexnet_nb.base import errors as base_errors
from common import TESTS
from planting import plant, planted


def test_a_name_that_is_not_there_is_an_error():
    "Also one that a module only hands on when it is asked: `fit` is read from its own module."
    assert callable(train.fit)
    for owner, name in ((train, "no_such_name"), (train, "fit"), (base_errors.InputError, "no_such_name")):
        with pytest.raises(AttributeError, match=f"has no {name} of its own"): plant(owner, name, None)
        assert name not in vars(owner)


def test_what_was_there_comes_back():
    before = train.set_rate
    with pytest.raises(ZeroDivisionError), planted(train, "set_rate", None):
        assert train.set_rate is None
        raise ZeroDivisionError
    assert train.set_rate is before


def assigned(text: str) -> list[str]:
    "Attributes of imported names that a file, or a program in it, assigns."
    listed = re.findall(r"^ *(?:from [\w.]+ )?import (?:\(([^)]*)\)|(.*))", text, re.M)
    names = {part.split(" as ")[-1].strip() for found in listed for part in "".join(found).split(",")}
    target = re.compile(r"(?:^|[ ,:])([a-z]\w*)(\.\w+)+(?=(?:, [\w.]+)* = )", re.M)
    return [match[0].strip(" ,:") for match in target.finditer(text) if match[1] in names]


def test_nothing_is_planted_unchecked():
    "But by `plant` or by pytest's monkeypatch, which ask whether the name is there; in children's code too."
    found = {path.name: assigned(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")}
    assert not {name: targets for name, targets in found.items() if targets}


def test_an_assignment_is_seen():
    code = "from alexnet_nb import train\nfrom alexnet_nb.engine import files, run as engine\n"
    assert assigned(code + "if x: files.torch.save = f\n") == ["files.torch.save"]
    both = assigned(code + "train.set_rate, engine.write_panels = a, b\n")
    assert both == ["train.set_rate", "engine.write_panels"]
    assert assigned(code + "run.scaler = 1\nassert train.x == engine.y\ntrain.main(width=2)\n") == []
