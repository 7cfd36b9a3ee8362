"""The library: floors that know only what lies below them, names of version 0.1 that still answer, one step
that everything takes."""
import ast
import configparser
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import alexnet_nb
from common import NOTEBOOKS, ROOT, page_of, tiny
from notebooks import module_of

LIBRARY = ROOT / "alexnet_nb"
# addresses of version 0.1
SHIMS = ("checkpoint", "config", "cuda_convnet", "distributed", "experiment", "speed", "two_gpus")
# have no notebook
BY_HAND = {"__init__", "_modidx", "_moved", "base.__init__", "claims.__init__", "engine.__init__", *SHIMS}
FILES = {".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
         for path in sorted(LIBRARY.rglob("*.py"))}
MODULES = [name for name in FILES if name not in BY_HAND]
# in this order
LESSON = [name for name in ("data", "lrn", "model", "train", "inference", "inspection", "transfer")
          if name in FILES]
# stand above the rest of the engine, beside the claims
MEASURING = ("engine.bench", "engine.bench_tasks", "engine.goals", "engine.rivals", "engine.speed",
             "engine.step_parts", "engine.turns")
# may lead up, lazily
DOORS = {("train", "__getattr__"), ("inference", "__getattr__"), ("inference", "__main__")}

each_file = pytest.mark.parametrize("name", FILES)
each_module = pytest.mark.parametrize("name", MODULES)


def floor(name: str) -> tuple[int, int]:
    """Floor, and place on it where places count: a module may know what lies lower, and what lies beside it
    unless it is the lesson's."""
    if name.startswith("base."): return 1, 0
    if name in LESSON: return 2, LESSON.index(name)
    if name.startswith("engine."): return (4, 0) if name in MEASURING else (3, 0)
    if name.startswith("claims."): return 4, 1
    raise ValueError(f"{name} is on no floor: it belongs to the lesson, or in base, engine or claims")


@dataclass(frozen=True)
class Import:
    "One module that code imports."
    module: str            # alexnet_nb.base.errors
    names: tuple[str, ...] # of it, () for the module itself
    # the function, class or `if` at the top of the file around it; "" where there is none
    where: str


def enclosing(node: ast.stmt) -> str:
    "What a statement at the top of a file is called."
    if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test): return "__main__"
    return getattr(node, "name", "")


def imports(source: str, name: str, package: bool = False) -> list[Import]:
    """Everything that the code of module `name` imports, at any depth, relative and absolute, by statement or
    by `import_module`."""
    own, found = ["alexnet_nb", *name.split(".")], []
    for top in ast.parse(source).body:
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                found += [Import(alias.name, (), enclosing(top)) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = own[:len(own) - node.level + package] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{module}.{alias.name}"  # a module, or a name in one
                    if inner.removeprefix("alexnet_nb.") in FILES:
                        found.append(Import(inner, (), enclosing(top)))
                    else: found.append(Import(module, (alias.name,), enclosing(top)))
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in ("import_module", "__import__"):
                    found.append(Import(node.args[0].value, (), enclosing(top)))
    return found


def imports_of(name: str) -> list[Import]:
    "Those of a file of the library."
    return imports(FILES[name].read_text(encoding="utf-8"), name.removesuffix(".__init__"),
                   name.endswith("__init__"))


def own_imports(name: str) -> list[tuple[str, str]]:
    "Which modules of the library it imports, and around what."
    return [(i.module.removeprefix("alexnet_nb."), i.where) for i in imports_of(name)
            if i.module.startswith("alexnet_nb.")]


def test_every_kind_of_import_is_seen():
    source = """
import alexnet_nb.engine.run as r
from alexnet_nb import train, other
from ..base.errors import InputError
from . import files
def __getattr__(name):
    class Deep:
        if name: from alexnet_nb.claims.plans import EXPERIMENTS
    importlib.import_module("alexnet_nb.model")
if __name__ == "__main__": from .run import main
"""
    found = {(i.module, i.names, i.where) for i in imports(source, "engine.setup")}
    assert found == {("alexnet_nb.engine.run", (), ""), ("alexnet_nb.train", (), ""),
                     ("alexnet_nb", ("other",), ""),
                     ("alexnet_nb.base.errors", ("InputError",), ""), ("alexnet_nb.engine.files", (), ""),
                     ("alexnet_nb.claims.plans", ("EXPERIMENTS",), "__getattr__"),
                     ("alexnet_nb.model", (), "__getattr__"),
                     ("alexnet_nb.engine.run", ("main",), "__main__")}


# ---------------------------------------------------------------- floors

@each_module
def test_imports_run_downward(name):
    """Base, lesson, engine, claims and benchmark; in the lesson from a later module to an earlier one. Only
    the lazy doors lead up."""
    for other, where in own_imports(name):
        if (name, where) in DOORS: continue
        assert other not in BY_HAND, f"{name} imports {other}, an address of version 0.1"
        here, there = floor(name), floor(other)
        down = there < here if here[0] == 2 else there[0] <= here[0]
        assert down, f"{name} imports {other}" + f" in {where}" * bool(where)


def test_every_door_leads_up():
    "An exception that nobody needs is none."
    for name, where in DOORS:
        leads = any(there == where and floor(other)[0] > 2 for other, there in own_imports(name))
        assert leads, (name, where)


def test_no_two_modules_need_each_other():
    below = {name: {other for other, where in own_imports(name) if (name, where) not in DOORS}
             for name in MODULES}
    while below:
        free = [name for name, others in below.items() if not others & below.keys()]
        assert free, f"a circle among {sorted(below)}"
        for name in free: del below[name]


@each_module
def test_no_private_name_is_imported(name):
    for found in imports_of(name):
        if not found.module.startswith("alexnet_nb"): continue
        assert not any(n.startswith("_") for n in found.names), f"{found.names} of {found.module}"


HEAVY = ("pydantic", "filelock", "tensorboard", "yaml")
FRESH = """
import importlib, sys
importlib.import_module({module!r})
for name in sys.modules:
    if name.split(".")[0] in {heavy!r} or name.startswith({above!r}): print(name)
"""


def loaded_by(module: str, above: tuple[str, ...]) -> list[str]:
    "What a fresh process has loaded after importing a module, of that which it should not have."
    code = FRESH.format(module=module, heavy=HEAVY, above=above)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("name", LESSON)
def test_a_lesson_module_loads_nothing_from_above(name):
    later = tuple(f"alexnet_nb.{other}" for other in LESSON[LESSON.index(name) + 1:])
    assert loaded_by(f"alexnet_nb.{name}", ("alexnet_nb.engine", "alexnet_nb.claims", *later)) == []
    assert not any(i.module == "argparse" for i in imports_of(name))


def test_what_is_loaded_is_seen():
    loaded = loaded_by("alexnet_nb.engine.config", ("alexnet_nb.engine",))
    assert {"pydantic", "yaml", "alexnet_nb.engine.config"} <= {*loaded}


# ---------------------------------------------------------------- modules and their notebooks

def default_exp(path: Path) -> list[str]:
    "The modules that a notebook exports to."
    import json
    cells = ("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code")
    return [line.split()[2] for cell in cells for line in cell.splitlines()[:1]
            if line.startswith("#| default_exp ")]


def test_every_module_has_one_notebook():
    "And every notebook that exports has its module: what a move leaves behind is found."
    homes = [(module, page_of(path)) for path in NOTEBOOKS for module in default_exp(path)]
    assert sorted(module for module, _ in homes) == sorted(MODULES), homes
    assert {module_of(path).removeprefix("alexnet_nb.") for path in FILES.values()} == {*FILES}
    assert BY_HAND <= FILES.keys()
    for module, page in homes:
        folder, package = page.rpartition("/")[0].replace("/", "."), module.rpartition(".")[0]
        assert folder == package, f"{page} exports {module}"


def test_every_module_is_on_a_floor():
    assert sorted(MODULES, key=floor) and {floor(name)[0] for name in MODULES} == {1, 2, 3, 4}
    assert [*LESSON[:6]] == ["data", "lrn", "model", "train", "inference", "inspection"]


@each_file
def test_no_module_imports_the_tools_of_development(name):
    tools = {"nbdev", "fastcore", "execnb", "ghapi", "IPython", "pytest", "hypothesis"}
    assert not {i.module.split(".")[0] for i in imports_of(name)} & tools


@each_file
def test_modules_import_only_what_is_required(name):
    "Whatever a module imports is Python's own or stands in settings.ini under `requirements`."
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    required = {line.split(">=")[0].strip().lower() for line in settings["DEFAULT"]["requirements"].split()}
    called = {"pyyaml": "yaml", "pillow": "PIL"}
    allowed = {called.get(package, package) for package in required}
    allowed |= {*sys.stdlib_module_names, "alexnet_nb"}
    # comes with torch where there is CUDA, and is imported only there
    if name == "base.lrn_triton": allowed.add("triton")
    # of the extra `export`, imported when a graph is written; a line says so where it is missing
    if name == "engine.export": allowed.add("onnx")
    # of the extra `bench`, likewise
    if name == "engine.answering": allowed.add("openvino")
    if name == "engine.rivals": allowed.add("onnxruntime")
    assert not {i.module.split(".")[0] for i in imports_of(name)} - allowed


def test_the_version_is_one():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    assert alexnet_nb.__version__ == version == importlib.metadata.version("alexnet_nb")


@each_module
def test_public_names_exist_and_say_what_they_are(name):
    try: module = importlib.import_module(f"alexnet_nb.{name}")
    except ModuleNotFoundError as e:
        if (name, e.name) != ("base.lrn_triton", "triton"): raise
        pytest.skip("no Triton here")
    for public in module.__all__:
        thing = getattr(module, public)
        if callable(thing) and getattr(thing, "__module__", None) == module.__name__:
            assert thing.__doc__, f"{name}.{public} has no docstring"


# ---------------------------------------------------------------- what others import

def test_the_public_face_that_others_import():
    from alexnet_nb.lrn import LocalResponseNorm
    from alexnet_nb.model import AlexNet
    parameters = inspect.signature(AlexNet).parameters
    assert parameters["num_classes"].default == 10 and parameters["width"].default == 1.0
    defaults = {name: p.default for name, p in inspect.signature(LocalResponseNorm).parameters.items()}
    expected = dict(n=5, k=2.0, alpha=1e-4, beta=0.75, alpha_is="mean")
    assert {k: defaults[k] for k in expected} == expected


def test_the_package_hands_on_what_a_program_needs():
    "Lazily: importing it loads nothing but itself; every name that it promises is there."
    code = ("import sys, alexnet_nb; "
            "print([m for m in sys.modules if m.startswith('alexnet_nb.') or m == 'torch'])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=100).stdout.strip() == "[]"
    for name in alexnet_nb.__all__: assert getattr(alexnet_nb, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): _ = alexnet_nb.nothing


# Every public name that version 0.1 had at an address that has moved.
NAMES_OF_0_1 = {
    "config": "Fraction Positive PathText MOST_YAML CONFIG_DIR PRECISIONS InputError RunError brief "
              "one_line Section ModelConfig TrainingConfig DataConfig PathsConfig DeviceConfig Config "
              "parse_yaml config_path read_config_file make_config merge parse_overrides given_values "
              "load_config to_yaml pick_device describe_device pick_precision reuse_memory set_seed "
              "out_of_memory run_command read_results",
    "checkpoint": "HELD replacing Away save_checkpoint copy_checkpoint save_json remove_leftovers read_held "
                  "take_folders file_system CheckpointFolder read_checkpoint random_state set_random_state "
                  "architecture build_model stored_recipe stored_classes group_state rates_by_group "
                  "schedule_state match_layout",
    "distributed": "share World find_world rank world_size leader backend joined total agree gather "
                   "by_leader lost_peer replicated own_stream launch orphaned",
    "experiment": "RELU_VS_TANH LRN_13_TO_11 ABLATIONS EXPERIMENTS ORDER write_json rate_rule Experiment "
                  "rate_arms settings rates_by_epoch full_length new_trial find_trial reason_to_stop "
                  "is_done speed choose plan next_trial data_name find_data Pictures load_pictures Lab note "
                  "convnet_epoch convnet_test convnet_trial alexnet_config alexnet_epochs ten_view_error "
                  "alexnet_test alexnet_trial describe forget run_trial identity same_identity open_results "
                  "list_trials run_experiment default_file main",
    "speed": "TYPES PAUSE SMALL GOALS FLOOR_GOALS H100_GOALS PARTS HEADER synchronise seconds UsualPictures "
             "usual_transform usual_loader usual_alexnet usual_optimizer usual_step usual_predict Chain "
             "chains flops elements Rates floor_seconds allow_tf32 best_seconds conv_rate memory_rate "
             "kept_bytes peak_bytes resident_bytes Task Job lrn_job usual_job our_run our_job folder_job "
             "make_job cpu_name about others_busy warm_up_job one_rate obey serve Side interleave summary "
             "Sizes folder_of_drawings variants Bench too_late write_result go_on measure_floor floor_of "
             "judge measure_row format_row markdown_table measure_memory stairs measure_staircase run_bench "
             "describe pick_precisions pick_bench_device main",
    "cuda_convnet": "NETS DATA_BATCH mean_image chances cut Local2d SameMapNorm Layer Stage Net build_net "
                    "net_table net_optimizer set_rate train_epoch ten_views view_probabilities",
    "two_gpus": "PAPER_NAMES Message Wire Tower mixing_layers TwoTowers split_state join_state LayerTraffic "
                "layer_traffic data_parallel_bytes model_parallel_bytes ring_seconds",
}
# And those that its README or a page showed at addresses that are still there.
SHOWN_BY_0_1 = {
    "data": "drawings IMAGENET_MEAN IMAGENET_STD Recipe prepare CLASSES stack_pixels usual_recipe Images "
            "read_cifar10 open_rgb read_folder image_files",
    "train": "fit main make_optimizer confusion_matrix evaluate",
    "inference": "load_classifier predict Classifier main",
    "model": "AlexNet layer_table init_weights",
    "lrn": "LocalResponseNorm local_response_norm window_sum lrn_way",
}
GONE = {  # why
    **dict.fromkeys(("speed.GOALS", "speed.FLOOR_GOALS", "speed.H100_GOALS", "speed.judge"),
                    "goals are set against the strongest opponents now: alexnet_nb.engine.goals"),
}


@pytest.mark.parametrize("address", [*NAMES_OF_0_1, *SHOWN_BY_0_1])
def test_names_of_0_1_answer_at_their_old_address(address):
    module = importlib.import_module(f"alexnet_nb.{address}")
    moved, lost = address in SHIMS, []
    for name in (NAMES_OF_0_1 | SHOWN_BY_0_1)[address].split():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = getattr(module, name, None)
        if (found is None) != (f"{address}.{name}" in GONE): lost.append(name)
        elif found is not None and moved:
            assert f"alexnet_nb.{address}.{name} is now alexnet_nb." in str(said[-1].message), name
    assert not lost, f"{address}: {lost} answer otherwise than is listed"
    if moved: assert {*module.__all__} <= {*NAMES_OF_0_1[address].split()}, "what a star import asks for"
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"): _ = module.no_such_name


def test_there_are_modules():
    assert ({*NAMES_OF_0_1} == {*SHIMS}
            and {f"{a}.{n}" for a, names in NAMES_OF_0_1.items() for n in names.split()} >= {*GONE})


@pytest.mark.parametrize("address, said", [("train", "alexnet_train"), ("inference", "alexnet_predict"),
                                           ("speed", "alexnet_bench"), ("experiment", "alexnet_experiment")])
def test_commands_of_0_1_answer_at_their_old_address(address, said):
    run = subprocess.run([sys.executable, "-m", f"alexnet_nb.{address}", "--help"], capture_output=True,
                         text=True, timeout=300)
    assert run.returncode == 0 and f"usage: {said}" in run.stdout, run.stderr


# ---------------------------------------------------------------- one step

class Taken(Exception):
    "The step was."


def never(*args, **more): raise Taken


def a_run(folder: Path) -> None:
    from alexnet_nb.engine.config import load_config
    from alexnet_nb.engine.setup import fit
    fit(load_config(None, tiny(folder)[1::2]), show_bar=False)


def a_loop(folder: Path) -> None:
    from alexnet_nb.train import train
    train(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)),
          [(torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]))], epochs=1)


def an_experiment(folder: Path) -> None:
    from alexnet_nb.claims.experiment import main
    main(["ablations", "--scale", "tiny", "--seeds", "0", "--results", str(folder / "r.json"), "--output",
          str(folder)])


@pytest.mark.parametrize("work", [a_run, a_loop, an_experiment])
def test_everything_that_learns_takes_the_lessons_step(work, tmp_path, monkeypatch):
    """What a reader learns in 04 is what trains: replaced by a step that raises, the loop, the command's run
    and the experiments fail."""
    monkeypatch.setattr("alexnet_nb.train.train_step", never)
    with pytest.raises(Taken): work(tmp_path)


def exported_cells(path: Path) -> list[str]:
    "The code that a notebook exports."
    import json
    cells = ("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code")
    return [cell for cell in cells if any(line.split()[1:2]
                                          and line.split()[1] in ("export", "exports", "exporti")
                                          for line in cell.splitlines() if line.startswith("#|"))]


def calls_backward(source: str) -> bool:
    "Whether code asks for gradients by `.backward()`."
    return any(isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "backward"
               for node in ast.walk(ast.parse(source)))


def test_one_cell_goes_backward():
    """In lesson and engine; beside it the linear classifier's, which is fitted by L-BFGS. The claims and the
    benchmark have their own: they train what is not AlexNet as we do."""
    def functions(cell):
        return [node.name.lstrip("_") for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef)]
    found = [(module, functions(cell)) for path in NOTEBOOKS for module in default_exp(path)
             for cell in exported_cells(path) if floor(module)[0] < 4 and calls_backward(cell)]
    assert sorted(found) == [("engine.baseline", ["fit_linear"]), ("train", ["train_step"])]
    assert (calls_backward("scaler.scale(loss).backward()")
            and not calls_backward("def backward(ctx, g): return g"))
