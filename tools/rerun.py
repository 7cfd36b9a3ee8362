"""Run notebooks again, each as it is stored, and compare what comes out with what is stored.

    python tools/rerun.py --check                       every notebook
    python tools/rerun.py --check 02_lrn nbs/01_data.ipynb --jobs 2
    python tools/rerun.py --check --flags slow cuda     also the cells that carry one of these flags
    python tools/rerun.py --write 02_lrn                store the new outputs, cleaned as nbdev_clean cleans
    python tools/rerun.py --check --alone PYTHON        as Colab runs them: PYTHON's kernel, empty folders

Every notebook gets a fresh kernel and runs in its own folder, with this checkout's library. With `--alone`
each has an empty folder, and the library that PYTHON has installed. `--check` names each cell whose outputs
differ, with a short difference, and ends with 1. What is compared:

- what a cell prints, and its results as plain text, Markdown or HTML: exactly, without memory addresses,
  names of temporary folders and colours. Numbers with a decimal point may differ by one part in a thousand
  (TOLERANCE), as they do from one processor to the next; whole numbers may not;
- figures: their number, kind and alternative text, their size within a fiftieth, and how they look from afar,
  in a thumbnail of 32 by 32. Drawn by the same version of matplotlib, they may hardly differ there, so that a
  curve which has moved is seen; versions set letters differently, so between two versions only a figure of
  something else is seen.

Not compared: stderr (progress bars, warnings), widgets, and cells with a flag that was not asked for.
A cell whose output depends on the clock or the machine has a cell tag `varies: REASON`. It runs, and its
output is not compared. Of ten cells with outputs, all notebooks together, one may be so marked. A page that
trains or measures has more of them: at most one in three, or three.
A cell with the tag `cifar10` shows real pictures: where they are not at hand (alexnet_data_in), it runs and
is not compared. `--with-data` checks the notebooks that have such cells, and fails without the pictures.
Notebooks in NOT_YET only have to run, in the short form that tests use (ALEXNET_NB_SMOKE=1), unless --strict
is given. On a machine whose processor or libraries give other numbers, ALEXNET_NB_NOT_YET=all treats all of
them so, ALEXNET_NB_NOT_YET="02_lrn engine/run" these.
"""
import argparse
import atexit
import base64
import difflib
import io
import json
import math
import multiprocessing
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image, ImageChops

from notebooks import NBS, ROOT, all_notebooks, runs

TOLERANCE = 1e-3     # relative, for numbers with a decimal point
THUMBNAIL = 32       # pixels; figures are compared at this size
NEAR, FAR = 8, 40    # of 255: how much a place of the thumbnail may differ in one version, between versions
TIMEOUT = 400        # seconds a cell may take
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = "cifar10"   # the tag of a cell that shows real pictures

# Notebooks that only have to run, in the short form that tests use: none, but a machine may name some.
NOT_YET: set[str] = set()
OF_THE_CLONE = {"instructor"}  # counts the words of the other pages: stays beside them even with --alone


@dataclass
class Report:
    "What became of one notebook."
    name: str
    run: int = 0           # code cells that ran
    compared: int = 0      # of these, the ones whose outputs were compared
    varies: int = 0        # tagged as depending on clock or machine
    without: int = 0       # cells that show real pictures, where there are none
    with_outputs: int = 0  # cells with a stored output
    flagged: int = 0       # code cells that did not run
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)  # cells that raised
    wrong: list[str] = field(default_factory=list)   # outputs that differ, and tags that are not in order
    excused: bool = False  # in NOT_YET: it has to run, and is not compared

    @property
    def ok(self) -> bool: return not self.failed and not self.wrong

    def __str__(self) -> str:
        word = "FAILED" if not self.ok else "not yet" if self.excused else "ok"
        counts = f"{self.run} cells run, {self.compared} compared, {self.varies} vary, {self.flagged} flagged"
        if self.without: counts += f", {self.without} without their pictures"
        counts += f", {len(self.failed)} failed, {len(self.wrong)} wrong"
        lines = [f"  {self.name} {line}" for line in self.failed + self.wrong]
        return "\n".join([f"{word:8}{self.name}: {counts} ({self.seconds:.0f} s)", *lines])


# --- tags ---

def reason(cell: dict) -> str | None:
    "Why a cell's output varies; empty if the tag gives no reason, None if there is no such tag."
    for tag in cell["metadata"].get("tags", []):
        if re.match(r"varies\b", tag): return tag.removeprefix("varies").lstrip(" :").strip()
    return None


def allowed(cells_with_outputs: int) -> int:
    "How many cells of one notebook may vary: one in three, and three of a short one."
    return max(3, math.ceil(cells_with_outputs / 3))


def shows_pictures(cell: dict) -> bool: return PICTURES in cell["metadata"].get("tags", [])


def pictures_at_hand() -> bool:
    "Whether CIFAR-10 lies where the notebooks look for it."
    alone = os.environ.get("ALEXNET_NB_ALONE")
    return not alone and any((folder / "alexnet_data_in" / "train").is_dir() for folder in (ROOT, NBS))


def tag_problems(cells: list[dict]) -> list[str]:
    "Tags without a reason or without an output to excuse, and too many of them."
    found, varies = [], [(number, cell) for number, cell in enumerate(cells) if reason(cell) is not None]
    for number, cell in varies:
        where = label(number, cell)
        if not reason(cell): found.append(f"{where}: the tag `varies: ...` gives no reason")
        if not cell.get("outputs"): found.append(f"{where}: the tag `varies` stands on a cell without output")
    outputs = sum(bool(cell.get("outputs")) for cell in cells)
    if len(varies) > allowed(outputs):
        may = f"of {outputs} with outputs, {allowed(outputs)} may be"
        found.append(f"{len(varies)} cells are tagged `varies`; {may}")
    return found


def label(number: int, cell: dict) -> str:
    return f"[{number}] {cell.get('id', 'without id')}"


# --- comparing ---

NOISE = [
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),                          # colours of a terminal
    (re.compile(r"[^\n]*\r(?!\n)"), ""),                                 # what a carriage return overwrote
    (re.compile(r"(?: at)? 0x[0-9a-fA-F]{6,}\b"), ""),                   # memory addresses
    (re.compile(r"(?:/[\w.+-]+)*/tmp[a-z0-9_]{8}\b"), "<temporary>"),    # tempfile's folders
    (re.compile(r"ipykernel_\d+/\d+\.py"), "ipykernel.py"),
    (re.compile(r"[ \t]+$", re.M), ""),
]
# A number with a decimal point or an exponent, and the spaces that align it; no part of a name or a version.
NUMBER = re.compile(r" *(?<![\w.])[-+]?(?:\d[\d,_]*\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)(?!\d|\.\d)")


def normal(text: str) -> str:
    "Text without what changes from run to run."
    for pattern, instead in NOISE: text = pattern.sub(instead, text)
    return text.rstrip()


def same_text(a: str, b: str) -> bool:
    "Equal, but for TOLERANCE in numbers with a decimal point."
    a, b = normal(a), normal(b)
    if a == b: return True
    if NUMBER.split(a) != NUMBER.split(b): return False
    pairs = ((float(re.sub(r"[ ,_]", "", n)) for n in NUMBER.findall(text)) for text in (a, b))
    return all(math.isclose(x, y, rel_tol=TOLERANCE) for x, y in zip(*pairs, strict=True))


def thumbnail(data: str) -> tuple[tuple[int, int], str, Image.Image]:
    "Of a picture in base64: its size, the program that drew it, and how it looks from afar, on white."
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        whole = Image.new("RGBA", picture.size, "white")
        whole.alpha_composite(picture.convert("RGBA"))
        program = str(picture.info.get("Software", ""))
    return whole.size, program, whole.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)


def picture_difference(a: str, b: str) -> str:
    "In which way two pictures, in base64, differ; empty if they do not."
    if a.strip() == b.strip(): return ""
    (size_a, program_a, small_a), (size_b, program_b, small_b) = map(thumbnail, (a, b))
    if any(abs(x - y) > max(2, 0.02 * x) for x, y in zip(size_a, size_b, strict=True)):
        return f"{size_a[0]} x {size_a[1]} pixels are stored, {size_b[0]} x {size_b[1]} came out"
    apart = max(most for _, most in ImageChops.difference(small_a, small_b).getextrema())
    may = NEAR if program_a == program_b else FAR
    return f"it looks otherwise: somewhere {apart} of 255 apart, {may} are allowed" if apart > may else ""


def text_difference(a: str, b: str) -> str:
    "The first lines that differ."
    lines = list(difflib.unified_diff(normal(a).splitlines(), normal(b).splitlines(), lineterm="", n=0))[2:]
    lines = [line for line in lines if not line.startswith("@@")]
    def near(line: str, other: str) -> bool: return line[0] != other[0] and same_text(line[1:], other[1:])
    wrong = [line for line in lines if not any(near(line, other) for other in lines)]
    shown = [line[:160] for line in wrong[:8]] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
    return "\n".join(f"      {line}" for line in shown)


def reduced(outputs: list[dict]) -> tuple[str, list[dict]]:
    "What a cell printed on stdout, in one piece, and what it showed, without widgets."
    printed = (joined(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stdout")
    shown = [o for o in outputs if o["output_type"] != "stream" and WIDGET not in o.get("data", {})]
    return "".join(printed), shown


def joined(text) -> str:
    return text if isinstance(text, str) else "".join(text)


def differences(stored: list[dict], new: list[dict]) -> list[str]:
    "In which ways the outputs of a cell differ from those that are stored."
    (printed, shown), (printed_now, shown_now) = reduced(stored), reduced(new)
    found = []
    if not same_text(printed, printed_now):
        found.append(f"it prints otherwise\n{text_difference(printed, printed_now)}")
    kinds, kinds_now = ([sorted(o.get("data", {})) for o in outputs] for outputs in (shown, shown_now))
    if kinds != kinds_now:
        return found + [f"{kinds or 'no result'} is stored, {kinds_now or 'no result'} came out"]
    for was, now in zip(shown, shown_now, strict=True):
        for kind, a in was.get("data", {}).items():
            a, b = joined(a), joined(now["data"][kind])
            if kind.startswith("image/") and kind != "image/svg+xml":
                alt, alt_now = (o.get("metadata", {}).get(kind, {}).get("alt") for o in (was, now))
                if alt != alt_now: found.append(f"{kind}: its text {alt!r} is stored, {alt_now!r} came out")
                if why := picture_difference(a, b): found.append(f"{kind}: {why}")
            elif kind.startswith("text/") and not same_text(a, b):
                found.append(f"{kind} differs\n{text_difference(a, b)}")
    return found


# --- running ---

def use_kernel_of(python: str) -> None:
    "Let `python3` mean this Python's kernel, here and in the processes that follow."
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = json.dumps({"argv": argv, "display_name": "alone", "language": "python"})
    (folder / "kernels" / "python3" / "kernel.json").write_text(spec)
    os.environ |= {"JUPYTER_PATH": str(folder), "ALEXNET_NB_ALONE": python}


def environment(jobs: int = 1, smoke: bool = False) -> dict[str, str]:
    "Of a kernel: this checkout's library, figures inline, short only in a quick test, cores shared."
    left_out = ("MPLBACKEND", "ALEXNET_NB_SMOKE", "IN_TEST")
    env = {key: value for key, value in os.environ.items() if key not in left_out}
    if env.get("ALEXNET_NB_ALONE"): env.pop("PYTHONPATH", None)
    else: env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    if smoke: env["ALEXNET_NB_SMOKE"] = "1"
    if jobs > 1: env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return env


def look_every_second(channel) -> None:
    """Let a channel look for a reply again and again. zmq announces an arrival once, and a message that a
    widget makes nbclient send just then takes the announcement away: the reply would lie there unseen."""
    get = channel.get_msg

    async def get_msg(timeout: float | None = None):
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try: return await get(timeout=min(1.0, max(0.0, end - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= end: raise
    channel.get_msg = get_msg


def execute(path: Path, flags=(), jobs: int = 1, smoke: bool = False, again: bool = True
            ) -> tuple[nbformat.NotebookNode, list[int], str]:
    """The notebook with new outputs, the numbers of the cells that ran, and what went wrong. A kernel that
    does not answer within TIMEOUT is started once more, and a line says so."""
    notebook, ran, number, cell = nbformat.read(path, 4), [], 0, {}
    alone = os.environ.get("ALEXNET_NB_ALONE") and path.stem not in OF_THE_CLONE
    folder = tempfile.mkdtemp() if alone else str(path.resolve().parent)
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", record_timing=False,
                            extra_arguments=["--IPKernelApp.log_level=ERROR"],
                            resources={"metadata": {"path": folder}})
    try:
        with client.setup_kernel(env=environment(jobs, smoke)):
            look_every_second(client.kc.shell_channel)
            for number, cell in enumerate(notebook.cells):
                if not runs(cell, flags): continue
                client.execute_cell(cell, number)
                ran.append(number)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        if again and isinstance(e, CellTimeoutError):
            where = f"{short_name(path)} {label(number, cell)}"
            print(f"{where}: no answer in {TIMEOUT} s; once more", flush=True)
            return execute(path, flags, jobs, smoke, again=False)
        lines = normal(str(e)).strip().splitlines() or [type(e).__name__]
        return notebook, ran, f"{label(number, cell)} fails: {lines[-1][:300]}"
    finally:
        if alone: shutil.rmtree(folder, ignore_errors=True)
    return notebook, ran, ""


def examine(path: Path, flags=(), jobs: int = 1, excused: bool = False
            ) -> tuple[Report, nbformat.NotebookNode, list[int]]:
    "Run and compare; the report, the notebook with new outputs, the numbers of the cells that ran."
    began, stored = time.monotonic(), nbformat.read(path, 4)
    new, ran, failure = execute(path, flags, jobs, smoke=excused)
    report = Report(short_name(path), excused=excused, run=len(ran), failed=[failure] if failure else [])
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    report.flagged = sum(not runs(cell, flags) for cell in code)
    report.with_outputs = sum(bool(cell.outputs) for cell in code)
    report.varies = sum(reason(cell) is not None for cell in code)
    if not excused: report.wrong = tag_problems(stored.cells)
    for number in ran:
        was, now = stored.cells[number], new.cells[number]
        if excused or reason(was) is not None: continue
        if shows_pictures(was) and not pictures_at_hand():
            report.without += 1
            continue
        report.compared += 1
        report.wrong += [f"{label(number, was)}: {line}" for line in differences(was.outputs, now.outputs)]
    report.seconds = time.monotonic() - began
    return report, new, ran


def short_name(path: Path) -> str:
    "The path below nbs, or below its own folder if it lies elsewhere."
    path = path.resolve()
    return (path.relative_to(NBS) if path.is_relative_to(NBS) else Path(path.name)).with_suffix("").as_posix()


def store(path: Path, new: nbformat.NotebookNode, ran: list[int]) -> None:
    "Write the outputs of the cells that ran; those of the others, ids, sources and metadata stay."
    notebook = nbformat.read(path, 4)
    for number in ran:
        kept: list = []
        for output in new.cells[number].outputs:
            if WIDGET in output.get("data", {}) or output.get("name") == "stderr": continue
            if kept and output.output_type == "stream" == kept[-1].output_type: kept[-1].text += output.text
            else: kept.append(output)
        notebook.cells[number].outputs = kept
    nbformat.write(notebook, path)
    clean = Path(sys.executable).parent / "nbdev_clean"
    subprocess.run([clean, "--fname", path.resolve()], cwd=ROOT, check=True)


def not_yet(path: Path) -> bool:
    "Whether a notebook only has to run; $ALEXNET_NB_NOT_YET names more of them, or is `all`."
    more = os.environ.get("ALEXNET_NB_NOT_YET", "").split()
    return path.stem in NOT_YET or bool({"all", path.stem, short_name(path)} & {*more})


def one(path: Path, write: bool, flags: set[str], jobs: int, excused: bool) -> Report:
    "Check one notebook, or write it."
    report, new, ran = examine(path, flags, jobs, excused)
    if write:
        if not report.failed: store(path, new, ran)
        report.wrong = tag_problems(nbformat.read(path, 4).cells)
    return report


def rerun(paths: list[Path], write: bool = False, flags=(), jobs: int = 1, strict: bool = False):
    "Reports of all of them, each as soon as it and those before it are there."
    todo = [(path, write, set(flags), jobs, not (strict or write) and not_yet(path)) for path in paths]
    if jobs <= 1: yield from (one(*arguments) for arguments in todo)
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(one, *zip(*todo, strict=True))


def summary(reports: list[Report]) -> str:
    "The totals in a line."
    def add(key: str) -> int: return sum(getattr(report, key) for report in reports)
    excused, failed = add("excused"), sum(not report.ok for report in reports)
    return (f"{len(reports)} notebooks run again: {add('run')} cells, {add('compared')} of them compared, "
            f"{add('flagged')} with flags not run; {add('varies')} of {add('with_outputs')} outputs vary; "
            f"{excused} notebooks not yet compared; {failed} failed")


def find(names: list[str]) -> list[Path]:
    "Notebooks by path, or by name below nbs, with or without folder and .ipynb; all of them without names."
    if not names: return all_notebooks()
    known = {key: path for path in all_notebooks() for key in (path.stem, short_name(path))}
    found = []
    for name in names:
        path = Path(name).resolve() if Path(name).is_file() else known.get(name.removesuffix(".ipynb"))
        if path is None: raise SystemExit(f"no such notebook: {name}; there are {', '.join(sorted(known))}")
        found.append(path)
    return found


def main(argv: list[str] | None = None) -> int:
    "Check or write; 1 if anything is wrong."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare, change nothing")
    what.add_argument("--write", action="store_true", help="store the new outputs")
    parser.add_argument("notebooks", nargs="*", help="paths or names; all without")
    parser.add_argument("--jobs", type=int, default=1, help="so many notebooks at a time")
    parser.add_argument("--flags", nargs="*", default=[], help="also cells with one of these flags")
    parser.add_argument("--with-data", action="store_true", help="those that show CIFAR-10; it must be there")
    parser.add_argument("--alone", metavar="PYTHON", help="in empty folders, with this Python's kernel")
    parser.add_argument("--strict", action="store_true", help="compare those in NOT_YET too")
    asked = parser.parse_args(argv)
    paths, reports = find(asked.notebooks), []
    flags = {flag for text in asked.flags for flag in text.split()}
    if asked.alone: use_kernel_of(asked.alone)
    if asked.with_data:
        if not pictures_at_hand(): raise SystemExit("--with-data: no pictures in alexnet_data_in")
        def shows(cell): return shows_pictures(cell) and runs(cell, flags)
        paths = [p for p in paths if any(map(shows, nbformat.read(p, 4).cells))]
        if not paths: raise SystemExit("--with-data: none of these notebooks shows pictures")
    for report in rerun(paths, asked.write, flags, asked.jobs, asked.strict):
        print(report, flush=True)
        reports.append(report)
    print(summary(reports))
    varies, outputs = (sum(getattr(report, key) for report in reports) for key in ("varies", "with_outputs"))
    too_many = not asked.notebooks and varies * 10 > outputs
    if too_many: print("of all cells with outputs, more than one in ten is tagged `varies`")
    return 1 if too_many or any(not report.ok for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
