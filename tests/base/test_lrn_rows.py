"LRN a few rows at a time: sums along a line, padding, both layouts, and the journeys over memory."
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet_nb.base.lrn_rows import _PaddedRows, _power, _strided_sum, channels_last, in_chunks
from alexnet_nb.lrn import LocalResponseNorm
from lrn_judge import apart, both, farthest, layouts, numbers


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("n", range(1, 18))
def test_strided_sum(n, step):
    q = torch.arange((n - 1) * step + 11.0) ** 2 % 101
    plain = [sum(q[i + d * step].item() for d in range(n)) for i in range(11)]
    before = q.clone()
    assert _strided_sum(q, n, step).tolist() == plain and torch.equal(q, before)


@pytest.mark.parametrize("seed", range(20))
def test_rows_do_not_mix_and_the_fill_counts(seed):
    """Each row as if it were alone, with `fill` wherever the window hangs over; also in fewer rows than there
    are."""
    rng = random.Random(seed)
    rows, places, step = rng.randint(1, 4), rng.randint(1, 7), rng.randint(1, 3)
    before, after, fill = rng.randint(0, 5), rng.randint(0, 5), float(rng.randint(-3, 3))
    inside = torch.tensor([[float(rng.randint(-9, 9)) for _ in range(places * step)] for _ in range(rows)])
    padded = _PaddedRows(rows, places * step, before, after, step, torch.tensor(fill))
    padded.inside.copy_(inside)
    def at(row, i): return inside[row, i].item() if 0 <= i < places * step else fill
    for some in range(1, rows + 1):
        for row, sums in enumerate(padded.sums(some).tolist()):
            for i, found in enumerate(sums):
                assert found == sum(at(row, i + d * step) for d in range(-before, after + 1))


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.3, 0.0])
def test_power(beta):
    s = torch.logspace(-3, 30, 5000)
    assert farthest(_power(s, beta), s.double() ** -beta) < 1e-6 * (10 if beta == 0.3 else 1)
    assert _power(torch.tensor(torch.inf), 0.75) == 0


def test_channels_last():
    x = torch.randn(2, 3, 4, 5)
    assert not channels_last(x) and channels_last(x.to(memory_format=torch.channels_last))
    assert channels_last(x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2))
    assert not channels_last(x[:, ::2]) and not channels_last(x.transpose(2, 3))
    assert not channels_last(x[:, :1])  # one channel: both layouts are the same, and the usual one is taken


@layouts
@pytest.mark.parametrize("window", [(0, 0), (2, 2), (2, 1), (0, 3), (8, 8)])
def test_in_chunks_is_the_formula(window, layout):
    "By itself, without the layer around it: y, and dL/dx for a gradient that lies in any way."
    x, g = numbers(3, 9, 5, 4, scale=30, layout=layout), numbers(3, 9, 5, 4, seed=1)
    i, j = torch.arange(9)[:, None], torch.arange(9)[None]
    band = ((j >= i - window[0]) & (j <= i + window[1])).double()
    def formula(x): return x / (2 + 1e-3 * torch.einsum("ij,bj...->bi...", band, x * x)) ** 0.75
    y, dx = both(formula, x.double(), g.double())
    mine = [in_chunks(x, given, window, 2.0, 1e-3, 0.75) for given in (None, g)]
    assert farthest(mine[0], y) < 1e-6 and apart(mine[1], dx) < 1e-6
    assert all(t.is_contiguous(memory_format=layout) for t in mine)


@layouts
def test_layout_is_kept_in_parts_of_any_size(layout):
    "More numbers than one part holds, a remainder at the end, both directions."
    for shape in ((67, 16, 13, 13), (3, 96, 55, 55)):
        x, g = (numbers(*shape, scale=30, seed=seed, layout=layout) for seed in (0, 1))
        rivals = LocalResponseNorm(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.)
        (y, dx), (y_torch, dx_torch) = (both(f, x, g) for f in rivals)
        assert y.is_contiguous(memory_format=layout) and dx.is_contiguous(memory_format=layout)
        assert farthest(y, y_torch) < 1e-6 and apart(dx, dx_torch) < 1e-6


def test_the_size_of_the_parts_changes_nothing():
    "An image gives the same bits alone, in a part with others, and as the remainder."
    x, g = numbers(67, 16, 13, 13, scale=30), numbers(67, 16, 13, 13, seed=1)
    for given in (None, g):
        many = in_chunks(x, given, (2, 2), 2.0, 2e-5, 0.75)
        for i in (0, 30, 66):
            alone = in_chunks(x[i : i + 1], None if given is None else g[i : i + 1], (2, 2), 2.0, 2e-5, 0.75)
            assert torch.equal(alone[0], many[i])


class Traffic(TorchDispatchMode):
    "Counts the numbers that operations read from or write to tensors whose memory is at least `size` bytes."
    def __init__(self, size):
        super().__init__()
        self.size, self.numbers = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name.startswith(("empty", "new_", "detach")): return result
        read = [t for t in args if isinstance(t, torch.Tensor)]
        if name in ("copy_", "zero_", "fill_"): read = read[1:]
        results = result if isinstance(result, (tuple, list)) else [result]
        written = [t for t in results if isinstance(t, torch.Tensor)]
        for tensors in (read, written):
            each = {id(t): t for t in tensors}.values()
            self.numbers += sum(t.numel() for t in each if t.untyped_storage().nbytes() >= self.size)
        return result


def journeys(f, x, g) -> float:
    "Full-tensor passes of a forward and backward over memory of x's size or more."
    with Traffic(x.numel() * x.element_size()) as traffic: both(f, x, g)
    return traffic.numbers / x.numel()


@layouts
def test_passes(layout):
    "Torch's module makes more than fifty; ours makes eight, three of them in the cache."
    x, g = (numbers(32, 96, 13, 13, seed=seed, layout=layout) for seed in (0, 1))
    rivals = LocalResponseNorm(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.)
    ours, torchs = (journeys(f, x, g) for f in rivals)
    assert ours == 8 and torchs > 50
