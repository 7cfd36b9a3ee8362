"""What people's shells, files and machines do to a command: empty arguments, tildes, streams that are closed,
disks without locks, YAML that means something else, and what was given but not obeyed."""
import errno
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_nb import inference, train
from alexnet_nb.base import cifar10 as base_cifar10
from alexnet_nb.base import pictures as base_pictures
from alexnet_nb.base import reading as base_reading
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.output import steady_output
from alexnet_nb.claims import experiment
from alexnet_nb.engine import bench, compress, export
from alexnet_nb.engine.arguments import quoted
from alexnet_nb.engine.config import _parse_yaml, load_config, make_config, to_yaml
from alexnet_nb.engine.files import lock_folders
from common import ROOT, STEPS, class_folders, hook_steps, load, save_drawings, snapshot, tiny

COMMANDS = dict(train=train.main, predict=inference.main, bench=bench.main, experiment=experiment.main,
                export=export.main, compress=compress.main)


@pytest.fixture
def told(capsys):
    "Call a command, expect a code, exactly one line on stderr with these words, and every file as it was."
    def check(main, argv, *words: str, code: int = 2):
        before = snapshot(Path())
        capsys.readouterr()
        assert main([str(a) for a in argv]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and all(word in err for word in words), err
        assert snapshot(Path()) == before
    return check


# ---------------------------------------------------------------- nothing, and twice

EMPTY = {
    "train": ["--config", "--resume", "--start-from", "--set", "--minutes", "--results"],
    "predict": ["--checkpoint", "--image", "--image-dir", "--config", "--set", "--top"],
    "bench": ["--precision", "--device", "--batch-size", "--repeats", "--workers", "--minutes", "--results",
              "--parts"],
    "experiment": ["--scale", "--arms", "--seeds", "--data", "--results", "--output", "--minutes"],
    "export": ["--checkpoint"],
    "compress": ["--checkpoint", "--data-dir", "--data-name", "--out", "--rank", "--epochs", "--first-to",
                 "--val-images", "--results"],
}
NEEDED = {"experiment": ["relu_vs_tanh"], "export": ["x.onnx"]}


def options(main, capsys) -> set[str]:
    "The options with a value that a command's own help names."
    with pytest.raises(SystemExit): main(["--help"])
    found = capsys.readouterr().out.partition("options:")[2].splitlines()
    words = [line.split() for line in found if line.startswith("  --")]
    return {first for first, *second in words if second and second[0][0] in "ABCDEFGHIJKLMNOPQRSTUVWXYZ{"}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_value_is_refused_everywhere(name, told, capsys):
    assert options(COMMANDS[name], capsys) == {*EMPTY[name]}, "every option that takes a value"
    for flag in EMPTY[name]:
        for words in ([flag, ""], [f"{flag}="], [flag, " \t "]):
            told(COMMANDS[name], [*NEEDED.get(name, []), *words], f": {flag} is empty; give it a value")


@pytest.mark.parametrize("name, what", [("export", "FILE"), ("experiment", "name")])
def test_an_empty_argument_without_a_flag(name, what, told):
    told(COMMANDS[name], [""], f": {what} is empty; give it a value")


@pytest.mark.parametrize("name, argv", [
    ("train", ["--resume", "a.pkl", "--resume", "b.pkl"]), ("train", ["--config", "quick", "--config=short"]),
    ("predict", ["--image-dir", "a", "--image-dir", "b"]), ("bench", ["--results", "a", "--results", "b"])])
def test_an_option_that_takes_one_value_twice(name, argv, told):
    told(COMMANDS[name], argv, f"{argv[0]} is given twice; give it once")


# ---------------------------------------------------------------- YAML that means something else

SAID = {
    "octal": ("training:\n  seed: 010\n", ":2: ", "'010'", "plain digits"),
    "minutes and seconds": ("training:\n  checkpoint_minutes: 10:30\n", ":2: ", "'10:30'", "plain digits"),
    "hours": ("training:\n  seed: 1:30:00\n", ":2: ", "plain digits"),
    "sixties with a point": ("training:\n  learning_rate: 1:30.5\n", ":2: ", "plain digits"),
    "thousands": ("data:\n  train_images: 1_000\n", ":2: ", "'1_000'", "plain digits"),
    "a date for a folder": ("paths:\n  output_dir: 2024-01-01\n", ":2: ", "'2024-01-01'", "quotes"),
    "no date at all": ("paths:\n  output_dir: 2024-13-45\n", ":2: ", "quotes"),
    "a time": ("paths:\n  log_dir: 2024-01-01 10:00:00\n", ":2: ", "quotes"),
    "a number for a folder": ("paths:\n  output_dir: 2024\n", "is 2024; ", "put it in quotes"),
    "no": ("paths:\n  train_img_dir: no\n", "is False; ", "put it in quotes"),
    "on": ("paths:\n  train_img_dir: on\n", "is True; ", "put it in quotes"),
    "nothing": ("data:\n  data_dir:\n", ":2: data_dir has no value"),
    "a tilde alone": ("paths:\n  output_dir: ~\n", ":2: output_dir has no value", "'~'"),
    "an empty text": ("paths:\n  log_dir: ''\n", "it is empty; give a folder"),
    "blanks": ("data:\n  data_dir: '  '\n", "it is empty; give a folder"),
    "new": ('data:\n  data_dir: "D:\\new\\trainset"\n', "data.data_dir", "single quotes, or with /"),
    "Photos": ('data:\n  data_dir: "D:\\Photos"\n', "data.data_dir", "single quotes, or with /"),
    "data": ('data:\n  data_dir: "D:\\data"\n', ":2: not valid YAML", "single quotes, or with /"),
    "Users": ('paths:\n  output_dir: "C:\\Users\\ada"\n', ":2: not valid YAML", "single quotes, or with /"),
    "the end": ('paths:\n  output_dir: "D:\\"\n', "not valid YAML", "single quotes, or with /"),
    "no section": ("training: 3\n", "training is 3; it must be a section, with keys below it"),
    "none": ("data:\n  train_images: none\n", "data.train_images is 'none'", "for nothing, write null"),
    "unset": ("paths:\n  output_dir: $NOT_SET_HERE/out\n", "the variable $NOT_SET_HERE is not set"),
    "unset in braces": ("paths:\n  output_dir: a/${NOT_SET_HERE}\n", "${NOT_SET_HERE} is not set"),
    "nobody": ("data:\n  data_dir: ~nobody_of_this_name/x\n", "no user 'nobody_of_this_name'"),
}


@pytest.mark.parametrize("text, words", [(text, words) for text, *words in SAID.values()], ids=SAID)
def test_config(text, words, told):
    Path("my.yaml").write_text(text)
    told(train.main, ["--config", "my.yaml"], "my.yaml", *words)


@pytest.mark.parametrize("pair", ["training.seed=", "training.seed= ", "data.data_dir=~", "training.seed=010",
                                  "training.checkpoint_minutes=10:30", "paths.output_dir=''",
                                  "data.data_dir=$NOT_SET_HERE/x", 'data.data_dir="D:\\new"',
                                  "data.data_dir=#photos", "data.data_dir=Trip #2"])
def test_set(pair, told):
    told(train.main, ["--set", pair], f"--set{' ' * ('=~' in pair)}", pair.partition("=")[0])


def test_an_address_is_no_file(told):
    told(inference.main, ["--image", "http://example.org/cat.jpg"],
         "http://example.org/cat.jpg: is an address; save what is there first")


def test_a_backslash_elsewhere_is_not_to_blame():
    Path("my.yaml").write_text("# put \\\\ here\ndata: {data_dir: 'never closed")
    with pytest.raises(InputError, match="not valid YAML") as e: load_config("my.yaml")
    assert "backslash" not in str(e.value) and "double quotes" not in str(e.value)


def test_what_is_meant_is_read():
    "Quotes, plain digits, and the signs that JSON writes out; yes and no where a switch is meant."
    text = (r'paths: {output_dir: "2024-01-01", log_dir: "caf\u00e9", train_img_dir: "no"}' "\n"
            r"data: {data_dir: 'D:\new', download: no, train_images: null}" "\n"
            "training: {seed: 10, checkpoint_minutes: 0.5, learning_rate: 1e-3}\n"
            "device: {device_ids: [0x1]}\n")
    Path("my.yaml").write_text(text, encoding="utf-8-sig")
    cfg = load_config("my.yaml")
    assert (cfg.paths.output_dir, cfg.paths.log_dir, cfg.paths.train_img_dir) == ("2024-01-01", "café", "no")
    assert (cfg.data.data_dir, cfg.data.download, cfg.device.device_ids) == (r"D:\new", False, [1])
    assert (cfg.training.seed, cfg.training.checkpoint_minutes) == (10, 0.5)


@pytest.mark.parametrize("name", "1e-3 5E2 .5e3 +1e3 010 1_000 10:30 no 2024-01-01 ~".split())
def test_what_is_written_down_reads_back(name):
    "A folder that is called by a number, as in a sweep of rates."
    cfg = make_config({"paths": {"output_dir": name}, "training": {"learning_rate": 1e-5}})
    assert _parse_yaml(to_yaml(cfg)) == cfg.model_dump()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_config_in_another_encoding(encoding, told):
    Path("my.yaml").write_text("paths:\n  output_dir: café\n", encoding=encoding)
    told(train.main, ["--config", "my.yaml"], "my.yaml: cannot be read, for it is not in UTF-8; save it so")


# ---------------------------------------------------------------- paths

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder, and a variable that names a folder in it."
    (tmp_path / "home").mkdir()
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("MY_DATA", str(tmp_path / "home" / "data"))
    return tmp_path / "home"


def test_tilde_and_variables_in_a_config(home):
    text = "paths: {output_dir: ~/out, log_dir: $HOME/logs}\ndata: {data_dir: '${MY_DATA}/x'}\n"
    Path("my.yaml").write_text(text)
    cfg = load_config("my.yaml", ["paths.checkpoint_dir=~/models"])
    assert (cfg.paths.output_dir, cfg.paths.log_dir) == (str(home / "out"), str(home / "logs"))
    assert (cfg.data.data_dir, cfg.paths.checkpoint_dir) == (str(home / "data" / "x"), str(home / "models"))


def test_a_name_that_only_looks_like_a_variable(home):
    Path("$5").mkdir()
    Path("~").mkdir()
    assert load_config(None, ["paths.output_dir=$5"]).paths.output_dir == "$5"
    assert load_config(None, ["paths.output_dir=./~"]).paths.output_dir == "./~"


def test_tilde_and_variables_in_arguments(home, final, capsys):
    "Inputs are found at home, outputs go there, and no folder is made that is called ~ or $MY_DATA."
    save_drawings(home / "data", 1)
    (home / "net.pkl").write_bytes(final.read_bytes())
    (home / "my.yaml").write_text("device: {use_cuda: false}")
    net = ["--checkpoint", "~/net.pkl", "--config", "$HOME/my.yaml"]
    assert inference.main([*net, "--image", "~/data/000.png"]) == 0
    assert inference.main([*net, "--image-dir", "$MY_DATA"]) == 0
    assert str(home / "data" / "000.png") in capsys.readouterr().out
    assert export.main(["~/out/x.safetensors", "--checkpoint", "~/net.pkl"]) == 0
    assert experiment.main(["relu_vs_tanh", "--list", "--results", "~/r.json", "--output", "~/states"]) == 0
    assert str(home / "r.json") in capsys.readouterr().out
    assert (home / "out" / "x.safetensors").is_file() and not list(Path().glob("[~$]*"))


@pytest.mark.parametrize("path, unix, windows", [
    ("models/last.pkl", "models/last.pkl", "models/last.pkl"),
    ("My pictures/last.pkl", "'My pictures/last.pkl'", '"My pictures/last.pkl"'),
    ("a&b", "'a&b'", '"a&b"'), (r"C:\ada\x.pkl", r"'C:\ada\x.pkl'", r"C:\ada\x.pkl"),
    ("it's $5", """'it'"'"'s $5'""", '"it\'s $5"')])
def test_a_path_that_can_be_pasted(path, unix, windows):
    assert (quoted(path, False), quoted(path, True)) == (unix, windows)


def test_what_a_stopped_run_prints_can_be_pasted(capsys, no_panels):
    out = Path("My pictures & 'Ada'")
    assert train.main([*tiny(out, training__num_epochs=1), "--minutes", "1e-9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = shlex.split(lines[-1].partition("go on with ")[2])
    assert words == ["--resume", str(out / "models" / "alexnet_last.pkl")]
    (logs,) = (line.partition("logs: ")[2] for line in lines if line.startswith("logs: "))
    assert shlex.split(logs) == ["tensorboard", "--logdir", str((out / "tblogs").resolve())]
    assert train.main([*words, *tiny(out, training__num_epochs=1)]) == 0


# ---------------------------------------------------------------- output

def whole(out: Path) -> bool:
    "Whether a tiny run of one epoch is at its end."
    return load(out / "models" / "alexnet_final.pkl")["total_steps"] == STEPS


def narrow(encoding: str) -> io.TextIOWrapper:
    "A file that takes few letters."
    return io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)


def broken() -> io.TextIOWrapper:
    "A pipe that nobody reads."
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def shut() -> io.TextIOWrapper:
    "A stream that somebody has closed."
    stream = narrow("utf-8")
    stream.close()
    return stream


LOST = {"closed": lambda: None, "broken": broken, "shut": shut, "ascii": lambda: narrow("ascii")}
if Path("/dev/full").exists(): LOST["full"] = lambda: open("/dev/full", "w")


@pytest.mark.parametrize("kind", LOST)
def test_a_training_that_nobody_hears(kind, tmp_path, monkeypatch, no_panels):
    "It ends as any other, in a folder with letters that not every stream has."
    streams = [LOST[kind](), LOST[kind]()]
    with monkeypatch.context() as m:
        for name, stream in zip(("stdout", "stderr"), streams, strict=True): m.setattr(sys, name, stream)
        code = train.main(tiny(tmp_path / "猫", training__num_epochs=1))
        assert [sys.stdout, sys.stderr] == streams, "they come back"
    assert code == 0 and whole(tmp_path / "猫")
    for stream in filter(None, streams): stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_log_is_told_once(tmp_path, monkeypatch, capsys, no_panels):
    with open("/dev/full", "w") as full, monkeypatch.context() as m:
        m.setattr(sys, "stdout", full)
        assert train.main(tiny(tmp_path / "out", training__num_epochs=1)) == 0
    said = capsys.readouterr().err
    assert said.count("output: No space left on device; the work goes on without it\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="another shell")
def test_no_file_gets_the_number_of_a_closed_stream():
    "A library that writes a warning to number 2 must not write it into a checkpoint."
    code = ("import os\nfrom alexnet_nb.base.output import steady_output\n"
            "with steady_output():\n  print('nobody hears this', flush=True)\n"
            "  with open('file', 'w') as f: f.write(str(f.fileno()))\n  os.write(2, b'a warning')\n")
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"
    run = subprocess.run(["sh", "-c", line], env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert run.returncode == 0 and int(Path("file").read_text()) > 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("form", [["--show-all-probs"], ["--json"], ["--csv"]], ids=" ".join)
def test_classes_beyond_the_stream(encoding, form, final, pictures, monkeypatch):
    "A class called in Chinese, and one in an emoji, on a redirected stdout."
    from alexnet_nb.engine import answering
    names = ("猫", "🐕", *inference.load_pretrained().classes[2:])
    loaded = answering.load_classifier(final, torch.device("cpu"))
    object.__setattr__(loaded, "classes", names)
    monkeypatch.setattr(answering, "load_classifier", lambda *args, **more: loaded)
    with monkeypatch.context() as m:
        m.setattr(sys, "stdout", out := narrow(encoding))
        code = inference.main(["--image", str(pictures / "000.png"), *form])
    text = out.buffer.getvalue().decode(encoding)
    assert code == 0 and ("猫" if encoding == "utf-8" and form != ["--json"] else "\\u732b") in text


def test_work_that_prints_to_a_narrow_stream_outside_a_command():
    "The way of writing is a command's; afterwards the stream is the same object."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "stdout", out := narrow("ascii"))
        with steady_output(): print("猫")
        assert sys.stdout is out
    assert out.buffer.getvalue().strip() == b"\\u732b"


# ---------------------------------------------------------------- disks without locks

fcntl = pytest.importorskip("fcntl") if os.name != "nt" else None
needs_flock = pytest.mark.skipif(fcntl is None, reason="Windows has other locks")


@pytest.fixture(params=["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def no_locks(request, monkeypatch):
    "A disk that answers so."
    number = getattr(errno, request.param)
    def flock(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, "flock", flock)


@needs_flock
def test_a_training_on_a_disk_without_locks(no_locks, tmp_path, capsys, no_panels):
    out = tmp_path / "out"
    assert train.main(tiny(out, training__num_epochs=1)) == 0
    err = capsys.readouterr().err
    assert f"{out}: its disk knows no locks; {out / '.running.soft'} stands for one" in err
    assert whole(out) and not list(out.rglob(".running.soft"))
    with lock_folders(out):
        capsys.readouterr()
        assert train.main(tiny(out, training__num_epochs=1)) == 2
        assert f"another run writes there (process {os.getpid()} on " in capsys.readouterr().err


def left_behind(folder: Path, **held) -> Path:
    "What a run that was killed leaves on a disk without locks."
    folder.mkdir()
    (folder / ".running.json").write_text(json.dumps(dict(started="yesterday") | held))
    (folder / ".running.soft").touch()
    return folder / ".running.soft"


@needs_flock
def test_a_lock_that_another_machine_left(no_locks, tmp_path):
    lock = left_behind(tmp_path / "out", machine="elsewhere", process=4711)
    with pytest.raises(InputError) as e: lock_folders(tmp_path / "out")
    assert f"process 4711 on elsewhere, since yesterday); wait for it, stop it, or choose another folder; " \
           f"if it is gone, remove {lock}" in str(e.value)
    lock.unlink()
    lock_folders(tmp_path / "out").close()


@needs_flock
def test_a_lock_that_this_machine_left(no_locks, tmp_path):
    "The process is asked for: gone, its file is taken away; alive, it is not."
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left_behind(tmp_path / "gone", machine=socket.gethostname(), process=gone.pid)
    lock_folders(tmp_path / "gone").close()
    left_behind(tmp_path / "alive", machine=socket.gethostname(), process=os.getpid())
    with pytest.raises(InputError, match="another run writes there"): lock_folders(tmp_path / "alive")
    for process in (-1, 0, True, "1", 2**70, None):
        lock = left_behind(tmp_path / f"odd {process}", machine=socket.gethostname(), process=process)
        with pytest.raises(InputError): lock_folders(lock.parent)


# ---------------------------------------------------------------- found before work begins, and stopped in it

def test_too_many_for_validation_is_told_before_a_picture_is_read(tmp_path, monkeypatch, told):
    root = class_folders(tmp_path / "root", train=1, test=1)
    monkeypatch.setattr(base_pictures, "open_rgb", lambda *args: pytest.fail("a picture was read"))
    argv = tiny(tmp_path / "out", data__dataset="CIFAR10", data__data_dir=str(root), data__val_images=5000)
    told(train.main, argv, "data.val_images is 5000, but there are 10 training images; hold out fewer")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal on this system")
@pytest.mark.parametrize("ignored", [False, True], ids=["closed", "nohup"])
def test_a_terminal_that_is_closed(ignored, tmp_path, monkeypatch, capsys, no_panels):
    "SIGHUP saves and stops, as SIGTERM does; under nohup, which ignores it, the run goes on."
    hook_steps(monkeypatch, lambda step: signal.raise_signal(signal.SIGHUP) if step == 2 else None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try: code = train.main(tiny(tmp_path, training__num_epochs=1))
    finally: signal.signal(signal.SIGHUP, before)
    said = capsys.readouterr().out
    assert code == (0 if ignored else 129) and ("stopped (SIGHUP) after 3 steps" in said) is not ignored
    assert load(tmp_path / "models" / "alexnet_last.pkl")["total_steps"] == (STEPS if ignored else 3)


# ---------------------------------------------------------------- given, and obeyed

def test_several_images(final, pictures, capsys):
    "Named one by one or all behind one flag, each is answered for, as it is alone."
    a, b, c = (str(pictures / f"00{i}.png") for i in range(3))
    argv = ["--checkpoint", str(final), "--set", "device.use_cuda=false", "--json"]
    assert inference.main([*argv, "--image", a, "--image", b, c]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == [a, b, c]
    assert inference.main([*argv, "--image", b]) == 0
    alone = json.loads(capsys.readouterr().out)[0]["probabilities"]
    assert rows[1]["probabilities"] == pytest.approx(alone, abs=1e-3)


def test_several_images_one_of_them_missing_or_broken(final, pictures, told, capsys):
    good, argv = str(pictures / "000.png"), ["--checkpoint", final]
    told(inference.main, [*argv, "--image", good, "--image", "none.png"], "none.png: no such file")
    Path("bad.png").write_bytes(b"no picture")
    assert inference.main([*map(str, argv), "--image", "bad.png", good]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: ") and "bad.png: not an image" in err


@pytest.mark.parametrize("top", [1, 3, 99])
def test_top_in_json(top, final, pictures, capsys):
    argv = ["--checkpoint", str(final), "--image", str(pictures / "000.png"), "--json"]
    assert inference.main(argv) == inference.main([*argv, "--top", str(top)]) == 0
    both, _ = json.JSONDecoder().raw_decode(text := capsys.readouterr().out)
    best = json.loads(text[len(json.dumps(both, indent=1)):])
    assert [*best[0]["probabilities"].items()] == [*both[0]["probabilities"].items()][:top]


def test_top_in_csv(final, pictures, told):
    told(inference.main, ["--checkpoint", final, "--image", pictures / "000.png", "--csv", "--top", "3"],
         "--top goes with lines or --json")


class Terminal(io.StringIO):
    "A stream that somebody looks at."
    def isatty(self): return True


@pytest.mark.parametrize("stream, many", [(io.StringIO, False), (Terminal, True)], ids=["log", "terminal"])
def test_bars_are_for_those_who_look(stream, many, tmp_path, monkeypatch, no_panels):
    "Of 6,000 pictures that are checked or read, of a download, of a training."
    monkeypatch.setattr(sys, "stderr", out := stream())
    shown = []
    def note():
        shown.append(out.getvalue())
        out.seek(0)
        out.truncate()
    plain = base_reading.Bar  # without its wait for two seconds
    monkeypatch.setattr(base_reading, "Bar", lambda *args, **more: plain(*args, **more | dict(delay=0)))
    with monkeypatch.context() as m:
        m.setattr(base_pictures, "_check_file", lambda path: None)
        base_pictures.check_images(base_pictures.Images([Path("x.png")] * 6000, np.zeros(6000, int)))
    note()
    source = tmp_path / "archive"
    source.write_bytes(b"a" * 3_000_000)
    base_cifar10.download(source.as_uri(), tmp_path / "copy", base_cifar10._md5(source))
    note()
    folder = save_drawings(tmp_path / "pictures", 1)[0]
    base_pictures.stack_pixels(base_pictures.Images([folder] * 5000, np.zeros(5000, int)), 2**30)
    note()
    assert train.main(tiny(tmp_path / "out", training__num_epochs=1)) == 0
    note()
    assert ["\r" in text for text in shown] == [many] * 4, shown
