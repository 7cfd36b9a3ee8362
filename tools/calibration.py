"""How far the probabilities of the network in the package may be believed.

    python tools/calibration.py DATA_DIR STRANGERS [OUTPUTS.npz]

DATA_DIR holds CIFAR-10 as train/ and test/ folders or as batches. Its validation pictures (5,000, split by
the seed of the training) choose the threshold below which an answer is unsure; its test pictures judge it,
and the temperature that is on the network's card. STRANGERS is a folder with pictures of other things: in
STRANGERS/labels.csv are the columns path, class, kind and package, and the photographs of class `none` are
taken. Each is shrunk to 32 by 32 pixels first, as CIFAR-10's were. The network computes in 16 bits where the
processor has them, as `alexnet_predict` does. OUTPUTS.npz keeps the logits; where it is there already, only
the numbers are made anew. Writes nbs/results/calibration.json.
"""
import csv
import datetime
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from tqdm import tqdm

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.device import describe_device
from alexnet_nb.base.pictures import Images
from alexnet_nb.base.results import read_results, versions
from alexnet_nb.data import prepare_batch, split, stack_pixels
from alexnet_nb.engine.allocator import reuse_memory
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.inference import UNSURE_BELOW, Classifier, calibration_error, reliability

OUT = Path(__file__).resolve().parent.parent / "nbs/results/calibration.json"
VALIDATION, SEED = 5000, 42           # as in nbs/results/cifar10.json
THRESHOLDS = [t / 100 for t in range(10, 100)]
WANTED = 0.9                          # of the answers at or above the threshold are to be right


def small(path: Path) -> np.ndarray:
    "A picture on white, upright, squashed to 32 by 32."
    with Image.open(path) as opened: image = ImageOps.exif_transpose(opened).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))


def strangers(folder: Path) -> tuple[Images, Counter]:
    "Photographs of none of the classes, labelled 0, and how many come from which package."
    with open(folder / "labels.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["class"], row["kind"]) == ("none", "photo")]
    pixels = np.stack([small(folder / row["path"]) for row in rows])
    return Images(pixels, np.zeros(len(rows), np.int64)), Counter(row["package"] for row in rows)


def logits_of(classifier: Classifier, images: Images) -> torch.Tensor:
    "(N, C), not divided by the temperature."
    dtype, parts = next(classifier.model.parameters()).dtype, []
    for part in tqdm(stack_pixels(images, 2**31).split(64), mininterval=10):
        parts.append(classifier.model(prepare_batch(part, classifier.recipe).to(dtype)).float())
    return torch.cat(parts)


def curve(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> dict:
    "Accuracy, loss, mean confidence and the ten bins at a temperature."
    p = (logits / temperature).softmax(1)
    count, confidence, accuracy = bins = reliability(p, labels)
    loss = F.cross_entropy(logits / temperature, labels).item()
    return dict(temperature=temperature, accuracy=(p.argmax(1) == labels).double().mean().item(),
                confidence=p.amax(1).double().mean().item(), loss=loss,
                calibration_error=calibration_error(*bins),
                count=count.tolist(), bin_confidence=confidence.tolist(), bin_accuracy=accuracy.tolist())


def kept(p: torch.Tensor) -> list[float]:
    "The share of pictures whose confidence is at least each of the thresholds."
    return [round((p.amax(1) >= t).double().mean().item(), 4) for t in THRESHOLDS]


def chosen(p: torch.Tensor, right: torch.Tensor) -> float:
    "The lowest threshold, in steps of five points, above which WANTED of the answers are right."
    return next(t for t in THRESHOLDS[::5] if right[p.amax(1) >= t].double().mean() >= WANTED)


def main(data_dir: str, others: str, outputs: str = "") -> None:
    "Measure and write."
    reuse_memory()
    classifier = load_classifier("cifar10", torch.device("cpu"), precision="auto")
    pictures, test = (read_cifar10(data_dir, train, may_download=False) for train in (True, False))
    held_out = pictures.take(split(pictures.labels, VALIDATION, SEED)[1].tolist())
    other, packages = strangers(Path(others))
    sets = dict(validation=held_out, test=test, strangers=other)
    if outputs and Path(outputs).is_file():
        with np.load(outputs) as stored: logits = {name: torch.from_numpy(stored[name]) for name in sets}
    else:
        logits = {name: logits_of(classifier, images) for name, images in sets.items()}
        if outputs: np.savez(outputs, **{name: z.numpy() for name, z in logits.items()})
    labels = {name: torch.from_numpy(images.labels) for name, images in sets.items()}
    p = {name: (z / classifier.temperature).softmax(1) for name, z in logits.items()}
    right = {name: p[name].argmax(1) == labels[name] for name in ("validation", "test")}
    threshold, C = chosen(p["validation"], right["validation"]), len(classifier.classes)
    if threshold != UNSURE_BELOW: print(f"UNSURE_BELOW is {UNSURE_BELOW}, but should be {threshold}")
    says = {name: p[name].argmax(1) for name in p}
    above = {name: right[name][p[name].amax(1) >= threshold].double().mean().item() for name in right}
    unmarked = {f"{name}, {word}": kept(p[name][of]) for name in right
                for word, of in (("right", right[name]), ("wrong", ~right[name]))}
    named = {name: int((says["strangers"] == i).sum()) for i, name in enumerate(classifier.classes)}
    confusion = torch.bincount(labels["test"] * C + says["test"], minlength=C * C).reshape(C, C)
    result = dict(
        images=len(test), validation_images=len(held_out), data=read_results("compress")["data"],
        before=curve(logits["test"], labels["test"], 1.0),
        after=curve(logits["test"], labels["test"], classifier.temperature), confusion=confusion.tolist(),
        wanted=WANTED, threshold=threshold, right_above=above, thresholds=THRESHOLDS,
        kept=unmarked | {"strangers": kept(p["strangers"])},
        strangers=dict(images=len(other), packages=len(packages), named=named,
                       confidence=p["strangers"].amax(1).double().mean().item()),
        precision=str(next(classifier.model.parameters()).dtype).removeprefix("torch."),
        device=describe_device(classifier.device), versions=versions(),
        date=datetime.date.today().isoformat())
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("before", "after", "threshold", "strangers")}, indent=1))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
