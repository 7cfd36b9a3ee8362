"The library stands alone: no nbdev, no fastcore, one version."
import ast
import configparser
import importlib
import importlib.metadata
import sys

import pytest
from common import ROOT

import alexnet_nb

MODULES = sorted((ROOT / "alexnet_nb").glob("*.py"))
ORDER = ("config", "data", "lrn", "model", "checkpoint", "distributed", "train", "inference", "speed", "cuda_convnet", "experiment", "inspection",
         "two_gpus")
ALONE = {"lrn": {"config", "data"}, "model": {"config", "data"}, "distributed": {"data", "lrn", "model", "checkpoint"},
         "cuda_convnet": {"config", "data", "checkpoint", "distributed", "train", "inference", "speed"},
         "two_gpus": {*ORDER[:-1]} - {"lrn", "model"}}  # know of less than their place allows


def imported(path) -> set[str]:
    "The top-level names of everything a module imports, at any depth of its code."
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module.split(".")[0])
    return names


def test_there_are_modules():
    assert {*ORDER} == {p.stem for p in MODULES if not p.stem.startswith("_")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_module_imports_the_tools_of_development(path):
    assert not imported(path) & {"nbdev", "fastcore", "execnb", "ghapi", "IPython", "pytest", "hypothesis"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_import_only_what_is_required(path):
    "Whatever a module imports is Python's own or stands in settings.ini under `requirements`."
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    required = {line.split(">=")[0].strip().lower() for line in settings["DEFAULT"]["requirements"].split()}
    called = {"pyyaml": "yaml", "pillow": "PIL"}
    allowed = {called.get(name, name) for name in required} | set(sys.stdlib_module_names)
    if path.stem == "lrn": allowed.add("triton")  # comes with torch where there is CUDA, and is imported only there
    assert not imported(path) - allowed


@pytest.mark.parametrize("lower", ORDER)
def test_imports_run_from_a_higher_notebook_to_a_lower_one(lower):
    higher = {*ORDER[ORDER.index(lower) + 1:]} | ALONE.get(lower, set())
    tree = ast.parse((ROOT / "alexnet_nb" / f"{lower}.py").read_text(encoding="utf-8"))
    own = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert not own & higher


def test_the_version_is_one():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert alexnet_nb.__version__ == settings["DEFAULT"]["version"] == importlib.metadata.version("alexnet_nb")


@pytest.mark.parametrize("path", [p for p in MODULES if not p.stem.startswith("_")], ids=lambda p: p.stem)
def test_public_names_exist_and_say_what_they_are(path):
    module = importlib.import_module(f"alexnet_nb.{path.stem}")
    for name in module.__all__:
        thing = getattr(module, name)
        if callable(thing) and getattr(thing, "__module__", None) == module.__name__: assert thing.__doc__, f"{module.__name__}.{name} has no docstring"


def test_the_public_face_that_others_import():
    import inspect

    from alexnet_nb.lrn import LocalResponseNorm
    from alexnet_nb.model import AlexNet
    parameters = inspect.signature(AlexNet).parameters
    assert parameters["num_classes"].default == 10 and parameters["width"].default == 1.0
    defaults = {name: p.default for name, p in inspect.signature(LocalResponseNorm).parameters.items()}
    assert {k: defaults[k] for k in ("n", "k", "alpha", "beta", "alpha_is")} == dict(n=5, k=2.0, alpha=1e-4, beta=0.75, alpha_is="mean")
