"""How the pages look, as far as it can be told without a browser: one palette, one style of figures, figures
told in words, code that does not dominate a page."""
import ast
import base64
import io
import itertools
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from notebooks import all_notebooks, directives, name_of, read_cells
from test_budgets import is_shown, without_magic

STYLE = 'plt.style.use("alexnet_nb.base.pages")'
SHEET = matplotlib.rc_params_from_file(ROOT / "alexnet_nb/base/pages.mplstyle", use_default_template=False)
PALETTE = SHEET["axes.prop_cycle"].by_key()["color"]
WHITE, DARK = "#ffffff", "#222222"  # the grounds of the two themes
LETTERS = 8     # points; at 90 dots an inch, 10 pixels
COLUMN = 850    # pixels of a page's column; what is wider is shrunk, and its letters with it

# What readers with one kind of cone missing see, on linear RGB: Machado, Oliveira and Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency" (2009), severity 1.
SEEN = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                     [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                       [-0.011820, 0.042940, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                      [0.004733, 0.691367, 0.303900]]}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])


def linear(colour: str) -> np.ndarray:
    "Linear RGB of #rrggbb."
    c = np.array([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    "CIE L*a*b* of linear RGB, in which distances are about as large as they look."
    xyz = TO_XYZ @ rgb.clip(0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def closest(colours: list[str], seen) -> float:
    "The smallest distance between two of them, as someone sees them."
    places = [lab(np.asarray(seen) @ linear(colour)) for colour in colours]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))


def contrast(a: str, b: str) -> float:
    "WCAG's ratio."
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("seen, least", [(name, 18 if name == "no blue cones" else 25) for name in SEEN])
def test_the_palette_holds_for_every_reader(seen, least):
    assert len(PALETTE) == 5 and closest(PALETTE, SEEN[seen]) >= least


@pytest.mark.parametrize("ground", [WHITE, DARK])
def test_the_palette_holds_in_both_themes(ground):
    assert min(contrast(colour, ground) for colour in PALETTE) >= 2.75


def test_the_measure_tells_a_palette_that_fails():
    "Matplotlib's own five: orange and green are one to a reader without red cones."
    usual = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"]
    assert closest(usual, SEEN["no red cones"]) < 10 < 25 < closest(usual, SEEN["all cones"])
    assert contrast("#000000", WHITE) == pytest.approx(21)


# --- figures ---

def figures() -> list[tuple[str, dict, str, str]]:
    "Notebook, cell, MIME type and data of every stored picture and drawing."
    found = []
    for path in all_notebooks():
        for cell in read_cells(path, "code"):
            for output in cell["outputs"]:
                for kind, data in output.get("data", {}).items():
                    text = "".join(data)
                    if kind.startswith("image/") or (kind == "text/html" and "<svg" in text):
                        found.append((name_of(path), cell, kind, text))
    return found


FIGURES = figures()
PIXELS = [figure for figure in FIGURES if figure[2] in ("image/png", "image/jpeg")]
DRAWINGS = [figure for figure in FIGURES if "<svg" in figure[3]]


def test_there_are_figures(): assert len(PIXELS) > 70 and len(DRAWINGS) >= 3


def test_every_figure_is_told_in_words():
    bare = [f"{name} {cell['id']}" for name, cell, *_ in PIXELS
            if len(directives(cell["source"]).get("fig-alt", "")) < 40]
    assert not bare


def test_no_figure_stands_there_as_its_name_only():
    "A page without matplotlib's inline backend shows the text <Figure size ...> in place of the figure."
    for path in all_notebooks():
        for cell in read_cells(path, "code"):
            for data in (output.get("data", {}) for output in cell["outputs"]):
                named = "".join(data.get("text/plain", "")).startswith("<Figure size")
                drawn = any(kind.startswith("image/") for kind in data)
                assert drawn or not named, (name_of(path), cell["id"])


def test_figures_lie_on_white_and_fit_the_column():
    "White in both themes, since photographs and colour maps need one ground; dimmed in the dark."
    wrong = []
    for name, cell, _, data in PIXELS:
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
        (w, h), corners = image.size, (0, -1)
        pixels = [image.getpixel((x % w, y % h)) for x in corners for y in corners]
        if min(map(min, pixels)) < 245: wrong.append(f"{name} {cell['id']}: a corner of {pixels}")
        if w > COLUMN: wrong.append(f"{name} {cell['id']}: {w} pixels wide")
    assert not wrong


def test_drawings_take_the_colours_of_their_page():
    for name, cell, _, data in DRAWINGS:
        svg = ET.fromstring(data[data.index("<svg"):data.rindex("</svg>") + 6])
        assert svg.get("role") == "img" and len(svg.get("aria-label", "")) > 60, (name, cell["id"])
        assert svg.get("fill") == "currentColor" and svg.get("viewBox")
        texts = list(svg.iter("{http://www.w3.org/2000/svg}text"))
        assert texts and not any(text.get("fill") for text in texts), f"{name}: letters of a fixed colour"
        assert min(float(text.get("font-size")) for text in texts) >= 13


def shown_code(name: str) -> list[str]:
    "A notebook's code cells that no module takes."
    path = ROOT / "nbs" / f"{name}.ipynb"
    cells = (cell["source"] for cell in read_cells(path, "code"))
    return [source for source in cells if not re.search(r"^#\| *export", source, re.M)]


@pytest.mark.parametrize("name", sorted({name for name, *_ in PIXELS}))
def test_a_page_draws_in_the_one_style(name):
    code = shown_code(name)
    text = "\n".join(code)
    first = next(i for i, source in enumerate(code) if STYLE in source)
    figure = re.compile(r"plt\.(subplots|figure|show)\(|\bshow\(\[")
    drawn = [i for i, source in enumerate(code) if figure.search(source) and "def show" not in source]
    assert not drawn or first <= drawn[0], "figures before the style"
    assert not re.search(r"figure\.dpi|dpi=\d|figure\.facecolor|axes\.spines|tab:\w+", text)
    sizes = re.findall(r"(?:fontsize|labelsize)=([\d.]+)|\"font\.size\": ([\d.]+)", text)
    assert not [size for size in map("".join, sizes) if float(size) < LETTERS]


# --- code on the pages ---

LESSONS = [name for name in map(name_of, all_notebooks()) if name.startswith(("0", "claims/"))]
# Drawing functions whose code is shown, since the page is about it or says something beside it.
SHOWN = {"draw_windows", "draw_lrn", "draw_descent", "draw_now_and_then"}


def only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def draws(source: str) -> bool:
    "Whether most lines of a cell, two at least, speak of a figure."
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]
    about = re.compile(r"\b(plt|ax|axes|fig|left|right|top|bottom|above|below)\b[\[.(]|\bfig, |imshow|legend")
    return sum(bool(about.search(line)) for line in lines) * 2 > max(len(lines), 3)


@pytest.mark.parametrize("name", [name_of(path) for path in all_notebooks()])
def test_imports_are_folded(name):
    cells = read_cells(ROOT / "nbs" / f"{name}.ipynb", "code")
    shown = [cell["source"] for cell in cells if is_shown(cell) and cell["source"].strip()]
    open_cells = [source for source in shown if not {"exports", "code-fold"} & directives(source).keys()]
    assert not [source[:80] for source in open_cells if only_imports(without_magic(source))]


@pytest.mark.parametrize("name", LESSONS)
def test_plotting_is_folded(name):
    open_cells = []
    for cell in read_cells(ROOT / "nbs" / f"{name}.ipynb", "code"):
        found, source = directives(cell["source"]), without_magic(cell["source"])
        if not is_shown(cell) or "exports" in found or found.get("code-fold") == "true": continue
        if any(f"def {known}(" in source for known in SHOWN): continue
        if draws(source): open_cells.append((cell["id"], source[:80]))
    assert not open_cells


@pytest.mark.parametrize("name", LESSONS)
def test_a_fold_says_what_is_in_it(name):
    for cell in read_cells(ROOT / "nbs" / f"{name}.ipynb", "code"):
        found = directives(cell["source"])
        if "code-fold" in found: assert len(found.get("code-summary", "").strip('"')) > 5, cell["id"]


def test_the_rules_tell_good_from_bad():
    assert only_imports("import a\nfrom b import c") and not only_imports("import a\na.b()")
    assert draws("fig, ax = plt.subplots()\nax.plot(x)\nax.set(title='a')")
    assert not draws("x = f(2)\nax.plot(x)")


def test_the_package_brings_the_style():
    assert '"alexnet_nb.base": ["*.mplstyle"]' in (ROOT / "setup.py").read_text(encoding="utf-8")
    import matplotlib.pyplot as plt
    with plt.style.context("alexnet_nb.base.pages"):
        assert plt.rcParams["figure.facecolor"] == "white" and plt.rcParams["font.size"] >= 9


def test_the_picture_of_the_readme_is_readable_in_the_dark():
    svg = (ROOT / "nbs/images/index-1.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in svg and svg.count("<text") > 15
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"!\[The network from left to right: [^\]]+dog \d+%", readme)
