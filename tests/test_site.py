"The site as a reader meets it, in a real browser: wide and narrow, light and dark, searched and clicked through."
import functools
import importlib.util
import json
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser import browser, needed, tab

needed()
ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_proc" / "_docs"
PAGES = sorted(path.stem for path in (ROOT / "nbs").glob("*.ipynb"))
LESSONS = [name for name in PAGES if name[0].isdigit()]
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address():
    "The site, built anew if a notebook is younger than it, and served on a free port."
    sources = [*(ROOT / "nbs").glob("*.ipynb"), ROOT / "nbs/styles.css", ROOT / "_quarto.yml", ROOT / "tools/site.py"]
    pages = [SITE / f"{name}.html" for name in PAGES]
    if not all(page.exists() for page in pages) or min(page.stat().st_mtime for page in pages) < max(source.stat().st_mtime for source in sources):
        run = subprocess.run([sys.executable, ROOT / "tools/site.py"], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-3000:]
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    with browser() as started: yield started


def brightness(page, element="body") -> float:
    "Of an element's background, from 0 to 255."
    colour = page.eval_on_selector(element, "e => getComputedStyle(e).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_wide_and_narrow(name, address, chromium):
    assert (SITE / f"{name}.html").stat().st_size < 1_500_000
    with tab(chromium, viewport=WIDE, color_scheme="light") as (page, wrong):
        page.goto(f"{address}/{name}.html", wait_until="load")
        assert page.locator("h1").count() == 1 and page.title()
        pictures = page.eval_on_selector_all("img", "all => all.map(e => [e.alt, e.complete ? e.naturalWidth : 1, e.src.slice(0, 80)])")
        assert not [src for alt, _, src in pictures if not alt.strip()], "a picture without alt text"
        assert not [src for _, width, src in pictures if not width and "://127" in src], "a picture that does not load"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than 1400 pixels"
        page.set_viewport_size(NARROW)
        width, widest = page.evaluate("""() => [document.documentElement.scrollWidth,
            [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120)).slice(0, 3)]""")
        assert width <= 390, f"{width} pixels wide on a screen of 390: {widest}"
        assert page.locator(".jupyter-widgets, [data-mime-type*='widget']").count() == 0, "a widget that cannot live here"
        assert not wrong


def test_links_and_places_resolve(address):
    spec = importlib.util.spec_from_file_location("site_tool", ROOT / "tools/site.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.problems(SITE) == []


@pytest.mark.parametrize("words, wanted", [("LocalResponseNorm", "02_lrn"), ("overlapping pooling", "03_model"), ("receptive field", "glossary")])
def test_search_finds(words, wanted, address, chromium):
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/index.html")
        page.get_by_role("searchbox").first.press_sequentially(words, delay=20)
        found = page.locator(f".smalldocs-search-results a[href*='{wanted}.html']").first
        found.wait_for(state="visible")
        found.click()
        page.wait_for_url(f"**/{wanted}.html*")
        assert words.lower() in page.inner_text("main").lower() and not wrong


def test_the_theme_switch_works_and_is_kept(address, chromium):
    with tab(chromium, viewport=WIDE, color_scheme="light") as (page, wrong):
        page.goto(f"{address}/03_model.html")
        assert brightness(page) > 200
        page.locator(".quarto-color-scheme-toggle").first.click()
        page.wait_for_function("document.documentElement.classList.contains('quarto-dark') || document.body.classList.contains('quarto-dark')")
        assert brightness(page) < 80
        text = page.eval_on_selector("main p", "e => getComputedStyle(e).color")
        assert sum(map(float, re.findall(r"[\d.]+", text)[:3])) / 3 > 150, f"text of {text} on a dark page"
        picture = page.locator(".cell-output-display img").first
        assert brightness(page, ".cell-output-display img") > 200, "figures are drawn for a white ground"
        assert picture.is_visible()
        page.goto(f"{address}/02_lrn.html")
        assert brightness(page) < 80, "the choice was forgotten on the next page"
        page.locator(".quarto-color-scheme-toggle").first.click()
        page.wait_for_function("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v > 200)")
        assert not wrong


def test_a_reader_who_prefers_dark_gets_dark(address, chromium):
    with tab(chromium, viewport=NARROW, color_scheme="dark") as (page, wrong):
        page.goto(f"{address}/index.html")
        assert brightness(page) < 80 and not wrong


@pytest.mark.parametrize("name", LESSONS[:1] + LESSONS[-1:])
def test_answers_and_solutions_unfold(name, address, chromium):
    with tab(chromium, viewport=NARROW) as (page, wrong):
        page.goto(f"{address}/{name}.html")
        for summary in (r"^1\. ", r"^Solution 1$"):
            folded = page.locator("main details").filter(has=page.locator("summary", has_text=re.compile(summary)))
            height = lambda: folded.first.evaluate("e => e.getBoundingClientRect().height")
            before = height()
            folded.first.locator("summary").click()
            assert before < 120 and height() > before + 15
        assert not wrong


def test_one_can_read_on_from_the_first_page_to_the_last(address, chromium):
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/index.html")
        seen = ["index"]
        while (onward := page.locator(".nav-page-next a")).count():
            onward.first.click()
            page.wait_for_load_state()
            seen.append(page.url.split("/")[-1].removesuffix(".html"))
            assert len(seen) <= len(PAGES)
        assert seen == ["index", *LESSONS, "glossary", "instructor"] and not wrong


def test_the_badge_line_leads_the_same_way():
    "Every notebook names the one before it and the one after it, in the order of the site."
    order = ["index", *LESSONS, "glossary", "instructor"]
    for name, after in zip(order, [*order[1:], "index"]):
        cells = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        line = next("".join(cell["source"]) for cell in cells if "Open in Colab" in "".join(cell["source"]))
        assert f"({after}.ipynb)" in line.split("Next:")[-1], f"{name}: its next is not {after}"
        if name != "index": assert f"({order[order.index(name) - 1]}.ipynb)" in line.split("Previous:")[1].split("Next:")[0], name


def test_an_equation_and_a_term_can_be_linked_to(address, chromium):
    "A link to an equation and one to the glossary bring their place into view."
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/02_lrn.html")
        for link in ("main a[href^='#eq-']", "main a[href*='glossary.html#']"):
            first = page.locator(link).first
            place = first.get_attribute("href").split("#")[1]
            first.click()
            page.wait_for_url(f"**#{place}")
            page.wait_for_function("id => { const y = document.getElementById(id).getBoundingClientRect().top; return y > -5 && y < innerHeight }", arg=place)
            page.goto(f"{address}/02_lrn.html")
        assert not wrong
