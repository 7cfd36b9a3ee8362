"Looking inside: every measure on things whose answer is known, every fast way against a slow one, and the command from a checkpoint to its file."
import importlib.util
import json
import math

import numpy as np
import pytest
import torch

from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.pictures import Pictures, stack_pixels
from alexnet_nb.data import Recipe, prepare_batch
from alexnet_nb.inference import Classifier, load_classifier, probabilities
from alexnet_nb.inspection import (
    LAYERS,
    Field,
    LayerStatistics,
    Patch,
    Peaks,
    Sheet,
    activation_statistics,
    agreement,
    first_kernels,
    hidden_features,
    kernel_colour,
    kernel_history,
    kernel_orientation,
    kernel_pictures,
    layer_outputs,
    look_inside,
    majority,
    nearest,
    network_layers,
    occlusion_map,
    pack,
    patch_directions,
    pixel_batches,
    purity,
    receptive_field,
    see,
    seen_part,
    strongest_patches,
    tower_gap,
    unpack,
    unpack_sheet,
    view_of,
)
from alexnet_nb.model import AlexNet
from common import ROOT, class_folders

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]
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


# ---------------------------------------------------------------- listening

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"towers": 2, "dropout_place": "after"}, {"activation": "tanh", "lrn": "none"}, {"image_dim": 224, "without": ["conv4"]}], ids=str)
def test_layers_give_what_a_plain_pass_gives_in_any_batches(pictures, device, options):
    c = network(device, **options)
    names = network_layers(c.model)
    assert names == [n for n in LAYERS if n not in options.get("without", ())]
    parts = list(layer_outputs(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 5)))
    assert [len(p["fc8"]) for p in parts] == [5, 5, 2] and not any(m._forward_hooks for m in c.model.modules())
    together = torch.cat([p["fc8"] for p in parts]).float().cpu().softmax(1)
    torch.testing.assert_close(together, probabilities(c, prepare_batch(pictures.pixels, c.recipe)), atol=1e-5, rtol=1e-4)
    features = hidden_features(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 7))
    assert features.dtype == torch.float32 and features.device.type == "cpu"
    torch.testing.assert_close(features, torch.cat([p["fc7"] for p in parts]).cpu(), atol=1e-5, rtol=1e-4)


def test_listening_changes_nothing_and_stops_when_told(pictures):
    c = network()
    c.model.train()
    state = {k: v.clone() for k, v in c.model.state_dict().items()}
    passes = layer_outputs(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 2), ["conv1"])
    first = next(passes)
    assert list(first) == ["conv1"] and not first["conv1"].requires_grad and torch.is_grad_enabled()
    passes.close()
    assert c.model.training and not any(m._forward_hooks for m in c.model.modules())
    assert all(torch.equal(v, state[k]) for k, v in c.model.state_dict().items())
    with pytest.raises(ValueError, match="no layer 'pool1'"): next(layer_outputs(c.model, [], ["pool1"]))


# ---------------------------------------------------------------- kernels

def shapes():
    "Places, as x and y, of an 11 x 11 kernel."
    return torch.meshgrid(torch.arange(-5.0, 6), torch.arange(-5.0, 6), indexing="xy")


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 135, 170])
def test_a_grey_gabor_is_grey_and_oriented(degrees):
    x, y = shapes()
    angle = math.radians(degrees)
    gabor = torch.exp(-(x**2 + y**2) / 16) * torch.cos(0.9 * (math.cos(angle) * x + math.sin(angle) * y))
    weight = gabor.expand(1, 3, 11, 11)
    strength, found = kernel_orientation(weight)
    assert kernel_colour(weight).item() < 1e-5 and strength.item() > 0.8
    assert abs(math.sin(found.item() - angle)) < 0.07  # the same line, whichever way round


def test_a_coloured_blob_is_coloured_and_has_no_orientation():
    x, y = shapes()
    blob = torch.exp(-(x**2 + y**2) / 12)
    for colour in ([1.0, -1, 0], [2.0, -1, -1]):
        weight = (torch.tensor(colour)[:, None, None] * blob)[None]
        assert kernel_colour(weight).item() > 1 - 1e-5 and kernel_orientation(weight)[0].item() < 1e-4
    red = torch.tensor([1.0, 0, 0])[:, None, None] * blob
    assert kernel_colour(red[None]).item() == pytest.approx(2 / 3, abs=1e-5)


def test_measures_know_noise_scale_and_nothing():
    noise = torch.randn(400, 3, 11, 11, generator=torch.Generator().manual_seed(0))
    assert kernel_colour(noise).mean().item() == pytest.approx(2 / 3, abs=0.01) and kernel_orientation(noise)[0].mean() < 0.2
    torch.testing.assert_close(kernel_colour(-7 * noise), kernel_colour(noise))
    torch.testing.assert_close(kernel_orientation(-7 * noise)[0], kernel_orientation(noise)[0])
    zero = torch.zeros(1, 3, 11, 11)
    assert torch.isfinite(kernel_colour(zero)).all() and kernel_orientation(zero)[0] == 0 and (kernel_pictures(zero) == 0.5).all()
    drawn = kernel_pictures(noise)
    assert drawn.shape == (400, 11, 11, 3) and drawn.min() >= 0 and drawn.max() <= 1
    largest = noise[3].abs().argmax()
    assert drawn[3].permute(2, 0, 1).flatten()[largest] in (0, 1)


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_survive_packing(bits):
    numbers = torch.randn(4, 3, 5, 5)
    packed = json.loads(json.dumps(pack(numbers, bits)))
    torch.testing.assert_close(unpack(packed), numbers, atol=numbers.abs().max().item() / (2**bits - 2) * 1.01, rtol=0)
    assert torch.equal(unpack(pack(torch.zeros(2, 2), bits)), torch.zeros(2, 2))


def test_seen_part_answers_patches_as_the_whole_kernel_does(pictures):
    c = network()
    x = prepare_batch(pictures.pixels, c.recipe)
    directions, energy = patch_directions([x[:5], x[5:]])
    assert energy[-1].item() == pytest.approx(1, abs=1e-5) and (energy.diff() > -1e-6).all()
    few = directions[:, :int((energy < 0.9999).sum()) + 1]
    assert few.shape[1] < 60
    weight = c.model.features[0].weight.detach()
    part = seen_part(weight, few)
    torch.testing.assert_close(seen_part(part, few), part, atol=1e-5, rtol=1e-4)
    whole, seen = (torch.nn.functional.conv2d(x, w, stride=4) for w in (weight, part))
    assert (whole - seen).square().mean() / whole.square().mean() < 0.02 and part.norm() < 0.6 * weight.norm()


def test_history_of_a_kernel_tells_decay_and_what_was_learnt():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 3, 11, 11, generator=generator)
    directions = torch.linalg.qr(torch.randn(363, 9, generator=generator)).Q
    learnt = seen_part(torch.randn(6, 3, 11, 11, generator=generator), directions)
    history = kernel_history(0.9 * first + learnt, first, directions)
    assert history["left"] == pytest.approx(0.9, abs=1e-4) and history["cosine"] > 0.9999 and history["learnt_inside"] > 0.9999
    assert kernel_history(0.9 * first + torch.randn(6, 3, 11, 11, generator=generator), first, directions)["learnt_inside"] < 0.2


def test_first_kernels_are_those_of_a_seed_and_leave_chance_alone():
    torch.manual_seed(5)
    expected = AlexNet(width=THIN).features[0].weight.detach()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(first_kernels({"width": THIN}, 5), expected) and torch.equal(torch.get_rng_state(), before)


def test_the_gap_between_towers_against_chance():
    apart = torch.cat([torch.zeros(48), torch.ones(48)])
    assert tower_gap(apart)[0] == 1 and tower_gap(apart)[1] < 0.001
    assert tower_gap(torch.arange(96) % 2 * 1.0) == (0, 1)
    chances = [tower_gap(torch.rand(20, generator=torch.Generator().manual_seed(s)), 200)[1] for s in range(100)]
    assert 0.4 < np.mean(chances) < 0.6  # of what is alike, any chance is as likely as another


# ---------------------------------------------------------------- neighbours

@pytest.mark.parametrize("device", DEVICES)
def test_nearest_equals_the_slow_way(device):
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.rand(n, 50, generator=generator).add(20) for n in (90, 23))  # long vectors, small distances
    bank[7] = bank[40]  # a tie
    queries[3] = bank[40]
    close, distance = nearest(queries.to(device), bank.to(device), 5, batch_size=4)
    exact = (queries[:, None].double() - bank.double()).norm(dim=2)
    slow = exact.sort(dim=1, stable=True)
    assert torch.equal(close.cpu(), slow.indices[:, :5]) and close[3, :2].tolist() == [7, 40]
    torch.testing.assert_close(distance.cpu().double(), slow.values[:, :5], atol=1e-4, rtol=1e-5)
    assert nearest(bank[:2], bank[:4], 4)[0].shape == (2, 4)
    for k in (0, 5):
        with pytest.raises(ValueError, match="the bank has 4"): nearest(bank[:2], bank[:4], k)


def test_votes_and_agreement():
    labels = torch.tensor([[2, 1, 1, 0, 0], [3, 3, 3, 3, 0], [5, 4, 4, 5, 9], [7, 8, 9, 0, 1], [6, 2, 2, 2, 6]])
    assert majority(labels).tolist() == [1, 3, 5, 7, 2]
    assert agreement(labels, torch.tensor([2, 3, 4, 7, 2])) == dict(nearest=pytest.approx(0.6), majority=pytest.approx(0.6))
    assert agreement(labels[:, :1], labels[:, 0]) == dict(nearest=1, majority=1)


# ---------------------------------------------------------------- statistics, fields, patches

@pytest.mark.parametrize("device", DEVICES)
def test_running_statistics_equal_those_of_all_at_once(pictures, device):
    c = network(device)
    with torch.no_grad(): c.model.features[0].bias[1] = -100  # a dead map
    running = activation_statistics(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 5))
    whole = next(layer_outputs(c.model, [prepare_batch(pictures.pixels.to(device), c.recipe)]))
    for name, s in running.items():
        y = whole[name].cpu()
        assert (s.pictures, s.numbers) == (12, y.numel()) and s.zeros == int((y == 0).sum())
        assert s.mean == pytest.approx(y.mean().item(), rel=1e-3, abs=1e-6) and s.deviation == pytest.approx(y.std(correction=0).item(), rel=1e-3, abs=1e-6)
        assert s.active.tolist() == [int((y[:, i].reshape(12, -1).amax(1) > 0).sum()) for i in range(y.shape[1])]
    assert 1 in running["conv1"].dead.tolist() and running["fc8"].zeros == 0


def test_units_that_are_never_active_are_dead():
    s = LayerStatistics()
    s.add(torch.tensor([[0.0, 1, 0], [0, 0, -1]]))
    assert s.dead.tolist() == [0, 2]
    s.add(torch.tensor([[0.5, 0, 0]]))
    assert s.dead.tolist() == [2] and s.active.tolist() == [1, 1, 0] and s.zero_share == pytest.approx(6 / 9)


@pytest.mark.parametrize("options", [{}, {"overlapping_pooling": False}, {"towers": 2}, {"image_dim": 224}, {"without": ["conv3"]}], ids=str)
def test_a_unit_depends_on_its_receptive_field_and_on_nothing_else(options):
    c = network(lrn="none", **options)
    side = c.model.image_dim
    for layer in (n for n in network_layers(c.model) if n.startswith("conv")):
        f, place = receptive_field(c.model, layer), int(LAYERS[layer].split(".")[1])
        x = torch.rand(1, 3, side, side, requires_grad=True)
        y = c.model.features[:place](torch.nn.functional.pad(x, (0, 227 - side, 0, 227 - side)))  # before its ReLU
        last = y.shape[-1] - 1
        for row, column in ((0, 0), (last, last // 2), (last // 2, 1)):
            touched = torch.autograd.grad(y[0, :, row, column].square().sum(), x, retain_graph=True)[0][0].abs().sum(0).nonzero()
            top, left, bottom, right = f.box(row, column, side)
            assert touched.min(0).values[0] >= top and touched.min(0).values[1] >= left and touched.max(0).values[0] < bottom and touched.max(0).values[1] < right
            if layer in ("conv1", "conv2"): assert touched.max(0).values[0] >= min(bottom, side) - 12  # and it is not too wide


def test_fields_by_hand():
    model = AlexNet(width=THIN)
    assert {n: (f.size, f.jump, f.start) for n in LAYERS if n.startswith("conv") for f in [receptive_field(model, n)]} == {
        "conv1": (11, 4, 0), "conv2": (51, 8, -16), "conv3": (99, 16, -32), "conv4": (131, 16, -48), "conv5": (163, 16, -64)}
    assert Field(51, 8, -16).box(1, 0, 227) == (0, 0, 43, 35) and Field(163, 16, -64).box(12, 6, 227) == (128, 32, 227, 195)
    for layer in ("fc6", "pool9"):
        with pytest.raises(ValueError, match="no maps"): receptive_field(model, layer)


def test_strongest_patches_are_the_strongest(pictures):
    c = network()
    seen = see(c, pictures.pixels, 5)
    maps = torch.cat([o["conv3"] for o in layer_outputs(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 5), ["conv3"])])
    found = strongest_patches(seen.peaks["conv3"], 2, 4)
    best = maps[:, 2].flatten(1).amax(1).sort(descending=True)
    assert [p.picture for p in found] == best.indices[:4].tolist()
    for p in found: assert maps[p.picture, 2, p.row, p.column].item() == pytest.approx(p.value, rel=1e-5)
    few = Peaks(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([[0], [7], [3]]), 3)
    assert strongest_patches(few, 0) == [Patch(2, 1, 0, 5.0), Patch(1, 2, 1, 2.0)]  # what is zero excites nothing
    assert purity(strongest_patches(few, 0), torch.tensor([1, 4, 4])) == 1


# ---------------------------------------------------------------- occlusion

@pytest.mark.parametrize("device", DEVICES)
def test_occlusion_covers_what_it_says(pictures, device):
    c = network(device)
    x = prepare_batch(pictures.pixels[:1].to(device), c.recipe)[0]
    kept = x.clone()
    found = occlusion_map(c, x, 3, square=50, stride=60, batch_size=5)
    assert found.shape == (4, 4) and torch.equal(x, kept)
    for i, j in ((0, 0), (1, 2), (3, 3)):
        covered, (r, k) = x.clone(), (30 + 60 * i, 30 + 60 * j)
        covered[:, max(r - 25, 0):r + 25, max(k - 25, 0):k + 25] = 0
        assert found[i, j].item() == pytest.approx(probabilities(c, covered[None])[0, 3].item(), rel=1e-3)
    nothing_left = probabilities(c, torch.zeros_like(x)[None])[0, 3]
    torch.testing.assert_close(occlusion_map(c, x, 3, square=1000, stride=100), nothing_left.expand(2, 2), atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- sheets, reports, the command

def test_a_sheet_gives_its_pictures_back(pictures):
    sheet = Sheet()
    many = torch.cat([pictures.pixels, pictures.pixels.flip(-1)])
    assert [sheet.add(p) for p in many] == list(range(24)) and sheet.add(many[5]) == 5
    back = unpack_sheet(json.loads(json.dumps(sheet.pack())))
    assert back.shape == (24, 32, 32, 3) and (back.permute(0, 3, 1, 2).int() - many.int()).abs().float().mean() < 10


def test_the_view_of_a_recipe():
    assert view_of(Recipe(224)) == dict(side=224, start=0, size=224)
    assert view_of(Recipe(227, short_side=256)) == dict(side=256, start=15, size=227)
    x = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 256, 1)
    seen = prepare_batch(x, Recipe(227, (0.0,) * 3, (1 / 255,) * 3, short_side=256))
    assert round(seen[0, 0, 0, 0].item()) == 15


@pytest.mark.parametrize("options", [{}, {"towers": 2}, {"activation": "tanh", "without": ["conv3", "conv5"]}], ids=str)
def test_a_report_is_plain_and_small(pictures, options):
    c = network(**options)
    report = look_inside(c, pictures, pictures, dict(towers=options.get("towers", 1)), stride=114, batch_size=5, progress=lambda text: None)
    text = json.dumps(report, allow_nan=False)
    assert len(text) < 400_000 and json.loads(text)["history"] is None
    assert report["neighbours"]["agreement"] == {way: dict(nearest=1, majority=pytest.approx(report["neighbours"]["agreement"][way]["majority"])) for way in ("hidden", "pixels")}
    for row in report["neighbours"]["shown"]: assert row["hidden"][0]["index"] == row["pixels"][0]["index"] == row["index"]  # the bank holds the queries
    count = report["pictures"]["count"]
    assert all(0 <= n["picture"] < count for row in report["neighbours"]["shown"] for n in row["hidden"] + row["pixels"])
    assert [len(m["map"]) for m in report["occlusion"]["maps"]] == [2] * 4
    torch.testing.assert_close(unpack(report["kernels"]), c.model.features[0].weight.detach(), atol=0.01, rtol=0)


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
    path = tool.main([*args, "--name", "test", "--train-images", "20", "--test-images", "10", "--stride", "114", "--batch-size", "8"])
    text = path.read_text(encoding="utf-8")
    report = json.loads(text)
    assert path.name == "inside_test.json" and len(text) < 400_000 and str(tmp_path) not in text and str(ROOT) not in text
    assert report["network"] | dict(towers=1, seed=7, epochs_done=2, of_epochs=2, test_images=10) == report["network"]
    assert report["neighbours"]["bank"] == 20 and report["neighbours"]["queries"] == 10 and report["data"] == "CIFAR-10"
    right = probabilities(load_classifier(final), prepare_batch(tool.in_equal_parts(tool.read_cifar10(root, False, False), np.arange(20), 10).pixels, load_classifier(final).recipe)).argmax(1)
    assert report["network"]["accuracy"] == pytest.approx((right == torch.arange(10)).float().mean().item())
    assert report["history"]["cosine"] > 0.99 and 0.9 < report["history"]["left"] < 1.001  # the seed brings the first weights back
    kernels = json.loads(tool.main([*args, "--name", "kernels", "--kernels-only"]).read_text(encoding="utf-8"))
    assert kernels["kernels"] == report["kernels"] and "neighbours" not in kernels


def test_the_sum_of_the_rates_follows_the_schedule():
    training = dict(learning_rate=0.01, lr_gamma=0.1, lr_step_size=6, schedule="step")
    checkpoint = dict(config=dict(training=training), epoch=8, total_steps=2816, progress=dict(batch=0))
    rate_sum = load_tool().rate_sum
    assert rate_sum(checkpoint) == pytest.approx(0.01 * 6 * 352 + 0.001 * 2 * 352)
    assert rate_sum(checkpoint | dict(epoch=5, total_steps=1781, progress=dict(batch=21))) == pytest.approx(17.81)
    assert rate_sum(checkpoint | dict(epoch=0, total_steps=3, progress=dict(batch=3))) == pytest.approx(0.03)


def test_stored_files_are_whole_and_small():
    stored = sorted((ROOT / "nbs/results").glob("inside_*.json"))
    assert stored
    for path in stored:
        assert path.stat().st_size < 400_000, path.name
        report = json.loads(path.read_text(encoding="utf-8"))
        assert {"network", "kernels", "directions", "device", "date", "data", "command"} <= report.keys(), path.name
        assert str(ROOT) not in path.read_text(encoding="utf-8") and unpack(report["kernels"]).shape == (96, 3, 11, 11)
