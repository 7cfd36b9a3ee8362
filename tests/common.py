"What several test files use: a tiny run, its command line, and ways to compare."
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alexnet_nb import train
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import CLASSES
from alexnet_nb.engine import run as engine_run

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.append(str(ROOT / "tools"))
from notebooks import NBS as NBS  # handed on to tests
from notebooks import all_notebooks, name_of

page_of = name_of  # tests call a notebook's name its page
NOTEBOOKS = all_notebooks()

# The network at 227 pixels with 4 to 16 maps a layer; 48 drawings and 10 for validation.
TINY = {
    "model.width": 1 / 24,
    "training.num_epochs": 2, "training.batch_size": 8, "training.warmup_steps": 3, "training.seed": 7,
    "data.dataset": "drawings", "data.train_images": 48, "data.val_images": 10, "data.test_images": 20,
    "data.num_workers": 0, "data.download": False,
    "device.use_cuda": False, "device.reuse_memory": False, "device.native_lrn": False,
}
STEPS = 6  # an epoch, of 8 drawings each

# Dropout and flips are on; the rate falls after epoch 2; the velocity is carried over as in the paper's rule.
LONG = dict(training__num_epochs=4, training__lr_step_size=2, training__lr_gamma=0.5,
            training__paper_velocity=True)
EACH_STEP = dict(training__checkpoint_minutes=1e-9)  # a checkpoint after every step
CLOCK = ("progress.seconds", "config.paths", "config.data.num_workers", "config.training.checkpoint_minutes")


def settings(values: dict) -> list[str]:
    "`--set` arguments."
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def tiny(out: Path, **changes) -> list[str]:
    """The arguments of a tiny run that writes below `out`; changes are written section__key=value, and None
    leaves a setting out."""
    paths = {"paths.output_dir": str(out), "paths.checkpoint_dir": str(out / "models"),
             "paths.log_dir": str(out / "tblogs")}
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return settings({key: value for key, value in (TINY | paths | changes).items() if value is not None})


def run_without_panels(out: Path, **changes) -> Path:
    "A tiny run from its beginning to its end, without TensorBoard's pictures; the folder it wrote to."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(engine_run, "write_panels", lambda *args: None)
        assert train.main(tiny(out, **changes)) == 0
    return out


def hook_steps(monkeypatch, before=lambda step: None, after=lambda step, model: None) -> None:
    "Have every run call `before` and `after` around each update, with the number of updates done before it."
    from alexnet_nb import train as loop
    set_rate, train_step, at = loop.set_rate, loop.train_step, []
    def noting(optimizer, rates, step, warmup_steps):
        at[:] = [step]
        set_rate(optimizer, rates, step, warmup_steps)
    def hooked(model, *args, **more):
        before(at[0])
        result = train_step(model, *args, **more)
        after(at[0], model)
        return result
    monkeypatch.setattr(loop, "set_rate", noting)
    monkeypatch.setattr(loop, "train_step", hooked)


def one_step(run, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "One update of a run, as its loop makes it; the caller counts."
    train.set_rate(run.optimizer, run.scheduler.get_last_lr(), run.progress.step, run.options.warmup_steps)
    return train.train_step(run.net, x, y, run.optimizer, loss=engine_run.shared_loss(run),
                            precision=run.dtype, scaler=run.scaler)


def command(module: str, *argv, cwd=None, **options) -> subprocess.CompletedProcess:
    "`python -m alexnet_nb.MODULE ...` as its own process."
    return subprocess.run([sys.executable, "-m", f"alexnet_nb.{module}", *map(str, argv)], cwd=cwd,
                          capture_output=True, text=True, timeout=300, **options)


def refused(work, *args, words=()) -> str:
    "The line with which `work` refuses its arguments: one, visible, not too long, with these words."
    with pytest.raises(InputError) as e: work(*args)
    line = str(e.value)
    assert line.isprintable() and len(line) < 3000 and all(word in line for word in words), line
    return line


def snapshot(folder: Path) -> dict:
    """Every file below a folder: its bytes, as a digest, and the time it was last written; without the empty
    files that locks leave."""
    return {str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
            for p in sorted(folder.rglob("*")) if p.is_file()
            and (p.name != ".running.lock" or p.stat().st_size)}


def save_drawings(folder: Path, n: int, seed: int = 99) -> list[Path]:
    "n drawings as PNG files 000.png, 001.png, ..."
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(n)]
    pictures = drawings(n, seed)
    for i, path in enumerate(paths): pictures[i].save(path)
    return paths


def noise(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """n pictures whose pixels are drawn evenly from 0 to 255, and as many that are 0 or 255 only: (2 n,
    height, width, 3)."""
    rng = np.random.default_rng([seed, height, width])
    return np.concatenate([rng.integers(0, 256, (n, height, width, 3)),
                           255 * rng.integers(0, 2, (n, height, width, 3))]).astype(np.uint8)


def channels_first(items: np.ndarray, device: str = "cpu") -> torch.Tensor:
    "Pictures (N, H, W, 3) as a batch (N, 3, H, W)."
    return torch.from_numpy(items).permute(0, 3, 1, 2).contiguous().to(device)


def by_pillow(items: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    "The batch of pictures that Pillow has resized."
    return channels_first(np.stack([Image.fromarray(p).resize(size[::-1], Image.Resampling.BILINEAR)
                                    for p in items]))


def class_folders(root: Path, classes=CLASSES, train: int = 4, test: int = 2) -> Path:
    "train/<class>/ and test/<class>/ with so many drawings each."
    for part, n in (("train", train), ("test", test)):
        pictures = drawings(10 * n, 5 if part == "train" else 6)
        for c, name in enumerate(classes):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(n): pictures[10 * k + c % 10].save(root / part / name / f"{k}.png")
    return root


def load(path: Path) -> dict:
    "A checkpoint as it is stored."
    return torch.load(path, weights_only=True)


def differences(a, b, where: str = "", but=()) -> list[str]:
    "Where two nests of dictionaries, sequences and tensors differ, bit for bit."
    if where in but: return []
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys(): return [f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}.{k}" if where else str(k), but)]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True))
                for d in differences(x, y, f"{where}[{i}]", but)]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a!r} is not {b!r}"]


def lines(folder: Path, kind: str = "steps") -> list[dict]:
    "A JSONL log of the one run below `folder`, without what depends on the clock; every line must be whole."
    text = next(folder.glob(f"**/{kind}.jsonl")).read_text()
    assert text == "" or text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in rows]


def scalars(folder) -> dict[str, list]:
    "TensorBoard's curves of a run, as TensorBoard itself reads them: part/tag to (step, value) pairs."
    curves = {}
    for part in ("train", "val"):
        events = EventAccumulator(str(folder / "tblogs" / "run-001" / part),
                                  size_guidance={"scalars": 0}).Reload()
        curves |= {f"{part}/{tag}": [(e.step, e.value) for e in events.Scalars(tag)]
                   for tag in events.Tags()["scalars"]}
    return curves


def check_equal(out, straight, but=()):
    "Weights, optimizer, schedule, random states, best and final checkpoints, both logs and every curve."
    for which in ("last", "best", "final"):
        a, b = (load(folder / "models" / f"alexnet_{which}.pkl") for folder in (out, straight))
        assert (found := differences(a, b, but=(*CLOCK, *but))) == [], (which, found[:5])
    for kind in ("steps", "epochs"): assert lines(out, kind) == lines(straight, kind)
    assert [row["step"] for row in lines(out)] == list(range(1, 4 * STEPS + 1))
    ours, theirs = scalars(out), scalars(straight)
    assert ours.keys() == theirs.keys()
    for tag, points in ours.items():
        steps = [step for step, _ in points]
        assert steps == sorted(steps), f"{tag} steps backward"
        if "images_per_second" not in tag and "test_" not in tag:
            assert sorted(set(points)) == theirs[tag], tag
    assert not list((out / "models").glob(".*.part"))
    assert len(list((out / "tblogs").iterdir())) == 1
