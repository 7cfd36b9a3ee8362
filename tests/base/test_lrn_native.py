"LRN in C++: the bits of the rows, wherever it runs, and nothing changed where it cannot."
import os
import subprocess
import sys

import pytest
import torch

from alexnet_nb.base import lrn_native
from alexnet_nb.base.lrn_native import in_native, native_lrn, use_native_lrn
from alexnet_nb.base.lrn_rows import channels_last, in_chunks
from alexnet_nb.engine.speed import kept_bytes
from alexnet_nb.lrn import LocalResponseNorm, lrn_way
from lrn_judge import LAYOUTS, layouts, numbers

PAPER = (2, 2), 2.0, 2e-5, 0.75


@pytest.fixture
def native():
    "With the compiled loop, if it can be had here; as it was before, afterwards."
    if not use_native_lrn(): pytest.skip("no C++ compiler that this processor's instructions are known for")
    yield
    use_native_lrn(False)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 96, 9, 11), (1, 256, 5, 5), (3, 5, 1, 1), (1, 6, 40), (2, 7, 2, 3, 4)])
@pytest.mark.parametrize("scale", [1e-3, 30, 1e4])
def test_the_bits_of_the_rows(shape, dtype, layout, scale, native):
    last = layout == LAYOUTS["channels last"]
    def laid_out(t): return t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t
    x, g = (laid_out(numbers(*shape, scale=size, seed=seed).to(dtype)) for seed, size in ((0, scale), (1, 1)))
    for constants in (PAPER, ((2, 2), 1.0, 0.5, 0.75)):
        for grad in (None, g):
            ours, rows = in_native(x, grad, *constants), in_chunks(x, grad, *constants)
            assert ours.dtype == dtype and torch.equal(ours, rows) and channels_last(ours) == channels_last(x)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads, native):
    before, (x, g) = torch.get_num_threads(), (numbers(3, 33, 13, 13, seed=s) for s in (0, 1))
    torch.set_num_threads(threads)
    try: assert in_native(x, g, *PAPER).equal(in_chunks(x, g, *PAPER))
    finally: torch.set_num_threads(before)


def test_a_gradient_in_another_layout(native):
    x, g = numbers(2, 9, 5, 4).contiguous(memory_format=torch.channels_last), numbers(2, 9, 5, 4, seed=1)
    assert in_native(x, g, *PAPER).equal(in_chunks(x, g, *PAPER))
    assert in_native(x, g[:, :1].expand_as(x), *PAPER).equal(in_chunks(x, g[:, :1].expand_as(x), *PAPER))


@pytest.mark.parametrize("change", [dict(window=(2, 1)), dict(beta=0.5), dict(dtype=torch.float64),
                                    dict(dtype=torch.float16), dict(view=True)])
def test_what_it_was_not_written_for_goes_in_chunks(change, native):
    x = numbers(2, 9, 5, 4).to(change.get("dtype", torch.float32))
    if "view" in change: x = x[:, ::2]
    constants = change.get("window", (2, 2)), 2.0, 2e-5, change.get("beta", 0.75)
    assert in_native(x, None, *constants).equal(in_chunks(x, None, *constants))


def test_numbers_that_are_none_stay_so(native):
    for dtype in (torch.float32, torch.bfloat16):
        x = numbers(1, 8, 2, 2).to(dtype)
        x[0, 3, 0, 0], x[0, 5, 1, 1] = torch.nan, torch.inf
        ours, rows = in_native(x, None, *PAPER), in_chunks(x, None, *PAPER)
        assert torch.equal(ours.isnan(), rows.isnan()) and ours.isnan().any()
        assert torch.equal(ours.nan_to_num(7), rows.nan_to_num(7))


def test_the_layer_uses_it_and_keeps_x_alone(native):
    x = numbers(2, 96, 7, 7).float()
    assert lrn_way(x) == "native" and kept_bytes(LocalResponseNorm(), x) == x.nbytes
    y = LocalResponseNorm()(x)
    use_native_lrn(False)
    assert lrn_way(x) == "chunks" and torch.equal(LocalResponseNorm()(x), y)


def tried(code: str, folder, **env) -> subprocess.CompletedProcess:
    "A new process whose compiled files are kept in a folder."
    whole = f"from alexnet_nb.base.lrn_native import *\n{code}"
    return subprocess.run([sys.executable, "-c", whole], text=True, capture_output=True,
                          env=os.environ | {"TORCH_EXTENSIONS_DIR": str(folder)} | env)


def test_it_is_built_once_and_kept(tmp_path, native):
    assert tried("print(use_native_lrn(build=False))", tmp_path).stdout == "False\n"
    assert tried("print(use_native_lrn())", tmp_path).stdout == "True\n"
    [kept] = (tmp_path / "alexnet_nb").iterdir()
    nowhere = tried("print(use_native_lrn(build=False))", tmp_path, CXX="nothing-of-that-name")
    assert nowhere.stdout == "False\n"
    assert tried("print(use_native_lrn(build=False))", tmp_path).stdout == "True\n"
    kept.write_bytes(b"damaged")
    assert tried("print(use_native_lrn())", tmp_path).stdout == "True\n" and kept.stat().st_size > 1000


def test_a_compiler_that_fails_is_told_in_one_line(tmp_path, native):
    found = tried("print(use_native_lrn(), native_lrn())", tmp_path, CXX="false")
    why, answer = found.stdout.splitlines()
    assert "the compiler failed" in why and answer == "False False" and not found.stderr
    assert not list((tmp_path / "alexnet_nb").iterdir())


def test_a_wrong_result_is_not_used(tmp_path, monkeypatch, capsys, native):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    wrong = lrn_native._SOURCE.replace("(q[0] + q[STEP])", "q[STEP] + q[0] * 1.001f")
    monkeypatch.setattr(lrn_native, "_SOURCE", wrong)
    lrn_native._find.cache_clear()
    try:
        assert not use_native_lrn() and not native_lrn()
        assert "its result is wrong" in capsys.readouterr().out
    finally: lrn_native._find.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is compiled elsewhere")
@pytest.mark.parametrize("planted", ["open to all", "a link"])
def test_no_program_of_somebody_else_is_loaded(tmp_path, native, planted):
    "Where the home cannot be written to, the temporary folder is shared: a folder there must be ours alone."
    own = tmp_path / f"alexnet_nb-{os.getuid()}"
    code = ("import os; from unittest import mock\n"
            "with mock.patch('os.access', lambda path, mode: mode != os.W_OK): print(use_native_lrn())")
    def answer(): return tried(code, tmp_path / "home", TMPDIR=str(tmp_path)).stdout.splitlines()
    assert answer() == ["True"]
    assert own.stat().st_mode & 0o777 == 0o700 and len(list(own.iterdir())) == 1
    if planted == "open to all": own.chmod(0o777)
    else: own.symlink_to(own.rename(tmp_path / "theirs"))
    why, used = answer()
    assert "is not ours alone" in why and used == "False"
