"A checkpoint becomes a small file that says nearly the same, and its recipe can be written anew."
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from alexnet_nb.base.results import read_results
from alexnet_nb.base.weights import read_weights
from alexnet_nb.data import drawings
from alexnet_nb.engine.compress import (
    fit_temperature,
    logits_of,
    low_rank,
    main,
    narrow_head,
    teach,
    to_bytes,
)
from alexnet_nb.engine.predict_command import predict_files
from alexnet_nb.inference import load_pretrained, predict
from alexnet_nb.model import AlexNet
from common import class_folders


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A narrow network, the file that the command made of it, and what it measured."
    folder = tmp_path_factory.mktemp("compress")
    class_folders(folder / "data")
    torch.manual_seed(0)
    model = AlexNet(width=0.05)
    torch.save({"model": model.state_dict(), "config": {"model": {"width": 0.05}}, "seed": 7, "epoch": 3},
               folder / "network.pkl")
    out, results = folder / "small.safetensors", folder / "results.json"
    arguments = ["--checkpoint", folder / "network.pkl", "--data-dir", folder / "data", "--out", out,
                 "--rank", 150, "--epochs", 1, "--val-images", 10, "--results", results,
                 "--data-name", "drawings"]
    assert main([*map(str, arguments)]) == 0
    return model.eval(), out, json.loads(results.read_text(encoding="utf-8"))


def test_the_command_makes_a_file_that_says_the_same(made):
    model, out, results = made
    small = load_pretrained(out)
    assert small.recipe.first_to == 32 and small.model.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert small.model.state_dict()[name].shape == weight.shape
        if name.startswith("features"):
            step = weight.abs().max().item() / 250
            assert torch.allclose(small.model.state_dict()[name], weight, atol=step)
    assert results["bytes"] == out.stat().st_size and results["rank"] == 150 and results["seed"] == 7
    assert 0 <= results["accuracy"] <= 1 and results["test_images"] == 20
    assert read_weights(out)[1]["epochs"] == 3 and read_weights(out)[1]["data"] == "drawings"


def test_the_recipe_is_written_anew_and_nothing_else_changes(made, capsys):
    _, out, _ = made
    before, card = read_weights(out, unpack=False)
    picture, large = drawings(1)[0], drawings(1)[0].resize((500, 300))
    small_said, large_said = (predict(load_pretrained(out), each) for each in (picture, large))
    assert main(["--out", str(out), "--first-to", "0"]) == 0
    after, about = read_weights(out, unpack=False)
    assert about == card | {"recipe": card["recipe"] | {"first_to": None}}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(predict(load_pretrained(out), picture), small_said)
    assert not torch.equal(predict(load_pretrained(out), large), large_said)
    assert main(["--out", str(out), "--first-to", "228"]) == 2
    assert read_weights(out)[1] == about and "first_to is 228" in capsys.readouterr().err
    assert main(["--out", str(out)]) == 0
    assert torch.equal(predict(load_pretrained(out), large), large_said)


@pytest.mark.parametrize("views", [1, 10])
def test_pictures_of_every_size_go_the_same_way_in_a_folder(made, tmp_path, views):
    classifier = load_pretrained(made[1])
    assert classifier.recipe.first_to == 32
    sizes = [(32, 32), (100, 100), (100, 100), (400, 300), (20, 50), (31, 400), (1000, 64)]
    for k, size in enumerate(sizes): drawings(7)[k].resize(size).save(tmp_path / f"{k}.png")
    found = list(predict_files(classifier, sorted(tmp_path.iterdir()), views))
    for k, answer in enumerate(found):
        alone = predict(classifier, Image.open(tmp_path / f"{k}.png").convert("RGB"), views)
        torch.testing.assert_close(torch.tensor(answer.probabilities), alone, rtol=1e-4, atol=1e-5)
    assert len(found) == len(sizes)


@pytest.mark.parametrize("arguments, word", [
    (["--out", "none.safetensors"], "no such file"), (["--out", "x", "--checkpoint", "y"], "--data-dir"),
    (["--out", "x", "--checkpoint", "none.pkl", "--data-dir", "."], "no such checkpoint"),
    (["--out", "x", "--checkpoint", "y", "--data-dir", ".", "--rank", "0"], "--rank")])
def test_a_mistake_is_one_line(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_cut_is_the_nearest_of_its_rank():
    torch.manual_seed(0)
    weight = torch.randn(40, 60) @ torch.diag(torch.linspace(1, 0.1, 60) ** 4)
    left, right = low_rank(weight, 5)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close((weight - left @ right).norm(), values[5:].norm(), rtol=1e-4, atol=0)
    whole, scale = to_bytes(weight)
    assert whole.dtype == torch.int8 and whole.abs().max() == 127
    assert ((whole * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    assert not to_bytes(torch.zeros(2, 3))[0].any()


def test_teaching_brings_answers_nearer_to_the_teacher():
    torch.manual_seed(0)
    wide = AlexNet(width=0.05).eval().classifier
    for layer in (wide[1], wide[4]): layer.weight.data *= 5
    features = torch.randn(400, wide[1].in_features).relu()
    teacher, head = logits_of(wide, features), narrow_head(wide, 20)
    def apart():
        return F.kl_div(logits_of(head, features).log_softmax(1), teacher.softmax(1), reduction="sum")
    before = apart()
    teach(head, features.half(), teacher, epochs=10, learning_rate=1e-3)
    assert apart() < 0.7 * before
    full = narrow_head(wide, wide[4].out_features)
    torch.testing.assert_close(logits_of(full, features), teacher, rtol=1e-3, atol=1e-3)


def test_a_narrow_head_has_the_activation_of_the_wide_one():
    torch.manual_seed(0)
    wide = AlexNet(width=0.02, activation="tanh").eval().classifier
    for layer in (wide[1], wide[4]): layer.weight.data *= 30
    features = torch.randn(20, wide[1].in_features)
    narrow = narrow_head(wide, wide[4].out_features)
    torch.testing.assert_close(logits_of(narrow, features), logits_of(wide, features), rtol=1e-3, atol=1e-3)


def test_the_temperature_of_honest_probabilities_is_one():
    torch.manual_seed(0)
    logits = torch.randn(5000, 10) * 2
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert abs(fit_temperature(logits, labels) - 1) < 0.1 < abs(fit_temperature(logits * 2, labels) - 1)


def test_what_was_measured_holds_together():
    found = read_results("compress")
    assert found
    assert found["full_accuracy"] - found["accuracy"] <= 0.005 and found["same_class"] >= 0.98
    assert np.isclose(np.mean([*found["per_class"].values()]), found["accuracy"], atol=1e-4)
    for layer in ("fc6", "fc7"):
        for name in ("first", "trained", "added"):
            values = found["spectra"][name][layer]
            assert values == sorted(values, reverse=True) and len(values) == len(found["spectra"]["numbers"])
    assert [row["rank"] for row in found["ranks"]["rows"]] == [4, 8, 16, 32, 64]


def test_whoever_draws_numbers_gets_their_own():
    "The method's random directions are drawn from a generator of its own."
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        low_rank(torch.randn(20, 20), 2)
        drawn.append(torch.rand(1).item())
    assert drawn[0] != drawn[1]


def test_logits_of_leaves_the_mode_as_it_was():
    head = AlexNet(width=0.02).classifier
    features = torch.randn(3, head[1].in_features)
    assert torch.equal(logits_of(head, features), logits_of(head, features)) and head.training
    assert all(layer.training for layer in head)
