"""One view against the paper's ten, on test images: python tools/ten_views.py NETWORK DATA_DIR [N]

Writes nbs/results/ten_views.json, or the file of --out. NETWORK is a checkpoint, or `cifar10` for the network
in the package. DATA_DIR holds CIFAR-10 as train/ and test/ folders or as batches; N images (1,000), the first
of each class, in equal parts. The network computes in 16 bits where the device has them, as `alexnet_predict`
does.
"""
import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.device import describe_device, pick_device
from alexnet_nb.base.results import versions
from alexnet_nb.data import prepare_batch, stack_pixels
from alexnet_nb.engine.allocator import reuse_memory
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.inference import calibration_error, cut_views, probabilities, reliability, views_recipe

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 6   # images, of ten views each


def main(network: str, data_dir: str, n: int, out: Path) -> None:
    "Measure and write."
    device = pick_device()
    if device.type == "cpu": reuse_memory()
    classifier = load_classifier(network, device, precision="auto")
    recipe, test = classifier.recipe, read_cifar10(data_dir, train=False, may_download=False)
    each = n // len(test.classes)
    chosen = np.concatenate([np.flatnonzero(test.labels == c)[:each] for c in range(len(test.classes))])
    pixels, labels = stack_pixels(test.take(chosen), 2**31), torch.from_numpy(test.labels[chosen])
    parts, began = {"one": [], "ten": [], "single": []}, time.monotonic()
    for part in tqdm(pixels.split(AT_ONCE), mininterval=10):
        part = part.to(device)
        parts["one"].append(probabilities(classifier, prepare_batch(part, recipe)))
        views = cut_views(prepare_batch(part, views_recipe(recipe, 10)), recipe.size)
        by_view = probabilities(classifier, views).unflatten(0, (-1, 10))
        parts["ten"].append(by_view.mean(1))
        parts["single"].append(by_view.amax(2).mean(1))
    one, ten, single = (torch.cat(part).cpu() for part in parts.values())
    def right(p): return (p.argmax(1) == labels).double().mean().item()
    def sure(p): return p.amax(1).double().mean().item()
    result = dict(network=Path(network).name, images=len(chosen),
                  accuracy_one_view=right(one), accuracy_ten_views=right(ten),
                  confidence_one_view=sure(one), confidence_ten_views=sure(ten),
                  confidence_of_single_views=single.double().mean().item(),
                  calibration_error_one_view=calibration_error(*reliability(one, labels)),
                  calibration_error_ten_views=calibration_error(*reliability(ten, labels)),
                  precision=str(next(classifier.model.parameters()).dtype).removeprefix("torch."),
                  seconds=round(time.monotonic() - began, 1), device=describe_device(classifier.device),
                  versions=versions(), date=datetime.date.today().isoformat())
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("ten_views", description="One view against the paper's ten.")
    parser.add_argument("network", help="a checkpoint, or cifar10")
    parser.add_argument("data_dir")
    parser.add_argument("n", type=int, nargs="?", default=1000, help="images (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/results/ten_views.json")
    torch.set_grad_enabled(False)
    main(**vars(parser.parse_args()))
