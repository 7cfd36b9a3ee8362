"How answers are computed: one picture in 32 bits, a folder as the device likes it, by OpenVINO if asked for."
import json
import sys

import pytest
import torch

from alexnet_nb.base.pictures import open_rgb
from alexnet_nb.engine import answering, predict_command
from alexnet_nb.engine.answering import fast_classifier, through_openvino
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.engine.config import prediction_options
from alexnet_nb.inference import predict, probabilities
from common import refused

CPU = ["device.use_cuda=false", "device.reuse_memory=false"]


@pytest.fixture
def openvino():
    for name in ("openvino", "onnx"):
        pytest.importorskip(name, reason=f"the package {name} is not installed: pip install it")


def options(*more: str) -> dict: return prediction_options(None, [*CPU, *more])


def weights_type(classifier) -> torch.dtype: return next(classifier.model.parameters()).dtype


def test_one_picture_in_32_bits_unless_a_precision_is_given(final, monkeypatch):
    auto = weights_type(load_classifier(final, precision="auto"))
    assert weights_type(fast_classifier(final, options())) == auto
    assert weights_type(fast_classifier(final, options(), one=True)) == torch.float32
    assert weights_type(fast_classifier(final, options("device.precision=bf16"), one=True)) == torch.bfloat16


def test_the_command_says_when_there_is_one(final, pictures, monkeypatch):
    asked, real = [], predict_command.fast_classifier
    def note(source, given, one, openvino):
        asked.append((one, openvino))
        return real(source, given, one, openvino)
    monkeypatch.setattr(predict_command, "fast_classifier", note)
    arguments = ["--checkpoint", str(final), "--set", CPU[0], "--set", CPU[1]]
    files = sorted(pictures.iterdir())
    assert predict_command.main([*arguments, "--image", str(files[0])]) == 0
    assert predict_command.main([*arguments, "--image", *map(str, files[:2])]) == 0
    assert predict_command.main([*arguments, "--image-dir", str(pictures)]) == 0
    assert asked == [(True, False), (False, False), (False, False)]


def test_predicting_builds_nothing(final, monkeypatch):
    asked = []
    monkeypatch.setattr(answering, "use_native_lrn", lambda wanted, build: asked.append((wanted, build)))
    fast_classifier(final, options())
    fast_classifier(final, options("device.native_lrn=false"))
    assert asked == [(True, False), (False, False)]


def test_openvino_gives_the_same_answers(final, pictures, openvino):
    ours = load_classifier(final, torch.device("cpu"))
    theirs = fast_classifier(final, options("device.precision=fp32"), openvino=True)
    assert theirs.classes == ours.classes and theirs.recipe == ours.recipe
    for path in sorted(pictures.iterdir()):
        for views in (1, 10):
            said = predict(theirs, open_rgb(path), views)
            assert (said - predict(ours, open_rgb(path), views)).abs().max() < 1e-4


def test_openvino_in_16_bits_and_any_number_of_pictures(final, openvino):
    ours = load_classifier(final, torch.device("cpu"))
    theirs = through_openvino(ours, half=True)
    for n in (1, 3, 2):
        x = torch.randn(n, 3, 227, 227)
        assert (probabilities(theirs, x) - probabilities(ours, x)).abs().max() < 2e-2


def test_openvino_from_the_command(final, pictures, capsys, openvino):
    arguments = ["--checkpoint", str(final), "--image-dir", str(pictures), "--json", "--set", CPU[0], "--set",
                 CPU[1], "--set", "device.precision=fp32"]
    answers = []
    for more in ([], ["--openvino"]):
        assert predict_command.main([*arguments, *more]) == 0
        answers.append([p["probabilities"] for p in json.loads(capsys.readouterr().out)])
    for ours, theirs in zip(*answers, strict=True):
        assert ours.keys() == theirs.keys() and all(abs(ours[name] - theirs[name]) < 1e-3 for name in ours)


def test_openvino_where_it_cannot_be(final, monkeypatch):
    refused(fast_classifier, final, options() | {"device": torch.device("cuda")}, False, True,
            words=("--openvino", "use_cuda=false"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    refused(fast_classifier, final, options(), False, True, words=("openvino", "pip install"))
