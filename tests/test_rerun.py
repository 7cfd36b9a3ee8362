"The check that stored outputs are what the cells give: it passes what is right, and names what is not."
import asyncio
import base64
import io
import os
import queue
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import rerun
from notebooks import all_notebooks, name_of


def stream(text: str, name: str = "stdout") -> dict:
    return v4.new_output("stream", name=name, text=text)


def result(text: str, kind: str = "text/plain") -> dict:
    return v4.new_output("execute_result", data={kind: text})


def picture(colour: str, size=(64, 48), program: str = "") -> str:
    "A PNG of one colour in base64, with the name of the program that drew it."
    info = PngImagePlugin.PngInfo()
    if program: info.add_text("Software", program)
    Image.new("RGB", size, colour).save(file := io.BytesIO(), "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()


def figure(*args, **kwargs) -> dict:
    data = {"image/png": picture(*args, **kwargs), "text/plain": "<Figure>"}
    return v4.new_output("display_data", data=data)


def tiny(folder: Path, *cells, tags=None) -> Path:
    "A notebook of (source, stored text) pairs, where a text of None means no output; tags by number."
    notebook = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3"}})
    for number, (source, text) in enumerate(cells):
        cell = v4.new_code_cell(source, id=f"{number:08x}", outputs=[] if text is None else [stream(text)])
        if tags and number in tags: cell.metadata["tags"] = tags[number]
        notebook.cells.append(cell)
    nbformat.write(notebook, folder / "tiny.ipynb")
    return folder / "tiny.ipynb"


RIGHT = [("import time, sys", None), ("print('six', 2 * 3)", "six 6\n"), ("print(1 / 3)", "0.33333\n")]
CLOCK = ("print(time.time())", "12.5\n")


def check(path: Path, capsys, *more: str) -> tuple[int, str]:
    "What the command ends with and says."
    return rerun.main(["--check", str(path), *more]), capsys.readouterr().out


def test_right_outputs_pass(tmp_path, capsys):
    before = tiny(tmp_path, *RIGHT, ("print('noise', file=sys.stderr)", None)).read_bytes()
    code, said = check(tmp_path / "tiny.ipynb", capsys)
    assert code == 0 and "ok" in said and "4 cells run, 4 compared" in said, said
    assert (tmp_path / "tiny.ipynb").read_bytes() == before


def test_a_planted_wrong_output_fails_and_is_named(tmp_path, capsys):
    code, said = check(tiny(tmp_path, *RIGHT, ("print(2 + 2)", "5\n")), capsys)
    assert code == 1 and "tiny [3] 00000003: it prints otherwise" in said, said
    assert "-5" in said and "+4" in said and "00000001" not in said


def test_an_output_that_is_not_stored_fails(tmp_path, capsys):
    code, said = check(tiny(tmp_path, ("6 * 7", None)), capsys)
    assert code == 1 and "00000000: no result is stored, [['text/plain']] came out" in said, said


def test_what_varies_passes_with_a_reason_and_not_without(tmp_path, capsys):
    assert check(tiny(tmp_path, *RIGHT, CLOCK), capsys)[0] == 1
    code, said = check(tiny(tmp_path, *RIGHT, CLOCK, tags={3: ["varies: it reads the clock"]}), capsys)
    assert code == 0 and "3 compared, 1 vary" in said, said
    code, said = check(tiny(tmp_path, *RIGHT, CLOCK, tags={3: ["varies:"]}), capsys)
    assert code == 1 and "00000003: the tag `varies: ...` gives no reason" in said, said


def test_of_all_notebooks_together_one_cell_in_ten_may_vary(tmp_path, capsys, monkeypatch):
    "Begun tens count for a single notebook only."
    path = tiny(tmp_path, *RIGHT, CLOCK, tags={3: ["varies: it reads the clock"]})
    monkeypatch.setattr(rerun, "all_notebooks", lambda: [path])
    assert rerun.main(["--check"]) == 1 and "more than one in ten is tagged" in capsys.readouterr().out


def test_too_many_that_vary_fail(tmp_path, capsys):
    tags = {number: ["varies: it reads the clock"] for number in range(3, 7)}
    code, said = check(tiny(tmp_path, *RIGHT, *[CLOCK] * 4, tags=tags), capsys)
    assert code == 1 and "4 cells are tagged `varies`; of 6 with outputs, 3 may be" in said, said


def test_pictures_are_compared_where_they_are(tmp_path, capsys, monkeypatch):
    path = tiny(tmp_path, ("print(1)", "2\n"), ("print(3)", "3\n"), tags={0: ["cifar10"]})
    monkeypatch.setattr(rerun, "pictures_at_hand", lambda: False)
    code, said = check(path, capsys)
    assert code == 0 and "1 compared" in said and "1 without their pictures" in said, said
    with pytest.raises(SystemExit, match="no pictures"): check(path, capsys, "--with-data")
    monkeypatch.setattr(rerun, "pictures_at_hand", lambda: True)
    assert check(path, capsys, "--with-data")[0] == 1 == check(path, capsys)[0]


@pytest.mark.parametrize("tag", ["varies", "varies:", "varies: "])
def test_a_tag_without_a_reason_fails(tag):
    cell = v4.new_code_cell("1", id="abc", outputs=[stream("1")], metadata={"tags": [tag]})
    assert rerun.tag_problems([cell]) == ["[0] abc: the tag `varies: ...` gives no reason"]


def test_a_tag_on_a_cell_that_shows_nothing_fails():
    cell = v4.new_code_cell("1", id="abc", metadata={"tags": ["varies: the clock"]})
    assert "[0] abc: the tag `varies` stands on a cell without output" in rerun.tag_problems([cell])


def test_other_tags_are_nobodys_business():
    assert rerun.reason(v4.new_code_cell("1", metadata={"tags": ["hide-input", "variesque"]})) is None


def test_an_error_fails_even_a_notebook_that_is_excused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rerun, "NOT_YET", {"tiny"})
    smoke = "import os\nprint(os.environ.get('ALEXNET_NB_SMOKE'))"
    quick = "import os\nassert os.environ['ALEXNET_NB_SMOKE']"
    code, said = check(tiny(tmp_path, ("print(1)", "2\n"), (quick, None)), capsys)
    assert code == 0 and said.startswith("not yet") and "2 cells run, 0 compared" in said, said
    code, said = check(tiny(tmp_path, ("print(1)", "2\n"), (smoke, "None\n")), capsys, "--strict")
    assert code == 1 and "00000000: it prints otherwise" in said and "00000001" not in said, said
    assert not rerun.not_yet(Path("other.ipynb"))
    monkeypatch.setenv("ALEXNET_NB_NOT_YET", "some other")
    assert rerun.not_yet(Path("other.ipynb")) and not rerun.not_yet(Path("third.ipynb"))
    code, said = check(tiny(tmp_path, ("print(1)", "1\n"), ("1 / 0", None)), capsys)
    assert code == 1 and "00000001 fails: ZeroDivisionError" in said, said


def test_cells_with_flags_run_only_when_asked_for(tmp_path, capsys):
    path = tiny(tmp_path, ("#| slow\nprint(1)", "2\n"), ("#| eval: false\n1 / 0", None), ("print(3)", "3\n"))
    code, said = check(path, capsys)
    assert code == 0 and "1 cells run" in said and "2 flagged" in said, said
    code, said = check(path, capsys, "--flags", "slow")
    assert code == 1 and "00000000" in said, said


def test_writing_stores_what_came_out_and_keeps_the_rest(tmp_path, capsys):
    cells = [("print(1)\nprint(2)", "5\n"), ("#| slow\nprint(1)", "kept\n"), ("print('a', 1 / 3)", None)]
    path = tiny(tmp_path, *cells, tags={2: ["varies: to see that tags stay"]})
    before = nbformat.read(path, 4)
    assert rerun.main(["--write", str(path)]) == 0
    after = nbformat.read(path, 4)
    def strip(nb): return [(cell.id, cell.source, cell.metadata) for cell in nb.cells]
    assert strip(before) == strip(after)
    assert [["".join(o.text) for o in cell.outputs] for cell in after.cells] == [
        ["1\n2\n"], ["kept\n"], ["a 0.3333333333333333\n"]]
    assert all(cell.execution_count is None for cell in after.cells)
    assert check(path, capsys)[0] == 0


SAME = [
    ("loss 0.66700", "loss 0.66733"), ("1.2345e-04 ok", "1.2346e-04 ok"), ("a\n", "a"),
    ("  9.9999 s", " 10.0001 s"),
    ("<object at 0x7f12ab34cd>", "<object at 0x7faaaaaaaa>"), ("\x1b[31mred\x1b[0m", "red"),
    ("10 %\r100 %", "100 %"),
    ("in /tmp/tmpab12cd34/x", "in /tmp/tmpzz99_y12/x"), ("1,234.5", "1,234.6"), ("step 3.", "step 3."),
]
OTHER = [
    ("loss 0.667", "loss 0.669"), ("1000000 steps", "1000001 steps"), ("version 2.14.1", "version 2.14.2"),
    ("a", "b"), ("1.0", "-1.0"), ("1.0", "1"), ("step 3.", "step 4."),
    ("conv1.5x", "conv2.5x"), ("a  b", "a b"),
    ("1.0 2.0", "1.0"), ("2026.01", "2026.12.01"),
]


@pytest.mark.parametrize("a, b", SAME)
def test_texts_that_are_the_same(a, b):
    assert rerun.same_text(a, b) and rerun.same_text(b, a)


@pytest.mark.parametrize("a, b", OTHER)
def test_texts_that_are_not(a, b):
    assert not rerun.same_text(a, b) and not rerun.same_text(b, a)


def test_streams_are_compared_in_one_piece_and_without_stderr():
    pieces = [stream("a\n"), stream("50 %", "stderr"), stream("b\n")]
    assert rerun.differences([stream("a\nb\n")], pieces) == []
    assert rerun.differences([stream("a\nc\n")], pieces) != []


@pytest.mark.parametrize("kind", ["text/plain", "text/markdown", "text/html"])
def test_results_are_compared(kind):
    assert rerun.differences([result("**1**", kind)], [result("**1**", kind)]) == []
    found = rerun.differences([result("**1**", kind)], [result("**2**", kind)])
    assert len(found) == 1 and found[0].startswith(f"{kind} differs")


def test_figures_are_compared_by_size_and_from_afar():
    white = figure("white")
    assert rerun.differences([white], [figure("white")]) == []
    assert "looks otherwise" in rerun.differences([white], [figure("black")])[0]
    taller = figure("white", (64, 80))
    assert "64 x 48 pixels are stored, 64 x 80 came out" in rerun.differences([white], [taller])[0]
    assert "is stored" in rerun.differences([white], [result("1")])[0]
    def drawn(colour, version): return figure(colour, program=f"Matplotlib version{version}")
    assert rerun.differences([drawn("#ffffff", 3)], [drawn("#e6e6e6", 4)]) == [], "versions set letters apart"
    assert rerun.differences([drawn("#ffffff", 3)], [drawn("#e6e6e6", 3)]), "the same one does not"


def test_a_curve_that_moved_is_seen():
    plt = pytest.importorskip("matplotlib.pyplot")
    def drawn(height):
        fig, ax = plt.subplots(figsize=(6, 3))
        ax.plot([0, 1, 2], [0, height, 3])
        fig.savefig(file := io.BytesIO(), format="png", bbox_inches="tight")
        plt.close(fig)
        return base64.b64encode(file.getvalue()).decode()
    assert rerun.picture_difference(drawn(1), drawn(1)) == ""
    assert "looks otherwise" in rerun.picture_difference(drawn(1), drawn(1.3))


def test_notebooks_are_found_by_name_and_by_path():
    some = all_notebooks()[0]
    for name in (name_of(some), f"{some.stem}.ipynb", str(some)): assert rerun.find([name]) == [some]
    assert rerun.find([]) == all_notebooks()
    with pytest.raises(SystemExit, match="no such notebook: nowhere"): rerun.find(["nowhere"])


def test_a_kernel_that_does_not_answer_is_started_once_more(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rerun, "TIMEOUT", 3)
    once = f"import pathlib, time\nmark = pathlib.Path({str(tmp_path / 'mark')!r})\nif not mark.exists():\n" \
           "    mark.touch()\n    time.sleep(60)"
    code, said = check(tiny(tmp_path, (once, None), ("print(3)", "3\n")), capsys)
    assert code == 0 and "no answer in 3 s; once more" in said and "2 compared" in said, said
    code, said = check(tiny(tmp_path, ("import time\ntime.sleep(60)", None)), capsys)
    assert code == 1 and "00000000 fails" in said, said


def test_a_reply_that_was_not_announced_is_found():
    class Channel:
        asked: list = []

        async def get_msg(self, timeout):
            self.asked.append(timeout)
            if len(self.asked) < 3: raise queue.Empty
            return "reply"

    rerun.look_every_second(channel := Channel())
    assert asyncio.run(channel.get_msg(timeout=60)) == "reply" and channel.asked == [1.0] * 3
    channel.asked.clear()
    with pytest.raises(queue.Empty): asyncio.run(channel.get_msg(timeout=0))


def test_alone_is_in_an_empty_folder_with_what_that_python_has(tmp_path):
    where = "import os\nprint(os.listdir(), os.environ.get('PYTHONPATH'))"
    path = tiny(tmp_path, (where, "[] None\n"))
    command = [sys.executable, str(ROOT / "tools" / "rerun.py"), "--check", str(path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([*command, "--alone", sys.executable], env=env, capture_output=True, text=True)
    assert run.returncode == 0 and "1 compared" in run.stdout, run.stdout + run.stderr
    assert subprocess.run(command, env=env, capture_output=True).returncode == 1
