"No test of version 0.1 got lost on the way: each is there, under whatever name, or it is said why not."
import pytest

import ids_map
from common import TESTS


@pytest.fixture(scope="module")
def found(request) -> dict[str, str]:
    """Every id of 0.1 and what became of it; if only a part of the tests is being run, all are collected once
    more."""
    ids = [item.nodeid for item in request.session.items]
    files = {id.split("::")[0] for id in ids}
    every = {path.relative_to(TESTS.parent).as_posix() for path in TESTS.rglob("test_*.py")}
    chosen = request.config.option.keyword or request.config.option.markexpr or files != every
    return ids_map.whole_map(ids_map.collected() if chosen else ids)


def test_every_test_of_0_1_has_a_home(found):
    assert len(found) == 1574
    lost = [old for old, new in found.items() if not new]
    assert not lost, f"{len(lost)} lost: {lost[:20]}"


def test_nearly_all_of_them_are_still_run(found):
    "A reason is an exception."
    gone = [old for old, new in found.items() if new.startswith("#")]
    assert len(gone) <= 100, f"{len(gone)}: {gone}"


def test_no_two_are_one(found):
    homes = [new for new in found.values() if new and not new.startswith("#")]
    assert len(homes) == len(set(homes))


def test_the_tables_are_needed():
    "What they list was there in 0.1."
    old = {line.split("[")[0].removeprefix("tests/").replace(".py::", "::")
           for line in ids_map.OLD.read_text(encoding="utf-8").split()}
    assert ({*ids_map.RENAMED, *ids_map.GONE} <= old
            and {*ids_map.FILES} <= {name.split("::")[0] for name in old})


def test_a_lost_test_is_seen():
    there = "tests/engine/test_step.py::test_a_step_asks_for_no_number"
    found = ids_map.whole_map([there])
    assert found["tests/test_step.py::test_a_step_asks_for_no_number"] == there
    assert found["tests/test_step.py::test_the_scaled_step_is_the_plain_step"] == ""
