"""Which way from a photograph to the network in the package? Measures several on labelled pictures.

python tools/photographs.py FOLDER: FOLDER/labels.csv has the columns path, class, kind, package and series.
Kinds are `photo`, `cut-out` (a thing without its surroundings, shown on white) and `composite` (a cut-out
before another photograph's surroundings). Pictures of one series have one vote together. The packages are
divided into halves; the way is chosen on the first, by the mean log loss of its photographs, from those with
one view that leave a picture of 32 pixels as it is. Writes nbs/results/photographs.json.
"""
import csv
import json
import math
import sys
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from alexnet_nb.base.results import versions
from alexnet_nb.data import Recipe, prepare
from alexnet_nb.inference import load_pretrained, probabilities, ten_views

OUT = Path(__file__).resolve().parent.parent / "nbs" / "results" / "photographs.json"
FILTERS = ("BOX", "BILINEAR", "BICUBIC", "LANCZOS")
SIDES = (24, 48, 64, 128)
FEW = ("straight, squashed", "straight, centre", "32 BILINEAR, squashed", "32 BILINEAR, centre",
       "32 BILINEAR, padded")
TEN = ("straight, squashed", "32 BILINEAR, squashed", "32 BILINEAR, centre")


def centre(image: Image.Image) -> Image.Image:
    "The square in the middle."
    side = min(image.size)
    return ImageOps.fit(image, (side, side), centering=(0.5, 0.5))


def padded(image: Image.Image) -> Image.Image:
    "The whole picture in a square of its mean colour."
    mean = tuple(np.asarray(image).reshape(-1, 3).mean(0).round().astype(int).tolist())
    return ImageOps.pad(image, (max(image.size),) * 2, Image.Resampling.BILINEAR, mean)


def small(image: Image.Image, side: int, name: str) -> Image.Image:
    return image.resize((side, side), Image.Resampling[name])


def shown(image: Image.Image, recipe: Recipe, all_ways: bool) -> dict[str, torch.Tensor]:
    "What the network is shown of a picture, (views, 3, size, size), by way."
    cuts = {"squashed": image, "centre": centre(image), "padded": padded(image)}
    ways = {f"straight, {cut}": (cut, None, "") for cut in cuts}
    for cut in cuts: ways |= {f"32 {name}, {cut}": (cut, 32, name) for name in FILTERS}
    for cut in ("squashed", "centre"):
        ways |= {f"{side} BILINEAR, {cut}": (cut, side, "BILINEAR") for side in SIDES}
    if not all_ways: ways = {way: ways[way] for way in FEW}
    pictures = {way: small(cuts[cut], side, name) if side else cuts[cut]
                for way, (cut, side, name) in ways.items()}
    views = {way: prepare(picture, recipe)[None] for way, picture in pictures.items()}
    if all_ways: views |= {f"{way}, ten views": ten_views(pictures[way], recipe) for way in TEN}
    return views


def on_white(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def interval(share: float, n: int, z: float = 1.96) -> list[float]:
    "Wilson's, for 95 of a hundred."
    middle, half = share + z * z / 2 / n, z * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n)
    return [round((middle + sign * half) / (1 + z * z / n), 4) for sign in (-1, 1)]


def numbers(p: np.ndarray, rows: list[dict], classes) -> dict:
    "Of probabilities (N, C): the share that is right, its interval and the log loss; a series has one vote."
    labels = [classes.index(row["class"]) for row in rows]
    series = defaultdict(list)
    for i, row in enumerate(rows): series[row["series"] or row["path"]].append(i)
    hits = [p[i].argmax() == labels[i] for i in range(len(rows))]
    losses = [-math.log(max(p[i, labels[i]], 1e-6)) for i in range(len(rows))]
    right, loss = (float(np.mean([np.mean([x[i] for i in at]) for at in series.values()]))
                   for x in (hits, losses))
    return dict(n=len(series), right=round(right, 4), interval=interval(right, len(series)),
                loss=round(loss, 4))


def halves(rows: list[dict]) -> dict[str, int]:
    "The half, 0 or 1, of each package: the largest first, each to the half that has fewer photographs."
    count, total = Counter(row["package"] for row in rows if row["kind"] == "photo"), [0, 0]
    found = {}
    for package, n in sorted(count.items(), key=lambda pair: (-pair[1], pair[0])):
        found[package] = total.index(min(total))
        total[found[package]] += n
    return found


def main(folder: Path) -> None:
    classifier = load_pretrained("cifar10")
    classes, recipe = classifier.classes, Recipe(classifier.recipe.size)
    classifier.model.to(memory_format=torch.channels_last)
    with open(folder / "labels.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] in classes]
    said = defaultdict(list)
    for number, row in enumerate(rows):
        image = on_white(ImageOps.exif_transpose(Image.open(folder / row["path"])))
        views = shown(image, recipe, all_ways=row["kind"] == "photo")
        with torch.autocast("cpu", torch.bfloat16):
            parts = torch.cat([*views.values()]).split(32)
            p = iter(torch.cat([probabilities(classifier, x) for x in parts]))
        for way, x in views.items(): said[way].append(torch.stack([next(p) for _ in x]).mean(0).numpy())
        print(number + 1, row["path"], file=sys.stderr)
    photos, half = [row for row in rows if row["kind"] == "photo"], halves(rows)
    kinds = {kind: [i for i, row in enumerate(rows) if row["kind"] == kind] for kind in
             ("photo", "cut-out", "composite")}
    at = kinds["photo"]
    parts = {"choosing": [i for i in at if half[rows[i]["package"]] == 0],
             "judging": [i for i in at if half[rows[i]["package"]] == 1], "photos": at}
    result = {}
    for way, found in said.items():
        place = {i: k for k, i in enumerate(range(len(rows)) if len(found) == len(rows) else at)}
        groups = parts | ({k: v for k, v in kinds.items() if k != "photo"} if len(found) == len(rows) else {})
        result[way] = {
            name: numbers(np.stack([found[place[i]] for i in which]), [rows[i] for i in which], classes)
            for name, which in groups.items()}
    one = [way for way in result if not way.startswith("24") and not way.endswith("ten views")]
    best = min(one, key=lambda way: result[way]["choosing"]["loss"])
    found = dict(
        date=date.today().isoformat(), device="cpu", precision="bf16", versions=versions(),
        network="cifar10", temperature=classifier.temperature, chosen=best,
        counts={kind: dict(sorted(Counter(rows[i]["class"] for i in which).items()))
                for kind, which in kinds.items()},
        packages=dict(sorted(Counter(row["package"] for row in photos).items())),
        half={name: sorted(k for k, v in half.items() if v == n)
              for n, name in enumerate(("choosing", "judging"))},
        other_packages=sorted({row["package"] for row in rows} - {row["package"] for row in photos}),
        ways=result)
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for way, r in sorted(result.items(), key=lambda pair: pair[1]["choosing"]["loss"]):
        print(f"{way:34}", *(f"{name} {x['right']:.3f} {x['loss']:.2f}" for name, x in r.items()))
    print("chosen:", best)


if __name__ == "__main__": main(Path(sys.argv[1]))
