"""What notebooks offer for practice is there, is whole, and can fail: questions, exercises, solutions,
numbered equations, widgets."""
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import NBS, NOTEBOOKS, ROOT, page_of

# 00_start comes before there is anything to practise
LESSONS = [path for path in NOTEBOOKS if re.match("0[1-9]_", page_of(path))]
PROMISED = ("01_data", "02_lrn", "03_model", "04_train", "05_inference")  # have something that moves
UNDER_WAY: dict[tuple[str, str], str] = {}  # (test, page): what that page still lacks
KINDS = {"Compute", "Predict", "Repair", "Change"}  # the first hour has "Write it yourself" too
# in this order
SECTIONS = ("Where this differs from the paper", "If you see this, look there", "Check yourself", "Exercises",
            "Summary")
# the others stand where they teach something: there is no quota
ALWAYS = ("Where this differs from the paper", "Summary")
QUESTION = re.compile(r"<details>\n<summary><b>(\d+)\.</b> ([^\n]+)</summary>\n\n(.+?)\n\n</details>", re.S)
EQUATION = re.compile(r'(?:<a id="([\w-]+)"></a>\n\n)?\$\$(?:(?!\$\$).)*?\\tag\{([\w.]+)\}\s*\$\$', re.S)
WIDGET = "application/vnd.jupyter.widget-view+json"

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=page_of)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=page_of)


@pytest.fixture(autouse=True)
def finished(request):
    "Leaves out what stands in `UNDER_WAY`."
    test, _, page = request.node.name.rstrip("]").partition("[")
    if why := UNDER_WAY.get((test, page)): pytest.skip(why)


def has(title: str):
    "A mark: every notebook that has a section of this title."
    return pytest.mark.parametrize("path", [path for path in NOTEBOOKS if section(path, title)], ids=page_of)


def cells(path, kind=None) -> list[dict]:
    "A notebook's cells, their sources as text."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in found: cell["source"] = "".join(cell["source"])
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def prose(path) -> str:
    "All Markdown of a notebook, without fenced code."
    text = "\n\n".join(cell["source"] for cell in cells(path, "markdown"))
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def directives(cell) -> list[str]:
    "The lines of a code cell that begin with #|, without that sign."
    return [line[2:].strip() for line in cell["source"].splitlines() if line.startswith("#|")]


def section(path, title) -> str:
    "The Markdown from a heading of the second level to the next."
    parts = re.split(r"^## +", prose(path), flags=re.M)
    return next((part.split("\n", 1)[1] for part in parts if part.startswith(title) and "\n" in part), "")


def solutions(path) -> dict[int, str]:
    "The code of solutions by number; one may go on in cells that say so: `Solution 5, tried`."
    found: dict[int, str] = {}
    for cell in cells(path, "code"):
        match = re.match(r'#\| code-fold: true\n#\| code-summary: "Solution (\d+)(, [\w ]+)?"\n',
                         cell["source"])
        if 'code-summary: "Solution' in cell["source"]:
            assert match, f"a solution begins otherwise: {cell['source'][:90]}"
        if not match: continue
        number = int(match[1])
        assert (number in found) == bool(match[2]), f"two solutions {number}, or none that goes on"
        found[number] = found.get(number, "") + cell["source"] + "\n"
    return found


def checks(source: str) -> bool:
    "Whether Python source holds an assertion: a statement `assert`, or a call of something named assert_..."
    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))
    names = (getattr(node.func, "attr", getattr(node.func, "id", "")) for node in ast.walk(tree)
             if isinstance(node, ast.Call))
    return (any(isinstance(node, ast.Assert) for node in ast.walk(tree))
            or any(name.startswith("assert_") for name in names))


def headings(path) -> set[str]:
    "The anchors of a page's headings."
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#{2,6} +(.+)$", prose(path), re.M)}


@each_lesson
def test_sections_stand_in_order(path):
    titles = re.findall(r"^## +(.+)$", prose(path), re.M)
    place = {title: i for title in SECTIONS for i, t in enumerate(titles) if t.startswith(title)}
    assert {*ALWAYS} <= place.keys(), f"missing: {[title for title in ALWAYS if title not in place]}"
    assert list(place.values()) == sorted(place.values()), list(place)


def test_most_lessons_offer_practice():
    "Questions and exercises in four of six or more, and exercises of every kind."
    assert sum(bool(section(path, "Check yourself")) for path in LESSONS) * 3 >= 2 * len(LESSONS)
    assert sum(bool(exercises(path)) for path in LESSONS) * 3 >= 2 * len(LESSONS)
    assert {kind for path in LESSONS for _, kind in exercises(path)} == KINDS


@has("If you see this")
def test_symptoms_have_causes(path):
    lines = [line for line in section(path, "If you see this").splitlines() if line.startswith("|")]
    assert lines[0].replace(" ", "") == "|yousee|lookat|"
    assert 3 <= len(lines) - 2 <= 7
    assert all(len(re.split(r"(?<!\\)\|", line.strip("|"))) == 2
               for line in lines), "a row has not two columns"


@has("Check yourself")
def test_questions_are_folded(path):
    text = section(path, "Check yourself")
    found = QUESTION.findall(text)
    assert 1 <= len(found) <= 8 and len(found) == text.count("<details>") == text.count("</details>")
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    for _, question, answer in found:
        assert question.endswith("?"), question
        assert not re.search(r"[$`\[\]<>*]", question), f"{question}: plain text only"
        assert len(answer.split()) >= 3, question
    holding = [cell for cell in cells(path, "markdown") if "<summary><b>" in cell["source"]]
    assert len(holding) == 1, "all questions stand in one cell"


def exercises(path) -> list[tuple[int, str]]:
    "Number and kind of each; the kind is the first word of `**3. Predict, then run.**`"
    found = re.findall(r"^\*\*(\d+)\. (\w+)[\w, ]*\.\*\*", section(path, "Exercises"), re.M)
    return [(int(n), kind) for n, kind in found]


@has("Exercises")
def test_exercises_have_solutions_that_assert(path):
    labels, solved = exercises(path), solutions(path)
    numbers = [n for n, _ in labels]
    assert labels and numbers == list(range(1, len(labels) + 1)) == list(solved), f"{labels}, {list(solved)}"
    more = {"Write"} if page_of(path) == "00_start" else set()
    assert {kind for _, kind in labels} <= KINDS | more, labels
    for number, source in solved.items(): assert checks(source), f"solution {number} asserts nothing"


def equations(path) -> dict[str, str]:
    "Tag by anchor."
    return dict(EQUATION.findall(prose(path)))


@each_notebook
def test_equations_are_numbered_and_referred_to(path):
    "By chapter and number in the lesson, by number alone in the rooms of the other wings."
    number, text = re.match(r"0?(\d+)_", path.stem), prose(path)
    chapter, found = f"{number[1]}." if number else "", EQUATION.findall(text)
    bare = [tag for anchor, tag in found if not anchor]
    assert not bare, f"an equation without an anchor before it: {bare}"
    assert [tag for _, tag in found] == [f"{chapter}{i + 1}" for i in range(len(found))]
    assert len({anchor for anchor, _ in found}) == len(found) == text.count(r"\tag{")
    for anchor, tag in found:
        assert f"[({tag})](#{anchor})" in text, f"({tag}) is never referred to on its own page"


@each_notebook
def test_references_to_equations_are_right(path):
    for tag, file, anchor in re.findall(r"\[\(([\w.]+)\)\]\(([\w./]*)#([\w-]+)\)", prose(path)):
        assert equations(path.parent / file if file
                         else path).get(anchor) == tag, f"({tag}) at {file}#{anchor}"


def glossary_links(path) -> set[str]:
    "The anchors in the glossary that a page leads to."
    return {anchor for _, anchor in re.findall(r"\(((?:\.\./)*)glossary\.ipynb#([\w-]+)\)", prose(path))}


@each_notebook
def test_glossary_links_exist(path):
    lost = glossary_links(path) - headings(NBS / "glossary.ipynb")
    assert not lost, f"not in the glossary: {sorted(lost)}"


@each_lesson
def test_a_lesson_leads_to_the_glossary(path):
    assert len(glossary_links(path)) >= 5


def test_the_glossary_is_in_order_and_leads_on():
    text = prose(NBS / "glossary.ipynb")
    entries = re.split(r"^### +", text, flags=re.M)[1:]
    names = [entry.split("\n", 1)[0].lower().replace("-", " ") for entry in entries]
    assert names == sorted(names) and len(names) > 60
    for entry in entries:
        assert re.search(r"\]\([\w/]+\.ipynb(#[\w-]+)?\)", entry), f"{entry[:20]}: no link to a notebook"
    for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
        assert anchor in headings(NBS / "glossary.ipynb"), anchor


def live_cells(path) -> list[int]:
    "The places of the cells that draw something that moves."
    return [i for i, cell in enumerate(cells(path)) if cell["cell_type"] == "code"
            and directives(cell)[:1] == ["output: false"]]


def test_five_lessons_have_something_that_moves():
    assert {*PROMISED} <= {page_of(path) for path in LESSONS if live_cells(path)}


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if live_cells(path)], ids=page_of)
def test_a_widget_has_a_picture_a_line_and_a_check(path):
    found = cells(path)
    code = [i for i, cell in enumerate(found) if cell["cell_type"] == "code"]
    for i in live_cells(path):
        pictures = [k for k in code if k < i and re.search(r"^draw_\w+\(\)$", found[k]["source"], re.M)
                    and any(d.startswith("fig-alt:") for d in directives(found[k]))]
        assert pictures, ("no picture before the live cell: a cell with fig-alt that calls draw_NAME() as it "
                          "stands")
        picture, after = pictures[-1], [k for k in code if k > i][:4]
        between = "\n".join(found[k]["source"] for k in range(picture + 1, i)
                            if found[k]["cell_type"] == "markdown")
        told = re.search(r"(?i)^\*.*\bin Jupyter or Colab.*\*$", between, re.M)
        everywhere = '" class="explorer"></div>' in between  # it moves on the site as well, without a kernel
        assert bool(told) != everywhere, "no line that says where it is live, or one though it is everywhere"
        checked = any(checks(found[k]["source"]) for k in after)
        assert checked, "nothing after the live cell asserts what it shows"
        name = re.search(r"^(draw_\w+)\(\)$", found[picture]["source"], re.M)[1]
        shown = [next(k for k in code if f"def {name}(" in found[k]["source"]),
                 *(k for k in code if picture <= k <= i)]
        text = "\n".join(found[k]["source"] for k in shown)
        live = found[i]["source"]
        quiet = live.rstrip().endswith(";") or isinstance(ast.parse(live).body[-1], ast.Assign)
        assert "widgets." in text and quiet, "it would print what it returns"
        if "Slider(" in text: assert "continuous_update=False" in text
        count = sum(1 for line in text.splitlines() if line.strip() and not line.startswith("#|"))
        assert count < 50, f"{name}: {count} lines"


@each_notebook
def test_stored_outputs_are_fit_for_a_page(path):
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    for cell in cells(path, "code"):
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        first = cell["source"][:80]
        assert WIDGET not in kinds, f"a stored widget: {first}"
        if kinds & {"image/png", "image/svg+xml", "image/jpeg"} and "hide" not in directives(cell):
            assert any(re.match(r'fig-alt: ".{15,}"$', d)
                       for d in directives(cell)), f"a figure without a description: {first}"
        lines = [line for line in cell["source"].splitlines() if line.strip()
                 and not line.startswith(("#|", "import ", "from "))]
        assert len(lines) <= 30, f"{len(lines)} lines: {first}"
    for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", prose(path)): assert alt.strip(), target


def spoilt(source: str) -> str:
    "A solution with its first number outside assertions one too large."
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.Assert): continue
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and type(part.value) in (int, float):
                part.value += 1
                return ast.unparse(tree)
    raise ValueError("no number to spoil")


def test_a_wrong_solution_fails_the_test_command(tmp_path):
    "The command that CI runs on every notebook fails on one with a wrong solution, and on nothing before it."
    path = NBS / "engine" / "checkpoint.ipynb"  # the quickest
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if 'code-summary: "Solution 1"' in "".join(cell["source"]))
    cell["source"] = spoilt("".join(cell["source"]))
    (tmp_path / "spoilt.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "nbdev_test"), "--path", str(tmp_path / "spoilt.ipynb"),
               "--n_workers", "1"]
    # it ends before it clears up
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
    said, line = run.stdout + run.stderr, re.search(r"^ *(assert .*)$", cell["source"], re.M)[1]
    assert run.returncode != 0 and "AssertionError" in said and line in said, said[-2000:]


@pytest.mark.parametrize("test, page", UNDER_WAY, ids=str)
def test_what_is_under_way_still_is(test, page):
    "What has been done since is taken from the list."
    with pytest.raises(AssertionError): globals()[test](NBS / f"{page}.ipynb")
