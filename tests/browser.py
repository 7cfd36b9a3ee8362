"What the two browser tests share: Chromium through Playwright, kept away from every host but this one."
import importlib.util
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = (os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
            or shutil.which("google-chrome"))
HERE = ("localhost", "127.0.0.1", "")  # "": data: and blob:

NPM = Path(__file__).resolve().parent / "node_modules"  # npm install --ignore-scripts --prefix tests


def npm_file(name: str) -> Path:
    """A file of a package that tests/package.json names. Where it is missing, the test or module that asks is
    skipped; with $ALEXNET_NB_NPM, as in .ci/run, that is a failure."""
    if (NPM / name).is_file(): return NPM / name
    said = f"{name} is missing; npm install --ignore-scripts --prefix tests"
    if os.environ.get("ALEXNET_NB_NPM"): raise FileNotFoundError(said)
    pytest.skip(said, allow_module_level=True)


def needed() -> None:
    "Skips the module, in one line, where there is no browser to test in."
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no browser test: playwright is missing; pip install -e '.[dev]'",
                    allow_module_level=True)
    if not CHROMIUM:
        pytest.skip("no browser test: no Chromium; install it (Debian: apt-get install chromium) or set "
                    "CHROMIUM to its path", allow_module_level=True)


@contextmanager
def browser(*more: str):
    "A headless Chromium, with more arguments if wanted."
    from playwright.sync_api import sync_playwright
    args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, timeout=180_000, args=[*args, *more])
        yield chromium
        chromium.close()


@contextmanager
def tab(chromium, **options):
    """A page of its own, and the list of what goes wrong on it: errors on the console, exceptions, missing
    files. Other hosts are not reached and do not count."""
    context = chromium.new_context(**options)
    context.set_default_timeout(120_000)
    context.route("**/*", lambda route: route.continue_()
                  if urlsplit(route.request.url).hostname in (None, *HERE) else route.abort())
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error"
            and urlsplit(m.location.get("url", "")).hostname in (None, *HERE) else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    yield page, wrong
    context.close()
