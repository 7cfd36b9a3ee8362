"""Build the site and check it.

    python tools/site.py            without Quarto, into _proc/_docs: smalldocs renders the same _quarto.yml
    python tools/site.py --quarto   with Quarto, into _docs, as it is published

nbdev prepares the notebooks, by the processors of pages.py. Nothing else is written: `nbdev_docs` would also
make README.md anew, with links that are broken there, and leave index_files/ and nbs/nbdev.yml behind.
Exit 1 names each page without title or summary, each broken link or image, each page that is too large or
shows the environment, each stored error, each notebook without a page or missing from the sidebar.
A link to the public address of the site is followed to the page here.
"""
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from notebooks import NBS, ROOT, all_notebooks, name_of, read_cells

LIMIT = 1_500_000  # bytes of a page, its pictures included


CODE = ("code", "pre", "script", "style")


class Page(HTMLParser):
    "The links, ids and pictures of one page, and links of which the source can be read."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.bare, self.sources = [], set(), [], []
        self.code = 0  # how many code elements it is in
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.code += tag in CODE
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        for key in ("href", "src"):
            if attrs.get(key): self.links.append(attrs[key])
        if tag == "img" and not attrs.get("alt"): self.bare.append(attrs.get("src", "")[:60])

    def handle_endtag(self, tag): self.code -= tag in CODE

    def handle_data(self, data):
        if not self.code: self.sources += re.findall(r"\]\([\w./#-]+\)", data)


def public_address() -> str:
    "Where the site stands on the web, as _quarto.yml has it, without a slash at the end; empty if unsaid."
    match = re.search(r"^ *site-url: *(\S+)", (ROOT / "_quarto.yml").read_text(encoding="utf-8"), re.M)
    return match[1].strip("'\"").rstrip("/") if match else ""


def without_number(path: Path) -> str:
    "Quarto names the page of 02_lrn.ipynb after its module, lrn.html; here it is 02_lrn.html."
    return re.sub(r"^\d+[a-z]?_", "", path.name)


def file_of(site: Path, name: str) -> Path:
    "The page of a notebook, whoever rendered it: 02_lrn.html or lrn.html."
    page = site / f"{name}.html"
    return page if page.exists() else page.with_name(without_number(page))


def target_of(link: str, page: Path, site: Path, public: str) -> tuple[Path, str] | None:
    "The file and the place within it that a link on a page leads to; None if it leads away from the site."
    if public and (link == public or link.startswith(f"{public}/")):
        url = urlsplit(link.removeprefix(public).lstrip("/"))
        target = (site / unquote(url.path)).resolve()
    else:
        url = urlsplit(link)
        if url.scheme or url.netloc: return None
        target = (page.parent / unquote(url.path)).resolve() if url.path else page
    if target.is_dir(): target = target / "index.html"
    if not target.exists() and target.parent.is_dir():
        pages = sorted(target.parent.glob("*.html"))
        target = next((page for page in pages if without_number(page) == target.name), target)
    return target, unquote(url.fragment)


def problems(site: Path, public: str = "") -> list[str]:
    "What is wrong with a rendered site; pages are named by their path below it."
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name, size = path.relative_to(site).as_posix(), path.stat().st_size
        if os.environ["PATH"] in html.unescape(path.read_text(encoding="utf-8")):
            found.append(f"{name}: shows this machine's environment, perhaps as the default of an argument")
        if size > LIMIT: found.append(f"{name}: {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.1f}")
        found += [f"{name}: a picture without alt text: {src}" for src in page.bare]
        found += [f"{name}: shows the source of a link: {source}" for source in page.sources]
        for link in page.links:
            if (aim := target_of(link, path, site, public)) is None: continue
            target, place = aim
            if not target.exists(): found.append(f"{name}: broken link {link}")
            elif place and target in pages and place not in pages[target].ids:
                found.append(f"{name}: no such place {link}")
    return found


def notebook_problems(folder: Path) -> list[str]:
    "Notebooks without title and summary, and stored errors."
    found = []
    for path in all_notebooks(folder):
        name, cells = name_of(path, folder), read_cells(path)
        title = next(c["source"] for c in cells if c["cell_type"] == "markdown")
        if not re.fullmatch(r"# [^\n]+\n\n> [^\n]+\s*", title):
            found.append(f"{name}: the title cell is not a title and one quoted line")
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        found += [f"{name}: a stored error" for output in outputs if output["output_type"] == "error"]
    return found


def reading_order() -> list[str]:
    "The notebooks as the sidebar of _quarto.yml lists them, from first to last."
    text = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    sidebar = re.split(r"^\S", re.split(r"^  sidebar:", text, flags=re.M)[1], maxsplit=1, flags=re.M)[0]
    return re.findall(r"^ *(?:- )?(?:href: *)?([\w/-]+)\.ipynb *$", sidebar, re.M)


def missing_pages(site: Path) -> list[str]:
    "Notebooks without a page, or not named exactly once in the sidebar; sidebar entries without a notebook."
    names, order = [name_of(path) for path in all_notebooks()], reading_order()
    found = [f"{name}: no page was made" for name in names if not file_of(site, name).exists()]
    found += [f"{name}: {order.count(name)} times in the sidebar" for name in names if order.count(name) != 1]
    return found + [f"{name}: in the sidebar, and no such notebook" for name in sorted({*order} - {*names})]


def add_network(site: Path) -> None:
    "Put the network beside the page that runs it; docs.yaml does the same by the command."
    from alexnet_nb.engine.export import main
    if main([str(site / "site" / "alexnet.onnx"), "--compact", "--layers", "--force"]):
        print("site/alexnet.onnx: could not be made; the page try_it will not find it", file=sys.stderr)


def prepare() -> Path:
    "Prepare the notebooks with nbdev, definitions as pages.py has them; the folder they lie in."
    import nbdev.serve

    from pages import Pages
    nbdev.serve.FilterDefaults = Pages  # what nbdev.processors says to override: its class of processors
    return Path(nbdev.serve.proc_nbs(n_workers=1, force=True))


class Terms(HTMLParser):
    "The text below each h3 of a page, up to the next heading, by the anchor of the heading."
    def __init__(self, path: Path):
        super().__init__()
        self.found: dict[str, list[str]] = {}  # anchor: title, text
        self.sections: list[str | None] = []
        self.at, self.heading = None, False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section": self.sections.append(attrs.get("id"))
        if tag in ("h1", "h2", "h3", "h4"):
            section = self.sections[-1] if self.sections else None
            self.at = attrs.get("data-anchor-id") or attrs.get("id") or section if tag == "h3" else None
            self.heading = self.at is not None
            if self.at: self.found[self.at] = ["", ""]

    def handle_endtag(self, tag):
        if tag == "section" and self.sections: self.sections.pop()
        if tag == "h3": self.heading = False
        if tag == "main": self.at = None

    def handle_data(self, data):
        if self.at: self.found[self.at][0 if self.heading else 1] += data


SIGNS = {"times": "×", "cdot": "·", "le": "≤", "ge": "≥", "approx": "≈", "pm": "±", "to": "→", "in": "∈",
         "alpha": "α", "beta": "β", "epsilon": "ε", "lambda": "λ", "mu": "μ", "sigma": "σ", "Sigma": "Σ",
         "delta": "δ", "sum": "Σ", "prod": "Π", "partial": "∂", "dots": "…", "sqrt": "√", "infty": "∞",
         "quad": " ", "qquad": " ", "big": "", "Big": "",
         **{name: name for name in ("ln", "log", "exp", "max", "min", "tanh")}}


def without_tex(text: str) -> str:
    "Formulas in a list of search results, where nothing draws them: signs instead of commands."
    def known(formula: str) -> str:
        formula = re.sub(r"\\(?:tag|label)\{[^{}]*\}", "", formula)
        formula = re.sub(r"\\(?:text|mathrm|mathcal|mathbb|operatorname)\{([^{}]*)\}", r"\1", formula)
        formula = re.sub(r"\\[td]?frac *\{([^{}]*)\} *\{([^{}]*)\}", r"\1/\2", formula)
        formula = re.sub(r"\\[td]?frac *(\w) *(\w)", r"\1/\2", formula)
        return re.sub(rf"\\({'|'.join(SIGNS)})(?![a-zA-Z])", lambda m: SIGNS[m[1]], formula)
    def plain(match: re.Match) -> str:
        return re.sub(r"\\[a-zA-Z]+|[\\{}&]", "", known(match[1] or match[2])).strip()
    return known(re.sub(r"\\\((.*?)\\\)|\\\[(.*?)\\\]", plain, text, flags=re.S))


def refine_search(site: Path) -> None:
    """Quarto's search knows sections, all terms of the glossary's R as one, and formulas as TeX. Here a term
    and a function have an entry of their own, which a search for its name ranks first."""
    path = site / "search.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    known, pages = {entry["href"] for entry in entries}, {}
    for entry in entries:
        entry["text"] = without_tex(entry["text"])
        pages.setdefault(entry["href"].partition("#")[0], entry)
    for page, first in pages.items():
        for anchor, (title, text) in Terms(site / page).found.items():
            if (href := f"{page}#{anchor}") in known: continue
            words = without_tex(html.escape(" ".join(text.split()), quote=False))
            entries.append(first | {"objectID": href, "href": href, "section": title.strip(), "text": words})
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")


def without_web_fonts(site: Path) -> None:
    "The stand-in's themes ask another host for letters; it does not read site/theme.scss, which forbids it."
    for path in (site / "site_libs").rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        left = re.sub(r"@import\s+url\([\"']?https?://fonts\.[^)]*\)\s*;", "", text)  # its address has a ;
        if left != text: path.write_text(left, encoding="utf-8")


def publish() -> Path:
    "Prepare with nbdev, render with Quarto; the folder of the site, at the top of the repository."
    proc, docs = prepare(), ROOT / "_docs"
    subprocess.run(["quarto", "render", "--no-cache"], cwd=proc, check=True)
    refine_search(proc / "_docs")
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / "_docs", docs)
    return docs


def build() -> Path:
    "Prepare with nbdev, render with smalldocs; the folder of the site."
    from smalldocs.site import build as render
    proc = prepare()
    for warning in render(proc, quiet=True).warnings: print(f"smalldocs: {warning}", file=sys.stderr)
    add_network(proc / "_docs")
    without_web_fonts(proc / "_docs")
    refine_search(proc / "_docs")
    return proc / "_docs"


if __name__ == "__main__":
    site = publish() if sys.argv[1:] == ["--quarto"] else build()
    found = problems(site, public_address()) + notebook_problems(NBS) + missing_pages(site)
    for line in found: print(line)
    pages = len(list(site.rglob("*.html")))
    where = f"{pages} pages of {len(all_notebooks())} notebooks in {site.relative_to(ROOT)}"
    print(f"{where}, {len(found)} problems")
    sys.exit(1 if found else 0)
