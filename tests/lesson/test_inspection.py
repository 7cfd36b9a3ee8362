"Looking inside: every measure on things whose answer is known, and every fast way against a slow one."
import math

import pytest
import torch

from alexnet_nb.data import Pictures, Recipe, drawings, prepare_batch, stack_pixels
from alexnet_nb.inference import Classifier, probabilities
from alexnet_nb.inspection import (
    LAYERS,
    Field,
    LayerStatistics,
    Patch,
    Peaks,
    _covered,
    _majority,
    agreement,
    collect_activations,
    kernel_colour,
    kernel_history,
    kernel_orientation,
    kernel_pictures,
    layer_outputs,
    nearest,
    network_layers,
    occlusion_map,
    patch_directions,
    pixel_batches,
    purity,
    rank_maps,
    receptive_field,
    sample_indices,
    seen_part,
    strongest_patches,
)
from alexnet_nb.model import AlexNet

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]
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
@pytest.mark.parametrize("options", [
    {}, {"towers": 2, "dropout_place": "after"}, {"activation": "tanh", "lrn": "none"},
    {"image_dim": 224, "without": ["conv4"]}], ids=str)
def test_layers_give_what_a_plain_pass_gives_in_any_batches(pictures, device, options):
    c = network(device, **options)
    names = network_layers(c.model)
    assert names == [n for n in LAYERS if n not in options.get("without", ())]
    parts = list(layer_outputs(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 5)))
    assert [len(p["fc8"]) for p in parts] == [5, 5, 2]
    assert not any(m._forward_hooks for m in c.model.modules())
    together = torch.cat([p["fc8"] for p in parts]).float().cpu().softmax(1)
    plain = probabilities(c, prepare_batch(pictures.pixels, c.recipe))
    torch.testing.assert_close(together, plain, atol=1e-5, rtol=1e-4)
    features = collect_activations(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 7)).features
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
    assert kernel_colour(noise).mean().item() == pytest.approx(2 / 3, abs=0.01)
    assert kernel_orientation(noise)[0].mean() < 0.2
    torch.testing.assert_close(kernel_colour(-7 * noise), kernel_colour(noise))
    torch.testing.assert_close(kernel_orientation(-7 * noise)[0], kernel_orientation(noise)[0])
    zero = torch.zeros(1, 3, 11, 11)
    assert torch.isfinite(kernel_colour(zero)).all()
    assert kernel_orientation(zero)[0] == 0
    assert (kernel_pictures(zero) == 0.5).all()
    drawn = kernel_pictures(noise)
    assert drawn.shape == (400, 11, 11, 3) and drawn.min() >= 0 and drawn.max() <= 1
    largest = noise[3].abs().argmax()
    assert drawn[3].permute(2, 0, 1).flatten()[largest] in (0, 1)


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
    assert history["left"] == pytest.approx(0.9, abs=1e-4)
    assert history["cosine"] > 0.9999
    assert history["learnt_inside"] > 0.9999
    elsewhere = 0.9 * first + torch.randn(6, 3, 11, 11, generator=generator)
    assert kernel_history(elsewhere, first, directions)["learnt_inside"] < 0.2


# ---------------------------------------------------------------- neighbours

@pytest.mark.parametrize("device", DEVICES)
def test_nearest_equals_the_slow_way(device):
    generator = torch.Generator().manual_seed(0)
    # Long vectors, small distances.
    bank, queries = (torch.rand(n, 50, generator=generator).add(20) for n in (90, 23))
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
    rows = [2, 1, 1, 0, 0], [3, 3, 3, 3, 0], [5, 4, 4, 5, 9], [7, 8, 9, 0, 1], [6, 2, 2, 2, 6]
    labels = torch.tensor(rows)
    assert _majority(labels).tolist() == [1, 3, 5, 7, 2]
    share = pytest.approx(0.6)
    assert agreement(labels, torch.tensor([2, 3, 4, 7, 2])) == dict(nearest=share, majority=share)
    assert agreement(labels[:, :1], labels[:, 0]) == dict(nearest=1, majority=1)


# ---------------------------------------------------------------- statistics, fields, patches

@pytest.mark.parametrize("device", DEVICES)
def test_running_statistics_equal_those_of_all_at_once(pictures, device):
    c = network(device)
    with torch.no_grad(): c.model.features[0].bias[1] = -100  # a dead map
    running = collect_activations(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 5)).statistics
    whole = next(layer_outputs(c.model, [prepare_batch(pictures.pixels.to(device), c.recipe)]))
    for name, s in running.items():
        y = whole[name].cpu()
        assert (s.pictures, s.numbers) == (12, y.numel()) and s.zeros == int((y == 0).sum())
        assert s.mean == pytest.approx(y.mean().item(), rel=1e-3, abs=1e-6)
        assert s.deviation == pytest.approx(y.std(correction=0).item(), rel=1e-3, abs=1e-6)
        active = [int((y[:, i].reshape(12, -1).amax(1) > 0).sum()) for i in range(y.shape[1])]
        assert s.active.tolist() == active
    assert 1 in running["conv1"].dead.tolist() and running["fc8"].zeros == 0


def test_units_that_are_never_active_are_dead():
    s = LayerStatistics()
    s.add(torch.tensor([[0.0, 1, 0], [0, 0, -1]]))
    assert s.dead.tolist() == [0, 2]
    s.add(torch.tensor([[0.5, 0, 0]]))
    assert s.dead.tolist() == [2] and s.active.tolist() == [1, 1, 0] and s.zero_share == pytest.approx(6 / 9)


@pytest.mark.parametrize("options", [
    {}, {"overlapping_pooling": False}, {"towers": 2}, {"image_dim": 224}, {"without": ["conv3"]}], ids=str)
def test_a_unit_depends_on_its_receptive_field_and_on_nothing_else(options):
    c = network(lrn="none", **options)
    side = c.model.image_dim
    for layer in (n for n in network_layers(c.model) if n.startswith("conv")):
        f, place = receptive_field(c.model, layer), int(LAYERS[layer].split(".")[1])
        x = torch.rand(1, 3, side, side, requires_grad=True)
        padded = torch.nn.functional.pad(x, (0, 227 - side, 0, 227 - side))
        y = c.model.features[:place](padded)  # before its ReLU
        last = y.shape[-1] - 1
        for row, column in ((0, 0), (last, last // 2), (last // 2, 1)):
            g = torch.autograd.grad(y[0, :, row, column].square().sum(), x, retain_graph=True)[0]
            touched = g[0].abs().sum(0).nonzero()
            top, left, bottom, right = f.box(row, column, side)
            assert touched.min(0).values[0] >= top
            assert touched.min(0).values[1] >= left
            assert touched.max(0).values[0] < bottom
            assert touched.max(0).values[1] < right
            if layer in ("conv1", "conv2"):  # and it is not too wide
                assert touched.max(0).values[0] >= min(bottom, side) - 12


def test_fields_by_hand():
    model = AlexNet(width=THIN)
    assert {n: tuple(receptive_field(model, n)) for n in LAYERS if n.startswith("conv")} == {
        "conv1": (11, 4, 0), "conv2": (51, 8, -16), "conv3": (99, 16, -32), "conv4": (131, 16, -48),
        "conv5": (163, 16, -64)}
    assert Field(51, 8, -16).box(1, 0, 227) == (0, 0, 43, 35)
    assert Field(163, 16, -64).box(12, 6, 227) == (128, 32, 227, 195)
    for layer in ("fc6", "pool9"):
        with pytest.raises(ValueError, match="no maps"): receptive_field(model, layer)


def test_strongest_patches_are_the_strongest(pictures):
    c = network()
    seen = collect_activations(c.model, pixel_batches(pictures.pixels, c.recipe, c.device, 5))
    batches = pixel_batches(pictures.pixels, c.recipe, c.device, 5)
    maps = torch.cat([o["conv3"] for o in layer_outputs(c.model, batches, ["conv3"])])
    found = strongest_patches(seen.peaks["conv3"], 2, 4)
    best = maps[:, 2].flatten(1).amax(1).sort(descending=True)
    assert [p.picture for p in found] == best.indices[:4].tolist()
    for p in found: assert maps[p.picture, 2, p.row, p.column].item() == pytest.approx(p.value, rel=1e-5)
    few = Peaks(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([[0], [7], [3]]), 3)
    # What is zero excites nothing.
    assert strongest_patches(few, 0) == [Patch(2, 1, 0, 5.0), Patch(1, 2, 1, 2.0)]
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
    found = occlusion_map(c, x, 3, square=1000, stride=100)
    torch.testing.assert_close(found, nothing_left.expand(2, 2), atol=1e-5, rtol=1e-4)


def test_maps_are_ranked_by_purity(pictures):
    c = network()
    peaks = collect_activations(c.model, pixel_batches(pictures.pixels, c.recipe, c.device)).peaks["conv2"]
    labels = torch.arange(12) % 3
    found = rank_maps(peaks, labels, 4)
    shares = [share for share, _, _ in found]
    assert shares == sorted(shares, reverse=True) and len({channel for _, channel, _ in found}) == len(found)
    for share, channel, patches in found:
        assert patches == strongest_patches(peaks, channel, 4) and len(patches) == 4
        counts = [[int(labels[p.picture]) for p in patches].count(label) for label in range(3)]
        assert share == max(counts) / 4
    never = Peaks(torch.zeros(5, 1), torch.zeros(5, 1, dtype=torch.int64), 3)
    assert rank_maps(never, torch.arange(5), 4) == []


def test_peaks_of_no_layer_and_of_a_network_that_lacks_one(pictures):
    c = network(without=["conv3"])
    def batches(): return pixel_batches(pictures.pixels, c.recipe, c.device, 6)
    assert list(collect_activations(c.model, batches()).peaks) == ["conv2", "conv5"]
    assert collect_activations(c.model, batches(), ()).peaks == {}


def test_indices_are_sampled_from_what_is_chosen():
    chosen = torch.arange(40) % 4 == 1
    few = sample_indices(chosen, 6, seed=3)
    assert len(set(few)) == 6 and all(i % 4 == 1 for i in few) and few == sample_indices(chosen, 6, seed=3)
    assert few != sample_indices(chosen, 6, seed=4)
    assert sorted(sample_indices(chosen, 99)) == list(range(1, 40, 4))
    assert sample_indices(torch.zeros(3, dtype=torch.bool), 2) == []


def test_nearest_tells_apart_what_is_nearly_the_same():
    "Far from zero and close together, as pictures of one thing are; each is the nearest to itself."
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(1, 4096, generator=generator) + 1e-4 * torch.randn(200, 4096, generator=generator)
    close, distance = nearest(bank, bank, 1)
    assert close[:, 0].tolist() == [*range(200)] and not distance.any()


@pytest.mark.parametrize("square", [1, 2, 3, 20, 21])
def test_an_odd_square_is_as_large_as_asked(square):
    pictures = list(_covered(torch.ones(3, 227, 227), square, 60))
    assert len(pictures) == 16 and all(int((p[0] == 0).sum()) == square**2 for p in pictures)


def test_a_layer_that_was_left_out_has_no_field():
    with pytest.raises(ValueError, match="no layer 'conv4'"):
        receptive_field(AlexNet(width=0.02, without=["conv4"]), "conv4")
