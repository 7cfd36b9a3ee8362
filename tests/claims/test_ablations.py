"""Every switch that takes a part away changes what it says and nothing else; with none of them used,
everything is as it was without them."""
from dataclasses import asdict, replace
from itertools import combinations, islice, pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from alexnet_nb import inference, train
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import open_rgb, stack_pixels
from alexnet_nb.claims.plans import EXPERIMENTS
from alexnet_nb.data import (
    augmentation,
    colour_statistics,
    paper_recipe,
    prepare,
    prepare_batch,
    usual_recipe,
)
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine.checkpoint import (
    architecture,
    build_model,
    load_classifier,
    read_checkpoint,
    stored_recipe,
)
from alexnet_nb.engine.config import Config, load_config, make_config, to_yaml
from alexnet_nb.engine.files import save_checkpoint
from alexnet_nb.engine.loaders import DeviceLoader, EpochBatches, PreparedImages, make_loader
from alexnet_nb.model import AlexNet, layer_table
from common import differences, lines, load, one_step, run_without_panels, settings, tiny

PLACES = {"conv1": "features.0", "conv2": "features.4",
          "conv3": "features.8", "conv4": "features.10", "conv5": "features.12",
          "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
GAPS = [gone for n in range(4) for gone in combinations(("conv3", "conv4", "conv5"), n)]
THIN = 1 / 24


def weights(**options) -> dict:
    "A thin network's weights, seed 0."
    torch.manual_seed(0)
    return AlexNet(width=THIN, **options).state_dict()


def slots(**options) -> dict[str, str]:
    "What stands at every place of a network."
    with torch.device("meta"): model = AlexNet(**options)
    return {f"{part}.{i}": str(layer) for part in ("features", "classifier")
            for i, layer in enumerate(getattr(model, part))}


# ---------------------------------------------------------------- layers left out

@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("gone", GAPS, ids=lambda gone: "+".join(gone) or "none")
def test_a_layer_left_out(gone, towers):
    """Its names are gone, its slots pass everything on, pool5 and fc6 keep their sizes, and the rest stands
    where it stood."""
    with torch.device("meta"): model = AlexNet(without=gone, towers=towers)
    assert list(model.state_dict()) == [f"{place}.{part}" for name, place in PLACES.items()
                                        if name not in gone for part in ("weight", "bias")]
    rows = {r.name: r for r in layer_table(model)}
    assert rows["features.14"].output == (256, 6, 6) and rows["classifier.1"].params == 37_752_832
    ours, full = slots(without=gone, towers=towers), slots(towers=towers)
    off = {f"features.{int(PLACES[name][9:]) + k}" for name in gone for k in (0, 1)}
    assert {place for place in ours if ours[place] == "Identity()"} == off
    stay = [PLACES[name] for name in ("conv3", "conv4", "conv5") if name not in gone]
    maps = [256, *[384] * (len(stay) - 1), 256][:len(stay) + 1]
    for place, (into, out) in zip(stay, pairwise(maps), strict=True):
        kind, rest = ours[place].split(", kernel_size")
        assert kind == f"Conv2d({into}, {out}"
        assert rest == full[place].split(", kernel_size")[1], "same kernel, stride, padding and groups"
    assert {place for place in ours if ours[place] != full[place]} <= off | set(stay)


def test_a_layer_left_out_computes():
    model = AlexNet(width=THIN, without=("conv4",))
    model(torch.randn(2, 3, 227, 227)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert isinstance(model.features[10], nn.Identity) and isinstance(model.features[11], nn.Identity)


@pytest.mark.parametrize("how", ["paper", "code"])
@pytest.mark.parametrize("gone", GAPS, ids=lambda gone: "+".join(gone) or "none")
def test_first_weights_go_by_the_layers_own_number(gone, how):
    torch.manual_seed(0)
    state = AlexNet(width=0.1, without=gone, init=how).state_dict()
    for number, (name, place) in enumerate(PLACES.items(), 1):
        if name in gone: continue
        assert (state[f"{place}.bias"] == (number in (2, 4, 5, 6, 7))).all(), name
        expected = 0.03 if how == "code" and number in (3, 4, 5) else 0.01
        assert state[f"{place}.weight"].std().item() == pytest.approx(expected, rel=0.06), name


def test_in_one_tower_any_gap_leaves_the_same_network():
    """256, 384, 256 maps each time; with the same seed the same first weights, so the three rows of the
    ablation must agree."""
    three = [list(weights(without=[name]).values()) for name in ("conv3", "conv4", "conv5")]
    for other in three[1:]: assert all(torch.equal(a, b) for a, b in zip(three[0], other, strict=True))


@pytest.mark.parametrize("value", [["conv2"], ["conv3", "fc6"], "conv3", ["CONV3"]])
def test_only_middle_layers_can_be_left_out(value):
    with pytest.raises(ValueError, match="without is .* must be one of 'conv3', 'conv4', 'conv5'"):
        AlexNet(width=THIN, without=value)
    with pytest.raises(InputError, match="model.without"): make_config({"model": {"without": value}})


# ---------------------------------------------------------------- the other switches of the network

@pytest.mark.parametrize("options, places", [
    (dict(lrn="none"), {"features.2", "features.6"}),
    (dict(overlapping_pooling=False), {"features.3", "features.7", "features.14"}),
    (dict(dropout=0.0), {"classifier.0", "classifier.3"}),
    (dict(activation="tanh"), {"features.1", "features.5", "features.9", "features.11", "features.13",
                               "classifier.2", "classifier.5"}),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_switches_of_the_network_change_their_places_only(options, places):
    "And the same seed draws the same first weights."
    base, ours = slots(), slots(**options)
    assert {place for place in base if base[place] != ours[place]} == places
    assert differences(dict(weights()), dict(weights(**options))) == []


@pytest.mark.parametrize("how", ["paper", "code"])
def test_first_weights_change_no_place(how):
    "The deviation of the convolutions differs from He's, that of the layers after them does not."
    assert slots() == slots(init=how)
    same = {name for name, weight in weights().items() if name.endswith("weight")
            and torch.equal(weight, weights(init=how)[name])}
    assert same == {"classifier.1.weight", "classifier.4.weight", "classifier.6.weight"}


def test_towers_divide_three_convolutions_and_the_normalisations():
    base, ours = slots(), slots(towers=2)
    for i in (4, 10, 12):
        assert ours[f"features.{i}"] == base[f"features.{i}"].removesuffix(")") + ", groups=2)"
    changed = {place for place in base if base[place] != ours[place]}
    assert changed - {"features.2", "features.6"} == {"features.4", "features.10", "features.12"}
    with torch.device("meta"): assert [AlexNet(towers=2).features[i].groups for i in (2, 6)] == [2, 2]


# ---------------------------------------------------------------- flips, crops, colour

ITEMS = drawings(12, seed=3)
PAPER = paper_recipe(227, *colour_statistics(ITEMS))
CHANCES = [augmentation(42, 1, i) for i in range(12)]
WITHOUT = [dict(zip(("flip", "crop", "colour"), on, strict=True)) for on in product((True, False), repeat=3)]


def recipe_with(flip: bool, crop: bool, colour: bool, base=PAPER):
    return replace(base, flip=flip, crop=crop, colour=base.colour if colour else None)


def test_chances_hold_what_the_tests_need():
    assert ({chance.flip for chance in CHANCES} == {False, True}
            and min(abs(chance.top - 0.5) for chance in CHANCES) > 1e-3)


@pytest.mark.parametrize("on", WITHOUT, ids=lambda on: "+".join(k for k in on if on[k]) or "none")
@pytest.mark.parametrize("base", [PAPER, replace(usual_recipe(60), short_side=70)], ids=["paper", "other"])
def test_both_data_paths_know_the_switches(on, base):
    "One picture at a time and a batch at a time: the same bits, with and without chance."
    recipe = recipe_with(**on, base=base)
    for chances in (CHANCES, None):
        one_by_one = torch.stack([prepare(ITEMS[i], recipe, chances and chances[i])
                                  for i in range(len(ITEMS))])
        assert torch.equal(prepare_batch(stack_pixels(ITEMS, 1 << 20), recipe, chances), one_by_one)
        if chances is None:
            without_switches = torch.stack([prepare(ITEMS[i], base) for i in range(len(ITEMS))])
            assert torch.equal(one_by_one, without_switches), "switches act on chance only"


def test_each_switch_undoes_its_own_chance():
    """Without flips: as if chance had said so; without crops: as if it had said the middle; without colour:
    as if all shifts were 0."""
    for i, chance in enumerate(CHANCES):
        full = prepare(ITEMS[i], PAPER, chance)
        for change, instead in ((dict(flip=False), dict(flip=False)),
                                (dict(crop=False), dict(top=0.5, left=0.5)),
                                (dict(colour=None), dict(colour=(0.0, 0.0, 0.0)))):
            x = prepare(ITEMS[i], replace(PAPER, **change), chance)
            assert torch.equal(x, prepare(ITEMS[i], PAPER, replace(chance, **instead)))
            assert torch.equal(x, full) == (change == dict(flip=False) and not chance.flip)
        nothing = replace(PAPER, flip=False, crop=False, colour=None)
        assert torch.equal(prepare(ITEMS[i], nothing, chance), prepare(ITEMS[i], PAPER))


@pytest.mark.parametrize("on", WITHOUT, ids=lambda on: "+".join(k for k in on if on[k]) or "none")
@pytest.mark.parametrize("base", [replace(PAPER, size=48, short_side=56), usual_recipe(48)],
                         ids=["paper", "usual"])
def test_loaders_know_the_switches(on, base):
    "Both loaders alike; the order of the pictures is that without switches."
    recipe, given = recipe_with(**on, base=base), []
    for r, device in ((recipe, False), (recipe, True), (base, True)):
        batches = EpochBatches(np.arange(12), 5, 42)
        batches.epoch = 2
        loader = (DeviceLoader(stack_pixels(ITEMS, 1 << 20), ITEMS.labels, r, batches, 42) if device
                  else make_loader(PreparedImages(ITEMS, r, 42), batches))
        given.append([torch.cat(parts) for parts in zip(*loader, strict=True)])
    for a, b in zip(*given[:2], strict=True): assert torch.equal(a, b)
    assert torch.equal(given[1][2], given[2][2]) and torch.equal(given[1][1], given[2][1])
    crops, tints = base.short_side is not None, base.colour is not None
    all_on = on["flip"] and (on["crop"] or not crops) and (on["colour"] or not tints)
    assert torch.equal(given[1][0], given[2][0]) == all_on


def test_unit_variance_divides_and_does_nothing_else():
    mean, covariance = colour_statistics(ITEMS)
    scaled = paper_recipe(227, mean, covariance, unit_variance=True)
    assert (replace(scaled, std=PAPER.std) == PAPER
            and scaled.std == pytest.approx(covariance.diagonal().sqrt().tolist()))
    for chance in (None, CHANCES[0]):
        raw, unit = (prepare(ITEMS[0], recipe, chance) for recipe in (PAPER, scaled))
        torch.testing.assert_close(raw / 255, unit * torch.tensor(scaled.std)[:, None, None])
    pixels = torch.stack([prepare(ITEMS[i], replace(scaled, size=256)) for i in range(len(ITEMS))])
    assert (pixels.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.1)
            and pixels.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=0.05))


def test_no_strength_is_no_colour():
    statistics = colour_statistics(ITEMS)
    for none in (0.0, 0): assert paper_recipe(227, *statistics, none) == replace(PAPER, colour=None)
    twice = torch.tensor(paper_recipe(227, *statistics, 0.2).colour)
    torch.testing.assert_close(twice, 2 * torch.tensor(PAPER.colour))


# ---------------------------------------------------------------- config, run, checkpoint

def test_defaults_and_their_spelling():
    "The defaults are those of default.yaml, and a config from before the switches means all of them on."
    cfg, data = Config(), Config().data
    assert cfg.model.without == []
    assert (data.flip, data.crop, data.colour, data.unit_variance) == (True, True, 0.1, False)
    assert load_config("default") == cfg and "without: []" in to_yaml(cfg)
    old = cfg.model_dump()
    for section, key in (("model", "without"), ("data", "flip"), ("data", "crop"), ("data", "colour"),
                         ("data", "unit_variance")):
        del old[section][key]
    assert make_config(old) == cfg


@pytest.mark.parametrize("text", ["data.flip=1", "data.crop=no way", "data.colour=-0.1", "data.colour=true",
                                  "data.unit_variance=1", "model.without=conv3", "model.without=[conv1]"])
def test_wrong_values_are_refused(text):
    with pytest.raises(InputError, match=text.split("=")[0]): load_config(None, [text])


def recipe_of(*texts, images=ITEMS):
    return engine_setup.make_recipe(load_config(None, texts), images)


def test_the_config_makes_the_recipe():
    assert recipe_of() == usual_recipe() and recipe_of("data.recipe=paper") == PAPER
    assert recipe_of("data.recipe=paper", "data.flip=false") == replace(PAPER, flip=False)
    assert recipe_of("data.recipe=paper", "data.crop=false") == replace(PAPER, crop=False)
    assert recipe_of("data.recipe=paper", "data.colour=0") == replace(PAPER, colour=None)
    assert (recipe_of("data.recipe=paper", "data.unit_variance=true")
            == paper_recipe(227, *colour_statistics(ITEMS), unit_variance=True))
    assert recipe_of("data.unit_variance=true") == usual_recipe(), "it is of unit variance already, or nearly"
    assert (recipe_of("data.flip=false", "data.crop=false", "data.colour=0")
            == replace(usual_recipe(), flip=False, crop=False))


def test_a_recipe_in_a_checkpoint():
    plain = replace(PAPER, flip=False, crop=False)
    assert stored_recipe({"recipe": asdict(plain)}) == plain
    old = {key: value for key, value in asdict(PAPER).items() if key not in ("flip", "crop")}
    assert stored_recipe({"recipe": old}) == PAPER, "before there were switches, all were on"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("gone", GAPS, ids=lambda gone: "+".join(gone) or "none")
def test_a_file_of_weights_tells_what_is_left_out(gone, prefix, tmp_path):
    state = AlexNet(width=THIN, without=gone, towers=2).state_dict()
    save_checkpoint(tmp_path / "c.pkl", {"model": {prefix + name: value for name, value in state.items()}})
    checkpoint = read_checkpoint(tmp_path / "c.pkl")
    assert architecture(checkpoint)["without"] == list(gone)
    model = build_model(checkpoint, lacking=Config().model.model_dump())
    assert differences(dict(model.state_dict()), dict(state)) == []


def test_a_damaged_file_is_no_network_without_a_layer(tmp_path):
    state = AlexNet(width=THIN).state_dict()
    for name in ("features.8.weight", "features.10.weight", "features.12.bias"):
        damaged = {key: value for key, value in state.items() if key != name}
        with pytest.raises(InputError, match="weights"): build_model({"model": damaged})


SWITCHED = dict(model__without=["conv4"], data__recipe="paper", data__flip=False, data__crop=False,
                data__colour=0.0)


@pytest.fixture(scope="module")
def switched(tmp_path_factory):
    "A tiny run with every switch thrown, two epochs without a break."
    return run_without_panels(tmp_path_factory.mktemp("switched"), **SWITCHED)


def test_a_run_carries_the_switches(switched, pictures):
    checkpoint = load(switched / "models" / "alexnet_final.pkl")
    assert (checkpoint["config"]["model"]["without"] == ["conv4"]
            and "features.10.weight" not in checkpoint["model"])
    recipe = checkpoint["recipe"]
    assert (recipe["flip"], recipe["crop"], recipe["colour"]) == (False, False, None)
    assert not any(checkpoint["config"]["data"][key] for key in ("flip", "crop", "colour"))
    final = switched / "models" / "alexnet_final.pkl"
    classifier = load_classifier(final, torch.device("cpu"))
    answer = inference.predict(classifier, open_rgb(pictures / "000.png"))
    assert len(answer) == 10 and answer.sum().item() == pytest.approx(1, abs=1e-5)


def test_one_plus_one_epochs_equal_two(switched, tmp_path, no_panels, capsys):
    assert train.main(tiny(tmp_path, **SWITCHED, training__num_epochs=1)) == 0
    last = str(tmp_path / "models" / "alexnet_final.pkl")
    assert train.main(["--resume", last, *tiny(tmp_path, **SWITCHED)]) == 0
    a, b = (load(out / "models" / "alexnet_final.pkl") for out in (tmp_path, switched))
    assert (differences(a, b, but=("progress.seconds", "config.paths")) == []
            and lines(tmp_path) == lines(switched))


def test_resuming_keeps_the_switches(switched, capsys):
    checkpoint = read_checkpoint(switched / "models" / "alexnet_final.pkl")
    cfg = engine_setup.resume_config(checkpoint, {"data": {"flip": True, "crop": True, "colour": 0.1}})
    assert not (cfg.data.flip or cfg.data.crop or cfg.data.colour)
    said = capsys.readouterr().out
    for key in ("data.flip", "data.crop", "data.colour"): assert f"{key} stays" in said
    with pytest.raises(InputError, match="model.without"):
        engine_setup.resume_config(checkpoint, {"model": {"without": []}})


def test_a_run_from_before_the_switches_goes_on(tmp_path, no_panels, capsys):
    "Its checkpoint lacks their keys; it goes on as if nothing had been added."
    for name in ("new", "old"):
        assert train.main(tiny(tmp_path / name, data__recipe="paper", training__num_epochs=1)) == 0
    path = tmp_path / "old" / "models" / "alexnet_final.pkl"
    checkpoint = load(path)
    for part, keys in ((checkpoint["config"]["model"], ["without"]),
                       (checkpoint["config"]["data"], ["flip", "crop", "colour", "unit_variance"]),
                       (checkpoint["recipe"], ["flip", "crop"])):
        for key in keys: del part[key]
    torch.save(checkpoint, path)
    for name in ("new", "old"):
        final = tmp_path / name / "models" / "alexnet_final.pkl"
        assert train.main(["--resume", str(final), *tiny(tmp_path / name, data__recipe="paper")]) == 0
    a, b = (load(tmp_path / name / "models" / "alexnet_final.pkl") for name in ("new", "old"))
    assert differences(a, b, but=("progress.seconds", "config.paths")) == []


def first_steps(*texts, steps: int = 3) -> tuple[dict, list[float]]:
    "Weights and losses after a few steps of a tiny run."
    run = engine_setup.start(load_config(None, settings_of(*texts)))
    losses = []
    for x, y, _ in islice(run.train, steps):
        losses.append(one_step(run, x, y)[0].item())
        run.progress.step += 1
    assert len(losses) == steps
    return dict(run.model.state_dict()), losses


def settings_of(*texts) -> list[str]:
    "A tiny run's `section.key=value` texts, and these."
    small = {"model.width": THIN, "training.batch_size": 4, "training.warmup_steps": 2,
             "data.dataset": "drawings", "data.recipe": "paper",
             "data.train_images": 16, "data.val_images": 10, "data.test_images": 10,
             "device.use_cuda": False, "device.precision": "fp32", "device.reuse_memory": False}
    return settings(small)[1::2] + list(texts)


def test_defaults_spelt_out_change_no_bit():
    defaults = ("model.without=[]", "data.flip=true", "data.crop=true", "data.colour=0.1",
                "data.unit_variance=false")
    assert differences(first_steps(), first_steps(*defaults)) == []


@pytest.mark.parametrize("arm", [arm for arm in EXPERIMENTS["ablations"]["cpu"].arms if arm != "base"])
def test_every_row_differs_from_the_base(arm):
    "In one key, and in what comes of the first steps."
    change = EXPERIMENTS["ablations"]["cpu"].arms[arm]
    assert len(change) == 1
    texts = settings(change)[1::2]
    base, ours = load_config(None, settings_of()), load_config(None, settings_of(*texts))
    assert (differences(base.model_dump(), ours.model_dump())
            and len(differences(base.model_dump(), ours.model_dump())) == 1)
    weights, losses = first_steps(*texts)
    same, theirs = first_steps()
    assert losses != theirs and (weights.keys() != same.keys() or differences(weights, same))
