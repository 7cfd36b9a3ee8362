"The loop of the lesson on plain modules and plain batches: what it computes, what it tells, what it refuses."
import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from alexnet_nb.base.errors import RunError
from alexnet_nb.data import Batches, drawings, prepare_batch, usual_recipe
from alexnet_nb.model import AlexNet
from alexnet_nb.train import (
    Diverged,
    Evaluation,
    Progress,
    _next_rate,
    confusion_matrix,
    evaluate,
    make_optimizer,
    make_scheduler,
    rescale_velocity,
    set_rate,
    train,
    train_step,
)
from common import ROOT

CLASSES, IMAGES, SIZE = 3, 25, 8  # batches of 8, 8, 8 and 1


@pytest.fixture
def data():
    "Three clouds of points in ten dimensions, with their labels."
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(IMAGES) % CLASSES
    return torch.randn(IMAGES, 10, generator=rng) + 2 * F.one_hot(y, 10), y


@pytest.fixture
def batches(data): return list(zip(*(part.split(SIZE) for part in data), strict=True))


def mlp(seed=0, dropout=0.5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def ten_lines(model, batches, epochs, rate=0.05):
    "The loop with nothing added; the loss of each step."
    optimizer, losses = make_optimizer(model, rate), []
    for _ in range(epochs):
        for x, y, *_ in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


class WithIndex:
    "An iterable that is no list: each pass gives (x, y, index)."
    def __init__(self, batches): self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        for k, (x, y) in enumerate(self.batches): yield x, y, torch.arange(k * SIZE, k * SIZE + len(y))


# ---------------------------------------------------------------- the loop

@pytest.mark.parametrize("wrap", [list, WithIndex], ids=["pairs", "with index"])
def test_it_is_the_ten_lines(batches, wrap):
    "To the last bit, with dropout on."
    ours, plain, given = mlp(), mlp(), wrap(batches)
    torch.manual_seed(1)
    losses = ten_lines(plain, batches, 3)
    torch.manual_seed(1)
    history = train(ours, given, epochs=3, learning_rate=0.05)
    assert torch.equal(weights(ours), weights(plain)) and [e.number for e in history] == [1, 2, 3]
    sizes = [len(y) for _, y in batches]
    for e, part in zip(history, np.reshape(losses, (3, -1)), strict=True):
        assert math.isclose(e.loss, np.average(part, weights=sizes), rel_tol=1e-6)  # by images
        assert e.validation is None and e.rate == 0.05
    assert getattr(given, "passes", 3) == 3


def test_a_tensor_data_set_and_an_mlp(data):
    loader = DataLoader(TensorDataset(*data), SIZE, shuffle=True)
    model = mlp()
    before = evaluate(model, loader)
    history = train(model, loader, loader, epochs=20, learning_rate=0.05, warmup_steps=5)
    assert history[-1].validation.loss < before.loss - 0.3 and history[-1].validation.accuracy >= 0.9
    assert history[-1].validation.probabilities.shape == (IMAGES, CLASSES)


def test_a_variant_of_alexnet_in_ten_lines():
    "Another normalisation, pictures in a TensorDataset: what a reader would type."
    pictures = drawings(40, seed=3)
    x = prepare_batch(torch.from_numpy(pictures.items).permute(0, 3, 1, 2), usual_recipe())
    loader = DataLoader(TensorDataset(x, torch.from_numpy(pictures.labels)), 10, shuffle=True)
    torch.manual_seed(0)
    net = AlexNet(width=1 / 16, lrn="none", dropout=0.0)
    net.features[2], net.features[6] = nn.BatchNorm2d(6), nn.BatchNorm2d(16)
    net.classifier[1] = nn.Sequential(net.classifier[1], nn.BatchNorm1d(256))
    history = train(net, loader, epochs=5, learning_rate=0.02)
    assert history[-1].loss < history[0].loss - 0.1
    assert net.features[2].num_batches_tracked == 20
    result = evaluate(net, loader)
    assert result.labels.bincount().tolist() == [4] * 10 and net.features[2].num_batches_tracked == 20


def test_the_python_of_the_readme():
    "It runs as printed there, and learns."
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    assert len([line for line in code.splitlines() if line]) <= 13
    torch.manual_seed(0)
    exec(code, names := {})
    assert names["e"].validation.accuracy >= 0.6 and isinstance(names["model"].features[2], nn.BatchNorm2d)


def test_the_lessons_own_batches():
    "`Batches` gives (x, y, index) in another order each epoch; without a seed in the order of the pictures."
    pictures, net = drawings(12, seed=3), AlexNet(width=0.05)
    recipe = usual_recipe()
    history = train(net, Batches(pictures, recipe, 5), Batches(pictures, recipe, 5, None), epochs=2)
    assert [e.validation.indices.tolist() for e in history] == [list(range(12))] * 2
    assert history[0].validation.labels.tolist() == pictures.labels.tolist()


def test_callbacks_are_told_everything(batches):
    steps, epochs, model = [], [], mlp()
    optimizer = make_optimizer(model, 0.1)
    history = train(model, batches, batches, epochs=2, optimizer=optimizer, warmup_steps=6,
                    after_step=steps.append, after_epoch=epochs.append)
    assert epochs == history and [s.number for s in steps] == list(range(1, 9))
    assert [s.epoch for s in steps] == [1] * 4 + [2] * 4 and [s.images for s in steps] == [8, 8, 8, 1] * 2
    np.testing.assert_allclose([s.rate for s in steps], [0.1 * min(1, t / 6) for t in range(1, 9)])
    assert [e.rate for e in epochs] == [steps[3].rate, steps[7].rate]
    for e in epochs:
        of = [s for s in steps if s.epoch == e.number]
        assert math.isclose(e.loss, sum(float(s.loss) * s.images for s in of) / IMAGES, rel_tol=1e-6)
        assert math.isclose(e.accuracy, sum(int(s.right) for s in of) / IMAGES, rel_tol=1e-6)
    assert all(not s.loss.requires_grad and s.loss.shape == s.right.shape == () for s in steps)


class Left:
    "The batches of an epoch that are left."
    def __init__(self, batches, progress): self.batches, self.progress = batches, progress

    def __iter__(self): return iter(self.batches[self.progress.batch:])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # at 4, rightly
@pytest.mark.parametrize("stop", [1, 3, 4, 6, 11])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_going_on_gives_the_same_bits(batches, stop, schedule):
    "In the middle of an epoch and after its last step, with all but the batches stored and built anew."
    def parts():
        model = mlp()
        optimizer = make_optimizer(model, 0.05)
        return model, optimizer, make_scheduler(optimizer, schedule, epochs=3, step_size=1, gamma=0.5)

    def run(model, optimizer, scheduler, progress, **more):
        return train(model, Left(batches, progress), batches, epochs=3, optimizer=optimizer,
                     scheduler=scheduler, progress=progress, warmup_steps=5, **more)

    def interrupt(step):
        if step.number == stop: raise KeyboardInterrupt

    whole = parts()
    torch.manual_seed(1)
    history = run(*whole, Progress())
    first, progress = parts(), Progress()
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt): run(*first, progress, after_step=interrupt)
    assert (progress.step, progress.batch, progress.epoch) == (stop, (stop - 1) % 4 + 1, (stop - 1) // 4)
    stored = copy.deepcopy([part.state_dict() for part in first]), torch.get_rng_state()
    torch.manual_seed(99)
    second = parts()
    for part, state in zip(second, stored[0], strict=True): part.load_state_dict(state)
    torch.set_rng_state(stored[1])
    rest = run(*second, progress)
    assert torch.equal(weights(whole[0]), weights(second[0])) and progress == Progress(3, 0, 12)
    assert [e.number for e in rest] == [e.number for e in history][-len(rest):]
    assert rest[-1].validation.loss == history[-1].validation.loss and rest[-1].rate == history[-1].rate
    assert run(*second, progress) == []  # nothing is left


def test_another_loss_and_another_judge(batches):
    model, asked = mlp(dropout=0.0), []
    plain = copy.deepcopy(model)
    def judge(model, validation):
        asked.append(validation)
        return evaluate(model, validation)
    history = train(model, batches, batches, epochs=1, learning_rate=0.05, judge=judge,
                    loss=lambda z, y: 2 * F.cross_entropy(z, y, label_smoothing=0.1))
    assert asked == [batches] and history[0].validation.accuracy == evaluate(model, batches).accuracy
    ten_lines(plain, batches, 1)
    assert not torch.equal(weights(model), weights(plain))


def test_no_batches(batches):
    with pytest.raises(ValueError, match="nothing to train on"): train(mlp(), [], epochs=1)
    with pytest.raises(ValueError, match="nothing to evaluate"): evaluate(mlp(), [])
    with pytest.raises(ValueError, match="nothing to evaluate"): train(mlp(), batches, [], epochs=1)
    assert train(mlp(), [], epochs=0) == []


# ---------------------------------------------------------------- when it goes wrong

@pytest.mark.parametrize("validation", [False, True])
def test_a_loss_that_is_no_number(batches, validation):
    "It is the loss that is named, with its rate, before anything is asked about validation."
    x, y = batches[1]
    spoiled, asked = [batches[0], (x * math.nan, y)], []
    with pytest.raises(Diverged, match=r"the loss is nan in epoch 1 \(rate 0.05\): lower that rate"):
        train(mlp(), spoiled, batches if validation else None, epochs=2, learning_rate=0.05,
              judge=lambda *of: asked.append(of))
    assert issubclass(Diverged, RunError) and not asked


def test_outputs_that_are_no_numbers(batches):
    model = mlp().train()
    with torch.no_grad(): model[3].bias[0] = math.inf
    with pytest.raises(Diverged, match="not finite"): evaluate(model, batches)
    assert model.training


def test_plateau_needs_validation(batches):
    model = mlp()
    optimizer = make_optimizer(model, 0.1)
    scheduler = make_scheduler(optimizer, "plateau", step_size=1)
    with pytest.raises(ValueError, match="plateau schedule needs validation"):
        train(model, batches, epochs=1, optimizer=optimizer, scheduler=scheduler)


# ---------------------------------------------------------------- the step

def test_a_step_is_four_lines(batches):
    (x, y), one, two = batches[0], mlp(), mlp()
    optimizer = make_optimizer(two, 0.05)
    torch.manual_seed(1)
    loss, right = train_step(one.eval(), x, y, make_optimizer(one, 0.05))
    torch.manual_seed(1)
    logits = two(x)
    F.cross_entropy(logits, y).backward()
    optimizer.step()
    assert torch.equal(weights(one), weights(two)) and one.training
    assert loss == F.cross_entropy(logits, y) and right == (logits.argmax(1) == y).sum()
    assert not loss.requires_grad


def test_bfloat16_on_a_cpu(batches):
    "Products in 16 bits; weights, loss and what `evaluate` gives in 32."
    seen, model, exact = [], mlp(dropout=0.0), mlp(dropout=0.0)
    model[0].register_forward_hook(lambda module, x, z: seen.append(z.dtype))
    history = train(model, batches, batches, epochs=3, learning_rate=0.05, precision=torch.bfloat16)
    assert set(seen) == {torch.bfloat16} and len(seen) == 2 * 3 * len(batches)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[0].validation.probabilities.dtype == torch.float32
    expected = train(exact, batches, epochs=3, learning_rate=0.05)
    assert history[-1].loss != expected[-1].loss
    assert math.isclose(history[-1].loss, expected[-1].loss, rel_tol=0.05)


def test_float16_is_scaled(batches):
    "The loop makes a scaler if it gets none: gradients of 1e-9 would vanish in float16."
    seen, model = [], mlp(dropout=0.0)
    model[3].weight.register_hook(lambda g: seen.append(g.abs().max().item()))
    train(model, batches[:1], epochs=1, learning_rate=0.01, precision=torch.float16)
    assert seen.pop() > 100, "the gradients that backward finds are multiplied"
    train(model, batches[:1], epochs=1, learning_rate=0.01)
    assert seen.pop() < 1


def test_float64_stays_float64(batches):
    model = mlp(dropout=0.0).double()
    loss, _ = train_step(model, batches[0][0].double(), batches[0][1], make_optimizer(model, 0.1))
    assert loss.dtype == torch.float64


# ---------------------------------------------------------------- judging

def test_evaluate_leaves_no_trace(batches):
    model = mlp().train()
    state, before = torch.get_rng_state(), weights(model)
    result = evaluate(model, iter(batches))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(before, weights(model))
    assert model.training and isinstance(result, Evaluation)
    assert all(p.grad is None for p in model.parameters())
    evaluate(model.eval(), batches)
    assert not model.training
    def broken():
        yield batches[0]
        raise OSError("the disk")
    with pytest.raises(OSError, match="the disk"): evaluate(model.train(), broken())
    assert model.training


def test_evaluate_says_what_the_network_says(data, batches):
    x, y = data
    model, calls = mlp().eval(), []
    z = model(x).detach()
    result = evaluate(model, batches, torch.device("cpu"), after_batch=lambda: calls.append(1))
    torch.testing.assert_close(result.probabilities, z.softmax(1))
    assert math.isclose(result.loss, F.cross_entropy(z, y).item(), rel_tol=1e-6) and len(calls) == 4
    assert result.accuracy == (z.argmax(1) == y).sum().item() / IMAGES
    assert torch.equal(result.labels, y) and result.indices.tolist() == list(range(IMAGES))
    result.probabilities.requires_grad_()  # an ordinary tensor, not one of inference mode


def test_answers_come_in_the_order_of_the_images(data):
    x, y = data
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3))
    shuffled = [(x[i], y[i], i) for i in order.split(SIZE)]
    plain, mixed = evaluate(mlp(), [(x, y)]), evaluate(mlp(), shuffled)
    torch.testing.assert_close(mixed.probabilities, plain.probabilities)
    assert torch.equal(mixed.labels, y) and mixed.indices.tolist() == list(range(IMAGES))


def test_the_parts_of_a_group_are_put_together(data):
    "Two processes with every other image: `gather` hands each the parts of both."
    x, y = data
    parts = []
    for rank in (0, 1):
        i = torch.arange(rank, IMAGES, 2)
        evaluate(mlp(), [(x[i], y[i], i)], gather=lambda mine: parts.append(mine) or [mine])
    i = torch.arange(0, IMAGES, 2)
    result, whole = evaluate(mlp(), [(x[i], y[i], i)], gather=lambda mine: parts), evaluate(mlp(), [(x, y)])
    torch.testing.assert_close(result.probabilities, whole.probabilities)
    assert math.isclose(result.loss, whole.loss, rel_tol=1e-6) and result.accuracy == whole.accuracy


def test_the_first_k():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    result = Evaluation(0.0, 1 / 3, p, torch.tensor([0, 1, 2]), torch.arange(3))
    assert [round(result.accuracy_at(k) * 3) for k in (1, 2, 3, 5)] == [1, 2, 3, 3]
    assert confusion_matrix(result).tolist() == [[1, 0, 0]] * 3


# ---------------------------------------------------------------- rates

def rates(schedule, accuracies, **options):
    "The rate of each epoch, if validation goes like this."
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen, nothing = make_scheduler(optimizer, schedule, **options), [], [torch.empty(0)] * 3
    for accuracy in accuracies:
        set_rate(optimizer, scheduler.get_last_lr(), 0, 100)  # in the middle of a warm-up
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        _next_rate(optimizer, scheduler, Evaluation(0.0, accuracy, *nothing))
    return seen


def test_schedules():
    flat, cosine = [0.5] * 9, [(1 + math.cos(math.pi * e / 8)) / 2 for e in range(9)]
    np.testing.assert_allclose(rates("constant", flat), 1.0)
    np.testing.assert_allclose(rates("step", flat, step_size=3, gamma=0.5), np.repeat([1.0, 0.5, 0.25], 3))
    np.testing.assert_allclose(rates("cosine", flat, epochs=8), cosine)
    stalled = rates("plateau", [0.1, 0.2, 0.3, 0.3, 0.3, 0.4], step_size=1)
    np.testing.assert_allclose(stalled, [1.0] * 5 + [0.1])


def test_plateau_drops_three_times_and_no_more():
    assert np.allclose(min(rates("plateau", [0.5] * 40, step_size=1)), 1e-3)


NOT_THERE = [("steps", 0.1, "'steps' is not"), ("plateau", 1.0, "below 1")]


@pytest.mark.parametrize("schedule, gamma, says", NOT_THERE)
def test_schedules_that_there_are_not(schedule, gamma, says):
    optimizer = make_optimizer(mlp(), 0.1)
    with pytest.raises(ValueError, match=says): make_scheduler(optimizer, schedule, gamma=gamma)


def test_what_decays():
    "Weights; not biases, the numbers of a normalisation, or a number alone. None is forgotten."
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    make_optimizer(model, 0.1, weight_decay=0.5).step()
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b * 0.95 if p.dim() > 1 else b)
    assert sum(len(g["params"]) for g in make_optimizer(model, 0.1).param_groups) == len(before) == 7


def test_the_velocity_is_carried_over_a_drop():
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    rescale_velocity(optimizer, 0.1, 0.01)  # before the first step there is nothing to carry
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"], p.grad = 0.01, torch.zeros(3)
    rescale_velocity(optimizer, 0.1, 0.01)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.1 - 0.09))


def test_a_scheduler_alone_brings_its_optimizer():
    "Else its rates would steer another one, and whatever it was made with would be lost without a word."
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], epochs=1,
          scheduler=make_scheduler(optimizer, "step"))
    assert len(optimizer.state) == 2, "Adam has taken no step"


def test_class_probabilities_as_targets_are_counted_by_the_likeliest():
    torch.manual_seed(0)
    net, x = torch.nn.Linear(6, 3), torch.randn(8, 6)
    y = torch.rand(8, 3).softmax(1)
    epoch, = train(net, [(x, y)], epochs=1, learning_rate=1e-9)
    assert epoch.accuracy == (net(x).argmax(1) == y.argmax(1)).float().mean().item()


def test_evaluating_leaves_nothing_that_cannot_be_learnt_from():
    "Also what a module makes in its first pass."
    class Caches(torch.nn.Linear):
        ramp = None
        def forward(self, x):
            if self.ramp is None: self.ramp = torch.linspace(0, 1, 6) * self.weight.new_ones(6)
            return super().forward(x * self.ramp)
    net, batches = Caches(6, 3), [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), torch.arange(4), "more")]
    evaluate(net, batches)
    train(net, batches, batches, epochs=1)


def test_labels_of_eight_bits_do_not_wrap_round():
    y = torch.arange(20).repeat(2).to(torch.uint8)
    net = torch.nn.Linear(4, 20)
    counts = confusion_matrix(evaluate(net, [(torch.randn(40, 4), y)]))
    assert counts.sum(1).tolist() == [2] * 20


def test_a_plateau_drops_every_group_three_times():
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=lr) for lr in (0.01, 0.0001)]
    optimizer = torch.optim.SGD(groups)
    scheduler = make_scheduler(optimizer, "plateau", step_size=0)
    for _ in range(8): scheduler.step(1.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-5, 1e-7])
