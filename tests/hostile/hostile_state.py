"""Hostile checkpoints, configs, logs, event files and results: made by seeded functions, tried through every
door that reads them.

`run(n_checkpoints, n_configs, n_logs, seed)` tries so many of each and tells what came of it. The promise: a
proper result or one clear line; never a traceback, ten seconds of computing, 2 GB of memory, code that a file
brought along, or a write outside the output folder.
The inputs are tried in child processes; one that dies or hangs is noted with the input that it had in hand.
One input again, by hand: python tests/hostile/hostile_state.py checkpoint SEED NUMBER
"""
import contextlib
import functools
import gzip
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])
from watch import Evil, Watch

from common import settings
from planting import plant, planted

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

SECONDS, MEGABYTES = 10, 2048  # the most that one input may take
SILENCE = 120                  # of a child, in seconds by the clock, after which it counts as hanging
TINY = {"model.width": 1 / 96, "training.num_epochs": 2, "training.batch_size": 4, "training.warmup_steps": 1,
        "training.seed": 7,
        "data.dataset": "drawings", "data.train_images": 8, "data.val_images": 4, "data.test_images": 4,
        "data.num_workers": 0, "data.download": False,
        "device.use_cuda": False, "device.reuse_memory": False, "device.native_lrn": False,
        "device.precision": "fp32",
        "device.compile": False}


# ---------------------------------------------------------------- pickles, step by step

class Steps:
    "A pickle written step by step, so that it may say what no pickler would."
    def __init__(self): self.out = bytearray(b"\x80\x02")

    def raw(self, data: bytes):
        self.out += data
        return self

    def name(self, module: str, name: str): return self.raw(f"c{module}\n{name}\n".encode())
    def text(self, text: str):
        data = text.encode("utf-8", "surrogatepass")
        return self.raw(b"X" + struct.pack("<I", len(data)) + data)

    def int(self, n: int):
        if -2**31 <= n < 2**31: return self.raw(b"J" + struct.pack("<i", n))
        data = pickle.encode_long(n)
        return self.raw(b"\x8a" + bytes([len(data)]) + data)

    def put(self, i: int): return self.raw(b"q" + bytes([i]))
    def get(self, i: int): return self.raw(b"h" + bytes([i]))
    def ints(self, numbers):
        self.raw(b"(")
        for n in numbers: self.int(n)
        return self.raw(b"t")

    def storage(self, key="0", n=4, kind="FloatStorage", location="cpu", module="torch"):
        return self.raw(b"(").text("storage").name(module, kind).text(key).text(location).int(n).raw(b"tQ")

    def tensor(self, size=(2, 2), stride=(2, 1), offset=0, **storage):
        self.name("torch._utils", "_rebuild_tensor_v2").raw(b"(")
        self.storage(**storage).int(offset).ints(size).ints(stride)
        return self.raw(b"\x89").name("collections", "OrderedDict").raw(b")RtR")

    def call(self, module: str, name: str, *arguments):
        self.name(module, name).raw(b"(")
        for a in arguments: self.text(a) if isinstance(a, str) else self.int(a)
        return self.raw(b"tR")

    def model(self, weight) -> bytes:
        "{'model': {'w': ...}} with whatever `weight` writes."
        self.raw(b"}").text("model").raw(b"}").text("w")
        weight(self)
        return bytes(self.raw(b"ss.").out)


def archive(description: bytes, records: dict[str, bytes] | None = None, more: dict[str, bytes] | None = None,
            folder: str = "archive", method=zipfile.ZIP_STORED) -> bytes:
    "One of torch's zip files around a pickle."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in {"data.pkl": description, "version": b"3\n", "byteorder": b"little",
                           **{f"data/{k}": v for k, v in (records or {"0": bytes(16)}).items()},
                           **(more or {})}.items():
            z.writestr(zipfile.ZipInfo(f"{folder}/{name}"), data, method)
    return out.getvalue()


@functools.lru_cache(1)
def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that would run code, fill the memory, or never end; `marker` is the file that code would leave
    behind."""
    touch = f"open({str(marker)!r}, 'w').close()"
    def nest(kind, levels=40):
        s = Steps()
        if kind == "tuple":
            s.int(1).raw(b"\x85").put(1)
            for _ in range(levels): s.get(1).get(1).raw(b"\x86").put(1)
        else:
            s.raw(b"]").put(1)
            for _ in range(levels): s.raw(b"](").get(1).get(1).raw(b"e").put(1)
        return s.out[2:]
    hexed = Steps().name("_codecs", "encode").raw(b"(").get(1).text("hex").raw(b"tR").put(1)
    found = {
        "os.system": Steps().call("os", "system", f"touch {marker}"),
        "posix.system": Steps().call("posix", "system", f"touch {marker}"),
        "eval": Steps().call("builtins", "eval", touch),
        "exec": Steps().call("__builtin__", "exec", touch),
        "import": Steps().call("builtins", "__import__", "os"),
        "getattr": Steps().name("builtins", "getattr").raw(b"(").name("os", "path").text("join").raw(b"tR"),
        "subprocess": Steps().call("subprocess", "getoutput", f"touch {marker}"),
        "open": Steps().call("builtins", "open", str(marker), "w"),
        "shutil": Steps().call("shutil", "rmtree", str(marker.parent)),
        "webbrowser": Steps().call("webbrowser", "open", "http://127.0.0.1:9"),
        "torch.load": Steps().call("torch", "load", str(marker)),
        "torch.hub": Steps().call("torch.hub", "load", "a/b", "c"),
        "torch.save": Steps().call("torch", "save", 1, str(marker)),
        "jit": Steps().call("torch.jit", "load", str(marker)),
        "numpy": Steps().name("numpy.core.multiarray", "_reconstruct").raw(b"(")
            .name("numpy", "ndarray").ints([10**9]).text("b").raw(b"tR"),
        "numpy scalar": Steps().name("numpy._core.multiarray", "scalar").raw(b"(")
            .name("numpy", "dtype").text("f8").raw(b"tR"),
        "inst": Steps().raw(b"(").text(f"touch {marker}").raw(b"ios\nsystem\n"),
        "stack global": Steps().text("os").text("system").raw(b"\x93").raw(b"(").text("true").raw(b"tR"),
        "reduce of a module": Steps().name("torch", "nn").raw(b")R"),
        "codecs": Steps().call("_codecs", "encode", touch, "rot13"),
        "bytearray of 100 GB": Steps().call("builtins", "bytearray", 10**11),
        "storage of 100 GB": Steps().call("torch.storage", "UntypedStorage", 10**11),
        "tensor of 100 GB": Steps().call("torch", "Tensor", 25_000, 1_000_000),
        "float tensor": Steps().call("torch", "FloatTensor", 10**9, 25),
        "new tensor": Steps().name("torch", "Tensor").ints([10**5, 10**6]).raw(b"\x81"),
        "new storage": Steps().name("torch.storage", "UntypedStorage").ints([10**11]).raw(b"\x81"),
        "meta of no storage": Steps().name("torch._utils", "_rebuild_meta_tensor_no_storage").raw(b"(")
            .name("torch", "float32").ints([10**6, 10**6]).ints([0, 0]).raw(b"\x89tR"),
        "quantised": Steps().name("torch._utils", "_rebuild_qtensor").raw(b"(")
            .storage().int(0).ints([10**6, 10**5]).ints([0, 0]).raw(b"N\x89NtR"),
        "hex of hex": Steps().text("a" * 64).put(1).raw(bytes(hexed.out[2:]) * 36),
        "self-made type": Steps().name("torch._tensor", "_rebuild_from_type_v2").raw(b"(")
            .name("builtins", "eval").name("torch", "Tensor").text(touch).raw(b"\x85NtR"),
        "a key of tuples": Steps().raw(b"}").raw(nest("tuple")).int(1).raw(b"s"),
        "a call of a list": Steps().raw(nest("list")).raw(b")R"),
        "lists of lists": Steps().raw(nest("list")),
        "deep": Steps().raw(b"]" * 100_000 + b"a" * 99_999),
        "deep tuple": Steps().raw(b")" + b"\x85" * 100_000),
        "counter of tuples": Steps().name("collections", "Counter").raw(b"(](")
            .raw(nest("tuple")).raw(b"etR"),
        "ordered pairs of tuples": Steps().name("collections", "OrderedDict").raw(b"(](")
            .raw(nest("tuple")).int(1).raw(b"\x86etR"),
        "a list in itself": Steps().raw(b"]").put(1).get(1).raw(b"a"),
        "a text in lists": Steps().text("x" * 100_000).put(1).raw(b"](" + b"h\x01" * 100_000 + b"e"),
        "sets": Steps().raw(b"]" + b"(" + b"\x8f" * 500_000 + b"e"),
        "many lists": Steps().raw(b"]" + b"(" + b"]" * 900_000 + b"e"),
        "too long": Steps().raw(b"]" + b"(" + b"]" * 3_000_000 + b"e"),
        "no end": Steps(),
        "nothing": Steps().raw(b"0" * 10),
        "below the stack": Steps().raw(b"\x87"),
        "a mark too many": Steps().raw(b"((("),
        "no mark": Steps().raw(b"t"),
        "a memo that is not there": Steps().raw(b"h\x09"),
        "a large memo": Steps().int(1).raw(b"r\xff\xff\xff\x7f"),
        "frame": Steps().raw(b"\x95" + b"\xff" * 8),
        "bytes8": Steps().raw(b"\x8e" + b"\xff" * 7 + b"\x00"),
        "long4": Steps().raw(b"\x8b\xff\xff\xff\x7f"),
        "a text of 4 GB": Steps().raw(b"X\xff\xff\xff\xff"),
        "an extension": Steps().raw(b"\x82\x01"),
        "build on a list": Steps().raw(b"]}b"),
        "build on a tensor": Steps().tensor().raw(b"(")
            .storage().int(0).ints([10**5, 10**6]).ints([0, 0]).raw(b"tb"),
        "hooks": Steps().tensor().raw(b"}b"),
        "parameter": Steps().name("torch._utils", "_rebuild_parameter").raw(b"(").tensor().raw(b"\x88")
            .name("torch.nn.parameter", "Parameter").raw(b"tR"),
        "bad utf-8": Steps().raw(b"X\x02\x00\x00\x00\xff\xfe"),
        "surrogate": Steps().text("\ud800"),
        "protocol 5": Steps().raw(b"\x80\x05"),
        "protocol 255": Steps().raw(b"\x80\xff"),
    }
    weights = {
        "strides of nothing": dict(size=(10**5, 10**6), stride=(0, 0)),
        "a large stride": dict(size=(2, 2), stride=(2**40, 1)),
        "a negative stride": dict(size=(2, 2), stride=(-1, 1)),
        "a negative size": dict(size=(-2, -2)),
        "no size": dict(size=(), stride=()),
        "sizes of nothing": dict(size=(0, 2**60), stride=(1, 1)),
        "a large offset": dict(offset=2**60),
        "a negative offset": dict(offset=-4),
        "overlapping": dict(size=(3, 3), stride=(0, 1)),
        "two strides, one size": dict(size=(4,), stride=(2, 2)),
        "overflow": dict(size=(2**33, 2**33, 4), stride=(0, 0, 0)),
        "sizes beyond all": dict(size=(2**600, 2), stride=(1, 1)),
        "a hundred dimensions": dict(size=(1,) * 100, stride=(1,) * 100),
        "100 GB stored": dict(n=25 * 10**9),
        "fewer than stored": dict(n=3),
        "none stored": dict(n=0),
        "less than none": dict(n=-4),
        "beyond counting": dict(n=2**62),
        "another record": dict(key="1"),
        "no such record": dict(key="../../../etc/passwd"),
        "record by a path": dict(key="../data.pkl"),
        "complex": dict(kind="ComplexFloatStorage", n=2),
        "quantised storage": dict(kind="QInt8Storage", n=16),
        "untyped": dict(module="torch.storage", kind="UntypedStorage", n=16),
        "bytes as booleans": dict(kind="BoolStorage", n=16),
        "no storage": dict(kind="Tensor"),
        "nowhere": dict(location="../../nowhere"),
        "cuda": dict(location="cuda:99"),
    }
    made = {name: (s if isinstance(s, bytes) else Steps().model(lambda out, s=s: out.raw(bytes(s.out[2:]))))
            for name, s in found.items()}
    return made | {name: Steps().model(lambda out, w=w: out.tensor(**w)) for name, w in weights.items()}


# ---------------------------------------------------------------- bytes

def flip(r: random.Random, data: bytes, begin: float = 0.0, end: float = 1.0) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 5, 30))):
        out[r.randrange(int(len(out) * begin), max(1, int(len(out) * end)))] = r.randrange(256)
    return bytes(out)


def splice(r: random.Random, data: bytes) -> bytes:
    a, b, n = (r.randrange(len(data)) for _ in range(3))
    n = n % 2000
    return r.choice((data[:a] + data[b:b + n] + data[a:], data[:a] + data[a + n:],
                     data[:a] + bytes(n) + data[a + n:], data[:a] + r.randbytes(n) + data[a:], data + data,
                     r.randbytes(n + 1) + data, data + r.randbytes(n + 1)))


def mutate_bytes(r: random.Random, data: bytes) -> bytes:
    how = r.randrange(5)
    if how == 0: return data[:r.randrange(len(data))]
    if how == 1: return splice(r, data)
    return flip(r, data, *((0.0, 1.0), (0.97, 1.0), (0.0, 0.1))[how - 2])


def mutate_zip(r: random.Random, data: bytes) -> bytes:
    "The members of a zip file, some of them changed, in a new directory."
    with zipfile.ZipFile(io.BytesIO(data)) as z: members = [(i.filename, z.read(i)) for i in z.infolist()]
    place = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    folder, at = members[0][0].partition("/")[0], r.randrange(len(members))
    name, content = members[at]
    method, comment = zipfile.ZIP_STORED, b""
    how = r.randrange(16)
    if how < 4: members[place] = (members[place][0], mutate_bytes(r, members[place][1]))
    elif how == 4: members[at] = (name, mutate_bytes(r, content) if content else b"x")
    elif how == 5: members.append((name, mutate_bytes(r, content or b"x")))
    elif how == 6:
        members.append((r.choice(("../out", "/tmp/out", f"{folder}/../../out", "C:\\out",
                                  f"{folder}\\..\\out", "\x1b[2J", f"{folder}/constants.pkl",
                                  f"{folder}/DATA.PKL", "x" * 60_000)), r.randbytes(9)))
    elif how == 7: members.pop(at)
    elif how == 8: method = r.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif how == 9: method, members[place] = zipfile.ZIP_DEFLATED, (members[place][0], bytes(50_000_000))
    elif how == 10: members[at] = (name, content[:len(content) // 2])
    elif how == 11: members[at] = (name, content + bytes(r.randrange(1, 100)))
    elif how == 12:
        members = [(n.replace(folder, r.choice(("a/b", "", "..", "archive2")), 1), c) for n, c in members]
    elif how == 13: comment = r.choice((b"PK\5\6" + bytes(18), r.randbytes(50)))
    elif how == 14: members += [(f"{folder}/x{i}", b"") for i in range(r.choice((100, 20_000)))]
    else:
        wrong = [(".storage_alignment", r.choice((b"0", b"x", b"9" * 5000))),
                 ("byteorder", r.choice((b"big", b"middle"))),
                 (".format_version", b"9")]
        members += [(f"{folder}/{n}", v) for n, v in wrong[:r.randint(1, 3)]]
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as z:
        warnings.simplefilter("ignore")
        for n, c in members: z.writestr(zipfile.ZipInfo(n), c, method)  # without the time of day
        z.comment = comment
    made = out.getvalue()
    if r.random() < 0.2:  # a directory that claims other sizes, or another place
        at = made.rfind(b"PK\1\2") + r.choice((10, 20, 24, 42))
        wrong = struct.pack("<I", r.choice((0, 1, 2**31, 2**32 - 1, r.randrange(2**32))))
        made = made[:at] + wrong + made[at + 4:]
    return made


# ---------------------------------------------------------------- objects

def nasty(r: random.Random):
    "A value that should not be where it is put."
    import torch
    warnings.simplefilter("ignore")
    deep: list = [0]
    for _ in range(r.choice((5, 60, 120))): deep = [deep]
    laughs: list = ["ha"]
    for _ in range(25): laughs = [laughs] * 3
    w = torch.ones(4, 4)
    plain = [None, True, -1, 0, 1, 2**31, 2**53 + 1, 2**70, 10**600, -0.5, 0.0, 1e300, 5e-324, math.nan,
             math.inf, "", "x", "x" * 10**5, "x" * 10**7, "\x1b[2J\x1b]0;t\x07", "two\nlines", "\ud800", "\0",
             "../../out", "/tmp/out", "..", ".",
             "run-002", "é" * 300, b"bytes", [], {}, (), [1], {"a": 1}, {1: 2}, [[]], [None] * 1000,
             list(range(10**4)), deep, laughs, {"x": laughs}, 3 + 4j, {1, 2}, bytearray(4), Counter("abc"),
             OrderedDict(a=1), torch.Size([2]), torch.float32,
             torch.device("cpu"), range(3), 10**9, -10**9, "nan", "1"]
    tensors = [w, w[0], torch.tensor(1.0), torch.zeros(0), w.int(), w.bool(), w.half(), w.double(),
               w.to(torch.bfloat16), w.to(torch.complex64), torch.complex(w, w).conj(), w.to_sparse(),
               w.to_sparse_csr(),
               torch.zeros(1).expand(25_000, 1_000_000), torch.zeros(1).expand(2**40),
               w.as_strided((3, 3), (1, 1)), w.t(), w[::2], torch.full((4, 4), math.nan),
               torch.full((4,), math.inf), torch.nn.Parameter(w.clone()),
               torch.empty(10**6, 10**6, device="meta"),
               w.to(torch.float8_e4m3fn), w.to(torch.uint16), torch.zeros(5056, dtype=torch.uint8),
               torch.full((5056,), 255, dtype=torch.uint8), torch.zeros(4, requires_grad=True)]
    # going out of torch
    with contextlib.suppress(AttributeError, RuntimeError):
        tensors.append(torch.quantize_per_tensor(w, 0.1, 0, torch.qint8))
    return r.choice(plain) if r.random() < 0.6 else r.choice(tensors)


def places(value, path=()) -> list[tuple]:
    "The path of every item in a nest of dictionaries and sequences; long sequences by their ends."
    if isinstance(value, dict): items = list(value.items())
    elif isinstance(value, (list, tuple)) and not hasattr(value, "numel"):
        items = [(i, value[i]) for i in range(len(value)) if i < 4 or i > len(value) - 3]
    else: return []
    return [p for key, each in items for p in ((*path, key), *places(each, (*path, key)))]


def replaced(value, path: tuple, change):
    "The nest with another item at a path."
    if not path: return change(value)
    if type(value) in (dict, OrderedDict):
        return type(value)((k, replaced(v, path[1:], change) if k == path[0] else v)
                           for k, v in value.items())
    if isinstance(value, dict): return value  # another kind, a Counter, is not made from pairs
    out = list(value)
    out[path[0]] = replaced(out[path[0]], path[1:], change)
    return type(value)(out)


AIMED = {  # by path: values that are of the right type and still wrong
    ("run",): ("../../out", "/tmp/out", "..", ".", "", "a/b", "a\0b", "x" * 300, "run-999", "run-001\n",
               "\x1b[2J"),
    ("epoch",): (-1, 10**9, 2**53, 2**63, 1.0, "1"),
    ("total_steps",): (-1, 2**53, 2**63),
    ("seed",): (-1, 2**32, 2**64),
    ("progress", "batch"): (-1, 1, 10**9, 2**62),
    ("progress", "epoch"): (-1, 10**9),
    ("progress", "step"): (-5, 2**53),
    ("progress", "seen"): (-1, 0, 2**53),
    ("progress", "seconds"): (-1.0, math.nan, 1e300),
    ("progress", "loss_sum"): (math.nan, math.inf, 1e308),
    ("progress", "best_accuracy"): (math.nan, 2.0, -1e308),
    ("progress", "right"): (10**9,),
    ("classes",): (["a"], [], ["x"] * 10**5, ["a\nb"] * 10, ["\x1b[31m" + str(i) for i in range(10)],
                   ["x" * 10**7] * 10, ["\ud800"] * 10, [f"${i}$" for i in range(10)], [""] * 10,
                   list("abcdefghij"), tuple("abcdefghij")),
    ("recipe", "size"): (1, 224, 10**9, 0, -1),
    ("recipe", "short_side"): (1, 10**9, 228),
    ("recipe", "std"): ((0.0,) * 3, (1e-300,) * 3, (1.0,), (math.nan,) * 3),
    ("recipe", "mean"): ((1e300,) * 3, (0.1,) * 4, "abc"),
    ("recipe", "colour"): (((1e300,) * 3,) * 3, ((0.1,) * 3,) * 2, 5),
    ("config", "model", "width"): (1e-300, 1.0, 2.0, 1e300, math.nan, 0.5),
    ("config", "model", "num_classes"): (2, 10**9, 2**31 - 1, 2**70),
    ("config", "model", "image_dim"): (224, 10**6),
    ("config", "model", "towers"): (2, 10**6),
    ("config", "model", "without"): (["conv3"] * 10**4, ["conv3", "conv4", "conv5"], ["fc6"]),
    ("config", "model", "init"): ("paper", "x"),
    ("config", "model", "dropout"): (1.0, 0.999999),
    ("config", "training", "num_epochs"): (2**31 - 1, 2**31, 3),
    ("config", "training", "batch_size"): (2**31 - 1, 1),
    ("config", "training", "learning_rate"): (1e300, 5e-324),
    ("config", "training", "schedule"): ("plateau",),
    ("config", "training", "lr_gamma"): (1.0, 1e-300),
    ("config", "training", "momentum"): (0.999999,),
    ("config", "training", "checkpoint_minutes"): (1e-300, 1e300),
    ("config", "data", "val_images"): (2**31 - 1, 10**7),
    ("config", "data", "train_images"): (2**31 - 1, 10**7),
    ("config", "data", "test_images"): (2**31 - 1, 10**7),
    ("config", "data", "dataset"): ("CIFAR10", "ImageFolder"),
    ("config", "data", "colour"): (1e300,),
    ("config", "data", "recipe"): ("paper",),
    ("config", "data", "data_dir"): ("/", "\0", "\ud800", "/proc/self/fd", "x" * 5000, "/dev"),
    ("config", "paths", "log_dir"): ("/tmp/out", "../../out"),
    ("config", "data", "train_img_dir"): ("..",),
    ("scheduler", "step_size"): (0, -1, 2**70),
    ("scheduler", "gamma"): (math.nan, 1e308),
    ("scheduler", "base_lrs"): ([math.nan] * 2, [0.1], [], [10**400] * 2, [0.1] * 10**5),
    ("scheduler", "_last_lr"): ([1e308] * 2, [-1.0] * 2, ["x"] * 2),
    ("scheduler", "last_epoch"): (-10, 2**70),
    ("scheduler", "optimizer"): (None, "x"),
    ("scheduler", "step"): (1,),
    ("scheduler", "get_lr"): ([],),
    ("optimizer", "param_groups"): ([], [{}], [{"params": [0], "lr": 0.1}], [{"params": list(range(16))}]),
    ("optimizer", "param_groups", 0, "params"): ([], [0] * 8, [99] * 8, list(range(10**5)),
                                                 [10**30] * 8, [[]] * 8),
    ("optimizer", "param_groups", 0, "lr"): (math.nan, -1.0, 1e308, "0.1"),
    ("optimizer", "param_groups", 0, "momentum"): (-5, "x", 2.0),
    ("optimizer", "param_groups", 0, "differentiable"): (True,),
    ("optimizer", "param_groups", 0, "foreach"): (True,),
    ("optimizer", "state"): ({}, {99: {}}, {0: {}}, {0: {"momentum_buffer": None}}, {0: {"step": 1}}, []),
    ("random", "numpy"): (("MT19937", [1] * 624, 0, 0, 0.0), ("PCG64", 1, 2, 3, 4), ()),
    ("random", "numpy", 2): (625, -1, 10**9, 624, 2**70),
    ("random", "numpy", 0): ("PCG64", ""),
    ("random", "python"): ((3, (1,) * 625, None), (3, (0,) * 624 + (9999,), None),
                           (3, (-1,) * 625, None), [3, [1] * 625, None], (4, (), None)),
    ("random", "cuda"): (["x"], 5),
    ("random_others",): ([{}], "x", [{"torch": 1}] * 10**4),
    ("scaler",): ({"scale": "x"}, {"scale": math.nan}, {"a": 1}, "x"),
    ("model", "features.0.weight"): (None, 1.0),
}


def mutate_object(r: random.Random, checkpoint: dict) -> dict:
    "The checkpoint with one to three items exchanged, taken away, or added."
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        if r.random() < 0.45:
            path = r.choice(list(AIMED))
            value = r.choice(AIMED[path])
            with contextlib.suppress(KeyError, IndexError, TypeError):
                checkpoint = replaced({**checkpoint, **({path[0]: value} if len(path) == 1 else {})}, path,
                                      lambda old, value=value: value)
            continue
        path = r.choice(places(checkpoint))
        how = r.randrange(6)
        if how < 3:
            value = nasty(r)
            checkpoint = replaced(checkpoint, path, lambda old, value=value: value)
        elif how == 3 and isinstance(path[-1], str):
            checkpoint = replaced(checkpoint, path[:-1], functools.partial(without, path[-1]))
        elif how == 4:
            checkpoint = replaced(checkpoint, path[:-1], functools.partial(with_more, r, path[-1], nasty(r)))
        else: checkpoint = replaced(checkpoint, path, functools.partial(reshaped, r))
    return checkpoint


def without(key, old):
    "A dictionary that lacks a key; anything else as it is."
    return {k: v for k, v in old.items() if k != key} if isinstance(old, dict) else old


def with_more(r: random.Random, key, value, old):
    "A dictionary with the value under one key more; anything else as it is."
    if not isinstance(old, dict): return old
    return {**old, r.choice(("extra", "params", "__class__", "module." + str(key), 7, "\x1b")): value}


def reshaped(r: random.Random, old):
    "A tensor of another shape or type than it was; what is none becomes something nasty."
    import torch
    if not isinstance(old, torch.Tensor) or not old.numel(): return nasty(r)
    return r.choice((lambda: old[:1].expand(10**6, *old.shape[1:]) if old.dim() else old,
                     lambda: old.reshape(-1)[:1].expand(old.shape), lambda: old.flatten(),
                     lambda: old[None], lambda: old.to(torch.int64), lambda: old * math.nan,
                     lambda: old.double(), lambda: old.half(), lambda: torch.cat([old, old]),
                     lambda: old.to(torch.complex64), lambda: old.flip(0),
                     lambda: old.to_sparse() if old.dim() else old,
                     lambda: torch.empty_like(old, device="meta")))()


def saved(value, **how) -> bytes:
    import torch
    out = io.BytesIO()
    torch.save(value, out, **how)
    return out.getvalue()


def checkpoint(seed: int, number: int, base: dict[str, bytes], marker: Path) -> tuple[str, bytes]:
    """A hostile checkpoint: what was done, and its bytes. `base` holds an honest one and what others may have
    left: whole, six, old."""
    import torch
    r = random.Random(f"checkpoint {seed} {number}")
    made = programs(marker)
    if number < len(made):
        name = list(made)[number]
        return f"program: {name}", archive(made[name])
    number -= len(made)
    if number < len(made):
        name = list(made)[number]
        return f"program in the old form: {name}", legacy(made[name])
    whole = torch.load(io.BytesIO(base["whole"]), weights_only=True)
    number -= len(made)
    aimed = [(path, value) for path, values in AIMED.items() for value in values]
    if number < len(aimed):
        path, value = aimed[number]
        whole = {**whole, **({path[0]: value} if len(path) == 1 else {})}
        with contextlib.suppress(KeyError, IndexError, TypeError):
            whole = replaced(whole, path[:-1], lambda old: {**old, path[-1]: value} if isinstance(old, dict)
                             else replaced(old, path[-1:], lambda _: value))
        return f"{'.'.join(map(str, path))} = {str(value)[:60]!r}", saved(whole)
    how = r.choice(("object",) * 8 + ("six", "zip", "zip", "bytes", "bytes", "old", "other"))
    def changed(value, **form):
        while True:
            # not everything can be saved
            with contextlib.suppress(Exception): return saved(mutate_object(r, value), **form)
    if how == "object": return how, changed(whole)
    if how == "six": return how, changed(torch.load(io.BytesIO(base["six"]), weights_only=True))
    if how == "zip": return how, mutate_zip(r, base[r.choice(("whole", "six"))])
    if how == "bytes": return how, mutate_bytes(r, base[r.choice(("whole", "six"))])
    if how == "old" and r.random() < 0.5: return how, mutate_bytes(r, base["old"])
    if how == "old": return how, changed(whole, _use_new_zipfile_serialization=False)
    return how, other_file(r, base, marker)


def legacy(program: bytes, keys=("0",), numbers: bytes = bytes(16)) -> bytes:
    "A file in torch's form of before 2020 around a pickle; storages are referred to with one item more."
    magic, protocol, system, names = (pickle.dumps(value, 2) for value in (
        0x1950a86a20f9469cfc6c, 1001, {"little_endian": True}, list(keys)))
    return b"".join((magic, protocol, system, program.replace(b"tQ", b"NtQ"), names,
                     struct.pack("<q", len(numbers) // 4), numbers))


def other_file(r: random.Random, base: dict[str, bytes], marker: Path) -> bytes:
    "A file of another kind under a checkpoint's name."
    out = io.BytesIO()
    how = r.randrange(9)
    if how == 0: return pickle.dumps({"model": Evil(marker)}, r.randrange(6))
    if how == 1: return saved({"model": Evil(marker)})
    if how == 2: return saved({"model": Evil(marker)}, _use_new_zipfile_serialization=False)
    if how == 3:
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in ("storages", "tensors", "pickle", "../../out", "/tmp/out"):
                info = tarfile.TarInfo(name)
                info.size = 10
                tar.addfile(info, io.BytesIO(bytes(10)))
        return out.getvalue()
    if how == 4: return gzip.compress(base["whole"], mtime=0)
    if how == 5: return r.randbytes(r.randrange(1, 5000))
    if how == 6: return b"<html>" + b"503 " * r.randrange(1000)
    if how == 7:
        header = b'{"w":{"dtype":"F32","shape":[100000,1000000],"data_offsets":[0,4]}}'
        return struct.pack("<Q", 2**40) + header + bytes(8)
    return pickle.dumps(r.choice(([1, 2], {"model": {}}, "text", {"model": {"w": [1.0]}})), r.randrange(6))


# ---------------------------------------------------------------- configs

def config_text(r: random.Random) -> str:
    "An honest config of a few random keys."
    import yaml

    from alexnet_nb.engine.config import Config, to_yaml
    every = yaml.safe_load(to_yaml(Config()))
    chosen = {s: {k: v for k, v in keys.items() if r.random() < 0.4} for s, keys in every.items()
              if r.random() < 0.7}
    return yaml.safe_dump({s: keys for s, keys in chosen.items() if keys} or {"training": {"seed": 1}},
                          sort_keys=False)


def yaml_value(r: random.Random) -> str:
    "Text to stand where a value should."
    return r.choice(["", "null", "~", "true", "yes", "1", "-1", "0", "1e3", "1e400", "-1e400", ".inf", ".nan",
                     "9" * 400, "9" * 6000, "0x" + "f" * 6000, "0b" + "1" * 9000, "1:" * 2000 + "1", "1_000",
                     "0o17", "2012-13-45", "2001-12-14 21:59:43 -99:99",
                     "0001-01-01 00:00:00 +23:00", "'x'", "\"\\ud800\"", "\"\\0\"", "\"\\e[2J\"", "\"a\\nb\"",
                     "[]", "{}", "[1, [2, [3]]]", "{a: {b: c}}", "[" * r.choice((50, 3000)), "{" * 1000,
                     "[" + "1, " * 5000 + "]", "*a", "&a [*a]", "&a x",
                     "!!python/object/apply:os.system ['touch MARKER']",
                     "!!python/name:os.system", "!!python/module:os", "!!binary x", "!!binary é", "!!bool x",
                     "!!int x", "!!int ''", "!!float x", "!!timestamp x", "!!set {a, b}", "!!omap [a: 1]",
                     "!!pairs [a: 1]", "!!str 5", "!!null x", "!x y", "!!map [1]", "!!seq {a: 1}", "? a",
                     "<<: *a",
                     "'../../out'", "/tmp/out", "/proc/self/mem", "~", "$HOME", "é" * 300, "𝔘", "\u202egnp",
                     "x" * 20_000, "|\n   text\n", ">\n   text\n", "- a", "# x", "%x", "@x", "`x`",
                     "drawings", "2147483648", "4294967296", "1.5", "relu", "[0]", "[0, 1]", "[99]", "1e-320",
                     "0.1"])


BOMBS = {
    "laughs": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
                                         for a, b in pairwise("abcdefghij")),
    "laughs in a value": ("training: {seed: &a [x, x]}\nmodel: {width: &b [" + "*a, " * 9
                          + "]}\ndata: {val_images: [" + "*b, " * 9 + "]}\n"),
    "merged": "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n"
                                       for a, b in pairwise("abcdefghij")),
    "keys of keys": "? &a [x]\n: 1\n? [*a, *a]\n: 2\n",
    "a mapping as a key": "? {a: b}\n: 1\n",
    "deep": "[" * 10_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(200)),
    "long key": "x" * 40_000 + ": 1\n",
    "long": "# x\n" * 100_000,
    "twice": "training: {seed: 1}\ntraining: {seed: 2}\n",
    "twice inside": "training: {seed: 1, seed: 2}\n",
    "documents": "---\na: 1\n---\nb: 2\n",
    "no document": "...\n",
    "directive": "%YAML 9.9\n---\na: 1\n",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/object/apply:\n--- !os.system ['touch MARKER']\n",
    "tabs": "training:\n\tseed: 1\n",
    "crlf": "training:\r\n  seed: 1\r\n",
    "bom": "\ufefftraining:\n  seed: 1\n",
    "null key": "~: 1\n",
    "number key": "1: 2\n",
    "list key in a section": "training: {[a]: 1}\n",
    "python tag at the top": "!!python/object/apply:os.system ['touch MARKER']\n",
    "a set at the top": "!!set {training}\n",
    "colons": ":" * 30_000,
    "question marks": "? " * 8_000,
    "dashes": "- " * 5_000,
    "quotes": "\"" * 40_001,
    "anchors": "".join(f"&a{i} " for i in range(5_000)),
    "flow": "{a: " * 2_000,
    "pairs": "[" + "a: b, " * 6_000 + "]",
    "section of another": "model: {seed: 1}\n",
    "both roots": "data: {data_dir: a}\npaths: {input_root_dir: b}\n",
    "big section": "training: {" + ", ".join(f"k{i}: 1" for i in range(5_000)) + "}\n",
    "many sections": "".join(f"k{i}: 1\n" for i in range(6_000)),
}


def config(seed: int, number: int, marker: Path) -> tuple[str, bytes, list[str]]:
    "A hostile config: what was done, its bytes, and `--set` texts to go with it."
    from alexnet_nb.engine.config import Config
    r, sets = random.Random(f"config {seed} {number}"), []
    keys = [f"{s}.{k}" for s in Config.model_fields for k in Config.model_fields[s].annotation.model_fields]
    ways = ("value", "value", "value", "bytes", "lines", "insert", "set", "shape", "honest")
    if number < len(BOMBS): how, text = list(BOMBS.items())[number]
    elif (how := r.choice(ways)) == "value":
        section, key = r.choice(keys).split(".")
        text = f"{section}:\n  {key}: {yaml_value(r)}\n"
        if r.random() < 0.3: text += f"  {r.choice(keys).split('.')[1]}: {yaml_value(r)}\n"
    elif how == "set":
        text = "training: {seed: 1}\n"
        for _ in range(r.choice((1, 1, 2))):
            sets.append(r.choice((f"{r.choice(keys)}={yaml_value(r)}", yaml_value(r),
                                  f"{yaml_value(r)}={yaml_value(r)}", f"{r.choice(keys)}",
                                  f"a.{yaml_value(r)}=1", f"{r.choice(keys)}.x=1", "=", ".=", "..=1",
                                  "training.=1", ".seed=1")))
    else:
        text = config_text(r)
        lines = text.splitlines(True)
        if how == "lines":
            r.shuffle(lines)
            text = "".join(lines + r.choices(lines, k=r.randrange(3)))
        elif how == "insert":
            lines.insert(r.randrange(len(lines) + 1), r.choice(("", "  ", "    ")) + yaml_value(r)
                         + r.choice(("", ":", ": 1")) + "\n")
            text = "".join(lines)
        elif how == "shape":
            text = text.replace(r.choice((":", "  ", "\n", "a", "e")),
                                r.choice(("", ":", "  ", "\t", "- ", "\0", "\x85", "é", "[", "}")),
                                r.choice((1, 3, 100)))
    data = text.replace("MARKER", str(marker)).encode("utf-8", "surrogatepass")
    if how == "bytes": data = mutate_bytes(r, data)
    return how, data, [s.replace("MARKER", str(marker)) for s in sets]


# ---------------------------------------------------------------- logs, event files, results

def json_value(r: random.Random) -> str:
    return r.choice(["null", "true", "1", "-1", "1e400", "NaN", "Infinity", "-Infinity", "9" * 6000, "\"x\"",
                     "\"\\u001b[2J\"", "\"\\ud800\"", "[]", "{}", "[" * 100_000, "{\"a\":" * 5000, "[1, 2]",
                     "{\"step\": 1}", "0.5", "9007199254740993", "\"../../out\"", "1e308", "[[[[]]]]",
                     "\"" + "x" * 10**6 + "\""])


def mutate_json(r: random.Random, text: str, lines_of_it: bool = False) -> bytes:
    "A JSON text, or lines of it, with something exchanged."
    value = None if lines_of_it else json.loads(text)
    how = r.randrange(5)
    if how == 0 or value is None and how < 3: return mutate_bytes(r, text.encode() or b"{}")
    if value is not None:
        path = r.choice(places(value) or [()])
        if how == 4: return json_value(r).encode()
        return json.dumps(replaced(value, path, lambda old: "@@")).replace('"@@"', json_value(r), 1).encode()
    lines = text.splitlines() or ["{}"]
    at = r.randrange(len(lines))
    row = json.loads(lines[at])
    if how == 3 and row:
        lines[at] = json.dumps({**row, r.choice(list(row)): "@@"}).replace('"@@"', json_value(r))
    else:
        lines[at] = r.choice((json_value(r), json.dumps({k: v for k, v in row.items() if r.random() < 0.5}),
                              lines[at][:len(lines[at]) // 2], lines[at] * 2, "\0" * 50, "\x1b[2J"))
    return ("\n".join(lines) + r.choice(("\n", "", "\r\n"))).encode()


def mutate_log(r: random.Random, folder: Path) -> str:
    "Something that a run finds again when it goes on is not as it was; what."
    target = r.choice(("steps.jsonl", "steps.jsonl", "epochs.jsonl", "events", "events", "config.yaml",
                       "more"))
    if target == "events":
        path = r.choice(sorted(folder.glob("*/events.out.tfevents.*")))
        path.write_bytes(mutate_bytes(r, path.read_bytes()))
        return f"{path.parent.name}/events"
    if target == "more":
        name = r.choice(("train/events.out.tfevents.", f"train/events.out.tfevents.{int(time.time())}.x",
                         "train/events.out.tfevents.x.y.z", "val/events.out.tfevents.\x1b[2J", "../run-²",
                         "../run-" + "9" * 240, "../run--1", "../run-x", "train/steps.jsonl", ".part",
                         "steps.part"))
        path = folder / name
        path.mkdir(exist_ok=True) if ".." in name or r.random() < 0.3 else path.write_bytes(r.randbytes(50))
        return name
    path = folder / target
    content = path.read_bytes()
    how = r.randrange(8)
    if how < 3: path.unlink()
    if how == 0:
        path.mkdir()
        return f"{target} is a folder"
    if how == 1:
        path.symlink_to(path.name)
        return f"{target} is a link to itself"
    if how == 2 and target == "config.yaml": return "no config.yaml"
    if how == 2:
        os.mkfifo(path)
        return f"{target} is a pipe"
    path.write_bytes(mutate_json(r, content.decode(), True) if target.endswith("jsonl")
                     else mutate_bytes(r, content))
    return target


# ---------------------------------------------------------------- the child

class TooLong(BaseException): "An input took more than its seconds."


class Lab:
    "What one child has in hand: a folder to write to, an honest run, and a watch over what is done."
    def __init__(self, base: Path):
        self.base, self.work = base, base / "work"
        self.marker, self.faults, self.watch = base / "marker", [], Watch()
        (base / "precious.txt").write_text("must stay as it is")

    def honest(self) -> None:
        "A run that stopped in the middle of its second and last epoch, and a picture."
        from alexnet_nb.base.drawings import drawings
        from alexnet_nb.engine import config as engine_config
        from alexnet_nb.engine import train_command as engine_train_command
        self.start, keep = self.base / "start", self.base / "start.pkl"
        self.picture = self.base / "picture.png"
        if not keep.exists():
            drawings(1, 3)[0].save(self.picture)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                changes = [f"{k}={json.dumps(v)}" for k, v in (TINY | self.paths(self.start)).items()]
                engine_train_command.fit(engine_config.load_config(None, changes), max_steps=3,
                                         show_bar=False)
            keep.write_bytes((self.start / "models" / "alexnet_last.pkl").read_bytes())
        import torch
        whole = torch.load(keep, weights_only=True)
        six = {k: whole[k] for k in ("model", "optimizer", "scheduler", "epoch", "total_steps", "seed")}
        six["model"] = {f"module.{k}": v for k, v in six["model"].items()}
        self.pkls = dict(whole=keep.read_bytes(), six=saved(six),
                         old=saved(whole, _use_new_zipfile_serialization=False))

    @staticmethod
    def paths(out: Path) -> dict:
        return {"paths.output_dir": str(out), "paths.checkpoint_dir": str(out / "models"),
                "paths.log_dir": str(out / "tblogs")}

    def fresh(self) -> Path:
        "The folder to work in, empty but for a run to go on with."
        os.chdir(self.base)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        os.chdir(self.work)
        return self.work

    def outside(self) -> dict:
        "Everything beside the folder to work in."
        return {str(p): p.lstat().st_mtime_ns if not p.is_dir() else 0 for p in self.base.rglob("*")
                if self.work not in (p, *p.parents) and p.name != "report.jsonl"}

    def call(self, name: str, main, argv: list[str]) -> str:
        "Call a command; 'accepted' or 'refused'. Whatever the promise excludes is a fault."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(argv)
            except SystemExit as e: code = e.code
        text = err.getvalue()
        told = [line for line in text.split("\n") if line.startswith(f"{name}: ")]
        # a progress bar may go up a line
        if "Traceback" in text or any("\x1b" in said.replace("\x1b[A", "")
                                      for said in (out.getvalue(), text)):
            self.faults.append(f"{name}: traceback or terminal codes: {text[-300:]!r}")
        if code == 0: return "accepted"
        if code not in (1, 2): self.faults.append(f"{name}: exit code {code}")
        if len(told) != 1 or len(told[0]) > 3000:
            self.faults.append(f"{name}: not one line but {text[-300:]!r}")
        return "refused"


def one_checkpoint(lab: Lab, seed: int, number: int) -> dict:
    from alexnet_nb import inference, train
    from alexnet_nb.base.errors import InputError
    from alexnet_nb.engine import checkpoint as engine_checkpoint
    what, data = checkpoint(seed, number, lab.pkls, lab.marker)
    path = lab.fresh() / r"hostile.pkl"
    path.write_bytes(data)
    def work():
        read = "accepted"
        try: engine_checkpoint.read_checkpoint(path)
        except InputError as e:
            read = "refused"
            if "\n" in str(e) or len(str(e)) > 3000:
                lab.faults.append(f"read_checkpoint: not one line: {str(e)[:300]!r}")
        predicted = lab.call("alexnet_predict", inference.main,
                             ["--checkpoint", str(path), "--image", str(lab.picture),
                              "--set", "device.use_cuda=false", "--set", "device.reuse_memory=false",
                              "--set", "device.native_lrn=false",
                              *["--show-all-probs"] * (number % 2)])
        resumed = lab.call("alexnet_train", train.main,
                           ["--resume", str(path), "--minutes", "0.03",
                            *settings({k: v for k, v in (TINY | lab.paths(lab.work / "out")).items()
                                       if not k.startswith("model")})])
        return dict(read=read, predict=predicted, resume=resumed)
    return dict(what=what, work=work)


def one_config(lab: Lab, seed: int, number: int) -> dict:
    from alexnet_nb import train
    from alexnet_nb.base.errors import InputError, RunError
    from alexnet_nb.engine import train_command as engine_train_command
    from alexnet_nb.engine.config import load_config, to_yaml
    what, data, sets = config(seed, number, lab.marker)
    path = lab.fresh() / "hostile.yaml"
    path.write_bytes(data)
    def work():
        try:
            cfg, loaded = load_config(path, sets), "accepted"
            (lab.work / "again.yaml").write_text(to_yaml(cfg), encoding="utf-8")
            if load_config(lab.work / "again.yaml") != cfg: lab.faults.append("to_yaml does not lead back")
        except InputError as e:
            loaded = "refused"
            if len(str(e)) > 3000: lab.faults.append(f"load_config: a long line: {str(e)[:300]!r}")
        def fit(*args, **more): raise RunError("not trained here")
        with planted(engine_train_command, "fit", fit):
            lab.call("alexnet_train", train.main, ["--config", str(path), *(f"--set={s}" for s in sets)])
        return dict(load=loaded)
    return dict(what=what, work=work)


def one_log(lab: Lab, seed: int, number: int) -> dict:
    from alexnet_nb import train
    from alexnet_nb.base import errors as base_errors
    from alexnet_nb.base import results as base_results
    from alexnet_nb.claims import experiment as claims_experiment
    from alexnet_nb.claims import plans as claims_plans
    r, work_folder = random.Random(f"log {seed} {number}"), lab.fresh()
    if number % 3:
        shutil.copytree(lab.start, work_folder / "out")
        what = mutate_log(r, work_folder / "out" / "tblogs" / "run-001")
        argv = ["--resume", str(lab.base / "start.pkl"),
                *settings({k: v for k, v in (TINY | lab.paths(work_folder / "out")).items()
                           if not k.startswith("model")})]
        def work():
            done = lab.call("alexnet_train", train.main, argv
                            + ["--results", str(work_folder / "out" / "mine.json")] * (number % 2))
            if done == "accepted":
                for path in (work_folder / "out" / "tblogs" / "run-001").glob("*.jsonl"):
                    def no_number(name, path=path): lab.faults.append(f"{name} in {path.name}")
                    for line in path.read_text().splitlines(): json.loads(line, parse_constant=no_number)
            return dict(resume=done)
        return dict(what=what, work=work)
    name, e = "relu_vs_tanh", claims_plans.EXPERIMENTS["relu_vs_tanh"]["tiny"]
    epoch = dict(loss=2.3, error=0.9, seconds=1.0)
    new, identity = claims_plans.new_trial, claims_experiment._identity(name, "tiny", "drawings")
    trials = [new("relu 0.001", 0) | dict(epochs=[epoch] * 4, stopped="4 epochs", finished=True),
              new("tanh 0.001", 0) | dict(epochs=[epoch])]
    honest = identity | dict(rule=e.rule, shortened="", device="cpu", chosen={}, trials=trials)
    at = r.choice(("all", "trials", "trials", "trials"))
    if at == "all": data = mutate_json(r, json.dumps(honest))
    else:
        around = json.dumps(honest | {"trials": "@@"}).encode()
        data = around.replace(b'"@@"', mutate_json(r, json.dumps(trials)))
    file = work_folder / "results.json"
    file.write_bytes(data)
    def work():
        argv = [name, "--scale", "tiny", "--results", str(file), "--output", str(work_folder / "states")]
        def all_there(lab_of_experiment, seeds=None):
            claims_plans.next_trial(lab_of_experiment.experiment, lab_of_experiment.results["trials"], seeds)
            claims_experiment._note(lab_of_experiment)
            return 0
        with planted(claims_experiment, "_run_experiment", all_there):
            listed = lab.call("alexnet_experiment", claims_experiment.main, [*argv, "--list"])
            done = lab.call("alexnet_experiment", claims_experiment.main, argv)
        (work_folder / "results").mkdir()
        (work_folder / "results" / "mine.json").write_bytes(data)
        with planted(base_results, "_PACKAGE", work_folder), contextlib.suppress(base_errors.InputError):
            base_results.read_results("mine")
        return dict(list=listed, results=done)
    return dict(what=f"results file ({at})", work=work)


FULL = dict(checkpoint=2000, config=2000, log=500)
KINDS = dict(checkpoint=one_checkpoint, config=one_config, log=one_log)


def peak() -> int:
    "The most memory in use since `forget_peak`, in MB."
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def forget_peak() -> None:
    with contextlib.suppress(OSError): Path("/proc/self/clear_refs").write_text("5")


class EmptyFigure:
    "Stands for one of matplotlib's; saved under a name, it is an empty file."
    def savefig(self, file, **how):
        if isinstance(file, (str, Path)): Path(file).write_bytes(b"")


def child(base: Path, kind: str, seed: int, numbers: list[int]) -> None:
    "Try these inputs, and write to report.jsonl before and after each."
    import torch
    import torch._dynamo  # now, so that it is not the fault of an input

    from alexnet_nb import train
    from alexnet_nb.base import errors as base_errors
    from alexnet_nb.engine import run as engine_run
    torch.set_num_threads(1)
    lab = Lab(base)
    # pictures, which take longer than everything else here
    plant(engine_run, "write_panels", lambda *args: None)
    plant(engine_run, "draw_curves", lambda *args, **more: EmptyFigure())
    lab.honest()
    lab.fresh()
    # what is imported late is imported here
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.main(["--resume", str(base / "start.pkl"),
                    *settings({k: v for k, v in (TINY | lab.paths(lab.work / "out")).items()
                               if not k.startswith("model")})])
    data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + MEGABYTES * 2**20,) * 2)
    def note_swallowed(self, *args):
        e = sys.exc_info()[1]
        if isinstance(e, MemoryError) or isinstance(e, RuntimeError) and "allocate" in str(e):
            lab.faults.append(f"memory was asked for beyond {MEGABYTES} MB")
        ValueError.__init__(self, *args)
    plant(base_errors.InputError, "__init__", note_swallowed)
    def too_long(number, frame): raise TooLong
    signal.signal(signal.SIGPROF, too_long)
    with open(base / "report.jsonl", "a", buffering=1) as report:
        for number in numbers:
            report.write(json.dumps(dict(kind=kind, number=number)) + "\n")
            report.write(json.dumps(dict(kind=kind, number=number, **attempt(lab, kind, seed, number)))
                         + "\n")
    os._exit(0)


def attempt(lab: Lab, kind: str, seed: int, number: int) -> dict:
    "One input through its doors: what came of it, how long it took, and its faults."
    made = KINDS[kind](lab, seed, number)  # what fails here is a mistake of ours, and ends everything
    before, lab.faults[:] = lab.outside(), []
    forget_peak()
    began, done = time.process_time(), {}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with lab.watch.look(lab.work) as seen: done = made["work"]()
    except TooLong: lab.faults.append(f"more than {SECONDS} seconds: {traceback.format_exc()[-600:]}")
    except Exception as e:
        if isinstance(e, (MemoryError, RecursionError)):
            e.__traceback__ = e.__traceback__ and e.__traceback__.tb_next
        lab.faults.append("".join(traceback.format_exception(e))[-900:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        lab.faults += seen
    seconds, most = time.process_time() - began, peak()
    after = lab.outside()
    if most > MEGABYTES: lab.faults.append(f"{most} MB")
    if after != before:
        lab.faults.append(f"written outside: {sorted(set(after.items()) ^ set(before.items()))[:3]}")
    if lab.marker.exists():
        lab.faults.append("code was run")
        lab.marker.unlink()
    return dict(what=made["what"], done=done, seconds=round(seconds, 2), megabytes=most,
                faults=lab.faults[:5])


# ---------------------------------------------------------------- the parent

def children(base: Path, kind: str, seed: int, numbers: list[int]) -> None:
    """Try inputs in children; one that dies or falls silent is noted with its input, and the next goes on
    after it."""
    report = base / "report.jsonl"
    report.touch()
    def lines():
        return [row for row in map(json.loads, report.read_text().splitlines()) if row["kind"] == kind]
    while numbers:
        errors = open(base.parent / f"{base.name}.err", "w+")
        argv = [sys.executable, __file__, "--child", str(base), kind, str(seed), *map(str, numbers)]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=errors)
        size, since, why = -1, time.monotonic(), "died"
        while process.poll() is None:
            time.sleep(0.2)
            if (now := report.stat().st_size) != size: size, since = now, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                why = f"was silent for {SILENCE} seconds"
                process.kill()
        errors.seek(0)
        tail = errors.read()[-500:]
        errors.close()
        done = lines()
        if process.returncode == 1: raise RuntimeError(f"a mistake in this file: {tail}")
        if process.wait() == 0 and done and done[-1]["number"] == numbers[-1]: return
        if not done or "faults" in done[-1]: raise RuntimeError(f"a child could not begin: {tail}")
        bad = done[-1]["number"]
        numbers = numbers[numbers.index(bad) + 1:]
        row = dict(kind=kind, number=bad, what="?", done={}, seconds=0, megabytes=0,
                   faults=[f"the process {why}, exit {process.returncode}: {tail}"])
        with open(report, "a") as f: f.write(json.dumps(row) + "\n")


def run(n_checkpoints: int = 2000, n_configs: int = 2000, n_logs: int = 500, seed: int = 0) -> dict:
    """Try so many of each, fewer than the full number drawn from all of them by the seed. What came of it:
    tried, accepted and refused by door, slowest seconds, most memory, and every failure with what repeats
    it."""
    result: dict = dict(seed=seed)
    with tempfile.TemporaryDirectory(prefix="hostile_") as folder:
        base = Path(folder).resolve() / "base"
        base.mkdir()
        for kind, n in (("checkpoint", n_checkpoints), ("config", n_configs), ("log", n_logs)):
            began = time.monotonic()
            if n:
                all_of_them = range(max(n, FULL[kind]))
                children(base, kind, seed, sorted(random.Random(seed).sample(all_of_them, n)))
            told = (base / "report.jsonl").read_text().splitlines() if n else []
            rows = [row for row in map(json.loads, told) if row["kind"] == kind and "faults" in row]
            again = f"python tests/hostile/hostile_state.py {kind} {seed}"
            doors = Counter(f"{door} {what}" for row in rows for door, what in row["done"].items())
            failures = [dict(again=f"{again} {row['number']}", what=row["what"], faults=row["faults"])
                        for row in rows if row["faults"]]
            result[f"{kind}s"] = dict(tried=len(rows), doors=dict(sorted(doors.items())),
                                      slowest_seconds=max((row["seconds"] for row in rows), default=0),
                                      most_megabytes=max((row["megabytes"] for row in rows), default=0),
                                      seconds=round(time.monotonic() - began, 1), failures=failures)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), list(map(int, sys.argv[5:])))
    elif len(sys.argv) == 4:
        with tempfile.TemporaryDirectory(prefix="hostile_") as folder:
            (base := Path(folder).resolve() / "base").mkdir()
            subprocess.run([sys.executable, __file__, "--child", str(base), *sys.argv[1:4]], check=False)
            print(json.dumps(json.loads((base / "report.jsonl").read_text().splitlines()[-1]),
                             indent=1).replace("\\n", "\n"))
    else: print(json.dumps(run(*map(int, sys.argv[1:])), indent=1))
