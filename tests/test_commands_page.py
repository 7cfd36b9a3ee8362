"""The page of commands says what the commands do: each line is parsed, and run where a CPU and drawings do.

Each is checked against its own parser: an option, choice, config or key that does not exist fails.
"""
import argparse
import functools
import importlib
import io
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from unittest import mock

import nbformat
import pytest

from alexnet_nb.base.errors import InputError
from alexnet_nb.data import drawings
from alexnet_nb.engine.config import _CONFIG_DIR, load_config
from common import ROOT, TINY, class_folders, save_drawings, settings

PAGE = ROOT / "nbs" / "commands.ipynb"
FREE = ("source", "ssh")  # of the shell and of the system: not looked into
MODULES = {"alexnet_nb.train": "alexnet_train", "alexnet_nb.inference": "alexnet_predict"}  # for python -m


# ---------------------------------------------------------------- reading the page

def prose() -> str:
    "The page's markdown, all of it."
    return "\n\n".join(cell.source for cell in nbformat.read(PAGE, 4).cells if cell.cell_type == "markdown")


def fences(text: str, language: str) -> list[str]:
    "The fenced blocks of one language."
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def words_of(line: str) -> list[str]:
    "The words of a command, without comment and redirection."
    words = shlex.split(line, comments=True)
    return words[:words.index(">")] if ">" in words else words


def shell_lines(text: str) -> list[list[str]]:
    "The words of each command of the bash blocks; a line with && holds several."
    lines = "".join(fences(text, "bash")).splitlines()
    return [words for line in lines for part in re.split(r"\s*&&\s*", line) if (words := words_of(part))]


def notebook_lines(text: str) -> list[list[str]]:
    "The words of each command that the Python blocks hand to a shell, and of each magic that takes options."
    lines = "".join(fences(text, "python")).splitlines()
    return [words_of(line[1:]) for line in lines if line.startswith(("!", "%pip install", "%tensorboard"))]


# ---------------------------------------------------------------- the parsers

@functools.cache
def mains() -> dict:
    "The functions behind the commands that settings.ini installs."
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    scripts = re.findall(r"(\w+)=([\w.]+):(\w+)", ini["DEFAULT"]["console_scripts"])
    return {name: getattr(importlib.import_module(module), function) for name, module, function in scripts}


class Seen(Exception):
    "Carries a parser out of the command that was about to use it."


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    "The command's own parser, which takes no abbreviations here."
    def stop(self, *args, **kwargs):
        raise Seen(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), pytest.raises(Seen) as e:
        mains()[command]([])
    parser = e.value.args[0]
    parser.allow_abbrev = False
    return parser


def refusal(parser: argparse.ArgumentParser, words: list[str]) -> str:
    "What the parser has against these words; nothing if it takes them."
    with redirect_stderr(io.StringIO()) as said:
        try:
            parser.parse_args(words)
        except SystemExit as e:
            return said.getvalue().strip().splitlines()[-1] if e.code else ""
    return ""


def options_in(text: str) -> set[str]:
    "The long options that a text names."
    return set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text))


@functools.cache
def options_of(*program: str) -> set[str]:
    "The options that a program names when asked for help."
    asked = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert asked.returncode in (0, 1), (program, asked.stderr[-500:])  # --helpfull exits with 1
    return options_in(asked.stdout + asked.stderr)


def known_options(words: list[str]) -> set[str] | None:
    "The options of another program than the five commands; None if this test does not know it."
    modules = {
        "tensorboard": ("tensorboard.main", "--helpfull"),
        "torchrun": ("torch.distributed.run", "--help"),
        "pip": ("pip", "install", "--help"),
        "python3": ("venv", "--help"),
    }
    if words[0] in FREE:
        return set()
    if words[0].startswith("nbdev_"):
        return options_of(str(Path(sys.executable).parent / words[0]), "--help")
    if words[0] == "python" and words[1].endswith(".py"):
        script = ROOT / words[1]
        return options_in(script.read_text(encoding="utf-8").replace('"', " ")) if script.is_file() else None
    known = words[0] in modules and (words[0] != "python3" or words[1:3] == ["-m", "venv"])
    return options_of(sys.executable, "-m", *modules[words[0]]) if known else None


def as_command(words: list[str]) -> list[str]:
    "`python -m alexnet_nb.train ...` and what torchrun is given, as `alexnet_train ...`; others as they are."
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else None
    if words[0] in ("python", "torchrun") and module in MODULES:
        return [MODULES[module], *words[words.index("-m") + 2:]]
    return words


def config_problem(args: list[str]) -> str:
    "What is wrong with the config and the keys that a line gives; nothing if all of it is right."
    pairs = list(pairwise(args))
    name = dict(pairs).get("--config")
    if name in own_configs(prose()):
        name = None  # a file that the page spells out; the runs below use it
    elif name and not (_CONFIG_DIR / f"{name}.yaml").is_file():
        return f"there is no config {name}"
    try:
        load_config(name, [value for word, value in pairs if word == "--set"])
    except InputError as e:
        return str(e)
    return ""


def problem(words: list[str]) -> str:
    "What a line names that does not exist; nothing if all of it does."
    ours = as_command(words)
    if ours[0] in mains():
        before = words[1:words.index("-m")] if words[0] == "torchrun" else []
        why = refusal(parser_of(ours[0]), ours[1:]) or config_problem(ours[1:])
    elif known_options(words) is None:
        return "this test does not know the program"
    else:
        before, why = words[1:], ""
    options = {word.split("=")[0] for word in before if word.startswith("--")}
    return why or (" ".join(options - known_options(words)) if options else "")


def problems(text: str) -> dict[str, str]:
    "Each line for a shell that names what does not exist, and what that is."
    lines = {shlex.join(words): problem(words) for words in shell_lines(text) + notebook_lines(text)}
    return {line: why for line, why in lines.items() if why}


# ---------------------------------------------------------------- what the page names exists

def test_there_are_lines_to_check():
    programs = {words[0] for words in shell_lines(prose())}
    assert {*mains(), "torchrun", "tensorboard", "pip", "python", "nbdev_test"} <= programs
    assert len(shell_lines(prose())) > 35 and len(notebook_lines(prose())) >= 5


def test_every_line_names_only_what_exists():
    assert problems(prose()) == {}


PLANTED = {
    "alexnet_train --epochs 3": "--epochs",
    "alexnet_train --res x.pkl": "--res",
    "alexnet_train --set model.color=1": "color",
    "alexnet_train --config quik": "quik",
    "alexnet_predict --checkpoint a.pkl --image b.png --show-all": "--show-all",
    "alexnet_predict --checkpoint a.pkl": "--image",
    "alexnet_bench --parts lrm --results b.json": "lrm",
    "alexnet_experiment figure_1": "figure_1",
    "python -m alexnet_nb.train --fast": "--fast",
    "torchrun --processes 2 -m alexnet_nb.train": "--processes",
    "torchrun --nproc-per-node 2 -m alexnet_nb.train --fast": "--fast",
    "tensorboard --logdir x --bind-everything": "--bind-everything",
    "nbdev_test --notebook x": "--notebook",
    "pip install --quickly .": "--quickly",
    "python tools/sync.py --write": "--write",
    "python tools/none.py": "does not know the program",
    "alexnet_draw": "does not know the program",
}


@pytest.mark.parametrize("line", PLANTED)
def test_a_planted_line_is_found(line):
    "Each of these names something that does not exist, and is the one line complained of."
    found = problems(f"{prose()}\n\n```bash\n{line}   # a comment\n```\n")
    assert list(found) == [line] and PLANTED[line] in found[line]


def test_a_line_planted_for_a_notebook_is_found():
    found = problems(f"{prose()}\n\n```python\nx = 1\n!alexnet_train --epochs 3\n```\n")
    assert list(found) == ["alexnet_train --epochs 3"]


def test_options_named_in_the_text_exist():
    "In tables and sentences too."
    ours = {option for name in mains() for option in parser_of(name)._option_string_actions}
    known = ours.union(*(known_options(words) or set() for words in shell_lines(prose())))
    assert {"--show-all-probs", "--bind_all", "--host", "--resume", "--help"} <= options_in(prose())
    assert options_in(prose()) - known == set()
    assert options_in(prose() + " `--show-everything`") - known == {"--show-everything"}


# ---------------------------------------------------------------- and does what it says

def own_configs(text: str) -> dict[str, str]:
    "The YAML files that the page spells out, by the name in their first line."
    return {block.splitlines()[0].removeprefix("# ").split()[0]: block for block in fences(text, "yaml")}


def tiny_version(args: list[str]) -> list[str]:
    "A training's arguments behind those of a tiny one; long runs are cut, foreign folders brought here."
    own = ("data.dataset", "data.train_images") if "my.yaml" in args else ()
    args = [re.sub(r"^(training\.num_epochs)=\d+$", r"\1=3", arg) for arg in args]
    args = [arg.replace("=/content/drive/MyDrive", "=drive") for arg in args]
    args = ["path/to/checkpoint.pkl" if before == "--start-from" else arg  # of the tiny run that was stopped
            for before, arg in zip(["", *args], args, strict=False)]
    return [*settings({key: value for key, value in TINY.items() if key not in own}), *args]


def can_run(words: list[str]) -> bool:
    "Whether seconds will do: torchrun, the benchmark and the experiments have tests of their own."
    return words[0] in MODULES.values() or (words[0] == "alexnet_experiment" and "--list" in words)


def run(words: list[str]) -> tuple[int, str]:
    "Call a command: its exit code, and what it said."
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = mains()[words[0]](words[1:])
    return code, out.getvalue() + err.getvalue()


def a_readers_folder(folder: Path) -> None:
    "What the page takes for granted: its config files, folders of pictures, and a run that was stopped."
    for name, block in own_configs(prose()).items():
        (folder / name).write_text(block, encoding="utf-8")
    class_folders(folder / "my_pictures", classes=("daisy", "rose", "tulip"), train=40, test=2)
    save_drawings(folder / "pictures", 3)
    drawings(1)[0].save(folder / "my_dog.jpg")
    elsewhere = settings({f"paths.{key}": "path/to" for key in ("output_dir", "checkpoint_dir", "log_dir")})
    stopped = tiny_version(["--config", "my.yaml", "--minutes", "1e-9", *elsewhere])
    assert run(["alexnet_train", *stopped])[0] == 0
    (folder / "path/to/alexnet_last.pkl").rename(folder / "path/to/checkpoint.pkl")


def test_the_lines_run_in_the_order_of_the_page(tmp_path, no_panels):
    "In one folder, as a reader would type them; each training trains, goes on, or says that it is finished."
    a_readers_folder(tmp_path)
    said = {}
    for words in (as_command(words) for words in shell_lines(prose()) if words[0] != "torchrun"):
        if can_run(words):
            args = tiny_version(words[1:]) if words[0] == "alexnet_train" else words[1:]
            code, said[shlex.join(words)] = run([words[0], *args])
            assert code == 0, (words, said[shlex.join(words)][-1500:])

    def of(part: str) -> str:
        return next(text for line, text in said.items() if part in line)

    assert len(said) >= 15
    assert "test: accuracy" in of("--config quick") and "nothing to do" in of("--resume alexnet_data_out")
    assert "epoch 3 of 3" in of("num_epochs=120") and "wrote" in of("path/to/checkpoint.pkl")
    assert len(of("--show-all-probs").splitlines()) == 11
    assert of("--csv").startswith("path,prediction,airplane")
    assert (tmp_path / "alexnet_data_out/flowers.json").is_file() and (tmp_path / "drive/alexnet_nb").is_dir()


def test_a_line_that_fails_is_noticed(tmp_path):
    "The test above can fail: without the pictures, the first line of prediction is refused."
    first = next(words for words in shell_lines(prose()) if words[0] == "alexnet_predict")
    code, said = run(first)
    assert code == 2 and "my_dog.jpg" in said
