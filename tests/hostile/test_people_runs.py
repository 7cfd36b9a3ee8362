"""What people lose without a word: a run begun twice, pictures that come or go, folders other than meant.

Found in what the public has reported of such programs; each case failed once.
"""
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_nb import inference, train
from alexnet_nb.base import cifar10 as base_cifar10
from alexnet_nb.base import layouts
from alexnet_nb.base.pictures import read_folder
from alexnet_nb.engine import inventory
from alexnet_nb.engine.checkpoint import load_classifier, read_checkpoint
from alexnet_nb.engine.config import load_config
from alexnet_nb.engine.files import save_checkpoint
from alexnet_nb.engine.setup import fit, resume_config
from common import load, refused, snapshot, tiny

pytestmark = pytest.mark.usefixtures("no_panels")


def picture(path: Path, grey: int = 90) -> Path:
    "A small file: its pixels tell pictures apart, its size in bytes does not change with them."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey % 256, 40, 200)).save(path, "PNG")
    return path


def tree(root: Path, **counts: int) -> Path:
    "A folder of class folders with so many pictures each; `train__cat=3` puts them into train/cat."
    for name, n in counts.items():
        for k in range(n): picture(root / name.replace("__", "/") / f"{k}.png", k)
    return root


def own(out: Path, root: Path, classes: int = 2, **changes) -> list[str]:
    "The arguments of a tiny run on folders."
    given = dict(data__dataset="ImageFolder", data__data_dir=str(root), data__train_images=None,
                 data__test_images=None, data__val_images=2, model__num_classes=classes,
                 training__num_epochs=1)
    return tiny(out, **given | changes)


def stopped(argv: list[str]) -> None:
    "Begin a run and stop it after its first step."
    assert train.main([*argv, "--minutes", "1e-9"]) == 0


def ends(argv: list[str], capsys) -> tuple[int, str, str]:
    "Exit code, stdout and the one line on stderr; nothing else may be there."
    capsys.readouterr()
    code = train.main(argv)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if code == 2: assert err.count("\n") == 1 and err.startswith("alexnet_train: "), err
    return code, out, err


# ---------------------------------------------------------------- 1: an unfinished run

@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Path:
    "The folder of a run that was stopped; do not change it."
    out = tmp_path_factory.mktemp("unfinished") / "my runs"
    with pytest.MonkeyPatch.context() as m:
        m.setattr("alexnet_nb.engine.run.write_panels", lambda *args: None)
        assert train.main([*tiny(out), "--minutes", "1e-9"]) == 0
    return out


@pytest.fixture
def there(unfinished, tmp_path) -> Path:
    "A copy of it."
    return Path(shutil.copytree(unfinished, tmp_path / "my runs"))


def checkpoints(out: Path) -> dict:
    return {name: about for name, about in snapshot(out).items() if name.endswith(".pkl")}


@pytest.mark.parametrize("more", [[], ["--set", "training.seed=8"], ["--start-from", "cifar10"],
                                  ["--minutes", "1e-9"]], ids=["same", "other seed", "start-from", "minutes"])
def test_an_unfinished_run_is_not_overwritten(more, there, capsys):
    before = checkpoints(there)
    argv = [*tiny(there), *more]
    if "cifar10" in more: argv = [*tiny(there, model__width=None), *more]
    code, _, err = ends(argv, capsys)
    last = there / "models" / "alexnet_last.pkl"
    assert code == 2 and f"--resume '{last}'" in err and "--anew" in err
    assert checkpoints(there) == before


def test_both_ways_on_work(there, capsys):
    argv, last = tiny(there, training__num_epochs=1), there / "models" / "alexnet_last.pkl"
    assert ends([*argv, "--anew", "--minutes", "1e-9"], capsys)[0] == 0 and load(last)["run"] == "run-002"
    assert ends([*argv, "--resume", str(last)], capsys)[0] == 0
    assert ends([*argv, "--minutes", "1e-9"], capsys)[0] == 0  # it has finished: a new run may replace it


@pytest.mark.parametrize("argv, says", [
    (["--anew", "--resume", "x.pkl"], "--anew begins a run and --resume goes on"),
    (["--other-data"], "--other-data goes with --resume")], ids=["anew and resume", "other data alone"])
def test_words_that_contradict_each_other(argv, says, capsys, tmp_path):
    code, _, err = ends([*tiny(tmp_path), *argv], capsys)
    assert code == 2 and says in err


def test_from_python(there):
    cfg = load_config(None, tiny(there)[1::2])
    refused(lambda: fit(cfg, show_bar=False), words=["unfinished run"])
    assert fit(cfg, max_steps=1, show_bar=False, anew=True).run.folder.name == "run-002"
    checkpoint = read_checkpoint(there / "models" / "alexnet_last.pkl")
    assert fit(resume_config(checkpoint, {}), checkpoint, max_steps=2, show_bar=False).run.progress.step == 2


def finished(**more) -> dict: return dict(progress=dict(finished=True), **more)


@pytest.mark.parametrize("files, allowed", [
    ({}, True),                                                   # it died before it saved anything
    (dict(last={}), False),                                       # a checkpoint of six keys
    (dict(last=finished(), best={}), True),                       # best is of an earlier epoch
    (dict(last=None, best={}), False), (dict(best={}), False),    # last is damaged, or gone
    (dict(last=None), True), (dict(last=None, best=None), True),  # nothing that could be resumed
    (dict(final=finished(), best={}), True),
    (dict(last={}, final=finished()), False),                     # more epochs were asked for
], ids=str)
def test_what_counts_as_unfinished(files, allowed, tmp_path, unfinished):
    weights = load(unfinished / "models" / "alexnet_last.pkl")["model"]
    for which, parts in files.items():
        path = tmp_path / f"alexnet_{which}.pkl"
        if parts is None: path.write_bytes(b"cut short")
        else: save_checkpoint(path, dict(model=weights, epoch=1, **parts))
    if allowed: inventory.check_unfinished(tmp_path)
    else: refused(inventory.check_unfinished, tmp_path, words=["unfinished run", "--resume", "--anew"])


def test_a_resumed_run_does_not_replace_another_unfinished_one(there, tmp_path, capsys):
    "The usual slip: two projects, the same folder names, a checkpoint of the one given in the other."
    other = tmp_path / "other"
    stopped(tiny(other, training__seed=8))
    before, last = checkpoints(there), str(other / "models" / "alexnet_last.pkl")
    moved = tiny(there)[-6:]  # the paths
    code, _, err = ends([*moved, "--resume", last], capsys)
    assert code == 2 and "another unfinished run" in err and checkpoints(there) == before
    # its own checkpoint from elsewhere, such as a copy on another disk
    copy = shutil.copy(there / "models" / "alexnet_last.pkl", tmp_path / "copy.pkl")
    assert ends([*moved, "--resume", str(copy), "--minutes", "1e-9"], capsys)[0] == 0


def test_started_again_by_torchrun(there, monkeypatch, tmp_path):
    "A second start of the same launch goes on from its own checkpoint, whether --anew was given or not."
    from alexnet_nb.engine import train_command
    monkeypatch.setattr(train_command, "find_world", lambda: type("World", (), {"restarts": 1}))
    monkeypatch.setattr(train_command, "launch_name", lambda: "mine")
    last = there / "models" / "alexnet_last.pkl"
    for launch, expected in (("mine", last), ("another", None)):
        held = dict(launch=launch, since=0.0)
        monkeypatch.setattr(train_command, "read_held", lambda _, held=held: held)
        args = train_command._parser().parse_args(["--anew"])
        assert train_command._to_resume(args, there / "models") == expected


def test_a_resumed_run_started_again_by_torchrun(tmp_path, monkeypatch, capsys):
    "Its folder is the checkpoint's; what it has saved there since is found, though no option names it."
    from alexnet_nb.engine import train_command
    stopped(tiny(tmp_path / "run"))
    old = shutil.copy(last := tmp_path / "run" / "models" / "alexnet_last.pkl", tmp_path / "old.pkl")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    assert train.main(["--resume", str(old), "--minutes", "1e-9"]) == 0
    assert load(old)["total_steps"] == 1 and load(last)["total_steps"] == 2
    monkeypatch.setattr(train_command, "find_world", lambda: type("World", (), {"restarts": 1, "size": 1}))
    args, made = train_command._parser().parse_args(["--resume", str(old)]), []
    monkeypatch.setattr(train_command, "fit", lambda cfg, checkpoint, *more, **options: made.append(
        checkpoint["total_steps"]) or type("Result", (), {"exit_code": 0, "summary": {}}))
    assert train_command._train(args) == 0 and made == [2]


# ---------------------------------------------------------------- 3: other pictures than before

def add(root): picture(root / "train/cat/9.png")
def add_in_front(root): picture(root / "train/ant/00.png")
def take_away(root): (root / "train/cat/0.png").unlink()
def rename(root): (root / "train/cat/0.png").rename(root / "train/cat/zero.png")
def relabel(root): (root / "train/cat/0.png").rename(root / "train/ant/00.png")
def swap(root): (root / "train/cat/0.png").rename(root / "test/cat/z.png")
def rewrite(root): Image.new("RGB", (64, 64)).save(root / "train/cat/0.png")
def add_to_test(root): picture(root / "test/cat/9.png")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    "A stopped run on folders, beside its pictures; do not change it."
    place = tmp_path_factory.mktemp("begun")
    tree(place / "pets", train__ant=6, train__cat=6, test__ant=2, test__cat=2)
    with pytest.MonkeyPatch.context() as m:
        m.setattr("alexnet_nb.engine.run.write_panels", lambda *args: None)
        stopped(own(place / "out", place / "pets"))
    return place


def resume(place: Path, *more: str) -> list[str]:
    "The arguments that go on with it for a step."
    last = place / "out/models/alexnet_last.pkl"
    return [*own(place / "out", place / "pets"), "--resume", str(last), "--minutes", "1e-9", *more]


@pytest.mark.parametrize("change, says", [
    (add, "cat has 9, not 8"), (add_in_front, "ant has 9, not 8"), (take_away, "cat has 7, not 8"),
    (rename, "other names or sizes"), (relabel, "ant has 9, not 8, cat has 7, not 8"),
    (rewrite, "other names or sizes"), (swap, "other names or sizes"), (add_to_test, "cat has 9, not 8")])
def test_other_pictures_are_noticed(change, says, begun, tmp_path, capsys):
    place = Path(shutil.copytree(begun, tmp_path / "place"))
    change(place / "pets")
    before = checkpoints(place)
    code, _, err = ends(resume(place), capsys)
    assert code == 2 and says in err and "--other-data" in err and checkpoints(place) == before
    assert ends(resume(place, "--other-data"), capsys)[0] == 0   # the explicit word
    assert ends(resume(place), capsys)[0] == 0                   # and these are its pictures from now on


def test_a_result_on_pictures_that_were_others_does_not_claim_that_they_are_unseen(begun, tmp_path, capsys):
    "Also after a second resume, which has nothing to accept any more."
    place = Path(shutil.copytree(begun, tmp_path / "place"))
    add(place / "pets")
    assert ends(resume(place, "--other-data"), capsys)[0] == 0
    argv = resume(place)
    del argv[argv.index("--minutes"):]
    code, out, _ = ends(argv, capsys)
    assert code == 0 and "some of which it may have learnt from before they were others" in out
    assert "never seen" not in out


def test_what_is_no_other_data(begun, tmp_path, capsys):
    place = Path(shutil.copytree(begun, tmp_path / "moved"))     # another folder, other dates
    for path in place.rglob("*.png"): os.utime(path, (1, 1))
    (place / "pets/train/cat/notes.txt").write_text("a cat")
    (place / "pets/train/cat/.hidden.png").write_bytes(b"")
    assert ends(resume(place), capsys)[0] == 0


def test_a_checkpoint_from_before(begun, tmp_path, capsys):
    "One that does not tell of its pictures goes on with any, as it always did."
    place = Path(shutil.copytree(begun, tmp_path / "old"))
    path = place / "out/models/alexnet_last.pkl"
    checkpoint = load(path)
    del checkpoint["data"]
    save_checkpoint(path, checkpoint)
    add(place / "pets")
    assert ends(resume(place), capsys)[0] == 0
    assert load(path)["data"]["counts"] == [8, 9]


@pytest.mark.parametrize("data", [[], {"counts": "many"}, {"counts": [-1]}, {"digest": 3},
                                  {"counts": [1] * 9}, {}])
def test_a_spoiled_identity_is_no_traceback(data, begun, tmp_path, capsys):
    place = Path(shutil.copytree(begun, tmp_path / "spoiled"))
    path = place / "out/models/alexnet_last.pkl"
    save_checkpoint(path, load(path) | {"data": data})
    assert ends(resume(place), capsys)[0] == (0 if data == {} else 2)


# ---------------------------------------------------------------- 4: a class keeps a picture to learn from

@pytest.mark.parametrize("counts, val_images", [((1, 13, 13), 3), ((13, 1, 13), 9), ((13, 13, 1), 13),
                                                ((1, 1, 30), 5), ((2, 20), 18), ((1, 1, 1, 9), 6)])
def test_every_class_is_trained(counts, val_images, tmp_path, capsys):
    names = [f"c{k}" for k in range(len(counts))]
    images = read_folder(tree(tmp_path, **dict(zip(names, counts, strict=True))))
    for seed in range(8):
        fit_, held = inventory.hold_out(images, val_images, seed)
        assert {*images.labels[fit_]} == {*range(len(counts))} and len(held) >= 1
        assert sorted([*fit_, *held]) == list(range(sum(counts)))
    said = capsys.readouterr().out
    small = [f"c{k} ({n})" for k, n in enumerate(counts) if n == 1]
    assert small == [] or any(name in said for name in small)


def test_the_only_cat_is_trained_and_said(tmp_path, capsys):
    root = tree(tmp_path / "pets", train__cat=1, train__dog=13, train__rabbit=13, test__cat=1, test__dog=1,
                test__rabbit=1)
    code, out, _ = ends([*own(tmp_path / "out", root, 3, data__val_images=3), "--minutes", "1e-9"], capsys)
    assert code == 0 and "too small for validation to take from" in out and "cat (1)" in out


def test_nothing_left_for_validation(tmp_path, capsys):
    root = tree(tmp_path / "pets", train__cat=1, train__dog=1, test__cat=1, test__dog=1)
    code, _, err = ends(own(tmp_path / "out", root, data__val_images=1), capsys)
    assert code == 2 and "no picture is left for validation" in err


def test_fewer_training_images_than_classes(tmp_path, capsys):
    root = tree(tmp_path / "pets", train__cat=6, train__dog=6, train__owl=6, test__cat=1, test__dog=1,
                test__owl=1)
    argv = own(tmp_path / "out", root, 3, data__train_images=2, data__val_images=3)
    code, out, _ = ends([*argv, "--minutes", "1e-9"], capsys)
    assert code == 0 and "never trained on" in out and "owl" in out


# ---------------------------------------------------------------- 5: counted, and what was passed over

def test_counts_and_what_was_passed_over(tmp_path, capsys):
    root = tree(tmp_path / "pets", cat=1, dog=8, owl=8)
    for k in range(4): picture(root / "cat" / "2024" / "May" / f"{k}.png", k)
    for k in range(9): (root / "cat" / f"IMG_{k}.HEIC").write_bytes(b"heic")
    picture(root / "dog" / "a.png").rename(root / "dog" / "whatsapp")
    (root / "owl" / "notes.txt").write_text("an owl")
    (root / "owl" / "a.jpg_large").write_bytes(b"?")
    picture(root / "loose.png")
    code, out, _ = ends([*own(tmp_path / "out", root, 3), "--minutes", "1e-9"], capsys)
    assert code == 0
    for line in ("21 pictures in 3 classes: cat 5, dog 8, owl 8", "cat: passed over 9 .heic;",
                 "dog: passed over 1 without a suffix;", "1 .txt", "1 .jpg_large",
                 "passed over 1 of the pictures, in no class's folder"): assert line in out, line


def test_a_class_that_only_the_test_has(tmp_path, capsys):
    root = tree(tmp_path / "pets", train__cat=6, train__dog=6, test__cat=1, test__dog=1, test__owl=5)
    code, out, _ = ends([*own(tmp_path / "out", root), "--minutes", "1e-9"], capsys)
    assert code == 0 and "owl: passed over, for it is no class" in out


def test_a_class_of_heic_alone(tmp_path):
    root = tree(tmp_path, cat=1, dog=1)
    (root / "cat" / "0.png").rename(root / "cat" / "0.HEIC")
    refused(read_folder, root, words=[str(root / "cat"), "no image but 1 .heic", "save them as JPEG"])


def test_the_test_is_never_what_was_learnt(tmp_path, capsys):
    root = tree(tmp_path / "data", train__cat=5, train__dog=5, test__cat=3, test__dog=3)
    code, _, err = ends(own(tmp_path / "out", root, paths__train_img_dir="test"), capsys)
    assert code == 2 and "is to be learnt and in the test; change paths.train_img_dir" in err


def test_sub_folders_as_torchvision_reads_them(tmp_path):
    from torchvision.datasets import ImageFolder
    root = tree(tmp_path, cat=2, dog=1, cat__a=2, **{"cat__a-b": 1, "cat__a__x": 2, "dog__z": 1, "cat__B": 1})
    theirs = ImageFolder(str(root))
    ours = read_folder(root)
    assert [str(path) for path in ours.items] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets and list(ours.classes) == theirs.classes


def test_folders_that_lead_back_to_themselves(tmp_path):
    root = tree(tmp_path, cat=2, dog=2, cat__a=1)
    for link, to in (("cat/a/up", root / "cat"), ("cat/me", root / "cat"), ("dog/root", root)):
        (root / link).symlink_to(to, target_is_directory=True)
    (root / "far").symlink_to(tree(tmp_path / "elsewhere" / "fox", x=3), target_is_directory=True)
    counts = np.bincount(read_folder(root).labels).tolist()
    assert counts[0] == 3 and len(counts) == 4


def test_a_thousand_classes_in_a_few_lines(tmp_path, capsys):
    images = read_folder(tree(tmp_path, **{f"c{k:03}": 1 + (k == 7) for k in range(60)}))
    for k in range(60): (tmp_path / f"c{k:03}" / "x.heic").write_bytes(b"?")
    inventory._tell(tmp_path, images)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 25 and "61 pictures in 60 classes" in lines[0] and "from 1 " in lines[0]
    assert lines[-1].endswith("passed over more in 40 other folders")


# ---------------------------------------------------------------- 10: layouts

def beside_data(root: Path) -> Path:
    "What CIFAR-10's archive unpacks to, as far as a name goes."
    (root / "cifar-10-batches-py").mkdir(parents=True)
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"?")
    return root


FLAT = ["train/cat.0.png", "train/dog.0.png", "test1/1.png"]
ANSWERED = {
    "Kaggle's flat train": (FLAT, ["train: holds 2 pictures", "train/cat/cat.0.png"]),
    "flat, numbers": (["train/1.png", "train/2.png"], ["holds 2 pictures", "train/CLASS/1.png"]),
    "flat at the root": (["cat.0.png", "dog.0.png"], ["holds 2 pictures", "no class folders"]),
    "flat test": (["train/cat/0.png", "train/dog/0.png", "test/1.png"],
                  ["test: holds pictures", "alexnet_predict"]),
    "test without train": (["test/cat/0.png", "test/dog/0.png"], ["no train/"]),
    "val without train": (["val/cat/0.png", "val/dog/0.png"], ["no train/"]),
    "one deeper": (["PetImages/Cat/0.png", "PetImages/Dog/0.png"], ["lie deeper", "PetImages"]),
    "two deeper": (["a/b/Cat/0.png", "a/b/Dog/0.png"], ["lie deeper", "a/b"]),
    "deeper in train": (["train/pets/cat/0.png", "train/pets/dog/0.png"], ["lie deeper", "train/pets"]),
    "deeper in test": (["train/cat/0.png", "train/dog/0.png", "test/test/cat/0.png", "test/test/dog/0.png"],
                       ["lie deeper", "test/test"]),
    "parts by other names": (["seg_train/a/0.png", "seg_test/a/0.png"], ["parts", "seg_train", "seg_test"]),
    "a class called train": (["train/0.png", "bus/0.png", "tram/0.png"],
                             ["bus, tram", "paths.train_img_dir=."]),
    "one class is called train, flat": (["train/0.png", "plane/0.png"], ["paths.train_img_dir=."]),
}


@pytest.mark.parametrize("files, words", ANSWERED.values(), ids=ANSWERED)
def test_layouts_that_are_answered(files, words, tmp_path, capsys):
    root = tmp_path / "pets"
    for name in files: picture(root / name)
    code, _, err = ends(own(tmp_path / "out", root), capsys)
    assert code == 2 and all(word in err for word in words), err


def parts_of(root: Path, train_dir: str = "train") -> tuple[int, int]:
    train_, test = inventory.read_parts(root, train_dir, 2, None, 1)
    assert not {*train_.items} & {*test.items}
    return len(train_), len(test)


@pytest.mark.parametrize("counts, train_dir, says, sizes", [
    (dict(cat=10, dog=10), "train", "has no test/ folder", (18, 2)),                # no split at all
    (dict(cat__2023=5, cat__2024=5, dog=10), "train", "has no test/ folder", (18, 2)),
    (dict(train__cat=10, train__dog=10), "train", "has no test/ folder", (18, 2)),
    (dict(train__cat=9, train__dog=9, val__cat=2, val__dog=2), "train", "is the test", (18, 4)),
    (dict(train__cat=9, train__dog=9, valid__cat=2, valid__dog=2), "train", "is the test", (18, 4)),
    (dict(train__cat=9, train__dog=9, val__cat=2, val__dog=2, test__cat=1, test__dog=1), "train",
     "is not read", (18, 2)),
    (dict(Train__cat=9, Train__dog=9, Test__cat=1, Test__dog=1), "train", "18 pictures", (18, 2)),
    (dict(training__cat=9, training__dog=9, testing__cat=1, testing__dog=1), "train", "18 pictures", (18, 2)),
    (dict(mine__cat=9, mine__dog=9, test__cat=1, test__dog=1), "mine", "18 pictures", (18, 2)),
    (dict(bus=10, train=10), ".", "has no test/ folder", (18, 2)),                  # a class called train
], ids=str)
def test_layouts_that_are_read(counts, train_dir, says, sizes, tmp_path, capsys):
    assert parts_of(tree(tmp_path / "pets", **counts), train_dir) == sizes
    assert says in capsys.readouterr().out


def test_a_run_with_val_and_without_test(tmp_path, capsys):
    root = tree(tmp_path / "pets", train__cat=9, train__dog=9, val__cat=2, val__dog=2)
    code, out, _ = ends(own(tmp_path / "out", root), capsys)
    assert code == 0 and "on 4 images the network has never seen" in out


@pytest.mark.parametrize("counts", [dict(cat=3, dog=3), dict(train__cat=3, train__dog=3),
                                    dict(ant=3, train=3)], ids=str)
def test_own_classes_without_the_word_for_it(counts, tmp_path, capsys):
    "Nothing is downloaded beside them; the line says what to set."
    root = tree(tmp_path / "pets", **counts)
    code, _, err = ends(own(tmp_path / "out", root, data__dataset="CIFAR10"), capsys)
    assert code == 2 and ("data.dataset=ImageFolder" in err or "no class folders" in err), err
    assert not [*root.rglob("*.gz*")]


def test_batches_where_folders_were_asked_for(tmp_path, capsys):
    code, _, err = ends(own(tmp_path / "out", beside_data(tmp_path / "data")), capsys)
    assert code == 2 and "data.dataset=CIFAR10" in err


@pytest.fixture
def batches(tmp_path, monkeypatch) -> Path:
    "An archive of small batches that torchvision takes for the real ones."
    import hashlib
    import pickle
    import tarfile

    from torchvision.datasets import CIFAR10
    folder = tmp_path / "packed" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        batch = dict(data=np.zeros((2, 3072), np.uint8), labels=[0, 1])
        if name == "batches.meta": batch = dict(label_names=[*base_cifar10.CLASSES])
        (folder / name).write_bytes(pickle.dumps(batch))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", dict(filename=names[6], key="label_names", md5=sums[names[6]]))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar: tar.add(folder, "cifar-10-batches-py")
    monkeypatch.setattr(base_cifar10, "_CIFAR10_MD5", base_cifar10._md5(archive))
    shutil.move(folder, tmp_path / "data" / "cifar-10-batches-py")
    return tmp_path / "data"


@pytest.mark.parametrize("where", ["", "cifar-10-batches-py", "renamed", "archive"])
def test_data_dir_is_the_batches_or_the_archive(where, batches):
    root = batches / where
    if where == "renamed": (batches / "cifar-10-batches-py").rename(root)
    if where == "archive": root = Path(shutil.copy(batches.parent / "cifar-10-python.tar.gz", batches))
    if where == "archive": shutil.rmtree(batches / "cifar-10-batches-py")
    assert len(base_cifar10.read_cifar10(root, may_download=False)) == 10
    assert len(base_cifar10.read_cifar10(root, train=False, may_download=False)) == 2


def test_a_lone_batch_is_still_compared_with_its_sum(batches):
    "That the folder is named itself lets nothing in."
    path = batches / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes() + b"!")
    refused(lambda: base_cifar10.read_cifar10(path.parent, may_download=False), words=["missing or damaged"])


# ---------------------------------------------------------------- predicting folders of class folders

@pytest.mark.parametrize("files, code, predicted, says", [
    (["cat/0.png", "dog/0.png", "dog/a/1.png"], 0, 3, "3 predicted"),
    (["0.png", "cat/1.png"], 0, 1, "its folders (cat) hold pictures too, 1 of them, which are not read"),
    (["0.png", "2024/May/1.png", "2024/May/2.png"], 0, 1, "its folders (2024) hold pictures too, 2 of them"),
    (["cat/0.png", "cat/1.heic", "dog/2.heic"], 0, 1, "passed over 2 .heic"),
    (["cat/notes.txt"], 2, 0, "holds no image"), ([".hidden/0.png"], 2, 0, "holds no image")], ids=str)
def test_predicting_a_folder_of_folders(files, code, predicted, says, tmp_path, final, capsys):
    for name in files:
        if name.endswith("png"): picture(tmp_path / "mine" / name)
        else: picture(tmp_path / "mine" / name).write_text("no picture")
    assert inference.main(["--checkpoint", str(final), "--image-dir", str(tmp_path / "mine")]) == code
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == predicted and says in err


# ---------------------------------------------------------------- 17: spelled in two ways; read only

CAFE = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


@pytest.mark.parametrize("a, b", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accents_in_two_spellings(a, b, tmp_path, capsys):
    root = tree(tmp_path / "pets", **{f"train__{CAFE[a]}": 6, "train__cafz": 6, f"test__{CAFE[b]}": 1,
                                      "test__cafz": 1})
    stopped(own(tmp_path / "out", root))
    for part in ("train", "test"):  # the data moves to a machine with another spelling
        for name in (root / part).iterdir(): name.rename(name.with_name("moved " + name.name))
        for name in (root / part).iterdir():
            plain = name.name.removeprefix("moved ")
            other = "NFD" if unicodedata.is_normalized("NFC", plain) else "NFC"
            name.rename(name.with_name(unicodedata.normalize(other, plain)))
    last = tmp_path / "out/models/alexnet_last.pkl"
    assert ends([*own(tmp_path / "out", root), "--resume", str(last)], capsys)[0] == 0
    assert layouts.same_names(load_classifier(last).classes, ("cafz", "café"))


def test_a_checkpoint_with_the_other_spelling(tmp_path, capsys):
    root = tree(tmp_path / "pets", train__cafz=6, train__café=6, test__café=1, test__cafz=1)
    stopped(own(tmp_path / "out", root))
    path = tmp_path / "out/models/alexnet_last.pkl"
    save_checkpoint(path, load(path) | {"classes": ["cafz", CAFE["NFD"]]})
    assert ends([*own(tmp_path / "out", root), "--resume", str(path)], capsys)[0] == 0
    argv = [*own(tmp_path / "next", root), "--start-from", str(path), "--minutes", "1e-9"]
    assert "all layers, fc8 too" in ends(argv, capsys)[1]


def test_both_spellings_side_by_side(tmp_path):
    if (tree(tmp_path, **{CAFE["NFC"]: 1}) / CAFE["NFD"]).exists(): pytest.skip("here the two are one name")
    refused(read_folder, tree(tmp_path, **{CAFE["NFD"]: 1, "dog": 1}), words=["spelled in two ways"])


@pytest.mark.parametrize("number", ["EROFS", "EACCES", "EPERM"])
def test_an_archive_where_nothing_can_be_written(number, batches, monkeypatch):
    import errno
    shutil.copy(batches.parent / "cifar-10-python.tar.gz", batches)
    shutil.rmtree(batches / "cifar-10-batches-py")
    def closed(**more): raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
    monkeypatch.setattr(layouts.tempfile, "TemporaryFile", closed)
    line = refused(lambda: base_cifar10.read_cifar10(batches, may_download=False), words=["copy cifar-10-py"])
    assert "free some space" not in line and str(batches) in line
    (batches / "cifar-10-python.tar.gz").unlink()
    refused(lambda: base_cifar10._fetch_cifar10(batches, []), words=["choose another data.data_dir"])
