"""Fixtures and flags of the tests.

`pytest --flags slow cifar10` also runs the tests marked so, as nbdev_test's flags do for cells.
The real data is looked for in $CIFAR10_DIR, then in alexnet_data_in beside the notebooks: train/<class>/ and
test/<class>/, or torchvision's batches.
"""
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: threads would only wait for each other
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

from common import ROOT, save_drawings, tiny

FLAGS = {"slow": "takes minutes on a CPU", "cifar10": "needs the real data"}


def pytest_addoption(parser):
    parser.addoption("--flags", nargs="*", default=[], metavar="FLAG",
                     help=f"also run the tests marked with one of {', '.join(FLAGS)}")


def pytest_collection_modifyitems(config, items):
    wanted = {flag for text in config.getoption("--flags") for flag in text.split()}
    if unknown := wanted - {*FLAGS, "cuda", "notest"}:
        raise pytest.UsageError(f"--flags {' '.join(sorted(unknown))}: known flags are {', '.join(FLAGS)}")
    for item in items:
        for flag, why in FLAGS.items():
            if item.get_closest_marker(flag) and flag not in wanted:
                item.add_marker(pytest.mark.skip(reason=f"{why}; run with --flags {flag}"))


@pytest.fixture(autouse=True)
def rows_in_python():
    "LRN as it is without asking: a run that asked for the loop in C++ leaves it to no other test."
    yield
    if "alexnet_nb.base.lrn_native" in sys.modules:
        sys.modules["alexnet_nb.base.lrn_native"].use_native_lrn(False)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    "Every test runs in an empty folder of its own."
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_panels(monkeypatch):
    "Leave out TensorBoard's pictures, which take longer than a tiny network's training."
    from alexnet_nb.engine import run as engine_run
    monkeypatch.setattr(engine_run, "write_panels", lambda *args: None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    "The folder of a finished tiny run; do not change it."
    from alexnet_nb import train
    out = tmp_path_factory.mktemp("trained")
    assert train.main(tiny(out)) == 0
    return out


@pytest.fixture(scope="session")
def final(trained) -> Path:
    "The final checkpoint of a finished tiny run; do not change it."
    return trained / "models" / "alexnet_final.pkl"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    "A folder of six drawings; do not change it."
    return save_drawings(tmp_path_factory.mktemp("pictures"), 6)[0].parent


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    "Where the real data is; skips the test if it is nowhere."
    for place in (os.environ.get("CIFAR10_DIR"), ROOT / "alexnet_data_in", ROOT / "nbs" / "alexnet_data_in"):
        if place and any((Path(place) / name).is_dir() for name in ("train", "cifar-10-batches-py")):
            return Path(place).resolve()
    pytest.skip("no CIFAR-10 found; set CIFAR10_DIR to a folder with train/<class>/ and test/<class>/, or "
                "with the batches")


@pytest.fixture(scope="session")
def site() -> Path:
    "The folder of the site, built anew if something it is made of is younger."
    from built import build
    return build()


@pytest.fixture(scope="module")
def address(site):
    "The site, served on a free port."
    from built import served
    with served(site) as found: yield found


@pytest.fixture(scope="module")
def chromium():
    "One headless Chromium for a file of tests."
    from browser import browser
    with browser() as started: yield started


@pytest.fixture
def all_threads():
    "As many threads as there are cores, for the full network."
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)
