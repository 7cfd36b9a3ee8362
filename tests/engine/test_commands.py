"The two commands from end to end, on drawings and folders, with a tiny network."
import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alexnet_nb import inference, train
from alexnet_nb.base.device import pick_device
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import CLASSES, open_rgb
from alexnet_nb.engine import config as engine_config
from alexnet_nb.engine import predict_command as engine_predict_command
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.engine.config import _CONFIG_DIR, Config, load_config
from common import STEPS, TINY, class_folders, command, lines, load, save_drawings, settings, snapshot, tiny

ROOT = Path(__file__).resolve().parents[2]
CPU = ["--set", "device.use_cuda=false"]


# ---------------------------------------------------------------- alexnet_train

def test_train_leaves_all_that_it_promises(trained):
    "Checkpoints, logs, curves and the effective config."
    assert {"config.yaml", "curves.png", "models/alexnet_last.pkl", "models/alexnet_best.pkl",
            "models/alexnet_final.pkl", "tblogs/run-001/config.yaml",
            "tblogs/run-001/steps.jsonl", "tblogs/run-001/epochs.jsonl"} <= set(snapshot(trained))
    assert len(lines(trained)) == 2 * STEPS and len(lines(trained, "epochs")) == 2
    asked_for = load_config(None, [a for a in tiny(trained) if a != "--set"])
    assert load_config(trained / "config.yaml") == asked_for
    assert load_config(trained / "tblogs" / "run-001" / "config.yaml") == asked_for
    assert open_rgb(trained / "curves.png").width > 700


def test_checkpoint_holds_what_it_must(final):
    checkpoint = load(final)
    assert {"model", "epoch", "total_steps", "optimizer", "scheduler", "seed", "classes", "recipe",
            "config"} <= checkpoint.keys()
    weights = {f"features.{i}" for i in (0, 4, 8, 10, 12)} | {f"classifier.{i}" for i in (1, 4, 6)}
    assert set(checkpoint["model"]) == {f"{w}.{kind}" for w in weights for kind in ("weight", "bias")}
    assert (checkpoint["epoch"], checkpoint["total_steps"], checkpoint["seed"]) == (2, 2 * STEPS, 7)
    assert tuple(checkpoint["classes"]) == CLASSES


def test_tensorboard_has_every_panel(trained):
    read = {part: EventAccumulator(str(trained / "tblogs" / "run-001" / part),
                                   size_guidance={"scalars": 0}).Reload().Tags() for part in ("train", "val")}
    same = {"loss", "accuracy", "epoch_loss", "epoch_accuracy"}
    assert (same | {"learning_rate", "images_per_second", "test_accuracy"} <= set(read["train"]["scalars"])
            and same <= set(read["val"]["scalars"]))
    assert ("weights/features.0.weight" in read["train"]["histograms"]
            and "gradients/classifier.6.bias" in read["train"]["histograms"])
    assert "conv1" in read["train"]["images"] and {"predictions", "confusion"} <= set(read["val"]["images"])


def test_train_prints_device_config_and_result(tmp_path, capsys, no_panels):
    assert train.main([*tiny(tmp_path,
                             training__num_epochs=1), "--results", str(tmp_path / "new" / "r.json")]) == 0
    out = capsys.readouterr().out
    printed = out.split("device: cpu (")[0]
    assert engine_config.make_config(yaml.safe_load(printed)) == load_config(tmp_path / "config.yaml")
    for text in ("tensorboard --logdir", "epoch 1 of 1: loss", "test: accuracy", "alexnet_final.pkl"):
        assert text in out
    results = json.loads((tmp_path / "new" / "r.json").read_text())
    assert (results["finished"] and len(results["steps"]) == results["total_steps"] == STEPS
            and results["train_images"] == 48 and results["test_images"] == 20)
    assert (sum(map(sum, results["confusion"])) == 20 and 0 <= results["test_accuracy"] <= 1
            and results["config"]["training"]["seed"] == 7)


def test_minutes_stop_the_run_saved(tmp_path, capsys, no_panels):
    assert train.main([*tiny(tmp_path), "--minutes", "1e-9"]) == 0
    path = tmp_path / "models" / "alexnet_last.pkl"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"stopped (time is up) after 1 step; go on with --resume {path}"
    assert load(path)["total_steps"] == 1


def test_the_command_line_beats_the_file_beats_the_default(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("training:\n  seed: 1\n  learning_rate: 1e-3\npaths:\n  input_root_dir: from_file\n")
    cfg = load_config(path, ["training.seed=2"])
    assert (cfg.training.seed, cfg.training.learning_rate, cfg.training.momentum) == (2, 0.001, 0.9)
    assert cfg.data.data_dir == "from_file"
    for spelling in ("data.data_dir", "paths.input_root_dir"):
        assert load_config(path, [f"{spelling}=from_line"]).data.data_dir == "from_line"
    assert load_config(path, ["training.seed=2", "training.seed=3"]).training.seed == 3
    assert load_config(path, ["device.device_ids=[1, 2]", "model.lrn=none"]).device.device_ids == [1, 2]


def test_baseline_is_printed_beside_the_result(tmp_path, capsys, no_panels):
    argv = tiny(tmp_path, training__num_epochs=1, training__linear_baseline=True)
    assert train.main([*argv, "--results", str(tmp_path / "r.json")]) == 0
    assert "linear classifier" in capsys.readouterr().out
    assert 0 <= json.loads((tmp_path / "r.json").read_text())["linear_accuracy"] <= 1


@pytest.mark.parametrize("changes", [dict(data__recipe="paper", model__image_dim=224, model__towers=2),
                                     dict(training__schedule="plateau", training__lr_step_size=1,
                                          data__drop_last=True),
                                     dict(model__lrn="none", model__activation="tanh",
                                          model__overlapping_pooling=False, model__dropout_place="after",
                                          model__init="paper")],
                         ids=["paper's pictures", "plateau", "other network"])
def test_variants_train_and_predict(changes, tmp_path, no_panels, pictures, capsys):
    assert train.main(tiny(tmp_path, **changes, training__num_epochs=1)) == 0
    capsys.readouterr()
    final = str(tmp_path / "models" / "alexnet_final.pkl")
    assert inference.main(["--checkpoint", final, "--image", str(pictures / "000.png"), "--json"]) == 0
    classifier = load_classifier(final, torch.device("cpu"), precision="fp32")
    expected = inference.predict(classifier, open_rgb(pictures / "000.png"))
    said = json.loads(capsys.readouterr().out)[0]["probabilities"]
    assert [said[name] for name in CLASSES] == pytest.approx(expected.tolist(), rel=1e-4)
    if "data__recipe" in changes:
        assert classifier.recipe.short_side == 256 and classifier.model.image_dim == 224


# ---------------------------------------------------------------- forms of data

def test_folders_of_any_classes(tmp_path, no_panels, pictures, capsys):
    "ImageFolder: the classes are the sub-folders, sorted; the checkpoint remembers them for prediction."
    root = class_folders(tmp_path / "my data", classes=("wasp", "ant", "bee"), train=6, test=2)
    argv = tiny(tmp_path / "out", data__dataset="ImageFolder", data__data_dir=str(root),
                data__train_images=None, data__val_images=3, model__num_classes=3, data__num_workers=2)
    assert train.main(argv) == 0
    final = tmp_path / "out" / "models" / "alexnet_final.pkl"
    assert load(final)["classes"] == ["ant", "bee", "wasp"]
    capsys.readouterr()
    assert inference.main(["--checkpoint", str(final), "--image", str(pictures / "000.png"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == {"ant", "bee", "wasp"}


def test_cifar10_as_folders_keeps_its_order(tmp_path, no_panels):
    root = class_folders(tmp_path / "root", train=2, test=1)
    (root / "train").rename(root / "fit")
    argv = tiny(tmp_path / "out", data__dataset="CIFAR10", data__val_images=10, training__num_epochs=1)
    folders = {"paths.input_root_dir": str(root), "paths.train_img_dir": "fit"}
    assert train.main([*argv, *settings(folders)]) == 0
    assert tuple(load(tmp_path / "out" / "models" / "alexnet_final.pkl")["classes"]) == CLASSES


# ---------------------------------------------------------------- alexnet_predict

def test_predict_one_image(final, pictures, capsys):
    path = str(pictures / "000.png")
    assert inference.main(["--checkpoint", str(final), "--image", path]) == 0
    out, err = capsys.readouterr()
    name, share = out.removeprefix(f"{path}: ").removesuffix("\n").removesuffix(", unsure").rsplit(" ", 1)
    assert name in CLASSES and share.endswith("%") and err == "" and out.count("\n") == 1


def test_without_a_checkpoint_the_network_in_the_package_answers(pictures, capsys):
    photographs = ROOT / "samples" / "photographs"
    assert inference.main(["--image-dir", str(photographs), *CPU]) == 0
    out, err = capsys.readouterr()
    answers = dict(line.partition(".jpg: ")[::2] for line in out.replace(f"{photographs}/", "").splitlines())
    assert answers.keys() == {*CLASSES} and "no --checkpoint: the network in the package" in err
    assert sum(answer.startswith(name) for name, answer in answers.items()) >= 6


def test_an_answer_below_the_threshold_is_marked(final, pictures, capsys, monkeypatch):
    "For people, as JSON and as CSV; at the threshold it is not, and a file that cannot be read has no mark."
    names = ["000.png", "001.png", "002.png"]
    argv = ["--checkpoint", str(final), *CPU, "--set", "device.precision=fp32"]

    def said(*how):
        for name in names:
            assert inference.main([*argv, "--image", str(pictures / name), *how]) == 0
            yield capsys.readouterr().out
    best = [max(json.loads(out)[0]["probabilities"].values()) for out in said("--json")]
    assert len(set(best)) == 3, "the pictures differ"
    middle = sorted(best)[1]
    monkeypatch.setattr(engine_predict_command, "UNSURE_BELOW", middle)
    expected = [share < middle for share in best]
    assert sum(expected) == 1
    assert [out.endswith("%, unsure\n") for out in said()] == expected
    assert [out.splitlines()[0].endswith("%, unsure") for out in said("--top", "3")] == expected
    assert [json.loads(out)[0]["unsure"] for out in said("--json")] == expected
    rows = (next(csv.DictReader(io.StringIO(out))) for out in said("--csv"))
    assert [row["unsure"] for row in rows] == [str(mark).lower() for mark in expected]


def test_help_names_the_threshold(capsys):
    with pytest.raises(SystemExit): inference.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"below {inference.UNSURE_BELOW:.0%} is marked as unsure" in said


def test_show_all_probs(final, pictures, capsys):
    "A sorted table of all ten that sums to one."
    argv = ["--checkpoint", str(final), "--image", str(pictures / "000.png"), "--show-all-probs"]
    assert inference.main(argv) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    names, shares = zip(*(row.split() for row in rows), strict=True)
    values = [float(s.rstrip("%")) for s in shares]
    assert (sorted(names) == sorted(CLASSES) and values == sorted(values, reverse=True)
            and sum(values) == pytest.approx(100, abs=0.01))
    assert first.split(": ")[1].split()[0] == names[0]


@pytest.fixture
def mixed(tmp_path):
    "Six drawings, one broken file, one text."
    folder = tmp_path / "mixed, with a comma"
    save_drawings(folder, 6)
    (folder / "003.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_folder_as_json(final, mixed, capsys):
    assert inference.main(["--checkpoint", str(final), "--image-dir", str(mixed), "--json"]) == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["path"] for row in rows] == [str(mixed / f"00{i}.png") for i in range(6)]
    for i, row in enumerate(rows):
        if i == 3: assert "not an image" in row["error"] and set(row) == {"path", "error"}
        else:
            values = list(row["probabilities"].values())
            assert row["unsure"] is (values[0] < inference.UNSURE_BELOW)
            assert (row["prediction"] == next(iter(row["probabilities"]))
                    and values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5))
    assert err.splitlines() == [f"alexnet_predict: {mixed / '003.png'}: not an image in a format that "
                                "Pillow reads; save it as JPEG or PNG", "5 predicted, 1 skipped"]


def test_folder_as_csv(final, mixed, capsys):
    assert inference.main(["--checkpoint", str(final), "--image-dir", str(mixed), "--csv"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 6 and list(rows[0]) == ["path", "prediction", *CLASSES, "unsure", "error"]
    for i, row in enumerate(rows):
        assert row["path"] == str(mixed / f"00{i}.png")
        if i == 3: assert row["prediction"] == row["unsure"] == "" and "not an image" in row["error"]
        else:
            assert row["unsure"] == str(max(float(row[c]) for c in CLASSES) < inference.UNSURE_BELOW).lower()
            assert (row["error"] == "" and sum(float(row[c]) for c in CLASSES) == pytest.approx(1, abs=1e-5)
                    and row["prediction"] == max(CLASSES, key=lambda c: float(row[c])))


def test_batches_and_company_change_no_prediction(final, mixed):
    classifier = load_classifier(final, torch.device("cpu"))
    files = engine_predict_command._folder_images(mixed)
    predict = engine_predict_command.predict_files
    whole, small = ([p.probabilities for p in predict(classifier, files, batch_size=n)] for n in (64, 2))
    for a, b in zip(whole, small, strict=True):
        assert a == b if a is None else a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_ten_views(final, pictures, capsys):
    path = str(pictures / "001.png")
    assert inference.main(["--checkpoint", str(final), "--image", path, "--ten-views", "--json"]) == 0
    ten = json.loads(capsys.readouterr().out)[0]["probabilities"]
    assert sum(ten.values()) == pytest.approx(1, abs=1e-5)
    classifier = load_classifier(final, torch.device("cpu"), precision="fp32")
    expected = inference.predict(classifier, open_rgb(path), 10).tolist()
    assert [ten[c] for c in CLASSES] == pytest.approx(expected, rel=1e-4)


def test_dropout_is_off(final, pictures, capsys):
    "The same answer twice."
    said, argv = [], ["--checkpoint", str(final), "--image", str(pictures / "002.png"), "--json"]
    for _ in range(2):
        assert inference.main(argv) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_train_then_predict_in_real_processes(tmp_path):
    "From nothing to a named drawing, as a user would, in a folder with a space and a letter beyond ASCII."
    home = tmp_path / "my été"
    home.mkdir()
    run = command("train", *settings(TINY | {"training.num_epochs": 1, "data.num_workers": 1}), cwd=home)
    assert run.returncode == 0, run.stderr
    assert ((home / "alexnet_data_out" / "models" / "alexnet_final.pkl").is_file()
            and (home / "alexnet_data_out" / "tblogs" / "run-001").is_dir())
    save_drawings(home / "pictures", 3)
    run = command("inference", "--checkpoint", "alexnet_data_out/models/alexnet_final.pkl", "--image-dir",
                  "pictures", cwd=home)
    assert ((run.returncode, run.stderr) == (0, "3 predicted, 0 skipped\n")
            and len(run.stdout.splitlines()) == 3)


def test_commands_are_installed():
    "The five commands lead to the five main functions."
    from importlib.metadata import entry_points
    scripts = {e.name: e.value for e in entry_points(group="console_scripts")
               if e.name.startswith("alexnet_")}
    assert scripts == {"alexnet_train": "alexnet_nb.engine.train_command:main",
                       "alexnet_predict": "alexnet_nb.engine.predict_command:main",
                       "alexnet_export": "alexnet_nb.engine.export:main",
                       "alexnet_bench": "alexnet_nb.engine.bench:main",
                       "alexnet_experiment": "alexnet_nb.claims.experiment:main"}


@pytest.mark.parametrize("main", [train.main, inference.main], ids=["train", "predict"])
def test_help(main, capsys):
    with pytest.raises(SystemExit) as e: main(["--help"])
    assert e.value.code == 0 and "--config" in capsys.readouterr().out


# ---------------------------------------------------------------- configs and devices

@pytest.mark.parametrize("path", sorted(_CONFIG_DIR.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs(path):
    "Each loads by its name alone, and says what it is in its first line."
    assert load_config(path.stem) == load_config(path)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_four_configs_are_there():
    assert {"default", "quick", "short", "paper"} <= {p.stem for p in _CONFIG_DIR.glob("*.yaml")}


def test_default_is_the_default():
    "default.yaml spells out every key, with the value that it has without a file."
    assert load_config("default") == load_config() == Config()
    spelt = engine_config._read_config_file("default")
    for section, keys in Config().model_dump().items():
        assert set(keys) - {"input_root_dir"} <= set(spelt[section]), section


def test_quick_is_the_full_network():
    cfg = load_config("quick")
    assert (cfg.model == Config().model and cfg.data.dataset == "drawings" and cfg.training.linear_baseline
            and cfg.data.test_images == 500)


def test_a_config_of_the_first_days_works_unchanged(tmp_path):
    "Every key of the design's table, with either spelling of the data folder."
    text = """
model: {num_classes: 10, image_dim: 227}
training: {num_epochs: 90, batch_size: 128, learning_rate: 1e-2, momentum: 0.9, weight_decay: 5e-4,
           lr_step_size: 30, lr_gamma: 0.1, seed: 42}
data: {dataset: CIFAR10, %snum_workers: 2, pin_memory: true, drop_last: false}
paths: {%strain_img_dir: train, output_dir: alexnet_data_out,
        checkpoint_dir: alexnet_data_out/models, log_dir: alexnet_data_out/tblogs}
device: {use_cuda: true, device_ids: [0]}
"""
    data, paths = "data_dir: there, ", "input_root_dir: there, "
    for i, pair in enumerate(((data, ""), ("", paths), (data, paths))):
        (tmp_path / f"{i}.yaml").write_text(text % pair)
        cfg = load_config(tmp_path / f"{i}.yaml")
        assert cfg.data.data_dir == "there"
        cfg.data.data_dir = "alexnet_data_in"
        assert cfg == Config()


def gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_gpu_ids(monkeypatch):
    gpus(monkeypatch, 2)
    assert (pick_device(True, [1]) == torch.device("cuda", 1)
            and pick_device(False, [7]) == torch.device("cpu"))
    with pytest.raises(InputError,
                       match=r"^device\.device_ids names GPU 2, but there are 2, numbered from 0$"):
        pick_device(True, [2])
    with pytest.raises(InputError,
                       match=r"^device\.device_ids is \[0, 1\]: several GPUs need several processes, which "
                       r"alexnet_train starts in a shell; here give one id$"):
        pick_device(True, [0, 1])


def test_gpu_id_beyond_the_count_exits_2(tmp_path, monkeypatch, capsys, final, pictures):
    gpus(monkeypatch, 1)
    wrong = settings({"device.use_cuda": True, "device.device_ids": [3]})
    for main, name, argv in ((train.main, "alexnet_train", tiny(tmp_path / "out")),
                             (inference.main, "alexnet_predict",
                              ["--checkpoint", str(final), "--image", str(pictures / "000.png")])):
        capsys.readouterr()
        assert main([*argv, *wrong]) == 2
        line = f"{name}: device.device_ids names GPU 3, but there are 1, numbered from 0\n"
        assert capsys.readouterr().err == line


def test_use_cuda_without_cuda_works(tmp_path, monkeypatch, capsys, no_panels):
    "`use_cuda: true` means: if there is one. The ids are then not read, and the device is printed."
    gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert train.main([*tiny(tmp_path,
                             training__num_epochs=1),
                       *settings({"device.use_cuda": True, "device.device_ids": [3, 4]})]) == 0
    assert "device: cpu (" in capsys.readouterr().out


def test_mps_comes_after_cuda(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    gpus(monkeypatch, 1)
    assert pick_device().type == "cuda"
    gpus(monkeypatch, 0)
    assert pick_device().type == "mps" and pick_device(False).type == "cpu"


# ---------------------------------------------------------------- chance

def test_workers_change_nothing(tmp_path, no_panels):
    "The same losses with no worker and with two."
    losses = []
    for workers in (0, 2):
        assert train.main([*tiny(tmp_path / str(workers),
                                 data__num_workers=workers), "--set", "training.num_epochs=1"]) == 0
        losses.append([row["loss"] for row in lines(tmp_path / str(workers))])
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_training_and_test_drawings_differ():
    "No drawing of one seed comes again in another."
    first, second = ({image.tobytes() for image in drawings(200, seed).items} for seed in (0, 1))
    assert len(first) == len(second) == 200 and not first & second


def test_old_checkpoints_survive_a_copy(tmp_path, final, pictures, capsys):
    "A checkpoint works wherever it is moved, alone."
    shutil.copy(final, tmp_path / "moved.pkl")
    assert inference.main(["--checkpoint", "moved.pkl", "--image", str(pictures / "000.png"), *CPU]) == 0
