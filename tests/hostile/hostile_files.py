"""Pictures and archives made to break the library, each from (seed, number), and what the library does with
each.

`run(images, archives, seed)` tries so many in child processes, and every one of them must be read or be
refused with one line: no traceback, no ten seconds, no two gigabytes, no code of the file's, no write outside
the output folder, no crash.
"""
import contextlib
import faulthandler
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from watch import Evil, Watch

SECONDS, MEGABYTES = 10, 2000  # what an input may cost at most
MOST = 30                      # failures after which no more is learnt from the rest
BATCH = 100                    # pictures in a folder

# ---------------------------------------------------------------- good pictures to begin with


def scene(mode: str, size=(24, 18), shade: int = 0) -> Image.Image:
    "A small colourful picture in a mode."
    w, h = size
    y, x = np.mgrid[:h, :w]
    rgb = np.stack([x * 255 // w, y * 255 // h, (x * y + 40 * shade) % 256], -1).astype(np.uint8)
    if mode.startswith("I;16"): return Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(rgb[..., 0].astype(np.int32 if mode == "I" else np.float32) * 100)
    if mode in ("RGBA", "LA", "PA"):
        return Image.fromarray(np.dstack([rgb, rgb[..., :1]]),
                               "RGBA" if mode == "RGBA" else None).convert(mode)
    return Image.fromarray(rgb).convert(mode)


def small_icons(data: bytes) -> bytes:
    "An ICNS with its pictures of less than 4,000 bytes only."
    kept, at = b"", 8
    while at < len(data):
        n = int.from_bytes(data[at + 4:at + 8], "big")
        if n < 4000: kept += data[at:at + n]
        at += n
    return b"icns" + struct.pack(">I", 8 + len(kept)) + kept


def written(image: Image.Image, form: str, **options) -> bytes | None:
    "The picture as a file of this format, or None where the format cannot hold it."
    out = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(out, form, **options)
    except Exception: return None
    return small_icons(out.getvalue()) if form == "ICNS" else out.getvalue()


def special_forms() -> dict[str, bytes | None]:
    "What one format can be in more than one way."
    rgb, frames, exif = scene("RGB"), [scene("RGB", shade=k) for k in (1, 2)], Image.Exif()
    exif[274] = 6
    clear = scene("P")
    forms = {
        "JPEG progressive": written(rgb, "JPEG", progressive=True),
        "JPEG turned": written(rgb, "JPEG", exif=exif),
        "JPEG grey": written(scene("L"), "JPEG"),
        "GIF film": written(rgb, "GIF", save_all=True, append_images=frames),
        "GIF clear": written(clear, "GIF", transparency=3),
        "PNG clear palette": written(clear, "PNG", transparency=b"\x00\x80\xff"),
        "PNG film": written(rgb, "PNG", save_all=True, append_images=frames),
        "PNG turned": written(rgb, "PNG", exif=exif),
        "PNG clear": written(rgb, "PNG", transparency=(0, 0, 0)),
        "PNG deep": written(scene("I;16"), "PNG"),
        "WEBP film": written(rgb, "WEBP", save_all=True, append_images=frames),
        "WEBP exact": written(scene("RGBA"), "WEBP", lossless=True),
        "AVIF film": written(rgb, "AVIF", save_all=True, append_images=frames),
        "TIFF pages": written(rgb, "TIFF", save_all=True, append_images=frames),
        "JPEG2000 stream": written(rgb, "JPEG2000", no_jp2=True),
        "MPO film": written(rgb, "MPO", save_all=True, append_images=frames),
        "ICO bitmap": written(scene("RGBA", (16, 16)), "ICO", bitmap_format="bmp", sizes=[(16, 16)]),
        "ICNS": written(scene("RGBA", (32, 32)), "ICNS"),
        "TGA packed": written(rgb, "TGA", compression="tga_rle"),
        "DDS packed": written(rgb, "DDS", pixel_format="DXT1"),
        "PPM plain": b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n",
        "PPM bits": b"P1 3 2 010 101\n",
    }
    for way in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        forms[f"TIFF {way}"] = written(rgb, "TIFF", compression=way)
    for way in ("group3", "group4", "tiff_ccitt"):
        forms[f"TIFF {way}"] = written(scene("1"), "TIFF", compression=way)
    return forms


POSTSCRIPT = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 4\n%%EndComments\n"
              b"(marker) (w) file closefile\nshowpage\n%%EOF\n")


def iptc(picture: bytes, kind: int) -> bytes:
    "A news agency's record with a picture in it: kind 1 raw, 5 in a format of its own."
    def field(part: int, number: int, body: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, part, number, len(body)) + body
    return (field(3, 60, b"\1\0") + field(3, 20, b"\0\x08") + field(3, 30, b"\0\x04")
            + field(3, 120, bytes([kind])) + field(8, 10, picture))


def only_read() -> dict[str, bytes]:
    "Formats that Pillow reads and does not write, by hand: 8 x 4 pixels."
    w, h, grey = 8, 4, bytes(range(32))
    cards = [f"SIMPLE  = {'T':>20}", f"BITPIX  = {8:20}", f"NAXIS   = {2:20}", f"NAXIS1  = {w:20}",
             f"NAXIS2  = {h:20}", "END"]
    fits = b"".join(card.ljust(80).encode() for card in cards).ljust(2880) + grey
    pcx = written(scene("P"), "PCX")
    ico = written(scene("RGBA", (16, 16)), "ICO", bitmap_format="bmp", sizes=[(16, 16)])
    palette = struct.pack("<IH", 778, 4) + struct.pack("<HBB", 1, 0, 0) + bytes(range(256)) * 3
    lines = b"".join(bytes([1, 248]) + grey[8 * k:8 * k + 8] for k in range(4))
    chunk = struct.pack("<IH", 6 + len(lines), 15) + lines
    frame = struct.pack("<IHH8x", 16 + len(palette) + len(chunk), 0xF1FA, 2) + palette + chunk
    fli = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, w, h, 8, 3, 5).ljust(128, b"\0") + frame
    area = [0] * 64
    area[1], area[8], area[9], area[10], area[13], area[14], area[33] = 4, h, w, 1, 1, 0, 256
    return {
        "CUR": ico[:2] + b"\2" + ico[3:],
        "DCX": struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx,
        "FITS": fits,
        "FLI": fli,
        "FTEX": b"FTEX" + struct.pack("<iiiii", 0, w, h, 1, 1) + struct.pack("<ii", 1, 32)
            + struct.pack("<i", 96) + grey * 3,
        "GBR": struct.pack(">IIIII", 29, 2, w, h, 1) + b"GIMP" + struct.pack(">I", 1) + b"\0" + grey,
        "IMT": b"*IMT\nwidth 8\nheight 4\npixel n8\n\x0c" + grey,
        "IPTC": iptc(grey, 1),
        "IPTC film": iptc(written(scene("L"), "JPEG"), 5),
        "IPTC eps": iptc(POSTSCRIPT, 5),
        "MCIDAS": struct.pack(">64i", *area) + grey,
        "MPEG": b"\0\0\1\xb3\x01\x00\x10" + bytes(40),
        "PCD": bytes(2048) + b"PCD_" + bytes(3000),
        "PIXAR": (b"\200\350\0\0" + bytes(412) + struct.pack("<hh", h, w) + bytes(4)
                  + struct.pack("<hh", 14, 2)).ljust(1024, b"\0") + grey * 3,
        "PSD": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, h, w, 8, 3) + struct.pack(">IIIH", 0, 0, 0, 0)
            + grey * 3,
        "SUN": struct.pack(">8I", 0x59A66A95, w, h, 8, 32, 1, 0, 0) + grey,
        "XPM": b'/* XPM */\nstatic char *a[] = {\n"8 4 2 1",\n"a c #102030",\n"b c #ffeedd",\n'
            + b'"abababab",\n' * 4 + b"};\n",
        "XVTHUMB": b"P7 332\n#XVVERSION:Version 2.28\n#END_OF_COMMENTS\n8 4 255\n" + grey,
        "EPS": POSTSCRIPT,
        "BUFR": b"BUFR" + bytes(40),
        "GRIB": b"GRIB\0\0\0\1" + bytes(40),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(40),
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhHI", 0, 0, 8, 4, 96, 0) + b"\0\0\1\0\x09\0"
            + bytes(40),
    }


@functools.cache
def good_pictures() -> dict[str, bytes]:
    """Small valid files: each format that Pillow writes, in many modes and ways, and those that it only
    reads. The names begin with the format's."""
    Image.init()
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F")
    found = {f"{form} {mode}": written(scene(mode), form, **({"name": "x.im"} if form == "IM" else {}))
             for form in sorted(Image.SAVE) for mode in modes if form != "PDF"}
    return {name: data for name, data in (found | special_forms() | only_read()).items() if data}


def suffix(name: str) -> str:
    "The file name's ending for one of `good_pictures`."
    known = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "JPEG2000": ".jp2", "PPM": ".ppm"}
    form = name.split()[0]
    return (known.get(form)
            or next((s for s, f in sorted(Image.registered_extensions().items()) if f == form), ".png"))


# ---------------------------------------------------------------- pictures that are bad in a way of their own


def png(width: int, height: int, colour: int = 2, depth: int = 8, rows: int | None = None,
        more: bytes = b"") -> bytes:
    "A PNG of so many rows of zeros; without rows it only claims them."
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    pack, bits = zlib.compressobj(1), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    row = bytes(1 + (width * bits + 7) // 8)
    body = b"".join(pack.compress(row) for _ in range(rows or 0)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + (chunk(b"PLTE", bytes(6)) if colour == 3 else b"") + more + chunk(b"IDAT", body)
            + chunk(b"IEND", b""))


def many_scans(side: int, scans: int, progressive: bool = True) -> bytes:
    """A JPEG whose last scan stands in it again and again, or its first few bytes: each is a walk over all
    pixels."""
    data = written(Image.new("L" if progressive else "RGB", (side, side), 90), "JPEG",
                   progressive=progressive)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2] if progressive else data[last:last + 20]) * scans + b"\xff\xd9"


def tiff(width: int, height: int, values, form: int = 3, bits: int = 32) -> bytes:
    "A TIFF of one strip of grey numbers: form 1 unsigned, 2 signed, 3 floating point."
    data = values.tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, form)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries
            + struct.pack("<I", 0))


def text_bomb() -> bytes:
    "A PNG with a comment that unpacks to 200 MB."
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1)
    return png(4, 4, rows=4, more=struct.pack(">I", len(body)) + b"zTXt" + body
               + struct.pack(">I", zlib.crc32(b"zTXt" + body)))


def icon_in_icon() -> bytes:
    "An ICO of 16 x 16 in which lies a PNG of 12,000 x 12,000."
    inner = png(12_000, 12_000, 0, 1, rows=12_000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


BOMBS = {  # name of the file: how to make it
    "claims 60,000 squared.png": lambda: png(60_000, 60_000),
    "claims 12,000 squared.png": lambda: png(12_000, 12_000),
    "claims 9,400 squared.png": lambda: png(9_400, 9_400),
    "no pixels.pgm": lambda: b"P5 0 0 255\n",
    "no height.png": lambda: png(5, 0),
    "no width.gif": lambda: b"GIF89a\0\0\5\0\0\0\0,\0\0\0\0\0\0\5\0\0\2\2\x4c\1\0;",
    "one column.png": lambda: png(1, 200_000, 0, rows=200_000),
    "one row.png": lambda: png(200_000, 1, 0, rows=1),
    "a column of 89 million.png": lambda: png(1, 89_000_000, 0, 1, rows=1000),
    "a row of 89 million.png": lambda: png(89_000_000, 1, 0, 1, rows=1),
    "a thin strip.png": lambda: png(3, 4_000, rows=4_000),
    "nan.tif": lambda: tiff(3, 2, np.array([np.nan, np.inf, -np.inf, 0, 300, 1e30], np.float32)),
    "comment of 200 MB.png": text_bomb,
    "icon in an icon.ico": icon_in_icon,
    "a thousand scans.jpg": lambda: many_scans(4_000, 1000),
    "a thousand short scans.jpg": lambda: many_scans(4_000, 1000, False),
    "deep.tif": lambda: tiff(2, 1, np.array([0, 2**31], np.uint32), 1),
    "89 million bits.png": lambda: png(9_400, 9_400, 0, 1, rows=9_400),
    "89 million clear.png": lambda: png(9_400, 9_400, 6, rows=9_400),
    "89 million deep.png": lambda: png(9_400, 9_400, 0, 16, rows=9_400),
}

# ---------------------------------------------------------------- mutation

EXTREMES = [struct.pack(order + kind, value) for order in "<>"
            for kind, values in (("H", (0, 1, 0x7fff, 0xffff)),
                                 ("I", (0, 1, 0x7fffffff, 0xffffffff, 0x10000, 60_000)))
            for value in values]


def flip(data: bytearray, rng) -> None:
    for at in rng.integers(0, 8 * len(data), rng.integers(1, 17)): data[at // 8] ^= 1 << int(at % 8)


def overwrite(data: bytearray, rng) -> None:
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 65))
    data[at:at + n] = rng.bytes(n) if rng.random() < .5 else bytes([rng.choice([0, 255, 127])]) * n


def cut(data: bytearray, rng) -> None: del data[int(rng.integers(len(data))):]


def remove(data: bytearray, rng) -> None:
    at = int(rng.integers(len(data)))
    del data[at:at + int(rng.integers(1, 65))]


def repeat(data: bytearray, rng) -> None:
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 1 + len(data)))
    data[at:at] = bytes(data[at:at + n]) * int(rng.integers(1, 5))


def head(data: bytearray, rng) -> None:
    for at in rng.integers(0, min(64, len(data)), rng.integers(1, 5)):
        data[at] = int(rng.choice([0, 255, 127]))


def field(data: bytearray, rng) -> None:
    extreme = EXTREMES[rng.integers(len(EXTREMES))]
    at = int(rng.integers(min(512, len(data))))
    data[at:at + len(extreme)] = extreme


def mend_png(data: bytes) -> bytes:
    "The same with right check sums, so that what was changed is looked at."
    out, at = data[:8], 8
    while at + 12 <= len(data):
        n = int.from_bytes(data[at:at + 4], "big")
        if at + 12 + n > len(data): break
        out += data[at:at + 8 + n] + struct.pack(">I", zlib.crc32(data[at + 4:at + 8 + n]))
        at += 12 + n
    return out + data[at:]


def mutated(data: bytes, rng, others: list[bytes]) -> bytes:
    "One to three changes; now and then the second half of another file."
    if rng.random() < .03: return data
    data, ways = bytearray(data), (flip, overwrite, cut, remove, repeat, head, field)
    for _ in range(rng.integers(1, 4)):
        if len(data) and rng.random() > .08: ways[rng.integers(len(ways))](data, rng)
        else:
            other = others[rng.integers(len(others))]
            data[int(rng.integers(len(data) + 1)):] = other[int(rng.integers(len(other))):]
    data = bytes(data)
    return mend_png(data) if data[:4] == b"\x89PNG" and rng.random() < .7 else data


def picture(seed: int, number: int) -> tuple[str, bytes]:
    "Name and bytes of a mutated picture."
    good, rng = good_pictures(), np.random.default_rng([seed, number])
    name = list(good)[rng.integers(len(good))]
    end = suffix(name) if rng.random() < .9 else suffix(list(good)[rng.integers(len(good))])
    return f"{number:06}{end}", mutated(good[name], rng, list(good.values()))


def hostile_picture(seed: int, number: int) -> tuple[str, bytes]:
    "Name and bytes of a mutated picture, or, for -1, -2, ..., of one of `BOMBS`."
    if number >= 0: return picture(seed, number)
    name = list(BOMBS)[-number - 1]
    return name, BOMBS[name]()


# ---------------------------------------------------------------- archives

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
FOLDER = "cifar-10-batches-py"


def batch(k: int) -> bytes:
    "A batch of two pictures, in the form of CIFAR-10's."
    data = np.random.default_rng(k).integers(0, 256, (2, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, "labels": [k, 9 - k], "batch_label": str(k),
                         "filenames": ["a.png", "b.png"]}, protocol=2)


def good_members() -> dict[str, bytes]:
    "A small CIFAR-10: the names and bytes of its files."
    meta = pickle.dumps({"label_names": ["airplane"] * 10, "num_vis": 3072}, protocol=2)
    batches = {name: batch(k) for k, name in enumerate(BATCHES)}
    return {"batches.meta": meta, "readme.html": b"<html></html>"} | batches


def evil_members(out: tarfile.TarFile, rng) -> None:
    "One to three members that do not belong in any archive."
    places = ("../escaped", "/tmp/hostile_escaped", f"{FOLDER}/../../escaped", "escaped", "..",
              f"{FOLDER}/../escaped", "a" * 300, f"{FOLDER}/data_batch_1", FOLDER,
              f"{FOLDER}/data_batch_1/below", "\n\x1b[31mred", "", ".", "//escaped",
              f"./{FOLDER}/data_batch_2", "C:\\escaped", f"{FOLDER}/\udcff")
    kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
             tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z")
    for _ in range(rng.integers(1, 4)):
        info = tarfile.TarInfo(places[rng.integers(len(places))])
        info.type = kinds[rng.integers(len(kinds))]
        info.linkname = str(rng.choice(["../..", "/etc/passwd", "/tmp", "..", ".", FOLDER, "data_batch_1",
                                        f"{FOLDER}/data_batch_1", "x" * 200]))
        info.mode, body = int(rng.choice([0o644, 0o4777, 0])), pickle.dumps(Evil())
        if info.type == tarfile.REGTYPE: info.size = len(body)
        with contextlib.suppress(ValueError, UnicodeError): out.addfile(info, io.BytesIO(body))


def packed(members: dict[str, bytes], evil=None, level: int = 1, form: int = tarfile.GNU_FORMAT) -> bytes:
    "Members in a tar.gz; `evil(tar)` may add more, before or after."
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        if evil and evil[1]: evil[0](tar)
        for name, body in members.items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        if evil and not evil[1]: evil[0](tar)
    return gzip.compress(made.getvalue(), level, mtime=0)


def huge(name: str, kind: bytes, claims: int, holds: int) -> bytes:
    "A tar.gz whose first member claims a size and holds so many zeros, packed a thousand times smaller."
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, claims
    out, pack = [], zlib.compressobj(1, wbits=31)
    out.append(pack.compress(info.tobuf(tarfile.GNU_FORMAT)))
    block = bytes(1 << 20)
    for _ in range(holds >> 20): out.append(pack.compress(block))
    return b"".join([*out, pack.flush()])


ARCHIVE_BOMBS = {
    "a batch of 2 GB": lambda: huge(f"{FOLDER}/data_batch_1", tarfile.REGTYPE, 2 << 30, 2 << 30),
    "a name of 2 GB": lambda: huge("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2 << 30, 2 << 30),
    "a header of 2 GB": lambda: huge("pax", tarfile.XHDTYPE, 2 << 30, 2 << 30),
    "a batch that claims 8 EB": lambda: huge(f"{FOLDER}/data_batch_1", tarfile.REGTYPE, 2**63 - 1, 0),
    "a header that claims 8 EB": lambda: huge("pax", tarfile.XHDTYPE, 2**63 - 1, 0),
    "an unknown file of 2 GB": lambda: huge("film.mp4", tarfile.REGTYPE, 2 << 30, 2 << 30),
}
WAYS = ("flip", "inner", "members", "pickle", "folder", "good")


def archive(seed: int, number: int) -> tuple[str, dict[str, bytes], bytes | None]:
    """What is done to a small CIFAR-10: the way, its files as they lie in the folder, and the archive, or
    None where only a folder is given."""
    if number < 0: return "bomb", {}, ARCHIVE_BOMBS[list(ARCHIVE_BOMBS)[-number - 1]]()
    rng, members = np.random.default_rng([seed, number, 1]), good_members()
    way = WAYS[rng.integers(len(WAYS) - 1)] if rng.random() < .95 else "good"
    name = list(members)[rng.integers(len(members))]
    form = int(rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]))
    if way == "members":
        return way, members, packed(members, (lambda tar: evil_members(tar, rng), rng.random() < .5),
                                    form=form)
    # a folder is there already, unpacked by whoever; one file of it was changed
    if way in ("pickle", "folder"):
        spoiled = [pickle.dumps(Evil()), pickle.dumps({"data": Evil(), "labels": []}),
                   mutated(members[name], rng, list(members.values())), b""]
        members[name] = spoiled[rng.integers(4)]
        return way, members, packed(members, form=form) if way == "pickle" else None
    data = packed(members, form=form)
    if way == "inner": data = gzip.compress(mutated(gzip.decompress(data), rng, [data]), 1, mtime=0)
    if way == "flip": data = mutated(data, rng, [gzip.compress(b"another"), data])
    return way, members, data


# ---------------------------------------------------------------- in the child: one input after another,
# watched


def answer(call) -> tuple[str, object]:
    "'read' and what came, 'refused' and the line, or 'failure' and what went wrong."
    from alexnet_nb.base.errors import InputError
    began = time.process_time()
    # by the clock on the wall, for others may be at work here
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
    try: return "read", call()
    except InputError as e:
        return (("refused", str(e)) if str(e).isprintable()
                else ("failure", f"not one printable line: {str(e)!r}"))
    except MemoryError: return "failure", "MemoryError"
    except Exception as e: return "failure", f"{type(e).__name__}: {e}"
    finally:
        SPENT.append(time.process_time() - began)
        faulthandler.cancel_dump_traceback_later()


SPENT = []   # seconds of processor time of every call


def told(main, argv: list) -> tuple[int, list[str], list[str]]:
    """A command in this process, on streams that are as strict as real ones: exit code, lines of stdout,
    lines of stderr."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, newline="\n")
               for errors in ("strict", "backslashreplace")]
    faulthandler.dump_traceback_later(60 * SECONDS, exit=True)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main([str(a) for a in argv])
    faulthandler.cancel_dump_traceback_later()
    for stream in streams: stream.flush()
    return code, *(stream.buffer.getvalue().decode().split("\n")[:-1] for stream in streams)


def peak() -> float:
    """Megabytes that this program has held at most. Not `ru_maxrss`: there Linux counts what the process held
    before it started this program, and a child is born as a copy of its parent."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def try_picture(path: Path, recipes) -> str:
    """Every road of one file into the library; 'read' or 'refused', or an `AssertionError` that says what
    went wrong."""
    from alexnet_nb import inference
    from alexnet_nb.base import pictures as base_pictures
    kind, image = answer(lambda: base_pictures.open_rgb(path))
    assert kind != "failure", f"open_rgb: {image}"
    one = base_pictures.Images([path], np.array([0]), ("x",))
    if kind == "read":
        assert image.mode == "RGB" and min(image.size) > 0
        for recipe in recipes:
            for views in (1, 10):
                done = answer(functools.partial(inference._prepare_views, image, recipe, views))
                assert done[0] == "read", f"prepare: {done[1]}"
                assert bool(done[1].isfinite().all()), "prepare: not finite"
        del image, done
    for name, call in (("check_images", lambda: base_pictures.check_images(one)),
                       ("stack_pixels", lambda: base_pictures.stack_pixels(one, 2**30))):
        done = answer(call)
        assert done[0] != "failure", f"{name}: {done[1]}"
        if name == "stack_pixels" or path.stat().st_size < 2**16:
            assert done[0] == kind, f"{name} and open_rgb do not agree"
    return kind


def try_folder(folder: Path, files: list[Path], checkpoints: list[Path], number: int) -> None:
    "The command on a folder of such files and on one of them; an `AssertionError` says what went wrong."
    from alexnet_nb import inference
    form = (["--json"], ["--csv"], [], ["--show-all-probs"])[number % 4]
    views = ["--ten-views"] if number % 3 == 0 else []
    base = ["--checkpoint", checkpoints[number % 2], "--set", "device.use_cuda=false", *form, *views]
    code, out, err = told(inference.main, [*base, "--image-dir", folder])
    assert err and err[-1].endswith(" skipped"), (code, err[-3:])
    good, bad = int(err[-1].split()[0]), int(err[-1].split()[2])
    assert err[-1] == f"{good} predicted, {bad} skipped" and good + bad == len(files) and code == (1 if bad
        else 0), (code, err[-1])
    assert all(line.startswith("alexnet_predict: ") for line in err[:-1]) and len(err) == bad + 1, err[:3]
    if form == ["--json"]: assert len(json.loads("\n".join(out))) == len(files)
    if not form: assert len(out) == good
    for path in files[::20]:
        code, out, err = told(inference.main, [*base[:4], "--image", path])
        assert (code, len(out), len(err)) in ((0, 1, 0), (2, 0, 1)), (path.name, code, err)


def try_archive(seed: int, number: int, root: Path, watch: Watch) -> str:
    """An archive or a folder of batches on its way through `read_cifar10`: as it is, and with its own sum
    taken for the right one."""
    from unittest import mock

    from torchvision.datasets import CIFAR10

    from alexnet_nb.base import cifar10 as base_cifar10
    way, members, packed_bytes = archive(seed, number)
    root.mkdir()
    if packed_bytes is None:
        (root / FOLDER).mkdir()
        for name, body in members.items(): (root / FOLDER / name).write_bytes(body)
    else: (root / base_cifar10._CIFAR10_ARCHIVE).write_bytes(packed_bytes)
    before = sorted(p.name for p in root.iterdir())
    with watch.look() as seen:
        kind, line = answer(lambda: base_cifar10.read_cifar10(root, may_download=False))
    # nothing of it is looked at: its sum is not CIFAR-10's
    assert kind == "refused" and not seen, f"as it is: {line} {seen}"
    assert sorted(p.name for p in root.iterdir()) == before
    good = good_members()
    sums = {name: hashlib.md5(body).hexdigest() for name, body in good.items()}
    with (mock.patch.object(base_cifar10, "_CIFAR10_MD5", hashlib.md5(packed_bytes or b"").hexdigest()),
          mock.patch.object(CIFAR10, "train_list", [[n, sums[n]] for n in BATCHES[:5]]),
          mock.patch.object(CIFAR10, "test_list", [[n, sums[n]] for n in BATCHES[5:]]),
          mock.patch.object(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]}),
          watch.look(root) as seen):
        kind, found = answer(lambda: base_cifar10.read_cifar10(root, may_download=False))
    # a good batch names NumPy's array
    seen = [what for what in seen if "numpy" not in what and "_codecs" not in what]
    assert kind != "failure" and not seen, f"with its sum: {found} {seen}"
    there = {str(p.relative_to(root)) for p in root.rglob("*")} - {base_cifar10._CIFAR10_ARCHIVE, FOLDER}
    assert there <= {f"{FOLDER}/{name}" for name in good}, f"left behind: {there}"
    assert all(p.is_file() and not p.is_symlink() for p in (root / FOLDER).glob("*"))
    if kind == "read": assert len(found) == 10 and found.items.shape == (10, 32, 32, 3)
    if way == "good": assert kind == "read", found
    return kind


def child(kind: str, start: int, stop: int, seed: int, box: Path) -> None:
    """Inputs start to stop, each reported on a line of box/report before and after; the rest is what `run`
    watches from outside."""
    import resource

    import torch

    from alexnet_nb import data, inference
    from alexnet_nb.engine import checkpoint as engine_checkpoint
    torch.set_num_threads(1)
    report, room = os.open(box / "report", os.O_WRONLY | os.O_CREAT | os.O_APPEND), Path.cwd()
    def tell(**what): os.write(report, json.dumps(what).encode() + b"\n")
    recipes = [data.usual_recipe(), data.Recipe(short_side=256)]
    checkpoints = [box / "usual.pkl", box / "paper.pkl"]
    if kind == "archives": __import__("torchvision.datasets")
    Image.init()
    inference.predict(engine_checkpoint.load_classifier(checkpoints[0], torch.device("cpu")),
                      scene("RGB"))
    watch, now = Watch(), int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    # not of addresses: threads reserve many and use few
    resource.setrlimit(resource.RLIMIT_DATA, (now + MEGABYTES * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder, files = room / "folder", []
    for number in range(start, stop):
        tell(began=number)
        SPENT.clear()
        if kind == "pictures":
            name, body = hostile_picture(seed, number)
            folder.mkdir(exist_ok=True)
            files.append(folder / name)
            files[-1].write_bytes(body)
        noise, failure, outcome = os.fstat(2).st_size, None, "failed"
        try:
            if kind == "archives": outcome = try_archive(seed, number, room / "root", watch)
            else:
                with watch.look() as seen: outcome = try_picture(files[-1], recipes)
                assert not seen, seen
                if len(files) == BATCH or number == stop - 1:
                    with watch.look() as seen: try_folder(folder, files, checkpoints, number // BATCH)
                    assert not seen, seen
        except AssertionError as e: failure = str(e)
        except Exception as e: failure = f"{type(e).__name__}: {e}"
        seconds = max(SPENT, default=0)
        sys.stderr.flush()
        if seconds > SECONDS: failure = failure or f"took {seconds:.0f} s"
        if peak() > MEGABYTES: failure = failure or f"held {peak():.0f} MB"
        noise = os.pread(2, 100_000, noise).decode(errors="replace")
        if re.search(r"\.py:\d+:|Traceback|[^\n\t -~]", noise):
            failure = failure or f"wrote to stderr: {noise[:300]!r}"
        if kind == "archives": shutil.rmtree(room / "root")
        elif len(files) == BATCH or number == stop - 1:
            shutil.rmtree(folder)
            files.clear()
        if left := [p.name for p in room.iterdir() if p != folder]:
            failure = failure or f"left in the current folder: {left}"
        tell(ended=number, outcome=outcome, failure=failure and failure[:500], seconds=seconds, peak=peak(),
             remarks=noise.count("\n"))
        if failure and ("held" in failure or "left" in failure): break   # the next would be blamed for it


# ---------------------------------------------------------------- outside: children, and their sum


def checkpoint_files(box: Path) -> None:
    "Two tiny networks: one that squashes pictures, one that crops them as the paper does."
    import torch

    from alexnet_nb.data import Recipe
    from alexnet_nb.model import AlexNet
    torch.manual_seed(0)
    state = AlexNet(width=1 / 24).state_dict()
    config = {"model": {"width": 1 / 24}}
    torch.save({"model": state, "config": config}, box / "usual.pkl")
    torch.save({"model": state, "config": config, "recipe": asdict(Recipe(short_side=256))},
               box / "paper.pkl")


def one_child(kind: str, start: int, stop: int, seed: int, box: Path) -> tuple[list[dict], int]:
    "Run a child in an empty folder; what it reported, and its exit code."
    room = Path(tempfile.mkdtemp(dir=box))
    bin = box / "bin"
    bin.mkdir(exist_ok=True)
    for name in ("gs", "gswin32c", "convert"):   # programs that a picture must not start
        (bin / name).write_text("#!/bin/sh\ntouch marker\n")
        (bin / name).chmod(0o755)
    (box / "report").unlink(missing_ok=True)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import hostile_files as h
h.child({kind!r}, {start}, {stop}, {seed}, h.Path({str(box)!r}))
"""
    env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "TMPDIR": str(room), "HOME": str(room),
                        "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(box),
                        "TORCHINDUCTOR_CACHE_DIR": str(box / "cache")}
    with open(box / "stderr", "w+b") as err:
        done = subprocess.Popen([sys.executable, "-c", code], cwd=room, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=err, env=env)
        done.wait()
    shutil.rmtree(room, ignore_errors=True)
    report = box / "report"
    rows = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    return rows, done.returncode


def run_kind(kind: str, n: int, seed: int, bombs: int | None = None) -> dict:
    """So many inputs of a kind ('pictures' or 'archives'), after the bombs; a child that dies is followed by
    another, and what it died of is named."""
    total = len(BOMBS if kind == "pictures" else ARCHIVE_BOMBS)
    number, began = -total if bombs is None else -min(bombs, total), time.monotonic()
    found = dict(kind=kind, seed=seed, tried=0, read=0, refused=0, slowest_seconds=0.0, peak_megabytes=0.0,
                 remarks_of_libtiff=0, failures=[])
    with tempfile.TemporaryDirectory() as place:
        checkpoint_files(box := Path(place))
        while number < n and len(found["failures"]) < MOST:
            rows, code = one_child(kind, number, n, seed, box)
            ended = [row for row in rows if "ended" in row]
            for row in ended:
                found["tried"] += 1
                if row["outcome"] in found: found[row["outcome"]] += 1
                found["slowest_seconds"] = max(found["slowest_seconds"], row["seconds"])
                found["peak_megabytes"] = max(found["peak_megabytes"], row["peak"])
                # it writes to stderr by itself, plain text; nobody can silence it from Python
                found["remarks_of_libtiff"] += row["remarks"]
                if row["failure"]:
                    found["failures"].append(dict(seed=seed, number=row["ended"], why=row["failure"]))
            number = ended[-1]["ended"] + 1 if ended else number
            if rows and "began" in rows[-1] or not rows:
                words = (box / "stderr").read_text(errors="replace").strip().splitlines()
                why = (f"killed by signal {signal.Signals(-code).name}" if code < 0
                       else "hung" if any("Timeout" in w for w in words) else f"exit {code}")
                why = f"the process died ({why}): {' | '.join(words[-3:])}"
                found["failures"].append(dict(seed=seed, number=number, why=why[:500]))
                found["tried"], number = found["tried"] + 1, number + 1
                if not rows: break
    return found | dict(slowest_seconds=round(found["slowest_seconds"], 2),
                        peak_megabytes=round(found["peak_megabytes"]),
                        wall_seconds=round(time.monotonic() - began))


def run(images: int = 10_000, archives: int = 500, seed: int = 0) -> dict:
    "So many mutated pictures and archives, and every bomb: a report for `json.dumps`."
    return dict(pictures=run_kind("pictures", images, seed), archives=run_kind("archives", archives, seed))


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    print(json.dumps(run(*numbers), indent=1))
