"""What fc6 and fc7 hold, and what rank and digits cost: python tools/compress_table.py CKPT DATA_DIR [QUICK]

Adds to nbs/results/compress.json: the singular values before and after training, the accuracy by rank with
and without teaching, and by bits of the convolutions. CKPT is of alexnet_train on CIFAR-10, DATA_DIR holds it
as train/ and test/ folders or as batches; all accuracies are of its validation pictures. QUICK, a checkpoint
of `alexnet_train --config quick`, is cut as well. The convolutions compute in bfloat16.
"""
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alexnet_nb.base.results import versions
from alexnet_nb.data import drawings, prepare_batch, read_cifar10, split, stack_pixels
from alexnet_nb.engine.checkpoint import architecture, load_classifier, read_checkpoint
from alexnet_nb.engine.compress import _linear_layers, logits_of, narrow_head, teach
from alexnet_nb.model import AlexNet

OUT = Path(__file__).resolve().parent.parent / "nbs" / "results" / "compress.json"
RANKS, BITS, EPOCHS = (4, 8, 16, 32, 64), (8, 6, 5, 4, 3), 6
TAUGHT, HELD, FEW = 4000, 5000, 1000  # pictures: to teach with, to judge ranks, to judge bits


def rounded(weight: Tensor, bits: int) -> Tensor:
    "Each kernel in whole multiples of its own scale, as `to_bytes` has it for eight bits."
    most = 2 ** (bits - 1) - 1
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, *[1] * (weight.dim() - 1)) / most
    return (weight / scale).round() * scale


@torch.no_grad()
def features(classifier, images, bits: int | None = None) -> Tensor:
    "pool5 of pictures, float16 (N, 9216), with the convolutions' weights rounded to so many bits."
    convolutions = copy.deepcopy(classifier.model.features)
    for weight in convolutions.parameters() if bits else ():
        if weight.dim() > 1: weight.data = rounded(weight.data, bits)
    convolutions.to(memory_format=torch.channels_last)
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for part in stack_pixels(images, 2**31).split(125):
            x = prepare_batch(part, classifier.recipe).contiguous(memory_format=torch.channels_last)
            found.append(convolutions(x).contiguous().flatten(1).half())
    return torch.cat(found)


@torch.no_grad()
def accuracy(head: nn.Module, seen: Tensor, labels: np.ndarray) -> float:
    return round((logits_of(head, seen).argmax(1).numpy() == labels).mean().item(), 4)


def exact_values(weight: Tensor) -> list[float]:
    "All singular values, from the eigenvalues of the smaller product; every sixteenth after the first 32."
    values = torch.linalg.eigvalsh(weight @ weight.T).clamp(min=0).sqrt().flip(0)
    return [round(v, 4) for v in [*values[:32].tolist(), *values[32::16].tolist()]]


def share_left(now: Tensor, first: Tensor) -> float:
    "By which number the first weights are best multiplied to give the weights of now."
    return float((now * first).sum(dtype=torch.float64) / (first * first).sum(dtype=torch.float64))


def spectra(path: str) -> dict:
    "Singular values of the first weights, the trained ones, and what training added; and what is left."
    checkpoint = read_checkpoint(path, mapped=True)
    torch.manual_seed(checkpoint["seed"])
    first, now = AlexNet(**architecture(checkpoint)), load_classifier(path, torch.device("cpu")).model
    found: dict = dict(first={}, trained={}, added={}, left={}, numbers=[*range(1, 33), *range(33, 4097, 16)])
    old_layers, new_layers = (_linear_layers(model.classifier)[:2] for model in (first, now))
    for name, before, after in zip(("fc6", "fc7"), old_layers, new_layers, strict=True):
        old, new = before.weight.detach(), after.weight.detach()
        found["left"][name] = round(share_left(new, old), 5)
        found["first"][name], found["trained"][name] = exact_values(old), exact_values(new)
        found["added"][name] = exact_values(new - found["left"][name] * old)
        print(name, found["left"][name], found["trained"][name][:12], file=sys.stderr, flush=True)
    for number in (0, 4, 8, 10, 12):
        pair = (model.features[number].weight.detach() for model in (now, first))
        found["left"][f"features.{number}"] = round(share_left(*pair), 5)
    return found


def by_rank(classifier, taught: Tensor, seen: Tensor, labels: np.ndarray) -> list[dict]:
    "Accuracy of fc6 and fc7 cut to each rank, and taught."
    full, rows = classifier.model.classifier, []
    teacher = logits_of(full, taught)
    for rank in RANKS:
        head = narrow_head(full, rank)
        numbers = sum(weight.numel() for weight in head.parameters())
        row = dict(rank=rank, numbers=numbers, cut=accuracy(head, seen, labels))
        teach(head, taught, teacher, EPOCHS)
        rows.append(row | dict(taught=accuracy(head, seen, labels)))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def quick(path: str) -> dict:
    "How a network of few steps stands the cut, on drawings that it has not seen."
    checkpoint, classifier = read_checkpoint(path), load_classifier(path, torch.device("cpu"))
    images, full = drawings(500, 2 * checkpoint["seed"] + 1), classifier.model.classifier
    seen = features(classifier, images)
    ranks = {str(rank): accuracy(narrow_head(full, rank), seen, images.labels) for rank in (16, 64, 256)}
    torch.manual_seed(checkpoint["seed"])
    first = _linear_layers(AlexNet(**architecture(checkpoint)).classifier)[0].weight.detach()
    return dict(steps=checkpoint["total_steps"], images=500, full=accuracy(full, seen, images.labels),
                cut=ranks, left=round(share_left(_linear_layers(full)[0].weight.detach(), first), 5))


def save(**parts) -> None:
    "Add to what is stored."
    found = json.loads(OUT.read_text(encoding="utf-8")) | parts
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(path: str, data_dir: str, quick_path: str | None = None) -> None:
    save(spectra=spectra(path), table_versions=versions())
    if quick_path: save(quick=quick(quick_path))
    classifier, seed = load_classifier(path, torch.device("cpu")), read_checkpoint(path, mapped=True)["seed"]
    images = read_cifar10(data_dir, True, may_download=False)
    train_at, held_at = split(images.labels, HELD, seed)
    chance = np.random.default_rng(0)
    taught_at, few_at = (images.take(chance.permutation(at)[:n].tolist()) for at, n in
                         ((train_at, TAUGHT), (held_at, FEW)))
    held = images.take(held_at.tolist())
    full = classifier.model.classifier
    bits = {str(n or 32): accuracy(full, features(classifier, few_at, n), few_at.labels)
            for n in (None, *BITS)}
    save(bits=dict(images=FEW, accuracy=bits))
    taught, seen = (features(classifier, part, 8) for part in (taught_at, held))
    save(ranks=dict(images=HELD, taught_images=TAUGHT, epochs=EPOCHS, full=accuracy(full, seen, held.labels),
                    rows=by_rank(classifier, taught, seen, held.labels)))


if __name__ == "__main__": main(*sys.argv[1:])
