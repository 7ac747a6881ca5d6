"""Damaged and hostile chunks are refused: no decoder crashes, or takes memory beyond the chunk."""

import itertools
import os
import resource
import signal
import struct
import zlib
from pathlib import Path

import cloudvolume.chunks
import compresso
import crackle
import google_crc32c
import imagecodecs
import numpy as np
import pytest
from scipy import ndimage

from igneous_airflow.errors import CorruptChunk
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.codecs import decode, encode
from igneous_airflow.storage.encodings import most_bytes
from igneous_airflow.storage.label_chunks import checked_compresso

SHAPE = (24, 20, 9, 1)
ROOM = 128 << 20  # bytes that decoding may take
SECONDS = 100
ENCODINGS = {
    "raw": "uint16",
    "jpeg": "uint8",
    "png": "uint8",
    "jxl": "uint8",
    "compressed_segmentation": "uint64",
    "compresso": "uint32",
    "crackle": "uint32",
    "fpzip": "float32",
    "kempressed": "float32",
    "zfpc": "float64",
}
READ_ONLY = ("fpzip", "kempressed", "zfpc")
FEW = ("fpzip", "kempressed")  # which need a new process after each crash


def shape_of(encoding):
    return (*SHAPE[:3], 3) if encoding == "kempressed" else SHAPE


def block_of(encoding):
    return Vec3(8, 8, 8) if encoding == "compressed_segmentation" else None


def voxels_of(encoding, random):
    shape, dtype = shape_of(encoding), np.dtype(ENCODINGS[encoding])
    if dtype.kind == "f":
        return np.asfortranarray(random.normal(size=shape).astype(dtype))
    if encoding in ("jpeg", "png", "jxl"):
        return np.asfortranarray(random.integers(0, 255, shape).astype(dtype))
    blocks = random.integers(0, 9, (6, 5, *shape[2:]))
    return np.asfortranarray(blocks.repeat(4, 0).repeat(4, 1).astype(dtype))


def chunk_of(encoding, random):
    voxels = voxels_of(encoding, random)
    if encoding in READ_ONLY:
        return cloudvolume.chunks.encode(voxels, encoding)
    return bytes(encode(voxels, encoding, block_size=block_of(encoding)))


def decoded(content, encoding):
    return decode(
        content,
        encoding,
        shape=shape_of(encoding),
        dtype=np.dtype(ENCODINGS[encoding]),
        block_size=block_of(encoding),
    )


def damaged(content, random):
    """The chunk with flipped bits, other numbers in its header, cut off, longer or shortened."""
    bits = bytearray(content)
    kind, at = random.integers(0, 8), random.integers(0, len(bits))
    near = random.integers(0, min(len(bits), 64))
    if kind == 0:
        bits[at] ^= 1 << random.integers(0, 8)
    elif kind == 1:
        bits[near] = random.integers(0, 256)
    elif kind == 2:
        bits = bits[:at]
    elif kind == 3:
        number = random.choice([0, 1, 255, 60_000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
        bits[near : near + 4] = struct.pack("<I", int(number))
    elif kind == 4:
        bits[at : at + 8] = random.bytes(8)
    elif kind == 5:
        bits += random.bytes(20)
    elif kind == 6:
        del bits[near:at]
    else:
        bits[near : near + 2] = random.bytes(2)
    return bytes(bits)


def in_a_small_process(work):
    """Run something in a process with little memory; return how it ended."""
    process = os.fork()
    if process == 0:
        signal.alarm(SECONDS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_damage_crashes_a_decoder_or_takes_memory(encoding):
    """What is accepted may hold other voxels: few encodings have checksums."""
    decoded(chunk_of(encoding, np.random.default_rng(1)), encoding)  # imports its library

    def try_many():
        for seed in range(30 if encoding in FEW else 400):
            random = np.random.default_rng(seed)
            content = damaged(chunk_of(encoding, random), random)
            try:
                array = decoded(content, encoding)
            except CorruptChunk as error:
                if "llocate" in str(error) or "alloc" in str(error) or len(str(error)) > 1000:
                    return 2
            else:
                if array.shape != shape_of(encoding):
                    return 3
        return 0

    assert in_a_small_process(try_many) == 0


def png(width, height, *more, depth=8, color=0):
    def part(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(bytes(min((width + 1) * height, 5000)))
    parts = [part(b"IHDR", header), *(part(*one) for one in more), part(b"IDAT", data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + part(b"IEND", b"")


def jpeg(width, height):
    content = bytearray(encode(np.zeros((*SHAPE[:3], 1), np.uint8, "F"), "jpeg"))
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def jxl(pixels, **options):
    return imagecodecs.jpegxl_encode(pixels, **options)


def header_with(encoding, at, number, size=4):
    content = bytearray(chunk_of(encoding, np.random.default_rng(3)))
    content[at : at + size] = number.to_bytes(size, "little")
    return bytes(content)


def crackle_with(at, number, size=4):
    """Another number in the header of a crackle chunk, whose checksum is right."""
    from crackle.headers import crc8

    content = bytearray(header_with("crackle", at, number, size))
    content[28] = crc8(content[5:28])
    return bytes(content)


def jxl_of(width, height):
    """The beginning of a JPEG XL file, with sizes in 30 bits."""
    bits, at = 0, 1
    for number, count in ((3, 2), (height - 1, 30), (0, 3), (3, 2), (width - 1, 30)):
        bits |= number << at
        at += count
    return b"\xff\x0a" + bits.to_bytes(9, "little") + bytes(40)


GREYS = np.zeros((180, 24), np.uint8)
LIES = {
    "png of 60000 x 60000": ("png", png(60_000, 60_000), "60,000 by 60,000 pixels"),
    "png of 2**31 x 2**31": ("png", png(1 << 31, 1 << 31), "2,147,483,648 by"),
    "png of no pixels": ("png", png(0, 0), "0 by 0 pixels"),
    "png that is none": ("png", b"GIF89a" * 10, "it is not a PNG file"),
    "jpeg of 65500 x 65500": ("jpeg", jpeg(65_500, 65_500), "65,500 by 65,500 pixels"),
    "jpeg of 24 x 181": ("jpeg", jpeg(24, 181), "24 by 181 pixels"),
    "jxl of 30000 x 20000": ("jxl", jxl_of(30_000, 20_000), "30,000 by 20,000"),
    "jxl of 5 pictures": ("jxl", jxl(np.stack([GREYS] * 5), photometric="GRAY"), "cannot decode"),
    "jxl in colors": ("jxl", jxl(np.stack([GREYS] * 3, -1)), "cannot decode"),
    "jxl of 16 bits": ("jxl", jxl(GREYS.astype(np.uint16)), "cannot decode"),
    "jxl that is none": ("jxl", b"\xff\xd8" * 10, "it is not a JPEG XL file"),
    "jxl without a stream": ("jxl", b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(90), "no JPEG XL"),
    "compresso of 65535**3": ("compresso", header_with("compresso", 6, (1 << 48) - 1, 6), "65535"),
    "compresso of 2**60 ids": ("compresso", header_with("compresso", 15, 1 << 60, 8), "cut off"),
    "compresso of 2**31 values": ("compresso", header_with("compresso", 23, 1 << 31), "cut off"),
    "compresso without steps": ("compresso", header_with("compresso", 12, 0, 3), "cut off"),
    "crackle of 2**32 - 1 on x": ("crackle", crackle_with(7, (1 << 32) - 1), "4294967295,20,9"),
    "crackle of 2**63 labels": ("crackle", crackle_with(20, 1 << 63, 8), "cut off or damaged"),
    "crackle of many grids": ("crackle", crackle_with(19, 0, 1), "cut off or damaged"),
    "crackle of wide labels": ("crackle", crackle_with(5, 0xFF, 1), "voxels of 8 bytes"),
    "zfpc of 2**32 - 1 on x": ("zfpc", header_with("zfpc", 6, (1 << 32) - 1), "4294967295"),
    "zfpc of a long part": ("zfpc", header_with("zfpc", 31, 1 << 62, 8), "its index is damaged"),
    "fpzip of 941,094 voxels": (
        "fpzip",
        cloudvolume.chunks.encode(np.zeros((99, 98, 97, 1), np.float32, "F"), "fpzip"),
        r"\(99, 98, 97, 1\) voxels of 4 bytes",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_promises_another_size_is_refused_before_decoding(name):
    encoding, content, named = LIES[name]
    decoded(chunk_of(encoding, np.random.default_rng(1)), encoding)  # imports its library
    with pytest.raises(CorruptChunk, match=named):
        decoded(content, encoding)

    def try_once():
        try:
            decoded(content, encoding)
        except CorruptChunk as error:
            return 2 if "llocate" in str(error) else 0
        return 3

    assert in_a_small_process(try_once) == 0


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0")])
def test_a_remark_in_a_png_that_becomes_a_gigabyte_takes_no_memory(kind, head):
    bomb = zlib.compress(bytes(1 << 28))
    content = png(24, 180, (kind, head + bomb))
    decoded(chunk_of("png", np.random.default_rng(1)), "png")  # imports its library

    def try_once():
        try:
            decoded(content, "png")
        except CorruptChunk:
            return 0
        return 0

    assert in_a_small_process(try_once) == 0


@pytest.mark.parametrize(
    "size",
    [(1, 1), (8, 8), (256, 64), (4096, 64), (17, 70_000), (3, 4), (4, 3), (9, 16), (512, 300)],
)
@pytest.mark.parametrize("container", [False, True])
def test_jxl_of_any_width_and_height_is_read(size, container):
    """The format leaves open how voxels become rows."""
    pixels = np.random.default_rng(2).integers(0, 255, size, dtype=np.uint8)
    content = jxl(pixels, photometric="GRAY", lossless=True, effort=1, usecontainer=container)
    found = decode(content, "jxl", shape=(pixels.size, 1, 1, 1), dtype=np.dtype("uint8"))
    np.testing.assert_array_equal(found.ravel(), pixels.ravel())


def test_other_pictures_of_as_many_pixels_are_read():
    voxels = np.random.default_rng(2).integers(0, 255, (24, 180), dtype=np.uint8)
    content = imagecodecs.png_encode(voxels)  # not as wide as a chunk
    found = decode(content, "png", shape=SHAPE, dtype=np.dtype("uint8"))
    np.testing.assert_array_equal(found.ravel(order="F"), voxels.ravel())


@pytest.mark.parametrize("encoding", ["compresso", "crackle"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 2), (24, 20, 9), (256, 200, 3), (300, 2, 1)])
@pytest.mark.parametrize("kind", ["one label", "blobs", "noise", "checkers", "ramp"])
def test_checked_labels_are_decoded_to_every_voxel(encoding, dtype, shape, kind):
    random, limits = np.random.default_rng(5), np.iinfo(dtype)
    largest = np.dtype(dtype).type(limits.max)
    voxels = {
        "one label": np.full(shape, largest),
        "blobs": (np.indices(shape) // 7).sum(0).astype(dtype),
        "noise": random.integers(0, largest, shape, dtype=dtype, endpoint=True),
        "checkers": (np.indices(shape).sum(0) % 2).astype(dtype) * largest,
        "ramp": np.arange(np.prod(shape)).reshape(shape).astype(dtype),
    }[kind].astype(dtype)
    array = np.asfortranarray(voxels[..., np.newaxis])
    content = encode(array, encoding)
    assert len(content) <= most_bytes(encoding, Vec3(*shape), array.itemsize)
    found = decode(content, encoding, shape=array.shape, dtype=array.dtype)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 200), (200, 1, 1), (3, 5, 7), (32, 32, 32), (9, 9, 64)]
)
@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"),
    [
        ("jpeg", "uint8", 3),
        ("jpeg", "uint8", 1),
        ("png", "uint8", 4),
        ("jxl", "uint8", 1),
        ("compressed_segmentation", "uint32", 1),
        ("compressed_segmentation", "uint64", 1),
    ],
)
def test_noise_fits_the_bytes_that_a_chunk_may_have(shape, encoding, dtype, channels):
    limits = np.iinfo(dtype)
    noise = np.random.default_rng(1).integers(0, limits.max, (*shape, channels), dtype=dtype)
    tuning = {
        "jpeg": (("jpeg_quality", 100),),
        "png": (("png_level", 0),),
        "jxl": (("jxl_quality", 100),),
    }
    blocks = [None] if encoding in tuning else [Vec3(8, 8, 8), Vec3(1, 1, 1), Vec3(16, 16, 16)]
    for block in blocks:
        content = encode(
            np.asfortranarray(noise), encoding, block_size=block, tuning=tuning.get(encoding, ())
        )
        assert len(content) <= most_bytes(encoding, Vec3(*shape), noise.itemsize * channels, block)


# What is wrong inside of a chunk whose header is right

COMPRESSO = struct.Struct("<4s2B3H3BQIQB")


def compresso_parts(content):
    """Numbers of the header, and the bytes of ids, values, locations, windows, index."""
    header = list(COMPRESSO.unpack_from(content))
    index = 2 * SHAPE[2] * compresso.zindex_byte_width(*SHAPE[:2])
    ends = np.cumsum([COMPRESSO.size, header[9] * 4, header[10] * 2, header[11] * 4])
    cuts = [*map(int, ends), len(content) - index, len(content)]
    return header, [content[start:end] for start, end in itertools.pairwise(cuts)]


def compresso_of(header, parts):
    return COMPRESSO.pack(*header) + b"".join(parts)


def test_a_compresso_chunk_is_given_all_labels_that_its_decoder_may_read():
    """By as many components and edges as scipy finds."""
    random = np.random.default_rng(8)
    for labels in (random.integers(0, 3, SHAPE), np.indices(SHAPE).sum(0) % 2, np.zeros(SHAPE)):
        array = np.asfortranarray(labels.astype(np.uint32))
        edges = np.zeros(SHAPE[:3], bool)
        edges[:-1] |= array[:-1, ..., 0] != array[1:, ..., 0]
        edges[:, :-1] |= array[:, :-1, :, 0] != array[:, 1:, :, 0]
        sections = [ndimage.label(~edges[..., z])[1] for z in range(SHAPE[2])]
        header, (_, values, _, windows, index) = compresso_parts(encode(array, "compresso"))
        header[9], header[11] = 0, 0
        without_labels = compresso_of(header, [b"", values, b"", windows, index])
        checked = checked_compresso(without_labels, Vec3.of(SHAPE[:3]), array.dtype)
        made = compresso.header(checked)
        assert made["id_size"] >= sum(sections)
        assert made["location_size"] > edges.sum()


@pytest.mark.parametrize(
    "window", [0xFFFF, 3, 0x1FFE, 0], ids=["long run", "short run", "no such value", "one more"]
)
def test_windows_of_compresso_that_do_not_fill_the_chunk_are_refused(window):
    header, parts = compresso_parts(chunk_of("compresso", np.random.default_rng(3)))
    parts[3] += struct.pack("<H", window)
    with pytest.raises(CorruptChunk, match="cut off or damaged"):
        decoded(compresso_of(header, parts), "compresso")


def crackle_parts(content):
    """The header, the index of sections, the labels, and the rest."""
    header = crackle.header(content)
    labels = header.header_bytes + header.grid_index_bytes
    cuts = [0, header.header_bytes, labels, labels + header.num_label_bytes]
    *parts, rest = (content[start:end] for start, end in zip(cuts, [*cuts[1:], None], strict=True))
    return [*parts, rest[: -4 * (SHAPE[2] + 1)], rest[-4 * (SHAPE[2] + 1) :]]


def with_labels(labels, content):
    """A crackle chunk with other labels, and the right checksum of them."""
    header, index, _, codes, checksums = crackle_parts(content)
    checksum = google_crc32c.value(labels).to_bytes(4, "little")
    return b"".join([header, index, labels, codes, checksum, checksums[4:]])


def test_another_label_in_a_crackle_chunk_is_noticed():
    content = chunk_of("crackle", np.random.default_rng(3))
    labels = crackle_parts(content)[2]
    assert decoded(with_labels(labels, content), "crackle").shape == SHAPE
    for at in range(8, len(labels), 7):
        other = bytearray(labels)
        other[at] ^= 1
        damaged = b"".join([*crackle_parts(content)[:2], other, *crackle_parts(content)[3:]])
        with pytest.raises(CorruptChunk, match="the checksum of its labels"):
            decoded(damaged, "crackle")


@pytest.mark.parametrize(
    ("at", "content"),
    [(0, b"\xff" * 8), (0, b"\x01"), (-1, b"\xff"), (-3, b"\x80"), (20, b"\xff\xff")],
)
def test_labels_of_crackle_that_point_elsewhere_are_refused(at, content):
    """Also where someone has made the checksum right."""
    whole = chunk_of("crackle", np.random.default_rng(3))
    labels = bytearray(crackle_parts(whole)[2])
    at %= len(labels)
    labels[at : at + len(content)] = content
    with pytest.raises(CorruptChunk, match="cut off or damaged"):
        decoded(with_labels(bytes(labels), whole), "crackle")


def test_crackle_without_checksums_is_read_and_refused_when_it_is_cut_off():
    """As version 0 of the format has it."""
    content = chunk_of("crackle", np.random.default_rng(3))
    header, index, labels, codes, _ = crackle_parts(content)
    old = b"crkl\0" + header[5:20] + header[20:24] + index[:-4] + labels + codes
    np.testing.assert_array_equal(decoded(old, "crackle"), decoded(content, "crackle"))
    for length in (len(old) - 1, len(old) - 20, len(old) + 1):
        with pytest.raises(CorruptChunk):
            decoded((old + bytes(1))[:length], "crackle")
