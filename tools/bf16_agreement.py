"""bfloat16 against float32 of a trained network: python tools/bf16_agreement.py CKPT DATA_DIR [N]

Writes nbs/results/bf16_agreement.json. DATA_DIR holds CIFAR-10 as train/ and test/ folders or as batches;
N images (2,000), classes in equal parts.
"""
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.device import describe_device, pick_device
from alexnet_nb.base.pictures import Images, stack_pixels
from alexnet_nb.base.results import versions
from alexnet_nb.data import prepare_batch
from alexnet_nb.engine.allocator import reuse_memory
from alexnet_nb.engine.checkpoint import read_checkpoint
from alexnet_nb.inference import load_classifier, probabilities

ROOT = Path(__file__).resolve().parent.parent


def answers(checkpoint: str | Path, images: Images, precision: str) -> Tensor:
    "The probabilities of all images (N, C) in that precision."
    classifier, pixels = load_classifier(checkpoint, precision=precision), stack_pixels(images, 2**31)
    batches = (prepare_batch(part, classifier.recipe) for part in pixels.split(64))
    return torch.cat([probabilities(classifier, batch) for batch in batches])


def measure(checkpoint: str | Path, data_dir: str | Path, n: int) -> dict:
    "How often the two agree, how far their probabilities differ, and how often each is right."
    began, test = time.monotonic(), read_cifar10(data_dir, train=False, may_download=False)
    each = n // len(test.classes)
    classes = range(len(test.classes))
    images = test.take(np.concatenate([np.flatnonzero(test.labels == c)[:each] for c in classes]))
    full, half = (answers(checkpoint, images, precision) for precision in ("fp32", "bf16"))
    labels, difference = torch.from_numpy(images.labels), (full - half).abs().amax(1)
    same, two = full.argmax(1) == half.argmax(1), full.topk(2).values
    margin = two[:, 0] - two[:, 1]  # how far the best class was ahead of the next, in float32
    stored = read_checkpoint(checkpoint)
    def share(right: Tensor) -> float: return right.float().mean().item()
    return dict(
        images=len(images), same_class=share(same), accuracy_fp32=share(full.argmax(1) == labels),
        accuracy_bf16=share(half.argmax(1) == labels), largest_difference=difference.max().item(),
        median_difference=difference.median().item(), margins=[round(m, 6) for m in margin.tolist()],
        differences=[round(d, 6) for d in difference.tolist()], differ=(~same).nonzero().flatten().tolist(),
        seeds=[stored.get("seed")], epochs=stored.get("epoch"), seconds=round(time.monotonic() - began, 1),
        device=describe_device(pick_device()), versions=versions(), date=datetime.date.today().isoformat())


def main(checkpoint: str, data_dir: str, n: str = "2000") -> None:
    "Measure and write."
    reuse_memory()
    result = measure(checkpoint, data_dir, int(n))
    (ROOT / "nbs/results/bf16_agreement.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    print({key: value for key, value in result.items() if not isinstance(value, list)})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
