"""Derive from settings.ini and nbs/index.ipynb what repeats them: addresses, CITATION's version, README.md.

    python tools/sync.py            write
    python tools/sync.py --check    write nothing, name what disagrees, exit 1 if anything does
"""
import argparse
import base64
import html
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from notebooks import ROOT, all_notebooks

# Files that hold addresses; of the first, those that tools/notebooks.py lists.
ADDRESSED = ["nbs/**/*.ipynb", "_quarto.yml", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md",
             ".github/workflows/*.y*ml"]
SVG_COLOURS = "<style>svg {color: #1f2328} @media (prefers-color-scheme: dark) {svg {color: #d1d7e0}}</style>"
COLAB = r"colab\.research\.google\.com/github"
BADGE = re.compile(rf"(colab-badge\.svg\)\]\(https://{COLAB}/[^/]+/[^/]+/blob/[^/]+/)[^)]*")


def addressed() -> list[Path]:
    "The files that hold addresses, sorted, without copies and built pages."
    listed = {*all_notebooks()}
    found = {path for pattern in ADDRESSED for path in ROOT.glob(pattern)}
    return sorted(path for path in found if path.suffix != ".ipynb" or path in listed)


def settings() -> dict:
    "settings.ini, interpolated."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(ini["DEFAULT"])


def address(text: str, cfg: dict) -> str:
    "The text with every address of the repository and its site as settings.ini has it."
    user, repo, branch = cfg["user"], cfg["repo"], cfg["branch"]
    text = re.sub(rf"({COLAB})/[\w.-]+/{repo}/blob/[\w.-]+/", rf"\1/{user}/{repo}/blob/{branch}/", text)
    text = re.sub(rf"github\.com/[\w.-]+/{repo}\b", f"github.com/{user}/{repo}", text)
    text = re.sub(rf"[\w-]+\.github\.io/{repo}\b", f"{user}.github.io/{repo}", text)
    return re.sub(r"(repo-branch:) \S+", rf"\1 {branch}", text)


def badge(text: str, path: Path) -> str:
    "A notebook's text with its badge leading to itself, whichever folder it lies in."
    if path.suffix != ".ipynb": return text
    return BADGE.sub(rf"\g<1>{path.relative_to(ROOT).as_posix()}", text)


def shown(cell: dict) -> tuple[str, list[str]]:
    "A cell's source without its directives, and the directives."
    lines = "".join(cell["source"]).splitlines()
    directives = [line.removeprefix("#|").strip() for line in lines if line.startswith("#|")]
    return "\n".join(line for line in lines if not line.startswith("#|")).strip(), directives


def outputs(cell: dict, images: dict[str, bytes], alt: str) -> list[str]:
    "A code cell's outputs as Markdown; pictures are put into `images`."
    parts = []
    for out in cell["outputs"]:
        data = out.get("data", {})
        if "<svg" in (drawing := "".join(data.get("text/html", ""))):
            name = f"nbs/images/index-{len(images) + 1}.svg"
            told = html.unescape(re.search(r'aria-label="([^"]*)"', drawing)[1])
            # as a file it has no page around it to take the colour of its letters from
            images[name] = drawing.replace(">", f">{SVG_COLOURS}", 1).encode()
            parts.append(f"![{told}]({name})")
        elif "image/png" in data:
            name = f"nbs/images/index-{len(images) + 1}.png"
            images[name] = base64.b64decode("".join(data["image/png"]))
            parts.append(f"![{alt}]({name})")
        elif "text/markdown" in data: parts.append("".join(data["text/markdown"]))
        elif text := "".join(out.get("text", data.get("text/plain", ""))).rstrip():
            parts.append("\n".join(f"    {line}" for line in text.splitlines()))
    return parts


def readme() -> tuple[str, dict[str, bytes]]:
    "README.md as the index notebook has it, and the pictures it shows."
    parts, images = [], {}
    for cell in json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        text, directives = shown(cell)
        if cell["cell_type"] == "markdown": parts.append(text)
        elif "hide" not in directives:
            if "echo: false" not in directives and text: parts.append(f"```python\n{text}\n```")
            alts = (d.removeprefix("fig-alt:").strip(' "') for d in directives if d.startswith("fig-alt:"))
            alt = next(alts, "")
            parts += outputs(cell, images, alt)
    text = "\n\n".join(parts)
    text = re.sub(r"\]\((?!https?:|#|nbs/)([\w./-]+\.(?:ipynb|png|svg))", r"](nbs/\1", text)
    return "<!-- Made from nbs/index.ipynb by tools/sync.py: edit the notebook. -->\n\n" + text + "\n", images


def main() -> int:
    "Write, or check."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--check", action="store_true")
    check, cfg, wrong = parser.parse_args().check, settings(), []

    def put(path: Path, new: bytes) -> None:
        if path.exists() and path.read_bytes() == new: return
        wrong.append(str(path.relative_to(ROOT)))
        if not check: path.write_bytes(new)

    for path in addressed(): put(path, badge(address(path.read_text(encoding="utf-8"), cfg), path).encode())
    citation = ROOT / "CITATION.cff"
    text = address(citation.read_text(encoding="utf-8"), cfg)
    put(citation, re.sub(r"(?m)^version: .*$", f"version: {cfg['version']}", text).encode())
    text, images = readme()
    put(ROOT / "README.md", address(text, cfg).encode())
    for name, data in images.items(): put(ROOT / name, data)
    for path in wrong: print(f"{path}: {'disagrees; run python tools/sync.py' if check else 'written'}")
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
