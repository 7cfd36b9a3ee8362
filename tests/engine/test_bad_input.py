"""Bad input, row by row: one line on stderr that names the thing and the cure, the exit code, no traceback,
and nothing lost or overwritten."""
import errno
import functools
import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from watch import Evil

from alexnet_nb import inference, train
from alexnet_nb.base import cifar10 as base_cifar10
from alexnet_nb.base.errors import InputError
from alexnet_nb.engine import files as engine_files
from alexnet_nb.engine import loaders as engine_loaders
from alexnet_nb.engine import logs as engine_logs
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.config import load_config
from common import STEPS, TINY, class_folders, command, load, save_drawings, settings, snapshot, tiny

SHIPPED = "default, paper, quick, short"


@pytest.fixture
def refused(capsys, tmp_path):
    "Call a command, expect exit 2 and exactly this line on stderr, and every file as it was."
    def check(main, argv, line: str, code: int = 2):
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main([str(a) for a in argv]) == code
        name = "alexnet_train" if main is train.main else "alexnet_predict"
        assert capsys.readouterr().err == f"{name}: {line}\n"
        assert snapshot(tmp_path) == before
    return check


def pillow_says(path: Path) -> str:
    "Pillow's own words for what is wrong with a file; they are not ours to test."
    with pytest.raises(OSError) as e, Image.open(path) as image: image.load()
    return str(e.value)


@pytest.fixture
def failed(capsys):
    """Call a command whose work begins and fails: exit 1, this last line on stderr (a progress bar may stand
    before it), no traceback."""
    def check(main, argv, line: str):
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 1
        err = capsys.readouterr().err
        name = "alexnet_train" if main is train.main else "alexnet_predict"
        assert err.splitlines()[-1] == f"{name}: {line}"
        assert "Traceback" not in err and err.count(f"{name}:") == 1
    return check


# ---------------------------------------------------------------- config

CONFIGS = {
    "empty": ("", "{path}: is empty; leave out --config to use the defaults"),
    "only a comment": ("# nothing\n", "{path}: is empty; leave out --config to use the defaults"),
    "not YAML": ("training:\n  seed: [1, 2\n",
                 "{path}:3: not valid YAML (expected ',' or ']', but got '<stream end>')"),
    "a tab": ("training:\n\tseed: 1\n",
              "{path}:2: not valid YAML (found character '\\t' that cannot start any token)"),
    "an impossible date": ("training:\n  seed: 2012-13-45\n",
                           "{path}:2: YAML makes a date, or another number, of '2012-13-45'; put a text in "
                           "quotes, and write a number in plain digits"),
    "a Python object": ("training: !!python/object/apply:os.getcwd []\n",
                        "{path}:1: not valid YAML (could not determine a constructor for the tag "
                        "'tag:yaml.org,2002:python/object/apply:os.getcwd')"),
    "a list at the top": ("- training\n- data\n",
                          "{path}: the top level is a list; it must be sections such as 'training:'"),
    "a word at the top": ("quick\n",
                          "{path}: the top level is a str; it must be sections such as 'training:'"),
    "unknown key": ("training:\n  learning_rat: 0.1\n",
                    "{path}: unknown key 'training.learning_rat'; did you mean 'learning_rate'?"),
    "unknown key far from all": ("device:\n  zzz: 1\n",
                                 "{path}: unknown key 'device.zzz'; known keys: use_cuda, device_ids, "
                                 "precision, channels_last, compile, reuse_memory, native_lrn"),
    "unknown section": ("trainin:\n  seed: 1\n", "{path}: unknown key 'trainin'; did you mean 'training'?"),
    "wrong type": ("training:\n  batch_size: many\n",
                   "{path}: training.batch_size is 'many'; input should be a valid integer"),
    "a float for a whole number": ("training:\n  seed: 1e3\n",
                                   "{path}: training.seed is 1000.0; input should be a valid integer"),
    "a number for a switch": ("device:\n  use_cuda: 1\n",
                              "{path}: device.use_cuda is 1; input should be a valid boolean"),
    "a section that is a number": ("training: 5\n",
                                   "{path}: training is 5; it must be a section, with keys below it"),
    "below its range": ("training:\n  learning_rate: 0\n",
                        "{path}: training.learning_rate is 0; input should be greater than 0"),
    "above its range": ("training:\n  momentum: 1.0\n",
                        "{path}: training.momentum is 1.0; input should be less than 1"),
    "not finite": ("training:\n  learning_rate: .inf\n",
                   "{path}: training.learning_rate is inf; input should be a finite number"),
    "none of the choices": ("model:\n  image_dim: 226\n",
                            "{path}: model.image_dim is 226; input should be 227 or 224"),
    "two at once": ("training:\n  seed: x\n  momentum: 2\n",
                    "{path}: training.momentum is 2; input should be less than 1 (and 1 more)"),
    "a GPU id below zero": ("device:\n  device_ids: [-1]\n",
                            "{path}: device.device_ids.0 is -1; input should be greater than or equal to 0"),
    "two data roots": ("data:\n  data_dir: a\npaths:\n  input_root_dir: b\n",
                       "{path}: data.data_dir is 'a' and paths.input_root_dir is 'b': they mean one place, "
                       "give one of them"),
}


@pytest.mark.parametrize("text, line", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("main", [train.main, inference.main], ids=["train", "predict"])
def test_config(main, text, line, tmp_path, refused):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    rest = [] if main is train.main else ["--checkpoint", "none.pkl", "--image", "none.png"]
    refused(main, ["--config", path, *rest], line.format(path=path))
    assert [p.name for p in tmp_path.iterdir()] == ["my.yaml"]


def test_config_missing(refused):
    refused(train.main, ["--config", "nowhere.yaml"],
            f"nowhere.yaml: no such config; give a YAML file or one of {SHIPPED}")
    refused(train.main, ["--config", "quik"], f"quik: no such config; give a YAML file or one of {SHIPPED}")


def test_config_that_is_a_folder_or_no_text(tmp_path, refused):
    refused(train.main, ["--config", tmp_path], f"{tmp_path}: is a folder, not a config file")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    refused(train.main, ["--config", "binary.yaml"],
            "binary.yaml: cannot be read, for it is not in UTF-8; save it so")


@pytest.mark.parametrize("pair, line", [
    ("training.sed=1", "--set: unknown key 'training.sed'; did you mean 'seed'?"),
    ("training.seed=-1", "--set: training.seed is -1; input should be greater than or equal to 0"),
    ("training.seed", "--set training.seed: write it as section.key=value"),
    ("seed=1", "--set seed=1: write it as section.key=value"),
    ("training.seed=[",
     "--set training.seed:1: not valid YAML (expected the node content, but found '<stream end>')"),
])
def test_set(pair, line, refused):
    refused(train.main, ["--set", pair], line)


@pytest.mark.parametrize("main", [train.main, inference.main], ids=["train", "predict"])
def test_float16_is_for_gpus(main, tmp_path, refused, final, pictures):
    rest = tiny(tmp_path / "out") if main is train.main else ["--checkpoint", final, "--image-dir", pictures]
    refused(main, [*rest, "--set", "device.use_cuda=false", "--set", "device.precision=fp16"],
            "device.precision is 'fp16', which is for GPUs; on a CPU use bf16, fp32 or auto")


# ---------------------------------------------------------------- data

def with_folders(root: Path, dataset="CIFAR10", **changes) -> list[str]:
    return tiny(root.parent / "out", data__dataset=dataset, data__data_dir=str(root), data__val_images=5,
                **changes)


def test_data_folder_missing(tmp_path, refused):
    refused(train.main, with_folders(tmp_path / "nowhere"),
            f"{tmp_path / 'nowhere'}: holds neither CIFAR-10's batches, nor cifar-10-python.tar.gz, "
            "nor train/ and test/ folders; put one there or set data.download to true")
    refused(train.main, with_folders(tmp_path / "nowhere", "ImageFolder"),
            f"{tmp_path / 'nowhere'}: no such folder; set data.data_dir to where the images are")


def test_data_folder_empty(tmp_path, refused):
    (tmp_path / "root" / "train").mkdir(parents=True)
    for dataset in ("CIFAR10", "ImageFolder"):
        refused(train.main, with_folders(tmp_path / "root", dataset),
                f"{tmp_path / 'root' / 'train'}: is empty; it needs one folder of images a class")


def test_data_without_one_of_the_classes(tmp_path, refused):
    root = class_folders(tmp_path / "root", train=1, test=1)
    names = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
    (root / "test" / "dog").rename(tmp_path / "dog")
    for dataset in ("CIFAR10", "ImageFolder"):
        refused(train.main, with_folders(root, dataset),
                f"{root / 'test'}: has no folder for the class 'dog'; it needs {names}")
    (root / "train" / "cat").rename(tmp_path / "cat")
    refused(train.main, with_folders(root),
            f"{root / 'train'}: has no folder for the class 'cat'; it needs {names}")


def test_data_with_a_class_that_has_no_image(tmp_path, refused):
    root = class_folders(tmp_path / "root", train=1, test=1)
    for path in (root / "train" / "cat").iterdir(): path.rename(tmp_path / "gone.png")
    refused(train.main, with_folders(root),
            f"{root / 'train' / 'cat'}: holds no image; put some there or take the folder away")


def test_data_with_an_unreadable_image(tmp_path, refused):
    root = class_folders(tmp_path / "root", train=1, test=1)
    bad = root / "train" / "deer" / "0.png"
    bad.write_bytes(bad.read_bytes()[:300])
    refused(train.main, with_folders(root),
            f"{bad}: damaged image ({pillow_says(bad)}); fetch it again or take it away")


def test_number_of_classes_against_the_folders(tmp_path, refused):
    root = class_folders(tmp_path / "root", classes=("ant", "bee", "fly"), train=2, test=1)
    refused(train.main, with_folders(root, "ImageFolder"),
            f"{root}: has 3 classes, model.num_classes is 10; make them agree")
    refused(train.main, tiny(tmp_path, model__num_classes=7),
            "drawings: has 10 classes, model.num_classes is 7; make them agree")


def test_nothing_left_to_train_on(tmp_path, refused):
    root = class_folders(tmp_path / "root", train=1, test=1)
    refused(train.main, [*with_folders(root), "--set", "data.val_images=10"],
            "data.val_images is 10, but there are 10 training images; hold out fewer than 10")
    refused(train.main, tiny(tmp_path, training__batch_size=64, data__drop_last=True),
            "training.batch_size is 64, but there are 48 training images and data.drop_last is on")


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_breaks_after_work_began(workers, tmp_path, failed):
    """Of a large file the header and the end are looked at, so it can still turn out bad later: exit 1, and
    still one line."""
    root = class_folders(tmp_path / "root", train=2, test=1)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    bad = root / "train" / "deer" / "1.png"
    Image.fromarray(noise).save(bad)
    whole = bytearray(bad.read_bytes())
    whole[80_000:81_000] = bytes(1000)
    bad.write_bytes(whole)
    failed(train.main, with_folders(root, data__loader="workers", data__num_workers=workers,
                                    data__train_images=None),
           f"{bad}: damaged image ({pillow_says(bad)}); fetch it again or take it away; mend the file")


# ---------------------------------------------------------------- archive

def test_archive_of_the_user_with_a_wrong_md5_is_left_alone(tmp_path, refused):
    archive = tmp_path / "root" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"<html>503 Service Unavailable</html>")
    for download in (False, True):
        refused(train.main, with_folders(tmp_path / "root", data__download=download),
                f"{archive}: is not CIFAR-10's archive (its MD5 is not c58f30108f718f92721af3b95e74349a); "
                "replace it or move it away")
    assert archive.read_bytes().startswith(b"<html>")


@pytest.fixture
def server():
    "A server on this machine that answers a path with (status, body, length that it claims)."
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body, length = answers[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(length if length is not None else len(body)))
            self.end_headers()
            self.wfile.write(body)
            if self.path == "/slow": time.sleep(1)

        def log_message(self, *args): pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    def url(path: str, status=200, body=b"", length=None) -> str:
        answers[path] = status, body, length
        return f"http://127.0.0.1:{httpd.server_port}{path}"
    yield url
    httpd.shutdown()
    httpd.server_close()


def use_sources(monkeypatch, *urls):
    "Let commands download from these places instead of the real ones."
    monkeypatch.setattr(base_cifar10, "_find_cifar10",
                        functools.partial(base_cifar10._find_cifar10, sources=urls))


def test_our_own_bad_download_is_removed(tmp_path, monkeypatch, capsys, server):
    root = tmp_path / "root"
    url = server("/wrong", body=b"<html>not the archive</html>")
    use_sources(monkeypatch, url)
    assert train.main(with_folders(root, data__download=True)) == 2
    host = url.split("/")[2]
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == (f"alexnet_train: CIFAR-10 could not be downloaded ({host}: the file "
                                    "that came has another MD5); "
                                    f"put cifar-10-python.tar.gz into {root} by hand")
    assert "Traceback" not in err and list(root.iterdir()) == []


def test_download_tells_what_every_source_said(tmp_path, monkeypatch, capsys, server):
    root, gone, short = tmp_path / "root", server("/gone", 503), server("/short", body=b"half", length=8)
    local = tmp_path / "wrong.bin"
    local.write_bytes(b"wrong")
    with pytest.raises(InputError) as e:
        base_cifar10._fetch_cifar10(root, (gone, short, local.as_uri(), "http://127.0.0.1:9/closed"),
                                    timeout=5)
    text = str(e.value)
    assert "503" in text and text.count("another MD5") == 2 and "refused" in text and "\n" not in text
    assert list(root.iterdir()) == [] and local.read_bytes() == b"wrong"


def test_download_gives_up_on_a_silent_server(tmp_path, server):
    url = server("/slow", body=b"x", length=100)
    began = time.monotonic()
    with pytest.raises(InputError, match="timed out"):
        base_cifar10._fetch_cifar10(tmp_path / "root", (url,), timeout=0.2)
    assert time.monotonic() - began < 10 and list((tmp_path / "root").iterdir()) == []


def small_archive(path: Path) -> bytes:
    "A tar.gz with the folder that CIFAR-10's has, and nothing that is right in it."
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"none"))
    return path.read_bytes()


def test_good_download_after_a_bad_source_is_unpacked(tmp_path, monkeypatch, server):
    body = small_archive(tmp_path / "made.tar.gz")
    monkeypatch.setattr(base_cifar10, "_CIFAR10_MD5", hashlib.md5(body).hexdigest())
    root = tmp_path / "root"
    base_cifar10._find_cifar10(root, True, (server("/bad", body=b"no"), server("/good", body=body)))
    assert ((root / "cifar-10-python.tar.gz").read_bytes() == body
            and (root / "cifar-10-batches-py" / "data_batch_1").is_file())
    base_cifar10._find_cifar10(root, True, ("http://127.0.0.1:9/never asked",))


def test_damaged_batches(tmp_path, refused):
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"none")
    refused(train.main, with_folders(tmp_path / "root"),
            f"{folder}: a batch is missing or damaged; remove the folder to unpack it again")


def test_download_is_never_begun_when_told_not_to(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_cifar10.urllib.request, "urlopen",
                        lambda *a, **k: pytest.fail("the network was asked"))
    assert train.main(with_folders(tmp_path / "root", data__download=False)) == 2
    assert not (tmp_path / "root").exists()


def test_data_folder_that_cannot_be_made(tmp_path, refused):
    (tmp_path / "file").write_text("a file")
    refused(train.main, tiny(tmp_path / "out", data__dataset="CIFAR10",
                             data__data_dir=str(tmp_path / "file" / "root"), data__download=True),
            f"{tmp_path / 'file' / 'root'}: cannot be made (Not a directory); choose another data.data_dir")


# ---------------------------------------------------------------- checkpoint

def bad_checkpoint(kind: str, path: Path, good: Path) -> str:
    "Write a bad checkpoint; the line that refuses it."
    cannot = "{path}: cannot be read as a checkpoint ({why}); give one that alexnet_train wrote"
    damaged, code = "damaged, cut short, or another kind of file", "it would run code"
    if kind == "missing":
        return f"{path}: no such checkpoint; check the path, or train one with alexnet_train"
    if kind == "a folder":
        path.mkdir()
        return f"{path}: is not a file; give the .pkl file itself"
    if kind == "empty":
        path.touch()
        return f"{path}: is empty; give a checkpoint that alexnet_train wrote"
    if kind == "text": path.write_text("hello, this is no checkpoint\n" * 20)
    if kind == "HTML": path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-5000])
        return cannot.format(path=path, why=f"{damaged}: its directory is not where it should be")
    if kind == "an image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        # so its first byte would be read
        return cannot.format(path=path, why=f"{damaged}: it has a step PERSID")
    if kind == "other weights":
        torch.save({"model": {"layer.weight": torch.zeros(2, 2)}}, path)
        return f"{path}: its weights are not those of this AlexNet"
    if kind == "weights of another shape":
        torch.save({"model": load(good)["model"] | {"classifier.4.weight": torch.zeros(3, 3)},
                    "config": load(good)["config"]}, path)
        return f"{path}: its weights do not fit the network it describes"
    if kind == "no model":
        torch.save({"epoch": 3}, path)
        return (f"{path}: holds no 'model' with the network's weights; "
                "give a checkpoint that alexnet_train wrote")
    if "runs code" in kind:
        evil = {"model": Evil(path.with_name("hacked"))}
        if kind.startswith("a zip"): torch.save(evil, path)
        else: path.write_bytes(pickle.dumps(evil, protocol=2 if "old" in kind else None))
        # refused there, unread
        if kind == "a pickle that runs code":
            return cannot.format(path=path, why=f"{damaged}: it has a step FRAME")
        return cannot.format(path=path, why=code)
    return cannot.format(path=path, why=damaged)


KINDS = ["missing", "a folder", "empty", "text", "HTML", "truncated", "an image", "no model", "other weights",
         "weights of another shape",
         "an old pickle that runs code", "a pickle that runs code", "a zip that runs code"]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_for_prediction(kind, tmp_path, refused, final, pictures):
    path = tmp_path / "bad.pkl"
    line = bad_checkpoint(kind, path, final)
    refused(inference.main, ["--checkpoint", path, "--image", pictures / "000.png", "--set",
                             "device.use_cuda=false"], line)
    refused(inference.main, ["--checkpoint", path, "--image-dir", pictures, "--set", "device.use_cuda=false"],
            line)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("kind", [k for k in KINDS if "weights" not in k])
def test_checkpoint_for_resume(kind, tmp_path, refused, final):
    path = tmp_path / "bad.pkl"
    refused(train.main, ["--resume", path, *tiny(tmp_path / "out")], bad_checkpoint(kind, path, final))
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "out").exists()


def test_the_evil_pickle_is_evil(tmp_path):
    "The test above means something: read without care, the same file does run code."
    path = tmp_path / "bad.pkl"
    bad_checkpoint("a pickle that runs code", path, path)
    pickle.loads(path.read_bytes())
    assert (tmp_path / "hacked").exists()


def test_checkpoint_with_another_number_of_classes(tmp_path, refused, final, pictures):
    config = tmp_path / "seven.yaml"
    config.write_text("model:\n  num_classes: 7\n")
    line = "model.num_classes is 7, but the checkpoint has 10 classes; make them agree or leave it out"
    predict = ["--checkpoint", final, "--image", pictures / "000.png"]
    refused(inference.main, [*predict, "--config", config], f"{config}: {line}")
    refused(inference.main, [*predict, "--set", "model.num_classes=7"], f"--set: {line}")
    resume = ["--resume", final, *tiny(tmp_path / "out", model__num_classes=7, training__num_epochs=3)]
    refused(train.main, resume,
            "model.num_classes is 7, but the checkpoint was trained with 10; leave it out or start anew")


def test_spoiled_weights(tmp_path, failed, final, pictures):
    "Work begins and the outputs are NaN: exit 1."
    checkpoint = load(final)
    checkpoint["model"]["classifier.6.bias"][3] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.pkl")
    failed(inference.main, ["--checkpoint", "nan.pkl", "--image", pictures / "000.png"],
           "the network's outputs are not finite numbers; its weights are damaged")


# ---------------------------------------------------------------- images

def png_header(width: int, height: int) -> bytes:
    "A PNG that claims a size and holds nothing: what a decompression bomb looks like before it goes off."
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
            + chunk(b"IEND", b""))


def bad_image(kind: str, path: Path) -> str:
    "Write a bad image; the line that refuses it."
    again = "fetch it again or take it away"
    if kind == "missing": return f"{path}: no such file; check the path"
    if kind == "zero bytes": path.touch()
    if kind == "text named .jpg": path.write_text("this is a text\n" * 10)
    if kind == "unsupported format":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>')
    if kind == "truncated":
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:1500])
    if kind == "bomb": path.write_bytes(png_header(60_000, 60_000))
    if kind == "small bomb": path.write_bytes(png_header(10_000, 10_000))
    if kind == "folder": path.mkdir()
    if kind == "truncated": return f"{path}: damaged image ({pillow_says(path)}); {again}"
    return {
        "zero bytes": f"{path}: is empty (0 bytes); {again}",
        "text named .jpg": f"{path}: not an image in a format that Pillow reads; save it as JPEG or PNG",
        "unsupported format": f"{path}: not an image in a format that Pillow reads; save it as JPEG or PNG",
        "bomb": f"{path}: has too many pixels to be safe; shrink it first",
        "small bomb": f"{path}: 10000 x 10000 pixels is over the limit of 89,478,485; shrink it first",
        "folder": f"{path}: is a folder, not an image; use --image-dir",
    }[kind]


IMAGES = {"missing": "a.jpg", "zero bytes": "b.jpg", "text named .jpg": "c.jpg",
          "unsupported format": "d.svg", "truncated": "e.jpg", "bomb": "f.png",
          "small bomb": "g.png", "folder": "h.jpg"}


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", IMAGES)
def test_image(kind, tmp_path, refused, final):
    path = tmp_path / IMAGES[kind]
    refused(inference.main, ["--checkpoint", final, "--image", path], bad_image(kind, path))


def test_image_folder(tmp_path, refused, final, pictures):
    predict = ["--checkpoint", final, "--image-dir"]
    refused(inference.main, [*predict, "nowhere"], "nowhere: no such folder; check the path")
    refused(inference.main, [*predict, pictures / "000.png"],
            f"{pictures / '000.png'}: is a file; use --image")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("no image")
    refused(inference.main, [*predict, "none"],
            "none: holds no image; their names must end in .jpg, .png or the like")


def test_folder_with_some_bad_files(tmp_path, capsys, final):
    "Each bad file is named, the rest is predicted, exit 1, and nothing is changed."
    folder = tmp_path / "mixed"
    save_drawings(folder, 3)
    (folder / "notes.txt").write_text("not looked at")
    expected = [f"alexnet_predict: {bad_image(kind, folder / name)}" for kind, name in IMAGES.items()
                if kind not in ("missing", "unsupported format")]
    before = snapshot(tmp_path)
    assert inference.main(["--checkpoint", str(final), "--image-dir", str(folder)]) == 1
    out, err = capsys.readouterr()
    expected[-1] = f"alexnet_predict: {folder / 'h.jpg'}: is a folder, not an image; use --image-dir"
    assert err.splitlines() == [*expected, "3 predicted, 6 skipped"]
    good = [str(folder / f"00{i}.png") for i in range(3)]
    assert [line.split(": ")[0] for line in out.splitlines()] == good
    assert snapshot(tmp_path) == before


def test_folder_with_only_bad_files(tmp_path, capsys, final):
    (tmp_path / "bad").mkdir()
    bad_image("zero bytes", tmp_path / "bad" / "a.png")
    assert inference.main(["--checkpoint", str(final), "--image-dir", "bad"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "alexnet_predict: bad/a.png: is empty (0 bytes); fetch it again or take it away",
        "0 predicted, 1 skipped"]


# ---------------------------------------------------------------- arguments

def usage(capsys, main, argv) -> list[str]:
    "What argparse says on stderr when it exits with 2."
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("usage: alexnet_") and "Traceback" not in lines
    return lines


def test_image_with_image_dir_or_neither(capsys):
    both = usage(capsys, inference.main, ["--checkpoint", "a.pkl", "--image", "a.png", "--image-dir", "b"])
    assert both[-1] == "alexnet_predict: error: argument --image-dir: not allowed with argument --image"
    neither = usage(capsys, inference.main, ["--checkpoint", "a.pkl"])
    assert neither[-1] == "alexnet_predict: error: one of the arguments --image --image-dir is required"


def test_json_with_csv(capsys):
    lines = usage(capsys, inference.main, ["--checkpoint", "a.pkl", "--image", "a.png", "--json", "--csv"])
    assert lines[-1] == "alexnet_predict: error: argument --csv: not allowed with argument --json"


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_minutes(minutes, capsys):
    wrong = f"alexnet_train: error: argument --minutes: {minutes} is not a number above 0"
    assert usage(capsys, train.main, [f"--minutes={minutes}"])[-1] == wrong


# ---------------------------------------------------------------- outputs

@pytest.mark.parametrize("key", ["output_dir", "checkpoint_dir", "log_dir"])
def test_output_folder_not_writable(key, tmp_path, refused):
    (tmp_path / "file").write_text("a file, not a folder")
    bad = tmp_path / "file" / "below"
    before = {"paths.output_dir": "out", "paths.checkpoint_dir": "out/models", "paths.log_dir": "out/tblogs"}
    refused(train.main, settings(TINY | before | {f"paths.{key}": str(bad)}),
            f"{bad}: cannot be written to (Not a directory); choose another folder under paths")
    assert (tmp_path / "file").read_text() == "a file, not a folder"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc on this system")
def test_output_folder_in_a_place_where_nobody_may_write(tmp_path, capsys):
    assert train.main(tiny(tmp_path / "out", paths__checkpoint_dir="/proc/models")) == 2
    err = capsys.readouterr().err
    assert (err.startswith("alexnet_train: /proc/models: cannot be written to (")
            and err.endswith("); choose another folder under paths\n") and err.count("\n") == 1)


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0,
                    reason="root may write everywhere")
def test_output_folder_that_is_read_only(tmp_path, refused):
    (tmp_path / "locked").mkdir(mode=0o555)
    refused(train.main, tiny(tmp_path / "locked"),
            f"{tmp_path / 'locked'}: cannot be written to (Permission denied); choose another folder under "
            "paths")


def test_results_file_that_cannot_be_written(tmp_path, refused):
    (tmp_path / "file").write_text("a file")
    refused(train.main, [*tiny(tmp_path / "out"), "--results", tmp_path / "file" / "r.json"],
            f"{tmp_path / 'file'}: cannot be written to (File exists); choose another folder for --results")
    refused(train.main, [*tiny(tmp_path / "out"), "--results", tmp_path],
            f"{tmp_path}: is a folder; --results takes a file")


# ---------------------------------------------------------------- the disk is full

@pytest.fixture
def one_epoch(tmp_path, no_panels):
    "The folder of a run that was stopped in the middle of epoch 2."
    out = tmp_path / "out"
    engine_train_command.fit(load_config(None, [a for a in tiny(out) if a != "--set"]), max_steps=8)
    return out


def checks_after_full_disk(out: Path, before: dict):
    """The former checkpoint is untouched and loads; nothing half written lies about; the run can go on from
    it."""
    models = out / "models"
    assert snapshot(models) == before
    assert load(models / "alexnet_last.pkl")["total_steps"] == 8
    assert train.main(["--resume", str(models / "alexnet_last.pkl"), *tiny(out)]) == 0
    assert load(models / "alexnet_final.pkl")["total_steps"] == 2 * STEPS


def test_disk_full_while_saving(one_epoch, monkeypatch, failed):
    "torch.save writes half and finds no room."
    before, path = snapshot(one_epoch / "models"), one_epoch / "models" / "alexnet_last.pkl"
    with monkeypatch.context() as m:
        def save(checkpoint, f):
            f.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        m.setattr(engine_files.torch, "save", save)
        failed(train.main, ["--resume", path, *tiny(one_epoch)],
               f"{path}: could not be written (No space left on device); free some space or choose another "
               "paths.checkpoint_dir")
    checks_after_full_disk(one_epoch, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_disk_full_for_real(one_epoch, monkeypatch, failed):
    "What is written before it is renamed goes to /dev/full, so torch itself meets the full disk."
    before, path = snapshot(one_epoch / "models"), one_epoch / "models" / "alexnet_last.pkl"
    with monkeypatch.context() as m:
        m.setattr(engine_files, "open", lambda p, mode="r", *args, **more: open("/dev/full" if mode == "wb"
            and Path(p).suffix == ".part" else p, mode, *args, **more), raising=False)
        failed(train.main, ["--resume", path, *tiny(one_epoch)],
               f"{path}: could not be written (No space left on device); free some space or choose another "
               "paths.checkpoint_dir")
    checks_after_full_disk(one_epoch, before)


@pytest.fixture
def small_disk(tmp_path):
    "A file system with room for one tiny checkpoint and a half; skips where it may not be mounted."
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(place)]
    done = shutil.which("mount") and subprocess.run(mount, capture_output=True)
    if not done or done.returncode: pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_disk_full_on_a_small_file_system(small_disk, tmp_path, no_panels, failed):
    "The first checkpoint fits, the second does not: exit 1, and the first still loads and predicts."
    path = small_disk / "alexnet_last.pkl"
    failed(train.main, tiny(tmp_path / "out", paths__checkpoint_dir=str(small_disk), training__num_epochs=1,
                            training__checkpoint_minutes=1e-9),
           f"{path}: could not be written (No space left on device); free some space or choose another "
           "paths.checkpoint_dir")
    assert (sorted(p.name for p in small_disk.iterdir()) == [".running.lock", "alexnet_last.pkl"]
            and load(path)["total_steps"] == 1)
    save_drawings(tmp_path / "pictures", 1)
    assert inference.main(["--checkpoint", str(path), "--image", str(tmp_path / "pictures" / "000.png")]) == 0


def test_disk_full_while_logging(tmp_path, monkeypatch, failed, no_panels):
    def write(self, kind, **values): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(engine_logs.Log, "write", write)
    failed(train.main, tiny(tmp_path),
           "output: No space left on device; free some space or choose another place")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_disk_full_while_printing(final, pictures):
    "A real process whose output goes to a full disk; Python's own exit adds nothing."
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-m", "alexnet_nb.inference", "--checkpoint", final, "--image",
                              pictures / "000.png", "--json"],
                             stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert run.returncode == 1
    assert run.stderr == ("alexnet_predict: output: No space left on device; free some space or choose "
                          "another place\n")


# ---------------------------------------------------------------- memory, NaN, workers

@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
                 "you tried to allocate 9 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: "
                 "you tried to allocate 9 bytes."),
], ids=["cuda", "python", "cpu", "windows"])
def test_out_of_memory(error, tmp_path, monkeypatch, failed):
    def train_step(*args, **more): raise error
    monkeypatch.setattr(train, "train_step", train_step)
    failed(train.main, tiny(tmp_path), "out of memory with batches of 8 images; halve training.batch_size")


def test_an_error_of_our_own_is_not_hidden(tmp_path, monkeypatch):
    def train_step(*args, **more): raise RuntimeError("a bug")
    monkeypatch.setattr(train, "train_step", train_step)
    with pytest.raises(RuntimeError, match="a bug"): train.main(tiny(tmp_path))


def test_loss_that_is_not_a_number(tmp_path, monkeypatch, failed, no_panels):
    "The checkpoint from before stays."
    argv = tiny(tmp_path, training__learning_rate=1e9, training__warmup_steps=0,
                training__checkpoint_minutes=1e-9)
    assert train.main(argv) == 1
    saved = load(tmp_path / "models" / "alexnet_last.pkl")
    step = saved["total_steps"] + 1
    assert step > 1
    failed(train.main, ["--resume", tmp_path / "models" / "alexnet_last.pkl", *argv],
           f"the loss is nan at step {step} (rate 1e+09); lower training.learning_rate; the last checkpoint "
           "is from before")
    assert load(tmp_path / "models" / "alexnet_last.pkl")["total_steps"] == saved["total_steps"]


def test_loss_stuck_at_the_start_is_named(capsys):
    engine_run._warn_if_stuck(2.3049, 10)
    assert capsys.readouterr().err == ("the loss is still ln 10 = 2.303, that of a network that answers "
                                       "every image alike; "
                                       "if it stays, try another training.learning_rate or model.init\n")
    engine_run._warn_if_stuck(2.2, 10)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_dead_worker(tmp_path, monkeypatch, capsys):
    def die(self, key):
        if get_worker_info(): os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(engine_loaders.PreparedImages, "__getitem__", die)
    assert train.main(tiny(tmp_path, data__loader="workers", data__num_workers=1)) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"alexnet_train: a process that loads images has died \(DataLoader worker "
                        r"\(pid.*\); take the file away if it does so again, or lower data\.num_workers",
                        err.splitlines()[-1])
    assert "Traceback" not in err


# ---------------------------------------------------------------- through real processes

def test_real_processes(tmp_path, final, pictures):
    "The same exit codes and lines come out of `python -m`."
    run = command("train", "--config", "nowhere.yaml", cwd=tmp_path)
    line = f"alexnet_train: nowhere.yaml: no such config; give a YAML file or one of {SHIPPED}\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", line)
    run = command("inference", "--checkpoint", final, "--image", "nowhere.png", cwd=tmp_path)
    line = "alexnet_predict: nowhere.png: no such file; check the path\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", line)
    run = command("inference", "--checkpoint", final, cwd=tmp_path)
    line = "alexnet_predict: error: one of the arguments --image --image-dir is required"
    assert run.returncode == 2 and run.stderr.splitlines()[-1] == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="pipes close otherwise on Windows")
def test_reader_that_goes_away(final, pictures):
    "`alexnet_predict ... | head` ends quietly."
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-m", "alexnet_nb.inference", "--checkpoint", final, "--image",
                          pictures / "000.png"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")
