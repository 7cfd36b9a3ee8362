"""The stored runs again, as far as a test can: the first five steps of the real one, and the built-in main
job."""
import json
import os
import subprocess
import sys

import pytest

from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.config import make_config, merge
from common import ROOT

REAL = ROOT / "nbs" / "results" / "cifar10.json"


@pytest.mark.cifar10
def test_first_five_steps_of_the_real_run(cifar10_dir, tmp_path, monkeypatch, all_threads):
    "Its config, its seed and the same data give its losses to a thousandth."
    if not REAL.is_file(): pytest.skip(f"{REAL.name} is not there yet")
    stored = json.loads(REAL.read_text(encoding="utf-8"))
    places = {"data": {"data_dir": str(cifar10_dir), "download": False},
              "paths": {"output_dir": str(tmp_path), "checkpoint_dir": str(tmp_path / "models"),
                        "log_dir": str(tmp_path / "tblogs")}, "device": {"use_cuda": False}}
    given = merge(stored["config"], places)
    if cifar10_dir.joinpath("train").is_dir(): given["paths"]["train_img_dir"] = "train"
    # half a gigabyte that nobody reads
    monkeypatch.setattr(engine_run, "save_last", lambda *args, **more: None)
    result = engine_train_command.fit(make_config(given), max_steps=5)
    assert result.run.progress.step == 5
    again, then = ([step["loss"] for step in steps[:5]]
                   for steps in (result.summary["steps"], stored["steps"]))
    assert again == pytest.approx(then, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quick_names_unseen_drawings(seed, tmp_path):
    """The full network, in minutes: at least 95 % of 500 unseen drawings, and 5 points above the best linear
    classifier."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-m", "alexnet_nb.train", "--config", "quick", "--set",
                    f"training.seed={seed}", "--results", "r.json"], cwd=tmp_path, env=env, check=True,
                   timeout=3600)
    results = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert results["test_images"] == 500
    assert results["test_accuracy"] >= 0.95
    assert results["test_accuracy"] >= results["linear_accuracy"] + 0.05
    assert ((tmp_path / "alexnet_data_out" / "models" / "alexnet_final.pkl").is_file()
            and (tmp_path / "alexnet_data_out" / "curves.png").is_file())
