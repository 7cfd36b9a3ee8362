"Resizing on the compute device gives what Pillow gives, bit for bit."
import numpy as np
import pytest
import torch

from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.resize import _resize_pixels
from common import by_pillow, channels_first, noise

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]

SIZES = [((32, 32), (227, 227)), ((32, 32), (256, 256)), ((32, 32), (224, 224)), ((7, 13), (31, 29)),
         ((1, 1), (5, 3)), ((1, 9), (8, 1)),
         ((64, 48), (32, 32)), ((97, 101), (50, 23)), ((300, 200), (227, 227)), ((256, 256), (32, 32)),
         ((33, 32), (33, 40)), ((40, 40), (40, 40)),
         ((20, 200), (227, 32)), ((227, 227), (228, 226)), ((100, 100), (7, 300))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("old, new", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_resize_is_pillows_on_noise(old, new, device):
    items = noise(4, *old)
    ours = _resize_pixels(channels_first(items, device), new)
    assert ours.dtype == torch.uint8 and torch.equal(ours.cpu(), by_pillow(items, new))


def test_resize_is_pillows_on_random_sizes():
    rng = np.random.default_rng(1)
    for _ in range(100):
        old, new = rng.integers(1, 120, 2).tolist(), rng.integers(1, 260, 2).tolist()
        items = noise(1, *old)
        assert torch.equal(_resize_pixels(channels_first(items), new), by_pillow(items, new)), (old, new)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [227, 256])
def test_resize_is_pillows_on_many(size, device):
    items = np.concatenate([drawings(1000, seed=1).items, noise(250)])
    for some in np.array_split(items, 15):
        assert torch.equal(_resize_pixels(channels_first(some, device), (size, size)).cpu(),
                           by_pillow(some, (size, size)))
