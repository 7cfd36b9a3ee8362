"The Triton kernels, run by Triton's interpreter and compiled for a GPU that need not be there."
import importlib.util

import pytest

from common import TESTS
from lrn_judge import run

absent = importlib.util.find_spec("triton") is None
pytestmark = pytest.mark.skipif(absent, reason="Triton is not installed here")


def test_the_kernels_under_the_interpreter():
    "Both kernels on the CPU against torch's layer in float64: types, layouts, windows, tiles that overhang."
    run("""
import torch
from torch import nn
from alexnet_nb.base.lrn_triton import in_one_pass
torch.manual_seed(0)
f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
cases = [(f32, 5, 9, 0.75, "first"), (f32, 4, 40, 0.75, "last"), (f32, 5, 9, 0.5, "turned"),
         (f32, 9, 3, 0.6, "short"), (bf16, 5, 33, 0.75, "last"), (bf16, 4, 9, 0.75, "first"),
         (f16, 5, 9, 0.75, "last"), (f16, 1, 3, 0.75, "first")]
for dtype, n, C, beta, layout in cases:
    x, g = 100 * torch.randn(2, C, 5, 7), torch.randn(2, C, 5, 7)
    if layout == "last": x = x.to(memory_format=torch.channels_last)
    if layout == "turned": x, g = x.transpose(2, 3), g[:, :, :1].expand(2, C, 5, 7).transpose(2, 3)
    if layout == "short": x, g = x.flatten(2), g.flatten(2)
    x, g = x.to(dtype), g.to(dtype)
    z = x.double().requires_grad_()
    y = nn.LocalResponseNorm(n, 1e-4, beta, 2.0)(z)
    dx, = torch.autograd.grad(y, z, g.double())
    window = min(n // 2, C - 1), min((n - 1) // 2, C - 1)
    for given, true in ((None, y.detach()), (g, dx)):
        mine = in_one_pass(x, given, window, 2.0, 1e-4 / n, beta)
        assert mine.dtype == dtype and mine.shape == x.shape
        assert layout != "last" or mine.is_contiguous(memory_format=torch.channels_last)
        error = ((mine - true).norm() / true.norm()).item()
        assert error < (1e-6 if dtype == f32 else torch.finfo(dtype).eps), (dtype, n, C, beta, layout, error)
""", TRITON_INTERPRET="1")


def test_the_kernels_compile_and_read_each_neighbour_once(tmp_path):
    "Triton compiles for an absent GPU: 5 reads and 1 write forward; 9 of x, 5 of g and 1 write backward."
    run("""
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from alexnet_nb.base import lrn_triton
kernels = (lrn_triton._forward, ("x", "y"), 5), (lrn_triton._backward, ("x", "g", "dx"), 14)
for kernel, tensors, loads in kernels:
    types = {name: "*bf16" for name in tensors}
    types |= {name: "i32" for name in ("positions", "area", "C", "step", "apart")}
    types |= {name: "fp32" for name in ("k", "a", "beta")}
    fixed = {"roots": True, "before": 2, "after": 2}
    source = ASTSource(kernel, types | {name: "constexpr" for name in fixed}, fixed)
    done = compile(source, target=GPUTarget("cuda", 80, 32))
    assert done.asm["ttir"].count("tt.load") == loads and done.asm["ttir"].count("tt.store") == 1
""", TRITON_CACHE_DIR=str(tmp_path))


def test_the_layer_goes_this_way_when_a_kernel_works():
    "The layer's forward and backward are then the kernels', and the trial on six numbers passes."
    run(f"""
import sys, torch
sys.path.append({str(TESTS)!r})
from alexnet_nb import lrn
from planting import plant
tried, ones = [], torch.ones
def here(*shape, device):  # there is no CUDA
    tried.append(device)
    return ones(*shape)
plant(torch, "ones", here)
assert lrn._triton_works() and tried == ["cuda"]
plant(lrn, "lrn_way", lambda x, n: "triton")
x, g = (50 * torch.randn(2, 9, 3, 3)).requires_grad_(), torch.randn(2, 9, 3, 3)
from alexnet_nb.base.lrn_triton import in_one_pass
y = lrn.local_response_norm(x)
assert torch.equal(y, in_one_pass(x.detach(), None, (2, 2), 2.0, 2e-5, 0.75))
assert torch.equal(torch.autograd.grad(y, x, g)[0], in_one_pass(x.detach(), g, (2, 2), 2.0, 2e-5, 0.75))
""", TRITON_INTERPRET="1")


def test_floor_1_knows_nothing_of_the_lesson():
    "The kernels take plain tensors."
    run("import sys, alexnet_nb.base.lrn_rows, alexnet_nb.base.lrn_triton\n"
        "assert 'alexnet_nb.lrn' not in sys.modules")
