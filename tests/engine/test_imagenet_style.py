"""As on ImageNet: a thousand classes in folders of pictures of all sizes and shapes, crops of 227 out of 256,
ten views, top-1 and top-5."""
import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb import data, inference, train
from alexnet_nb.base import pictures as base_pictures
from alexnet_nb.base import plots as base_plots
from alexnet_nb.base.errors import InputError
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.checkpoint import build_model, load_classifier, read_checkpoint, stored_classes
from alexnet_nb.model import AlexNet
from common import differences, load, settings, tiny

CLASSES = tuple(f"n{k:08}" for k in range(1000))
SHAPES = [(40, 30), (30, 40), (64, 64), (17, 90), (300, 20), (5, 5), (1, 1), (257, 256)]   # width, height


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    "train/ and test/ with a thousand class folders of one to three pictures each."
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    bodies = []
    for k in range(40):
        w, h = SHAPES[k % len(SHAPES)]
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).convert("L" if k % 7 == 0
            else "RGB").save(out := io.BytesIO(), "JPEG", quality=60)
        bodies.append(out.getvalue())
    for part, some in (("train", (1, 4)), ("test", (1, 2))):
        for c, name in enumerate(CLASSES):
            (folder := root / part / name).mkdir(parents=True)
            for k in range(int(rng.integers(*some))):
                (folder / f"{name}_{k}.JPEG").write_bytes(bodies[(7 * c + k) % 40])
    return root


def thousand(tree: Path, out: Path, **changes) -> list[str]:
    "A few steps of the paper's recipe, tiny."
    return tiny(out, **dict(model__num_classes=1000, data__dataset="ImageFolder", data__data_dir=str(tree),
                            data__recipe="paper", data__train_images=32, data__val_images=20,
                            data__test_images=40, training__num_epochs=1) | changes)


@pytest.fixture(scope="module")
def trained_on_it(tree, tmp_path_factory) -> Path:
    "The folder of a finished run, TensorBoard's pictures included."
    out = tmp_path_factory.mktemp("out")
    assert train.main(thousand(tree, out)) == 0
    return out


@pytest.fixture(scope="module")
def final(trained_on_it) -> Path: return trained_on_it / "models" / "alexnet_final.pkl"


def test_folders(tree):
    images = base_pictures.read_folder(tree / "train")
    assert images.classes == CLASSES and 1000 < len(images) < 3000
    assert (set(np.bincount(images.labels)) == {1, 2, 3}
            and {images[k].size for k in range(300)} == set(SHAPES))
    fit, held = data.split(images.labels, 200, seed=0)
    assert len(held) == 200 and len(fit) + len(held) == len(images)


def test_training(trained_on_it, tree):
    result = json.loads((trained_on_it / "results.json").read_text())
    saved = load(trained_on_it / "models" / "alexnet_final.pkl")
    assert result["finished"] and result["total_steps"] == 4 and result["test_images"] == 40
    assert np.log(1000) * .9 < result["steps"][0]["loss"] < np.log(1000) * 1.2
    assert 0 <= result["test_accuracy"] <= result["test_accuracy_top5"] <= 1
    assert (tuple(saved["classes"]) == CLASSES and saved["recipe"]["short_side"] == 256
            and saved["recipe"]["size"] == 227)
    assert (saved["model"]["classifier.6.bias"].shape == (1000,)
            and np.array(result["confusion"]).shape == (1000, 1000))


def test_resume(trained_on_it, tree, tmp_path, no_panels):
    "Stopped in the middle and gone on with: the same weights."
    from alexnet_nb.engine.config import load_config
    argv = thousand(tree, tmp_path, training__num_epochs=1)
    engine_train_command.fit(load_config(None, [a for a in argv if a != "--set"]), max_steps=2)
    assert train.main(["--resume", str(tmp_path / "models" / "alexnet_last.pkl"), *argv]) == 0
    a, b = (load(out / "models" / "alexnet_final.pkl") for out in (tmp_path, trained_on_it))
    assert differences(a["model"], b["model"]) == []


def test_top_k_is_counted_right():
    "Against a count by hand, for 1,000 classes and for fewer classes than k."
    for classes in (1000, 7, 3, 2):
        torch.manual_seed(classes)
        p, labels = torch.randn(50, classes).softmax(1), torch.arange(50) % classes
        result = train.Evaluation(0., 0., p, labels, torch.arange(50))
        for k in (1, 5):
            by_hand = np.mean([int(label in np.argsort(-row)[:k])
                               for row, label in zip(p.numpy(), labels.tolist(), strict=True)])
            assert result.accuracy_at(k) == pytest.approx(by_hand)
        assert classes > 5 or result.accuracy_at(5) == 1


def test_top_five_is_only_told_where_it_means_something(tmp_path):
    for classes, there in ((3, False), (6, True)):
        root = tmp_path / str(classes)
        for part in ("train", "test"):
            for c in range(classes):
                (root / part / f"c{c}").mkdir(parents=True)
                for k in range(4):
                    Image.new("RGB", (9 + c, 9 + k),
                              (40 * c, 0, 60 * k)).save(root / part / f"c{c}" / f"{k}.png")
        out = root / "out"
        with pytest.MonkeyPatch.context() as m:
            m.setattr(engine_run, "write_panels", lambda *args: None)
            assert train.main(tiny(out, data__dataset="ImageFolder", data__data_dir=str(root),
                                   model__num_classes=classes, data__train_images=None,
                                   data__test_images=None,
                                   data__val_images=4, training__num_epochs=1)) == 0
        assert ("test_accuracy_top5" in json.loads((out / "results.json").read_text())) == there


def test_crops_of_227_out_of_256(tree):
    "Any shape: the short side becomes 256, the crop lies inside, and chance moves it."
    recipe = data.paper_recipe(227, *data.colour_statistics(base_pictures.read_folder(tree / "train"), 50))
    for size in SHAPES:
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        height, width = data._resized(*size[::-1], recipe)
        assert min(height, width) == 256
        crops = [data.prepare(image, recipe, data.augmentation(0, 0, k)) for k in range(3)]
        assert all(crop.shape == (3, 227, 227) and crop.isfinite().all() for crop in crops)
        assert size == (1, 1) or not torch.equal(crops[0], crops[1])
        assert inference.ten_views(image, recipe).shape == (10, 3, 227, 227)


def lines(capsys, argv) -> list[str]:
    capsys.readouterr()
    plain = ["--set", "device.use_cuda=false", "--set", "device.precision=fp32"]
    assert inference.main([*map(str, argv), *plain]) == 0
    return capsys.readouterr().out.splitlines()


def test_prediction_for_people(tree, final, capsys):
    "One line, the five best, or all thousand; the same numbers in each."
    picture = tree / "test" / CLASSES[2] / f"{CLASSES[2]}_0.JPEG"
    base = ["--checkpoint", final, "--image", picture, "--ten-views"]
    one, five, every = (lines(capsys, [*base, *how]) for how in ([], ["--top", "5"], ["--show-all-probs"]))
    assert len(one) == 1 and len(five) == 6 and len(every) == 1001
    assert (one == five[:1] == every[:1]
            and [line.split() for line in five] == [line.split() for line in every[:6]])
    shares = [float(line.split()[-1].rstrip("%")) for line in every[1:]]
    assert (shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=.06)
            and {line.split()[0] for line in every[1:]} == set(CLASSES))
    assert lines(capsys, [*base, "--top", "5000"]) == every


def test_top_needs_a_number(capsys):
    for value in ("0", "-1", "five", "1.5", "\u00b2", "00"):
        with pytest.raises(SystemExit) as e:
            inference.main(["--checkpoint", "a", "--image", "b", f"--top={value}"])
        assert e.value.code == 2 and f"{value} is not a whole number above 0" in capsys.readouterr().err
    # more than Python turns into a number at once
    assert inference.main(["--checkpoint", "a", "--image", "b", "--top", "9" * 5000]) == 2
    assert capsys.readouterr().err == "alexnet_predict: b: no such file; check the path\n"
    with pytest.raises(SystemExit):
        inference.main(["--checkpoint", "a", "--image", "b", "--top", "3", "--show-all-probs"])


def test_prediction_for_programs(tree, final, capsys, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(8):
        (folder / f"{k}.jpg").write_bytes(next((tree / "test" / CLASSES[k]).iterdir()).read_bytes())
    argv = ["--checkpoint", final, "--image-dir", folder, "--ten-views"]
    rows = json.loads("\n".join(lines(capsys, [*argv, "--json"])))
    table = list(csv.DictReader(lines(capsys, [*argv, "--csv"])))
    assert (len(rows) == len(table) == 8 and all(len(row["probabilities"]) == 1000 for row in rows)
            and len(table[0]) == 1004)
    classifier = load_classifier(final, torch.device("cpu"), precision="fp32")
    for row, other in zip(rows, table, strict=True):
        p, said = inference.predict(classifier, base_pictures.open_rgb(row["path"]), 10), row["probabilities"]
        assert row["prediction"] == other["prediction"] == max(said, key=said.get)
        for given in (said, other):
            numbers = torch.tensor([float(given[name]) for name in CLASSES])
            torch.testing.assert_close(numbers, p, rtol=1e-3, atol=1e-6)


def test_checkpoint_of_somebody_else(tmp_path):
    "Six keys, names with `module.`, a thousand outputs: the classes are numbers."
    torch.manual_seed(0)
    state = AlexNet(num_classes=1000, width=1 / 24).state_dict()
    torch.save(dict(model={f"module.{name}": w for name, w in state.items()}, epoch=1, total_steps=1,
                    optimizer={}, scheduler={}, seed=0), tmp_path / "theirs.pkl")
    checkpoint = read_checkpoint(tmp_path / "theirs.pkl")
    assert stored_classes(checkpoint) == tuple(map(str, range(1000)))
    assert build_model(checkpoint)(torch.zeros(1, 3, 227, 227)).shape == (1, 1000)
    classifier = load_classifier(tmp_path / "theirs.pkl", torch.device("cpu"))
    assert (inference.predict(classifier, Image.new("RGB", (50, 40))).shape == (1000,)
            and classifier.recipe == data.usual_recipe())


def test_what_is_refused_is_refused_in_a_short_line(tree, final, tmp_path, capsys):
    "A thousand names are not listed."
    assert train.main(thousand(tree, tmp_path / "out", model__num_classes=10)) == 2
    assert capsys.readouterr().err == (
        f"alexnet_train: {tree}: has 1000 classes, model.num_classes is 10; make them agree\n")
    for folder in (tmp_path / "one" / "a", tmp_path / "one" / "b"): folder.mkdir(parents=True)
    with pytest.raises(InputError) as e: base_pictures.read_folder(tmp_path / "one", CLASSES)
    assert str(e.value) == (f"{tmp_path / 'one'}: has no folder for the class 'n00000000'; "
                            f"it needs {', '.join(CLASSES[:10])} and 990 more")
    picture = next((tree / "test" / CLASSES[0]).iterdir())
    assert inference.main(["--checkpoint", str(final), "--image", str(picture),
                           *settings({"model.num_classes": 10, "device.use_cuda": False})]) == 2
    assert capsys.readouterr().err == (
        "alexnet_predict: --set: model.num_classes is 10, but the checkpoint has 1000 classes; "
        "make them agree or leave it out\n")


def test_a_matrix_of_a_thousand_classes_is_drawn_without_their_names():
    figure = base_plots.matrix_figure(torch.eye(1000, dtype=torch.int64), CLASSES)
    figure.canvas.draw()
    assert len(figure.axes[0].get_xticklabels()) < 30
    names = base_plots.matrix_figure(torch.eye(10, dtype=torch.int64),
                                     base_pictures.CLASSES).axes[0].get_yticklabels()
    assert [label.get_text() for label in names] == list(base_pictures.CLASSES)


@pytest.mark.parametrize("classes", [2, 7, 1000])
@pytest.mark.parametrize("image_dim", [227, 224])
def test_network_of_any_number_of_classes(classes, image_dim):
    net = AlexNet(num_classes=classes, image_dim=image_dim, width=1 / 24).eval()
    with torch.inference_mode(): assert net(torch.zeros(2, 3, image_dim, image_dim)).shape == (2, classes)
    assert asdict(data.usual_recipe(image_dim))["size"] == image_dim
