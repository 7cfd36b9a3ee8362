"A recipe applied by torchvision, to one picture and to a batch on the compute device: the same, bit for bit."
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import stack_pixels
from alexnet_nb.base.resize import _resize_pixels
from alexnet_nb.data import (
    Augmentation,
    Recipe,
    augmentation,
    colour_statistics,
    paper_recipe,
    prepare,
    prepare_batch,
    usual_recipe,
)
from common import by_pillow, channels_first, noise

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
USUAL = usual_recipe()
PAPER = paper_recipe(227, torch.tensor([0.49, 0.48, 0.45]),
                     torch.tensor([[0.06, 0.055, 0.05], [0.055, 0.06, 0.055], [0.05, 0.055, 0.07]]))


def by_torchvision(image: Image.Image, recipe: Recipe, chance: Augmentation | None) -> torch.Tensor:
    "A picture as torchvision's functions for Pillow images prepare it."
    size = recipe.size
    image = F.resize(image, [size, size] if recipe.short_side is None else [recipe.short_side])
    down, right = (chance.top, chance.left) if chance else (0.5, 0.5)
    top, left = int((image.height - size + 1) * down), int((image.width - size + 1) * right)
    image = F.crop(image, top, left, size, size)
    if chance and chance.flip: image = F.horizontal_flip(image)
    x = F.pil_to_tensor(image).float() / 255
    if chance and recipe.colour is not None:
        x += (torch.tensor(recipe.colour) @ torch.tensor(chance.colour, dtype=torch.float32))[:, None, None]
    return F.normalize(x, recipe.mean, recipe.std)


def assert_prepared_alike(items: np.ndarray, recipe: Recipe, seed: int | None, device: str = "cpu",
                          part: int = 100) -> None:
    "torchvision, `prepare` and `prepare_batch` agree in every bit."
    for start in range(0, len(items), part):
        some = items[start:start + part]
        chances = None if seed is None else [augmentation(seed, 3, start + i) for i in range(len(some))]
        batch = prepare_batch(channels_first(some, device), recipe, chances).cpu()
        assert (batch.dtype == torch.float32 and batch.is_contiguous()
                and batch.shape == (len(some), 3, recipe.size, recipe.size))
        for i, (item, chance) in enumerate(zip(some, chances or [None] * len(some), strict=True)):
            image, number = Image.fromarray(item), start + i
            judge = by_torchvision(image, recipe, chance)
            assert torch.equal(judge, prepare(image, recipe, chance)), f"prepare, image {number}"
            apart = (judge - batch[i]).abs().max()
            assert torch.equal(judge, batch[i]), f"prepare_batch, image {number}: {apart}"


@pytest.mark.parametrize("recipe", [USUAL, PAPER], ids=["usual", "paper"])
@pytest.mark.parametrize("seed", [None, 42])
def test_prepared_alike(recipe, seed):
    assert_prepared_alike(drawings(1000 if seed else 100, seed=2).items, recipe, seed)
    assert_prepared_alike(noise(50), recipe, seed)


@pytest.mark.parametrize("size", [(32, 48), (48, 31), (227, 300), (400, 260), (256, 256), (227, 227)],
                         ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("recipe", [USUAL, PAPER], ids=["usual", "paper"])
def test_prepared_alike_whatever_the_size(recipe, size):
    assert_prepared_alike(noise(3, *size), recipe, 7)
    assert_prepared_alike(noise(3, *size), recipe, None)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("recipe", [USUAL, PAPER], ids=["usual", "paper"])
def test_prepared_alike_on_cuda(recipe, device):
    assert_prepared_alike(noise(100), recipe, 42, device)


def test_corners_of_the_crop():
    "The first and the last place, mirrored and not."
    recipe, items = Recipe(24, short_side=32, mean=(0, 0, 0), std=(1, 1, 1)), noise(2)
    chances = [Augmentation(flip, top, left, (0.0, 0.0, 0.0))
               for flip, top, left in product((False, True), (0.0, 1 - 1e-12), (0.0, 1 - 1e-12))]
    batch = prepare_batch(channels_first(items[:1].repeat(8, 0)), recipe, chances)
    for x, chance in zip(batch, chances, strict=True):
        top, left = 8 * (chance.top > 0.5), 8 * (chance.left > 0.5)
        crop = items[:1, top:top + 24, left:left + 24]
        if chance.flip: crop = crop[:, :, ::-1].copy()
        assert torch.equal(x * 255, channels_first(crop)[0].float())


@pytest.mark.cifar10
def test_real_pictures_alike(cifar10_dir):
    images = read_cifar10(cifar10_dir, may_download=False)
    images = images.take(np.linspace(0, len(images) - 1, 1000).astype(int))
    items = stack_pixels(images, 1 << 30).permute(0, 2, 3, 1).numpy()
    for some, size in product(np.array_split(items, 10), (227, 256)):
        assert torch.equal(_resize_pixels(channels_first(some), (size, size)), by_pillow(some, (size, size)))
    recipe = paper_recipe(227, *colour_statistics(images))
    for r, seed in ((USUAL, None), (USUAL, 42), (recipe, None), (recipe, 42)):
        assert_prepared_alike(items, r, seed)


def test_data_imports_no_torchvision():
    code = "import sys, alexnet_nb.data; print([m for m in sys.modules if m.split('.')[0] == 'torchvision'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "HSV", "LAB", "YCbCr"])
def test_a_picture_in_other_colours_is_refused(mode):
    image = Image.new("RGB", (32, 32), "teal")
    image = image.convert("HSV") if mode == "HSV" else Image.new(mode, (32, 32))
    with pytest.raises(InputError, match=f"expected an RGB picture, got {mode}"): prepare(image, USUAL)


def test_an_array_is_no_picture():
    with pytest.raises(InputError, match="got ndarray"): prepare(np.zeros((32, 32, 3), np.uint8), USUAL)


@pytest.mark.parametrize("pixels, chances, said", [
    (torch.rand(2, 3, 32, 32), None, "got torch.float32"),
    (torch.zeros(3, 32, 32, dtype=torch.uint8), None, r"got torch.uint8 \(3, 32, 32\)"),
    (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), None, r"\(2, 32, 32, 3\)"),
    (torch.zeros(6, 3, 32, 32, dtype=torch.uint8), [augmentation(0, 0, i) for i in range(4)],
     "4 chances for 6 pictures")])
def test_a_batch_that_is_none(pixels, chances, said):
    with pytest.raises(ValueError, match=said): prepare_batch(pixels, USUAL, chances)
