"""Build the site without Quarto, into _docs, and check it: python tools/site.py

nbdev prepares the notebooks, smalldocs renders the same _quarto.yml in pure Python.
Exit 1 names each page without title or summary, each broken link or image, each page that is too large or shows the environment, each stored error.
"""
import html
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1_500_000  # bytes of a page, its pictures included


class Page(HTMLParser):
    "The links, ids and pictures of one page."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.bare = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        for key in ("href", "src"):
            if attrs.get(key): self.links.append(attrs[key])
        if tag == "img" and not attrs.get("alt"): self.bare.append(attrs.get("src", "")[:60])


def problems(site: Path) -> list[str]:
    "What is wrong with a rendered site."
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if os.environ["PATH"] in html.unescape(path.read_text(encoding="utf-8")): found.append(f"{path.name}: shows this machine's environment, perhaps as the default of an argument")
        if (size := path.stat().st_size) > LIMIT: found.append(f"{path.name}: {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.1f}")
        found += [f"{path.name}: a picture without alt text: {src}" for src in page.bare]
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists(): found.append(f"{path.name}: broken link {link}")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids: found.append(f"{path.name}: no such place {link}")
    return found


def notebook_problems(folder: Path) -> list[str]:
    "Notebooks without title and summary, and stored errors."
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        if not re.fullmatch(r"# [^\n]+\n\n> [^\n]+\s*", title): found.append(f"{path.name}: the title cell is not a title and one quoted line")
        found += [f"{path.name}: a stored error" for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    return found


def build() -> Path:
    "Prepare with nbdev, render with smalldocs; the folder of the site."
    from nbdev.serve import proc_nbs
    from smalldocs.site import build as render
    proc = Path(proc_nbs(n_workers=1, force=True))
    for warning in render(proc, quiet=True).warnings: print(f"smalldocs: {warning}", file=sys.stderr)
    return proc / "_docs"


if __name__ == "__main__":
    site = build()
    found = problems(site) + notebook_problems(ROOT / "nbs")
    for line in found: print(line)
    print(f"{len(list(site.rglob('*.html')))} pages in {site.relative_to(ROOT)}, {len(found)} problems")
    sys.exit(1 if found else 0)
