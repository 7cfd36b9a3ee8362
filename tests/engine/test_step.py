"""The training step and loop as they are made for speed: nothing waits, nothing is lost, a resume may change
what does not matter."""
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet_nb.base.errors import InputError, RunError
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.checkpoint import read_checkpoint
from alexnet_nb.engine.config import _parse_overrides, load_config
from common import class_folders, differences, hook_steps, lines, one_step, tiny


def config(out, **changes):
    "A tiny run's config."
    return load_config(None, tiny(out, **changes)[1::2])


class Reads(TorchDispatchMode):
    "Counts the times that Python asked for a number, which on a GPU waits for the device."
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_asks_for_no_number(tmp_path):
    run = engine_setup.start(config(tmp_path, device__precision="fp32"))
    x, y, _ = next(iter(run.train))
    one_step(run, x, y)  # first steps may allocate
    with Reads() as reads: one_step(run, x, y)
    assert reads.count == 0
    with Reads() as reads: float(torch.ones(1).sum())
    assert reads.count == 1, "the counter counts"


def look_every(monkeypatch, steps: int) -> None:
    "Have runs look at what came of their updates only every so many."
    class Seldom(engine_run._Recorder):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.at_once = steps
    monkeypatch.setattr(engine_run, "_Recorder", Seldom)


@pytest.mark.parametrize("at_once", [4, 100])
def test_looking_seldom_changes_nothing(tmp_path, monkeypatch, at_once):
    "Six steps an epoch: notes of four and two, or of six, give the lines of one at a time."
    engine_train_command.fit(config(tmp_path / "each"), show_bar=False)
    looks, read = [], engine_run._read_steps
    monkeypatch.setattr(engine_run, "_read_steps", lambda steps: looks.append(len(steps)) or read(steps))
    look_every(monkeypatch, at_once)
    engine_train_command.fit(config(tmp_path / "seldom"), show_bar=False)
    assert looks == ([4, 2, 4, 2] if at_once == 4 else [6, 6])
    for kind in ("steps", "epochs"): assert lines(tmp_path / "each", kind) == lines(tmp_path / "seldom", kind)
    each, seldom = (read_checkpoint(tmp_path / name / "models" / "alexnet_final.pkl")
                    for name in ("each", "seldom"))
    assert differences(each["model"], seldom["model"]) == []


def test_a_loss_that_is_not_finite_is_named_and_never_saved(tmp_path, monkeypatch):
    "Also when the loop looks only every six steps."
    look_every(monkeypatch, 6)
    def spoil(step, model):  # after the eighth update, so that the loss of the ninth is the first to tell
        if step == 7: model.classifier[6].bias.data.fill_(math.nan)
    hook_steps(monkeypatch, after=spoil)
    with pytest.raises(RunError, match="nan at step 9 .*the last checkpoint is from before"):
        engine_train_command.fit(config(tmp_path), show_bar=False)
    kept = read_checkpoint(tmp_path / "models" / "alexnet_last.pkl")
    assert kept["total_steps"] == 6 and all(torch.isfinite(v).all() for v in kept["model"].values())
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("first", [True, False])
def test_resume_may_change_the_layout(tmp_path, first):
    "Momentum follows its weights: the run goes on as if nothing had changed, but for rounding."
    given = dict(device__precision="fp32", device__channels_last=first, model__dropout=0.0)
    one, two = (config(tmp_path / name, **given) for name in ("one", "two"))
    whole = engine_train_command.fit(one, max_steps=9, show_bar=False)
    engine_train_command.fit(two, max_steps=6, show_bar=False)
    checkpoint = read_checkpoint(tmp_path / "two" / "models" / "alexnet_last.pkl")
    cfg = engine_setup.resume_config(checkpoint,
                                     _parse_overrides([f"device.channels_last={str(not first).lower()}"]))
    parts = engine_train_command.fit(cfg, checkpoint, max_steps=9, show_bar=False)
    assert parts.run.model.features[4].weight.is_contiguous(memory_format=torch.channels_last) == (not first)
    for a, b in zip(whole.run.model.parameters(), parts.run.model.parameters(), strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-6
        u, v = (run.optimizer.state[p]["momentum_buffer"] for run, p in ((whole.run, a), (parts.run, b)))
        assert (u - v).norm() <= 1e-2 * u.norm() + 1e-6


def test_the_scale_of_the_loss_is_resumed(tmp_path):
    "float16's `GradScaler` goes into the checkpoint and comes back."
    run = engine_setup.start(config(tmp_path))
    assert run.scaler.state_dict() == {}
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    x, y, _ = next(iter(run.train))
    for _ in range(3): one_step(run, x, y)
    stored = engine_run.checkpoint_of(run)
    again = engine_setup.start(config(tmp_path))
    again.scaler = torch.amp.GradScaler("cpu")
    engine_run.restore(again, stored)
    assert again.scaler.get_scale() == run.scaler.get_scale() == 2048.0
    assert again.scaler.state_dict() == run.scaler.state_dict()


def test_the_scaled_step_is_the_plain_step(tmp_path):
    "A power of two scales without rounding, so the weights agree to the last bit or nearly."
    plain, scaled = (engine_setup.start(config(tmp_path / name, device__precision="fp32"))
                     for name in ("plain", "scaled"))
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y, _ = next(iter(plain.train))
    for run in (plain, scaled):
        torch.manual_seed(5)
        one_step(run, x, y)
    for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_choices_are_printed_and_stored(tmp_path, capsys):
    result = engine_train_command.fit(config(tmp_path, device__precision="bf16", data__loader="workers"),
                                      max_steps=1, show_bar=False)
    expected = dict(precision="bf16", layout="channels_last", loader="workers", compiled=False,
                    memory_reused=False, native_lrn=False)
    assert result.summary["chosen"] == expected
    assert "precision bf16, layout channels_last, loader workers" in capsys.readouterr().out


def test_pictures_of_several_sizes_need_workers(tmp_path):
    root = class_folders(tmp_path / "data")
    path = next((root / "train" / "cat").iterdir())
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    changes = dict(data__dataset="ImageFolder", data__data_dir=str(root), data__val_images=10,
                   data__train_images=None, data__test_images=None)
    # the usual recipe makes squares of all, and keeps those; the paper's leaves them of several sizes
    assert engine_setup.start(config(tmp_path / "u", **changes)).choices["loader"] == "device"
    changes["data__recipe"] = "paper"
    assert engine_setup.start(config(tmp_path / "a", **changes)).choices["loader"] == "workers"
    with pytest.raises(InputError, match="data.loader is 'device', but the pictures differ in size"):
        engine_setup.start(config(tmp_path / "b", **changes, data__loader="device"))


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path):
    "Needs a C++ compiler; skipped where there is none."
    given = dict(device__precision="fp32", model__dropout=0.0)
    plain, fast = (config(tmp_path / name, **given, device__compile=flag)
                   for name, flag in (("plain", False), ("fast", True)))
    try: b = engine_train_command.fit(fast, max_steps=3, show_bar=False)
    except Exception as e:
        if "compiler" not in str(e).lower(): raise
        pytest.skip("no C++ compiler")
    a = engine_train_command.fit(plain, max_steps=3, show_bar=False)
    usual, ours = ([row["loss"] for row in lines(tmp_path / name)] for name in ("plain", "fast"))
    assert ours == pytest.approx(usual, rel=1e-4)
    assert list(b.run.model.state_dict()) == list(a.run.model.state_dict())
