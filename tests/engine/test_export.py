"""An exported network says what the network says: every variant, with all weights and compact; and what
cannot be written is refused in a line, and harms no file."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb.base.errors import InputError
from alexnet_nb.base.weights import PRETRAINED, photographs, read_weights
from alexnet_nb.data import CLASSES, Recipe, paper_recipe, prepare, usual_recipe
from alexnet_nb.engine import export, files
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.engine.export import main, to_onnx
from alexnet_nb.inference import Classifier, load_pretrained, probabilities
from alexnet_nb.inspection import layer_outputs, network_layers
from alexnet_nb.lrn import LocalResponseNorm
from alexnet_nb.model import AlexNet
from common import command

SHIPPED = PRETRAINED / "cifar10.safetensors"


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="the package onnx is not installed: pip install onnx")


@pytest.fixture
def run(onnx):
    "Runs a graph on pixels; its logits and probabilities."
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    def go(whole: bytes, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        session = onnxruntime.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
        parts = [session.run(["logits", "probabilities"], {"pixels": part})
                 for part in np.array_split(pixels, 1 + len(pixels) // 50)]
        return tuple(torch.from_numpy(np.concatenate(found)) for found in zip(*parts, strict=True))
    return go


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    "The largest difference among a picture's logits, as a share of the largest; of the worst picture."
    return ((ours - theirs).abs().amax(1) / ours.abs().amax(1)).max().item()


# ---------------------------------------------------------------- every variant

VARIANTS = {
    "default": {}, "two towers": dict(towers=2), "tanh": dict(activation="tanh"),
    "LRN after pooling": dict(lrn="after_pool"), "no LRN": dict(lrn="none"),
    "alpha of the sum": dict(alpha_is="sum"), "two towers, sum, after": dict(
        towers=2, alpha_is="sum", lrn="after_pool"),
    "pooling without overlap": dict(overlapping_pooling=False), "224 pixels": dict(image_dim=224),
    "without conv3": dict(without=["conv3"]), "without conv5": dict(without=["conv5"], towers=2),
    "without all three": dict(without=["conv3", "conv4", "conv5"]),
    "dropout after": dict(dropout_place="after"),
    "three classes": dict(num_classes=3), "the paper's": dict(
        towers=2, image_dim=224, dropout_place="after", alpha_is="sum", init="paper", num_classes=7),
}


def small(**variant) -> Classifier:
    """A narrow network with random weights, biases too. What LRN sees is large: of small numbers it would
    change nothing, and a wrong one would pass."""
    torch.manual_seed(0)
    model = AlexNet(width=1 / 24, **variant).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1: torch.nn.init.kaiming_normal_(weight)
            else: weight.normal_(std=0.1)
        model.features[0].weight.mul_(30)
    classes = tuple(f"class {k}" for k in range(model.classifier[-1].out_features))
    return Classifier(model, usual_recipe(model.image_dim), classes, torch.device("cpu"), 1.7)


def answers(classifier: Classifier, pixels: np.ndarray) -> torch.Tensor:
    "PyTorch's logits for pixels of 0 to 255, normalised as the recipe has it."
    recipe = classifier.recipe
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    with torch.no_grad(): return classifier.model((torch.from_numpy(pixels) / 255 - mean) / std)


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, 3, size, size)).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_every_variant_says_the_same(variant, onnx, run):
    classifier = small(**variant)
    whole, pixels = to_onnx(classifier), noise(classifier.model.image_dim)
    onnx.checker.check_model(onnx.load_model_from_string(whole), full_check=True)
    ours = answers(classifier, pixels)
    logits, chances = run(whole, pixels)
    assert apart(ours, logits) < 1e-5
    torch.testing.assert_close(chances, (ours / 1.7).softmax(1), rtol=1e-4, atol=1e-5)


OTHERS = {"alpha": dict(alpha_is="sum"), "its place": dict(lrn="after_pool"), "its absence": dict(lrn="none"),
          "the activation": dict(activation="tanh"), "two windows": dict(towers=2)}


@pytest.mark.parametrize("variant", OTHERS.values(), ids=list(OTHERS))
def test_the_comparison_would_see_it(variant, run):
    "The graph of another network with the same weights is far off."
    classifier, other = small(), small(**variant)
    if "towers" in variant:  # its weights see half of the maps; here only the normalisation is in two halves
        other = small()
        for number in (2, 6): other.model.features[number].groups = 2
    other.model.load_state_dict(classifier.model.state_dict())
    pixels = noise(227)
    assert apart(answers(classifier, pixels), run(to_onnx(other), pixels)[0]) > 1e-3


def test_a_recipe_of_ones_own_is_in_the_graph(run):
    mean, covariance = torch.tensor([0.2, 0.4, 0.9]), torch.diag(torch.tensor([0.01, 0.2, 0.05]))
    for unit_variance in (False, True):
        recipe = paper_recipe(227, mean, covariance, unit_variance=unit_variance)
        classifier = replace(small(), recipe=recipe)
        pixels = noise(227)
        assert apart(answers(classifier, pixels), run(to_onnx(classifier), pixels)[0]) < 1e-5


def test_a_temperature_of_one_leaves_no_node(onnx):
    kinds = [[node.op_type for node in onnx.load_model_from_string(to_onnx(c)).graph.node]
             for c in (small(), replace(small(), temperature=1.0))]
    assert kinds[0][-3:] == ["Gemm", "Div", "Softmax"] and kinds[1][-2:] == ["Gemm", "Softmax"]


class Swish(torch.nn.Module):
    def forward(self, x): return x * x.sigmoid()


def test_a_foreign_layer_is_refused_by_its_name(onnx):
    classifier = small()
    classifier.model.features[9] = Swish()
    with pytest.raises(InputError, match="^features.9: a Swish has no place"): to_onnx(classifier)
    classifier = small()
    classifier.model.features[2] = LocalResponseNorm(n=4)
    with pytest.raises(InputError, match="^features.2: its window of 4"): to_onnx(classifier)


# ---------------------------------------------------------------- the network in the package

def by_pillow_alone(image: Image.Image) -> np.ndarray:
    "What a program without this library does."
    squashed = image.convert("RGB").resize((227, 227), Image.Resampling.BILINEAR)
    return np.asarray(squashed, np.float32).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    "The 200 photographs as pixels, and the shipped network's logits and probabilities for them."
    classifier, pictures = load_pretrained(), photographs()
    images = [pictures[k] for k in range(len(pictures))]
    with torch.inference_mode():
        batches = torch.stack([prepare(image, classifier.recipe) for image in images]).split(50)
        logits = torch.cat([classifier.model(batch) for batch in batches])
        chances = torch.cat([probabilities(classifier, batch) for batch in batches])
    return np.stack([by_pillow_alone(image) for image in images]), logits.clone(), chances.clone()


@pytest.mark.parametrize("options, most, size", [([], 1e-5, (233e6, 234e6)),
                                                 (["--compact"], 1e-4, (6e6, 7e6))], ids=["full", "compact"])
def test_the_shipped_network_says_the_same_of_200_photographs(options, most, size, known, run):
    assert main(["x.onnx", *options]) == 0
    whole, (pixels, ours, chances) = Path("x.onnx").read_bytes(), known
    assert len(pixels) == 200 and size[0] < len(whole) < size[1]
    logits, theirs = run(whole, pixels)
    assert apart(ours, logits) < most
    assert torch.equal(ours.argmax(1), logits.argmax(1))
    torch.testing.assert_close(theirs, chances, rtol=0, atol=1e-3)


def test_what_a_program_must_know_is_on_the_graph(onnx):
    assert main(["x.onnx", "--compact"]) == 0
    model = onnx.load("x.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    classifier = load_pretrained()
    assert tuple(json.loads(about["classes"])) == CLASSES
    assert json.loads(about["temperature"]) == classifier.temperature != 1
    recipe = json.loads(about["recipe"])
    assert Recipe(**recipe | {key: tuple(recipe[key]) for key in ("mean", "std")}) == classifier.recipe
    assert json.loads(about["model"])["width"] == 1.0 and "RGB" in about["input"]
    assert model.producer_name == "alexnet_nb" and model.producer_version
    assert [v.name for v in model.graph.input] == ["pixels"] and "255" in model.graph.input[0].doc_string
    assert [v.name for v in model.graph.output] == ["logits", "probabilities"]
    assert model.opset_import[0].version == 13


# ---------------------------------------------------------------- what the layers give

@pytest.mark.parametrize("variant", [{}, dict(towers=2, activation="tanh", without=["conv3"])],
                         ids=["default", "two towers, tanh, without conv3"])
def test_each_layer_gives_what_it_gives_in_pytorch(variant, onnx):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install it")
    classifier, pixels = small(**variant), noise(227)
    recipe, names = classifier.recipe, network_layers(classifier.model)[:-1]
    session = onnxruntime.InferenceSession(to_onnx(classifier, layers=True),
                                           providers=["CPUExecutionProvider"])
    assert [v.name for v in session.get_outputs()] == ["logits", "probabilities", *names, "fc8.weight"]
    *found, weight, logits = session.run([*names, "fc8.weight", "logits"], {"pixels": pixels})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    ours = next(layer_outputs(classifier.model, [(torch.from_numpy(pixels) / 255 - mean) / std]))
    for name, layer in zip(names, found, strict=True):
        assert apart(ours[name].flatten(1), torch.from_numpy(layer).flatten(1)) < 1e-4, name
    assert torch.equal(torch.from_numpy(weight), classifier.model.classifier[-1].weight)
    assert apart(ours["fc8"], torch.from_numpy(logits)) < 1e-5


def test_the_graph_of_the_page_is_small_and_made_twice_the_same(known, run):
    "As the site gets it: the very same answers, at most 8 MB, and the same bytes each time."
    for name in ("a.onnx", "b.onnx"): assert main([name, "--compact", "--layers"]) == 0
    whole = Path("a.onnx").read_bytes()
    assert whole == Path("b.onnx").read_bytes() and len(whole) < 8e6
    pixels, ours, chances = known
    logits, theirs = run(whole, pixels[:50])
    assert torch.equal(ours[:50].argmax(1), logits.argmax(1))
    torch.testing.assert_close(theirs, chances[:50], rtol=0, atol=1e-4)


# ---------------------------------------------------------------- files of weights

def same_weights(a: Classifier, b: Classifier) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_all_weights_out_and_in_again():
    assert main(["x.safetensors"]) == 0
    before, after = load_pretrained(), load_pretrained("x.safetensors")
    assert same_weights(before, after) and 233e6 < Path("x.safetensors").stat().st_size < 234e6
    assert (after.recipe, after.classes, after.temperature) == (before.recipe, before.classes,
                                                                before.temperature)
    assert read_weights("x.safetensors")[1]["data"] == read_weights(SHIPPED)[1]["data"]


def test_a_compact_file_is_the_shipped_one_again():
    assert main(["x.safetensors", "--compact"]) == 0
    (parts, card), (ours, ours_card) = (read_weights(p, unpack=False) for p in ("x.safetensors", SHIPPED))
    assert card == ours_card and parts.keys() == ours.keys()
    assert all(torch.equal(parts[name], ours[name]) for name in ours)
    assert [parts[name].dtype for name in ours] == [ours[name].dtype for name in ours]


def test_a_checkpoint_by_way_of_safetensors(final, run):
    "And both graphs of it are the same."
    assert main(["x.safetensors", "--checkpoint", str(final)]) == 0
    before, after = load_classifier(final, torch.device("cpu")), load_pretrained("x.safetensors")
    assert same_weights(before, after)
    assert (after.recipe, after.classes, after.temperature) == (before.recipe, before.classes, 1.0)
    for name, source in (("a.onnx", str(final)), ("b.onnx", "x.safetensors")):
        assert main([name, "--checkpoint", source]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    pixels = noise(227)
    assert apart(answers(before, pixels), run(Path("a.onnx").read_bytes(), pixels)[0]) < 1e-5


# ---------------------------------------------------------------- what cannot be written

def one_line(capsys, *argv: str) -> str:
    "What a refused command says."
    assert main([*map(str, argv)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("alexnet_export: ")
    return said.err


def test_a_file_that_is_there_stays(capsys, final):
    Path("x.safetensors").write_text("precious")
    assert "--force" in one_line(capsys, "x.safetensors", "--checkpoint", final)
    assert Path("x.safetensors").read_text() == "precious"
    assert main(["x.safetensors", "--checkpoint", str(final), "--force"]) == 0
    assert same_weights(load_pretrained("x.safetensors"), load_classifier(final, torch.device("cpu")))


def test_bad_input_is_one_line(capsys, final, tmp_path):
    Path("folder.safetensors").mkdir()
    Path("broken.pkl").write_bytes(b"nothing")
    Path("broken.safetensors").write_bytes(SHIPPED.read_bytes()[:-1])
    for words, *argv in (
            ("must end in", "x.pt"), ("must end in", "x"), ("is a folder", "folder.safetensors"),
            ("no such", "x.safetensors", "--checkpoint", "none.pkl"),
            ("no such", "x.safetensors", "--checkpoint", "none.safetensors"),
            ("broken.pkl", "x.safetensors", "--checkpoint", "broken.pkl"),
            ("damaged", "x.safetensors", "--checkpoint", "broken.safetensors"),
            ("has no graph", "x.safetensors", "--layers"),
            ("no narrow matrices", "x.safetensors", "--compact", "--checkpoint", final),
            ("cannot be written to", "broken.pkl/x.safetensors")):
        assert words in one_line(capsys, *argv), argv
    assert {path.name for path in tmp_path.iterdir()} == {"folder.safetensors", "broken.pkl",
                                                          "broken.safetensors"}


def test_weights_that_are_not_numbers_are_refused(capsys, final):
    checkpoint = torch.load(final, weights_only=True)
    checkpoint["model"]["features.4.weight"][0, 0, 0, 0] = torch.nan
    torch.save(checkpoint, "spoilt.pkl")
    assert "not finite" in one_line(capsys, "x.safetensors", "--checkpoint", "spoilt.pkl")


def test_without_onnx_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    assert "pip install onnx" in one_line(capsys, "x.onnx") and not Path("x.onnx").exists()
    assert main(["x.safetensors", "--compact"]) == 0


def test_a_write_that_fails_leaves_the_old_file(capsys, monkeypatch):
    Path("x.safetensors").write_text("precious")
    def full(*args): raise OSError(28, "No space left on device")
    for module, name in ((export, "write_weights"), (files.os, "replace")):
        with monkeypatch.context() as m:
            m.setattr(module, name, full)
            assert main(["x.safetensors", "--compact", "--force"]) == 1
        assert "No space left" in capsys.readouterr().err
        assert Path("x.safetensors").read_text() == "precious" and len(list(Path().iterdir())) == 1


def test_as_a_process_of_its_own(final, tmp_path):
    run = command("engine.export", "x.safetensors", "--checkpoint", final, cwd=tmp_path)
    assert run.returncode == 0 and run.stderr == "" and run.stdout.startswith("x.safetensors: ")
    run = command("engine.export", "x.pt", cwd=tmp_path)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    run = command("engine.export", "--help", cwd=tmp_path)
    assert run.returncode == 0 and "--compact" in run.stdout


def test_a_network_in_16_bits_is_written_in_32(onnx):
    classifier = load_classifier("cifar10", torch.device("cpu"), precision="bf16")
    model = onnx.load_from_string(to_onnx(classifier))
    assert {tensor.data_type for tensor in model.graph.initializer} <= {onnx.TensorProto.FLOAT,
                                                                       onnx.TensorProto.INT64}


@pytest.mark.parametrize("layer, says", [
    (dict(padding=2), None), (dict(padding=2, bias=False), None),
    (dict(padding=2, padding_mode="reflect"), "features.4: padding_mode 'reflect'"),
    (dict(padding="same"), "features.4: give its padding as a number"),
    (dict(padding=4, dilation=2), "features.4: dilation (2, 2)")], ids=str)
def test_a_convolution_of_ones_own_says_the_same_or_is_refused(layer, says, run):
    "None may become another one in the graph without a word."
    classifier = small()
    old = classifier.model.features[4]
    classifier.model.features[4] = torch.nn.Conv2d(old.in_channels, old.out_channels, 5, **layer)
    if says:
        with pytest.raises(InputError) as e: to_onnx(classifier)
        assert str(e.value).startswith(says)
    else:
        pixels = noise(227)
        assert apart(answers(classifier, pixels), run(to_onnx(classifier), pixels)[0]) < 1e-5


def test_a_pooling_of_ones_own_says_the_same_or_is_refused(run):
    classifier, pixels = small(), noise(227)
    classifier.model.features[3] = torch.nn.MaxPool2d((3, 3), (2, 2))
    assert apart(answers(classifier, pixels), run(to_onnx(classifier), pixels)[0]) < 1e-5
    classifier.model.features[3] = torch.nn.MaxPool2d(3, 2, padding=1)
    with pytest.raises(InputError, match="features.3: padding 1 has no place"): to_onnx(classifier)
