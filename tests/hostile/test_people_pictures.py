"""People's own pictures: whole ones with something odd in the file are read, and as bright as they are."""
import io
import re
import struct
import time
import warnings
import weakref
import zlib

import hostile_files as hostile
import numpy as np
import pytest
import torch
from PIL import Image, features

from alexnet_nb.base import file_parts, fonts, layouts, pictures, plots
from common import refused

SCENE = hostile.scene("RGB", (40, 24))
TURNED = SCENE.transpose(Image.Transpose.ROTATE_90)  # as a camera stores what EXIF calls 6
GARBAGE = b"Exif\0\0" + b"garbage, not a TIFF" * 3


def exif(*fields: tuple[int, int, int, bytes]) -> bytes:
    "A block of EXIF of these fields: number, type, count, and four bytes."
    body = b"".join(struct.pack("<HHI", *field[:3]) + field[3].ljust(4, b"\0") for field in fields)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + body + bytes(4)


SIX = (274, 3, 1, b"\x06")
BYTE, ASCII, PAIR = (282, 1, 1, b"H"), (282, 2, 2, b"x"), (282, 5, 1, b"\xff\xff\xff\x7f")
INCH = (296, 3, 1, b"\x02")

# ---------------------------------------------------------------- broken metadata


def jpeg(image: Image.Image, *segments: tuple[int, bytes]) -> bytes:
    "A JPEG without JFIF, whose metadata are these segments."
    data = hostile.written(image, "JPEG", quality=95)
    start = 4 + int.from_bytes(data[4:6])
    more = b"".join(bytes([255, kind]) + struct.pack(">H", 2 + len(body)) + body for kind, body in segments)
    return data[:2] + more + data[start:]


def png(image: Image.Image, kind: bytes, body: bytes, end: bool = False, check: int | None = None) -> bytes:
    "A PNG with one more chunk, behind the header or behind the pixels."
    data = hostile.written(image, "PNG")
    at = len(data) - 12 if end else 33
    check = zlib.crc32(kind + body) if check is None else check
    return data[:at] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check) + data[at:]


def webp(image: Image.Image, block: bytes, cut: int = 0) -> bytes:
    "A WebP with this block of EXIF, perhaps cut short."
    data = hostile.written(image, "WEBP", lossless=True, exif=block)
    return data[:len(data) - cut]


def tiff(image: Image.Image, *fields: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    "A TIFF of one strip with these fields, type and count and four bytes, beside what it needs."
    w, h = image.size
    needed = [(256, 4, 1, w), (257, 4, 1, h), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
              (277, 3, 1, 1), (278, 4, 1, h), (279, 4, 1, w * h)]
    packed = [(*f[:3], struct.pack(order + {3: "Hxx", 4: "I"}[f[1]], f[3])) for f in needed]
    table = sorted([*packed, *fields])
    start = b"II*\0" if order == "<" else b"MM\0*"
    return (start + struct.pack(order + "I", 8 + w * h) + image.convert("L").tobytes()
            + struct.pack(order + "H", len(table))
            + b"".join(struct.pack(order + "HHI", *f[:3]) + f[3].ljust(4, b"\0") for f in table) + bytes(4))


def avif(image: Image.Image, block: bytes) -> bytes | None:
    "An AVIF with this block of EXIF, put in the place of a good one."
    good = exif(*[(270, 2, 4, b"abc")] * 4)
    data = hostile.written(image, "AVIF", quality=100, exif=good)
    return data and data.replace(good[6:], block[6:].ljust(len(good) - 6, b"\0")[:len(good) - 6])


WHOLE = {  # the file, and whether it is to be turned
    "jpeg, EXIF garbage": (lambda i: jpeg(i, (0xE1, GARBAGE)), False),
    "jpeg, EXIF empty": (lambda i: jpeg(i, (0xE1, b"Exif\0\0")), False),
    "jpeg, EXIF cut": (lambda i: jpeg(i, (0xE1, exif(SIX, INCH)[:20])), False),
    "jpeg, EXIF elsewhere": (lambda i: jpeg(i, (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")), False),
    "jpeg, orientation a word": (lambda i: jpeg(i, (0xE1, exif((274, 2, 2, b"6")))), False),
    "jpeg, orientation twice": (lambda i: jpeg(i, (0xE1, exif((274, 3, 2, b"\x06\0\x06\0")))), True),
    "jpeg, orientation 0": (lambda i: jpeg(i, (0xE1, exif((274, 3, 1, b"\0")))), False),
    "jpeg, orientation 99": (lambda i: jpeg(i, (0xE1, exif((274, 3, 1, b"\x63")))), False),
    "jpeg, resolution a byte": (lambda i: jpeg(i, (0xE1, exif(SIX, BYTE, INCH))), True),
    "jpeg, resolution a word": (lambda i: jpeg(i, (0xE1, exif(SIX, ASCII, INCH))), True),
    "jpeg, resolution nowhere": (lambda i: jpeg(i, (0xE1, exif(SIX, PAIR, INCH))), True),
    "jpeg, short JFIF": (lambda i: jpeg(i, (0xE0, b"JFIF\0"), (0xE1, exif(SIX))), True),
    "jpeg, short Adobe": (lambda i: jpeg(i, (0xEE, b"Adobe"), (0xE1, exif(SIX))), True),
    "jpeg, short colour profile": (lambda i: jpeg(i, (0xE2, b"ICC_PROFILE\0"), (0xE1, exif(SIX))), True),
    "jpeg, short Photoshop": (lambda i: jpeg(i, (0xED, b"Photoshop 3.0\0008BIM\4\4"),
                                             (0xE1, exif(SIX))), True),
    "jpeg, MPF garbage": (lambda i: jpeg(i, (0xE2, b"MPF\0garbage"), (0xE1, exif(SIX))), True),
    "jpeg, MPF without pictures": (lambda i: jpeg(i, (0xE2, b"MPF\0" + exif((0xB001, 4, 1, b"\x02"))[6:]),
                                                  (0xE1, exif(SIX))), True),
    "png, EXIF garbage": (lambda i: png(i, b"eXIf", b"garbage"), False),
    "png, EXIF garbage at the end": (lambda i: png(i, b"eXIf", b"garbage", True), False),
    "png, EXIF empty": (lambda i: png(i, b"eXIf", b""), False),
    "png, raw EXIF garbage": (lambda i: png(i, b"tEXt", b"Raw profile type exif\0\nexif\n 3\nxyz\n"), False),
    "png, resolution a word": (lambda i: png(i, b"eXIf", exif(SIX, ASCII, INCH)[6:]), True),
    "png, resolution a byte": (lambda i: png(i, b"eXIf", exif(SIX, BYTE, INCH)[6:], True), True),
    "png, EXIF with a wrong check sum": (lambda i: png(i, b"eXIf", exif(SIX)[6:], check=7), True),
    "png, text with a wrong check sum": (lambda i: png(i, b"tEXt", b"a\0b", check=7), False),
    "png, text packed in an unknown way": (lambda i: png(i, b"zTXt", b"a\0\7b"), False),
    "png, colour profile in an unknown way": (lambda i: png(i, b"iCCP", b"a\0\7b"), False),
    "png, colour profile empty": (lambda i: png(i, b"iCCP", b""), False),
    "png, short gamma": (lambda i: png(i, b"gAMA", b"\0"), False),
    "png, short resolution": (lambda i: png(i, b"pHYs", b"\0"), False),
    "png, short colours": (lambda i: png(i, b"cHRM", b"\0"), False),
    "png, a film without length": (lambda i: png(i, b"acTL", b"\0"), False),
    "webp, EXIF garbage": (lambda i: webp(i, GARBAGE), False),
    "webp, resolution a word": (lambda i: webp(i, exif(SIX, ASCII, INCH)), True),
    "webp, EXIF cut off": (lambda i: webp(i, GARBAGE, 5), False),
    "tiff, EXIF nowhere": (lambda i: tiff(i, (34665, 9, 1, b"\xfb\xff\xff\xff")), False),
    "tiff, EXIF a word": (lambda i: tiff(i, (34665, 2, 2, b"x")), False),
    "tiff, turned, EXIF nowhere": (lambda i: tiff(i, SIX, (34665, 9, 1, b"\xfb\xff\xff\xff")), True),
    "tiff, resolution a word": (lambda i: tiff(i, SIX, ASCII, (296, 3, 1, b"\3")), True),
    "tiff, resolution a word, big end": (lambda i: tiff(i, (274, 3, 1, b"\0\6"), ASCII, (296, 3, 1, b"\0\3"),
                                                        order=">"), True),
    "tiff, XMP of numbers": (lambda i: tiff(i, (700, 3, 2, b"abcd")), False),
    "tiff, orientation a word": (lambda i: tiff(i, (274, 2, 2, b"6")), False),
}
if features.check("avif"): WHOLE["avif, EXIF garbage"] = (lambda i: avif(i, GARBAGE), False)


@pytest.mark.parametrize("name", WHOLE)
def test_broken_metadata_costs_nothing_but_itself(name, tmp_path, recwarn):
    make, turned = WHOLE[name]
    (tmp_path / "a.png").write_bytes(make(TURNED if turned else SCENE))
    found = pictures.open_rgb(tmp_path / "a.png")
    grey = name.startswith("tiff")
    true = np.asarray((SCENE.convert("L") if grey else SCENE).convert("RGB"), int)
    lossy = 12 if name.startswith(("jpeg", "avif")) else 0
    assert found.size == SCENE.size and abs(np.asarray(found, int) - true).mean() <= lossy
    pictures.check_images(pictures.Images([tmp_path / "a.png"], np.array([0]), ("x",)))
    assert not recwarn.list


def test_a_large_file_with_broken_metadata(tmp_path):
    "Its header is all that is read in the check before training, and it waits for its turn but once."
    noise = Image.effect_noise((1100, 1000), 90).convert("RGB")
    for name, data in (("a.jpg", jpeg(noise, (0xE0, b"JFIF\0"))), ("b.png", png(noise, b"eXIf", b"x", True)),
                       ("c.png", png(noise, b"pHYs", b"x", True))):
        (tmp_path / name).write_bytes(data)
        assert len(data) > 2**16
        pictures.check_images(pictures.Images([tmp_path / name], np.array([0]), ("x",)))
        assert pictures.open_rgb(tmp_path / name).size == noise.size
    assert pictures._SPACE.taken == 0


def test_a_second_try_holds_no_picture_of_the_first():
    class Picture: pass
    held = []
    def read(bare):
        if bare: return [one() for one in held]
        picture = Picture()
        held.append(weakref.ref(picture))
        try: raise KeyError(picture)
        except KeyError: raise ValueError("damaged") from None
    assert file_parts.second_try(read) == [None]


DAMAGED = {
    "a.jpg": lambda: jpeg(SCENE, (0xE1, exif(SIX)))[:-300],
    "b.jpg": lambda: jpeg(SCENE, (0xE0, b"JFIF\0"))[:-300],
    "c.png": lambda: png(SCENE, b"eXIf", b"x")[:-300],
    "d.png": lambda: png(SCENE, b"gAMA", b"x").replace(b"IDAT", b"IDAt"),
    "e.webp": lambda: webp(SCENE, GARBAGE, 100),
    "f.tif": lambda: tiff(SCENE, ASCII, (296, 3, 1, b"\3"))[:500],
    "g.png": hostile.text_bomb,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_stays_refused(name, tmp_path):
    "Also a comment that unpacks to 200 MB: not broken, but made to break."
    (tmp_path / name).write_bytes(DAMAGED[name]())
    refused(pictures.open_rgb, tmp_path / name, words=[name])


# ---------------------------------------------------------------- passes of a JPEG

def photograph(side: int = 700, **options) -> bytes:
    return hostile.written(Image.linear_gradient("L").resize((side, side)).convert("RGB"), "JPEG", **options)


MANY = b"\xff\xda" * 10_000   # far more than 2**31 / 700**2


def inside(data: bytes, *segments: bytes) -> bytes: return data[:2] + b"".join(segments) + data[2:]


def segment(kind: int, body: bytes) -> bytes:
    return bytes([255, kind]) + struct.pack(">H", 2 + len(body)) + body


ONE_PASS = {
    "a film behind it": lambda: photograph() + b"\0\0\0\x18ftypmp42" + MANY,
    "noise behind it": lambda: photograph() + np.random.default_rng(0).bytes(2**20) + MANY,
    "a progressive one, and a film": lambda: photograph(progressive=True) + MANY,
    "a second picture": lambda: photograph() + hostile.many_scans(700, 9000),
    "a stereo pair": lambda: hostile.written(Image.open(io.BytesIO(photograph())), "MPO", save_all=True,
                                             append_images=[SCENE.resize((700, 700))]) + MANY,
    "a preview in EXIF": lambda: inside(photograph(), segment(0xE1, b"Exif\0\0" + MANY[:60_000])),
    "a comment": lambda: inside(photograph(), segment(0xFE, MANY[:60_000])),
    "restarts": lambda: photograph(restart_marker_blocks=1) + MANY,
    "padded markers": lambda: photograph().replace(b"\xff\xda", b"\xff\xff\xff\xda") + MANY,
    "an empty comment": lambda: inside(photograph(), segment(0xFE, b"")) + MANY,
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_jpeg_with_something_in_it_or_behind_it(name, tmp_path):
    (tmp_path / "a.jpg").write_bytes(ONE_PASS[name]())
    assert pictures.open_rgb(tmp_path / "a.jpg").size == (700, 700)


def scans(first: bytes = b"", before: bytes = b"") -> bytes:
    "Nine thousand passes over 700 x 700 pixels, with this between the pixels of the first and the second."
    data = hostile.many_scans(700, 9000)
    last = [at.start() for at in re.finditer(rb"\xff\xda", data)][-1]
    return inside(data[:last] + first + data[last:], before)


MANY_PASSES = {
    "plain": scans,
    "an end in a comment": lambda: scans(before=segment(0xFE, b"\xff\xd9" * 100)),
    "an end in EXIF": lambda: scans(before=segment(0xE1, b"Exif\0\0" + photograph(64))),
    "a restart": lambda: scans(b"\xff\xd9"[:1] + b"\xd0"),
    "a stuffed zero": lambda: scans(b"\xff\0\xd9"),
    "a marker that is none": lambda: scans(b"\xff\x02\xff\xff"),
    "baseline": lambda: hostile.many_scans(700, 9000, False),
    "behind a megabyte of junk": lambda: scans(bytes(2**20)),
}


@pytest.mark.parametrize("name", MANY_PASSES)
def test_a_jpeg_in_too_many_passes(name, tmp_path):
    "Whatever is put in the way of whoever counts."
    (tmp_path / "a.jpg").write_bytes(MANY_PASSES[name]())
    began = time.process_time()
    refused(pictures.open_rgb, tmp_path / "a.jpg", words=["a JPEG in over 4382 passes over 700 x 700"])
    assert time.process_time() - began < 1


def test_a_jpeg_of_nothing_but_parts(tmp_path):
    "A million comments of no words."
    data = photograph()
    (tmp_path / "a.jpg").write_bytes(data[:-2] + b"\xff\xfe\0\2" * 2**20 + data[-2:])
    began = time.process_time()
    refused(pictures.open_rgb, tmp_path / "a.jpg", words=["more than 65,536 parts"])
    assert time.process_time() - began < 2


# ---------------------------------------------------------------- numbers that are not bytes

RAMP = np.linspace(0, 1, 256)[None]
STEPS = np.arange(256)
NUMBERS = {  # kind of the numbers, from, to: read as 0 to 255
    "0 to 1": (np.float32, 0, 1), "0 to 255": (np.float32, 0, 255), "0 to 65,535": (np.float32, 0, 65535),
    "-1 to 1": (np.float32, -1, 1), "0 to 3": (np.float32, 0, 3), "0 to 4,095": (np.float32, 0, 4095),
    "heights": (np.float32, -100, 3000), "tiny": (np.float32, -1e-3, 1e-3 + 2), "huge": (np.float32, 0, 1e30),
    "whole, 8 bits": (np.int32, 0, 255), "whole, 16 bits": (np.int32, 0, 65535),
    "whole, with a sign": (np.int32, -32768, 32767), "whole, 31 bits": (np.int32, 0, 2**31 - 1),
    "whole, 32 bits": (np.uint32, 0, 2**32 - 1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_not_bytes(name, tmp_path):
    kind, low, high = NUMBERS[name]
    values = (low + RAMP * (high - low)).round(0 if kind != np.float32 else 40).astype(kind)
    form = {"f": 3, "i": 2, "u": 1}[values.dtype.kind]
    (tmp_path / "a.tif").write_bytes(hostile.tiff(256, 4, np.repeat(values, 4, 0), form))
    found = np.asarray(pictures.open_rgb(tmp_path / "a.tif"), int)
    assert abs(found - STEPS[None, :, None]).max() <= 1


@pytest.mark.parametrize("over", [0, 0.004, 0.05])
def test_a_filter_may_overshoot(over, tmp_path):
    "Cut off; the rest is as bright as it was."
    values = (RAMP * (1 + 2 * over) - over).astype(np.float32)
    (tmp_path / "a.tif").write_bytes(hostile.tiff(256, 4, np.repeat(values, 4, 0), 3))
    found = np.asarray(pictures.open_rgb(tmp_path / "a.tif"), int)[0, :, 0]
    assert abs(found - (values[0] * 255).clip(0, 255)).max() <= 1


def test_a_dark_picture_stays_dark(tmp_path):
    "A photograph at night, as floating point from 0 to 1; and grey all over."
    for value, grey in ((0.1, 26), (0.0, 0), (1.0, 255), (100.0, 100)):
        (tmp_path / "a.tif").write_bytes(hostile.tiff(9, 9, np.full((9, 9), value, np.float32), 3))
        assert pictures.open_rgb(tmp_path / "a.tif").getextrema() == ((grey, grey),) * 3, value


def test_twelve_bits(tmp_path):
    "Two numbers in three bytes."
    (tmp_path / "a.tif").write_bytes(hostile.tiff(4, 1, np.array([255, 255, 255, 0, 8, 0], np.uint8), 1, 12))
    assert [p[0] for p in np.asarray(pictures.open_rgb(tmp_path / "a.tif"))[0]] == [255, 255, 0, 128]


def test_a_large_one_is_read_in_parts(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((2050, 2100)).astype(np.float32)
    (tmp_path / "a.tif").write_bytes(hostile.tiff(2100, 2050, values, 3))
    found = np.asarray(pictures.open_rgb(tmp_path / "a.tif"), int)[..., 0]
    assert abs(found - values * 255).max() <= 0.51


# ---------------------------------------------------------------- names in figures

NAMES = ("cat", "猫", "猫と犬", "кот", "γάτα", "🐈", "\u2764\ufe0f", "👩\u200d👧", "\u05d7\u05ea",
         "\u0642\u0637", "\u0e41\u0e21", "a\tb", "$x_{$", "\udcff", "naïve", "nai\u0308ve", "\U0010fffd", "")


def drawn(names: tuple[str, ...]):
    "A confusion matrix with these names, drawn; every remark of matplotlib's is an error."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.matrix_figure(torch.eye(len(names)), names)
        figure.savefig(io.BytesIO(), format="png", dpi=60)
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_names_that_no_font_holds(capfd):
    shown = drawn(NAMES)
    assert shown[0] == "cat" and shown[3] == "кот" and shown[-1] == "" and len(set(shown)) == len(NAMES)
    assert shown[-2] == r"\U0010fffd" and capfd.readouterr() == ("", "")


def test_a_font_of_this_machine_is_found(tmp_path):
    "One with a single sign, made here; matplotlib's own stays the first."
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager
    (pen := TTGlyphPen(None)).moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)): pen.lineTo(point)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "cat"])
    font.setupCharacterMap({0x732B: "cat"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (500, 0), "cat": (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "One Cat", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "cat.ttf")
    listed = list(font_manager.fontManager.ttflist)
    try:
        font_manager.fontManager.ttflist[:] = [f for f in listed if "DejaVu" in f.name]
        font_manager.fontManager.addfont(tmp_path / "cat.ttf")
        fonts._font_with.cache_clear()
        assert fonts.label_fonts("a猫") == ["sans-serif", "One Cat"]
        assert drawn(("猫", "犬"))[0] == "猫" and drawn(("猫", "犬"))[1] == r"\u72ac"
    finally:
        font_manager.fontManager.ttflist[:] = listed
        fonts._font_with.cache_clear()

# ---------------------------------------------------------------- what is no picture


def test_a_document_beside_the_photographs_is_no_picture(tmp_path):
    SCENE.save(tmp_path / "a.png")
    for name in ("notes.pdf", "text.txt"): (tmp_path / name).write_bytes(b"%PDF")
    assert pictures.image_files(tmp_path) == [tmp_path / "a.png"] == pictures.image_files(tmp_path, deep=True)
    assert layouts.pictures_in(tmp_path)[0] == [tmp_path / "a.png"]
    assert layouts.passed_over(tmp_path).count("1 .") == 2
