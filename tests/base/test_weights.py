"A file of weights is read without trust: damaged ones are refused in a line, and what fits comes back whole."
import json
import pickle
import random
import re
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alexnet_nb.base.errors import InputError
from alexnet_nb.base.results import read_results
from alexnet_nb.base.weights import PRETRAINED, _digest, photographs, read_weights, write_weights
from alexnet_nb.data import CLASSES, Recipe, prepare_batch
from alexnet_nb.inference import load_pretrained, probabilities
from alexnet_nb.model import AlexNet

SHIPPED = PRETRAINED / "cifar10.safetensors"


def refused(work, *args) -> str:
    "The line with which it is refused."
    with pytest.raises(InputError) as found: work(*args)
    assert "\n" not in str(found.value)
    return str(found.value)


def small_parts() -> tuple[dict[str, torch.Tensor], dict]:
    "A whole network in a few kilobytes, stored in all three ways, and its card."
    torch.manual_seed(0)
    model = AlexNet(width=0.02)
    tensors = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    wide = tensors.pop("classifier.1.weight")
    tensors["classifier.1.weight.left"] = torch.randn(len(wide), 2).half()
    tensors["classifier.1.weight.right"] = torch.randn(2, wide.shape[1]).half()
    tensors["features.4.weight"] = torch.randint(-127, 128, tensors["features.4.weight"].shape).to(torch.int8)
    tensors["features.4.weight.scale"] = torch.rand(len(tensors["features.4.weight"]))
    return tensors, dict(model={"width": 0.02}, recipe=asdict(Recipe()), classes=CLASSES, temperature=1.2)


@pytest.fixture
def small(tmp_path) -> Path:
    write_weights(tmp_path / "small.safetensors", *small_parts())
    return tmp_path / "small.safetensors"


def test_the_shipped_file_is_small_and_is_an_ordinary_alexnet():
    classifier = load_pretrained("cifar10")
    assert SHIPPED.stat().st_size <= 8_000_000
    assert sum(p.numel() for p in classifier.model.parameters()) == 58_322_314
    assert classifier.classes[3] == "cat" and 0.5 <= classifier.temperature <= 5
    pictures = photographs()
    batch = prepare_batch(torch.from_numpy(pictures.items[:30]).permute(0, 3, 1, 2), classifier.recipe)
    right = (probabilities(classifier, batch).argmax(1).numpy() == pictures.labels[:30]).sum()
    assert right >= 21, "at 83 in a hundred, fewer than 21 of 30 would be chance of one in thirty"


def test_what_is_written_comes_back(small):
    tensors, card = small_parts()
    stored, about = read_weights(small, unpack=False)
    assert {name: value.dtype for name, value in stored.items()} == {k: v.dtype for k, v in tensors.items()}
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
    assert about == json.loads(json.dumps(card))
    write_weights(small, stored, about)  # over the file that the tensors came from
    state, again = read_weights(small)
    assert again == about and set(state) == set(AlexNet(width=0.02).state_dict())
    assert not small.with_name("small.safetensors.part").exists()


# --- a thousand damaged files ---

def flip(whole: bytes, place: int, bit: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1:]


def header_of(whole: bytes) -> tuple[int, str]:
    length, = struct.unpack("<Q", whole[:8])
    return length, whole[8:8 + length].decode()


def with_header(whole: bytes, text: str) -> bytes:
    "The same numbers behind another header."
    return struct.pack("<Q", len(text.encode())) + text.encode() + whole[8 + header_of(whole)[0]:]


def edited(whole: bytes, rng: random.Random) -> bytes:
    "The header's JSON with one thing changed: a type, a number, a name, or a key that stands twice."
    text = header_of(whole)[1]
    kind = rng.randrange(5)
    types = ('"F64"', '"I64"', '"BOOL"', '"F8_E4M3"', '"U16"', '"X"')
    if kind == 0: found, new = r'"(F32|F16|I8)"', rng.choice(types)
    elif kind == 1: found, new = r"\d+(?=[,\]])", str(rng.choice([0, -1, 2**31, 2**40, 2**63, 10**30]))
    elif kind == 2: found, new = r'"[a-z0-9.]+":\{', rng.choice(['"":{', '"a.left":{', '"x":[{'])
    elif kind == 3: found, new = r"[\[{]", rng.choice(["[" * 50_000, '{"a":' * 50_000, "{", "null"])
    else: found, new = r'"dtype"', '"dtype":"F32","dtype"'
    places = [*re.finditer(found, text)]
    place = rng.choice(places)
    return with_header(whole, text[:place.start()] + new + text[place.end():])


def damaged(whole: bytes, rng: random.Random) -> bytes:
    "One of many ways to spoil a file."
    header, place = 8 + header_of(whole)[0], rng.randrange(len(whole))
    kind = rng.randrange(8)
    if kind == 0: return flip(whole, rng.randrange(header), rng.randrange(8))
    if kind == 1: return flip(whole, place, rng.randrange(8))
    if kind == 2: return whole[:rng.choice([place, rng.randrange(header), rng.randrange(10)])]  # cut short
    if kind == 3: return whole + rng.randbytes(rng.randrange(1, 1000))
    if kind == 4: return struct.pack("<Q", rng.randrange(2**rng.randrange(1, 65))) + whole[8:]
    if kind == 5: return whole[:place] + rng.randbytes(rng.randrange(1, 4096)) + whole[place:]
    return edited(whole, rng)


def test_a_thousand_damaged_files_are_refused_in_a_line_or_are_right(small):
    "Of a small network, so that it takes seconds, and fifty of the shipped one."
    rng, said = random.Random(0), []
    for path, times in ((small, 950), (SHIPPED, 50)):
        whole, spoilt = path.read_bytes(), small.with_name("x.safetensors")
        state, card = read_weights(path)
        for _ in range(times):
            spoilt.write_bytes(damaged(whole, rng))
            try: found, about = read_weights(spoilt)
            except InputError as e: said.append(str(e))
            else: assert about == card and all(torch.equal(found[name], state[name]) for name in state)
    assert len(said) >= 980, "hardly any damage leaves a file right"
    assert all("damaged" in line and "\n" not in line for line in said)


def test_a_claimed_size_takes_no_memory(small):
    "In a process that may take 300 MB more than it has, files that claim up to 2**62 bytes are refused."
    whole = small.read_bytes()
    files = [struct.pack("<Q", n) + whole[8:] for n in (2**20 + 1, 2**27, 2**40, 2**62, 2**64 - 1)]
    text = header_of(whole)[1]
    files += [with_header(whole, re.sub(r"\[\d+\]", f"[{n}]", text, count=1)) for n in (2**31, 2**62)]
    for number, each in enumerate(files): small.with_name(f"claim{number}").write_bytes(each)
    column, row = torch.ones(2**15, 1), torch.ones(1, 2**15)
    write_weights(small.with_name("claim-product"), {"a.left": column, "a.right": row}, {})
    with open(small.with_name("claim-sparse"), "wb") as file: file.truncate(2**40)
    code = """if True:
        import resource, sys
        from pathlib import Path
        from alexnet_nb.base.errors import InputError
        from alexnet_nb.base.weights import read_weights
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
        for path in sys.argv[1:]:
            try: read_weights(path)
            except InputError: print("refused")"""
    claims = sorted(map(str, small.parent.glob("claim*")))
    run = subprocess.run([sys.executable, "-c", code, *claims], capture_output=True, text=True,
                         cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["refused"] * len(claims) and len(claims) == 9


class Payload:
    "What a pickle would run."
    def __init__(self, path): self.path = path

    def __reduce__(self): return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    torch.save({"model": Payload(mark)}, tmp_path / "torch.safetensors")
    tensors, card = small_parts()
    card |= {"model": {"__reduce__": ["os.system", "id"]}}
    write_weights(tmp_path / "card.safetensors", tensors, card)
    for name in ("pickle", "torch", "card"): refused(load_pretrained, tmp_path / f"{name}.safetensors")
    assert not mark.exists()


# --- files that are well made, and make no sense ---

def with_digest(path, tensors: dict, card: str) -> Path:
    "A file that is well made, whatever its card says."
    save_file(tensors, path, {"card": card, "digest": _digest(tensors, card)})
    return path


BAD_CARDS = {
    "not JSON": "{", "a list": "[1]", "deep": "[" * 100_000, "a number": "7", "nothing": "{}", "null": "null",
    "no such argument": '{"model": {"depth": 3}, "recipe": {"mean": [0, 0, 0], "std": [1, 1, 1]}}',
    "two classes": '{"model": {"num_classes": 2}, "recipe": {"mean": [0, 0, 0], "std": [1, 1, 1]}, '
                   '"classes": ["a", "b"], "temperature": 1}',
    "a key twice": '{"model": {"width": 0.02}, "model": {"width": 0.02}}',
}


@pytest.mark.parametrize("card", BAD_CARDS.values(), ids=list(BAD_CARDS))
def test_a_card_that_makes_no_sense(card, tmp_path):
    refused(load_pretrained, with_digest(tmp_path / "x.safetensors", small_parts()[0], card))


CHANGES = {
    "recipe": [{}, 7, {"size": 100, "mean": [0, 0, 0], "std": [1, 1, 1]},
               {"size": 227, "mean": [0, 0, 0], "std": [0, 1, 1]}, {"mean": [0], "std": [1]}, {"size": 227},
               *(asdict(Recipe()) | {"first_to": value} for value in (0, -1, 228, 1e9, "32", True, [32]))],
    "classes": [[], ["cat"] * 9, 5, [1] * 10], "temperature": [0, -1, "warm", None, 1e400, float("nan")],
    "model": [{"width": 0.5}, {"num_classes": 11}, {"width": 1e9}, {"width": 1e400}, {"width": 10**40},
              {"image_dim": 3}, None, []],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in CHANGES.items() for value in values])
def test_a_card_with_a_wrong_part(key, value, tmp_path):
    tensors, card = small_parts()
    path = with_digest(tmp_path / "x.safetensors", tensors, json.dumps(card | {key: value}))
    refused(load_pretrained, path)


def test_tensors_that_do_not_fit_together(tmp_path):
    path, one = tmp_path / "x.safetensors", torch.ones(2, 3)
    for tensors in ({"a.left": one}, {"a.left": one, "a.right": one.clone()}, {"a": one.to(torch.int8)},
                    {"a": one.to(torch.int8), "a.scale": torch.ones(5)}, {"a": one * torch.inf},
                    {"a.left": torch.ones(3), "a.right": torch.ones(3)},
                    {"a.left": torch.ones(2**15, 1), "a.right": torch.ones(1, 2**15)}):
        write_weights(path, tensors, {})
        refused(read_weights, path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_types_that_no_network_has(dtype, tmp_path):
    write_weights(tmp_path / "x.safetensors", {"a": torch.ones(2, 3).to(dtype)}, {})
    refused(read_weights, tmp_path / "x.safetensors")


def test_what_is_no_file(tmp_path):
    assert "no such file" in refused(read_weights, tmp_path / "nothing.safetensors")
    refused(read_weights, tmp_path)
    (tmp_path / "empty").touch()
    refused(read_weights, tmp_path / "empty")
    refused(load_pretrained, "imagenet")
    if Path("/dev/zero").exists(): refused(read_weights, "/dev/zero")


# --- the model card ---

def test_the_model_card_says_what_was_measured():
    card = (PRETRAINED / "README.md").read_text(encoding="utf-8").replace(" %", "%")
    run, small, photos = (read_results(name) for name in ("cifar10", "compress", "photographs"))
    assert run and small and photos
    assert f"{small['accuracy']:.2%}" in card
    assert f"{small['full_accuracy']:.2%}" in card
    assert f"{small['same_class']:.1%}" in card
    for name, share in small["per_class"].items(): assert f"| {name} | {share:.1%} |" in card
    assert f"temperature {small['temperature']}" in card and f"seed {small['seed']}" in card
    assert f"{run['epochs_done']} epochs" in card.replace("twelve", "12") and small["data"] in card
    for way in ("straight, squashed", photos["chosen"]):
        each = photos["ways"][way]["photos"]
        assert f"{each['right']:.0%} of {each['n']}" in card
    calibration = read_results("calibration")
    assert calibration
    errors = (f"{calibration[when]['calibration_error']:.1%}" for when in ("before", "after"))
    assert " to ".join(errors) in card.replace("\n", " ")
    _, stored = read_weights(SHIPPED, unpack=False)
    assert stored["temperature"] == small["temperature"] and stored["epochs"] == run["epochs_done"]


def test_a_device_that_is_not_there_is_not_called_a_damaged_file():
    with pytest.raises((AssertionError, RuntimeError)) as found:
        load_pretrained("cifar10", torch.device("cuda:99"))
    assert not isinstance(found.value, InputError)


def test_a_class_that_stands_twice(tmp_path):
    tensors, card = small_parts()
    write_weights(file := tmp_path / "twice.safetensors", tensors, card | dict(classes=[*CLASSES, "cat"]))
    assert "does not fit" in refused(load_pretrained, file)


def test_weights_as_a_network_holds_them_can_be_written(tmp_path):
    "Those that learn; and bfloat16, of which a file holds float32."
    of_all = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.full((2,), 0.5, dtype=torch.bfloat16)}
    write_weights(tmp_path / "a.safetensors", of_all, {})
    state, _ = read_weights(tmp_path / "a.safetensors")
    assert {name: (w.dtype, w[0].item()) for name, w in state.items()} == {
        "a": (torch.float32, 1.0), "b": (torch.float32, 0.5)}


def test_a_network_of_many_classes_is_not_too_large(tmp_path):
    "Full width with 5,000 classes has 79 million weights, 315 MB."
    write_weights(tmp_path / "a.safetensors", {"w": torch.zeros(79_000_000)}, {})
    assert len(read_weights(tmp_path / "a.safetensors")[0]["w"]) == 79_000_000
