"The site as a reader meets it, in a real browser: wide and narrow, light and dark, searched, clicked."
import functools
import importlib.util
import os
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
sys.path.append(str(ROOT / "tools"))
from notebooks import NBS, all_notebooks, name_of, read_cells


def load_site_tool():
    spec = importlib.util.spec_from_file_location("site_tool", ROOT / "tools/site.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


TOOL = load_site_tool()
PAGES = [name_of(path) for path in all_notebooks()]
ORDER = TOOL.reading_order()  # as the sidebar has it
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address():
    "The site, built anew if a notebook is younger than it, and served on a free port."
    sources = [*all_notebooks(), NBS / "styles.css", ROOT / "_quarto.yml", ROOT / "tools/site.py"]
    pages = [SITE / f"{name}.html" for name in PAGES]
    newest = max(source.stat().st_mtime for source in sources)
    if not all(page.exists() and page.stat().st_mtime >= newest for page in pages):
        command = [sys.executable, ROOT / "tools/site.py"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        made = all(page.exists() and page.stat().st_mtime >= newest for page in pages)
        assert made, run.stdout[-3000:] + run.stderr[-3000:]  # what it finds wrong is judged below
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
        pictures = page.eval_on_selector_all(
            "img", "all => all.map(e => [e.alt, e.complete ? e.naturalWidth : 1, e.src.slice(0, 80)])")
        assert not [src for alt, _, src in pictures if not alt.strip()], "a picture without alt text"
        broken = [src for _, width, src in pictures if not width and "://127" in src]
        assert not broken, "a picture that does not load"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than 1400 pixels"
        page.set_viewport_size(NARROW)
        width, widest = page.evaluate("""() => [document.documentElement.scrollWidth,
            [...document.querySelectorAll('main *')]
                .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
                .map(e => e.outerHTML.slice(0, 120)).slice(0, 3)]""")
        assert width <= 390, f"{width} pixels wide on a screen of 390: {widest}"
        widgets = page.locator(".jupyter-widgets, [data-mime-type*='widget']")
        assert widgets.count() == 0, "a widget that cannot live here"
        assert not wrong


def test_links_and_places_resolve(address):
    assert TOOL.problems(SITE, TOOL.public_address()) == []
    assert TOOL.missing_pages(SITE) == []


@pytest.mark.parametrize("words, wanted", [
    ("LocalResponseNorm", "02_lrn"), ("overlapping pooling", "03_model"), ("receptive field", "glossary")])
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
        page.wait_for_function(
            "[document.documentElement, document.body].some(e => e.classList.contains('quarto-dark'))")
        assert brightness(page) < 80
        text = page.eval_on_selector("main p", "e => getComputedStyle(e).color")
        assert sum(map(float, re.findall(r"[\d.]+", text)[:3])) / 3 > 150, f"text of {text} on a dark page"
        picture = page.locator(".cell-output-display img").first
        assert brightness(page, ".cell-output-display img") > 200, "figures are drawn for a white ground"
        assert picture.is_visible()
        page.goto(f"{address}/02_lrn.html")
        assert brightness(page) < 80, "the choice was forgotten on the next page"
        page.locator(".quarto-color-scheme-toggle").first.click()
        page.wait_for_function(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v > 200)")
        assert not wrong


def test_a_reader_who_prefers_dark_gets_dark(address, chromium):
    with tab(chromium, viewport=NARROW, color_scheme="dark") as (page, wrong):
        page.goto(f"{address}/index.html")
        assert brightness(page) < 80 and not wrong


def folded_lessons() -> list[str]:
    "The first and the last page, in the order of the site, with both a question and a solution to unfold."
    texts = {name: "\n".join(cell["source"] for cell in read_cells(NBS / f"{name}.ipynb")) for name in ORDER}
    wanted = ("<summary><b>1.</b>", '#| code-summary: "Solution 1"')
    found = [name for name in ORDER if all(part in texts[name] for part in wanted)]
    assert len(found) > 1
    return [found[0], found[-1]]


@pytest.mark.parametrize("name", folded_lessons())
def test_answers_and_solutions_unfold(name, address, chromium):
    with tab(chromium, viewport=NARROW) as (page, wrong):
        page.goto(f"{address}/{name}.html")
        for summary in (r"^1\. ", r"^Solution 1$"):
            line = page.locator("summary", has_text=re.compile(summary))
            folded = page.locator("main details").filter(has=line)
            height = "e => e.getBoundingClientRect().height"
            before = folded.first.evaluate(height)
            folded.first.locator("summary").click()
            assert before < 120 and folded.first.evaluate(height) > before + 15
        assert not wrong


def test_one_can_read_on_from_the_first_page_to_the_last(address, chromium):
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/index.html")
        seen = ["index"]
        while (onward := page.locator(".nav-page-next a")).count():
            onward.first.click()
            page.wait_for_load_state()
            seen.append(page.url.split("#")[0].removeprefix(f"{address}/").removesuffix(".html"))
            assert len(seen) <= len(PAGES)
        assert seen == ORDER and sorted(ORDER) == PAGES and not wrong


def badge_links(name: str) -> tuple[list[str], list[str]]:
    "The notebooks that the badge line names before and after `Next:`, by their path below nbs."
    sources = [cell["source"] for cell in read_cells(NBS / f"{name}.ipynb")]
    line = next(source for source in sources if "Open in Colab" in source)
    before, _, after = line.partition("Next:")
    folder = NBS / Path(name).parent
    def follow(text: str) -> list[str]:
        links = re.findall(r"\]\(([\w./-]+\.ipynb)\)", text)
        return [name_of(Path(os.path.normpath(folder / link))) for link in links]
    return follow(before), follow(after)


def test_the_badge_line_leads_the_same_way():
    "Every notebook names the one before it and the one after it, in the order of the site."
    for name, after in zip(ORDER, [*ORDER[1:], ORDER[0]], strict=True):
        backward, onward = badge_links(name)
        assert onward == [after], f"{name}: its next is not {after}"
        if name != ORDER[0]: assert backward == [ORDER[ORDER.index(name) - 1]], f"{name}: after {backward}"


def test_an_equation_and_a_term_can_be_linked_to(address, chromium):
    "A link to an equation and one to the glossary bring their place into view."
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/02_lrn.html")
        for link in ("main a[href^='#eq-']", "main a[href*='glossary.html#']"):
            first = page.locator(link).first
            place = first.get_attribute("href").split("#")[1]
            first.click()
            page.wait_for_url(f"**#{place}")
            page.wait_for_function("""id => {
                const y = document.getElementById(id).getBoundingClientRect().top;
                return y > -5 && y < innerHeight }""", arg=place)
            page.goto(f"{address}/02_lrn.html")
        assert not wrong


def test_a_folded_drawing_shows_its_figure_and_a_folded_solution_hides_what_it_prints(address, chromium):
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/03_model.html")
        drawing = page.locator(".cell", has=page.locator("summary", has_text="ReLU, tanh and their slopes"))
        assert drawing.locator("img").first.is_visible() and not drawing.locator("pre").first.is_visible()
        solution = page.locator(".cell", has=page.locator("summary", has_text="Solution 1"))
        printed = solution.locator(".cell-output").first
        assert not printed.is_visible()
        solution.locator("summary").first.click()
        assert printed.is_visible() and not wrong


def test_the_network_is_drawn_in_the_colour_of_the_text(address, chromium):
    for scheme in ("light", "dark"):
        with tab(chromium, viewport=NARROW, color_scheme=scheme) as (page, wrong):
            page.goto(f"{address}/index.html")
            colour = "e => getComputedStyle(e)[e.tagName == 'text' ? 'fill' : 'color']"
            text = page.locator("main svg.volumes text").first
            assert text.evaluate(colour) == page.locator("main p").first.evaluate(colour)
            assert text.bounding_box()["height"] > 10, "letters that cannot be read on a telephone"
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not wrong
