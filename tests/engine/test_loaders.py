"The loader that keeps pictures on the compute device gives what the usual one gives, bit for bit."
from itertools import product

import numpy as np
import pytest
import torch

from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.pictures import stack_pixels
from alexnet_nb.data import Recipe, paper_recipe
from alexnet_nb.engine.loaders import DeviceLoader, EpochBatches, PreparedImages, make_loader

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
COLOUR = paper_recipe(227, torch.tensor([0.49, 0.48, 0.45]),
                      torch.tensor([[0.06, 0.055, 0.05], [0.055, 0.06, 0.055], [0.05, 0.055, 0.07]])).colour

PICTURES = drawings(26, seed=3)
SMALL = {"usual": Recipe(48), "paper": Recipe(48, short_side=56, colour=COLOUR)}


def both_loaders(recipe, seed, drop_last=False, workers=0, device="cpu", epoch=0, start=0):
    "Everything that the usual loader and ours give, of 22 of 26 pictures in batches of 8."
    given = []
    for make in (lambda b: make_loader(PreparedImages(PICTURES, recipe, seed), b, workers),
                 lambda b: DeviceLoader(stack_pixels(PICTURES, 1 << 20).to(device), PICTURES.labels, recipe,
                                        b, seed)):
        batches = EpochBatches(np.arange(2, 24), 8, seed, drop_last)
        batches.epoch, batches.start = epoch, start
        loader = make(batches)
        assert loader.batch_sampler is batches
        given.append((len(loader), [tuple(batch) for batch in loader]))
    return given


def assert_loaders_alike(**options) -> list:
    (n, usual), (m, ours) = both_loaders(**options)
    assert n == m == len(usual) == len(ours) > 0
    for (x, y, i), (x2, y2, i2) in zip(usual, ours, strict=True):
        device = torch.device(options.get("device", "cpu"))
        assert x2.device.type == y2.device.type == device.type and i2.device.type == "cpu"
        assert torch.equal(x, x2.cpu()) and torch.equal(y, y2.cpu()) and torch.equal(i, i2)
        assert (x.dtype, y.dtype, i.dtype) == (x2.dtype, y2.dtype, i2.dtype)
    return ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SMALL)
def test_loader_is_the_usual_one(name, device):
    for seed, drop_last, epoch, start in product((None, 42), (False, True), (0, 5), (0, 1)):
        ours = assert_loaders_alike(recipe=SMALL[name], seed=seed, drop_last=drop_last, device=device,
                                    epoch=epoch, start=start)
        assert [len(y) for _, y, _ in ours] == [8, 8, 6][start:2 if drop_last else 3]


@pytest.mark.parametrize("name", SMALL)
def test_loader_is_the_usual_one_with_two_workers(name):
    assert_loaders_alike(recipe=SMALL[name], seed=42, workers=2, epoch=1, start=1)


def test_loader_leaves_the_global_streams_alone():
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    both_loaders(SMALL["paper"], 42)
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == numpys).all()


def test_loader_goes_on_in_a_later_epoch():
    "The sampler's epoch and start are read anew each time the loader is gone through."
    loader = DeviceLoader(stack_pixels(PICTURES, 1 << 20), PICTURES.labels, SMALL["usual"],
                          EpochBatches(np.arange(26), 8, 1), 1)
    first = [i.tolist() for _, _, i in loader]
    loader.batch_sampler.epoch, loader.batch_sampler.start = 1, 2
    assert len(loader) == 2 and [i.tolist() for _, _, i in loader] != first[2:]
    loader.batch_sampler.epoch, loader.batch_sampler.start = 0, 0
    assert [i.tolist() for _, _, i in loader] == first
