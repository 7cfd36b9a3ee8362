"""The authors' CIFAR-10 networks: their sizes, layers, rule of learning and views, each against an
independent computation."""
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.pictures import stack_pixels
from alexnet_nb.claims import small_nets as claims_small_nets
from alexnet_nb.claims.small_nets import (
    NETS,
    _Local2d,
    _SameMapNorm,
    _Stage,
    build_net,
    chances,
    change_rate,
    cut,
    mean_image,
    net_optimizer,
    net_table,
    ten_views,
    train_epoch,
    view_probabilities,
)


def numbers(*shape, scale=1., seed=0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(n, seed=0) -> torch.Tensor:
    "Pictures in which every pixel is drawn for itself."
    return torch.randint(256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed),
                         dtype=torch.uint8)


# sizes

@pytest.mark.parametrize("name, parameters, macs",
                         [("80sec", 145_578, 12_354_176),
                          ("19pct", 89_578, 12_298_240),
                          ("18pct", 89_578, 12_298_240),
                          ("13pct", 1_116_490, 18_517_248),
                          ("11pct_first", 1_116_490, 18_517_248),
                          ("11pct", 2_112_970, 19_512_576)])
def test_counts(name, parameters, macs):
    net = build_net(name)
    rows = net_table(net, NETS[name].side)
    assert sum(p.numel() for p in net.parameters()) == sum(r.params for r in rows) == parameters
    assert sum(r.macs for r in rows) == macs


def test_every_layer_of_the_13_per_cent_network():
    rows = {r.name: r for r in net_table(build_net("13pct"), 24)}
    assert [r.params for r in rows.values() if r.params] == [4_864, 102_464, 664_704, 332_928, 11_530]
    outputs = {"conv1": (64, 24, 24), "pool1": (64, 12, 12), "pool2": (64, 6, 6), "local4": (32, 6, 6),
               "fc10": (10,)}
    assert {name: rows[name].output for name in outputs} == outputs
    fields = {"conv1": 5, "pool1": 7, "conv2": 15, "pool2": 19, "local3": 27, "fc10": None}
    assert {name: rows[name].field for name in fields} == fields


def test_poolings_round_up():
    for net, sides in ((build_net("19pct"), [16, 8, 4]), (build_net("13pct", side=32), [16, 8])):
        assert [r.output[-1] for r in net_table(net, 32) if r.name.startswith("pool")] == sides


def test_the_first_11_differs_by_two_normalisations_and_the_schedule():
    first, plain = NETS["11pct_first"].layers, NETS["13pct"].layers
    ours = [(layer.kind, layer.maps, layer.std, layer.decay, [s for s in layer.then if isinstance(s, str)])
            for layer in first]
    assert ours == [(layer.kind, layer.maps, layer.std, layer.decay, list(layer.then)) for layer in plain]
    more = [s for layer in first for s in layer.then if not isinstance(s, str)]
    assert more == [("across", 5, .001)] * 2


def test_schedules():
    assert NETS["13pct"].schedule == (_Stage((1, 2, 3, 4), 100, .001),
                                      *(_Stage((1, 2, 3, 4, 5), n, rate)
                                        for n, rate in ((40, .001), (10, .0001), (10, .00001))))
    epochs = {name: net.schedule and [s.epochs for s in net.schedule] for name, net in NETS.items()}
    assert epochs == {"80sec": None, "19pct": None, "18pct": [120, 10, 10], "13pct": [100, 40, 10, 10],
                      "11pct_first": [300, 150, 10, 10], "11pct": [350, 150, 10, 10]}


# the whole forward, written out

def local(x, part):
    "An untied layer by einsum over unfolded patches."
    side = x.shape[-1]
    # positions, places in the window, channels, maps
    kernels = part.weight.view(side * side, 9, -1, part.weight.shape[-1])
    patches = F.unfold(x, 3, padding=1).view(len(x), x.shape[1], 9, side * side)
    return (torch.einsum("pkcm,nckp->nmp", kernels, patches) + part.bias.T).view(len(x), -1, side, side)


def maxima(x): return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)


def means(x):
    "Mean over the pixels that exist."
    ones = F.pad(torch.ones_like(x), (0, 1, 0, 1))
    return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2) / F.avg_pool2d(ones, 3, 2)


def within(x):
    ones = torch.ones(x.shape[1], 1, 3, 3).to(x)
    return x / (1 + 5e-5 / 9 * F.conv2d(x**2, ones, padding=1, groups=x.shape[1])) ** .75


def written_out(name, net, x, act):
    def conv(x, part): return F.conv2d(x, part.weight, part.bias, padding=2)
    if name in ("80sec", "19pct", "18pct"):
        norm = within if name == "18pct" else lambda x: x
        x = norm(act(maxima(conv(x, net.conv1))))
        x = norm(means(act(conv(x, net.conv2))))
        x = means(act(conv(x, net.conv3))).flatten(1)
        if name == "80sec": x = act(net.fc64(x))
        return net.fc10(x)
    def across(n): return nn.LocalResponseNorm(n, alpha=.001, beta=.75, k=1.)
    if name == "13pct": x = maxima(act(conv(maxima(act(conv(x, net.conv1))), net.conv2)))
    elif name == "11pct_first":
        x = maxima(across(5)(act(conv(maxima(across(5)(act(conv(x, net.conv1)))), net.conv2))))
    else: x = maxima(across(9)(act(conv(across(9)(maxima(act(conv(x, net.conv1)))), net.conv2))))
    return net.fc10(act(local(act(local(x, net.local3)), net.local4)).flatten(1))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", NETS)
def test_the_network_is_what_its_table_says(name, activation):
    net = build_net(name, activation, side=16, seed=0).double()
    # large enough for everything to matter
    for p in net.parameters(): p.data.copy_(numbers(*p.shape, scale=.3, seed=p.numel()))
    x = numbers(2, 3, 16, 16, scale=30)
    y, ours = written_out(name, net, x, getattr(torch, activation)), net(x)
    torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(F.cross_entropy(out, torch.tensor([3, 7])), [*net.parameters()])
                 for out in (ours, y)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * b.abs().max().item())
    other = "tanh" if activation == "relu" else "relu"
    assert (y - written_out(name, net, x, getattr(torch, other))).abs().max() > 1e-3 * y.abs().max()


# layers

def shared(conv, side):
    "An untied layer with a convolution's kernel at every position."
    layer = _Local2d(conv.in_channels, conv.out_channels, side).double()
    with torch.no_grad():
        for p in range(side * side):
            for m in range(conv.out_channels):
                layer.weight[p, :, m] = conv.weight[m].permute(1, 2, 0).flatten()
            layer.bias[p] = conv.bias
    return layer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last],
                         ids=["channels first", "channels last"])
def test_local_with_shared_weights_is_a_convolution(layout):
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    layer, g = shared(conv, 5), numbers(2, 4, 5, 5, seed=1)
    x, z = (numbers(2, 3, 5, 5).to(memory_format=layout).requires_grad_() for _ in range(2))
    y = layer(x)
    torch.testing.assert_close(y, conv(z))
    y.backward(g), conv(z).backward(g)
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(layer.bias.grad.sum(0), conv.bias.grad)
    torch.testing.assert_close(layer.weight.grad.sum(0), conv.weight.grad.permute(2, 3, 1, 0).flatten(0, 2))


def test_local_gives_each_position_its_own_kernel():
    layer = _Local2d(3, 2, 4).double()
    x = numbers(2, 3, 4, 4).requires_grad_()
    torch.testing.assert_close(layer(x), local(x, layer))
    assert torch.autograd.gradcheck(layer, x)
    for p in range(16):                     # position p listens to its own weights alone
        layer.zero_grad()
        layer(x).flatten(2)[..., p].sum().backward()
        for sums in (layer.weight.grad.abs().sum((1, 2)), layer.bias.grad.abs().sum(1)):
            assert sums.nonzero().flatten().tolist() == [p]


def test_local_refuses_another_size():
    with pytest.raises(ValueError, match="expected"): _Local2d(3, 2, 4)(torch.zeros(1, 3, 5, 5))


@pytest.mark.parametrize("n", [3, 5])
def test_normalisation_within_a_map(n):
    x, y = numbers(2, 3, 6, 7, scale=200), torch.empty(2, 3, 6, 7, dtype=torch.float64)
    for r in range(6):
        for c in range(7):
            total = sum(x[:, :, i, j] ** 2 for i in range(r - n // 2, r + n // 2 + 1)
                        for j in range(c - n // 2, c + n // 2 + 1) if 0 <= i < 6 and 0 <= j < 7)
            y[:, :, r, c] = x[:, :, r, c] / (1 + 5e-5 / n**2 * total) ** .75
    torch.testing.assert_close(_SameMapNorm(n)(x), y)
    for wrong in (_SameMapNorm(8 - n)(x), _SameMapNorm(n, scale=5.1e-5)(x), _SameMapNorm(n, power=.76)(x)):
        assert not torch.allclose(wrong, y, rtol=1e-4)


# weights

def same_weights(net, *others) -> bool:
    "Bit for bit."
    return all(torch.equal(p, q) for other in others
               for p, q in zip(net.parameters(), other.parameters(), strict=True))


def test_weights():
    before = torch.get_rng_state()
    net, again, other = (build_net("11pct", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    parts = [net.conv1, net.conv2, net.local3, net.local4, net.fc10]
    for layer, part in zip(NETS["11pct"].layers, parts, strict=True):
        assert abs(part.weight.std() / layer.std - 1) < .05 and not part.bias.any()
    assert same_weights(net, again)
    assert not torch.equal(net.conv1.weight, other.conv1.weight)
    assert ([layer.std for layer in NETS["80sec"].layers] == [1e-4, .01, .01, .1, .1]
            and [layer.std for layer in NETS["13pct"].layers] == [1e-4, .01, .04, .04, .01])


def test_one_seed_one_beginning_for_networks_of_one_shape():
    nets = [build_net("13pct", seed=5), build_net("11pct_first", seed=5), build_net("13pct", "tanh", seed=5)]
    assert same_weights(*nets)


def test_without_a_seed_weights_follow_torchs_own():
    torch.manual_seed(3)
    a, b = build_net("19pct").conv1.weight, build_net("19pct").conv1.weight
    torch.manual_seed(3)
    assert torch.equal(build_net("19pct").conv1.weight, a) and not torch.equal(a, b)


@pytest.mark.parametrize("wrong", [dict(name="12pct"), dict(name="13pct", activation="elu"),
                                   dict(name="13pct", side=20), dict(name="13pct", side=0)], ids=str)
def test_refused(wrong):
    with pytest.raises(ValueError, match="must be"): build_net(**wrong)


# learning

def test_groups_of_the_optimizer():
    for name, decays in (("80sec", [.004, .004, .004, .03, .03]),
                         ("19pct", [.004, .004, .004, 3.]),
                         ("18pct", [.004, .004, .004, 1.]),
                         ("13pct", [0., 0., .004, .004, .004]),
                         ("11pct_first", [0., 0., .004, .004, .004]),
                         ("11pct", [0., 0., .004, .004, .01])):
        net = build_net(name)
        groups = net_optimizer(net).param_groups
        assert ([g["weight_decay"] for g in groups] == [*decays, 0.]
                and [g["lr"] for g in groups] == [.001] * len(decays) + [.002])
        assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in net.parameters()}
        assert not any(g["weight_decay"] for g in net_optimizer(net, decay=False).param_groups)
    groups = net_optimizer(net, .5, .25, momentum=.8).param_groups
    assert [(g["lr"], g["momentum"]) for g in groups] == [(.5, .8)] * 5 + [(.25, .8)]


def printed_rule(p, g, v, rate, decay):
    "One step as the paper prints it; returns the new velocity."
    v = .9 * v - decay * rate * p - rate * g
    p += v
    return v


@pytest.mark.parametrize("carried", [True, False])
def test_the_rule_as_printed_with_a_drop_of_the_rate(carried):
    "Equal to the printed rule; not equal if the rate is changed without carrying the velocity."
    nets = [build_net("80sec", side=8, seed=0).double() for _ in range(2)]
    optimizer, velocity = net_optimizer(nets[0]), {}
    x, y = numbers(6, 3, 8, 8, scale=60), torch.arange(6)
    for step in range(8):
        rate = .001 if step < 4 else .0001
        if carried: change_rate(optimizer, rate)
        else:
            for group in optimizer.param_groups[:-1]: group["lr"] = rate
        for net in nets:
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            parts = [(name, part) for name, part in nets[1].named_children() if list(part.parameters())]
            for (name, part), layer in zip(parts, NETS["80sec"].layers, strict=True):
                for p, key, own, decay in ((part.weight, name, rate, layer.decay),
                                           (part.bias, name + "b", .002, 0.)):
                    velocity[key] = printed_rule(p, p.grad, velocity.get(key, 0.), own, decay)
    same = [torch.allclose(p, q, rtol=1e-9, atol=1e-13)
            for p, q in zip(*(net.parameters() for net in nets), strict=True)]
    assert all(same) if carried else not all(same)


def test_the_rate_of_biases_is_not_lowered():
    optimizer = net_optimizer(build_net("19pct"))
    change_rate(optimizer, 1e-4)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-4] * 4 + [.002]


# pictures

def test_mean_image():
    pixels = noise(300)
    torch.testing.assert_close(mean_image(pixels), pixels.double().mean(0).float(), rtol=1e-6, atol=0)
    assert mean_image(pixels).shape == (3, 32, 32) and mean_image(pixels).dtype == torch.float32


def test_chances():
    luck = chances(1, 2, 30_000, 24)
    assert luck.dtype == torch.int64 and luck.shape == (30_000, 3)
    counts = (luck[:, 0] * 18 + luck[:, 1] * 2 + luck[:, 2]).bincount(minlength=162)
    # 81 places, flipped or not, about equally often
    assert len(counts) == 162 and abs(counts / 30_000 * 162 - 1).max() < .3
    assert torch.equal(chances(1, 2, 30_000, 24), luck) and torch.equal(chances(1, 2, 10, 24), luck[:10])
    assert not any(torch.equal(chances(*which, 10, 24), luck[:10]) for which in ((1, 3), (2, 2), (2, 1)))
    # recorded: experiments depend on it
    assert chances(0, 0, 4, 24).tolist() == [[7, 5, 1], [2, 2, 0], [0, 0, 0], [7, 5, 1]]
    assert not chances(0, 0, 50, 32)[:, :2].any() and chances(0, 0, 50, 32)[:, 2].any()


def test_cut():
    pixels, mean, luck = noise(30), mean_image(noise(30, 1)), chances(0, 0, 30, 24)
    x = cut(pixels, mean, 24, luck)
    for i, (top, left, flip) in enumerate(luck.tolist()):
        for r, c in ((0, 0), (5, 9), (23, 23)):
            there = pixels[i, :, top + r, left + (23 - c if flip else c)]
            assert torch.equal(x[i, :, r, c], there - mean[:, 4 + r, 4 + c])
    assert torch.equal(cut(pixels, mean, 24), pixels[..., 4:28, 4:28].float() - mean[..., 4:28, 4:28])
    assert torch.equal(cut(pixels, mean, 32), pixels.float() - mean)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="32 pixels"): cut(pixels, mean, 33)


def test_ten_views():
    pixels, mean = noise(3), torch.zeros(3, 32, 32)
    views = ten_views(pixels, mean, 24)
    assert views.shape == (10, 3, 3, 24, 24)
    for view, (r, c) in zip(views[:5], ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)), strict=True):
        assert torch.equal(view, pixels[..., r:r + 24, c:c + 24].float())
    assert torch.equal(views[5:], views[:5].flip(-1))


def test_view_probabilities_are_means_of_probabilities():
    net, pixels, mean = build_net("13pct", side=8, seed=0), noise(7), torch.full((3, 32, 32), 127.)
    with torch.no_grad():
        for p in net.parameters(): p.mul_(8)        # so that views disagree
        logits = torch.stack([net(view) for view in ten_views(pixels, mean, 8)])
    p = view_probabilities(net.train(), pixels, mean, 8, batch_size=3)
    assert net.training and p.shape == (7, 10) and not p.requires_grad
    torch.testing.assert_close(p, logits.softmax(2).mean(0))
    assert (p - logits.mean(0).softmax(1)).abs().max() > .01
    torch.testing.assert_close(view_probabilities(net, pixels, mean, 8, views=1), logits[4].softmax(1))
    with pytest.raises(ValueError, match="1 or 10"): view_probabilities(net, pixels, mean, 8, views=5)


# an epoch

def test_minibatches_never_take_from_two_data_batches():
    parts = claims_small_nets._minibatches(50_000, 128)
    assert len(parts) == 395 and len(claims_small_nets._minibatches(40_000, 128)) == 316
    assert parts[78] == slice(9984, 10_000) and parts[79] == slice(10_000, 10_128)
    parts = claims_small_nets._minibatches(20_777, 128)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(20_777))


@pytest.mark.parametrize("with_luck", [True, False])
def test_an_epoch_is_a_plain_loop_in_order(with_luck, monkeypatch):
    monkeypatch.setattr(claims_small_nets, "_DATA_BATCH", 20)
    pixels, labels, mean = noise(50), torch.arange(50) % 10, mean_image(noise(50))
    luck = chances(0, 0, 50, 8) if with_luck else None
    ours, plain = (build_net("19pct", side=8, seed=0) for _ in range(2))
    result = train_epoch(ours, net_optimizer(ours), pixels, labels, mean, 8, luck, batch_size=16)
    optimizer, losses, wrong = net_optimizer(plain), 0., 0
    for a, b in ((0, 16), (16, 20), (20, 36), (36, 40), (40, 50)):
        logits = plain(cut(pixels[a:b], mean, 8, luck[a:b] if with_luck else None))
        loss = F.cross_entropy(logits, labels[a:b])
        losses, wrong = losses + loss.item() * (b - a), wrong + (logits.argmax(1) != labels[a:b]).sum().item()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert result == pytest.approx((losses / 50, wrong / 50), rel=1e-6)
    assert same_weights(ours, plain)


def test_no_number_is_asked_for_before_the_end(monkeypatch):
    asked, tolist = [], torch.Tensor.tolist
    net = build_net("11pct_first", side=8, seed=0)
    optimizer, luck = net_optimizer(net), chances(0, 0, 40, 8)
    for name in ("item", "__float__", "__int__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name,
                            lambda self, *args, name=name, **kw: pytest.fail(f"asked for {name}"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: asked.append(tuple(self.shape)) or tolist(self))
    train_epoch(net, optimizer, noise(40), torch.arange(40) % 10, torch.zeros(3, 32, 32), 8, luck, 8)
    assert asked == [(2,)]


def test_divergence_is_for_the_caller_to_see():
    net = build_net("19pct", side=8, seed=0)
    optimizer = net_optimizer(net, rate=1e6)
    loss, _ = train_epoch(net, optimizer, noise(60), torch.arange(60) % 10, torch.zeros(3, 32, 32), 8,
                          batch_size=8)
    assert not math.isfinite(loss)


def test_training_goes_on_exactly_from_saved_states():
    pixels, labels, mean = noise(64), torch.arange(64) % 10, mean_image(noise(64))

    def epochs(net, optimizer, which):
        for e in which:
            change_rate(optimizer, .001 if e < 2 else .0001)
            result = train_epoch(net, optimizer, pixels, labels, mean, 8, chances(0, e, 64, 8), 16)
        return result

    net = build_net("13pct", side=8, seed=0)
    optimizer = net_optimizer(net)
    epochs(net, optimizer, range(3))
    saved = {k: v.clone() for k, v in net.state_dict().items()}
    torch.save(optimizer.state_dict(), "o.pt")
    straight = epochs(net, optimizer, [3])
    again = build_net("13pct", side=8, seed=9)
    again.load_state_dict(saved)
    other = net_optimizer(again)
    other.load_state_dict(torch.load("o.pt", weights_only=True))
    assert epochs(again, other, [3]) == straight
    assert same_weights(net, again)


@pytest.mark.parametrize("name", ["13pct", "11pct_first"])
def test_it_learns_drawings_and_not_shuffled_labels(name):
    images = drawings(200, 0)
    pixels, labels = stack_pixels(images, 2**30), torch.from_numpy(images.labels)
    mean, last = mean_image(pixels), {}
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    for what, y in (("true", labels), ("shuffled", shuffled)):
        net = build_net(name, side=16, seed=0)
        optimizer = net_optimizer(net)
        for _ in range(5): last[what] = train_epoch(net, optimizer, pixels, y, mean, 16, None, 8)[1]
    assert last["true"] < .45 < .75 < last["shuffled"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("name", NETS)
def test_cuda_does_what_the_cpu_does(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net, there = build_net(name, seed=0), build_net(name, seed=0).cuda()
    pixels, _, mean = given = noise(64), torch.arange(64) % 10, mean_image(noise(64))
    side, luck = NETS[name].side, chances(0, 0, 64, NETS[name].side)
    here = train_epoch(net, net_optimizer(net), *given, side, luck, 16)
    ours = train_epoch(there, net_optimizer(there), *(t.cuda() for t in given), side, luck, 16)
    assert ours == pytest.approx(here, rel=1e-3)
    p = view_probabilities(there, pixels.cuda(), mean.cuda(), side)
    torch.testing.assert_close(p.cpu(), view_probabilities(net, pixels, mean, side), rtol=1e-2, atol=1e-3)
