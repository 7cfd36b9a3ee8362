"""Files from strangers: mutated pictures and archives in small numbers, and by name what larger numbers of
them found."""
import csv
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import hostile_files as hostile
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from watch import Evil

from alexnet_nb import data, inference, train
from alexnet_nb.base import cifar10 as base_cifar10
from alexnet_nb.base import pictures as base_pictures
from alexnet_nb.base.errors import InputError
from alexnet_nb.engine import loaders as engine_loaders
from alexnet_nb.engine import predict_command as engine_predict_command
from common import TESTS, class_folders, refused, save_drawings, snapshot, tiny

POSIX = pytest.mark.skipif(os.name == "nt", reason="names and kinds of files that Windows does not have")
LINUX = pytest.mark.skipif(sys.platform != "linux",
                           reason="needs names of any bytes, /proc and limits on memory")


# ---------------------------------------------------------------- the corpus, in small

def whole(report: dict, n: int) -> None:
    assert report["failures"] == []
    assert report["tried"] == n == report["read"] + report["refused"]
    assert report["slowest_seconds"] < hostile.SECONDS and report["peak_megabytes"] < hostile.MEGABYTES


@LINUX
def test_mutated_pictures():
    report = hostile.run_kind("pictures", 300, seed=0, bombs=0)
    whole(report, 300)
    assert report["read"] > 60 and report["refused"] > 100


@LINUX
def test_picture_bombs():
    report = hostile.run_kind("pictures", 0, seed=0)
    whole(report, len(hostile.BOMBS))
    assert report["read"] >= 5   # 89 million honest pixels are read


@LINUX
def test_mutated_archives():
    report = hostile.run_kind("archives", 60, seed=0, bombs=0)
    whole(report, 60)
    assert report["read"] > 3 and report["refused"] > 40


def test_the_corpus_has_every_format_that_pillow_reads():
    good = hostile.good_pictures()
    Image.init()
    # those two need another library
    assert set(Image.OPEN) - {"FPX", "MIC"} <= {name.split()[0] for name in good} and len(good) > 150
    readable = set()
    for body in good.values():
        try:
            with Image.open(io.BytesIO(body)) as image: image.load()
        except Exception: continue
        readable.add(image.format)
    assert len(readable) > 25


def test_the_corpus_is_the_same_every_time():
    assert [hostile.picture(3, k) for k in range(50)] == [hostile.picture(3, k) for k in range(50)]
    assert [hostile.archive(3, k) for k in range(20)] == [hostile.archive(3, k) for k in range(20)]


@LINUX
def test_the_harness_sees_what_goes_wrong(monkeypatch):
    "A library that is broken on purpose: each kind of fault is found, and blamed on the right number."
    faults = {1: ("raise ValueError('odd')", "ValueError: odd"),
              2: ("open('here', 'w').close(), os.remove('here')", "here"),
              3: ("bytearray(3 * 2**30)", "MemoryError"),
              4: ("os.write(2, b'\\x1b[31m')", "wrote to stderr"),
              5: ("subprocess.run(['true'])", "subprocess.Popen"),
              6: ("os.kill(os.getpid(), 11)", "killed by signal SIGSEGV"),
              7: ("raise pictures.InputError('two\\nlines')", "not one printable line")}
    cases = "".join(f"    if path.name.startswith('{number:06}'): {fault}\n"
                    for number, (fault, _) in faults.items())
    wrong = f"""
import os, subprocess, sys
sys.path.append({str(TESTS)!r})
from alexnet_nb.base import pictures
from planting import plant
real = pictures.open_rgb
def broken(path, *use):
{cases}    return real(path, *use)
plant(pictures, "open_rgb", broken)
"""
    start = hostile.subprocess.Popen
    monkeypatch.setattr(hostile.subprocess, "Popen",
                        lambda argv, **more: start([*argv[:2], wrong + argv[2]], **more))
    report = hostile.run_kind("pictures", 9, seed=0, bombs=0)
    assert report["tried"] == 9
    found = {f["number"]: f["why"] for f in report["failures"]}
    for number, (_, why) in faults.items(): assert why in found.pop(number), report["failures"]
    assert set(found) <= {8}   # the folder with all of them, at the end


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"MM\0*", b"BM",
                        b"RIFF\0\0\0\0WEBP", b"P6 ", b"8BPS", b"qoif", b"\0\0\1\0"]), st.binary(max_size=300))
def test_any_bytes(tmp_path_factory, head, body):
    path = tmp_path_factory.getbasetemp() / "any bytes.png"
    path.write_bytes(head + body)
    try: image = base_pictures.open_rgb(path)
    except InputError as e: assert str(e).startswith(f"{path}: ") and str(e).isprintable()
    else: assert image.mode == "RGB" and min(image.size) > 0


# ---------------------------------------------------------------- pictures: what was found

@POSIX
@pytest.mark.parametrize("name", ["EPS", "IPTC eps"])
def test_a_picture_starts_no_program(name, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, also where it lies in another file; whoever wrote the file
    wrote that program."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/marker\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for suffix in (".eps", ".png", ".iim"):
        (tmp_path / f"a{suffix}").write_bytes(hostile.good_pictures()[name])
        refused(base_pictures.open_rgb, tmp_path / f"a{suffix}",
                words=["not an image in a format that Pillow reads"])
        one = base_pictures.Images([tmp_path / f"a{suffix}"], np.array([0]), ("x",))
        refused(base_pictures.check_images, one, words=["not an image"])
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_in_a_thousand_passes(progressive, tmp_path):
    "94 kB over which a decoder sits for half a minute."
    (tmp_path / "a.jpg").write_bytes(hostile.many_scans(2_000, 1000, progressive))
    began = time.process_time()
    refused(base_pictures.open_rgb, tmp_path / "a.jpg", words=["passes over 2000 x 2000 pixels"])
    assert time.process_time() - began < 1
    honest = hostile.written(Image.new("RGB", (2_000, 2_000)), "JPEG", progressive=progressive)
    (tmp_path / "b.jpg").write_bytes(honest)
    assert base_pictures.open_rgb(tmp_path / "b.jpg").size == (2_000, 2_000)


@pytest.mark.parametrize("size", [(1, 89_000_000), (89_000_000, 1), (3, 4_000), (201, 2)])
def test_a_strip(size, tmp_path):
    "A few bytes; enlarged until the short side has 227 or 256 pixels they would take up to 90 GB."
    (tmp_path / "a.png").write_bytes(hostile.png(*size, 0, 1))
    refused(base_pictures.open_rgb, tmp_path / "a.png",
            words=[f"{size[0]} x {size[1]} pixels, one side over 100 times the other"])


@pytest.mark.parametrize("size", [(100, 1), (2, 200)])
def test_a_strip_that_is_just_short_enough(size, tmp_path):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
    for recipe in (data.usual_recipe(), data.Recipe(short_side=256)):
        for views in (1, 10):
            assert inference._prepare_views(base_pictures.open_rgb(tmp_path / "a.png"), recipe,
                                           views).shape == (views, 3, 227, 227)


@pytest.mark.parametrize("head", [b"RIFF\xff\xff\xff\xffWEBP", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_a_file_of_a_terabyte(head, tmp_path):
    "Full of holes, it takes no room on the disk; for some formats Pillow reads all of it into memory."
    path = tmp_path / "a.png"
    path.write_bytes(head)
    try: os.truncate(path, 2**40)
    except OSError: pytest.skip("no such large files here")
    refused(base_pictures.open_rgb, path, words=["1,099,511,627,776 bytes are too many"])


@POSIX
def test_a_forked_process_does_not_wait_for_threads_it_has_not(tmp_path):
    """Workers of a `DataLoader` are forked; what other threads had in hand at that moment is not in hand
    there."""
    Image.new("RGB", (1100, 1100)).save(tmp_path / "a.png")
    with base_pictures._SPACE.take(2**26), base_pictures._QUIET.lock:
        if (child := os.fork()) == 0:
            os._exit(0 if base_pictures.open_rgb(tmp_path / "a.png").size == (1100, 1100) else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done: break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done and os.waitstatus_to_exitcode(status) == 0


def test_no_pixels(tmp_path, monkeypatch):
    class Empty(Image.Image):
        format = "PNG"
        def load(self): return None
    monkeypatch.setattr(base_pictures.Image, "open", lambda *a, **k: Empty())
    (tmp_path / "a.png").write_bytes(b"x")
    refused(base_pictures.open_rgb, tmp_path / "a.png", words=["has no pixels (0 x 0)"])


def test_numbers_that_are_none(tmp_path, recwarn):
    "NaN and infinities in a floating-point TIFF: some picture, no warning of NumPy's."
    (tmp_path / "a.tif").write_bytes(hostile.tiff(3, 1, np.array([np.nan, np.inf, -np.inf], np.float32)))
    # a signalling NaN
    (tmp_path / "b.tif").write_bytes(hostile.tiff(1, 1, np.array([0x7FA00000], np.uint32)))
    assert [p[0] for p in np.asarray(base_pictures.open_rgb(tmp_path / "a.tif"))[0]] == [0, 255, 0]
    assert base_pictures.open_rgb(tmp_path / "b.tif").size == (1, 1) and not recwarn.list


def test_an_icon_that_holds_more_than_it_claims(tmp_path):
    (tmp_path / "a.ico").write_bytes(hostile.icon_in_icon())
    refused(base_pictures.open_rgb, tmp_path / "a.ico")


def test_remarks_of_pillow_stay_inside(tmp_path):
    """Files with broken EXIF, opened by many threads at once, cost no warning; the filters of warnings are
    afterwards what they were."""
    exif = struct.pack("<2sHIH", b"II", 42, 8, 3) + struct.pack("<HHII", 271, 2, 50, 5000) * 3
    body = hostile.written(hostile.scene("RGB"), "JPEG", exif=b"Exif\0\0" + exif)
    files = [tmp_path / f"{k}.jpg" for k in range(40)]
    for path in files: path.write_bytes(body)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with Image.open(files[0]) as image: image.getexif()
        assert heard, "the file is not broken enough"
        heard.clear()
        before = list(warnings.filters)
        list(engine_loaders.read_ahead(base_pictures.open_rgb, files, 8, threads=4))
        assert not heard and warnings.filters == before


def test_large_pictures_take_turns():
    space, log = base_pictures._Space(10), []
    def work(name, pixels, wait):
        with space.take(pixels):
            log.append(name)
            wait.wait(5)
            log.append(f"{name} ends")
    go = threading.Event()
    first = threading.Thread(target=work, args=("first", 30, go))   # more than there is: alone
    first.start()
    while not log: time.sleep(0.001)
    second = threading.Thread(target=work, args=("second", 4, threading.Event()))
    second.start()
    time.sleep(0.05)
    assert log == ["first"]
    go.set()
    first.join(), second.join(0.1)
    assert log[:3] == ["first", "first ends", "second"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "F", "CMYK", "turned"])
def test_a_large_picture_in_strips_is_the_same(mode, monkeypatch, tmp_path):
    "Above four million pixels a picture is made RGB strip by strip; bit for bit as in one piece."
    image = hostile.scene("RGB" if mode == "turned" else mode, (2100, 2050))
    if mode == "P": image.info["transparency"] = bytes(range(200))
    if mode == "turned": image.getexif()[274] = 6
    upright = ImageOps.exif_transpose(image)
    one = base_pictures._part_to_rgb(upright, mode == "I;16"
                                     or (mode == "F" and np.asarray(image).max() > 255))
    assert base_pictures._to_rgb(image).tobytes() == one.tobytes() and one.size == upright.size


def test_header_of_a_large_file_is_checked_before_work(tmp_path):
    "Over 64 kB `check_images` reads the header only: enough to refuse what is too large."
    (tmp_path / "a.png").write_bytes(hostile.png(12_000, 12_000) + bytes(2**16))
    images = base_pictures.Images([tmp_path / "a.png"], np.array([0]), ("x",))
    refused(base_pictures.check_images, images, words=["12000 x 12000 pixels is over the limit"])


def test_statistics_of_a_huge_picture_are_taken_in_parts(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4100, 4100, 3), dtype=np.uint8)
    images = base_pictures.Images(pixels, np.array([0]), ("x",))
    tracemalloc.start()
    mean, covariance = data.colour_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    flat = pixels.reshape(-1, 3)
    torch.testing.assert_close(mean, torch.from_numpy(flat.mean(0) / 255), rtol=1e-9, atol=1e-9)
    by_numpy = np.cov((flat / 255.).astype(np.float32).T, bias=True)
    torch.testing.assert_close(covariance, torch.from_numpy(by_numpy), rtol=1e-3, atol=1e-6)
    assert peak < 900e6


# ---------------------------------------------------------------- archives: what was found

def cifar(root: Path, spoil: str | None = None, body: bytes = b"") -> Path:
    "A folder with batches, one of them replaced."
    (root / hostile.FOLDER).mkdir(parents=True)
    for name, good in hostile.good_members().items():
        (root / hostile.FOLDER / name).write_bytes(body if name == spoil else good)
    return root


@pytest.mark.parametrize("name", [*hostile.BATCHES, "batches.meta"])
def test_batches_that_would_run_code_are_not_unpickled(name, tmp_path, monkeypatch):
    """torchvision unpickles the batches, but only those whose MD5 it knows. The other files are right here,
    so that this one is reached."""
    from torchvision.datasets import CIFAR10
    sums = {n: base_cifar10.hashlib.md5(good).hexdigest() for n, good in hostile.good_members().items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in hostile.BATCHES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[n, sums[n]] for n in hostile.BATCHES[5:]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    assert len(base_cifar10.read_cifar10(cifar(tmp_path / "good"), may_download=False)) == 10
    evil = pickle.dumps(Evil())
    refused(lambda: base_cifar10.read_cifar10(cifar(tmp_path / "evil", name, evil), may_download=False),
            words=["a batch is missing or damaged"])
    assert not Path("marker").exists()
    pickle.loads(evil)
    assert Path("marker").exists()   # it is evil


def test_a_batch_that_is_far_too_large_is_not_read(tmp_path):
    "A sparse file of a terabyte: its MD5 would take an hour."
    root = cifar(tmp_path / "root")
    try: os.truncate(root / hostile.FOLDER / "data_batch_1", 2**40)
    except OSError: pytest.skip("no such large files here")
    refused(lambda: base_cifar10.read_cifar10(root, may_download=False),
            words=["a batch is missing or damaged"])
    (root / hostile.FOLDER).rename(tmp_path / "away")
    (tmp_path / "away" / "data_batch_1").rename(root / base_cifar10._CIFAR10_ARCHIVE)
    refused(lambda: base_cifar10.read_cifar10(root, may_download=False), words=["is not CIFAR-10's archive"])


@POSIX
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nowhere"])
def test_an_archive_that_is_no_file(kind, tmp_path):
    "Reading a pipe to which nobody writes would never end."
    path = tmp_path / base_cifar10._CIFAR10_ARCHIVE
    if kind == "pipe": os.mkfifo(path)
    if kind == "folder": path.mkdir()
    if kind == "link to nowhere": path.symlink_to(tmp_path / "nowhere")
    refused(lambda: base_cifar10.read_cifar10(tmp_path, may_download=False),
            words=["CIFAR-10's archive" if kind != "link to nowhere" else "holds neither"])


def taken_for_right(monkeypatch, root: Path, body: bytes):
    "Put an archive there and let its sum be the right one."
    root.mkdir()
    (root / base_cifar10._CIFAR10_ARCHIVE).write_bytes(body)
    monkeypatch.setattr(base_cifar10, "_CIFAR10_MD5", base_cifar10.hashlib.md5(body).hexdigest())


def one_member(name: str, **more) -> bytes:
    def add(tar):
        info = tarfile.TarInfo(name)
        for key, value in more.items(): setattr(info, key, value)
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return hostile.packed(hostile.good_members(), (add, False))


EVIL = {
    "a way out": ("../escaped", {"size": 4}),
    "an absolute path": ("/tmp/hostile_escaped", {"size": 4}),
    "a link out": (f"{hostile.FOLDER}/a", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
    "a hard link": (f"{hostile.FOLDER}/a", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
    "a device": (f"{hostile.FOLDER}/a", {"type": tarfile.CHRTYPE}),
    "a pipe": (f"{hostile.FOLDER}/test_batch", {"type": tarfile.FIFOTYPE}),
    "twice the same": (f"{hostile.FOLDER}/test_batch", {"size": 4}),
    "a file with holes": (f"{hostile.FOLDER}/test_batch", {"type": tarfile.GNUTYPE_SPARSE}),
    "a stranger": (f"{hostile.FOLDER}/evil.py", {"size": 4}),
    "escape codes": (f"{hostile.FOLDER}/\x1b[31m\n", {"size": 4}),
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_archive_with(kind, tmp_path, monkeypatch):
    "Even with the right sum: nothing of it stays, inside or outside."
    name, more = EVIL[kind]
    taken_for_right(monkeypatch, tmp_path / "root", one_member(name, **more))
    before = snapshot(tmp_path)
    refused(base_cifar10._find_cifar10, tmp_path / "root", False, words=["cannot be unpacked"])
    assert (snapshot(tmp_path) == before and os.listdir(tmp_path / "root") == [base_cifar10._CIFAR10_ARCHIVE]
            and not Path("/tmp/hostile_escaped").exists())


@pytest.mark.parametrize("body", [b"\x1f\x8b", hostile.packed(hostile.good_members())[:20_000],
                                  hostile.gzip.compress(b"no tar" * 200)],
                         ids=["two bytes", "cut short", "no tar"])
def test_an_archive_that_is_damaged(body, tmp_path, monkeypatch):
    "It was a traceback."
    taken_for_right(monkeypatch, tmp_path / "root", body)
    refused(base_cifar10._find_cifar10, tmp_path / "root", False, words=["cannot be unpacked"])
    assert os.listdir(tmp_path / "root") == [base_cifar10._CIFAR10_ARCHIVE]


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(base_cifar10, "_CIFAR10_MOST", 2**20)
    for k, kind in enumerate((tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)):
        taken_for_right(monkeypatch, tmp_path / str(k),
                        hostile.huge(f"{hostile.FOLDER}/data_batch_1", kind, 2**24, 2**24))
        refused(base_cifar10._find_cifar10, tmp_path / str(k), False,
                words=["unpacks to more than it should"])


def test_a_download_that_does_not_end(tmp_path, monkeypatch):
    (tmp_path / "endless").write_bytes(bytes(5 * 2**20))
    monkeypatch.setattr(base_cifar10, "_CIFAR10_MOST", 2**21)
    refused(base_cifar10._fetch_cifar10, tmp_path / "root", [(tmp_path / "endless").as_uri()],
            words=["more comes than the file can hold"])
    assert os.listdir(tmp_path / "root") == []


# ---------------------------------------------------------------- names and kinds of files

NAMES = ["a b.png", " leading.png", "two\nlines.png", "tab\t.png", "\r.png", "cafe\u0301.png",
         "caf\u00e9.png", "\u202egnp.exe.png", "\u05d0\u05d1.png", "\U0001f600.png", "-x.png", "--csv.png",
         "x" * 251 + ".png", "\x1b[31mred\x1b[0m.png", "\x1b]0;title\x07.png", "it's \"q\",;.png", "=1+1.png",
         "%s{0}.png", "$x_{.png", "*.png", "#.png", "\x7f\x80\x9b.png", "UPPER.PNG", "a.b.c.JPG"]


@pytest.fixture
def odd_names(tmp_path) -> Path:
    "A folder of pictures with such names, and one whose name is no text."
    folder = tmp_path / "odd"
    body = save_drawings(tmp_path / "one", 1)[0].read_bytes()
    folder.mkdir()
    for name in [*map(os.fsencode, NAMES), *([b"caf\xe9 \xff.png"] if sys.platform == "linux" else [])]:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(body)
    return folder


@POSIX
def test_odd_names_for_people(odd_names, final, capsys):
    "One line each, and no code for a terminal; also where a file is bad."
    (odd_names / "bad \x1b[31m\n.png").write_bytes(b"none")
    assert inference.main(["--checkpoint", str(final), "--image-dir", str(odd_names)]) == 1
    out, err = capsys.readouterr()
    files = base_pictures.image_files(odd_names)
    assert (len(out.splitlines()) == len(files) - 1
            and all(line.isprintable() for line in (out + err).splitlines()))
    assert ("two\\nlines.png" in out and "\\x1b[31mred" in out
            and "bad \\x1b[31m\\n.png: not an image" in err and "caf\u00e9.png" in out)
    assert len(err.splitlines()) == 2


@POSIX
@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_odd_names_for_programs(form, odd_names, final):
    "A real process, whose stream is strict: every name comes back as the bytes that it is on disk."
    run = subprocess.run([sys.executable, "-m", "alexnet_nb.inference", "--checkpoint", final, "--image-dir",
                          odd_names, form], capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr
    text = run.stdout.decode("utf-8", "surrogateescape")
    rows = json.loads(text) if form == "--json" else list(csv.DictReader(io.StringIO(text, newline="")))
    names = map(os.fsencode, base_pictures.image_files(odd_names))
    assert sorted(os.fsencode(row["path"]) for row in rows) == sorted(names)
    assert not any(row.get("error") for row in rows)


@POSIX
def test_odd_names_where_only_ascii_can_be_written(odd_names, final):
    run = subprocess.run([sys.executable, "-m", "alexnet_nb.inference", "--checkpoint", final, "--image-dir",
                          odd_names], capture_output=True, timeout=120,
                         env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0 and b"Traceback" not in run.stderr and b"caf\\xe9.png" in run.stdout


@POSIX
def test_odd_names_given_one_by_one(odd_names, final, capsys, monkeypatch):
    monkeypatch.chdir(odd_names)
    for path in base_pictures.image_files(odd_names)[:8]:
        name = path.name
        assert inference.main(["--checkpoint", str(final), f"--image={name}"]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 1 and out.rstrip("\n").isprintable() and not err


@POSIX
@pytest.mark.parametrize("name", ["\x1b[31m\n", "x" * 300, "a" * 5000, "\udcff", "loop/loop/a.png", "a\0b"])
def test_odd_names_that_are_nowhere(name, final, capsys):
    Path("loop").symlink_to("loop")
    for argument in ("--image", "--image-dir"):
        assert inference.main(["--checkpoint", str(final), f"{argument}={name}"]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and err.rstrip("\n").isprintable()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=30), min_size=1,
                max_size=5), st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_name_survives_json_and_csv(names, error):
    "Also stray halves of characters, which is how Python holds bytes that are no text."
    classes = ("a", "b,\"\n;")
    rows = [engine_predict_command._Prediction(name, [.25, .75]) if k
            else engine_predict_command._Prediction(name, error=error) for k, name in enumerate(names)]
    out = io.StringIO()
    engine_predict_command._write_json(rows, classes, out)
    assert [row["path"] for row in json.loads(out.getvalue())] == names
    out = io.StringIO(newline="")
    engine_predict_command._write_csv(rows, classes, out)
    table = list(csv.reader(io.StringIO(out.getvalue(), newline="")))
    assert (table[0] == ["path", "prediction", *classes, "unsure", "error"]
            and [row[0] for row in table[1:]] == names and table[1][-1] == error)
    for row in rows[1:]:
        text = engine_predict_command._format_prediction(row, classes, None)
        assert all(line.isprintable() for line in text.split("\n"))


def test_json_is_written_as_it_comes_and_as_before(monkeypatch):
    """100,000 answers of 1,000 classes would be some gigabytes; the text is what `json.dump` makes of all of
    them."""
    rows = [engine_predict_command._Prediction("a", [.25, .75]),
            engine_predict_command._Prediction("b", error="bad"),
            engine_predict_command._Prediction("c\n", [.5, .5])]
    def coming(some, out, seen):
        for row in some:
            yield row
            seen.append(out.tell())
    def as_dict(p):
        if p.error: return dict(path=p.path, error=p.error)
        ranked = p.ranked(("x", "y"))
        unsure = ranked[0][1] < inference.UNSURE_BELOW
        return dict(path=p.path, prediction=ranked[0][0], unsure=unsure, probabilities=dict(ranked))
    for some in (rows, rows[:1], []):
        out, seen = io.StringIO(), []
        engine_predict_command._write_json(coming(some, out, seen), ("x", "y"), out)
        whole = [as_dict(p) for p in some]
        assert out.getvalue() == json.dumps(whole, indent=1) + "\n"
        assert seen == sorted(set(seen)) and (not seen or seen[0] > 10)


def odd_kinds(folder: Path) -> dict[str, str]:
    "Things that are called like pictures and are none: what their line says. Two good ones beside them."
    save_drawings(folder, 2)
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(folder)   # the path of a socket may be no longer than 100 bytes
        s.bind("socket.png")
        os.chdir(here)
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("nowhere at all")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "up.png").symlink_to("..")
    (folder / "cpu.png").symlink_to("/proc/self/status")
    return {"pipe.png": "is a pipe", "socket.png": "is a pipe, a socket", "folder.png": "is a folder",
            "loop.png": "Too many levels of symbolic links", "nowhere.png": "no such file",
            "zero.png": "or a device", "up.png": "is a folder", "cpu.png": "is empty"}


@LINUX
def test_odd_kinds_of_files(tmp_path, final):
    "A pipe to which nobody writes must not hold everything up."
    words = odd_kinds(tmp_path / "odd")
    run = subprocess.run([sys.executable, "-m", "alexnet_nb.inference", "--checkpoint", final, "--image-dir",
                          tmp_path / "odd"], capture_output=True, text=True, timeout=60)
    lines = run.stderr.splitlines()
    assert (run.returncode == 1 and lines[-1] == f"2 predicted, {len(words)} skipped"
            and len(lines) == len(words) + 1)
    for name, text in words.items():
        assert sum(f"/{name}: " in line and text in line for line in lines) == 1, name
        one = base_pictures.Images([tmp_path / "odd" / name], np.array([0]), ("x",))
        refused(base_pictures.check_images, one, words=[text])


@LINUX
def test_odd_kinds_of_files_in_training(tmp_path, capsys):
    root = class_folders(tmp_path / "root", train=2, test=1)
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    (root / "train" / "loop").symlink_to("loop")
    (root / "train" / "again").symlink_to("..")
    argv = tiny(tmp_path / "out", data__dataset="CIFAR10", data__data_dir=str(root), data__val_images=5)
    assert train.main(argv) == 2
    assert capsys.readouterr().err == (
        f"alexnet_train: {root}/train/cat/pipe.png: is a pipe, a socket or a device, not a file; "
        "save the image first\n")


@LINUX
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() != 0,
                    reason="to become somebody else one must be root")
def test_files_that_may_not_be_read():
    "As a user to whom the files do not belong."
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        locked, shut = save_drawings(Path(place), 1)[0], Path(place) / "shut"
        locked.chmod(0)
        shut.mkdir(mode=0o700)
        code = f"""
import os, sys
from PIL import Image
from alexnet_nb.base import pictures
from alexnet_nb.engine.predict_command import _folder_images
Image.init()  # its readers are imported late, and then we may not
os.setuid(65534)
try: open(pictures.__file__).close()
except PermissionError: sys.exit(77)
locked, shut = {str(locked)!r}, {str(shut)!r}
for call in (lambda: pictures.open_rgb(locked),
             lambda: pictures.check_images(pictures.Images([locked], [0], ("x",))),
             lambda: _folder_images(shut)):
    try: call()
    except pictures.InputError as e: print(e)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        if run.returncode == 77: pytest.skip("another user may not read the library here")
        assert (run.returncode, run.stderr) == (0, ""), run.stderr
        assert run.stdout.splitlines() == [
            f"{locked}: may not be read; change its permissions",
            f"{locked}: may not be read; change its permissions",
            f"{shut}: cannot be read (Permission denied); check its permissions"], run.stdout


@pytest.mark.parametrize("kind", ["away", "pipe", "empty"])
def test_files_that_change_between_listing_and_opening(kind, tmp_path, final, monkeypatch, capsys):
    if kind == "pipe" and os.name == "nt": pytest.skip("no pipes with a name")
    folder = tmp_path / "pictures"
    save_drawings(folder, 3)
    listing = engine_predict_command._folder_images
    def then(where):
        files = listing(where)
        files[1].unlink()
        if kind == "pipe": os.mkfifo(files[1])
        if kind == "empty": files[1].touch()
        return files
    monkeypatch.setattr(engine_predict_command, "_folder_images", then)
    assert inference.main(["--checkpoint", str(final), "--image-dir", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert (len(out.splitlines()) == 2 and err.splitlines()[1] == "2 predicted, 1 skipped"
            and "001.png: " in err)
    refused(base_pictures.check_images, base_pictures.Images([folder / "001.png"], np.array([0]), ("x",)),
            words=["001.png: "])


@LINUX
def test_a_class_whose_name_is_no_text(tmp_path, capsys):
    "It would be written into the checkpoint, and that could not be read again."
    root = class_folders(tmp_path / "root", classes=("a", "b"), train=8, test=2)
    (root / "train" / os.fsdecode(b"\xff\xfe")).mkdir()
    argv = tiny(tmp_path / "out", data__dataset="ImageFolder", data__data_dir=str(root), data__val_images=5,
                model__num_classes=3)
    assert train.main(argv) == 2
    assert capsys.readouterr().err == (f"alexnet_train: {root}/train/\\udcff\\udcfe: the name is not UTF-8; "
                                       "give the folder another one\n")


@POSIX
def test_classes_with_odd_names(tmp_path, capsys):
    """Trained with TensorBoard's pictures, saved, and predicted: the names come through, and nothing is taken
    for a formula or a code."""
    names = sorted(["a b", "$x_{$", "\x1b[31mred", "nai\u0308ve", "two\nlines", "=1+1", ",;\"'", "-x", "%s",
                    "y" * 255])
    root = class_folders(tmp_path / "root", classes=names, train=2, test=1)
    argv = tiny(tmp_path / "out", data__dataset="ImageFolder", data__data_dir=str(root),
                data__train_images=None, data__test_images=None, data__val_images=10, training__num_epochs=1)
    assert train.main(argv) == 0
    capsys.readouterr()
    final = tmp_path / "out" / "models" / "alexnet_final.pkl"
    predict = ["--checkpoint", str(final), "--image", str(root / "test" / "a b" / "0.png"), "--set",
               "device.use_cuda=false"]
    assert inference.main([*predict, "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)[0]["probabilities"]) == names
    assert inference.main([*predict, "--show-all-probs"]) == 0
    assert (len(lines := capsys.readouterr().out.splitlines()) == 11
            and all(line.isprintable() for line in lines))


# ---------------------------------------------------------------- many files

@POSIX
def test_a_folder_of_100_000_files(tmp_path, monkeypatch):
    """Names are listed, pictures are not held: what is in memory while predicting does not grow with the
    folder."""
    seeds, folder = save_drawings(tmp_path / "seeds", 4), tmp_path / "many"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for k in range(100_000): os.link(seeds[k % 4], f"{k:06}.png", dst_dir_fd=here)
    os.close(here)
    classifier = inference.Classifier(torch.nn.Identity(), data.usual_recipe(), ("a", "b"),
                                      torch.device("cpu"))
    monkeypatch.setattr(engine_predict_command, "_answer",
                        lambda classifier, read, views: [[.5, .5]] * len(read))
    try:
        tracemalloc.start()
        files = engine_predict_command._folder_images(folder)
        names = tracemalloc.get_traced_memory()[0]
        assert len(files) == 100_000 and files[99_999].name == "099999.png" and names < 100e6
        tracemalloc.reset_peak()
        found = engine_predict_command.predict_files(classifier, files)
        for _ in range(1000): assert next(found).error is None
        found.close()
        assert tracemalloc.get_traced_memory()[1] - names < 20e6
    finally:
        tracemalloc.stop()
        subprocess.run(["rm", "-r", str(folder)])


def test_what_pillow_logs_does_not_reach_stderr(tmp_path):
    "A TIFF that claims 2,560 values a pixel: Pillow logs an error of its own before it raises."
    path = tmp_path / "many.tif"
    Image.new("RGB", (8, 8)).save(path)
    content, entry = path.read_bytes(), struct.pack("<HHI", 277, 3, 1)
    at = content.index(entry) + len(entry)
    path.write_bytes(content[:at] + struct.pack("<H", 2560) + content[at + 2:])
    code = f"""
from alexnet_nb.data import open_rgb
try: open_rgb({str(path)!r})
except Exception as e: print(type(e).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.stdout, done.stderr) == ("InputError\n", "")
    code = f"""
from PIL import Image
try: Image.open({str(path)!r})
except Exception: pass
"""
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert "More samples per pixel" in plain.stderr  # Pillow alone does say it
