"""Every page in a browser, both themes: axe-core, contrast, the console, three widths, what is fetched.

One tab looks at all pages, one after the other. The theme is switched and the window made narrower on the
spot, so that a page is loaded once. Formulas are left out: KaTeX is on another host.
"""
from urllib.parse import urlsplit

import pytest

from browser import HERE, needed, npm_file, tab
from built import PAGES, page_at

needed()
AXE = npm_file("axe-core/axe.min.js")
WIDTHS = (1400, 820, 390)
LIMIT = 1_500_000  # bytes of a page, with the pictures and scripts that are ours

# What a page may ask of other hosts: the beginnings of addresses, each with a version.
CDN = ("https://cdn.jsdelivr.net/npm/katex@0.16.11/", "https://cdn.jsdelivr.net/npm/onnxruntime-web@")

# Faults of the program that renders the pages here, not of the pages: the rule of axe-core, how the name of
# the element ends, and why. Quarto has other markup there.
NOT_OURS = {
    "role-img-alt": (".bi-github", "Quarto labels the link around the sign; the stand-in gives it a role"),
}

AXE_RUN = """async () => {
    // The contrast is computed below, many times faster; region is slow and never serious.
    const off = {'color-contrast': {enabled: false}, region: {enabled: false}};
    const found = await axe.run(document, {resultTypes: ['violations'], rules: off});
    return found.violations.filter(v => ['serious', 'critical'].includes(v.impact)).flatMap(v =>
        v.nodes.map(n => [v.id, n.target.join(' '), n.html.slice(0, 160)]))}"""

CONTRAST = """() => {
    const rgba = text => {
        const n = text.match(/[\\d.]+/g).map(Number);
        const [r, g, b] = text.startsWith('color(') ? n.slice(0, 3).map(v => 255 * v) : n;
        return [r, g, b, n[3] ?? 1];
    };
    const over = (a, b) => a.slice(0, 3).map((v, i) => v * a[3] + b[i] * (1 - a[3]));
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = c => {
        const [r, g, b] = c.map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const grounds = new Map();
    const ground = e => {  // the colour behind an element's text
        if (!e) return [255, 255, 255];
        if (grounds.has(e)) return grounds.get(e);
        const own = rgba(getComputedStyle(e).backgroundColor);
        const found = own[3] === 1 ? own.slice(0, 3) : over(own, ground(e.parentElement));
        grounds.set(e, found);
        return found;
    };
    const low = new Map(), seen = new Set();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const e = texts.currentNode.parentElement;
        if (seen.has(e) || !texts.currentNode.data.trim() || e.closest('script, style, svg')) continue;
        seen.add(e);
        if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const style = getComputedStyle(e), behind = ground(e);
        const [a, b] = [light(over(rgba(style.color), behind)), light(behind)].sort((x, y) => y - x);
        const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
        const needed = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5, ratio = (a + 0.05) / (b + 0.05);
        if (ratio < needed) low.set(`${style.color} on ${behind.map(Math.round)}: ${ratio.toFixed(2)}`,
            `${e.tagName}.${e.className} in ${e.parentElement.className}: ${e.textContent.slice(0, 60)}`);
    }
    return [...low];
}"""

# The width of the document does not tell: what sticks out may be cut off. What scrolls within itself may.
TOO_WIDE = """() => {
    const scrolls = e => e && e.tagName !== 'MAIN' &&
        (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const wide = [...document.querySelectorAll('main *')].filter(e =>
        !e.closest('[clip-path]') &&  // drawn outside its frame, and cut off there
        e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility() && !scrolls(e.parentElement));
    return [document.documentElement.scrollWidth, wide.map(e => e.outerHTML.slice(0, 120)).slice(0, 3)]; }"""


def look(page) -> dict:
    "What axe-core finds on the page that is open, too little contrast in both themes, and three widths."
    page.evaluate("document.querySelectorAll('.katex, .math').forEach(e => e.remove())")
    page.evaluate("document.querySelectorAll('main details').forEach(e => e.open = true)")
    found: dict = {"widths": {}}
    for theme in ("light", "dark"):
        found[theme] = page.evaluate(CONTRAST)
        page.locator(".quarto-color-scheme-toggle").first.evaluate("e => e.click()")
        page.wait_for_function("""dark => [document.documentElement, document.body].some(
            e => e.classList.contains('quarto-dark')) === dark""", arg=theme == "light")
        page.wait_for_timeout(100)  # what fades from one colour into the other has
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found["widths"][width] = page.evaluate(TOO_WIDE)
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.evaluate("document.querySelectorAll('pre code').forEach(e => e.textContent = e.textContent)")
    page.add_script_tag(path=str(AXE))  # last, on code without its thousands of coloured words
    return found | {"axe": page.evaluate(AXE_RUN)}


def visit(tab_of_pages, address: str, name: str) -> dict:
    "All that is to know of a page."
    page, wrong, asked, sizes = tab_of_pages
    wrong.clear(), asked.clear(), sizes.clear()
    page.goto(f"{address}/{page_at(name)}", wait_until="domcontentloaded")
    page.locator("details.on-this-page").wait_for(state="attached")  # nbs/site/page.js has run
    return look(page) | {"wrong": list(wrong), "asked": list(asked), "bytes": sum(sizes)}


@pytest.fixture(scope="module")
def pages(chromium):
    "A tab, what goes wrong in it, the addresses it asks for, and the sizes of what is ours."
    with tab(chromium, viewport={"width": WIDTHS[0], "height": 900}, color_scheme="light",
             reduced_motion="reduce") as (page, wrong):
        asked, sizes = [], []
        page.on("request", lambda request: asked.append(request.url))
        def weigh(response):
            if urlsplit(response.url).hostname in HERE and "/site_libs/" not in response.url:
                sizes.append(int(response.headers.get("content-length", 0)))
        page.on("response", weigh)
        yield page, wrong, asked, sizes


@pytest.fixture(scope="module")
def seen(address, pages):
    "What was found on each page."
    return {name: visit(pages, address, name) for name in PAGES}


def ours(finding: list[str]) -> bool:
    "Whether what axe-core found is a fault of the pages."
    rule, target, _ = finding
    return not (rule in NOT_OURS and target.endswith(NOT_OURS[rule][0]))


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name, seen): assert [f for f in seen[name]["axe"] if ours(f)] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_can_be_read(name, theme, seen): assert seen[name][theme] == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_goes_wrong(name, seen): assert seen[name]["wrong"] == []


@pytest.mark.parametrize("name", PAGES)
def test_no_page_scrolls_sideways(name, seen):
    for width, (needs, widest) in seen[name]["widths"].items():
        assert needs <= width and not widest, f"{needs} pixels wide on a screen of {width}: {widest}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_host_than_the_listed_ones(name, seen):
    local = ("data", "blob")
    foreign = {url for url in seen[name]["asked"]
               if urlsplit(url).hostname not in HERE and urlsplit(url).scheme not in local}
    assert not {url for url in foreign if not url.startswith(CDN)}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light(name, seen): assert 0 < seen[name]["bytes"] <= LIMIT
