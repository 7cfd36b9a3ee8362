"""Which notebooks and modules there are, at any depth: the one list that every tool, test and CI step walks.

    python tools/notebooks.py                  their paths, one a line
    python tools/notebooks.py --flag cifar10   those with a cell that carries this flag
"""
import argparse
import json
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
LIBRARY = ROOT / "alexnet_nb"


def below(folder: Path, pattern: str) -> list[Path]:
    "The files below a folder, sorted; none on whose way a name begins with . or _ (copies, built pages)."
    paths = (path for path in folder.rglob(pattern) if path.is_file())
    return sorted(p for p in paths if not any(part[0] in "._" for part in p.relative_to(folder).parts))


def all_notebooks(folder: Path = NBS) -> list[Path]:
    "Every notebook."
    return below(folder, "*.ipynb")


def all_modules(folder: Path = LIBRARY) -> list[Path]:
    "Every Python file of the library but those whose name begins with an underscore."
    return below(folder, "*.py")


def name_of(path: Path, folder: Path = NBS) -> str:
    "A notebook's path below the folder, without .ipynb: 02_lrn, engine/kernels."
    return path.relative_to(folder).with_suffix("").as_posix()


def module_of(path: Path) -> str:
    "The dotted name of a file of the library: alexnet_nb.lrn, alexnet_nb.engine.checkpoint."
    return ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)


def read_cells(path: Path, kind: str | None = None) -> list[dict]:
    "The cells of a notebook, or those of one kind, their sources as text."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells: cell["source"] = "".join(cell["source"])
    return [cell for cell in cells if kind in (None, cell["cell_type"])]


def directives(source: str) -> dict[str, str]:
    "What stands behind #| in a cell: name to value, the value empty where there is none."
    found = re.findall(r"^#\|[ \t]*([\w-]+)(?::[ \t]*|[ \t]+|$)(.*)$", source, re.M)
    return {name: value.strip() for name, value in found}


def known_flags() -> set[str]:
    "The flags of settings.ini, with which a cell says that it runs only when it is asked for."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return set(ini["DEFAULT"]["tst_flags"].split())


def runs(cell: dict, flags: set[str] = frozenset()) -> bool:
    "Whether a test run with these flags runs the cell, by the rules of nbdev_test."
    if cell["cell_type"] != "code": return False
    found = directives(cell["source"])
    return found.get("eval", "").lower() != "false" and not (known_flags() - set(flags)) & found.keys()


if __name__ == "__main__":
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--flag", help="only notebooks with a cell that carries it")
    flag = parser.parse_args().flag
    for notebook in all_notebooks():
        if flag is None or any(flag in directives(cell["source"]) for cell in read_cells(notebook, "code")):
            print(notebook.relative_to(ROOT).as_posix())
