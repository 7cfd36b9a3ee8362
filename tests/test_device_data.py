"The batched data path on the compute device gives what Pillow, torchvision and the usual loader give, bit for bit."
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from alexnet_nb.base.errors import InputError
from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.pictures import Images, stack_pixels
from alexnet_nb.base.resize import resize_pixels
from alexnet_nb.data import Augmentation, Recipe, augmentation, colour_statistics, paper_recipe, prepare
from alexnet_nb.data import prepare_batch, usual_recipe
from alexnet_nb.engine.loaders import DeviceLoader, EpochBatches, PreparedImages, make_loader
from common import save_drawings

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]
USUAL = usual_recipe()
PAPER = paper_recipe(227, torch.tensor([0.49, 0.48, 0.45]), torch.tensor([[0.06, 0.055, 0.05], [0.055, 0.06, 0.055], [0.05, 0.055, 0.07]]))


def noise(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    "n pictures whose pixels are drawn evenly from 0 to 255, and as many that are 0 or 255 only: (2 n, height, width, 3)."
    rng = np.random.default_rng([seed, height, width])
    return np.concatenate([rng.integers(0, 256, (n, height, width, 3)), 255 * rng.integers(0, 2, (n, height, width, 3))]).astype(np.uint8)


def channels_first(items: np.ndarray, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(items).permute(0, 3, 1, 2).contiguous().to(device)


def by_pillow(items: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return channels_first(np.stack([Image.fromarray(p).resize(size[::-1], Image.Resampling.BILINEAR) for p in items]))


def by_torchvision(image: Image.Image, recipe: Recipe, chance: Augmentation | None) -> torch.Tensor:
    "A picture as torchvision's functions for Pillow images prepare it."
    size = recipe.size
    image = F.resize(image, [size, size] if recipe.short_side is None else [recipe.short_side])
    down, right = (chance.top, chance.left) if chance else (0.5, 0.5)
    image = F.crop(image, int((image.height - size + 1) * down), int((image.width - size + 1) * right), size, size)
    if chance and chance.flip: image = F.horizontal_flip(image)
    x = F.pil_to_tensor(image).float() / 255
    if chance and recipe.colour is not None: x += (torch.tensor(recipe.colour) @ torch.tensor(chance.colour, dtype=torch.float32))[:, None, None]
    return F.normalize(x, recipe.mean, recipe.std)


def assert_prepared_alike(items: np.ndarray, recipe: Recipe, seed: int | None, device: str = "cpu", part: int = 100) -> None:
    "torchvision, `prepare` and `prepare_batch` agree in every bit."
    for start in range(0, len(items), part):
        some = items[start:start + part]
        chances = None if seed is None else [augmentation(seed, 3, start + i) for i in range(len(some))]
        batch = prepare_batch(channels_first(some, device), recipe, chances).cpu()
        assert batch.dtype == torch.float32 and batch.is_contiguous() and batch.shape == (len(some), 3, recipe.size, recipe.size)
        for i, (item, chance) in enumerate(zip(some, chances or [None] * len(some))):
            image = Image.fromarray(item)
            assert torch.equal(judge := by_torchvision(image, recipe, chance), prepare(image, recipe, chance)), f"prepare, image {start + i}"
            assert torch.equal(judge, batch[i]), f"prepare_batch, image {start + i}: {(judge - batch[i]).abs().max()}"


SIZES = [((32, 32), (227, 227)), ((32, 32), (256, 256)), ((32, 32), (224, 224)), ((7, 13), (31, 29)), ((1, 1), (5, 3)), ((1, 9), (8, 1)),
         ((64, 48), (32, 32)), ((97, 101), (50, 23)), ((300, 200), (227, 227)), ((256, 256), (32, 32)), ((33, 32), (33, 40)), ((40, 40), (40, 40)),
         ((20, 200), (227, 32)), ((227, 227), (228, 226)), ((100, 100), (7, 300))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("old, new", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_resize_is_pillows_on_noise(old, new, device):
    items = noise(4, *old)
    ours = resize_pixels(channels_first(items, device), new)
    assert ours.dtype == torch.uint8 and torch.equal(ours.cpu(), by_pillow(items, new))


def test_resize_is_pillows_on_random_sizes():
    rng = np.random.default_rng(1)
    for _ in range(100):
        old, new = rng.integers(1, 120, 2).tolist(), rng.integers(1, 260, 2).tolist()
        items = noise(1, *old)
        assert torch.equal(resize_pixels(channels_first(items), new), by_pillow(items, new)), (old, new)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [227, 256])
def test_resize_is_pillows_on_many(size, device):
    items = np.concatenate([drawings(1000, seed=1).items, noise(250)])
    for some in np.array_split(items, 15):
        assert torch.equal(resize_pixels(channels_first(some, device), (size, size)).cpu(), by_pillow(some, (size, size)))


@pytest.mark.parametrize("recipe", [USUAL, PAPER], ids=["usual", "paper"])
@pytest.mark.parametrize("seed", [None, 42])
def test_prepared_alike(recipe, seed):
    assert_prepared_alike(drawings(1000 if seed else 100, seed=2).items, recipe, seed)
    assert_prepared_alike(noise(50), recipe, seed)


@pytest.mark.parametrize("size", [(32, 48), (48, 31), (227, 300), (400, 260), (256, 256), (227, 227)], ids=lambda s: f"{s[0]}x{s[1]}")
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
    chances = [Augmentation(flip, top, left, (0.0, 0.0, 0.0)) for flip, top, left in product((False, True), (0.0, 1 - 1e-12), (0.0, 1 - 1e-12))]
    batch = prepare_batch(channels_first(items[:1].repeat(8, 0)), recipe, chances)
    for x, chance in zip(batch, chances):
        top, left = 8 * (chance.top > 0.5), 8 * (chance.left > 0.5)
        crop = items[0][top:top + 24, left:left + 24]
        assert torch.equal(x * 255, channels_first(crop[None, :, ::-1 if chance.flip else 1].copy())[0].float())


@pytest.mark.cifar10
def test_real_pictures_alike(cifar10_dir):
    images = read_cifar10(cifar10_dir, may_download=False)
    images = images.take(np.linspace(0, len(images) - 1, 1000).astype(int))
    items = stack_pixels(images, 1 << 30).permute(0, 2, 3, 1).numpy()
    for some, size in product(np.array_split(items, 10), (227, 256)):
        assert torch.equal(resize_pixels(channels_first(some), (size, size)), by_pillow(some, (size, size)))
    recipe = paper_recipe(227, *colour_statistics(images))
    for r, seed in ((USUAL, None), (USUAL, 42), (recipe, None), (recipe, 42)): assert_prepared_alike(items, r, seed)


PICTURES = drawings(26, seed=3)
SMALL = {"usual": Recipe(48), "paper": Recipe(48, short_side=56, colour=PAPER.colour)}


def both_loaders(recipe, seed, drop_last=False, workers=0, device="cpu", epoch=0, start=0):
    "Everything that the usual loader and ours give, of 22 of 26 pictures in batches of 8."
    given = []
    for make in (lambda b: make_loader(PreparedImages(PICTURES, recipe, seed), b, workers),
                 lambda b: DeviceLoader(stack_pixels(PICTURES, 1 << 20).to(device), PICTURES.labels, recipe, b, seed)):
        batches = EpochBatches(np.arange(2, 24), 8, seed, drop_last)
        batches.epoch, batches.start = epoch, start
        loader = make(batches)
        assert loader.batch_sampler is batches
        given.append((len(loader), [tuple(batch) for batch in loader]))
    return given


def assert_loaders_alike(**options) -> list:
    (n, usual), (m, ours) = both_loaders(**options)
    assert n == m == len(usual) == len(ours) > 0
    for (x, y, i), (x2, y2, i2) in zip(usual, ours):
        device = torch.device(options.get("device", "cpu"))
        assert x2.device.type == y2.device.type == device.type and i2.device.type == "cpu"
        assert torch.equal(x, x2.cpu()) and torch.equal(y, y2.cpu()) and torch.equal(i, i2)
        assert (x.dtype, y.dtype, i.dtype) == (x2.dtype, y2.dtype, i2.dtype)
    return ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SMALL)
def test_loader_is_the_usual_one(name, device):
    for seed, drop_last, epoch, start in product((None, 42), (False, True), (0, 5), (0, 1)):
        ours = assert_loaders_alike(recipe=SMALL[name], seed=seed, drop_last=drop_last, device=device, epoch=epoch, start=start)
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
    loader = DeviceLoader(stack_pixels(PICTURES, 1 << 20), PICTURES.labels, SMALL["usual"], EpochBatches(np.arange(26), 8, 1), 1)
    first = [i.tolist() for _, _, i in loader]
    loader.batch_sampler.epoch, loader.batch_sampler.start = 1, 2
    assert len(loader) == 2 and [i.tolist() for _, _, i in loader] != first[2:]
    loader.batch_sampler.epoch, loader.batch_sampler.start = 0, 0
    assert [i.tolist() for _, _, i in loader] == first


def test_stack_pixels(tmp_path):
    paths = save_drawings(tmp_path / "p", 6, seed=3)
    files = Images(paths, np.arange(6))
    memory = Images(PICTURES.items[:6], np.arange(6))
    for images in (files, memory):
        pixels = stack_pixels(images, 6 * 3072)
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous() and torch.equal(pixels, channels_first(PICTURES.items[:6]))
        assert stack_pixels(images, 6 * 3072 - 1) is None, "too many bytes"


def test_stack_pixels_refuses_sizes_that_differ(tmp_path):
    paths = save_drawings(tmp_path / "p", 6)
    Image.new("RGB", (32, 33)).save(paths[4])
    assert stack_pixels(Images(paths, np.arange(6)), 1 << 30) is None


def test_stack_pixels_names_a_damaged_file(tmp_path):
    paths = save_drawings(tmp_path / "p", 6)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(InputError, match="003.png"): stack_pixels(Images(paths, np.arange(6)), 1 << 30)


def test_data_imports_no_torchvision():
    import subprocess, sys
    code = "import sys, alexnet_nb.data; print([m for m in sys.modules if m.split('.')[0] == 'torchvision'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout.strip() == "[]"
