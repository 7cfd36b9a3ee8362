"""Loading people's own pictures on their own machines: large photographs, hardly any shared memory, broken
files, Ctrl-C before the first step, scripts without a guard."""
import contextlib
import ctypes
import http.server
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb import train
from alexnet_nb.base import cifar10 as base_cifar10
from alexnet_nb.base import pictures as base_pictures
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import Images, check_images
from alexnet_nb.data import Recipe, drawings
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine.loaders import DeviceLoader, EpochBatches, PreparedImages, make_loader
from common import CLOCK, ROOT, class_folders, differences, load, tiny

needs_signals = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")
OPEN = base_pictures.open_rgb
HERE = Path(__file__).parent


def photographs(folder: Path, *sizes: tuple[int, int], suffix: str = "jpg") -> Images:
    "Enlarged drawings as files, of these sizes (width, height)."
    folder.mkdir(parents=True, exist_ok=True)
    toys = drawings(len(sizes), 4)
    files = [folder / f"{i:02}.{suffix}" for i in range(len(sizes))]
    for file, size, i in zip(files, sizes, range(len(sizes)), strict=True):
        toys[i].resize(size, Image.Resampling.BICUBIC).save(file)
    return Images(files, np.arange(len(sizes)))


def folders_of(root: Path, sizes: list[tuple[int, int]]) -> list[str]:
    "Settings for class folders a and b, whose pictures have these sizes in turn."
    for part, n in (("train", 12), ("test", 4)):
        for name in "ab": photographs(root / part / name, *(sizes[i % len(sizes)] for i in range(n // 2)))
    return dict(data__dataset="ImageFolder", data__data_dir=str(root), data__train_images=None,
                data__test_images=None, data__val_images=4, model__num_classes=2, training__num_epochs=2)


# ---------------------------------------------------------------- large photographs

PAPER = Recipe(64, short_side=72, colour=((0.1, 0.0, 0.0), (0.0, 0.1, 0.0), (0.0, 0.0, 0.1)))
WIDE, TALL = (640, 480), (480, 640)


@pytest.mark.parametrize("recipe, sizes, kept", [
    (Recipe(64), [WIDE] * 4, (64, 64)),
    (Recipe(64), [WIDE, TALL, (40, 40), (64, 64)], (64, 64)),      # a telephone held this way and that
    (Recipe(64), [(40, 30), WIDE], (64, 64)),                      # the first one is small
    (Recipe(64), [(40, 30)] * 3, (30, 40)),                        # small ones stay as they are
    (Recipe(64), [(64, 64)] * 3, (64, 64)),
    (Recipe(64, first_to=32), [WIDE, TALL, (33, 35)], (32, 32)),
    (Recipe(64, first_to=32), [WIDE, (20, 600)], None),
    (PAPER, [WIDE] * 4, (72, 96)),
    (PAPER, [TALL] * 4, (96, 72)),
    (PAPER, [(641, 480)] * 2, (72, 96)),
    (PAPER, [WIDE, TALL], None),
    (PAPER, [(50, 50)] * 2, (50, 50)),
])
def test_a_photograph_is_kept_as_large_as_the_recipe_needs(tmp_path, recipe, sizes, kept):
    "And batches of it are those of worker processes, to the bit."
    images = photographs(tmp_path, *sizes)
    pixels = engine_setup._fitting_pixels((images, images), recipe, torch.device("cpu"))
    assert (pixels and tuple(pixels[0].shape[2:])) == kept
    for seed in (None, 5) if kept else ():
        batches = EpochBatches(np.arange(len(images)), 3, seed)
        ways = (DeviceLoader(pixels[0], images.labels, recipe, batches, seed),
                make_loader(PreparedImages(images, recipe, seed), batches))
        for ours, usual in zip(*ways, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, usual, strict=True))


def test_photographs_in_memory_are_kept_small_too():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 300, 400, 3), dtype=np.uint8)
    images = Images(pixels, np.zeros(3, int))
    kept, _ = engine_setup._fitting_pixels((images, images), Recipe(64), torch.device("cpu"), "device",
                                           3 * 3 * 64**2)
    by_hand = np.asarray(images[2].resize((64, 64), Image.Resampling.BILINEAR))
    assert (kept[2].permute(1, 2, 0).numpy() == by_hand).all()


@pytest.mark.parametrize("recipe, sizes", [("usual", [WIDE, TALL]), ("paper", [WIDE])])
def test_a_run_on_photographs_is_that_of_workers_bit_for_bit(tmp_path, no_panels, capsys, recipe, sizes):
    "Stopped and resumed, too; `auto` chooses the quick way."
    argv, final = folders_of(tmp_path / "data", sizes) | dict(data__recipe=recipe), []
    for loader in ("workers", "auto"):
        out = tmp_path / loader
        asked = tiny(out, **argv, data__loader=loader)
        if loader == "auto":
            assert train.main([*asked, "--minutes", "1e-9"]) == 0
            asked = ["--resume", str(out / "models" / "alexnet_last.pkl"), *asked]
        assert train.main(asked) == 0
        assert f"loader {'device' if loader == 'auto' else loader}" in capsys.readouterr().out
        final.append(load(out / "models" / "alexnet_final.pkl"))
    assert differences(*final, but=(*CLOCK, "config.data.loader")) == []


# ---------------------------------------------------------------- shared memory

def in_own_mounts(work, said: Path, *mount: str) -> int:
    "`work()` in a process with another /dev/shm; its exit code. What it says goes to a file."
    if (pid := os.fork()) == 0:
        code = 70
        try:
            with open(said, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                for number in (1, 2): os.dup2(out.fileno(), number)
                if ctypes.CDLL(None, use_errno=True).unshare(0x20000): os._exit(77)  # CLONE_NEWNS
                for command in (["mount", "--make-rprivate", "/"], ["mount", *mount, "tmpfs", "/dev/shm"]):
                    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode: os._exit(77)
                code = work()
        finally: os._exit(code)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("it hangs")
    if (code := os.waitstatus_to_exitcode(status)) == 77: pytest.skip("needs the right to mount")
    return code


@needs_fork
@pytest.mark.parametrize("mount, fill, workers, code, words", [
    (["-t", "tmpfs", "-o", "size=4m"], 0, 2, 0, "come through pipes"),   # a batch has 5 MB
    (["-t", "tmpfs", "-o", "size=64k"], 2**16, 2, 1, "is full or missing"),
    (["-t", "tmpfs", "-o", "size=64k"], 2**16, 0, 0, None),              # nothing there is needed
    (["-t", "tmpfs", "-o", "ro"], 0, 2, 1, "is full or missing"),
    (["-t", "tmpfs", "-o", "size=1g"], 0, 2, 0, None),
], ids=["small", "full", "full, no workers", "read-only", "large"])
def test_hardly_any_shared_memory(tmp_path, no_panels, mount, fill, workers, code, words):
    "As Docker has it: the same weights, or one line that says what to do; no traceback, no endless wait."
    asked = folders_of(tmp_path / "data", [(40, 40)]) | dict(training__num_epochs=1)
    if not (straight := tmp_path.parent / "straight").exists():
        assert train.main(tiny(straight, **asked, data__loader="workers")) == 0
    def work():
        if fill:
            with contextlib.suppress(OSError): Path("/dev/shm/film").write_bytes(bytes(fill))
        return train.main(tiny(tmp_path / "out", **asked, data__loader="workers", data__num_workers=workers))
    assert in_own_mounts(work, tmp_path / "said", *mount) == code
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "--shm-size" in line and "data.num_workers=0" in line]
    assert len(lines) == (words is not None) and all(words in line for line in lines)
    if code: assert "--resume" not in said
    else:
        ends = (load(out / "models" / "alexnet_final.pkl") for out in (tmp_path / "out", straight))
        assert differences(*ends, but=(*CLOCK, "config.data.data_dir")) == []


def test_shared_memory_that_runs_out_later_is_named(tmp_path, monkeypatch, capsys):
    "Another program fills it: torch says so wherever the main process is."
    def dead(*args, **more):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that "
                           "dataloader's workers are out of shared memory. Please try to raise your shared "
                           "memory limit.")
    monkeypatch.setattr(train, "train_step", dead)
    assert train.main(tiny(tmp_path)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--shm-size" in line and "data.num_workers=0" in line and "--resume" not in line


# ---------------------------------------------------------------- broken files

def spoil(path: Path, how: str) -> None:
    "Make a large picture of this name, and break it."
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix != ".png" else {}))
    whole = bytearray(path.read_bytes())
    assert len(whole) > 2**16
    if how == "cut": whole = whole[:-5000]
    else: whole[len(whole) // 2:len(whole) // 2 + 5000] = bytes(5000)
    path.write_bytes(whole)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "jp2"])
@pytest.mark.parametrize("loader", ["auto", "workers"])
def test_a_large_file_that_was_cut_off_is_found_before_work(tmp_path, capsys, suffix, loader):
    "Exit code 2, as for every file that was given wrong; each is named."
    asked = folders_of(tmp_path / "data", [WIDE, TALL])
    bad = [tmp_path / "data" / place / f"zz.{suffix}" for place in ("train/a", "train/b", "test/b")]
    for path in bad: spoil(path, "cut")
    assert train.main(tiny(tmp_path / "out", **asked, data__loader=loader, data__num_workers=2)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and all(str(path) in said[0] for path in bad)


def test_all_broken_files_are_named_by_the_papers_recipe(tmp_path, capsys):
    "Its statistics look at the pictures first."
    asked = folders_of(tmp_path / "data", [WIDE])
    bad = [tmp_path / "data" / "train" / name / "zz.jpg" for name in "ab"]
    for path in bad: spoil(path, "cut")
    assert train.main(tiny(tmp_path / "out", **asked, data__recipe="paper")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(str(path) in line for path in bad)


def test_of_many_broken_files_the_rest_is_counted(tmp_path):
    files = [tmp_path / f"{i:03}.png" for i in range(30)]
    for path in files: path.write_bytes(b"<html>")
    with pytest.raises(InputError) as e: check_images(Images(files, np.zeros(30, int)))
    assert all(path.name in str(e.value) for path in files[:5]) and str(e.value).endswith("; and 25 more")


def slowly(path, *use):
    "open_rgb, but the broken picture notes when it was found, and from then on the others take a second."
    if Path(path).name == "zz.png": Path("found").write_text(str(time.time()))
    else: time.sleep(1 if Path("found").exists() else 0.01)
    return OPEN(path, *use)


@needs_fork
@pytest.mark.parametrize("saved", [False, True])
def test_a_picture_that_a_worker_finds_broken_ends_the_run_at_once(tmp_path, monkeypatch, no_panels, capsys,
                                                                   saved):
    """The other worker has half a minute of its batch before it; and --resume is advised where there is a
    checkpoint of this run, not where one of an earlier run lies about."""
    root = class_folders(tmp_path / "data", classes=("a", "b"), train=40, test=1)
    spoil(bad := root / "train" / "a" / "zz.png", "middle")
    monkeypatch.setattr(base_pictures, "open_rgb", slowly)
    if saved: monkeypatch.setattr(base_pictures.Images, "__getitem__", fine_at_first)
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    (out / "models" / "alexnet_best.pkl").touch()
    asked = dict(data__dataset="ImageFolder", data__data_dir=str(root), data__train_images=None,
                 data__val_images=2, data__test_images=None, data__loader="workers", data__num_workers=2,
                 model__num_classes=2, training__batch_size=33, training__num_epochs=2)
    assert train.main(tiny(out, **asked)) == 1
    assert time.time() - float(Path("found").read_text()) < 3
    line = capsys.readouterr().err.splitlines()[-1]
    last = out / "models" / "alexnet_last.pkl"
    assert str(bad) in line and last.exists() == saved
    assert line.endswith(f"go on with --resume {last}" if saved else "mend the file")


GET = Images.__getitem__


def fine_at_first(images, i):
    "The broken picture is whole until there is a checkpoint."
    if Path(images.items[i]).name != "zz.png": return GET(images, i)
    if Path("out/models/alexnet_last.pkl").exists(): return GET(images, i)
    return Image.new("RGB", (32, 32))


# ---------------------------------------------------------------- Ctrl-C before the first step

def slow(path, *use):
    "open_rgb of a large photograph."
    Path("begun").touch()
    time.sleep(0.2)
    return OPEN(path, *use)


def slow_copy(source, out, *rest):
    out.write(source.read(10))
    Path("begun").touch()
    time.sleep(30)


class Stalls(http.server.BaseHTTPRequestHandler):
    "A server that sends a little, and then nothing."
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "170498071")
        self.end_headers()
        if self.path != "/silent": self.wfile.write(bytes(2**21))
        Path("begun").touch()
        time.sleep(30)

    def log_message(self, *args): pass


def stopped_while(place: str, root: Path, m: pytest.MonkeyPatch) -> dict:
    "What to set so that a run takes half a minute at this place."
    if place in ("unpacking", "downloading", "waiting for a download"):
        root.mkdir()
        asked = dict(data__dataset="CIFAR10", data__data_dir=str(root), data__download=True,
                     data__train_images=None, data__test_images=None)
        if place == "unpacking":
            (root / "x").write_bytes(bytes(10**5))
            archive = root / base_cifar10._CIFAR10_ARCHIVE
            with tarfile.open(archive, "w:gz") as tar:
                tar.add(root / "x", f"{base_cifar10._CIFAR10_FOLDER}/data_batch_1")
            (root / "x").unlink()
            m.setattr(base_cifar10, "_CIFAR10_MD5", base_cifar10._md5(archive))
            m.setattr(shutil, "copyfileobj", slow_copy)
        else:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalls)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/{'silent' if place.startswith('waiting') else ''}"
            fetch = base_cifar10._fetch_cifar10
            m.setattr(base_cifar10, "_fetch_cifar10", lambda root, sources: fetch(root, [url]))
        return asked
    class_folders(root, classes=("a", "b"), train=40, test=1)
    m.setattr(base_pictures, "open_rgb", slow)
    ways = {"reading": {}, "checking": dict(data__loader="workers"), "statistics": dict(data__recipe="paper")}
    return dict(data__dataset="ImageFolder", data__data_dir=str(root), data__train_images=None,
                data__test_images=None, data__val_images=2, model__num_classes=2, **ways[place])


def run_slowly(place: str, root: Path) -> int:
    "In a process of its own: a run that takes half a minute at this place; `before` tells what lay there."
    asked = stopped_while(place, root, pytest.MonkeyPatch())
    Path("before").write_text("\n".join(map(str, sorted(root.rglob("*")))))
    return train.main(tiny(root.parent / "out", **asked))


@needs_signals
@pytest.mark.parametrize("place, name", [
    ("reading", "SIGINT"), ("reading", "SIGTERM"), ("checking", "SIGINT"), ("statistics", "SIGINT"),
    ("unpacking", "SIGINT"), ("unpacking", "SIGTERM"), ("downloading", "SIGINT"), ("downloading", "SIGTERM"),
    ("waiting for a download", "SIGINT")])
def test_a_stop_before_the_first_step_is_obeyed_at_once(tmp_path, place, name):
    "One is enough; nothing half written is left, and no checkpoint of an untrained network."
    root, number, begun = tmp_path / "data", signal.Signals[name], tmp_path / "begun"
    code = ("import sys\nfrom pathlib import Path\nfrom test_people_loading import run_slowly\n"
            f"sys.exit(run_slowly({place!r}, Path({str(root)!r})))")
    paths = os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))
    run = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths},
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while not begun.exists() and run.poll() is None and time.monotonic() < until: time.sleep(0.01)
    time.sleep(0.2)
    run.send_signal(number)
    began = time.monotonic()
    said, _ = run.communicate(timeout=60)
    took = time.monotonic() - began
    assert run.returncode == 128 + number, said[-3000:]
    assert took < 1.5  # the end of the interpreter counts
    assert "Traceback" not in said
    assert "\n".join(map(str, sorted(root.rglob("*")))) == (tmp_path / "before").read_text()
    assert not list((tmp_path / "out").rglob("*.pkl"))


def test_a_stop_during_a_step_still_finishes_it(tmp_path, monkeypatch, no_panels, capsys):
    from common import hook_steps
    hook_steps(monkeypatch, before=lambda step: step == 2 and signal.raise_signal(signal.SIGINT))
    assert train.main(tiny(tmp_path)) == 130
    last = load(tmp_path / "models" / "alexnet_last.pkl")
    assert last["total_steps"] == 3 and "go on with --resume" in capsys.readouterr().out
    assert engine_run.StopFlag().at_once is False, "whoever makes a flag elsewhere keeps what it had"


# ---------------------------------------------------------------- a script without a guard

def test_spawned_workers_of_a_script_without_a_guard(tmp_path):
    "Each begins by importing the script, which trains; one line names what is missing."
    argv = tiny(tmp_path / "out", data__loader="workers", data__num_workers=1, data__train_images=16)
    script = tmp_path / "mine.py"
    script.write_text("import multiprocessing, sys\nfrom alexnet_nb import train\n"
                      "multiprocessing.set_start_method('spawn', force=True)\n"
                      f"sys.exit(train.main({argv!r}))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    said = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{script}:4: " in said[-1] and 'if __name__ == "__main__":' in said[-1], said[-1]
