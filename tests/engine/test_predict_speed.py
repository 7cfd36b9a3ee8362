"""Folders: threads, batches and 16 bits give the answers that one picture at a time gives, in order, and hold
little in memory."""
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb import inference
from alexnet_nb.base import layouts as base_layouts
from alexnet_nb.base.device import pick_precision
from alexnet_nb.base.drawings import drawings
from alexnet_nb.base.errors import InputError
from alexnet_nb.base.pictures import open_rgb
from alexnet_nb.data import Recipe, prepare
from alexnet_nb.engine import answering as engine_answering
from alexnet_nb.engine import predict_command as engine_predict_command
from alexnet_nb.engine.checkpoint import load_classifier
from alexnet_nb.engine.files import save_checkpoint
from alexnet_nb.engine.loaders import read_ahead
from alexnet_nb.model import AlexNet
from common import save_drawings

CPU = torch.device("cpu")


def classifier_of(width: float = 1 / 16, recipe: Recipe | None = None, **options) -> inference.Classifier:
    "An untrained narrow network."
    torch.manual_seed(0)
    model = AlexNet(width=width, **options).eval()
    return inference.Classifier(model, recipe or Recipe(), tuple("abcdefghij"), CPU)


def one_by_one(classifier, paths, views: int = 1) -> list[engine_predict_command._Prediction]:
    "The plain way."
    answers, answer = [], engine_predict_command._Prediction
    for path in paths:
        try: answers.append(answer(str(path), inference.predict(classifier, open_rgb(path), views).tolist()))
        except InputError as e: answers.append(answer(str(path), error=str(e)))
    return answers


def assert_same(fast, plain) -> None:
    """The same files in the same order, the same errors, and probabilities within 1e-6 (they are float32 and
    at most one)."""
    fast = list(fast)
    assert [(a.path, a.error) for a in fast] == [(b.path, b.error) for b in plain]
    for a, b in zip(fast, plain, strict=True):
        if a.error is None:
            assert (a.probabilities == pytest.approx(b.probabilities, rel=0, abs=1e-6)
                    and sum(a.probabilities) == pytest.approx(1, abs=1e-6))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    "Twenty files: drawings, other sizes, photographs large and long, and broken ones in their midst."
    folder = tmp_path_factory.mktemp("mixed")
    paths, rng = save_drawings(folder, 20), np.random.default_rng(0)
    for i, (width, height) in {4: (48, 20), 5: (500, 300), 6: (227, 227), 11: (1, 1), 12: (226, 228),
                               13: (640, 100)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[i])
    paths[3].write_bytes(b"no image")
    paths[9].write_bytes(b"")
    paths[10].write_bytes(paths[10].read_bytes()[:300])
    paths[17].unlink()
    return paths


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(short_side=256, std=(1 / 255,) * 3)],
                         ids=["squashed", "cropped"])
def test_batches_say_what_single_pictures_say(mixed, batch_size, recipe):
    classifier = classifier_of(recipe=recipe)
    plain = one_by_one(classifier, mixed)
    assert [b.error is not None for b in plain] == [i in (3, 9, 10, 17) for i in range(20)]
    assert_same(engine_predict_command.predict_files(classifier, mixed, batch_size=batch_size), plain)


@pytest.mark.parametrize("recipe", [Recipe(224), Recipe(short_side=256)], ids=["squashed", "cropped"])
def test_ten_views_in_batches(mixed, recipe):
    classifier = classifier_of(recipe=recipe, image_dim=recipe.size)
    assert_same(engine_predict_command.predict_files(classifier, mixed[2:13], views=10, batch_size=30),
                one_by_one(classifier, mixed[2:13], views=10))


def test_a_batch_of_one_size_is_prepared_at_once(pictures, monkeypatch):
    sizes = []
    original = engine_predict_command.prepare_batch
    monkeypatch.setattr(engine_predict_command, "prepare_batch",
                        lambda pixels, recipe: sizes.append(tuple(pixels.shape)) or original(pixels, recipe))
    paths = engine_predict_command._folder_images(pictures)
    assert len(list(engine_predict_command.predict_files(classifier_of(), paths, batch_size=4))) == 6
    assert sizes == [(4, 3, 32, 32), (2, 3, 32, 32)]
    image = open_rgb(paths[0])
    read = engine_predict_command._read(paths[0], Recipe())
    prepared, = engine_predict_command._prepared([read], Recipe(), CPU)
    assert torch.equal(prepared, prepare(image, Recipe()))


def test_ten_views_are_the_corners_the_centre_and_their_mirrors():
    "Against crops of the prepared picture at 256 pixels."
    image = drawings(1, 3)[0].resize((60, 44))
    large, views = prepare(image, Recipe(256)), inference.ten_views(image, Recipe())
    for view, (top, left) in zip(views[:5], [(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)], strict=True):
        assert torch.equal(view, large[:, top:top + 227, left:left + 227])
    assert torch.equal(views[5:], views[:5].flip(-1)) and views.shape == (10, 3, 227, 227)
    for views in (0, 5):
        with pytest.raises(ValueError, match="must be 1 or 10"):
            list(engine_predict_command.predict_files(classifier_of(), ["a.png"], views))


def test_nothing_to_read_is_no_error():
    assert list(engine_predict_command.predict_files(classifier_of(), [])) == []


# ---------------------------------------------------------------- reading ahead

def test_read_ahead_keeps_order_and_is_bounded():
    "Later items finish first; still they come in order, and never are more than `ahead` begun and not taken."
    begun, taken, most, lock = 0, 0, 0, threading.Lock()
    def work(i):
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.002 * (i % 3 == 0))
        return i
    for i, value in enumerate(read_ahead(work, range(60), 7)):
        assert i == value
        taken += 1
    assert taken == 60 and 1 < most <= 7


def test_an_error_of_the_work_comes_out_in_its_turn():
    got = []
    with pytest.raises(ZeroDivisionError):
        for value in read_ahead(lambda i: 1 // (i - 3), range(10), 4): got.append(value)
    assert len(got) == 3


def test_leaving_early_leaves_no_thread():
    before = threading.active_count()
    ahead = read_ahead(lambda i: i, range(1000), 5)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before


def test_few_pictures_are_in_memory(tmp_path, monkeypatch):
    "Of 60 files in batches of four, three batches at most: one in the network, two read ahead."
    alive, most, lock = set(), 0, threading.Lock()
    read, paths = engine_predict_command._read, save_drawings(tmp_path / "many", 60)
    def counted(path, recipe):
        nonlocal most
        with lock:
            alive.add(path)
            most = max(most, len(alive))
        return read(path, recipe)
    monkeypatch.setattr(engine_predict_command, "_read", counted)
    for answer in engine_predict_command.predict_files(classifier_of(1 / 24), paths, batch_size=4):
        alive.discard(next(p for p in alive if str(p) == answer.path))
    assert not alive and most <= 12


# ---------------------------------------------------------------- 16 bits

@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    "A checkpoint of a narrow network that has learned the drawings."
    from alexnet_nb.data import prepare_batch
    torch.manual_seed(0)
    images, model = drawings(400, 1), AlexNet(width=1 / 12, dropout=0.0)
    pixels, labels = torch.from_numpy(images.items).permute(0, 3, 1, 2), torch.from_numpy(images.labels)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=120)
    for _ in range(120):
        i = torch.randint(0, 400, (16,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(prepare_batch(pixels[i], Recipe())), labels[i]).backward()
        optimizer.step()
        schedule.step()
    path = tmp_path_factory.mktemp("learned") / "learned.pkl"
    save_checkpoint(path, dict(model=model.state_dict(), config=dict(model=dict(width=1 / 12))))
    return path


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return save_drawings(tmp_path_factory.mktemp("unseen"), 300, seed=5)


def answers(path, files, precision: str, **options) -> torch.Tensor:
    classifier = load_classifier(path, CPU, precision=precision, **options)
    return torch.tensor([p.probabilities for p in engine_predict_command.predict_files(classifier, files)])


def test_bf16_names_the_same_class(learned, unseen):
    "For at least 99 in 100 drawings; the probabilities stay float32 and sum to one."
    full, half = answers(learned, unseen, "fp32"), answers(learned, unseen, "bf16")
    right = (full.argmax(1) == torch.arange(300) % 10).float().mean().item()
    same = (full.argmax(1) == half.argmax(1)).float().mean().item()
    print(f"{right:.1%} right; bf16 names the same class for {same:.1%}; largest difference "
          f"{(full - half).abs().max():.4f}")
    assert right > 0.6, "the network has learned too little for the comparison to mean anything"
    assert not torch.equal(full, half) and half.dtype == torch.float32
    torch.testing.assert_close(half.sum(1), torch.ones(300), atol=1e-6, rtol=0)
    if pick_precision("auto", CPU) == torch.bfloat16: assert same >= 0.99


def test_layout_changes_rounding_only(learned, unseen):
    a, b = (answers(learned, unseen[:40], "fp32", channels_last=layout) for layout in (True, False))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_weights_kept_in_16_bits_are_what_autocast_computes(learned):
    "Casting the weights once gives bit for bit what autocast gives, which casts them at every batch."
    wide, narrow = (load_classifier(learned, CPU, precision=p)
                    for p in ("fp32", "bf16"))
    assert ({p.dtype for p in narrow.model.parameters()} == {torch.bfloat16}
            and {p.dtype for p in wide.model.parameters()} == {torch.float32})
    batch = torch.stack([prepare(image, Recipe()) for image in map(drawings(8, 2).__getitem__, range(8))])
    with torch.autocast("cpu", torch.bfloat16): expected = inference.probabilities(wide, batch)
    assert torch.equal(inference.probabilities(narrow, batch), expected)


def test_precision_that_the_device_lacks_is_bad_input(learned, pictures, capsys):
    argv = ["--checkpoint", str(learned), "--image", str(pictures / "000.png"), "--set",
            "device.use_cuda=false", "--set", "device.precision=fp16"]
    assert inference.main(argv) == 2 and "fp16" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_config_chooses(learned, pictures, capsys, monkeypatch, precision):
    made = []
    load = load_classifier
    monkeypatch.setattr(engine_answering, "load_classifier",
                        lambda *args, **more: made.append(load(*args, **more)) or made[-1])
    argv = ["--checkpoint", str(learned), "--image-dir", str(pictures), "--set", "device.use_cuda=false",
            "--set", f"device.precision={precision}"]
    assert inference.main([*argv, "--set", "device.channels_last=false"]) == inference.main(argv) == 0
    weights = [c.model.features[4].weight for c in made]
    assert all(w.dtype == pick_precision(precision, CPU) for w in weights)
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [False, True]


@pytest.mark.cifar10
@pytest.mark.slow
def test_bf16_on_the_real_network(cifar10_dir, all_threads):
    "Same class for at least 99 % of 2,000 test images of CIFAR-10."
    from common import ROOT
    checkpoint = ROOT / "alexnet_data_out" / "models" / "alexnet_final.pkl"
    if not checkpoint.is_file(): pytest.skip("no trained network in alexnet_data_out/models")
    sys.path.insert(0, str(ROOT / "tools"))
    from bf16_agreement import measure
    result = measure(checkpoint, cifar10_dir, 2000)
    print(result)
    assert result["same_class"] >= 0.99


def test_nothing_of_the_file_is_used_later(learned, tmp_path):
    """A classifier outlives its checkpoint, also one that is overwritten in place; torch's old format, which
    cannot be mapped, loads too."""
    from alexnet_nb.engine.checkpoint import read_checkpoint
    path, old = tmp_path / "copy.pkl", tmp_path / "old.pkl"
    path.write_bytes(learned.read_bytes())
    torch.save(read_checkpoint(learned), old, _use_new_zipfile_serialization=False)
    ours, oldest = (load_classifier(p, CPU) for p in (path, old))
    path.write_bytes(bytes(path.stat().st_size))
    whole = read_checkpoint(learned)["model"]
    for name, weight in whole.items():
        assert (torch.equal(ours.model.state_dict()[name], weight)
                and torch.equal(oldest.model.state_dict()[name], weight))


# ---------------------------------------------------------------- files that are passed over

def test_pictures_that_pillow_cannot_open_are_counted(tmp_path, learned, pictures, capsys, monkeypatch):
    monkeypatch.setattr(base_layouts, "_OTHER_PICTURES", base_layouts._OTHER_PICTURES | {".zzz"})
    folder = tmp_path / "phone"
    paths = save_drawings(folder, 2)
    for name in ("a.zzz", "b.ZZZ", "c.nef", "notes.txt", ".hidden.nef"): (folder / name).write_bytes(b"x")
    assert (base_layouts.unopened(folder) == "2 .zzz, 1 .nef"
            and engine_predict_command._folder_images(folder) == paths)
    argv = ["--checkpoint", str(learned), "--image-dir", str(folder), "--set", "device.use_cuda=false"]
    assert inference.main(argv) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and err.splitlines() == [
        f"alexnet_predict: {folder}: passed over 2 .zzz, 1 .nef, which Pillow cannot open here; save them "
        "as JPEG or PNG", "2 predicted, 0 skipped"]
    for path in paths: path.unlink()
    assert inference.main(argv) == 2
    assert capsys.readouterr().err == (
        f"alexnet_predict: {folder}: holds no image but 2 .zzz, 1 .nef, which Pillow cannot open here; "
        "save them as JPEG or PNG\n")


def test_nothing_that_pillow_opens_is_passed_over(tmp_path):
    for suffix in Image.registered_extensions(): (tmp_path / f"a{suffix}").touch()
    assert base_layouts.unopened(tmp_path) == ""


# ---------------------------------------------------------------- the first picture

def test_prediction_imports_nothing_it_does_not_need(learned, pictures):
    """torchvision, TensorBoard, matplotlib and torch's compiler take seconds to import; a whole prediction
    goes without them."""
    program = f"""
import sys
from alexnet_nb import inference
code = inference.main(["--checkpoint", {str(learned)!r}, "--image", {str(pictures / "000.png")!r}])
loaded = {{m.split(".")[0] for m in sys.modules}}
print(code, sorted(loaded & {{"torchvision", "tensorboard", "matplotlib"}}), "torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines()[-1] == "0 [] False", run.stdout + run.stderr
