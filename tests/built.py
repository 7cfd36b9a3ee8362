"The site that tests look at: built once for all of them, in whatever process they run, and served."
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = os.environ.get("ALEXNET_NB_SITE")  # a site that is there already, such as Quarto's
SITE = Path(ELSEWHERE).resolve() if ELSEWHERE else ROOT / "_proc" / "_docs"
sys.path.append(str(ROOT / "tools"))
from notebooks import NBS, all_modules, all_notebooks, below, name_of


def load_tool(name: str):
    "A tool as a module."
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


TOOL = load_tool("site")
PAGES = [name_of(path) for path in all_notebooks()]


def sources() -> list[Path]:
    "What the pages are made of."
    tools = [ROOT / "tools" / name for name in ("site.py", "pages.py", "notebooks.py")]
    plain = [path for ending in ("css", "scss", "js", "qmd", "html") for path in below(NBS, f"*.{ending}")]
    return [*all_notebooks(), *all_modules(), *plain, *tools, ROOT / "_quarto.yml", ROOT / "settings.ini"]


def is_fresh() -> bool:
    "Whether each page is there and no older than what it is made of."
    pages, newest = [SITE / f"{name}.html" for name in PAGES], max(p.stat().st_mtime for p in sources())
    return all(page.exists() and page.stat().st_mtime >= newest for page in pages)


def page_at(name: str) -> str:
    "The address of a notebook's page below the site's, whoever rendered it."
    return TOOL.file_of(SITE, name).relative_to(SITE).as_posix()


def build() -> Path:
    "The folder of the site. Tests in other processes wait for it."
    if ELSEWHERE: return SITE
    name = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    with FileLock(Path(tempfile.gettempdir()) / f"site-{name}.lock"):
        if not is_fresh():
            command = [sys.executable, ROOT / "tools/site.py"]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert is_fresh(), run.stdout[-3000:] + run.stderr[-3000:]  # what it finds wrong, tests judge
    return SITE


@contextmanager
def served(folder: Path):
    "The address of a folder, served on a free port."
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
