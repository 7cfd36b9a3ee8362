"""Measures what the features of the network in the package are worth for classes that it was never taught,
and writes nbs/results/transfer.json.

    python tools/transfer.py FOLDER

FOLDER holds the files of two Debian packages, each unpacked into a folder of its name (`dpkg -x`):
`tuxpaint-stamps-default`, and `gcompris-qt-data`, whose .rcc files are unpacked once more, to
`gcompris-qt-data/ACTIVITY/...`. No picture is kept; the JSON has numbers only.
"""
import datetime
import gzip
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexnet_nb.base.device import describe_device
from alexnet_nb.base.pictures import Images, image_files
from alexnet_nb.base.results import versions
from alexnet_nb.data import Batches, prepare
from alexnet_nb.inference import Classifier, load_pretrained
from alexnet_nb.model import AlexNet
from alexnet_nb.train import evaluate, train
from alexnet_nb.transfer import _last_layer

OUT = Path(__file__).resolve().parent.parent / "nbs" / "results" / "transfer.json"
STAMPS = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
SORTED = "gcompris-qt-data/categorization/gcompris/src/activities/categorization/resource/images"
SEEN = "gcompris-qt-data/explore_monuments/gcompris/src/activities/explore_monuments/resource"
SETS = {  # of each: the folders of its classes
    "photographs": {
        "building": [f"{SORTED}/monuments", *(f"{SEEN}/{land}" for land in
                     ("egypt", "france", "germany", "india", "usa", "wonders"))],
        "fish": [f"{SORTED}/fishes", f"{STAMPS}/animals/fish"],
        "fruit": [f"{STAMPS}/food/fruit", f"{STAMPS}/food/vegetables"],
        "tool": [f"{SORTED}/tools", f"{STAMPS}/household/tools"]},
    "cut-outs": {"flower": [f"{STAMPS}/plants/flowers"], "fruit": [f"{STAMPS}/food/fruit"],
                 "vegetable": [f"{STAMPS}/food/vegetables"]},
}
SEEDS, SIZES = (0, 1, 2), (10, 30, 100)
EPOCHS = {10: 60, 30: 30}  # of the network from scratch: as many steps at either size, and no fewer


def package_version(root: Path, name: str) -> str:
    "As its changelog's first line has it."
    with gzip.open(root / name / "usr/share/doc" / name / "changelog.Debian.gz", "rt") as changelog:
        return re.search(r"\((.+?)\)", changelog.readline())[1]


def read_set(root: Path, folders: dict[str, list[str]]) -> Images:
    "The pictures of a set as 32 x 32 and as files; those that are there twice are taken once."
    files, labels, small = [], [], []
    for k, (_, places) in enumerate(folders.items()):
        for path in (path for place in places for path in image_files(root / place)):
            tiny = np.asarray(Images([path], np.zeros(1))[0].convert("L").resize((16, 16)), np.float32)
            if any(np.abs(tiny - other).mean() < 8 for other in small): continue
            small.append(tiny)
            files.append(path)
            labels.append(k)
    return Images(files, np.array(labels), tuple(folders))


@torch.inference_mode()
def features(classifier: Classifier, images: Images) -> dict[str, Tensor]:
    "What each depth sees of every picture and, below them, of its mirror image: (2 N, features)."
    parts: dict[str, list[Tensor]] = {"pool5": [], "fc6": [], "fc7": [], "fc8": []}
    for mirrored in (False, True):
        for k in range(0, len(images), 32):
            batch = [prepare(images[i], classifier.recipe) for i in range(k, min(k + 32, len(images)))]
            x = torch.stack(batch)
            x = classifier.model.features(x.flip(-1) if mirrored else x).flatten(1)
            parts["pool5"].append(x)
            parts["fc6"].append(x := classifier.model.classifier[:3](x))
            parts["fc7"].append(x := classifier.model.classifier[3:-1](x))
            parts["fc8"].append(classifier.model.classifier[-1](x))
    return {name: torch.cat(part).clone() for name, part in parts.items()}


def pixels(images: Images) -> Tensor:
    "The pictures at 32 x 32, and their mirror images: (2 N, 3072), less 0.5."
    small = [np.asarray(images[i].resize((32, 32)), np.float32) / 255 - 0.5 for i in range(len(images))]
    x = torch.from_numpy(np.stack(small))
    return torch.cat([x, x.flip(2)]).flatten(1)


def draw(labels: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Positions of the `most` of each class to learn from, classes in turn, and of all others."
    order = np.random.default_rng(seed).permutation(len(labels))
    mine = np.stack([order[labels[order] == c][:most] for c in np.unique(labels)], axis=1).ravel()
    return mine, np.setdiff1d(order, mine)


def by_class(says: np.ndarray, labels: np.ndarray) -> float:
    "The share named rightly, as a mean over the classes: each counts the same."
    return float(np.mean([(says[labels == c] == c).mean() for c in np.unique(labels)]))


def linear(x: Tensor, labels: np.ndarray, mine: np.ndarray, unseen: np.ndarray, seed: int) -> float:
    "Accuracy of a linear layer on features; it learns from the mirror images as well."
    rows = np.concatenate([mine, mine + len(labels)])
    last = _last_layer(x[rows], torch.from_numpy(np.tile(labels[mine], 2)), len(np.unique(labels)), seed=seed)
    return by_class(last(x[unseen]).argmax(1).numpy(), labels[unseen])


def anew(images: Images, recipe, mine: np.ndarray, unseen: np.ndarray, epochs: int, seed: int) -> float:
    "Accuracy of AlexNet, a quarter as wide, that has seen nothing but these pictures."
    torch.manual_seed(seed)
    model = AlexNet(num_classes=len(images.classes), width=0.25, dropout=0.2)
    train(model, Batches(images.take(mine), recipe, 16, seed=seed), epochs=epochs, warmup_steps=10)
    result = evaluate(model, Batches(images.take(unseen), recipe, 32, seed=None))
    return by_class(result.probabilities.argmax(1).numpy(), images.labels[unseen])


def in_memory(images: Images) -> Images:
    "The pictures at the size that the networks take, so that files are opened once."
    pixels = [np.asarray(images[i].resize((227, 227), Image.Resampling.BILINEAR)) for i in range(len(images))]
    return replace(images, items=np.stack(pixels))


def measure(root: Path, name: str, trained: Classifier) -> dict:
    "One set: how many pictures, and the accuracy of every way at every size and seed."
    images = in_memory(read_set(root, SETS[name]))
    labels, counts = images.labels, np.bincount(images.labels).tolist()
    print(name, dict(zip(images.classes, counts, strict=True)), flush=True)
    told, flat, found = features(trained, images), pixels(images), {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        untold = features(replace(trained, model=AlexNet().eval()), images)
        for size in (size for size in SIZES if size + 5 <= min(counts)):
            largest = max(s for s in SIZES if s + 5 <= min(counts))
            mine, unseen = draw(labels, largest, seed)
            mine = mine[:size * len(counts)]  # the same pictures judge every size
            ways = {f"trained {depth}": told[depth] for depth in told}
            ways |= {"random fc6": untold["fc6"], "pixels": flat}
            for way, x in ways.items():
                score = linear(x, labels, mine, unseen, seed)
                found.setdefault(way, {}).setdefault(str(size), []).append(round(score, 3))
            score = anew(images, trained.recipe, mine, unseen, EPOCHS[size], seed)
            found.setdefault("from scratch", {}).setdefault(str(size), []).append(round(score, 3))
            last = {way: of[str(size)][-1] for way, of in found.items()}
            print(name, seed, size, last, flush=True)
    return dict(classes=dict(zip(images.classes, counts, strict=True)), unseen=len(unseen), accuracy=found)


def main(root: Path) -> None:
    trained = load_pretrained("cifar10")
    sets = {name: measure(root, name, trained) for name in SETS}
    packages = [f"{name} {package_version(root, name)}"
                for name in ("gcompris-qt-data", "tuxpaint-stamps-default")]
    about = dict(date=datetime.date.today().isoformat(), device=describe_device(torch.device("cpu")),
                 versions=versions(), packages=packages, seeds=list(SEEDS),
                 first_to=trained.recipe.first_to)  # to this side first, as the card of the network has it
    OUT.write_text(json.dumps(about | dict(sets=sets), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir(): sys.exit(__doc__)
    main(Path(sys.argv[1]))
