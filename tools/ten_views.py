"""One view against the paper's ten, on test images: python tools/ten_views.py CKPT DATA_DIR [N]

Writes nbs/results/ten_views.json. DATA_DIR holds CIFAR-10 as train/ and test/ folders or as batches; N images
(1,000), classes in equal parts.
"""
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.device import describe_device
from alexnet_nb.base.results import versions
from alexnet_nb.engine.allocator import reuse_memory
from alexnet_nb.engine.checkpoint import read_checkpoint
from alexnet_nb.inference import load_classifier, predict

ROOT = Path(__file__).resolve().parent.parent


def main(checkpoint: str, data_dir: str, n: str = "1000") -> None:
    "Measure and write."
    reuse_memory()
    classifier = load_classifier(checkpoint)
    test = read_cifar10(data_dir, train=False, may_download=False)
    each = int(n) // len(test.classes)
    chosen = np.concatenate([np.flatnonzero(test.labels == c)[:each] for c in range(len(test.classes))])
    right, began = {1: 0, 10: 0}, time.monotonic()
    for i in tqdm(chosen, mininterval=10):
        for views in right:
            mean = predict(classifier, test[i], views)
            right[views] += int(mean.argmax()) == test.labels[i]
    one_view, ten_views = (float(right[views] / len(chosen)) for views in (1, 10))
    result = dict(accuracy_one_view=one_view, accuracy_ten_views=ten_views, images=len(chosen),
                  epochs=read_checkpoint(checkpoint).get("epoch"), seconds=round(time.monotonic() - began, 1),
                  device=describe_device(classifier.device), versions=versions(),
                  date=datetime.date.today().isoformat())
    (ROOT / "nbs/results/ten_views.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
