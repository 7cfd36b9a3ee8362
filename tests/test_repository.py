"What is derived agrees with what it is derived from, and the site renders."
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_colab_opens_the_notebook_with_a_gpu_and_installs_the_library(path):
    "The badge, the line that installs and the metadata are those that settings.ini and Colab ask for."
    cfg, notebook = load_tool("sync").settings(), json.loads(path.read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in notebook["cells"]]
    address = f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/nbs/{path.name}"
    assert re.findall(r"\]\((https://colab\.research\.google\.com/github/[^)]*)\)", "\n".join(texts)) == [address]
    assert notebook["metadata"]["accelerator"] == "GPU" and notebook["metadata"]["colab"]["gpuType"] == "T4"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3" and "widgets" not in notebook["metadata"]
    code = [text for text, cell in zip(texts, notebook["cells"]) if cell["cell_type"] == "code"]
    first = next(text for text in code if not text.startswith("#| default_exp"))
    assert 'if "google.colab" in sys.modules and importlib.util.find_spec("alexnet_nb") is None:' in first
    assert re.findall(r"%pip install (.*)", first) == [f"-q --no-deps git+https://github.com/{cfg['user']}/{cfg['repo']}"]
    assert not [text for text in code if text != first and re.search(r"^\s*[%!]pip ", text, re.M)], "only the first cell may install"


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
    (tmp_path / "a.html").write_text("<h1>A</h1>" + " " * site.LIMIT)
    assert site.problems(tmp_path) == ["a.html: 1.5 MB, more than 1.5"]
