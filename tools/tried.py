"""What was tried to make the network faster on a CPU and did not stay, measured beside what did.

    python tools/tried.py                    prints a line each
    python tools/tried.py nbs/results/tried.json

Two sides at a time, in turn, medians of seven. It needs a C++ compiler (for torch.compile) and some minutes,
on a machine that does nothing else.
"""
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.mkldnn import to_mkldnn

from alexnet_nb.base.device import describe_device
from alexnet_nb.base.lrn_native import in_native, use_native_lrn
from alexnet_nb.base.lrn_rows import in_chunks
from alexnet_nb.base.results import versions
from alexnet_nb.engine.allocator import reuse_memory
from alexnet_nb.lrn import local_response_norm
from alexnet_nb.model import AlexNet

PAPER, LAST, REPEATS = ((2, 2), 2.0, 2e-5, 0.75), torch.channels_last, 7
HALF = torch.bfloat16
found: list[dict] = []


def in_turn(what: str, precision: torch.dtype, images: int, **works: Callable[[], object]) -> None:
    "Time works in turn, the one that stayed first; note images a second of each."
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(REPEATS + 2):
        for name, work in works.items():
            time.sleep(0.05)
            began = time.perf_counter()
            work()
            if turn > 1: times[name].append(time.perf_counter() - began)
    rates = {name: images / statistics.median(taken) for name, taken in times.items()}
    found.append(dict(what=what, precision={torch.float32: "fp32", HALF: "bf16"}[precision],
                      images_per_second=rates))
    told = (f"{name.replace('_', ' ')} {rate:.0f}/s" for name, rate in rates.items())
    print(f"{what}, {found[-1]['precision']}:", *told, sep="  ", flush=True)


def conv1(precision: torch.dtype, n: int = 128) -> None:
    "11 x 11 with stride 4 over 3 colours as 3 x 3 over 48 (space to depth), forward and weight gradient."
    def packed(t: Tensor) -> Tensor: return F.pixel_unshuffle(F.pad(t, (0, 1, 0, 1)), 4)
    x, w = torch.randn(2, 3, 227, 227, dtype=torch.float64), torch.randn(96, 3, 11, 11, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(packed(x), packed(w)), F.conv2d(x, w, stride=4))
    x = torch.randn(n, 3, 227, 227).to(precision).contiguous(memory_format=LAST)
    w = torch.randn(96, 3, 11, 11).to(precision).contiguous(memory_format=LAST).requires_grad_()
    g = torch.randn(n, 96, 55, 55).to(precision).contiguous(memory_format=LAST)
    ready = packed(x).contiguous(memory_format=LAST)
    def as_it_is(): torch.autograd.grad(F.conv2d(x, w, stride=4), w, g)
    def as_3_by_3():
        torch.autograd.grad(F.conv2d(packed(x).contiguous(memory_format=LAST), packed(w)), w, g)
    def pictures_packed_before(): torch.autograd.grad(F.conv2d(ready, packed(w)), w, g)
    in_turn("conv1 alone", precision, n, as_it_is=as_it_is, as_3_by_3=as_3_by_3,
            pictures_packed_before=pictures_packed_before)


def normalisation(precision: torch.dtype, shape: tuple[int, ...] = (64, 96, 55, 55)) -> None:
    "LRN forward and backward: the loop in C++, the rows, the formula compiled, the window as a product."
    x, g = (torch.randn(shape).to(precision).contiguous(memory_format=LAST) for _ in range(2))
    i = torch.arange(shape[1])
    band = ((i[:, None] - i).abs() <= 2).float()
    def formula(t: Tensor) -> Tensor:
        wide = t.float()
        return (wide * (2 + 2e-5 * F.conv2d(wide * wide, band[..., None, None])) ** -0.75).to(t.dtype)
    compiled = torch.compile(local_response_norm)
    def of(f): return lambda: torch.autograd.grad(f(z := x.detach().requires_grad_()), z, g)
    torch.testing.assert_close(formula(x.float()), in_chunks(x.float(), None, *PAPER), rtol=1e-5, atol=1e-5)
    in_turn("normalisation, forward and backward", precision, shape[0],
            in_cpp=lambda: (in_native(x, None, *PAPER), in_native(x, g, *PAPER)),
            rows_in_Python=lambda: (in_chunks(x, None, *PAPER), in_chunks(x, g, *PAPER)),
            formula_compiled=of(compiled), window_as_a_product=of(formula))


class _Opaque(nn.Module):
    "The normalisation as one operation that the compiler does not look into."
    def forward(self, x: Tensor) -> Tensor: return torch.ops.alexnet_nb_tried.lrn(x)


@torch.library.custom_op("alexnet_nb_tried::lrn", mutates_args=())
def _lrn(x: Tensor) -> Tensor: return in_native(x, None, *PAPER)


@_lrn.register_fake
def _(x): return torch.empty_like(x)


def _loaded(model: nn.Module, folder: str) -> Callable[[Tensor], Tensor]:
    "The network compiled ahead of time with frozen weights, and loaded from its package."
    x = torch.randn(2, 3, 227, 227, dtype=model.features[0].weight.dtype).contiguous(memory_format=LAST)
    many = torch.export.Dim("many", min=1, max=1024)
    graph = torch.export.export(model, (x,), dynamic_shapes=({0: many},))
    made = torch._inductor.aoti_compile_and_package(graph, package_path=f"{folder}/network.pt2",
                                                    inductor_configs={"freezing": True})
    return torch._inductor.aoti_load_package(made)


@torch.no_grad()
def frozen(precision: torch.dtype) -> None:
    "The network as it is, compiled with frozen weights at once and ahead of time, and with packed weights."
    torch.manual_seed(0)
    def network() -> AlexNet: return AlexNet().eval().to(precision).to(memory_format=LAST)
    model, hidden, packed = network(), network(), network()
    for other in (hidden, packed): other.load_state_dict(model.state_dict())
    for place in (2, 6): hidden.features[place] = _Opaque()
    for name, part in packed.features.named_children():
        if isinstance(part, nn.Conv2d): packed.features[int(name)] = to_mkldnn(part, precision)
    compiled = torch.compile(hidden, options={"freezing": True})
    with tempfile.TemporaryDirectory() as folder:
        ways = dict(as_it_is=model, compiled_and_frozen=compiled, ahead_of_time=_loaded(hidden, folder),
                    convolutions_packed=packed)
        for n, times in ((64, 1), (1, 16)):
            x = torch.randn(n, 3, 227, 227).to(precision).contiguous(memory_format=LAST)
            for way in ways.values(): torch.testing.assert_close(way(x), model(x), rtol=0.05, atol=0.05)
            in_turn(f"{n} answer{'s' * (n > 1)}", precision, n * times,
                    **{name: partial(_again, way, x, times) for name, way in ways.items()})


def _again(way: Callable[[Tensor], Tensor], x: Tensor, times: int) -> None:
    for _ in range(times): way(x)


def main(path: str | None) -> None:
    if not reuse_memory() or not use_native_lrn(): sys.exit("needs Linux and a C++ compiler")
    for precision in (torch.float32, HALF):
        for measure in (conv1, normalisation, frozen): measure(precision)
    if path is None: return
    about = dict(command="python tools/tried.py", date=datetime.date.today().isoformat(), versions=versions(),
                 device=describe_device(torch.device("cpu")), threads=torch.get_num_threads())
    Path(path).write_text(json.dumps(about | dict(found=found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main(*sys.argv[1:2] or (None,))
