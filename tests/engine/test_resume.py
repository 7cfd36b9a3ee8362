"""A run that was cut in pieces, politely or by kill -9, equals the run that was left alone: bit for bit,
batches, logs and all."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from alexnet_nb import inference, train
from alexnet_nb.base.pictures import open_rgb
from alexnet_nb.engine import checkpoint as engine_checkpoint
from alexnet_nb.engine import logs as engine_logs
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.engine.config import given_values, load_config
from common import (
    EACH_STEP,
    LONG,
    STEPS,
    TESTS,
    check_equal,
    class_folders,
    differences,
    hook_steps,
    lines,
    load,
    run_without_panels,
    snapshot,
    tiny,
)

needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "Four epochs without a break."
    return run_without_panels(tmp_path_factory.mktemp("straight"), **LONG)


def go_on(out, **changes) -> int:
    "Resume the last checkpoint, with two workers: they change nothing."
    return train.main(["--resume", str(out / "models" / "alexnet_last.pkl"),
                       *tiny(out, **LONG | dict(data__num_workers=2) | changes)])


def test_the_long_run_has_what_makes_resuming_hard(straight):
    config, steps = load(straight / "models" / "alexnet_final.pkl")["config"], lines(straight)
    assert config["model"]["dropout"] == 0.5
    assert [steps[i]["learning_rate"] for i in (0, 2, 11, 12)] == pytest.approx([0.01 / 3, 0.01, 0.01, 0.005])
    assert len({row["loss"] for row in steps}) == 4 * STEPS


def test_two_plus_two_epochs_equal_four(tmp_path, straight, no_panels, capsys):
    assert train.main(tiny(tmp_path, **LONG | dict(training__num_epochs=2))) == 0
    final = tmp_path / "models" / "alexnet_final.pkl"
    assert train.main(["--resume", str(final), *tiny(tmp_path, **LONG, data__num_workers=2)]) == 0
    best_is_of_the_first = load(tmp_path / "models" / "alexnet_best.pkl")["epoch"] <= 2
    check_equal(tmp_path, straight, but=["config.training.num_epochs"] * best_is_of_the_first)
    first = load(tmp_path / "models" / "alexnet_final.previous.pkl")
    assert (first["epoch"], first["total_steps"]) == (2, 2 * STEPS)


def test_the_linear_baseline_draws_no_numbers_of_the_run(tmp_path, straight, no_panels):
    "It is fitted before the final checkpoint is written, whose random state a longer run goes on from."
    first = LONG | dict(training__num_epochs=2, training__linear_baseline=True)
    assert train.main(tiny(tmp_path, **first)) == 0
    final = tmp_path / "models" / "alexnet_final.pkl"
    assert train.main(["--resume", str(final), *tiny(tmp_path, **LONG)]) == 0
    a, b = (load(out / "models" / "alexnet_final.pkl") for out in (tmp_path, straight))
    for key in ("model", "optimizer", "random"): assert differences(a[key], b[key]) == [], key


def test_every_file_of_events_has_a_second_of_its_own(tmp_path):
    """TensorBoard reads files in the order of their names: second, machine, process, and a counter whose 100
    comes before its 99."""
    for step in range(3): engine_logs.Log(tmp_path, step).close()
    for part in ("train", "val"):
        seconds = [p.name.split(".")[3] for p in (tmp_path / part).iterdir()]
        assert len(seconds) == len(set(seconds)) == 3


# ---------------------------------------------------------------- stopped by a signal

def signal_at(monkeypatch, where: int | str, number: int) -> None:
    "Send this process a signal in the middle of a step, or in a validation or the test."
    evaluate, calls = engine_run.evaluate, []
    def before(step):
        if step + 1 == where: os.kill(os.getpid(), number)
    def evaluating(*args, **more):
        calls.append(1)
        if len(calls) == {"validation 2": 2, "test": 5}.get(where): os.kill(os.getpid(), number)
        return evaluate(*args, **more)
    hook_steps(monkeypatch, before)
    monkeypatch.setattr(engine_run, "evaluate", evaluating)


@needs_kill
@pytest.mark.parametrize("name, code, where, steps",
                         [("SIGTERM", 143, 9, 9), ("SIGINT", 130, 12, 12), ("SIGINT", 130, 1, 1),
                          ("SIGTERM", 143, "validation 2", 12), ("SIGINT", 130, "test", 24)])
def test_stopped_by_a_signal(name, code, where, steps, tmp_path, monkeypatch, straight, no_panels, capsys):
    "The step is finished, a checkpoint written, one line says how to go on; going on makes the same run."
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as m:
        signal_at(m, where, getattr(signal, name))
        assert train.main(tiny(tmp_path, **LONG)) == code
    path = tmp_path / "models" / "alexnet_last.pkl"
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1] == f"stopped ({name}) after {steps} step{'s' * (steps > 1)}; go on with "
            f"--resume {path}" and "Traceback" not in err)
    assert load(path)["total_steps"] == steps and len(lines(tmp_path)) == steps
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert go_on(tmp_path) == 0
    check_equal(tmp_path, straight)


@needs_kill
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_real_process_ended_from_outside(name, code, tmp_path, straight, no_panels):
    """The whole process group gets the signal, workers too, as from Ctrl-C or a cluster's scheduler, wherever
    the run happens to be."""
    argv = tiny(tmp_path, **LONG | EACH_STEP, data__num_workers=2)
    with open(tmp_path / "killed", "w") as err:
        process = subprocess.Popen([sys.executable, "-m", "alexnet_nb.train", *argv], stdout=subprocess.PIPE,
                                   stderr=err, text=True, start_new_session=True)
        log, deadline = tmp_path / "tblogs" / "run-001" / "steps.jsonl", time.monotonic() + 300
        while not (log.exists() and log.read_bytes().count(b"\n") >= 8):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "killed").read_text()
            time.sleep(0.01)
        os.killpg(process.pid, getattr(signal, name))
        out = process.communicate(timeout=120)[0]
    assert process.returncode == code
    assert "Traceback" not in (tmp_path / "killed").read_text()
    if name != "SIGKILL":
        assert (out.splitlines()[-1].startswith(f"stopped ({name}) after ")
                and "go on with --resume" in out.splitlines()[-1])
    assert go_on(tmp_path) == 0
    check_equal(tmp_path, straight)


# ---------------------------------------------------------------- ended by kill -9 at the worst moments

DRIVER = '''
import os, signal, sys
tests, point, *argv = sys.argv[1:]
sys.path.insert(0, tests)
from alexnet_nb import train
from alexnet_nb.engine import files, run as engine
from planting import plant
plant(engine, "write_panels", lambda *args: None)
save_last, copy = engine.save_last, files.copy_checkpoint
set_rate, torch_save = train.set_rate, files.torch.save

def die(): os.kill(os.getpid(), signal.SIGKILL)

def in_a_step(optimizer, rates, step, warmup_steps):  # after the checkpoint of step 8
    if step == 8: die()
    set_rate(optimizer, rates, step, warmup_steps)

def log_ahead(run, *accuracy):  # step 9 is in the log, and half a line more, but in no checkpoint
    if run.progress.step == 9:
        with open(run.folder / "steps.jsonl", "a") as f: f.write('{"step": 10, "epoch": 2, "lo')
        die()
    save_last(run, *accuracy)

def while_saving(checkpoint, f):  # half of step 9's checkpoint is on disk
    if checkpoint["total_steps"] == 9:
        f.write(b"half of a checkpoint")
        f.flush()
        die()
    torch_save(checkpoint, f)

def before_epoch_is_saved(run, *accuracy):  # epoch 2 is validated and logged; the checkpoint is older
    if run.progress.epoch == 2 and run.progress.batch == 0: die()
    save_last(run, *accuracy)

def between_epochs(run, *accuracy):
    save_last(run, *accuracy)
    if run.progress.epoch == 2 and run.progress.batch == 0: die()

def before_final(run): die()

def before_mark(source, target):  # the final checkpoint is there, the last one does not know it yet
    if source.name == "alexnet_final.pkl": die()
    copy(source, target)

elsewhere = dict(in_a_step=(train, "set_rate"), while_saving=(files.torch, "save"),
                 before_final=(engine, "_save_final"), before_mark=(files, "copy_checkpoint"))
plant(*elsewhere.get(point, (engine, "save_last")), globals()[point])
sys.exit(train.main(argv))
'''
POINTS = {"in_a_step": 8, "log_ahead": 8, "while_saving": 8, "before_epoch_is_saved": 12,
          "between_epochs": 12, "before_final": 24, "before_mark": 24}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "A process for each point, two at a time, that kills itself there; gives the folders."
    folders, queue, running = {p: tmp_path_factory.mktemp(p) for p in POINTS}, list(POINTS), []
    while queue or running:
        while queue and len(running) < 2:
            point = queue.pop(0)
            argv = tiny(folders[point], **LONG | EACH_STEP)
            command = [sys.executable, "-c", DRIVER, str(TESTS), point, *argv]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert running.pop(0).wait(600) == -signal.SIGKILL
    return folders


@needs_kill
@pytest.mark.parametrize("point, step", POINTS.items())
def test_killed(point, step, killed, straight, no_panels, capsys):
    out = killed[point]
    (out / "killed").touch()
    assert load(out / "models" / "alexnet_last.pkl")["total_steps"] == step
    assert go_on(out) == 0
    assert "already finished" not in capsys.readouterr().out
    check_equal(out, straight)
    before = snapshot(out)
    assert go_on(out) == 0
    assert "already finished; 4 epochs done, 4 asked for" in capsys.readouterr().out
    assert snapshot(out) == before


@needs_kill
def test_half_written_checkpoints_are_cleared_away(tmp_path, no_panels):
    "What a killed run left half written goes when the next one has the folder to itself."
    models = tmp_path / "models"
    models.mkdir()
    left = models / ".alexnet_last.pkl.1.part"
    left.write_bytes(b"half")
    assert train.main([*tiny(tmp_path), "--minutes", "1e-9"]) == 0
    assert not left.exists()


# ---------------------------------------------------------------- a finished run

@pytest.mark.parametrize("which", ["last", "final"])
def test_finished_run_says_so_and_changes_nothing(which, trained, capsys):
    before, path = snapshot(trained), trained / "models" / f"alexnet_{which}.pkl"
    assert train.main(["--resume", str(path), *tiny(trained)]) == 0
    said = f"{path}: already finished; 2 epochs done, 2 asked for, nothing to do\n"
    assert capsys.readouterr() == (said, "")
    assert train.main(["--resume", str(path)]) == 0  # its own config says so too
    assert snapshot(trained) == before


def test_new_run_keeps_the_final_checkpoint_of_the_former(tmp_path, no_panels):
    short = tiny(tmp_path, training__num_epochs=1)
    assert train.main(short) == 0
    former = load(tmp_path / "models" / "alexnet_final.pkl")
    assert train.main([*short, "--set", "training.seed=8"]) == 0
    assert differences(load(tmp_path / "models" / "alexnet_final.previous.pkl"), former) == []
    assert load(tmp_path / "models" / "alexnet_final.pkl")["seed"] == 8
    assert sorted(p.name for p in (tmp_path / "tblogs").iterdir()) == ["run-001", "run-002"]


# ---------------------------------------------------------------- what may change on resume

def test_the_checkpoint_wins_and_says_so(tmp_path, trained, capsys, no_panels):
    path = trained / "models" / "alexnet_final.pkl"
    cfg = engine_setup.resume_config(engine_checkpoint.read_checkpoint(path),
                                     {"training": {"learning_rate": 0.5, "num_epochs": 9, "seed": 1},
                                      "data": {"num_workers": 1}, "device": {"use_cuda": True}})
    assert (cfg.training.learning_rate, cfg.training.num_epochs, cfg.training.seed) == (0.01, 9, 7)
    assert (cfg.data.num_workers, cfg.device.use_cuda) == (1, True)
    assert capsys.readouterr().out.splitlines() == [
        "training.learning_rate stays 0.01, as the checkpoint has it",
        "training.seed stays 7, as the checkpoint has it"]


def test_either_spelling_of_the_data_folder_may_change(trained):
    checkpoint = engine_checkpoint.read_checkpoint(trained / "models" / "alexnet_final.pkl")
    for given in ({"data": {"data_dir": "elsewhere"}}, {"paths": {"input_root_dir": "elsewhere"}}):
        assert engine_setup.resume_config(checkpoint, given).data.data_dir == "elsewhere"


def test_other_classes_under_the_same_number_are_refused(tmp_path, no_panels, capsys):
    root = class_folders(tmp_path / "root", classes=("ant", "bee", "fly"), train=3, test=1)
    argv = tiny(tmp_path / "out", data__dataset="ImageFolder", data__data_dir=str(root), data__val_images=3,
                model__num_classes=3)
    assert train.main([*argv, "--minutes", "1e-9"]) == 0
    for part in ("train", "test"): (root / part / "fly").rename(root / part / "moth")
    capsys.readouterr()
    before = snapshot(tmp_path)
    assert train.main(["--resume", str(tmp_path / "out" / "models" / "alexnet_last.pkl"), *argv]) == 2
    assert capsys.readouterr().err == (
        f"alexnet_train: {root}: its classes are ant, bee, moth; the checkpoint's are ant, bee, fly; "
        "make them agree\n")
    assert snapshot(tmp_path) == before


# ---------------------------------------------------------------- of others: six keys, one group, module.

def parameter_order(checkpoint: dict) -> list[str]:
    return list(checkpoint["model"])


def six_keys(checkpoint: dict, prefix: str = "") -> dict:
    """The same state as a plain PyTorch script would store it: one optimizer group in the order of the
    parameters."""
    names = parameter_order(checkpoint)
    # our groups: weights, then biases
    ours = [n for n in names if n.endswith("weight")] + [n for n in names if n.endswith("bias")]
    state = {names.index(name): checkpoint["optimizer"]["state"][i] for i, name in enumerate(ours)}
    group = checkpoint["optimizer"]["param_groups"][0] | {"params": list(range(len(names)))}
    scheduler = checkpoint["scheduler"] | {k: checkpoint["scheduler"][k][:1]
                                           for k in ("base_lrs", "_last_lr")}
    return dict(model={prefix + k: v for k, v in checkpoint["model"].items()},
                optimizer=dict(state=dict(sorted(state.items())), param_groups=[group]),
                scheduler=scheduler, epoch=checkpoint["epoch"], total_steps=checkpoint["total_steps"],
                seed=checkpoint["seed"])


def test_six_keys_are_what_torch_itself_stores(trained):
    "The helper above is honest: torch's own SGD over the parameters, in their order, takes that state."
    final = trained / "models" / "alexnet_final.pkl"
    foreign = six_keys(load(final))
    model = engine_checkpoint.build_model(engine_checkpoint.read_checkpoint(final))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    optimizer.load_state_dict(foreign["optimizer"])
    for p in model.parameters(): assert optimizer.state[p]["momentum_buffer"].shape == p.shape
    torch.optim.lr_scheduler.StepLR(optimizer, 30).load_state_dict(foreign["scheduler"])


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "module"])
def test_six_keys_predict(prefix, tmp_path, trained, pictures):
    whole = trained / "models" / "alexnet_final.pkl"
    torch.save(six_keys(load(whole), prefix), tmp_path / "six.pkl")
    ours, theirs = (load_classifier(p, torch.device("cpu"))
                    for p in (whole, tmp_path / "six.pkl"))
    assert theirs.classes == ours.classes and theirs.recipe == ours.recipe
    image = open_rgb(pictures / "003.png")
    assert torch.equal(inference.predict(ours, image), inference.predict(theirs, image))
    torch.save({"model": six_keys(load(whole), prefix)["model"]}, tmp_path / "only_model.pkl")
    only = load_classifier(tmp_path / "only_model.pkl", torch.device("cpu"))
    assert torch.equal(inference.predict(ours, image), inference.predict(only, image))


def test_config_fills_what_six_keys_lack(tmp_path, trained, pictures, capsys):
    torch.save(six_keys(load(trained / "models" / "alexnet_final.pkl")), tmp_path / "six.pkl")
    lacking = load_config(None, ["model.image_dim=224", "model.lrn=none"]).model.model_dump()
    model = load_classifier(tmp_path / "six.pkl", torch.device("cpu"), lacking).model
    assert (model.image_dim == 224 and isinstance(model.features[2], torch.nn.Identity)
            and model.features[0].out_channels == 4)
    predict = ["--checkpoint", str(tmp_path / "six.pkl"), "--image", str(pictures / "000.png"), "--json"]
    assert inference.main(predict) == 0
    usual = capsys.readouterr().out
    assert inference.main([*predict, "--set", "model.lrn=none"]) == 0
    assert capsys.readouterr().out != usual


def test_momentum_of_one_group_lands_on_the_right_tensors(tmp_path, trained):
    whole = engine_checkpoint.read_checkpoint(trained / "models" / "alexnet_final.pkl")
    torch.save(six_keys(load(trained / "models" / "alexnet_final.pkl"), "module."), tmp_path / "six.pkl")
    six = engine_checkpoint.read_checkpoint(tmp_path / "six.pkl")
    given = load_config(None, [a for a in tiny(tmp_path / "out") if a != "--set"])
    ours = engine_setup.resume_config(six, given.model_dump() | {"model": {}})
    paths = {"paths": ours.paths.model_dump(exclude={"input_root_dir"})}
    runs = [engine_setup.start(engine_setup.resume_config(whole, paths), whole),
            engine_setup.start(ours, six)]
    buffers = [{name: run.optimizer.state[p]["momentum_buffer"] for name, p in run.model.named_parameters()}
               for run in runs]
    assert differences(*buffers) == [] and len(buffers[0]) == 16
    for run in runs:
        assert all(buffers[0][name].shape == p.shape for name, p in run.model.named_parameters())
        assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.0005, 0.0]
        assert run.scheduler.get_last_lr() == [0.01, 0.01] and run.scheduler.last_epoch == 2
        assert (run.progress.epoch, run.progress.step) == (2, 2 * STEPS)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "module"])
def test_six_keys_go_on_like_the_whole_checkpoint(prefix, tmp_path, no_panels, capsys):
    """Without dropout, whose random state six keys do not hold, both end in the same bits. The stored seed
    wins over another one."""
    settings = dict(model__dropout=0.0, training__lr_step_size=1)
    assert train.main(tiny(tmp_path / "a", **settings, training__num_epochs=1)) == 0
    whole = tmp_path / "a" / "models" / "alexnet_final.pkl"
    (tmp_path / "b").mkdir()
    torch.save(six_keys(load(whole), prefix), tmp_path / "b" / "six.pkl")
    assert train.main(["--resume", str(whole), *tiny(tmp_path / "a", **settings)]) == 0
    capsys.readouterr()
    theirs = tiny(tmp_path / "b", **settings, training__seed=99, model__width=None)
    assert train.main(["--resume", str(tmp_path / "b" / "six.pkl"), *theirs]) == 0
    assert "training.seed stays 7, as the checkpoint has it" in capsys.readouterr().out
    a, b = (load(tmp_path / x / "models" / "alexnet_final.pkl") for x in "ab")
    for key in ("model", "optimizer", "epoch", "total_steps", "seed", "classes", "recipe"):
        assert differences(a[key], b[key]) == [], key
    losses = {x: [row["loss"] for row in lines(tmp_path / x)] for x in "ab"}
    assert losses["a"][STEPS:] == losses["b"]


def test_six_keys_take_the_recipe_that_is_asked_for(tmp_path, trained):
    "They store none; the checkpoint of a whole run keeps its own."
    whole = load(trained / "models" / "alexnet_final.pkl")
    for checkpoint, colour in ((six_keys(whole), True), (whole, False)):
        given = given_values(None, tiny(tmp_path, data__recipe="paper", model__width=None)[1::2])
        run = engine_setup.start(engine_setup.resume_config(checkpoint, given), checkpoint)
        assert (run.recipe.colour is not None) == colour


def test_six_keys_with_another_number_of_classes(tmp_path, trained, capsys):
    "Also where the data has that other number."
    torch.save(six_keys(load(trained / "models" / "alexnet_final.pkl")), tmp_path / "six.pkl")
    root = class_folders(tmp_path / "root", classes=("ant", "bee", "fly"), train=3, test=1)
    argv = tiny(tmp_path / "out", data__dataset="ImageFolder", data__data_dir=str(root), data__val_images=3,
                training__num_epochs=3, model__width=None)
    before = snapshot(tmp_path)
    assert train.main(["--resume", "six.pkl", *argv, "--set", "model.num_classes=3"]) == 2
    assert capsys.readouterr().err == (
        "alexnet_train: model.num_classes is 3, but the checkpoint was trained with 10; "
        "leave it out or start anew\n")
    assert train.main(["--resume", "six.pkl", *argv]) == 2
    assert capsys.readouterr().err == (
        f"alexnet_train: {root}: has 3 classes, model.num_classes is 10; make them agree\n")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("spoil", ["too few", "wrong shape", "many groups"])
def test_optimizer_state_that_does_not_fit(spoil, tmp_path, trained, capsys):
    checkpoint = six_keys(load(trained / "models" / "alexnet_final.pkl"))
    optimizer = checkpoint["optimizer"]
    if spoil == "too few":
        optimizer["state"] = {k: v for k, v in optimizer["state"].items() if k < 3} | {99: {}}
        optimizer["param_groups"][0]["params"] = [0, 1, 2]
    if spoil == "wrong shape": optimizer["state"][0] = {"momentum_buffer": torch.zeros(2, 2)}
    if spoil == "many groups":
        optimizer["param_groups"] = [dict(optimizer["param_groups"][0], params=[i]) for i in range(16)]
    torch.save(checkpoint, tmp_path / "six.pkl")
    before = snapshot(tmp_path)
    argv = tiny(tmp_path / "out", training__num_epochs=3, model__width=None)
    assert train.main(["--resume", "six.pkl", *argv]) == 2
    assert capsys.readouterr().err == (
        "alexnet_train: the checkpoint's optimizer state does not fit its network; "
        "resume from another checkpoint\n")
    assert snapshot(tmp_path) == before
