"The reference at the foot of each page: every public name once, as it is written, where links lead."
import ast
import re
from html import unescape

import pytest

from alexnet_nb._modidx import d
from built import NBS, PAGES, TOOL, load_tool, page_at
from notebooks import directives, read_cells

REFERENCE = load_tool("pages")
SYMBOLS = {f"{module}.{name}": address for module, names in d["syms"].items() for full, (address, _) in
           names.items() if not re.search(r"(^|\.)_", name := full.removeprefix(f"{module}."))}


def signature(code: str) -> str: return REFERENCE.signature(ast.parse(code).body[0])


@pytest.mark.parametrize("code, shown", [
    ("def f(a, /, b=1, *c, d: int = 2, **e) -> int: pass", "def f(a, /, b=1, *c, d: int = 2, **e) -> int"),
    ("def f(a, *, use: Callable = lambda x: x): pass", "def f(a, *, use: Callable = lambda x: x)"),
    ("class A(B):\n    def __init__(self, n: int = 5, *, k=2.): pass", "class A(n: int = 5, *, k=2.0)"),
    ("@dataclass(frozen=True)\nclass A:\n    n: int = 5\n    x: Log | None = None",
     "class A(n: int = 5, x: Log | None = None)"),
    ("class A(ValueError): pass", "class A"),
    ("def f(" + ", ".join(f"argument_{i}" for i in range(9)) + "): pass",
     "def f(\n" + "".join(f"    argument_{i},\n" for i in range(9)) + ")")])
def test_a_signature_is_as_it_is_written(code, shown): assert signature(code) == shown


def test_a_comment_is_for_the_last_parameter_on_its_line():
    code = ("def f(a: int, b: int, # the width\n      c: str = '#', # a colour: red | blue\n"
            "     ) -> int: # how many\n    return 1 # one\n")
    node = ast.parse(code).body[0]
    assert REFERENCE.meanings(node, REFERENCE.comments(code)) == [
        ("b", "the width"), ("c", "a colour: red | blue"), ("returns", "how many")]


def test_a_docstring_keeps_its_stars():
    assert REFERENCE.in_words("a * b * c and `x * y`, |x|") == r"a \* b \* c and `x * y`, \|x\|"


def test_a_section_called_like_a_definition_has_an_anchor_of_its_own():
    text = REFERENCE.other_anchor("## Summary\ntext\n## A summary\n", {"summary"})
    assert text == "## Summary {#summary-section}\ntext\n## A summary\n"


def text_of(page: str) -> str: return unescape(re.sub(r"<[^>]+>", "", page))


def test_every_public_name_has_its_place(site):
    "The address that a name in backticks leads to, in this library and from others that nbdev documents."
    assert len(SYMBOLS) > 300
    pages, missing = {}, []
    for name, address in SYMBOLS.items():
        path, place = TOOL.target_of(address, site / "index.html", site, "")
        if path not in pages: pages[path] = TOOL.Page(path).ids
        if place not in pages[path]: missing.append(f"{name}: {address}")
    assert not missing


def page_with_reference() -> list[str]:
    "Pages of notebooks that export a public name."
    modules = {address.rpartition("#")[0].removesuffix(".html") for address in SYMBOLS.values()}
    found = [name for name in PAGES if re.sub(r"(^|/)\d+_", r"\1", name) in modules]
    assert len(found) == len(modules) > 40
    return found


@pytest.mark.parametrize("name", page_with_reference())
def test_a_definition_stands_once(name, site):
    html = (site / page_at(name)).read_text(encoding="utf-8")
    body, _, foot = html.partition('id="reference"')
    assert foot and 'href="https://github.com/' in foot
    names = re.findall(r"<h3[^>]*>\s*(\w+)\s*<", foot)
    exported, text = {}, text_of(body)
    for cell in read_cells(NBS / f"{name}.ipynb", "code"):
        found = directives(cell["source"])
        if not found.keys() & {"export", "exports", "exporti"}: continue
        for each in re.findall(r"^(?:async )?(?:def|class) ([A-Za-z]\w*)", cell["source"], re.M):
            exported[each] = 0 if "hide" in found else 1
    assert sorted(names) == sorted(exported) and names, "the reference is not what the notebook exports"
    for each, times in exported.items():
        count = len(re.findall(rf"^(?:async )?(?:def|class) {each}\b", text, re.M))
        assert count == times, f"{each} is defined {count} times before the reference"
    for garbled in ("__main__", "<lambda>", "<factory>", "<function", "show_doc"):
        assert garbled not in text_of(foot), garbled


@pytest.mark.parametrize("name, words", [
    ("06_looking_inside", "the energy in the first 1, 2, ... (D,)."),
    ("05_inference", "(N * 10, 3, size, size).")])
def test_a_docstring_stands_as_it_is_written(name, words, site):
    html = (site / page_at(name)).read_text(encoding="utf-8")
    foot = html.partition('id="reference"')[2]
    assert words in " ".join(text_of(foot).replace("…", "...").split())


def test_columns_are_as_wide_as_their_texts():
    "Quarto takes the widths of a wide table's columns from its dashes."
    text = "before\n\n| a | b |\n| --- | ---: |\n| [x](long/address.ipynb) | a text with five words |\n"
    fitted = REFERENCE.fit_dashes(text).splitlines()
    assert fitted[3] == "|---|----------------------:|"
    assert REFERENCE.fit_dashes("| a |\n\n--- | ---\n") == "| a |\n\n--- | ---"


def test_imports_and_drawing_code_are_folded(site):
    "And no figure is folded away with its code."
    html = (site / page_at("03_model")).read_text(encoding="utf-8")
    names = re.findall(r'<details class="code-fold">\s*<summary>([^<]*)</summary>', html)
    assert "Imports" in names and "How it is drawn" in names
    outside = re.sub(r"<details.*?</details>", "", html.partition("<main")[2], flags=re.S)
    assert not re.search(r"^import ", text_of(outside), re.M)
    outputs = [output for cell in read_cells(NBS / "03_model.ipynb", "code") for output in cell["outputs"]]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert 3 < figures <= outside.count("<img")


def test_other_projects_find_these_names():
    "nbdev looks for a library's symbols in this group of entry points."
    assert '"nbdev": ["alexnet_nb=alexnet_nb._modidx:d"]' in (NBS.parent / "setup.py").read_text()
