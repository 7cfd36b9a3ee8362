"Local response normalisation: the same numbers as the formula, in every type, layout and window."
import random
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from alexnet_nb import lrn
from alexnet_nb.lrn import LocalResponseNorm, local_response_norm, lrn_way
from lrn_judge import SCALES, apart, both, farthest, layouts, numbers, reference, run, units

# float64 and float32

@layouts
@pytest.mark.parametrize("n", [1, 2, 4, 5, 30])
def test_gradcheck(n, layout):
    z = numbers(2, 7, 2, 3, scale=3, dtype=torch.float64, layout=layout).requires_grad_()
    for beta in (0.75, 0.5):
        assert torch.autograd.gradcheck(partial(local_response_norm, n=n, alpha=0.1, beta=beta), z)


def test_gradcheck_whole_tensor(monkeypatch):
    "The way that devices without a kernel take."
    monkeypatch.setattr(lrn, "lrn_way", lambda x, n: "whole")
    z = numbers(2, 7, 2, 3, scale=3, dtype=torch.float64).requires_grad_()
    for n in (4, 5): assert torch.autograd.gradcheck(partial(local_response_norm, n=n, alpha=0.1), z)


@layouts
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(3, 96, 9, 9), (3, 256, 5, 5), (2, 3, 7, 7)], ids=str)
@pytest.mark.parametrize("n", [4, 5])
def test_float32_is_torchs(n, shape, scale, layout):
    "Each output within 1e-6 of itself, the gradient within 1e-6 of its norm."
    x, g = (numbers(*shape, scale=s, seed=seed, layout=layout) for seed, s in enumerate((scale, 1)))
    (y, dx), (y_torch, dx_torch) = (both(f, x, g)
                                    for f in (LocalResponseNorm(n), nn.LocalResponseNorm(n, 1e-4, 0.75, 2.)))
    assert farthest(y, y_torch) < 1e-6 and apart(dx, dx_torch) < 1e-6
    y_true, dx_true = both(nn.LocalResponseNorm(n, 1e-4, 0.75, 2.), x.double(), g.double())
    assert farthest(y, y_true) < 1e-6 and apart(dx, dx_true) < 1e-6


@pytest.mark.parametrize("scale", [30, 100])
@pytest.mark.parametrize("wrong", [dict(n=3), dict(n=4), dict(n=6), dict(n=9), dict(alpha_is="sum"),
                                   dict(alpha=1.01e-4), dict(k=2.001), dict(beta=0.751), dict(groups=2)],
                         ids=str)
def test_a_wrong_layer_does_not_pass(wrong, scale):
    x = numbers(3, 96, 9, 9, scale=scale)
    y, dx = both(LocalResponseNorm(**wrong), x, torch.ones_like(x))
    y_torch, dx_torch = both(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.), x, torch.ones_like(x))
    assert farthest(y, y_torch) > 1e-5 and apart(dx, dx_torch) > 1e-5


def test_overflow_is_torchs():
    "Squares beyond float32 give 0, not NaN."
    x = torch.full((1, 5, 1, 1), 1e25)
    y, dx = both(LocalResponseNorm(), x, torch.ones_like(x))
    assert not y.any() and not dx.any() and not nn.LocalResponseNorm(5, 1e-4, 0.75, 2.)(x).any()


# 16 bits

@layouts
@pytest.mark.parametrize("scale", [*SCALES, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [4, 5])
def test_16_bits_round_once(n, dtype, scale, layout):
    """Output: at most two representable numbers from the exact one, rounded.

    Gradient, a difference of two terms: from the exact one no further than half a unit of its own rounding,
    plus 2e-6 of the two terms (float32 on the way), plus half of float16's smallest number."""
    x, g = (numbers(2, 40, 9, 9, scale=s, seed=seed, dtype=dtype, layout=layout)
            for seed, s in enumerate((scale, 1)))
    y, dx = both(LocalResponseNorm(n), x, g)
    assert y.dtype == dx.dtype == dtype
    exact, slope = both(reference(n), x.double(), g.double())
    assert units(y, exact.to(dtype)) <= 2
    # g s^-beta; where x is 0 nothing is taken from it
    first = g.double() * (exact / x.double()).nan_to_num(2**-0.75)
    terms = first.abs() + (first - slope).abs()
    half_unit = slope.abs() * torch.finfo(dtype).eps / 2
    half_smallest = torch.finfo(torch.float16).smallest_normal * 2**-11
    assert ((dx.double() - slope).abs() <= half_unit + 2e-6 * terms + half_smallest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast(dtype):
    conv, layer, x = nn.Conv2d(3, 12, 3), LocalResponseNorm(), numbers(2, 3, 8, 8, scale=300)
    with torch.autocast("cpu", dtype=dtype):
        a = conv(x)
        y = layer(a)
        wide = layer(a.float())
    assert a.dtype == y.dtype == dtype and wide.dtype == torch.float32
    assert units(y, reference(5)(a).to(dtype)) <= 2
    y.float().sum().backward()
    assert conv.weight.grad.isfinite().all() and conv.weight.grad.any()


# any shape, any layout, any constants

def arrangement(rng, x):
    "x with the same values, lying in memory in one of several ways."
    how = rng.choice(["plain", "channels last", "every other", "turned", "expanded batch"])
    if how == "channels last": return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if how == "every other": return x.repeat_interleave(2, 1)[:, ::2]
    if how == "turned": return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "expanded batch": return x[:1].expand_as(x)
    return x


@pytest.mark.parametrize("seed", range(200))
def test_random_cases(seed):
    "Random shape, constants, layout and type, and random ways for the gradient to lie, against float64."
    rng = random.Random(seed)
    groups = rng.choice([1, 1, 2, 3])
    shape = (rng.choice([0, 1, 2, 3, 5]) if groups == 1 else 2, groups * rng.randint(1, 14),
             *(rng.randint(1, 6) for _ in range(rng.randint(1, 3))))
    constants = dict(n=rng.choice([1, 2, 3, 4, 5, 6, 7, 9, 16, 100]), k=rng.choice([1., 2., 0.3]),
                     alpha=rng.choice([1e-4, 1e-2, 1., 0.]),
                     beta=rng.choice([0.75, 0.75, 0.5, 1., 0.3]), alpha_is=rng.choice(["mean", "sum"]),
                     groups=groups)
    dtype = rng.choice([torch.float64, torch.float32])
    x, g = (arrangement(rng, numbers(*shape, scale=s, seed=seed, dtype=dtype))
            for s in (rng.choice([1, 30, 100]), 1))
    y, dx = both(LocalResponseNorm(**constants), x, g)
    assert y.shape == dx.shape == x.shape and y.dtype == dx.dtype == dtype
    if not x.numel(): return
    y_true, dx_true = both(reference(**constants), x.double(), g.double())
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert (farthest(y, y_true) < 10 * tolerance if constants["beta"] == 0.3
            else farthest(y, y_true) < tolerance)
    first = g.double() * (y_true / x.double()).nan_to_num(1)  # the gradient's first term
    assert (dx.double() - dx_true).norm() <= 3 * tolerance * first.norm()


def test_without_gradient_and_without_numbers():
    x, layer = numbers(2, 9, 4, 4, scale=30), LocalResponseNorm()
    y = layer(x)
    with torch.no_grad(): assert torch.equal(layer(x), y)
    with torch.inference_mode(): assert torch.equal(layer(x), y)
    assert layer(x.requires_grad_()).requires_grad and layer(torch.empty(0, 9, 4, 4)).shape == (0, 9, 4, 4)
    away = layer(torch.empty(2, 9, 4, 4, device="meta", dtype=torch.bfloat16))
    assert away.shape == (2, 9, 4, 4) and away.dtype == torch.bfloat16 and away.is_meta


def test_the_same_every_time():
    x, g = numbers(5, 96, 27, 27, scale=30), numbers(5, 96, 27, 27, seed=1)
    first, second = (both(LocalResponseNorm(), x, g) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# what it costs

def test_saved_bytes():
    "The input and nothing else, which the ReLU before keeps anyway; at least three times less than torch's."
    def kept(f, x):
        seen = {}
        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with saved_tensors_hooks(note, lambda t: t): y = f(x)
        return sum(seen.values()), y
    x = numbers(2, 96, 13, 13).requires_grad_()
    size, relu, torchs = x.numel() * x.element_size(), nn.ReLU(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.)
    assert kept(LocalResponseNorm(), x)[0] == kept(lambda t: LocalResponseNorm()(relu(t)), x)[0] == size
    assert kept(torchs, x)[0] >= 3 * size
    half = x.detach().bfloat16().requires_grad_()
    assert kept(LocalResponseNorm(), half)[0] == size // 2


# the way, and the kernel

def test_the_way():
    x = torch.ones(1, 5, 2, 2)
    assert lrn_way(x) == lrn_way(x.double()) == lrn_way(x.half()) == "chunks"
    assert lrn_way(x.to("meta")) == lrn_way(x[:0]) == "whole"


def test_a_kernel_that_fails_is_named_once(monkeypatch, capsys):
    def fails(*args): raise RuntimeError("Failed to find C compiler.\nPlease specify one")
    monkeypatch.setattr(lrn, "_run", lambda way: fails)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: None)
    lrn._triton_works.cache_clear()
    assert not lrn._triton_works() and not lrn._triton_works()
    lrn._triton_works.cache_clear()
    assert capsys.readouterr().out == ("LRN runs as separate operations on this GPU, since Triton does not "
                                       "work here (RuntimeError: Failed to find C compiler.)\n")


def test_without_triton_the_reason_is_named(monkeypatch, capsys):
    "Where the package is missing altogether, the module with the kernels cannot be loaded."
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "alexnet_nb.base.lrn_triton", raising=False)
    lrn._triton_works.cache_clear()
    assert not lrn._triton_works()
    lrn._triton_works.cache_clear()
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith("LRN runs as separate operations on this GPU") and "triton" in line.split("(")[1]


def test_the_import_is_light():
    run("import sys, alexnet_nb.lrn, torch; alexnet_nb.lrn.local_response_norm(torch.ones(1, 5, 2, 2))\n"
        "assert not {'triton', 'matplotlib', 'torchvision', 'torch._inductor'} & set(sys.modules), "
        "sorted(sys.modules)")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_on_a_gpu(dtype, layout):
    "Whatever way the GPU takes, and both ways where the kernel runs."
    x, g = (numbers(4, 96, 13, 13, scale=s, seed=seed, dtype=dtype, layout=layout).cuda()
            for seed, s in enumerate((30, 1)))
    y, dx = both(LocalResponseNorm(), x, g)
    exact, slope = both(reference(5), x.cpu().double(), g.cpu().double())
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    assert apart(y.cpu(), exact) < tolerance and apart(dx.cpu(), slope) < tolerance
    assert y.is_contiguous(memory_format=layout) and y.dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast_on_a_gpu(dtype):
    conv, layer, x = nn.Conv2d(3, 12, 3).cuda(), LocalResponseNorm(), numbers(2, 3, 8, 8, scale=300).cuda()
    with torch.autocast("cuda", dtype=dtype):
        a = conv(x)
        y = layer(a)
    assert a.dtype == y.dtype == dtype and units(y, reference(5)(a).to(dtype)) <= 2
    y.float().sum().backward()
    assert conv.weight.grad.isfinite().all() and conv.weight.grad.any()


def test_under_torch_compile():
    "Traced as a graph, the layer is the whole-tensor formulas."
    x, g = numbers(2, 9, 4, 4, scale=30), numbers(2, 9, 4, 4, seed=1)
    y, dx = both(torch.compile(LocalResponseNorm(), backend="aot_eager"), x, g)
    y_eager, dx_eager = both(LocalResponseNorm(), x, g)
    assert farthest(y, y_eager) < 1e-6 and apart(dx, dx_eager) < 1e-6


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -3}, {"n": 2.5}, {"k": 0}, {"alpha_is": "Mean"}], ids=str)
def test_constants_that_cannot_be(wrong):
    said = f"^{next(iter(wrong))} is"
    with pytest.raises(ValueError, match=said): local_response_norm(torch.ones(1, 3, 2), **wrong)
    with pytest.raises(ValueError, match=said): LocalResponseNorm(**wrong)


def test_a_layer_needs_a_group():
    with pytest.raises(ValueError, match="groups is 0"): LocalResponseNorm(groups=0)


@pytest.mark.parametrize("g_learns", [False, True])
def test_the_second_derivative_is_right(g_learns):
    "Whether the gradient from above needs one itself or not."
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 5, 2, 2, dtype=torch.float64)).requires_grad_()
    found = []
    for f in (LocalResponseNorm(alpha=0.5), torch.nn.LocalResponseNorm(5, alpha=0.5, k=2.0)):
        y = f(x).square().sum() if g_learns else f(x).sum()
        slope, = torch.autograd.grad(y, x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert found[0].any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("wrong", [dict(n=5.0), dict(n=float("inf")), dict(k=float("nan")), dict(groups=1.5)])
def test_constants_that_cannot_be_are_refused_when_the_layer_is_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): LocalResponseNorm(**wrong)
