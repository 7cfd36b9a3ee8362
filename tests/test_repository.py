"What is derived agrees with what it is derived from, and the site renders."
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_addresses_and_readme_agree_with_settings():
    run = subprocess.run([sys.executable, ROOT / "tools/sync.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_a_new_owner_reaches_every_address():
    sync = load_tool("sync")
    cfg = sync.settings() | {"user": "ada", "branch": "trunk"}
    for pattern in sync.ADDRESSED + ["README.md"]:
        for path in ROOT.glob(pattern):
            text = sync.address(path.read_text(encoding="utf-8"), cfg)
            assert "OWNER" not in text, path
            assert sync.address(text, sync.settings() | {"user": "OWNER"}) == path.read_text(encoding="utf-8"), path


def test_every_notebook_has_its_badge():
    sync = load_tool("sync")
    cfg = sync.settings()
    for path in (ROOT / "nbs").glob("*.ipynb"):
        address = f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/nbs/{path.name}"
        assert address in path.read_text(encoding="utf-8"), path


def test_site_renders_without_a_broken_link():
    run = subprocess.run([sys.executable, ROOT / "tools/site.py"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    site = load_tool("site")
    assert len(list((ROOT / "_proc/_docs").glob("*.html"))) >= len(list((ROOT / "nbs").glob("*.ipynb")))
    assert site.notebook_problems(ROOT / "nbs") == []


def test_the_site_check_can_fail(tmp_path):
    site = load_tool("site")
    (tmp_path / "a.html").write_text('<h1 id="x">A</h1><a href="b.html">b</a><a href="#y">y</a><a href="#x">x</a><img src="a.html">')
    assert len(site.problems(tmp_path)) == 3
