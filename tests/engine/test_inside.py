"A look into a network: what is packed comes back, reports are small, the command makes one of a checkpoint."
import importlib.util
import json

import numpy as np
import pytest
import torch

from alexnet_nb.data import Pictures, Recipe, drawings, prepare_batch, stack_pixels
from alexnet_nb.engine.inside import Sheet, _view_of, first_kernels, look_inside, pack, unpack, unpack_sheet
from alexnet_nb.inference import Classifier, load_classifier, probabilities
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
    packed = json.loads(json.dumps(pack(numbers, bits)))
    half_a_step = numbers.abs().max().item() / (2**bits - 2)
    torch.testing.assert_close(unpack(packed), numbers, atol=half_a_step * 1.01, rtol=0)
    assert torch.equal(unpack(pack(torch.zeros(2, 2), bits)), torch.zeros(2, 2))


def test_first_kernels_are_those_of_a_seed_and_leave_chance_alone():
    torch.manual_seed(5)
    expected = AlexNet(width=THIN).features[0].weight.detach()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(first_kernels({"width": THIN}, 5), expected)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- sheets, reports, the command

def test_a_sheet_gives_its_pictures_back(pictures):
    sheet = Sheet()
    many = torch.cat([pictures.pixels, pictures.pixels.flip(-1)])
    assert [sheet.add(p) for p in many] == list(range(24)) and sheet.add(many[5]) == 5
    back = unpack_sheet(json.loads(json.dumps(sheet.pack())))
    assert back.shape == (24, 32, 32, 3)
    assert (back.permute(0, 3, 1, 2).int() - many.int()).abs().float().mean() < 10


def test_the_view_of_a_recipe():
    assert _view_of(Recipe(224)) == dict(side=224, start=0, size=224)
    assert _view_of(Recipe(227, short_side=256)) == dict(side=256, start=15, size=227)
    x = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 256, 1)
    seen = prepare_batch(x, Recipe(227, (0.0,) * 3, (1 / 255,) * 3, short_side=256))
    assert round(seen[0, 0, 0, 0].item()) == 15


@pytest.mark.parametrize("options", [
    {}, {"towers": 2}, {"activation": "tanh", "without": ["conv3", "conv5"]}], ids=str)
def test_a_report_is_plain_and_small(pictures, options):
    c = network(**options)
    facts = dict(towers=options.get("towers", 1))
    report = look_inside(c, pictures, pictures, facts, stride=114, batch_size=5, progress=lambda text: None)
    text = json.dumps(report, allow_nan=False)
    assert len(text) < 400_000 and json.loads(text)["history"] is None
    near = report["neighbours"]
    assert set(near["agreement"]) == {"hidden", "pixels"}
    for found in near["agreement"].values():
        assert set(found) == {"nearest", "majority"} and found["nearest"] == 1 and 0 <= found["majority"] <= 1
    for row in near["shown"]:  # the bank holds the queries
        assert row["hidden"][0]["index"] == row["pixels"][0]["index"] == row["index"]
    count = report["pictures"]["count"]
    assert all(0 <= n["picture"] < count for row in near["shown"] for n in row["hidden"] + row["pixels"])
    assert [len(m["map"]) for m in report["occlusion"]["maps"]] == [2] * 4
    weight = c.model.features[0].weight.detach()
    torch.testing.assert_close(unpack(report["kernels"]), weight, atol=0.01, rtol=0)


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
    small = ["--train-images", "20", "--test-images", "10", "--stride", "114", "--batch-size", "8"]
    path = tool.main([*args, "--name", "test", *small])
    text = path.read_text(encoding="utf-8")
    report = json.loads(text)
    assert path.name == "inside_test.json"
    assert len(text) < 400_000
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


def test_the_sum_of_the_rates_follows_the_schedule():
    training = dict(learning_rate=0.01, lr_gamma=0.1, lr_step_size=6, schedule="step")
    checkpoint = dict(config=dict(training=training), epoch=8, total_steps=2816, progress=dict(batch=0))
    rate_sum = load_tool().rate_sum
    assert rate_sum(checkpoint) == pytest.approx(0.01 * 6 * 352 + 0.001 * 2 * 352)
    stopped = dict(epoch=5, total_steps=1781, progress=dict(batch=21))
    assert rate_sum(checkpoint | stopped) == pytest.approx(17.81)
    assert rate_sum(checkpoint | dict(epoch=0, total_steps=3, progress=dict(batch=3))) == pytest.approx(0.03)


def test_stored_files_are_whole_and_small():
    stored = sorted((ROOT / "nbs/results").glob("inside_*.json"))
    assert stored
    for path in stored:
        assert path.stat().st_size < 400_000, path.name
        report = json.loads(path.read_text(encoding="utf-8"))
        needed = {"network", "kernels", "directions", "device", "date", "data", "command"}
        assert needed <= report.keys(), path.name
        assert str(ROOT) not in path.read_text(encoding="utf-8")
        assert unpack(report["kernels"]).shape == (96, 3, 11, 11)
