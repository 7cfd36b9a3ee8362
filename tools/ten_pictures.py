"""Write nbs/site/ten.png, the ten photographs of the site's explorer of crops and colours, and print the
colours that nbs/site/formulas.js holds: python tools/ten_pictures.py

Needs CIFAR-10 in alexnet_data_in. The choice and the sample are those of 01_data.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.data import Images, colour_statistics, principal_colours

SITE = Path(__file__).resolve().parent.parent / "nbs/site"


def ten_pictures(images) -> np.ndarray:
    "The first picture of each class, side by side, (32, 320, 3)."
    first = [np.flatnonzero(images.labels == k)[0] for k in range(10)]
    return np.concatenate([np.asarray(images[i]) for i in first], 1)


def colours(images) -> torch.Tensor:
    "The principal colours of 2,000 pictures as columns (3, 3): brightening, each as long as its deviation."
    sample = images.take(np.linspace(0, len(images) - 1, min(len(images), 2000)).astype(int))
    sample = Images(np.stack([np.asarray(sample[i]) for i in range(len(sample))]), sample.labels)
    values, vectors = principal_colours(colour_statistics(sample)[1])
    return vectors * vectors.sum(0).sign() * values.sqrt()


if __name__ == "__main__":
    images = read_cifar10(Path(sys.argv[1] if sys.argv[1:] else "alexnet_data_in"), True, may_download=False)
    SITE.mkdir(exist_ok=True)
    Image.fromarray(ten_pictures(images)).save(SITE / "ten.png", optimize=True)
    for column in colours(images).T: print("[" + ", ".join(f"{v:.5f}" for v in column) + "]")
