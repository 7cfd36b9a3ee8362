"""The network in two halves: equal to the one in one piece, forward, backward and in training; nothing passes
but by the wire, and the wire counts right."""
import copy
import itertools
import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from alexnet_nb.claims import two_towers as claims_two_towers
from alexnet_nb.claims.two_towers import (
    TwoTowers,
    _data_parallel_bytes,
    _join_state,
    _layer_traffic,
    _LayerTraffic,
    _mixing_layers,
    _model_parallel_bytes,
    _ring_seconds,
    _split_state,
    _Wire,
    tower_gap,
)
from alexnet_nb.engine.checkpoint import build_model, read_checkpoint
from alexnet_nb.engine.files import save_checkpoint
from alexnet_nb.model import AlexNet, layer_table

BATCH, THIN = 3, 1 / 24
VARIANTS = [{}, {"activation": "tanh"}, {"lrn": "none"}, {"lrn": "after_pool", "alpha_is": "sum"},
            {"image_dim": 224}, {"overlapping_pooling": False},
            {"dropout_place": "after"}, {"num_classes": 7}, {"init": "paper"}, {"without": ("conv3",)},
            {"without": ("conv4", "conv5")}, {"without": ("conv3", "conv4", "conv5")}]


def networks(dtype=torch.float64, devices=("cpu", "cpu"), **options) -> tuple[AlexNet, TwoTowers]:
    "A thin network in one piece and in two, without dropout."
    torch.manual_seed(0)
    one = AlexNet(**{"width": THIN, "towers": 2, "dropout": 0.0} | options).to(dtype)
    return one, TwoTowers(one, devices)


def batch(net, dtype=torch.float64, n=BATCH, seed=1):
    "Strong images, so that LRN does something, and labels."
    dice = torch.Generator().manual_seed(seed)
    side = net.image_dim
    return 20 * torch.randn(n, 3, side, side, dtype=torch.float64,
                            generator=dice).to(dtype), torch.arange(n) % 7


def gradients(net, x, y) -> dict:
    "By the names of the network in one piece."
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    if isinstance(net, AlexNet): return {name: p.grad.clone() for name, p in net.named_parameters()}
    return _join_state({name: p.grad.clone() for name, p in net.named_parameters()})


def far(a, b) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)).item()


# ---------------------------------------------------------------- equality

@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_outputs_and_gradients_equal_one_piece_in_double_precision(options):
    one, two = networks(**options)
    x, y = batch(one)
    assert far(two(x), one(x)) < 1e-12
    want, got = gradients(one, x, y), gradients(two, x, y)
    assert want.keys() == got.keys()
    for name in want: assert far(got[name], want[name]) < 1e-11, name


def test_in_single_precision_two_towers_are_no_further_from_the_truth_than_one_piece():
    one, _ = networks(width=0.1)
    x, y = batch(one, n=4)
    truth = gradients(one, x, y)
    single, two = networks(torch.float32, width=0.1)
    want, got = gradients(single, x.float(), y), gradients(two, x.float(), y)
    own = max(far(want[name], truth[name]) for name in truth)
    assert max(far(got[name], truth[name]) for name in truth) < 3 * own + 1e-6
    assert max(far(got[name], want[name]) for name in truth) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_training_steps_equal_those_of_one_piece(dtype):
    one, two = networks(dtype)
    x, y = batch(one, dtype, n=6)
    apart = []
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
                  for net in (one, two)]
    start = copy.deepcopy(one.state_dict())
    for _ in range(8):
        losses = []
        for net, optimiser in zip((one, two), optimisers, strict=True):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        apart.append(abs(losses[0] - losses[1]) / losses[0])
    joined = _join_state(two.state_dict())
    assert all(not torch.equal(value, start[name]) for name, value in joined.items())
    if dtype == torch.float64:
        assert max(apart) < 1e-10
        for name, value in one.state_dict().items():
            torch.testing.assert_close(joined[name], value, rtol=0, atol=1e-10)
    else: assert apart[0] < 1e-5


def test_both_towers_read_the_same_dropped_numbers():
    for place in ("before", "after"):
        _, two = networks(torch.float32, dropout=0.5, dropout_place=place, width=0.1)
        heard = {}
        def hear(key, heard=heard): return lambda m, args, out: heard.update({key: args[0]})
        for number, tower in enumerate(two.train().towers):
            for layer in (1, 4, 6): tower.classifier[layer].register_forward_hook(hear((number, layer)))
        two(batch(two, torch.float32)[0])
        for layer in (1, 4, 6): assert torch.equal(heard[0, layer], heard[1, layer])
        assert not torch.equal(two(batch(two, torch.float32)[0]), two(batch(two, torch.float32)[0]))
        x = batch(two, torch.float32)[0]
        assert torch.equal(two.eval()(x), two(x))


# ---------------------------------------------------------------- nothing goes round the wire

class CutWire(_Wire):
    def carry(self, *message): return torch.zeros_like(super().carry(*message))


@pytest.mark.parametrize("kept", [0, 1])
def test_with_the_wire_cut_a_tower_knows_nothing_of_the_other(kept):
    one, two = networks()
    two.wire = CutWire()
    x, y = batch(one)

    def mine():
        two.zero_grad()
        logits = two(x)
        # tower 1's logits do not arrive
        mine = logits[:, :5] if kept == 0 else two.towers[1].classifier[6].bias
        F.cross_entropy(logits, y).backward()
        return [mine.detach().clone(), *(p.grad.clone() for p in two.towers[kept].parameters())]

    before = mine()
    with torch.no_grad():
        for p in two.towers[1 - kept].parameters(): p.normal_()
    assert all(torch.equal(a, b) for a, b in zip(before, mine(), strict=True))


def test_pretended_devices_are_never_mixed():
    """Tensors without numbers on devices that need not exist: an operation on two of them at once would be
    refused."""
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake.FakeTensorMode():
        with torch.device("meta:0"): model = AlexNet(1000, towers=2)
        two = TwoTowers(model, ("meta:0", "meta:1"))
        logits = two(torch.empty(BATCH, 3, 227, 227, device="meta:1"))
        logits.sum().backward()
        assert str(logits.device) == "meta:0"
        for number, tower in enumerate(two.towers):
            assert {str(t.device) for p in tower.parameters() for t in (p, p.grad)} == {f"meta:{number}"}
        with pytest.raises(RuntimeError, match="same device"):
            two.towers[0].features[0].bias + two.towers[1].features[0].bias
    with (fake.FakeTensorMode(), mock.patch("torch.cuda.device_count", return_value=2),
          mock.patch("alexnet_nb.lrn._triton_works", return_value=False)):
        with torch.device("meta"): model = AlexNet(1000, towers=2)
        model.towers_on = [torch.nn.Parameter(torch.empty(p.shape, device="cuda:0"))
                           for p in model.parameters()]
        for (name, _), value in zip([*model.named_parameters()], model.towers_on, strict=True):
            owner, part = name.rsplit(".", 1)
            setattr(model.get_submodule(owner), part, value)
        two = TwoTowers(model, ("cuda:0", "cuda:1"))
        logits = two(torch.empty(BATCH, 3, 227, 227))
        assert (str(logits.device) == "cuda:0"
                and {str(p.device) for p in two.towers[1].parameters()} == {"cuda:1"})
        assert _join_state(two.state_dict())["classifier.6.weight"].device == torch.device("cuda:0")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus():
    one, two = networks(devices=("cuda:0", "cuda:1"))
    x, y = batch(one)
    one.cuda(0)
    want = gradients(one, x.cuda(0), y.cuda(0))
    got = gradients(two, x, y.cuda(0))
    for name in want: assert far(got[name], want[name]) < 1e-10, name


# ---------------------------------------------------------------- bytes

def expected(model, n, itemsize) -> dict[tuple[str, str], int]:
    "Bytes by place and way, from the table of layers: what a mixing layer reads, and tower 1's logits."
    rows = layer_table(model)
    mixing, sizes = _mixing_layers(model), {}
    for before, row in itertools.pairwise(rows):
        if row.name in mixing: sizes[mixing[row.name]] = math.prod(before.output)
    sizes["logits"] = rows[-1].output[0] // 2
    return {(place, way): n * numbers * itemsize for place, numbers in sizes.items()
            for way in ("forward", "backward")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [
    {}, {"without": ("conv3",)}, {"lrn": "after_pool", "num_classes": 7, "dropout_place": "after"},
], ids=str)
def test_the_wire_counts_what_the_table_says(dtype, options):
    with torch.device("meta"): model = AlexNet(**{"num_classes": 1000, "towers": 2} | options)
    two = TwoTowers(model, ("meta", "meta")).to(dtype)
    two(torch.empty(BATCH, 3, 227, 227, device="meta", dtype=dtype)).sum().backward()
    want = expected(model, BATCH, dtype.itemsize)
    assert ({key: two.wire.bytes(place=key[0], way=key[1]) for key in want} == want
            and two.wire.bytes() == sum(want.values()))
    assert all(m.bytes == m.numbers * dtype.itemsize for m in two.wire.messages)
    exchanged = [m for m in two.wire.messages if m.place != "logits"]
    first, second = (sum(m.bytes for m in exchanged if m.sender == number) for number in (0, 1))
    assert first == second


def test_the_papers_numbers():
    with torch.device("meta"): model = AlexNet(1000, towers=2)
    two = TwoTowers(model, ("meta", "meta"))
    two(torch.empty(128, 3, 227, 227, device="meta")).sum().backward()
    assert two.wire.bytes() == 62_640_128 and two.wire.bytes(way="forward") == 31_320_064
    forward, backward = ("conv3", "fc6", "fc7", "fc8"), ("fc8", "fc7", "fc6", "conv3")
    each_way = [place for place in (*forward, "logits", *backward) for _ in (0, 1)]
    assert [m.place for m in two.wire.messages] == each_way
    assert [sum(p.numel() for p in tower.parameters()) * 2 for tower in two.towers] == [60_965_224] * 2


def test_without_gradients_nothing_comes_back():
    one, two = networks(torch.float32)
    with torch.no_grad(): two(batch(one, torch.float32)[0])
    assert {m.way for m in two.wire.messages} == {"forward"}


def test_messages_are_those_of_the_last_step():
    one, two = networks(torch.float32)
    x, y = batch(one, torch.float32)
    for _ in range(3):
        gradients(two, x, y)
        assert len(two.wire.messages) == 18


def test_frozen_weights_stay_frozen():
    one, _ = networks(torch.float32)
    one.features[0].requires_grad_(False)
    frozen = [name for name, p in TwoTowers(one).named_parameters() if not p.requires_grad]
    assert frozen == [f"towers.{i}.features.0.{part}" for i in (0, 1) for part in ("weight", "bias")]


def test_the_wire_copies_even_to_the_same_device():
    wire, a, b = _Wire(), torch.zeros(2, 3), torch.ones(2, 3)
    sent = wire.carry(a, "here", "forward", 0)
    sent += 1
    assert not a.any() and wire.exchange([a, b], "here")[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2


# ---------------------------------------------------------------- weights in both forms

@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_state_dicts_go_there_and_back(options):
    one, two = networks(torch.float32, **options)
    state = one.state_dict()
    assert _split_state(state).keys() == two.state_dict().keys()
    for name, value in _split_state(state).items(): assert torch.equal(value, two.state_dict()[name])
    back = _join_state(two.state_dict())
    assert list(back) == list(state) and all(torch.equal(back[name], state[name]) for name in state)


def test_a_checkpoint_from_either_works_with_the_other(tmp_path):
    one, two = networks(torch.float32, num_classes=4)
    with torch.no_grad():
        for p in two.parameters(): p.mul_(1.1)
    save_checkpoint(tmp_path / "joined.pkl", {"model": _join_state(two.state_dict())})
    read = build_model(read_checkpoint(tmp_path / "joined.pkl")).eval()
    x = batch(one, torch.float32)[0]
    torch.testing.assert_close(read(x), two.eval()(x))
    save_checkpoint(tmp_path / "one.pkl", {"model": one.state_dict()})
    two.load_state_dict(_split_state(read_checkpoint(tmp_path / "one.pkl")["model"]))
    torch.testing.assert_close(two(x), one.eval()(x))


def test_the_network_in_one_piece_stays_as_it_was():
    one, two = networks(torch.float32)
    state = copy.deepcopy(one.state_dict())
    with torch.no_grad():
        for p in two.parameters(): p.zero_()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    assert two.training and not TwoTowers(one.eval()).training


# ---------------------------------------------------------------- errors

def says(f, *args) -> str:
    "The message of its ValueError, which is one line."
    with pytest.raises(ValueError) as e: f(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_errors_are_one_clear_line():
    one, two = networks(torch.float32)
    single = AlexNet(width=THIN)
    assert "the network has one tower" in says(TwoTowers, single) and "towers=2" in says(TwoTowers, single)
    assert "the network has one tower" in says(_split_state, single.state_dict())
    assert "features.0.weight is missing" in says(_split_state, two.state_dict())
    assert "not the weights of two towers" in says(_join_state, one.state_dict())
    lacking = {name: t for name, t in two.state_dict().items() if name != "towers.1.classifier.6.bias"}
    assert "not the weights of two towers" in says(_join_state, lacking)
    assert "not the weights of two towers" in says(_join_state, two.state_dict() | {"else": torch.zeros(1)})
    assert ("two devices, got ('cpu', 'cpu', 'cpu')" in says(TwoTowers, one, ("cpu", "cpu", "cpu"))
            and "got 'cpu'" in says(TwoTowers, one, "cpu"))
    with mock.patch("torch.cuda.device_count", return_value=1):
        assert "no device cuda:1 here: this machine has 1 CUDA" in says(TwoTowers, one, ("cuda:0", "cuda:1"))
    assert "expected (N, 3, 227, 227), got (1, 3, 224, 224)" in says(two, torch.zeros(1, 3, 224, 224))


# ---------------------------------------------------------------- what other ways would send

def test_traffic_of_the_whole_network():
    with torch.device("meta"): model, image = AlexNet(1000), torch.empty(1, 3, 227, 227)
    model.train().features[2].eval()  # a part that is frozen stays so
    layers = _layer_traffic(model, image)
    assert (model.training and not model.features[2].training and model.features[4].training
            and not any(m._forward_pre_hooks for m in model.modules()))
    assert (sum(layer.params for layer in layers) == 62_378_344
            and sum(layer.inputs for layer in layers[1:]) == 260_448)
    assert [layer.name for layer in layers] == list(claims_two_towers._PAPER_NAMES)
    assert (layers[1].crossover == pytest.approx(614_656 / 69_984)
            and layers[5].crossover == pytest.approx(4096, rel=1e-3))
    for p in (2, 3, 1000):
        for layer in layers[1:]:
            n = math.floor(layer.crossover)
            below, above = (_model_parallel_bytes([layer], images, p) for images in (n, n + 1))
            assert below <= _data_parallel_bytes([layer], p) < above
    assert _data_parallel_bytes(layers, 1) == _model_parallel_bytes(layers, 128, 1) == 0


def test_the_wire_and_the_formula_agree_on_a_layer_that_mixes():
    "fc7 on two devices: each sends half of the inputs and as many gradients."
    layer = _LayerTraffic("classifier.4", 16_781_312, 4096)
    with torch.device("meta"): two = TwoTowers(AlexNet(towers=2), ("meta", "meta"))
    two(torch.empty(BATCH, 3, 227, 227, device="meta")).sum().backward()
    assert two.wire.bytes(place="fc7", sender=0) == _model_parallel_bytes([layer], BATCH, 2)


def test_ring_seconds():
    assert _ring_seconds(240e6, 1, 1e9, 1.0) == 0
    assert (_ring_seconds(240e6, 2, 1e9) == pytest.approx(0.24)
            and _ring_seconds(240e6, 8, 1e9, 1e-3) == pytest.approx(0.42 + 0.014))
    assert _ring_seconds(240e6, 10**6, 1e9) < 0.48


def test_the_gap_between_towers_against_chance():
    apart = torch.cat([torch.zeros(48), torch.ones(48)])
    assert tower_gap(apart)[0] == 1 and tower_gap(apart)[1] < 0.001
    assert tower_gap(torch.arange(96) % 2 * 1.0) == (0, 1)
    chances = [tower_gap(torch.rand(20, generator=torch.Generator().manual_seed(s)), 200)[1]
               for s in range(100)]
    assert 0.4 < sum(chances) / 100 < 0.6  # of what is alike, any chance is as likely as another
