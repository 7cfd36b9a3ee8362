"""What happens to runs at the worst moments: the harness in small, and one test for every fault that it, or
reading, has found."""
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alexnet_nb import train
from alexnet_nb.base import errors as base_errors
from alexnet_nb.base import pictures as base_pictures
from alexnet_nb.data import Recipe
from alexnet_nb.engine import files as engine_files
from alexnet_nb.engine import logs as engine_logs
from alexnet_nb.engine import run as engine_run
from alexnet_nb.engine import setup as engine_setup
from alexnet_nb.engine import signals as engine_signals
from alexnet_nb.engine import train_command as engine_train_command
from alexnet_nb.engine.checkpoint import read_checkpoint
from alexnet_nb.engine.files import lock_folders
from alexnet_nb.engine.loaders import PreparedImages
from alexnet_nb.engine.photographs import WorkerError, watched
from alexnet_nb.train import Diverged
from common import (
    CLOCK,
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

HERE = Path(__file__).parent
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")


@needs_fork
def test_killed_stopped_and_crossed():
    "Five kills, four signals, two runs on one folder; every run ends bit-equal to one that was left alone."
    done = subprocess.run([sys.executable, HERE / "faults.py", "--kills", "5", "--signals", "4"],
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert ((report["kills"], report["signals"], report["refused"]) == (5, 4, 1)
            and report["runs_completed"] >= 1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "Four epochs without a break."
    return run_without_panels(tmp_path_factory.mktemp("straight"), **LONG)


def go_on(out: Path) -> int:
    "Resume the last checkpoint."
    return train.main(["--resume", str(out / "models" / "alexnet_last.pkl"), *tiny(out, **LONG)])


class Killed(BaseException):
    "Stands for kill -9."


def test_killed_between_the_best_and_the_last_checkpoint(tmp_path, monkeypatch, straight, no_panels):
    """The best one used to be linked after the last one: a run killed in between went on without it, and
    never wrote it again."""
    with monkeypatch.context() as m:
        def die(source, target): raise Killed
        m.setattr(engine_files, "copy_checkpoint", die)
        with pytest.raises(Killed):
            train.main([*tiny(tmp_path, **LONG), "--set", "training.checkpoint_minutes=1e-9"])
    assert ((tmp_path / "models" / "alexnet_best.pkl").exists()
            and load(tmp_path / "models" / "alexnet_last.pkl")["total_steps"] == STEPS)
    assert load(tmp_path / "models" / "alexnet_last.pkl")["epoch"] == 0
    assert go_on(tmp_path) == 0
    check_equal(tmp_path, straight)


# ---------------------------------------------------------------- folders

def test_a_folder_in_use_is_refused(tmp_path, capsys, no_panels):
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    for held in (out, out / "models"):
        with lock_folders(held):
            assert train.main(tiny(out, training__num_epochs=1)) == 2
            assert f"{held}: another run writes there (process {os.getpid()} on " in capsys.readouterr().err
    assert train.main(tiny(out, training__num_epochs=1)) == 0
    assert not (out / ".running.json").exists() and not (out / "models" / ".running.json").exists()


def test_a_log_folder_in_use_is_refused(tmp_path, capsys, no_panels):
    """A run that is resumed with other folders for all but its logs would cut them back under the run that
    writes there."""
    assert train.main(tiny(tmp_path, training__num_epochs=1)) == 0
    log = tmp_path / "tblogs" / "run-001"
    before = snapshot(log)
    resume = ["--resume", str(tmp_path / "models" / "alexnet_last.pkl"),
              *tiny(tmp_path / "else", paths__log_dir=str(tmp_path / "tblogs"))]
    with lock_folders(log):
        assert train.main(resume) == 2
        assert f"{log}: another run writes there (process {os.getpid()} on " in capsys.readouterr().err
    assert snapshot(log) == before and train.main(resume) == 0 and not (log / ".running.json").exists()


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path, no_panels):
    "Beside the checkpoints, for which test_resume.py asks."
    argv = tiny(tmp_path, training__num_epochs=1)
    assert train.main([*argv, "--minutes", "1e-9"]) == 0
    places = [*(tmp_path / f".{file}.4711.part" for file in ("results.json", "curves.png", "config.yaml")),
              *(tmp_path / "tblogs/run-001" / f".{file}.4711.part"
                for file in ("steps.jsonl", "config.yaml"))]
    mine = tmp_path / ".film.mp4.part"
    for path in (*places, mine): path.touch()
    assert train.main(["--resume", str(tmp_path / "models/alexnet_last.pkl"), *argv]) == 0
    assert not any(map(Path.exists, places)) and mine.exists()


def test_the_wait_for_an_epochs_last_update_counts(tmp_path, monkeypatch, no_panels):
    "On a GPU the numbers of the last updates come when the queue is empty; that is time of training too."
    read = engine_run._read_steps
    def slow(steps):
        if steps[-1].number == STEPS: time.sleep(3)
        return read(steps)
    monkeypatch.setattr(engine_run, "_read_steps", slow)
    assert train.main(tiny(tmp_path, training__num_epochs=1)) == 0
    assert json.loads((tmp_path / "results.json").read_text())["training_seconds"] >= 3


def test_a_worker_that_dies_during_a_step_is_named(tmp_path, monkeypatch, capsys):
    "Torch raises it wherever the main process is; here in the middle of a step."
    def dead(*args, **more):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. \nmore")
    monkeypatch.setattr(train, "train_step", dead)
    assert train.main(tiny(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "alexnet_train: a process that loads images has died (DataLoader worker (pid 4711) is killed by "
        "signal: Killed); take the file away if it does so again, or lower data.num_workers")


def test_a_stop_during_validation_leaves_the_network_as_it_was():
    "In training mode, for whoever goes on with it."
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 10)).train()
    def stop(): raise engine_signals.Stopped("time is up", 0)
    with pytest.raises(engine_signals.Stopped):
        engine_run.evaluate(model, [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.arange(2))],
                            torch.device("cpu"), after_batch=stop)
    assert model.training


@needs_fork
def test_the_lock_ends_with_the_process_that_held_it(tmp_path):
    code = f"""
import os
from alexnet_nb.engine.files import lock_folders
held = lock_folders({str(tmp_path)!r})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=200).returncode == -9
    assert (tmp_path / ".running.json").exists()
    lock_folders(tmp_path).close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_folder_taken_away_while_running(tmp_path, monkeypatch, capsys, no_panels):
    "Checkpoints go on, in a folder made anew; the log begins anew and says so."
    out = tmp_path / "out"
    def remove_at_step_8(step):
        if step == 8: shutil.rmtree(out)
    hook_steps(monkeypatch, remove_at_step_8)
    assert train.main(tiny(out, **LONG)) == 0
    said = capsys.readouterr()
    assert said.err.count("steps.jsonl: was taken away while the run went on; a new one begins") == 1
    assert (read_checkpoint(out / "models" / "alexnet_final.pkl")["total_steps"] == 4 * STEPS
            and (out / "curves.png").exists())
    assert ([row["step"] for row in lines(out)] == list(range(9, 4 * STEPS + 1))
            and json.loads((out / "results.json").read_text())["finished"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that thread is to die
@pytest.mark.parametrize("method", ["write", "scalars", "flush"])
def test_folder_taken_away_with_events_on_their_way(tmp_path, monkeypatch, capsys, no_panels, method):
    """TensorBoard's thread dies of it, and whoever writes next is told; that used to end the run with a
    traceback."""
    out, act = tmp_path / "out", getattr(engine_logs.Log, method)
    def remove(log, *args, **values):
        if not done and log.folder.exists() and len(lines(out)) >= 8:
            done.append(shutil.rmtree(out))
            for worker in (log.board[part].file_writer.event_writer._async_writer for part in log.board):
                while worker._worker.exception is None:
                    worker._byte_queue.put(b"an event")
                    time.sleep(0.01)
        act(log, *args, **values)
    done = []
    monkeypatch.setattr(engine_logs.Log, method, remove)
    assert train.main(tiny(out, **LONG)) == 0 and done
    said = capsys.readouterr().err
    assert said.count("steps.jsonl: was taken away while the run went on; a new one begins") == 1
    assert (read_checkpoint(out / "models" / "alexnet_final.pkl")["total_steps"] == 4 * STEPS
            and json.loads((out / "results.json").read_text())["finished"])


# the disk of the checkpoints goes before the first of these steps and is back before the second
AWAY = (STEPS + 2, 3 * STEPS + 2)


def cut_off(monkeypatch, folder: Path, gone, back) -> None:
    "Have a run call `gone` and `back` at these steps."
    def at_steps(step):
        if step in AWAY: (gone if step == AWAY[0] else back)()
    hook_steps(monkeypatch, at_steps)


@pytest.fixture
def numbers(monkeypatch, tmp_path):
    """Pretends that tmp_path/drive is a disk of its own, with the number that stands in the list; no number:
    it does not answer."""
    number = [1]
    def file_system(folder):
        if tmp_path / "drive" not in (folder, *folder.parents): return 0
        if number[0] is None: raise engine_files.Away(f"{folder}: cannot be reached")
        return number[0]
    monkeypatch.setattr(engine_files, "file_system", file_system)
    return number


def check_at_home(tmp_path: Path, straight: Path, err: str) -> None:
    "All is on the drive, as if nothing had happened, and two lines were said."
    shutil.move(tmp_path / "drive", tmp_path / "out" / "models")
    check_equal(tmp_path / "out", straight)
    assert err.count("training goes on, and saves in") == 1
    assert err.count("is back, and has what was saved meanwhile") == 1
    assert not list((tmp_path / "out").glob("models_*"))


@pytest.mark.parametrize("new_number", [1, 2], ids=["as it was", "under another number"])
def test_a_disk_that_goes_and_returns(tmp_path, monkeypatch, capsys, numbers, straight, no_panels,
                                      new_number):
    """An empty folder is left where the drive was: nothing is written there, and what was saved meanwhile is
    brought home."""
    drive, out, left = tmp_path / "drive", tmp_path / "out", []
    def gone():
        drive.rename(tmp_path / "pulled out")
        drive.mkdir()
        numbers[0] = 0
    def back():
        left.extend(drive.iterdir())
        assert {p.name for p in (out / "models_run-001").iterdir()} >= {"alexnet_last.pkl"}
        drive.rmdir()
        (tmp_path / "pulled out").rename(drive)
        numbers[0] = new_number
    cut_off(monkeypatch, drive, gone, back)
    assert train.main(tiny(out, paths__checkpoint_dir=str(drive), **LONG)) == 0
    assert not left
    check_at_home(tmp_path, straight, capsys.readouterr().err)


def test_a_disk_that_does_not_answer(tmp_path, monkeypatch, capsys, numbers, straight, no_panels):
    "As FUSE leaves it when its program has died: every call fails."
    cut_off(monkeypatch, tmp_path / "drive", lambda: numbers.__setitem__(0, None),
            lambda: numbers.__setitem__(0, 1))
    assert train.main(tiny(tmp_path / "out", paths__checkpoint_dir=str(tmp_path / "drive"), **LONG)) == 0
    check_at_home(tmp_path, straight, capsys.readouterr().err)


def test_a_disk_that_goes_while_it_is_written_to(tmp_path, monkeypatch, capsys, numbers, straight, no_panels):
    """The error comes from writing, not from looking; the half file that was meant for the drive is not taken
    for a whole one."""
    drive, sync, cut = tmp_path / "drive", os.fsync, []
    def fsync(number):
        if cut and "drive" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        sync(number)
    if not Path("/proc/self/fd").exists(): pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    cut_off(monkeypatch, drive, lambda: cut.append(1), cut.clear)
    assert train.main(tiny(tmp_path / "out", paths__checkpoint_dir=str(drive), **LONG)) == 0
    check_at_home(tmp_path, straight, capsys.readouterr().err)


def test_a_disk_that_stays_away(tmp_path, monkeypatch, capsys, numbers, straight, no_panels):
    """The run ends with its final checkpoint elsewhere, and says where; so does one that is stopped, and what
    it names can be resumed."""
    drive, out = tmp_path / "drive", tmp_path / "out"
    cut_off(monkeypatch, drive, lambda: numbers.__setitem__(0, None), lambda: None)
    args = tiny(out, paths__checkpoint_dir=str(drive), **LONG)
    stop_at = engine_train_command.fit
    monkeypatch.setattr(engine_train_command, "fit",
                        lambda *given, **more: stop_at(*given, max_steps=2 * STEPS + 1, **more))
    assert train.main(args) == 0
    said = capsys.readouterr()
    last = out / "models_run-001" / "alexnet_last.pkl"
    assert f"go on with --resume {last}" in said.out and load(last)["total_steps"] == 2 * STEPS + 1
    assert load(drive / "alexnet_last.pkl")["total_steps"] == STEPS
    monkeypatch.setattr(engine_train_command, "fit", stop_at)
    elsewhere = ["--set", f"paths.checkpoint_dir={tmp_path / 'elsewhere'}"]
    assert train.main(["--resume", str(last), *args, *elsewhere]) == 0
    for which in ("last", "final"):
        assert differences(*(load(f / f"alexnet_{which}.pkl")
                             for f in (tmp_path / "elsewhere", straight / "models")), but=CLOCK) == []


def test_a_final_checkpoint_elsewhere_is_named(tmp_path, monkeypatch, capsys, numbers, no_panels):
    cut_off(monkeypatch, tmp_path / "drive", lambda: numbers.__setitem__(0, None), lambda: None)
    assert train.main(tiny(tmp_path / "out", paths__checkpoint_dir=str(tmp_path / "drive"), **LONG)) == 0
    said = capsys.readouterr()
    spare = tmp_path / "out" / "models_run-001"
    assert (f"wrote {spare / 'alexnet_final.pkl'}" in said.out
            and f"is still away; copy there what lies in {spare}" in said.err)
    assert load(spare / "alexnet_final.pkl")["total_steps"] == 4 * STEPS


def test_a_disk_that_takes_the_spare_folder_with_it(tmp_path, monkeypatch, capsys, no_panels):
    "Nowhere to go: one line, exit 1. More space would not help."
    out, gone = tmp_path / "out", []
    monkeypatch.setattr(engine_files, "file_system", lambda folder: 0)
    def fsync(number):
        if gone: raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(os, "fsync", fsync)
    cut_off(monkeypatch, out, lambda: gone.append(1), lambda: None)
    assert train.main(tiny(out, **LONG)) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("choose another paths.checkpoint_dir") and "space" not in said


def test_an_old_file_elsewhere_does_not_replace_a_newer_one(tmp_path):
    "A run that was killed while its disk was away left it; it is resumed, and the disk goes away once more."
    place = engine_files.CheckpointFolder(tmp_path / "drive", tmp_path / "spare")
    for folder in (place.folder, place.spare): folder.mkdir()
    def write(epoch, names="alexnet_last.pkl alexnet_best.pkl"):
        return lambda folder: [(folder / name).write_text(epoch) for name in names.split()]
    write("5")(place.spare)
    for path in place.spare.iterdir(): os.utime(path, (1, 1))
    place.save(write("8"))
    place.away = True
    write("9", "alexnet_last.pkl")(place.spare)
    later = time.time() + 1
    os.utime(place.spare / "alexnet_last.pkl", (later, later))
    place.save(lambda folder: None)
    assert [(place.folder / f"alexnet_{which}.pkl").read_text() for which in ("last", "best")] == ["9", "8"]
    assert not place.away and not place.spare.exists()


def test_one_log_that_was_taken_away_leaves_the_other(tmp_path, capsys):
    log = engine_logs.Log(tmp_path / "run", 0)
    for kind in ("steps", "epochs"): log.write(kind, step=6, epoch=1)
    (tmp_path / "run" / "steps.jsonl").unlink()
    log.write("steps", step=7, epoch=1)
    log.close()
    assert [[row["step"] for row in engine_logs.read_log(tmp_path / "run", kind)]
            for kind in ("steps", "epochs")] == [[7], [6]]
    assert "steps.jsonl: was taken away" in capsys.readouterr().err


def test_an_error_without_words_is_named_by_its_kind(tmp_path):
    with pytest.raises(base_errors.RunError, match="RuntimeError"), engine_files.replacing(tmp_path / "a"):
        raise RuntimeError


def test_the_papers_velocity_under_a_schedule_that_ends_at_nothing(tmp_path, no_panels):
    "The cosine's last rate is 0: nothing moves any more, and nothing is divided by it."
    assert train.main(tiny(tmp_path, **LONG, training__schedule="cosine")) == 0
    assert load(tmp_path / "models" / "alexnet_final.pkl")["epoch"] == LONG["training__num_epochs"]


def test_the_time_of_saving_is_not_that_of_training(tmp_path, monkeypatch, no_panels):
    save = engine_run.save_last
    monkeypatch.setattr(engine_run, "save_last", lambda *args: time.sleep(0.5) or save(*args))
    assert train.main(tiny(tmp_path, training__num_epochs=1, training__checkpoint_minutes=1e-9)) == 0
    assert json.loads((tmp_path / "results.json").read_text())["training_seconds"] < 0.5 * STEPS


MOUNT = """
import pathlib, shutil, subprocess, sys
sys.path.insert(0, {here!r})
from common import LONG, tiny
from planting import plant
from alexnet_nb import train
from alexnet_nb.engine import run as engine
out, store = pathlib.Path({out!r}), pathlib.Path({store!r})
def mount(*args): subprocess.run(args, check=True)
mount("mount", "-t", "tmpfs", "tmpfs", str(store))
(store / "folder").mkdir()
def back(): mount("mount", "--bind", str(store / "folder"), str(out / "models"))
(out / "models").mkdir(parents=True)
back()
set_rate = train.set_rate
def at_steps(optimizer, rates, step, warmup_steps):
    if step == {gone}: mount("umount", "-l", str(out / "models"))
    if step == {back}:
        print("left behind:", list((out / "models").iterdir()))
        back()
    set_rate(optimizer, rates, step, warmup_steps)
plant(train, "set_rate", at_steps)
plant(engine, "write_panels", lambda *args: None)
assert train.main(tiny(out, **LONG)) == 0
mount("umount", "-l", str(out / "models"))
shutil.copytree(store / "folder", out / "models", dirs_exist_ok=True)
"""


def test_a_disk_that_is_really_unmounted(tmp_path, straight):
    trial = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    out, store = tmp_path / "out", tmp_path / "store"
    store.mkdir()
    code = MOUNT.format(here=str(TESTS), out=str(out), store=str(store), gone=AWAY[0], back=AWAY[1])
    done = subprocess.run(["unshare", "-m", sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left behind: []" in done.stdout
    assert done.stderr.count("training goes on, and saves in") == 1
    assert done.stderr.count("is back, and has") == 1
    check_equal(out, straight)


# ---------------------------------------------------------------- numbers that are none

def test_weights_spoiled_by_an_update_are_never_saved(tmp_path, monkeypatch, capsys, no_panels):
    "The loss of the step that spoils them is still good, so it is not the loss that tells."
    def spoil_at_step_9(step, model):
        if step == 8: model.features[8].weight.data[0, 0, 0, 0] = math.nan
    hook_steps(monkeypatch, after=spoil_at_step_9)
    assert train.main([*tiny(tmp_path, **LONG), "--set", "training.checkpoint_minutes=1e-9"]) == 1
    assert "features.8.weight is not finite after step 9" in capsys.readouterr().err
    kept = load(tmp_path / "models" / "alexnet_last.pkl")
    assert kept["total_steps"] == 8 and all(w.isfinite().all() for w in kept["model"].values())


def test_spoiled_weights_at_the_end_of_an_epoch_name_the_step(tmp_path, monkeypatch, no_panels):
    def spoil(step, model):
        if step == STEPS - 1: model.classifier[6].bias.data[0] = math.inf
    hook_steps(monkeypatch, after=spoil)
    from alexnet_nb.engine.config import load_config
    with pytest.raises(Diverged, match=f"classifier.6.bias is not finite after step {STEPS}"):
        engine_train_command.fit(load_config(None, tiny(tmp_path)[1::2]), show_bar=False)


@pytest.mark.parametrize("mean, std", [((0.5,) * 3, (0.2, 0.0, 0.2)), ((math.nan, 0, 0), (1, 1, 1)),
                                       ((0, 0, 0), (1, 1, math.inf)), ((0, 0, 0), (1, -1, 1))])
def test_a_recipe_that_would_make_numbers_that_are_none(mean, std):
    "Pictures of one colour have no deviation to divide by."
    with pytest.raises(base_errors.InputError, match="must be finite numbers, and std above 0"):
        Recipe(mean=mean, std=std)


# ---------------------------------------------------------------- processes that load images

def fatal(path):
    "open_rgb, but one file kills the process that opens it."
    if Path(path).name == "3.png" and Path(path).parent.name == "horse": os.kill(os.getpid(), signal.SIGKILL)
    return OPEN(path)


OPEN = base_pictures.open_rgb


@needs_fork
def test_a_worker_that_dies_names_its_file(tmp_path, monkeypatch, capsys, no_panels):
    root = class_folders(tmp_path / "data")
    monkeypatch.setattr(engine_setup, "_fitting_pixels", lambda *args: None)
    monkeypatch.setattr(base_pictures, "open_rgb", fatal)
    argv = tiny(tmp_path / "out", data__dataset="ImageFolder", data__data_dir=str(root), data__num_workers=2,
                data__train_images=None, data__val_images=8)
    assert train.main(argv) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (said.startswith("alexnet_train: a process that loads images has died at ")
            and str(Path("horse") / "3.png") in said and "--resume" not in said)  # nothing is saved yet


@needs_fork
@pytest.mark.parametrize("broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_that_breaks_first_names_the_file_too(broken):
    "The worker's end breaks its connection as well; PyTorch says which process it was a moment later."
    def told(*_): raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")
    before = signal.signal(signal.SIGALRM, told)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    data = PreparedImages([], Recipe(64))
    try:
        with pytest.raises(WorkerError, match="died at 3.png .*pid 4711"), watched(data, 1, "{}.png".format):
            data.at[0] = torch.tensor([4711, 3])
            raise broken
    finally: signal.signal(signal.SIGALRM, before)
