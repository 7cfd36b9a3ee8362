"What is derived agrees with what it is derived from, and the site renders."
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from notebooks import NBS, all_modules, all_notebooks, name_of


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
    assert {*all_notebooks()} < {*sync.addressed()}
    for path in [*sync.addressed(), ROOT / "README.md"]:
        before = path.read_text(encoding="utf-8")
        text = sync.address(before, cfg)
        assert "OWNER" not in text, path
        assert sync.address(text, sync.settings() | {"user": "OWNER"}) == before, path


def test_a_notebook_that_moves_takes_its_badge_along():
    "Only the badge follows; another link to Colab, which a page may have, stays."
    sync = load_tool("sync")
    start = "https://colab.research.google.com/github/OWNER/alexnet_nb/blob/main/"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    text = f"[![Open in Colab]({image})]({start}nbs/kernels.ipynb) · [first]({start}nbs/00_start.ipynb)"
    moved = sync.badge(text, NBS / "engine" / "kernels.ipynb")
    assert moved == text.replace("nbs/kernels", "nbs/engine/kernels")
    assert sync.badge(text, ROOT / "CONTRIBUTING.md") == text


def test_the_list_of_notebooks_goes_to_any_depth_and_leaves_copies_out(tmp_path):
    for name in ("b", "a/deep/c", ".ipynb_checkpoints/b-checkpoint", "_proc/b", "a/_docs/c", "a/.hidden/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.ipynb").write_text("{}")
    assert [name_of(path, tmp_path) for path in all_notebooks(tmp_path)] == ["a/deep/c", "b"]


def test_no_notebook_or_module_that_git_knows_is_left_out_of_the_lists():
    "Every tool and CI step walks these lists: what they miss would go untested."
    command = ["git", "ls-files", "-z", "nbs", "alexnet_nb"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode: pytest.skip("not a clone")
    known = {ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).exists()}
    assert {path for path in known if path.suffix == ".ipynb"} <= {*all_notebooks()}
    modules = {path for path in known if path.suffix == ".py" and not path.name.startswith("_")}
    assert modules <= {*all_modules()} and len(modules) > 10


@pytest.mark.parametrize("path", all_notebooks(), ids=name_of)
def test_colab_opens_the_notebook_with_a_gpu_and_installs_the_library(path):
    "The badge, the line that installs and the metadata are those that settings.ini and Colab ask for."
    cfg, notebook = load_tool("sync").settings(), json.loads(path.read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in notebook["cells"]]
    repository = f"{cfg['user']}/{cfg['repo']}"
    address = f"https://colab.research.google.com/github/{repository}/blob/{cfg['branch']}/nbs/{{}}.ipynb"
    text = "\n".join(texts)
    assert re.findall(r"colab-badge\.svg\)\]\((https:[^)]*)\)", text) == [address.format(name_of(path))]
    links = re.findall(r"\]\((https://colab\.research\.google\.com/github/[^)]*)\)", text)
    assert {*links} <= {address.format(name_of(other)) for other in all_notebooks()}, "no such notebook"
    assert notebook["metadata"]["accelerator"] == "GPU" and notebook["metadata"]["colab"]["gpuType"] == "T4"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3" and "widgets" not in notebook["metadata"]
    code = [text for text, cell in zip(texts, notebook["cells"], strict=True) if cell["cell_type"] == "code"]
    first = next(text for text in code if not text.startswith("#| default_exp"))
    assert 'if "google.colab" in sys.modules and importlib.util.find_spec("alexnet_nb") is None:' in first
    assert f'"git+https://github.com/{repository}"' in first
    installing = [text for text in code if re.search(r"^\s*[%!]pip |run_line_magic", text, re.M)]
    assert installing == [first], "only the first cell may install"


@pytest.mark.parametrize("owner, wheel, does", [
    ("OWNER", False, "first put a wheel of alexnet_nb beside this notebook"),
    ("OWNER", True, "install -q --no-deps alexnet_nb-0.2-py3-none-any.whl"),
    ("ada", False, "install -q --no-deps git+https://github.com/ada/alexnet_nb")])
def test_the_first_cell_installs_a_wheel_or_from_the_repository(owner, wheel, does, tmp_path, monkeypatch,
                                                                capsys):
    "As Colab would run it: nothing is fetched from an address that is not there yet."
    sync = load_tool("sync")
    notebook = json.loads((ROOT / "nbs/02_lrn.ipynb").read_text(encoding="utf-8"))
    cell = next("".join(c["source"]) for c in notebook["cells"] if "google.colab" in "".join(c["source"]))
    if wheel: (tmp_path / "alexnet_nb-0.2-py3-none-any.whl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    class Magic:
        def run_line_magic(self, name, line):
            if name == "pip": print(line)
    exec(sync.address(cell, sync.settings() | {"user": owner}), {"get_ipython": Magic})
    assert capsys.readouterr().out.strip() == does


def test_site_renders_without_a_broken_link(site):
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {name_of(path) for path in all_notebooks()} <= pages
    tool = load_tool("site")
    assert tool.problems(site, tool.public_address()) == []
    assert tool.notebook_problems(NBS) + tool.missing_pages(site) == []


def test_the_site_check_can_fail(tmp_path):
    site = load_tool("site")
    page = tmp_path / "a.html"
    links = '<a href="b.html">b</a><a href="#y">y</a><a href="#x">x</a>'
    page.write_text(f'<h1 id="x">A</h1>{links}<img src="a.html">')
    assert len(site.problems(tmp_path)) == 3
    page.write_text("<h1>A</h1>" + " " * site.LIMIT)
    assert site.problems(tmp_path) == ["a.html: 1.5 MB, more than 1.5"]


def test_the_site_check_follows_links_between_folders(tmp_path):
    site = load_tool("site")
    (tmp_path / "engine").mkdir()
    (tmp_path / "02_lrn.html").write_text('<h1 id="alpha">A</h1><a href="engine/kernels.html#fast">b</a>')
    deep = tmp_path / "engine/kernels.html"
    deep.write_text('<h1 id="fast">B</h1><a href="../02_lrn.html#alpha">a</a>')
    assert site.problems(tmp_path) == []
    deep.write_text('<h1>B</h1><a href="02_lrn.html">a</a>')
    assert site.problems(tmp_path) == ["02_lrn.html: no such place engine/kernels.html#fast",
                                       "engine/kernels.html: broken link 02_lrn.html"]


def test_the_site_check_sees_the_source_of_a_link(tmp_path):
    "What is left of a link within a link; in code it may stand."
    site, page = load_tool("site"), tmp_path / "lrn.html"
    page.write_text("<h1>A</h1><p>What [<a href='lrn.html'>prepare</a>](../data.ipynb) does</p>")
    assert site.problems(tmp_path) == ["lrn.html: shows the source of a link: ](../data.ipynb)"]
    page.write_text("<h1>A</h1><pre><code>[prepare](../data.ipynb)</code></pre><p>d[k](x y)</p>")
    assert site.problems(tmp_path) == []


def test_the_site_check_follows_links_to_the_public_site(tmp_path):
    "As nbdev makes them from names in backticks: a page there is named after its module, without the number."
    site, public = load_tool("site"), "https://ada.github.io/alexnet_nb"
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/kernels.html").write_text("<h1>B</h1>")
    page = tmp_path / "02_lrn.html"
    links = [f"{public}/lrn.html#alpha", f"{public}/engine/kernels.html", public, f"{public}2/another.html"]
    page.write_text('<h1 id="alpha">A</h1>' + "".join(f'<a href="{link}">a</a>' for link in links))
    (tmp_path / "index.html").write_text("<h1>I</h1>")
    assert site.problems(tmp_path, public) == []
    page.write_text(f'<h1>A</h1><a href="{public}/lrn.html#alpha">a</a><a href="{public}/kernels.html">b</a>')
    assert site.problems(tmp_path, public) == [f"02_lrn.html: no such place {public}/lrn.html#alpha",
                                               f"02_lrn.html: broken link {public}/kernels.html"]


def test_the_citation_has_the_version():
    version = re.search(r"(?m)^version = (\S+)", (ROOT / "settings.ini").read_text())[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
