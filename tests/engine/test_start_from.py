"A run that begins with another network's weights: what is taken over, what is frozen, what is refused."
import json
import subprocess
import sys

import pytest
import torch

from alexnet_nb import inference, train
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine.checkpoint import load_classifier, read_checkpoint
from alexnet_nb.engine.config import given_values, make_config, merge
from alexnet_nb.inference import load_pretrained
from common import STEPS, class_folders, differences, lines, load, settings, tiny

CONVOLUTIONS = {f"features.{i}.{kind}" for i in (0, 4, 8, 10, 12) for kind in ("weight", "bias")}
LAST = {"classifier.6.weight", "classifier.6.bias"}
WASPS = ("ant", "bee", "wasp")


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    "Three class folders of ten drawings each, without train/ and test/."
    root, pictures = tmp_path_factory.mktemp("insects"), drawings(100, 5)
    for c, name in enumerate(WASPS):
        (root / name).mkdir()
        for i in range(10): pictures[10 * i + c].save(root / name / f"{i}.png")
    return root


def of_insects(out, insects, **changes) -> list[str]:
    "The arguments of a tiny run on them; the width is left to the network that it begins with."
    own = dict(model__width=None, model__num_classes=3, data__dataset="ImageFolder",
               data__data_dir=str(insects), data__train_images=None, data__val_images=3,
               data__test_images=3, training__num_epochs=1)
    return tiny(out, **own | changes)


def weights(path) -> dict: return load(path)["model"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, final, insects):
    "A run that began with the tiny network of `final`, its convolutions frozen."
    out = tmp_path_factory.mktemp("tuned")
    argv = of_insects(out, insects, training__freeze="features")
    assert train.main(["--start-from", str(final), *argv]) == 0
    return out / "models" / "alexnet_final.pkl"


def test_new_classes_from_a_checkpoint(tuned, final, insects, capsys):
    "An ordinary checkpoint with names of its own; frozen layers come out bit for bit, the others learn."
    before, after = weights(final), load(tuned)
    assert after["classes"] == list(WASPS) and (after["epoch"], after["total_steps"]) == (1, 3)
    assert after["model"].keys() == before.keys()
    same = {name for name in before if before[name].shape == after["model"][name].shape
            and torch.equal(before[name], after["model"][name])}
    assert same == CONVOLUTIONS
    assert after["config"]["model"]["width"] == load(final)["config"]["model"]["width"]
    picture = next((insects / "bee").iterdir())
    assert inference.main(["--checkpoint", str(tuned), "--image", str(picture), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == {*WASPS}


def test_what_is_frozen_is_not_in_the_optimizer(tuned, final):
    "No momentum, no place in the checkpoint; six parameters learn."
    optimizer = load(tuned)["optimizer"]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [3, 3]
    assert len(optimizer["state"]) == 6


@pytest.mark.parametrize("frozen, learning", [("none", 16), ("features", 6), ("all_but_last", 2)])
def test_what_may_be_frozen(frozen, learning, final, tmp_path):
    given = given_values(None, tiny(tmp_path, model__width=None, training__freeze=frozen)[1::2])
    cfg, begin = engine_setup.starting_point(str(final), given)
    run = engine_setup.start(cfg, begin=begin)
    free = [name for name, p in run.model.named_parameters() if p.requires_grad]
    assert len(free) == learning == sum(len(group["params"]) for group in run.optimizer.param_groups)
    assert differences(dict(run.model.state_dict()), dict(begin.weights)) == []  # the classes are the same
    x, y, *_ = next(iter(run.train))
    train.train_step(run.net, x, y, run.optimizer)
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(p, begin.weights[name])}
    assert moved == {*free}


def test_it_says_what_it_takes_over(tmp_path, final, insects, no_panels, capsys):
    assert train.main(["--start-from", str(final), *of_insects(tmp_path / "new", insects)]) == 0
    out = capsys.readouterr().out
    assert f"starts from {final}: all layers but fc8; " in out
    assert "pictures are prepared as it was taught; frozen: none\n" in out
    assert f"{insects}: has no test/ folder; by seed 7, 24 images to train on, 3 for validation, " \
           "3 for the test\n" in out
    argv = ["--start-from", str(final), *tiny(tmp_path / "same", model__width=None, data__recipe="paper",
                                              training__num_epochs=1)]
    assert train.main(argv) == 0
    out = capsys.readouterr().out
    assert "all layers, fc8 too, for the classes are the same; pictures are prepared as the config" in out
    results = json.loads((tmp_path / "same" / "results.json").read_text())
    assert results["chosen"]["started_from"] == str(final)


def test_the_same_classes_begin_where_the_network_was(tmp_path, final, no_panels):
    "With a rate of next to nothing the new run says what the old one said."
    argv = tiny(tmp_path, model__width=None, training__learning_rate=1e-12, training__num_epochs=1)
    assert train.main(["--start-from", str(final), *argv]) == 0
    a, b = weights(final), weights(tmp_path / "models" / "alexnet_final.pkl")
    assert all(torch.allclose(a[name], b[name], atol=1e-9) for name in a)


def test_going_on_with_such_a_run_is_exact(tmp_path, final, insects, no_panels):
    "Resumed in the middle of an epoch, of folders that are divided anew."
    more = dict(training__freeze="features", training__num_epochs=2, training__checkpoint_minutes=1e-9)
    start = ["--start-from", str(final)]
    assert train.main([*start, *of_insects(tmp_path / "straight", insects, **more)]) == 0
    assert train.main([*start, *of_insects(tmp_path / "cut", insects, **more), "--minutes", "1e-9"]) == 0
    last = tmp_path / "cut" / "models" / "alexnet_last.pkl"
    assert load(last)["total_steps"] == 1
    assert train.main(["--resume", str(last)]) == 0
    a, b = (load(tmp_path / which / "models" / "alexnet_final.pkl") for which in ("straight", "cut"))
    assert differences(a, b, but=("progress.seconds", "config.paths")) == []
    assert lines(tmp_path / "straight") == lines(tmp_path / "cut")


def test_two_processes_share_a_frozen_network(tmp_path, final, insects):
    argv = ["--start-from", str(final), *of_insects(tmp_path, insects, training__freeze="features")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "alexnet_nb.train", *argv]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("starts from") == run.stdout.count("has no test/ folder") == 1
    before, after = weights(final), weights(tmp_path / "models" / "alexnet_final.pkl")
    assert all(torch.equal(before[name], after[name]) for name in CONVOLUTIONS)
    assert not torch.equal(before["classifier.1.weight"], after["classifier.1.weight"])


def test_from_the_network_in_the_package(tmp_path, insects, no_panels, capsys):
    "At full width, fc8 alone: what predicts afterwards is that network with another last layer."
    argv = of_insects(tmp_path, insects, training__freeze="all_but_last", training__learning_rate=0.001)
    assert train.main(["--start-from", "cifar10", *argv]) == 0
    assert "starts from cifar10: all layers but fc8" in capsys.readouterr().out
    known, taught = load_pretrained("cifar10"), load_classifier(tmp_path / "models" / "alexnet_final.pkl")
    assert taught.classes == WASPS and taught.recipe == known.recipe
    ours, theirs = taught.model.state_dict(), known.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs.keys() - LAST)


# ---------------------------------------------------------------- folders without a test part

def parts(root, seed=7, **data):
    "What a run on these folders reads: training and test images."
    given = dict(data=dict(dataset="ImageFolder", data_dir=str(root)) | data, model=dict(num_classes=3),
                 training=dict(seed=seed))
    return engine_setup._load_data(engine_setup.make_config(given))


def test_folders_are_divided_by_seed(insects):
    mine, test = parts(insects)
    assert len(mine) == 27 and len(test) == 3 and not {*mine.items} & {*test.items}
    assert sorted(test.labels) == [0, 1, 2]  # each class in its proportion
    again, other = parts(insects)[1], parts(insects, seed=8)[1]
    assert test.items == again.items != other.items
    assert len(parts(insects, test_images=6)[1]) == 6
    assert len(parts(insects, test_images=8)[1]) == 3  # more than a quarter: a tenth


def test_a_train_folder_alone_is_divided_too(tmp_path):
    root = class_folders(tmp_path / "root", classes=WASPS, train=5, test=1)
    for path in [*(root / "test").rglob("*.png")]: path.unlink()
    for path in [*(root / "test").iterdir(), root / "test"]: path.rmdir()
    mine, test = parts(root)
    assert (len(mine), len(test)) == (14, 1) and "train" in str(mine.items[0])


def test_too_few_to_divide(tmp_path, insects):
    for name in WASPS:
        (tmp_path / "few" / name).mkdir(parents=True)
        for i in range(4 if name == "bee" else 9):
            drawings(1, i)[0].save(tmp_path / "few" / name / f"{i}.png")
    with pytest.raises(engine_setup.InputError, match="bee: holds only 4; without a test/ folder"):
        parts(tmp_path / "few")


# ---------------------------------------------------------------- refused

def said(capsys, argv) -> str:
    "The one line with which the command refuses, before work begins."
    assert train.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_refused(tmp_path, final, insects, capsys):
    new = of_insects(tmp_path / "out", insects)
    for argv, words in (
            (["--start-from", str(final), "--resume", str(final)], "give only one of them"),
            (["--start-from", ""], "--start-from is empty"), (["--start-from", " "], "--start-from is empty"),
            (["--start-from", "nowhere.pkl"], "nowhere.pkl"),
            (["--start-from", "cifar100"], "--start-from cifar100: no such network; give cifar10"),
            (["--start-from", "nowhere.safetensors"], "no such file of weights"),
            (["--start-from", str(final), *settings({"model.width": 0.5})], "model.width is 0.5, but"),
            (["--start-from", str(final), *settings({"model.towers": 2})], "model.towers is 2, but"),
            (["--start-from", "cifar10", *settings({"model.image_dim": 224})], "image_dim is 224, but"),
            (["--start-from", str(next((insects / "bee").iterdir()))], "bee")):
        assert words in said(capsys, [*new, *argv])
    argv = of_insects(tmp_path / "out", insects, training__freeze="conv")
    assert "training.freeze is 'conv'" in said(capsys, [*argv, "--start-from", "cifar10"])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_config_will_do(tmp_path, final, insects, no_panels):
    "Six keys, `module.` before every name: what other programs leave."
    stored = load(final)
    bare = {f"module.{name}": w for name, w in stored["model"].items()}
    six = dict(model=bare, epoch=3, total_steps=9, optimizer={}, scheduler={}, seed=1)
    torch.save(six, tmp_path / "bare.pkl")
    argv = of_insects(tmp_path / "out", insects, training__freeze="features")
    assert train.main(["--start-from", str(tmp_path / "bare.pkl"), *argv]) == 0
    found = load(tmp_path / "out" / "models" / "alexnet_final.pkl")
    assert found["total_steps"] == 3 and STEPS != 3  # its own count, from the beginning
    assert all(torch.equal(found["model"][name], stored["model"][name]) for name in CONVOLUTIONS)


def test_a_config_of_another_network_goes_on_with_nothing(tmp_path, no_panels):
    "`fit` would write down the one network and keep the weights of the other."
    assert train.main(tiny(tmp_path, training__num_epochs=1)) == 0
    kept = (last := tmp_path / "models" / "alexnet_final.pkl").read_bytes()
    stored = read_checkpoint(last)
    other = {"model": {"activation": "tanh"}, "training": {"num_epochs": 2}}
    with pytest.raises(InputError, match="model.activation is 'tanh', but .* with 'relu'"):
        engine_setup.fit(make_config(merge(stored["config"], other)), stored)
    assert last.read_bytes() == kept


@pytest.mark.parametrize("key, value", [("colour", 0.0), ("unit_variance", True)])
def test_a_part_of_another_recipe_is_not_dropped_without_a_word(key, value, final):
    given = {"data": {"dataset": "drawings", key: value}}
    with pytest.raises(InputError, match=f"data.{key} needs data.recipe beside it"):
        engine_setup.starting_point(str(final), given)
    cfg, begin = engine_setup.starting_point(str(final), {"data": given["data"] | {"recipe": "paper"}})
    assert getattr(cfg.data, key) == value and begin.recipe is None
