"Everything that pip needs is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"]},
    keywords=cfg["keywords"].split(),
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=f">={cfg['min_python']}",
    classifiers=["Intended Audience :: Education", "Programming Language :: Python :: 3", "Typing :: Typed",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    packages=["alexnet_nb", *(f"alexnet_nb.{part}" for part in (
        "base", "engine", "claims", "configs", "results", "weights"))],
    package_dir={"alexnet_nb.results": "nbs/results"},
    package_data={"alexnet_nb": ["py.typed"],
                  "alexnet_nb.base": ["*.mplstyle"],
                  "alexnet_nb.configs": ["*.yaml"],
                  "alexnet_nb.results": ["*.json"],
                  "alexnet_nb.weights": ["*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("dev", "export", "bench")},
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": ["alexnet_nb=alexnet_nb._modidx:d"]},
)
