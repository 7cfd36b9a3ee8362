"""Two notebooks as a student meets them: JupyterLab in a real browser, Run All, a slider moved, a picture
uploaded."""
import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from browser import browser, needed, tab
from common import ROOT

needed()
from playwright.sync_api import TimeoutError

TOKEN = "a-token-for-this-test"
LONG = 600_000  # ms: Run All on two busy cores
CLASSES = "airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port, in a folder that holds copies of two notebooks and nothing else; every cell
    is kept in the page, in sight or not."""
    folder, private = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("jupyter")
    for name in ("02_lrn", "05_inference"): shutil.copy(ROOT / "nbs" / f"{name}.ipynb", folder)
    settings = private / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {  # JupyterLab draws inline
        "ALEXNET_NB_SMOKE": "1", "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(private / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(private), "JUPYTER_RUNTIME_DIR": str(private / "runtime")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               f"--port={port}", f"--IdentityProvider.token={TOKEN}",
               f"--ServerApp.root_dir={folder}", "--ServerApp.open_browser=False", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(private / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=5).read()
            except OSError:
                assert server.poll() is None, (private / "log").read_text()[-2000:]
                time.sleep(1)
            else: break
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope="module")
def chromium():
    with browser() as started: yield started


def run_all(page, address, name):
    """Open a notebook in a workspace of its own, choose Run, Run All Cells, and wait until every code cell
    has its number and none has failed."""
    page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}", wait_until="load",
              timeout=LONG)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=LONG)
    for _ in range(600):
        sessions = json.load(urllib.request.urlopen(f"{address}/api/sessions?token={TOKEN}", timeout=60))
        if any(s["path"] == f"{name}.ipynb" and s["kernel"]["execution_state"] == "idle"
               and s["kernel"]["connections"] for s in sessions):
            break
        page.wait_for_timeout(1000)
    begun = page.locator(".jp-Notebook .jp-InputPrompt").filter(has_text=re.compile(r"\[[*\d]"))
    for _ in range(5):  # a slow machine may show the menu before the page listens to its kernel
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try: begun.first.wait_for(timeout=60_000)
        except TimeoutError: page.keyboard.press("Escape")
        else: break
    page.wait_for_function("""() => {
        const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
        const code = cells.filter(c => c.querySelector('.jp-InputArea-editor')?.textContent.trim());
        const numbered = c => /\\[\\d+\\]/.test(c.querySelector('.jp-InputPrompt').textContent);
        return document.querySelector('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]')
            || code.length > 10 && code.every(numbered) }""", timeout=LONG, polling=1000)
    failed = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']")
    assert failed.count() == 0, failed.first.inner_text()[-1500:]


def pixels(image) -> np.ndarray:
    "The picture of an <img> that holds it as data, (H, W, 3)."
    data = base64.b64decode(image.get_attribute("src").split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def count_bars(picture: np.ndarray) -> int:
    """Rows of a horizontal bar chart: how often, going down just right of its axis, one meets something that
    is not white, be it the bar or the number written at its end."""
    black = (picture < 90).all(2)
    left = np.flatnonzero(black.mean(0) > 0.5)[0]  # the axis, from top to bottom
    top, *_, bottom = np.flatnonzero(black[:, left])
    inside = picture[top + 2:bottom - 3, left + 3:left + 60]
    filled = (inside < 225).any((1, 2))
    return int(filled[0]) + int((filled[1:] & ~filled[:-1]).sum())


def test_bars_are_counted():
    import matplotlib.pyplot as plt
    for n in (3, 10):
        fig, (_, ax) = plt.subplots(1, 2, figsize=(7.5, 3.2), layout="constrained")
        values = np.linspace(0, 1, n) ** 4
        ax.bar_label(ax.barh(range(n), values), [f"{v:.1%}" for v in values], padding=3, fontsize=8)
        ax.set(xlim=(0, 1.15))
        _.axis("off")
        data = io.BytesIO()
        fig.savefig(data, dpi=72)
        plt.close(fig)
        assert count_bars(np.asarray(Image.open(data).convert("RGB"))) == n


def test_a_slider_of_the_lrn_explorer_changes_the_picture(lab, chromium):
    with tab(chromium, viewport={"width": 1400, "height": 1000}) as (page, wrong):
        run_all(page, lab, "02_lrn")
        widget = page.locator(".widget-interact").first
        picture = widget.locator(".jp-OutputArea-output img").first
        picture.wait_for(timeout=LONG)
        before, readout = picture.get_attribute("src"), widget.locator(".widget-readout").first.inner_text()
        handle = widget.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        for _ in range(4): page.keyboard.press("ArrowRight")
        page.wait_for_function("([e, old]) => e.innerText !== old",
                               arg=[widget.locator(".widget-readout").first.element_handle(), readout],
                               timeout=LONG)
        page.wait_for_function("([w, old]) => { const i = w.querySelector('.jp-OutputArea-output img'); "
                               "return i && i.src !== old }",
                               arg=[widget.element_handle(), before], timeout=LONG)
        count = widget.locator(".jp-OutputArea-output img").count()
        assert count == 1, "one picture is drawn anew, not a second below it"
        assert not [w for w in wrong if "Error" in w and "favicon" not in w], wrong


def test_the_predictor_takes_a_picture_and_shows_ten_bars(lab, chromium, tmp_path):
    Image.new("RGB", (64, 48), (250, 0, 250)).save(tmp_path / "magenta.png")
    with tab(chromium, viewport={"width": 1400, "height": 1000}) as (page, wrong):
        run_all(page, lab, "05_inference")
        answer = page.locator(".predictor").first
        picture = answer.locator("img").first
        picture.wait_for(timeout=LONG)
        before = picture.get_attribute("src")
        with page.expect_file_chooser() as chooser:
            page.locator("button.jupyter-widgets", has_text="Upload").first.click()
        chooser.value.set_files(tmp_path / "magenta.png")
        page.wait_for_function("([w, old]) => { const i = w.querySelector('img'); "
                               "return i && i.src !== old }",
                               arg=[answer.element_handle(), before], timeout=LONG)
        shown = pixels(answer.locator("img").first)
        magenta = abs(shown.astype(int) - (250, 0, 250)).max(2) < 12
        assert magenta.mean() > 0.05, "the uploaded picture is not in the figure"
        assert count_bars(shown) == 10
        assert re.search(rf"^({CLASSES}) \d+\.\d%$", answer.inner_text(), re.M), answer.inner_text()
        assert page.locator("option", has_text="magenta.png").count() == 1
