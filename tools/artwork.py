"Draw the favicon, the social card and the sample pictures: python tools/artwork.py"
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from alexnet_nb.base.drawings import _draw_picture
from alexnet_nb.base.pictures import CLASSES

ROOT = Path(__file__).resolve().parent.parent
SIZES = [(227, 3), (55, 96), (27, 256), (13, 384), (13, 384), (13, 256), (6, 256)]


def card() -> Figure:
    "The network's layers as boxes: height for pixels, width for feature maps."
    fig = Figure(figsize=(12, 6.3), facecolor="#16202e")
    ax = fig.add_axes([0, 0, 1, 1])
    x = 0.06
    for side, maps in SIZES:
        height, width = 0.12 + 0.42 * (side / 227) ** 0.5, 0.012 + 0.0021 * maps**0.6
        ax.add_patch(Rectangle((x, 0.42 - height / 2), width, height, fc="#4fa3d1", ec="white", lw=1.5))
        x += width + 0.022
    for height in (0.5, 0.5, 0.12):  # 4096, 4096 and 10 units
        ax.add_patch(Rectangle((x, 0.42 - height / 2), 0.012, height, fc="#f2a541", ec="white", lw=1.5))
        x += 0.034
    ax.text(0.06, 0.83, "alexnet_nb", color="white", fontsize=52, weight="bold", va="center")
    line = "AlexNet, 2012, rebuilt for CIFAR-10 in notebooks"
    ax.text(0.06, 0.08, line, color="#c8d4e0", fontsize=24, va="center")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return fig


def favicon() -> Image.Image:
    "Three boxes that shrink."
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    for x, height, colour in ((4, 56, "#4fa3d1"), (26, 36, "#2f78a8"), (48, 18, "#f2a541")):
        image.paste(Image.new("RGBA", (14, height), colour), (x, 32 - height // 2))
    return image


if __name__ == "__main__":
    card().savefig(ROOT / "nbs/images/card.png", dpi=100)
    favicon().save(ROOT / "nbs/images/favicon.png")
    (ROOT / "samples").mkdir(exist_ok=True)
    for label, name in enumerate(CLASSES):
        picture = _draw_picture(label, np.random.default_rng([2012, label]))
        Image.fromarray(picture).save(ROOT / "samples" / f"{name}.png")
