"New classes on the features of a network that knows others; and what was measured of it."
from dataclasses import replace

import numpy as np
import pytest
import torch

from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import Images
from alexnet_nb.base.results import read_results
from alexnet_nb.data import prepare, usual_recipe
from alexnet_nb.inference import Classifier, predict
from alexnet_nb.model import AlexNet
from alexnet_nb.transfer import fc6_features, learn_classes

VARIANTS = [{}, dict(towers=2, dropout_place="after"), dict(activation="tanh", lrn="none"),
            dict(image_dim=224)]


def narrow(seed: int = 0, **variant) -> Classifier:
    "An untrained network a twentieth as wide; its sizes do not matter to what is tested here."
    torch.manual_seed(seed)
    model = AlexNet(width=0.05, **variant).eval()
    return Classifier(model, usual_recipe(model.image_dim), tuple("abcdefghij"), torch.device("cpu"))


def two_classes(n: int = 12) -> Images:
    "Drawings in turn; what they show does not matter."
    return replace(drawings(n, 3), labels=np.arange(n) % 2, classes=("odd", "even"))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_an_ordinary_network_comes_out(variant):
    "Its outputs are those of its last layer on the features: fc7 changes nothing. The old one is untouched."
    known, images = narrow(**variant), two_classes()
    before = {name: w.clone() for name, w in known.model.state_dict().items()}
    taught = learn_classes(known, images, epochs=3)
    after, last = taught.model.state_dict(), taught.model.classifier[-1]
    assert all(torch.equal(w, known.model.state_dict()[name]) for name, w in before.items())
    assert (taught.classes, taught.recipe) == (("odd", "even"), known.recipe) and not taught.model.training
    assert {name: w.shape for name, w in after.items() if "classifier.6" not in name} == {
        name: w.shape for name, w in before.items() if "classifier.6" not in name}
    x = torch.stack([prepare(images[i], known.recipe) for i in range(3)])
    with torch.inference_mode():
        expected = last(fc6_features(known, images.take(range(3))))
        torch.testing.assert_close(taught.model(x), expected, atol=1e-4, rtol=1e-4)
    assert predict(taught, images[0]).sum().item() == pytest.approx(1)


def test_features_do_not_depend_on_their_batch():
    known, images = narrow(), two_classes(35)
    together = fc6_features(known, images)
    alone = torch.cat([fc6_features(known, images.take([i])) for i in (0, 31, 32, 34)])
    torch.testing.assert_close(together[[0, 31, 32, 34]], alone, atol=1e-5, rtol=1e-4)
    mirrored = replace(images, items=np.ascontiguousarray(images.items[:, :, ::-1]))
    torch.testing.assert_close(fc6_features(known, mirrored), fc6_features(known, images, mirrored=True),
                               atol=1e-3, rtol=1e-2)


def test_features_can_be_learnt_from_in_a_loop_of_ones_own():
    known, images = narrow(), two_classes(4)
    features = fc6_features(known, images)
    assert features.shape == (4, known.model.classifier[1].out_features) and not features.is_inference()
    torch.nn.Linear(features.shape[1], 2)(features).sum().backward()


def test_it_learns_what_can_be_learnt():
    "Two kinds of drawings that nobody could confuse, and a network that nobody taught."
    every = drawings(200, 5)
    kinds = [i for i, k in enumerate(every.labels) if every.classes[k] in ("ship", "frog")]
    images = every.take(kinds)
    images = replace(images, labels=(images.labels == images.labels[0]).astype(int), classes=("one", "other"))
    taught = learn_classes(narrow(), images.take(range(20)))
    right = [int(predict(taught, images[i]).argmax()) == images.labels[i] for i in range(20, 40)]
    assert np.mean(right) > 0.8


def test_the_seed_alone_decides():
    known, images = narrow(), two_classes()
    state = torch.get_rng_state()
    a, b, c = (learn_classes(known, images, epochs=2, seed=s).model.classifier[-1].weight for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are used up


@pytest.mark.parametrize("images, words", [
    (replace(two_classes(), classes=("odd",), labels=np.zeros(12, int)), "only one class"),
    (replace(two_classes(), classes=("odd", "even", "prime")), "the class 'prime' has no picture"),
    (two_classes().take([]), "has no picture")], ids=["one class", "a class without pictures", "no pictures"])
def test_what_cannot_be_learnt_is_refused(images, words):
    with pytest.raises(InputError, match=words): learn_classes(narrow(), images)


def test_no_pictures_have_no_features():
    with pytest.raises(InputError, match="no pictures"): fc6_features(narrow(), two_classes().take([]))


def test_what_was_measured():
    "Three seeds each, and what the page says of them."
    stored = read_results("transfer")
    assert stored["seeds"] == [0, 1, 2] and {"date", "device", "versions", "packages"} <= stored.keys()
    for one in stored["sets"].values():
        assert min(one["classes"].values()) >= 15 and one["unseen"] >= 20
        for sizes in one["accuracy"].values():
            assert all(len(scores) == 3 and all(0 <= s <= 1 for s in scores) for scores in sizes.values())
        for size in one["accuracy"]["pixels"]:
            mean = {way: np.mean(sizes[size]) for way, sizes in one["accuracy"].items()}
            assert mean["trained fc6"] > max(mean["random fc6"], mean["pixels"], mean["trained fc8"])
            taught, anew = (one["accuracy"][way][size] for way in ("trained fc6", "from scratch"))
            assert all(a > b for a, b in zip(taught, anew, strict=True)), "with every seed"


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_network_in_training_mode_has_the_same_features(place):
    known, images = narrow(dropout_place=place), two_classes(4)
    still = fc6_features(known, images)
    known.model.train()
    assert torch.equal(fc6_features(known, images), still) and known.model.training
