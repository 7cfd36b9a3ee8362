"""What the lesson and the library may cost a reader, measured; python tests/test_budgets.py prints the table.

A lesson is a notebook nbs/0*.ipynb. A budget of many pages is measured by what is over it, all pages
together.
"""
import ast
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from notebooks import LIBRARY, all_modules, all_notebooks, directives, module_of, name_of, read_cells

WORDS, HOURS, CELL, LINE = 3_500, 8, 15, 110
EXPORTED, EXPORTED_MORE = 150, {"01_data": 220, "06_looking_inside": 220}  # two that hold several things
MODULE, README = 400, 8_192
LIBRARY_LINES = 7_114  # of version 0.1, by library_lines(); as it stood, its lines up to 300 long, 4,829
# What 0.1 could not do at all has rooms of its own, which are not held against it.
NEW_IN_0_2 = {"base/file_parts.py", "base/fonts.py", "base/layouts.py", "base/lrn_native.py",
              "base/output.py", "base/reading.py", "base/volumes.py", "base/weights.py",
              "engine/answering.py", "engine/arguments.py", "engine/compress.py", "engine/export.py",
              "engine/goals.py", "engine/inventory.py", "engine/locks.py", "engine/photographs.py",
              "engine/plain_yaml.py", "engine/rivals.py", "engine/step_parts.py", "transfer.py"}
LESSON_MODULES = ("data", "lrn", "model", "train", "inference", "inspection", "transfer")
HEAVY = ("pydantic", "filelock", "tensorboard", "yaml", "alexnet_nb.engine", "alexnet_nb.claims")

# (name, the most that is allowed)
BUDGETS = [
    ("words before the exercises, over 3,500 a lesson", 0),
    ("exported lines, over 150 a lesson (220 in 01 and 06)", 0),
    ("lines of shown code cells, over 15 a cell", 0),
    ("hours of reading, 00 to 06", HOURS),
    ("exported lines of what 0.1 could do, laid out alike", LIBRARY_LINES),
    ("lines of the largest module", MODULE),
    ("lines over 110 in notebooks", 0),
    ("lines over 110 in modules", 0),
    ("lines over 110 in tests", 0),
    ("lines over 110 in tools", 0),
    ("public names that nobody else uses", 0),
    ("bytes of README.md", README),
    ("modules that read a Config", 2),
    ("lesson modules that load what they may not", 0),
]


# --- notebooks ---

@dataclass
class Lesson:
    "What a lesson asks of its reader."
    name: str
    words: int         # all of its prose
    before: int        # the words before its exercises
    code: int          # lines of shown code
    exported: int      # lines of its module
    cell: int          # lines of its longest shown cell
    over_cell: int     # lines over CELL, all shown cells together
    over_line: int     # lines of code longer than LINE

    @property
    def hours(self) -> float: return (self.words / 130 + self.code / 12) / 60

    @property
    def may_export(self) -> int: return EXPORTED_MORE.get(self.name, EXPORTED)


def words(markdown: str) -> int:
    "Words of prose: without HTML tags and the targets of links and pictures; a formula counts by its parts."
    text = re.sub(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", " ", markdown, flags=re.S)
    text = re.sub(r"\]\([^()\s]*\)", "] ", text)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def is_shown(cell: dict) -> bool:
    "Whether the page shows the cell's code; `#| export` leaves an entry of the API instead."
    found = directives(cell["source"])
    hidden = {"hide", "export", "exporti", "default_exp"} & found.keys()
    silent = "false" in (found.get("echo"), found.get("include"))
    return cell["cell_type"] == "code" and not hidden and not silent


def code_lines(source: str) -> list[str]:
    "Lines of code as a page shows them: without directives and blank lines."
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]


def exercises_begin(cells: list[dict]) -> int:
    "The number of the cell with the heading of the questions or exercises, whichever comes first."
    heading = re.compile(r"^#{1,4} +(?:[\d.]+ +)?(?:Exercises?|Check yourself|Questions)\b", re.M)
    prose = [n for n, cell in enumerate(cells) if cell["cell_type"] == "markdown"]
    return min((n for n in prose if heading.search(cells[n]["source"])), default=len(cells))


def default_exp(cells: list[dict]) -> str:
    "The module that a notebook exports, without alexnet_nb; empty if it exports none."
    found = (directives(cell["source"]).get("default_exp") for cell in cells if cell["cell_type"] == "code")
    return next(filter(None, found), "")


def measure(path: Path) -> Lesson:
    "A notebook, measured."
    cells = read_cells(path)
    prose = [(n, words(cell["source"])) for n, cell in enumerate(cells) if cell["cell_type"] == "markdown"]
    shown = [len(code_lines(cell["source"])) for cell in cells if is_shown(cell)]
    module = default_exp(cells)
    file = LIBRARY / f"{module.replace('.', '/')}.py"
    return Lesson(
        name_of(path), words=sum(count for _, count in prose),
        before=sum(count for n, count in prose if n < exercises_begin(cells)), code=sum(shown),
        exported=exported_lines(file) if module and file.exists() else 0, cell=max(shown, default=0),
        over_cell=sum(max(0, lines - CELL) for lines in shown),
        over_line=sum(over(cell["source"]) for cell in cells if cell["cell_type"] == "code"))


def over(text: str) -> int:
    "How many lines are longer than LINE characters; the text of a figure is prose, on one line by its form."
    return sum(len(line) > LINE and not line.startswith("#| fig-") for line in text.splitlines())


# --- modules ---

def exported_lines(path: Path) -> int:
    "Lines of a module that are code: neither blank nor comment, without the list of its public names."
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            for number in range(node.lineno - 1, node.end_lineno): lines[number] = ""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


@functools.cache
def library_lines() -> int:
    """Exported lines of the library, without NEW_IN_0_2, as `ruff format` lays them out in LINE columns.
    Lines of 0.1 were of any length; laid out alike, two versions can be compared."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(LIBRARY, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        options = ["-q", "--isolated", f"--line-length={LINE}"]
        subprocess.run([sys.executable, "-m", "ruff", "format", *options, folder], check=True)
        left_out = {Path(folder, name) for name in (*NEW_IN_0_2, "_modidx.py")}
        files = [path for path in Path(folder).rglob("*.py") if path not in left_out]
        return sum(map(exported_lines, files))


def is_generated(path: Path) -> bool:
    "Whether a notebook makes the module; a hand-written one is a shim or the front of the package."
    return bool(re.search(r"^# AUTOGENERATED! DO NOT EDIT!", path.read_text(encoding="utf-8"), re.M))


def public_names(path: Path) -> list[str]:
    "What __all__ lists."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [ast.literal_eval(element) for element in node.value.elts]
    return []


IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def quoted(markdown: str) -> set[str]:
    "The words that stand in backticks or in fenced code, but for lines of an import."
    fenced = re.findall(r"^```.*?\n(.*?)^```", markdown, flags=re.S | re.M)
    inline = re.findall(r"(`+)(.+?)\1", re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M))
    lines = [line for text in fenced for line in text.splitlines() if not re.match(r" *(from|import) ", line)]
    return {word for text in [*lines, *(text for _, text in inline)] for word in IDENTIFIER.findall(text)}


def without_magic(source: str) -> str:
    "A cell's code as Python reads it: lines of IPython's own become `pass`."
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


def used(source: str, package: str = "alexnet_nb") -> set[str]:
    """The names of the library that Python code uses: imported from it and then used, or an attribute of one
    of its modules. An import alone does not count, nor does a method that has the same name by chance."""
    tree = ast.parse(source)
    names, modules = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == package):
            for alias in node.names: names[alias.asname or alias.name] = alias.name
            modules |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name.split(".")[0] == package]
            modules |= {alias.asname or package for alias in ours}
    found = {names[node.id] for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute): continue
        base = node.value
        while isinstance(base, ast.Attribute): base = base.value
        if isinstance(base, ast.Name) and base.id in modules: found.add(node.attr)
    return found


def docstrings(source: str) -> str:
    "All strings that stand alone, and all comments."
    alone = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    texts = [str(value.value) for value in alone if isinstance(value, ast.Constant)]
    return "\n".join([*texts, *re.findall(r"#(.*)$", source, re.M)])


def parses(source: str) -> bool:
    try: ast.parse(source)
    except SyntaxError: return False
    return True


@functools.cache
def mentions() -> dict[str, set[str]]:
    "Which names of the library each module with its notebook, each other notebook and the README mentions."
    found: dict[str, set[str]] = {"README": quoted((ROOT / "README.md").read_text(encoding="utf-8"))}
    for path in all_modules():
        source = path.read_text(encoding="utf-8")
        if is_generated(path): found[module_of(path)] = used(source) | quoted(docstrings(source))
    for path in all_notebooks():
        cells = read_cells(path)
        module = default_exp(cells)
        code = "\n".join(text for cell in cells if cell["cell_type"] == "code"
                         if parses(text := without_magic(cell["source"])))
        prose = "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
        room = f"alexnet_nb.{module}" if module else name_of(path)
        found[room] = found.get(room, set()) | used(code) | quoted(prose)
    return found


def unused_names() -> list[str]:
    "Public names that no other module or notebook uses or mentions, and README does not either."
    found = []
    for path in filter(is_generated, all_modules()):
        elsewhere = set().union(*(names for room, names in mentions().items() if room != module_of(path)))
        found += [f"{module_of(path)}.{name}" for name in public_names(path) if name not in elsewhere]
    return found


def reads_config(source: str) -> bool:
    "Whether a module takes a Config: an annotation names it, or something called cfg has its parts taken."
    tree = ast.parse(source)
    notes = [getattr(node, key, None) for node in ast.walk(tree) for key in ("annotation", "returns")]
    named = any(re.search(r"\bConfig\b", ast.unparse(note)) for note in notes if note is not None)
    taken = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return named or any(isinstance(base, ast.Name) and base.id == "cfg" for base in taken)


@functools.cache
def loaded_by(module: str) -> tuple[str, ...]:
    "What importing a lesson module in a fresh process loads of what it may not load."
    code = (f"import sys, torch; before = {{*sys.modules}}; import alexnet_nb.{module}; "
            "print(*({*sys.modules} - before))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    names = [f"{name}." for name in run.stdout.split()]
    return tuple(heavy for heavy in HEAVY if any(name.startswith(f"{heavy}.") for name in names))


# --- the table ---

@functools.cache
def everything() -> list[Lesson]: return [measure(path) for path in all_notebooks()]


def lesson_modules() -> list[str]:
    "Those that there are."
    return [name for name in LESSON_MODULES if (LIBRARY / f"{name}.py").exists()]


def readers() -> list[str]:
    "The modules that read a Config."
    return [module_of(path) for path in all_modules() if reads_config(path.read_text(encoding="utf-8"))]


def long_lines(paths) -> int:
    "How many lines of files are longer than LINE, but for nbdev's list of public names."
    names = re.compile(r"^__all__ = \[.*?\]$", re.M | re.S)
    return sum(over(names.sub("", path.read_text(encoding="utf-8"))) for path in paths)


@functools.cache
def measured() -> dict[str, float]:
    "Every budget by its name."
    generated = [path for path in all_modules() if is_generated(path)]
    lessons = [notebook for notebook in everything() if re.match(r"0\d", notebook.name)]
    values = [
        sum(max(0, lesson.before - WORDS) for lesson in lessons),
        sum(max(0, lesson.exported - lesson.may_export) for lesson in lessons),
        sum(lesson.over_cell for lesson in lessons),
        round(sum(lesson.hours for lesson in lessons if lesson.name < "07"), 1),
        library_lines(),
        max(map(exported_lines, generated)),
        sum(notebook.over_line for notebook in everything()),
        long_lines(all_modules()),
        long_lines((ROOT / "tests").rglob("*.py")),
        long_lines((ROOT / "tools").rglob("*.py")),
        len(unused_names()),
        (ROOT / "README.md").stat().st_size,
        len(readers()),
        sum(bool(loaded_by(name)) for name in lesson_modules()),
    ]
    return dict(zip((name for name, *_ in BUDGETS), values, strict=True))


def table() -> str:
    "Lessons and budgets, in columns."
    lines = ["notebook                   words  before   code  hours  exported   cell   over 110"]
    for x in everything():
        lines.append(f"{x.name:25} {x.words:6,} {x.before:7,} {x.code:6,} {x.hours:6.1f} {x.exported:9,} "
                     f"{x.cell:6} {x.over_line:10}")
    lines += ["", "budget                                                     now  at most"]
    for name, most in BUDGETS:
        now = measured()[name]
        lines.append(f"{name:52} {now:9,} {most:8,}  {'TOO MUCH' if now > most else ''}".rstrip())
    sizes = (f"{path.relative_to(LIBRARY).as_posix()} {exported_lines(path)}" for path in all_modules())
    lines += ["", "exported lines: " + ", ".join(sizes), "read a Config: " + ", ".join(readers())]
    lines += [f"{name} loads {', '.join(loaded_by(name))}" for name in lesson_modules() if loaded_by(name)]
    return "\n".join([*lines, "", "used by nobody else: " + ", ".join(unused_names())])


@pytest.mark.parametrize("name, most", BUDGETS, ids=[name for name, _ in BUDGETS])
def test_budget(name, most): assert measured()[name] <= most


def test_words_of_prose_are_counted():
    assert words("Two [words](a.ipynb#b)\n\n<a id='x'></a>\n| --- | --- |\n![alt text](x.png)") == 4
    assert words("$a + b$ is <details><summary>one</summary> thing") == 5


def test_shown_code_is_what_the_page_shows():
    shown = ["x = 1", "#| exports\ndef f(): pass", "#| code-fold: true\nx", "#| slow\nx"]
    hidden = ["#| hide\nx", "#| export\nx", "#| echo: false\nx", "#| include: false\nx", "#| default_exp a"]
    assert all(is_shown({"cell_type": "code", "source": source}) for source in shown)
    assert not any(is_shown({"cell_type": "code", "source": source}) for source in hidden)
    assert code_lines("#| exports\n\nx = 1\n# why\n") == ["x = 1", "# why"]


def test_a_use_is_a_use_and_no_mere_import():
    assert used("from alexnet_nb.data import drawings, split as cut\ncut(3)\nmodel.drawings()") == {"split"}
    assert used("from alexnet_nb import lrn\nlrn.window_sum(x)\nother.tower()") == {"lrn", "window_sum"}
    assert used("import alexnet_nb.engine.files as files\nfiles.put()") == {"put"}
    assert used("import alexnet_nb.lrn\nalexnet_nb.lrn.layer") == {"lrn", "layer"}
    assert used("from .data import drawings\ndef f(): return drawings(1)") == {"drawings"}
    assert used("from torch import split\nsplit(1)") == set()
    text = "train it with `fit(cfg)`\n```python\nfrom alexnet_nb.x import unused\nused()\n```"
    assert quoted(text) == {"fit", "cfg", "used"}


def test_who_reads_a_config():
    assert reads_config("def f(a: int, c: 'Config'): pass") and reads_config("def f() -> Config | None: ...")
    assert reads_config("x = cfg.training.seed")
    assert not reads_config("def f(config: dict, to: ConfigPath): return config.items()")


if __name__ == "__main__": print(table())
