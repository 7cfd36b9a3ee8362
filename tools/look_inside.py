"""What "Looking inside" and "Two towers" cannot compute on the page: counts over many pictures, and the first
kernels of a network that does not come with the library.

    python tools/look_inside.py cifar10 DATA_FOLDER
    python tools/look_inside.py CHECKPOINT DATA_FOLDER --name two_towers

Writes nbs/results/inside_NAME.json. DATA_FOLDER holds CIFAR-10 as train/ and test/ folders or as batches.
With --kernels-only no data is needed but a hundred test images, and the file holds conv1's kernels alone:
enough to compare seeds.
"""
import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.device import describe_device, pick_device
from alexnet_nb.base.pictures import Images, Pictures, stack_pixels
from alexnet_nb.base.results import read_results, versions
from alexnet_nb.claims.experiment import _data_name
from alexnet_nb.data import split
from alexnet_nb.engine.allocator import reuse_memory
from alexnet_nb.engine.checkpoint import read_checkpoint
from alexnet_nb.engine.inside import first_kernels, kernels_report, look_inside
from alexnet_nb.inference import load_classifier, load_pretrained
from alexnet_nb.inspection import pixel_batches

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = "cifar10"  # the network that comes with the library


def in_equal_parts(images: Images, indices: np.ndarray, n: int) -> Pictures:
    "The first n of these images, classes in equal parts, as pixels."
    each = max(n // len(images.classes), 1)
    chosen = np.concatenate([indices[images.labels[indices] == c][:each] for c in range(len(images.classes))])
    pixels = stack_pixels(images.take(chosen), most_bytes=2**32)
    if pixels is None: sys.exit("look_inside: the images are not all of one size")
    return Pictures(pixels, torch.from_numpy(images.labels[chosen]))


def rate_sum(checkpoint: dict) -> float:
    """The learning rates of all steps together; the warm-up's few are counted as full ones, and a rate that
    waits for plateaus as constant."""
    training, steps, epochs = checkpoint["config"]["training"], checkpoint["total_steps"], checkpoint["epoch"]
    in_whole_epochs = steps - checkpoint.get("progress", {}).get("batch", 0)
    each = max(in_whole_epochs // epochs, 1) if epochs else max(steps, 1)
    rate, size = training["learning_rate"], training["lr_step_size"]
    lower = training["lr_gamma"] if training["schedule"] == "step" else 1.0
    return sum(rate * lower ** (step // each // size) for step in range(steps))


def facts(checkpoint: dict) -> dict:
    "What the file tells of how the network came to be."
    model, training = checkpoint["config"]["model"], checkpoint["config"]["training"]
    progress = checkpoint.get("progress", {})
    return dict(towers=model["towers"], epochs_done=checkpoint["epoch"], of_epochs=training["num_epochs"],
                steps=checkpoint["total_steps"], seed=checkpoint["seed"],
                **{key: training[key] for key in ("learning_rate", "momentum", "weight_decay", "batch_size")},
                rate_sum=round(rate_sum(checkpoint), 6), init=model["init"],
                recipe=checkpoint["config"]["data"]["recipe"],
                best_validation_accuracy=progress.get("best_accuracy"))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    what = "Look into a trained network and keep what the pages cannot compute."
    parser = argparse.ArgumentParser("look_inside", description=what)
    parser.add_argument("network", help=f"a checkpoint, or {PACKAGED}")
    parser.add_argument("data_folder")
    parser.add_argument("--name", help="two_towers, two_towers_seed1, ...; needed with a checkpoint")
    parser.add_argument("--train-images", type=int, default=10_000,
                        help="of the training split, among which neighbours are sought")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="auto", help="of a checkpoint: auto, fp32, bf16 or fp16")
    parser.add_argument("--kernels-only", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/results", help="folder of the file")
    args = parser.parse_args(argv)
    packaged = args.network == PACKAGED
    if packaged and args.kernels_only: parser.error("the kernels of this network are in the package")
    if not packaged and not args.name: parser.error("give the file of this checkpoint a --name")
    args.name = args.name or PACKAGED
    return args


def main(argv: list[str] | None = None) -> Path:
    "Look, and write; the file's path."
    args, began = arguments(argv), time.monotonic()
    device = pick_device()
    if device.type == "cpu": reuse_memory()
    if args.network == PACKAGED:
        run = read_results(PACKAGED)
        cfg, seed, checkpoint = run["config"], run["seeds"][0], None
        classifier = load_pretrained(PACKAGED, device)
        network = dict(name=PACKAGED, towers=1, epochs_done=run["epochs_done"], seed=seed)
    else:
        checkpoint = read_checkpoint(args.network, mapped=True)
        cfg, seed = checkpoint["config"], checkpoint["seed"]
        classifier = load_classifier(args.network, device, precision=args.precision)
        network = facts(checkpoint)
    test = read_cifar10(args.data_folder, train=False, may_download=False)
    queries = in_equal_parts(test, np.arange(len(test)), 100 if args.kernels_only else args.test_images)
    def say(text: str) -> None: print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)
    if args.kernels_only:
        report = dict(network=network | dict(accuracy=network["best_validation_accuracy"], test_images=0))
    else:
        train = read_cifar10(args.data_folder, train=True, may_download=False)
        taught, _ = split(train.labels, cfg["data"]["val_images"], seed)
        bank = in_equal_parts(train, taught, args.train_images)
        say(f"{len(bank):,} training and {len(queries):,} test images read")
        report = look_inside(classifier, bank, queries, network, args.batch_size, say)
    if checkpoint is not None:
        batches = pixel_batches(queries.pixels[:256], classifier.recipe, device)
        report |= kernels_report(classifier.model, batches, first_kernels(cfg["model"], seed))
    precision = str(next(classifier.model.parameters()).dtype).removeprefix("torch.")
    what = f"CHECKPOINT DATA_FOLDER --name {args.name}" if checkpoint else f"{PACKAGED} DATA_FOLDER"
    report |= dict(data=_data_name(test), precision=precision, device=describe_device(device),
                   versions=versions(), date=datetime.date.today().isoformat(),
                   seconds=round(time.monotonic() - began, 1), command=f"python tools/look_inside.py {what}")
    path = args.out / f"inside_{args.name}.json"
    path.write_text(json.dumps(report, separators=(",", ":")) + "\n", encoding="utf-8")
    say(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    return path


if __name__ == "__main__":
    main()
