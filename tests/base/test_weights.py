"A file of weights is read without trust: damaged ones are refused in a line, and what fits comes back whole."
import json
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from alexnet_nb.base.errors import InputError
from alexnet_nb.base.weights import PRETRAINED, _digest, photographs, read_weights, write_weights
from alexnet_nb.inference import load_pretrained, predict

SHIPPED = PRETRAINED / "cifar10.safetensors"


def refused(work, *args) -> str:
    "The line with which it is refused."
    with pytest.raises(InputError) as found: work(*args)
    assert "\n" not in str(found.value)
    return str(found.value)


def shipped_parts() -> tuple[dict[str, torch.Tensor], dict]:
    "The tensors of the shipped file as they are stored, and its card."
    whole = SHIPPED.read_bytes()
    length, = struct.unpack("<Q", whole[:8])
    return load_file(SHIPPED), json.loads(json.loads(whole[8:8 + length])["__metadata__"]["card"])


def test_the_shipped_file_is_small_and_is_an_ordinary_alexnet():
    classifier = load_pretrained("cifar10")
    assert SHIPPED.stat().st_size <= 8_000_000
    assert sum(p.numel() for p in classifier.model.parameters()) == 58_322_314
    assert classifier.classes[3] == "cat" and 0.5 <= classifier.temperature <= 5
    pictures = photographs()
    right = sum(int(predict(classifier, pictures[i]).argmax()) == pictures.labels[i] for i in range(60))
    assert right >= 36, "at 75 in a hundred, fewer than 36 of 60 would be chance of one in two hundred"


def damaged(whole: bytes, rng: random.Random) -> bytes:
    "One of a thousand ways to spoil a file."
    header, = struct.unpack("<Q", whole[:8])
    kind = rng.randrange(6)
    place = rng.randrange(8 + header) if kind == 0 else rng.randrange(len(whole))
    if kind < 2: return whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1:]
    if kind == 2: return whole[:place]                                     # cut short
    if kind == 3: return whole + rng.randbytes(rng.randrange(1, 1000))     # something behind it
    if kind == 4: return struct.pack("<Q", rng.randrange(2**64)) + whole[8:]  # another length of the header
    end = min(len(whole), place + rng.randrange(1, 4096))
    spoilt = rng.randbytes(end - place)
    return whole[:place] + spoilt + whole[end:]


def test_a_thousand_damaged_files_are_refused_in_a_line(tmp_path):
    "Of a file with the shipped one's names and card, and kernels of a few numbers, so that it takes seconds."
    tensors, card = shipped_parts()
    short = {name: value.flatten()[:50].clone() for name, value in tensors.items()}
    write_weights(tmp_path / "whole.safetensors", short, card)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    rng, path = random.Random(0), tmp_path / "x.safetensors"
    for _ in range(900):
        if (spoilt := damaged(whole, rng)) == whole: continue
        path.write_bytes(spoilt)
        assert "damaged" in refused(load_pretrained, path)
    whole = SHIPPED.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(whole, rng))
        assert "damaged" in refused(load_pretrained, path)


def with_digest(path, tensors: dict, card: str) -> None:
    "A file that is well made, whatever its card says."
    save_file(tensors, path, {"card": card, "digest": _digest(tensors, card)})


BAD_CARDS = {
    "not JSON": "{", "a list": "[1]", "deep": "[" * 100_000, "a number": "7", "nothing": "{}", "null": "null",
    "no such argument": '{"model": {"depth": 3}, "recipe": {"mean": [0, 0, 0], "std": [1, 1, 1]}}',
    "two classes": '{"model": {"num_classes": 2}, "recipe": {"mean": [0, 0, 0], "std": [1, 1, 1]}, '
                   '"classes": ["a", "b"], "temperature": 1}',
}


@pytest.mark.parametrize("card", BAD_CARDS.values(), ids=list(BAD_CARDS))
def test_a_card_that_makes_no_sense(card, tmp_path):
    tensors, _ = shipped_parts()
    with_digest(tmp_path / "x.safetensors", tensors, card)
    refused(load_pretrained, tmp_path / "x.safetensors")


CHANGES = {
    "recipe": [{}, 7, {"size": 100, "mean": [0, 0, 0], "std": [1, 1, 1]},
               {"size": 227, "mean": [0, 0, 0], "std": [0, 1, 1]}, {"mean": [0], "std": [1]}, {"size": 227}],
    "classes": [[], ["cat"] * 9, 5, [1] * 10], "temperature": [0, -1, "warm", None, 1e400],
    "model": [{"width": 0.5}, {"num_classes": 11}, {"width": 1e9}, {"image_dim": 3}, None, []],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in CHANGES.items() for value in values])
def test_a_card_with_a_wrong_part(key, value, tmp_path):
    tensors, card = shipped_parts()
    with_digest(tmp_path / "x.safetensors", tensors, json.dumps(card | {key: value}))
    refused(load_pretrained, tmp_path / "x.safetensors")


def test_tensors_that_do_not_fit_together(tmp_path):
    path, one = tmp_path / "x.safetensors", torch.ones(2, 3)
    for tensors in ({"a.left": one}, {"a.left": one, "a.right": one.clone()}, {"a": one.to(torch.int8)},
                    {"a": one.to(torch.int8), "a.scale": torch.ones(5)}, {"a": one * torch.inf},
                    {"a.left": torch.ones(2**15, 1), "a.right": torch.ones(1, 2**15)}):
        write_weights(path, tensors, {})
        refused(read_weights, path)


def test_what_is_no_file(tmp_path):
    assert "no such file" in refused(read_weights, tmp_path / "nothing.safetensors")
    refused(read_weights, tmp_path)
    (tmp_path / "empty").touch()
    refused(read_weights, tmp_path / "empty")
    refused(load_pretrained, "imagenet")
