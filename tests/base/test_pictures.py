"Pictures in memory as one tensor."
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import Images, open_rgb, stack_pixels
from common import channels_first, save_drawings

PICTURES = drawings(26, seed=3)


def test_stack_pixels(tmp_path):
    paths = save_drawings(tmp_path / "p", 6, seed=3)
    files = Images(paths, np.arange(6))
    memory = Images(PICTURES.items[:6], np.arange(6))
    for images in (files, memory):
        pixels = stack_pixels(images, 6 * 3072)
        assert (pixels.dtype == torch.uint8 and pixels.is_contiguous()
                and torch.equal(pixels, channels_first(PICTURES.items[:6])))
        assert stack_pixels(images, 6 * 3072 - 1) is None, "too many bytes"


def test_stack_pixels_refuses_sizes_that_differ(tmp_path):
    paths = save_drawings(tmp_path / "p", 6)
    Image.new("RGB", (32, 33)).save(paths[4])
    assert stack_pixels(Images(paths, np.arange(6)), 1 << 30) is None


def test_stack_pixels_names_a_damaged_file(tmp_path):
    paths = save_drawings(tmp_path / "p", 6)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(InputError, match="003.png"): stack_pixels(Images(paths, np.arange(6)), 1 << 30)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_that_was_turned_upright_lies_on_no_side(tmp_path, suffix):
    "Whoever turns it as its EXIF says, as a program may that reads pictures otherwise too, turns it once."
    (exif := Image.Exif())[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / f"a.{suffix}", exif=exif)
    upright = open_rgb(tmp_path / f"a.{suffix}")
    assert upright.size == (20, 40) == ImageOps.exif_transpose(upright).size


def test_no_pictures_are_no_pixels():
    with pytest.raises(InputError, match="no pictures"): stack_pixels(drawings(3, 0).take([]), 2**20)
