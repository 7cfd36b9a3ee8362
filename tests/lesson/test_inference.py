"How far to believe a probability: bins, their error, and what is stored of the network in the package."
import math
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb.base.results import read_results
from alexnet_nb.base.weights import photographs
from alexnet_nb.data import Recipe
from alexnet_nb.inference import (
    UNSURE_BELOW,
    Classifier,
    calibration_error,
    load_pretrained,
    predict,
    probabilities,
    reliability,
    ten_views,
)
from alexnet_nb.model import AlexNet
from common import ROOT


def by_hand(p, labels, bins):
    "Count, mean confidence and share right of each bin, one answer at a time."
    found = [[] for _ in range(bins)]
    for row, label in zip(p.tolist(), labels.tolist(), strict=True):
        best = max(row)
        found[min(int(best * bins), bins - 1)].append((best, row.index(best) == label))
    return [(len(f), *np.mean(f, axis=0)) if f else (0, 0.0, 0.0) for f in found]


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_bins_against_a_loop(bins):
    random = torch.Generator().manual_seed(0)
    p = (4 * torch.randn(500, 6, generator=random)).softmax(1)
    labels = torch.randint(6, (500,), generator=random)
    found, slow = reliability(p, labels, bins), by_hand(p, labels, bins)
    for column, expected in zip(found, zip(*slow, strict=True), strict=True):
        assert column.tolist() == pytest.approx(expected, abs=1e-6)
    error = sum(n * abs(right - sure) for n, sure, right in slow) / 500
    assert calibration_error(*found) == pytest.approx(error, abs=1e-6)


def test_certain_answers_are_in_the_last_bin_and_empty_bins_count_nothing():
    count, confidence, right = reliability(torch.eye(3), torch.tensor([0, 1, 0]))
    assert count.tolist() == [0] * 9 + [3] and confidence[-1] == 1 and right[-1] == pytest.approx(2 / 3)
    assert right[:9].tolist() == confidence[:9].tolist() == [0] * 9
    assert calibration_error(count, confidence, right) == pytest.approx(1 / 3)


def test_a_mean_over_views_is_never_surer_than_the_views():
    torch.manual_seed(0)
    classifier = Classifier(AlexNet(width=1 / 16).eval(), Recipe(), tuple("abcdefghij"), torch.device("cpu"))
    with torch.no_grad(): classifier.model.classifier[-1].weight.mul_(300)
    for i in range(3):
        by_view = probabilities(classifier, ten_views(photographs()[i], classifier.recipe))
        mean = predict(classifier, photographs()[i], 10)
        assert mean.max() <= by_view.amax(1).mean() + 1e-6
        assert by_view.amax(1).std() > 0, "the views differ"


def test_what_is_stored_is_of_the_network_in_the_package():
    stored, compressed = read_results("calibration"), read_results("compress")
    classifier = load_pretrained("cifar10")
    assert stored["after"]["temperature"] == classifier.temperature and stored["before"]["temperature"] == 1
    assert stored["after"]["accuracy"] == pytest.approx(compressed["accuracy"], abs=0.002)
    confusion = torch.tensor(stored["confusion"])
    assert confusion.sum() == stored["images"] == sum(stored["after"]["count"])
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(stored["after"]["accuracy"])
    assert stored["threshold"] == UNSURE_BELOW
    assert {"date", "device", "versions", "data", "precision"} <= stored.keys()
    for when in ("before", "after"):
        bins = (torch.tensor(stored[when][key]) for key in ("count", "bin_confidence", "bin_accuracy"))
        assert calibration_error(*bins) == pytest.approx(stored[when]["calibration_error"], abs=1e-6)
    assert stored["after"]["calibration_error"] < stored["before"]["calibration_error"] / 2


def test_the_tool_measures_what_the_network_says(tmp_path, monkeypatch):
    "Logits by 64 as one by one; strangers from a table; the lowest threshold that does it."
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import calibration as tool
    images = photographs().take(np.arange(3))
    torch.manual_seed(0)
    tiny = Classifier(AlexNet(width=1 / 16).eval(), Recipe(), tuple("abcdefghij"), torch.device("cpu"), 1.5)
    with torch.no_grad(): p = (tool.logits_of(tiny, images) / 1.5).softmax(1)
    one_by_one = torch.stack([predict(tiny, images[i]) for i in range(3)])
    torch.testing.assert_close(p, one_by_one, atol=1e-5, rtol=1e-4)

    Image.new("RGB", (90, 60), "red").save(tmp_path / "cup.png")
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "fork.png")
    rows = "cup.png,none,photo,a", "fork.png,none,photo,b", "dog.png,dog,photo,a", "x.png,none,cut-out,c"
    table = "\n".join(["path,class,kind,package", *rows])
    (tmp_path / "labels.csv").write_text(table + "\n", encoding="utf-8")
    others, packages = tool.strangers(tmp_path)
    assert len(others) == 2 and packages == {"a": 1, "b": 1}
    assert (others.items[0] == (255, 0, 0)).all() and (others.items[1] == 255).all(), "on white"

    sure = torch.tensor([0.5, 0.6, 0.7, 0.8])
    p, right = torch.stack([sure, 1 - sure], 1), torch.tensor([False, False, True, True])
    assert tool.chosen(p, right) == 0.65 and math.isclose(tool.WANTED, 0.9)
    sys.modules.pop("calibration")


def test_the_lines_of_the_readme_name_a_cat(monkeypatch, capsys):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    monkeypatch.chdir(ROOT)
    exec(code, {})
    assert capsys.readouterr().out == "cat\n"


def test_probabilities_can_teach_another_network():
    classifier = Classifier(AlexNet(width=0.02).eval(), Recipe(227), tuple("abcdefghij"), torch.device("cpu"))
    says = probabilities(classifier, torch.randn(2, 3, 227, 227))
    student = torch.nn.Linear(3, 10)
    torch.nn.functional.cross_entropy(student(torch.randn(2, 3)), says).backward()
    assert student.weight.grad is not None and not says.requires_grad
