"What the tests of local response normalisation share: inputs, a judge in float64, and distances."
import os
import subprocess
import sys

import pytest
import torch

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
SCALES = (1, 30, 100)


def numbers(*shape, scale=1., seed=0, dtype=torch.float32, layout=torch.contiguous_format) -> torch.Tensor:
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype).to(memory_format=layout)


def both(f, x, g):
    "What f gives for x, and its gradient for g."
    z = x.detach().requires_grad_()
    y = f(z)
    return y.detach(), torch.autograd.grad(y, z, g)[0]


def reference(n, k=2., alpha=1e-4, beta=0.75, alpha_is="mean", groups=1):
    "The formula in float64 as a product with the band matrix of windows; shares no code with the library."
    def f(x):
        x = x.double()
        part = x.shape[1] // groups
        i, j = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])[None]
        inside = (j >= i - n // 2) & (j <= i + (n - 1) // 2) & (i // max(1, part) == j // max(1, part))
        sums = torch.einsum("ij,bj...->bi...", inside.double(), x * x)
        return x / (k + (alpha / n if alpha_is == "mean" else alpha) * sums) ** beta
    return f


def farthest(a, b) -> float:
    "The largest difference of an element, relative to that element of b (elements of 0 must be 0)."
    error = (a.double() - b.double()).abs()
    assert not error[b == 0].any()
    return (error / b.double().abs().clamp(min=1e-300)).max().item()


def apart(a, b) -> float:
    "The length of the difference, relative to the length of b."
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def units(a, b) -> int:
    "How many representable numbers a and b are apart, at most (16-bit floats)."
    def place(t):
        bits = t.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)
    return (place(a) - place(b)).abs().max().item()


def run(code: str, **env) -> str:
    "Run Python code in a process of its own."
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
