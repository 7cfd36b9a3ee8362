"The site as a reader meets it, in a real browser: wide and narrow, light and dark, searched, clicked."
import json
import os
import re
from pathlib import Path

import pytest

from browser import needed, tab
from built import NBS, PAGES, SITE, TOOL, name_of, page_at
from notebooks import read_cells

needed()
ORDER = TOOL.reading_order()  # as the sidebar has it
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


def brightness(page, element="body") -> float:
    "Of an element's background, from 0 to 255."
    colour = page.eval_on_selector(element, "e => getComputedStyle(e).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_wide_and_narrow(name, address, chromium):
    assert (SITE / page_at(name)).stat().st_size < 1_500_000
    with tab(chromium, viewport=WIDE, color_scheme="light") as (page, wrong):
        page.goto(f"{address}/{page_at(name)}", wait_until="load")
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


@pytest.mark.parametrize("words, wanted, first", [
    ("LocalResponseNorm", "02_lrn", False), ("overlapping pooling", "03_model", False),
    ("receptive field", "glossary", True), ("read_folder", "base/pictures", True)])
def test_search_finds(words, wanted, first, address, chromium):
    "A term and a function come first. The box stands in the bar, or opens over the page as Quarto's does."
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/index.html")
        opener = page.locator("#quarto-search button.aa-DetachedSearchButton")
        if opener.count(): opener.click()
        box = page.locator("input[type=search], .aa-Input").first
        box.press_sequentially(words, delay=20)
        results = page.locator(".smalldocs-search-results a, .aa-Panel a.search-result-link")
        there = f"[href*='{page_at(wanted)}']"
        found = (results.first if first else results).and_(page.locator(there)).first
        found.wait_for(state="visible")  # half a word finds others first
        found.click()
        page.wait_for_url(f"**/{page_at(wanted)}*")
        assert words.lower() in page.inner_text("main").lower() and not wrong


def test_the_theme_switch_works_and_is_kept(address, chromium):
    with tab(chromium, viewport=WIDE, color_scheme="light") as (page, wrong):
        page.goto(f"{address}/{page_at('03_model')}")
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
        page.goto(f"{address}/{page_at('02_lrn')}")
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
        page.goto(f"{address}/{page_at(name)}")
        for summary in (r"^1\. ", r"^Solution 1$"):
            line = page.locator("summary", has_text=re.compile(summary))
            folded = page.locator("main details").filter(has=line)
            height = "e => e.getBoundingClientRect().height"
            before = folded.first.evaluate(height)
            folded.first.locator("summary").click()
            assert before < 120 and folded.first.evaluate(height) > before + 15
        assert not wrong


def test_one_can_read_on_from_the_first_page_to_the_last(address, chromium):
    named = {page_at(name): name for name in PAGES}
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/index.html")
        seen = ["index"]
        while (onward := page.locator(".nav-page-next a")).count():
            onward.first.click()
            page.wait_for_load_state()
            seen.append(named[page.url.split("#")[0].removeprefix(f"{address}/")])
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
        page.goto(f"{address}/{page_at('02_lrn')}")
        for link in ("main a[href^='#eq-']", "main a[href*='glossary.html#']"):
            first = page.locator(link).first
            place = first.get_attribute("href").split("#")[1]
            first.click()
            page.wait_for_url(f"**#{place}")
            page.wait_for_function("""id => {
                const y = document.getElementById(id).getBoundingClientRect().top;
                return y > -5 && y < innerHeight }""", arg=place)
            page.goto(f"{address}/{page_at('02_lrn')}")
        assert not wrong


def test_links_lead_below_the_bar(address, chromium):
    "A section that is opened by its address stands in view, not behind the bar at the top."
    with tab(chromium, viewport=WIDE, reduced_motion="reduce") as (page, wrong):
        page.goto(f"{address}/{page_at('02_lrn')}#reference")
        page.wait_for_function("scrollY > 500")
        top, bar = page.evaluate("""() => [document.querySelector('#reference').getBoundingClientRect().top,
            document.querySelector('#quarto-header').getBoundingClientRect().bottom]""")
        assert bar <= top < 300 and not wrong


def test_a_phone_has_the_sections_of_the_page(address, chromium):
    with tab(chromium, viewport=NARROW, reduced_motion="reduce") as (page, wrong):
        page.goto(f"{address}/{page_at('04_train')}")
        folded = page.locator("details.on-this-page")
        folded.locator("summary").click()
        link = folded.get_by_role("link", name="Dropout", exact=True)
        assert link.is_visible() and folded.locator("[id]").count() == 0
        link.click()
        page.wait_for_function("""() => {
            const y = document.querySelector('#dropout').getBoundingClientRect().top;
            return y >= 0 && y < innerHeight }""")
        assert not link.is_visible() and not wrong
        page.set_viewport_size(WIDE)
        assert not folded.is_visible()


def test_only_this_page_is_marked_in_the_bar(address, chromium):
    "Quarto marks the first link that the sidebar has too, on every page."
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/{page_at('02_lrn')}")
        marked = page.evaluate("""async () => {
            const {markThisPage} = await import(new URL('site/page.js', location.href));
            const bar = document.querySelector('#quarto-header');
            const links = [...bar.querySelectorAll('a.nav-link[href]')];
            links[0].classList.add('active');
            links[0].setAttribute('aria-current', 'page');
            const active = () => links.filter(a => a.matches('.active, [aria-current]'))
                .map(a => a.innerText);
            markThisPage(bar, location.href);
            const none = active();
            markThisPage(bar, new URL('index.html', location.href).href);
            return [none, active()]; }""")
        assert marked == [[], ["Home"]] and not wrong


def test_a_figure_that_goes_on_fades_until_its_end_is_in_sight(address, chromium):
    "On a narrow screen only, and not where nothing is hidden."
    with tab(chromium, viewport={"width": 390, "height": 800}) as (page, wrong):
        page.goto(f"{address}/{page_at('03_model')}")
        wide = page.locator(".cell-output-display.goes-on:has(img)").first
        mask = "e => getComputedStyle(e).maskImage"
        assert wide.evaluate(mask) != "none"
        handle = wide.element_handle()
        handle.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
        page.wait_for_function("e => !e.classList.contains('goes-on')", arg=handle)
        assert handle.evaluate(mask) == "none"
        page.set_viewport_size(WIDE)
        page.wait_for_function("() => !document.querySelector('.cell-output-display.goes-on:has(img)')")
        assert not wrong


def test_no_line_ends_within_an_option(address, chromium):
    with tab(chromium, viewport={"width": 390, "height": 800}) as (page, wrong):
        page.goto(f"{address}/{page_at('commands')}")
        lines = page.eval_on_selector_all("code .option", "all => all.map(e => e.getClientRects().length)")
        assert len(lines) > 20 and set(lines) == {1}
        assert not wrong


def test_code_that_wraps_keeps_its_form(address, chromium):
    "Quarto has an element for each line of code: what is wrapped goes on further in, in the same spacing."
    lines = "".join(f'<span id="cb1-{i}"><a href="#cb1-{i}"></a>{"x" * 9}{" word" * n}</span>\n'
                    for i, n in enumerate((2, 60, 2)))
    with tab(chromium, viewport=WIDE) as (page, wrong):
        page.goto(f"{address}/index.html")
        tops, lefts = page.evaluate("""html => {
            const main = document.querySelector('main');
            main.insertAdjacentHTML('afterbegin', '<style>pre > code.sourceCode { white-space: pre; } ' +
                'pre > code.sourceCode > span { line-height: 1.25; }</style><div class="sourceCode">' +
                `<pre class="sourceCode"><code class="sourceCode python">${html}</code></pre></div>`);
            const boxes = [...main.querySelectorAll('span[id^=cb1-]')].flatMap(e => {
                const range = document.createRange(); range.selectNodeContents(e.lastChild);
                return [...range.getClientRects()] }).filter(r => r.width);
            const tops = [...new Set(boxes.map(b => b.top))];
            const leftmost = top => Math.min(...boxes.filter(b => b.top === top).map(b => b.left));
            return [tops, tops.map(leftmost)] }""", lines)
        steps = [b - a for a, b in zip(tops, tops[1:], strict=False)]
        assert len(steps) > 3 and max(steps) - min(steps) < 1.5, f"lines stand {steps} pixels apart"
        assert min(lefts[2:-1]) > lefts[0] + 20 and abs(lefts[0] - lefts[-1]) < 1


def test_a_page_that_is_missing_is_answered(address, chromium):
    with tab(chromium, viewport=WIDE) as (page, _):
        page.goto(f"{address}/404.html")
        assert "not found" in page.title().lower() and page.locator("main a").count() >= 3


def test_a_chapter_prints(address, chromium, tmp_path):
    "On paper the text alone: no bars, no buttons, nothing cut off at the side."
    with tab(chromium, viewport=WIDE, color_scheme="dark") as (page, _):
        page.goto(f"{address}/{page_at('02_lrn')}")
        page.emulate_media(media="print")
        for gone in ("#quarto-header", "#quarto-sidebar", "#TOC", ".code-copy-button"):
            assert not page.locator(gone).first.is_visible(), gone
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("""() => [...document.querySelectorAll('main :is(p, h2, pre, summary)')]
            .every(e => getComputedStyle(e).color === 'rgb(0, 0, 0)')""")
        page.set_viewport_size({"width": 673, "height": 980})  # A4 without its margins
        assert page.evaluate("document.documentElement.scrollWidth") <= 673
        assert len(page.pdf(format="A4")) > 100_000


def test_pages_are_found_with_and_without_numbers(tmp_path):
    "Quarto names the page of 02_lrn after its module."
    for name in ("lrn.html", "03_model.html", "model.html"): (tmp_path / name).touch()
    found = [TOOL.file_of(tmp_path, name).name for name in ("02_lrn", "03_model")]
    assert found == ["lrn.html", "03_model.html"]
    assert "02_lrn: no page was made" not in TOOL.missing_pages(tmp_path)
    assert "01_data: no page was made" in TOOL.missing_pages(tmp_path)


def test_the_search_knows_terms_and_no_tex(tmp_path):
    "What is done to Quarto's index: an entry for each h3, formulas that can be read."
    (tmp_path / "glossary.html").write_text(
        '<main><section id="r" class="level2"><h2>R</h2><section id="receptive-field" class="level3">'
        '<h3 class="anchored">Receptive field</h3><p>The pixels \\(r + \\alpha\\)</p></section></section>'
        '</main>')
    entry = {"objectID": "glossary.html#r", "href": "glossary.html#r", "title": "Glossary", "section": "R",
             "text": r"over \(\frac{a}{b} \times 2 \tag{1.1}\) pixels"}
    (tmp_path / "search.json").write_text(json.dumps([entry]))
    for _ in range(2):  # a second time changes nothing
        TOOL.refine_search(tmp_path)
        first, second = json.loads((tmp_path / "search.json").read_text())
    assert first["text"] == "over a/b × 2 pixels"
    assert (second["href"], second["section"]) == ("glossary.html#receptive-field", "Receptive field")
    assert second["text"] == "The pixels r + α"


def test_no_formula_is_shown_as_tex_in_the_search(address):
    texts = [entry["text"] for entry in json.loads((SITE / "search.json").read_text(encoding="utf-8"))]
    tex = re.compile(r"\\(frac|alpha|sum|tag|text)\b")
    assert len(texts) > 500 and not [text for text in texts if tex.search(text)]


def test_the_dark_theme_can_be_read_where_darkly_could_not(address, chromium):
    "Code in a sentence is not a white box, and what goes wide in a table has no rule longer than its rows."
    with tab(chromium, viewport=WIDE, color_scheme="dark") as (page, wrong):
        page.goto(f"{address}/{page_at('02_lrn')}")
        ground = page.eval_on_selector("main p code", "e => getComputedStyle(e).backgroundColor")
        *colour, alpha = [*map(float, re.findall(r"[\d.]+", ground)), 1.0][:4]
        assert sum(colour) / 3 * alpha < 60, f"{ground} behind light letters"
        sides = page.evaluate("""() => [...document.querySelectorAll('main table')].map(t =>
            [t.getBoundingClientRect().right, t.querySelector('tr').getBoundingClientRect().right])""")
        assert sides and all(table - row < 2 for table, row in sides) and not wrong


def test_buttons_do_not_cover_code(address, chromium):
    with tab(chromium, viewport=NARROW) as (page, wrong):
        page.goto(f"{address}/{page_at('02_lrn')}")
        covered = page.evaluate("""() => [...document.querySelectorAll('.code-copy-button')].filter(button =>
            { const pre = button.closest('div.sourceCode, .code-copy-outer-scaffold')?.querySelector('pre');
            if (!pre || !pre.checkVisibility()) return false;
            const b = button.getBoundingClientRect(), range = document.createRange();
            range.selectNodeContents(pre);
            return [...range.getClientRects()].some(r => r.right > b.left + 1 && r.left < b.right - 1
                && r.bottom > b.top + 1 && r.top < b.bottom - 1) }).length""")
        assert covered == 0 and not wrong


def test_every_page_has_the_card():
    "The picture that others show beside a link."
    for name in PAGES:
        text = (SITE / page_at(name)).read_text(encoding="utf-8")
        assert re.search(r'property="og:image" content="[^"]*images/card.png"', text), name


def test_a_command_in_a_sentence_breaks_on_a_phone(address, chromium):
    with tab(chromium, viewport=NARROW) as (page, wrong):
        page.goto(f"{address}/{page_at('claims/ablations')}")
        assert page.locator("main li", has_text="Command:").count()
        wide = page.evaluate("""() => [...document.querySelectorAll('main li > code')]
            .filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.innerText)""")
        assert not wide and not wrong


@pytest.mark.parametrize("kind", ["tag", "katex-tag"])
def test_the_number_of_an_equation_stands_beside_it(kind, address, chromium):
    "On a phone; KaTeX has called it by two names."
    with tab(chromium, viewport=NARROW) as (page, _):
        page.goto(f"{address}/index.html")
        place = page.evaluate("""kind => {
            document.querySelector('main').insertAdjacentHTML('afterbegin', '<span class="katex-display">' +
                '<span class="katex"><span class="katex-html"><span class="base">a</span>' +
                `<span class="${kind}" style="position: absolute">(2.1)</span></span></span></span>`);
            const tag = document.querySelector(`.${kind}`);
            tag.removeAttribute('style');
            document.styleSheets[0].insertRule(`.${kind} { position: absolute; right: 0; }`, 0);
            return getComputedStyle(tag).position }""", kind)
        assert place == "static"


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
