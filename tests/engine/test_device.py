"""What must hold on every device: on a CPU wherever the tests run, and on a GPU where there is one."""
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alexnet_nb import train
from alexnet_nb.base.device import PRECISIONS
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import CLASSES
from alexnet_nb.engine import speed
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.engine.compress import compress
from alexnet_nb.engine.config import make_config, merge
from alexnet_nb.engine.setup import fit
from alexnet_nb.inference import load_pretrained, probabilities
from alexnet_nb.lrn import LocalResponseNorm
from alexnet_nb.model import AlexNet
from common import class_folders, lines, tiny

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
PAIRS = [("cpu", "fp32"), ("cpu", "bf16"),
         *(pytest.param("cuda", p, marks=needs_cuda) for p in ("fp32", "bf16", "fp16"))]
FEW = {"model": {"width": 1 / 24, "dropout": 0.0}, "training": {"num_epochs": 2, "batch_size": 8, "seed": 7},
       "data": {"dataset": "drawings", "train_images": 48, "val_images": 10, "test_images": 20,
                "loader": "device"}}


def run_config(tmp_path, device: str) -> dict:
    "A tiny run on the device that writes below tmp_path."
    paths = {"output_dir": str(tmp_path), "checkpoint_dir": str(tmp_path / "models"),
             "log_dir": str(tmp_path / "tblogs")}
    return merge(FEW, {"paths": paths, "device": {"use_cuda": device == "cuda"}})


@pytest.mark.parametrize("device, precision", PAIRS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(3, 96, 27, 27), (2, 7, 5, 3)])
def test_lrn_and_its_gradient(device, precision, layout, shape):
    "Against PyTorch's layer in float64; 16 bits to a few units of their last place."
    generator = torch.Generator().manual_seed(0)
    x = (30 * torch.randn(shape, generator=generator)).to(PRECISIONS[precision]).to(device)
    x = x.contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn(shape, generator=generator).to(x)
    exact = x.detach().double().cpu().requires_grad_()
    want = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)(exact)
    want.backward(dy.double().cpu())
    got = LocalResponseNorm()(x)
    got.backward(dy)
    close = dict(rtol=1e-5, atol=1e-5) if x.dtype == torch.float32 else dict(rtol=0.02, atol=0.02)
    torch.testing.assert_close(got.double().cpu(), want, **close)
    torch.testing.assert_close(x.grad.double().cpu(), exact.grad, **close)


@pytest.mark.parametrize("device, precision", PAIRS)
def test_a_run_learns_and_stays_on_the_device(device, precision, tmp_path, no_panels):
    "With the pictures on the device; the loss falls below that of guessing, and fp16 scales it."
    training = {"num_epochs": 12, "warmup_steps": 4, "learning_rate": 0.02}
    more = {"training": training, "device": {"precision": precision}}
    cfg = make_config(merge(run_config(tmp_path, device), more))
    result = fit(cfg, show_bar=False)
    run = result.run
    assert run.device.type == device and next(run.model.parameters()).device.type == device
    assert run.train.pixels.device.type == device and run.choices["precision"] == precision
    assert run.scaler.is_enabled() == (precision == "fp16")
    losses = [row["loss"] for row in lines(tmp_path)]
    assert all(map(math.isfinite, losses)) and sum(losses[-6:]) / 6 < math.log(10) - 0.05


@pytest.mark.parametrize("device", DEVICES)
def test_resume_goes_on(device, tmp_path, no_panels):
    "Bit-equal on a CPU; to a part in ten thousand on a GPU, which adds in no fixed order."
    changes = dict(training__warmup_steps=3, device__use_cuda=device == "cuda")
    assert train.main(tiny(tmp_path / "whole", **changes)) == 0
    cfg = make_config(merge(run_config(tmp_path / "cut", device), {"model": {"dropout": 0.5},
                                                                   "training": {"warmup_steps": 3}}))
    assert fit(cfg, max_steps=4, show_bar=False).exit_code == 0
    last = tmp_path / "cut" / "models" / "alexnet_last.pkl"
    assert train.main([*tiny(tmp_path / "cut", **changes), "--resume", str(last)]) == 0
    whole, cut = ([row["loss"] for row in lines(tmp_path / name)] for name in ("whole", "cut"))
    assert len(whole) == len(cut) == 12
    assert cut == (whole if device == "cpu" else pytest.approx(whole, rel=1e-4))


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_step_on_cuda(precision, tmp_path, no_panels):
    "The loss of the first steps is that of the plain run."
    def losses(name: str, compiled: bool) -> list[float]:
        cfg = merge(run_config(tmp_path / name, "cuda"), {"device": {"precision": precision,
                                                                     "compile": compiled}})
        fit(make_config(cfg), max_steps=4, show_bar=False)
        return [row["loss"] for row in lines(tmp_path / name)]
    assert losses("a", True) == pytest.approx(losses("b", False), rel=1e-3 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_needs_no_more_memory_than_the_usual_one(device):
    x, y = torch.randn(8, 3, 227, 227, device=device), torch.arange(8, device=device)
    peaks = []
    for make in (speed.usual_alexnet, AlexNet):
        model = make(width=0.1, dropout=0.0).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        def work(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        work()
        peaks.append(speed.peak_bytes(work, torch.device(device)))
    assert 0 < peaks[1] <= peaks[0]


@pytest.mark.parametrize("device", DEVICES)
def test_the_network_in_the_package_gives_the_cpus_answers(device):
    x = torch.randn(4, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    want = probabilities(load_pretrained("cifar10", torch.device("cpu")), x)
    got = probabilities(load_pretrained("cifar10", torch.device(device)), x.to(device))
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_made_small_on_the_device(device, final, tmp_path):
    "What is stored lies on the CPU again."
    from alexnet_nb.data import read_folder
    images = read_folder(class_folders(tmp_path, train=3, test=1) / "train", CLASSES)
    classifier = load_classifier(final, torch.device(device))
    tensors, card = compress(classifier, images, images, rank=4, epochs=1)
    assert {t.device.type for t in tensors.values()} == {"cpu"} and card["temperature"] > 0


def test_a_precision_that_there_is_not():
    with pytest.raises(InputError, match="precision is 'float32'; it must be auto, fp32, bf16, fp16"):
        load_classifier("cifar10", torch.device("cpu"), precision="float32")
