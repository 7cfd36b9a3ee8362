"A look into a network: what is packed comes back, reports are small, the command makes one of a checkpoint."
import importlib.util
import json

import numpy as np
import pytest
import torch

from alexnet_nb.data import Pictures, Recipe, drawings, prepare_batch, stack_pixels
from alexnet_nb.engine.inside import _pack, first_kernels, kernels_report, look_inside, unpack
from alexnet_nb.inference import Classifier, load_classifier, load_pretrained, probabilities
from alexnet_nb.inspection import (
    collect_activations,
    patch_directions,
    pixel_batches,
    purity,
    seen_part,
    strongest_patches,
)
from alexnet_nb.model import AlexNet
from common import ROOT, class_folders

THIN = 1 / 24


def network(device="cpu", **options) -> Classifier:
    "An untrained thin network."
    torch.manual_seed(0)
    model = AlexNet(width=THIN, **options).eval().to(device)
    return Classifier(model, Recipe(size=model.image_dim), tuple(map(str, range(10))), torch.device(device))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    images = drawings(12, seed=4)
    return Pictures(stack_pixels(images, 10**9), torch.from_numpy(images.labels))


# ---------------------------------------------------------------- numbers

@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_survive_packing(bits):
    numbers = torch.randn(4, 3, 5, 5)
    packed = json.loads(json.dumps(_pack(numbers, bits)))
    half_a_step = numbers.abs().max().item() / (2**bits - 2)
    torch.testing.assert_close(unpack(packed), numbers, atol=half_a_step * 1.01, rtol=0)
    assert torch.equal(unpack(_pack(torch.zeros(2, 2), bits)), torch.zeros(2, 2))


def test_first_kernels_are_those_of_a_seed_and_leave_chance_alone():
    torch.manual_seed(5)
    expected = AlexNet(width=THIN).features[0].weight.detach()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(first_kernels({"width": THIN}, 5), expected)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- reports, the command

@pytest.mark.parametrize("options", [
    {}, {"towers": 2}, {"activation": "tanh", "without": ["conv3", "conv5"]}], ids=str)
def test_a_report_is_plain_and_small(pictures, options):
    c = network(**options)
    facts = dict(towers=options.get("towers", 1))
    report = look_inside(c, pictures, pictures, facts, batch_size=5, progress=lambda text: None)
    text = json.dumps(report, allow_nan=False)
    assert len(text) < 5_000 and json.loads(text) == report
    near = report["neighbours"]
    assert near["bank"] == near["queries"] == 12
    assert set(near["agreement"]) == {"hidden", "pixels"}
    for found in near["agreement"].values():  # the bank holds the queries
        assert set(found) == {"nearest", "majority"} and found["nearest"] == 1 and 0 <= found["majority"] <= 1
    seen = collect_activations(c.model, pixel_batches(pictures.pixels, c.recipe, c.device))
    right = (seen.logits.argmax(1) == pictures.labels).float().mean().item()
    assert report["network"] == facts | dict(accuracy=pytest.approx(right), test_images=12)
    for name, s in seen.statistics.items():
        told = report["statistics"][name]
        assert (told["pictures"], told["units"], told["dead"]) == (12, len(s.active), len(s.dead))
        assert told["zeros"] == pytest.approx(s.zero_share, abs=1e-3)
    for name, peaks in seen.peaks.items():
        patches = [strongest_patches(peaks, k) for k in range(peaks.values.shape[1])]
        shares = [purity(p, pictures.labels) for p in patches if len(p) == 9]
        assert report["patches"][name] == dict(pictures=12, living=len(shares),
                                               purity=pytest.approx(sum(shares) / max(len(shares), 1)))


def test_kernels_come_back_from_a_report(pictures):
    c = network()
    weight = c.model.features[0].weight.detach()
    def batches(): return pixel_batches(pictures.pixels, c.recipe, c.device, 5)
    report = json.loads(json.dumps(kernels_report(c.model, batches())))
    assert report["history"] is None
    torch.testing.assert_close(unpack(report["kernels"]), weight, atol=0.01, rtol=0)
    directions, energy = patch_directions(batches())
    shown = report["directions_shown"]
    assert energy[shown - 1] >= 0.999 > energy[shown - 2]
    part = seen_part(unpack(report["kernels"]), unpack(report["directions"])[:, :shown])
    torch.testing.assert_close(part, seen_part(weight, directions[:, :shown]), atol=0.01, rtol=0)


def load_tool():
    spec = importlib.util.spec_from_file_location("look_inside", ROOT / "tools/look_inside.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_command_looks_into_a_checkpoint(final, tmp_path, monkeypatch):
    tool, root = load_tool(), class_folders(tmp_path / "data")
    args = [str(final), str(root), "--precision", "fp32", "--out", str(tmp_path)]
    checkpoint = torch.load(final, weights_only=True)
    checkpoint["config"]["data"]["val_images"] = 10
    torch.save(checkpoint, short := tmp_path / "short.pkl")
    args[0] = str(short)
    small = ["--train-images", "20", "--test-images", "10", "--batch-size", "8"]
    path = tool.main([*args, "--name", "test", *small])
    text = path.read_text(encoding="utf-8")
    report = json.loads(text)
    assert path.name == "inside_test.json"
    assert len(text) < 100_000
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    told = dict(towers=1, seed=7, epochs_done=2, of_epochs=2, test_images=10)
    assert report["network"] | told == report["network"]
    assert report["neighbours"]["bank"] == 20
    assert report["neighbours"]["queries"] == 10
    assert report["data"] == "CIFAR-10"
    classifier = load_classifier(final)
    test = tool.in_equal_parts(tool.read_cifar10(root, False, False), np.arange(20), 10)
    right = probabilities(classifier, prepare_batch(test.pixels, classifier.recipe)).argmax(1)
    assert report["network"]["accuracy"] == pytest.approx((right == torch.arange(10)).float().mean().item())
    assert report["history"]["cosine"] > 0.99
    assert 0.9 < report["history"]["left"] < 1.001  # the seed brings the first weights back
    path = tool.main([*args, "--name", "kernels", "--kernels-only"])
    kernels = json.loads(path.read_text(encoding="utf-8"))
    assert kernels["kernels"] == report["kernels"] and "neighbours" not in kernels


def test_the_command_looks_into_the_network_of_the_package(tmp_path, monkeypatch):
    tool, root = load_tool(), class_folders(tmp_path / "data")
    run = tool.read_results("cifar10")
    run["config"]["data"]["val_images"] = 10  # of this small training set
    monkeypatch.setattr(tool, "read_results", lambda name: run if name == "cifar10" else None)
    small = ["--train-images", "20", "--test-images", "10", "--batch-size", "8"]
    path = tool.main(["cifar10", str(root), "--out", str(tmp_path), *small])
    text = path.read_text(encoding="utf-8")
    report = json.loads(text)
    assert path.name == "inside_cifar10.json" and len(text) < 5_000 and "kernels" not in report
    assert report["command"] == "python tools/look_inside.py cifar10 DATA_FOLDER"
    test = tool.in_equal_parts(tool.read_cifar10(root, False, False), np.arange(20), 10)
    classifier = load_pretrained("cifar10")
    right = probabilities(classifier, prepare_batch(test.pixels, classifier.recipe)).argmax(1)
    assert report["network"]["accuracy"] == pytest.approx((right == torch.arange(10)).float().mean().item())


@pytest.mark.parametrize(("args", "says"), [
    (["cifar10", "x", "--kernels-only"], "in the package"), (["final.pkl", "x"], "--name")])
def test_the_command_says_what_does_not_fit(args, says, capsys):
    with pytest.raises(SystemExit, match="2"): load_tool().main(args)
    assert says in capsys.readouterr().err


def test_the_sum_of_the_rates_follows_the_schedule():
    training = dict(learning_rate=0.01, lr_gamma=0.1, lr_step_size=6, schedule="step")
    checkpoint = dict(config=dict(training=training), epoch=8, total_steps=2816, progress=dict(batch=0))
    rate_sum = load_tool().rate_sum
    assert rate_sum(checkpoint) == pytest.approx(0.01 * 6 * 352 + 0.001 * 2 * 352)
    stopped = dict(epoch=5, total_steps=1781, progress=dict(batch=21))
    assert rate_sum(checkpoint | stopped) == pytest.approx(17.81)
    assert rate_sum(checkpoint | dict(epoch=0, total_steps=3, progress=dict(batch=3))) == pytest.approx(0.03)


def test_stored_files_are_whole_and_small():
    stored = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "nbs/results").glob("inside_*")}
    assert "inside_cifar10" in stored
    for name, text in stored.items():
        assert len(text) < 100_000, name
        report = json.loads(text)
        assert {"network", "device", "date", "data", "command"} <= report.keys(), name
        assert str(ROOT) not in text
        if name == "inside_cifar10": assert len(text) < 5_000 and "kernels" not in report
        else: assert unpack(report["kernels"]).shape == (96, 3, 11, 11)
