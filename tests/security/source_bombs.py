"""Small files that promise, or become, gigabytes, by the real writers; and the reading of them.

Run as a program in a process of its own, which tells how much memory each has taken.
"""

import bz2
import gzip
import json
import lzma
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import h5py
import imagecodecs
import nibabel
import numpy as np
import tifffile
import zarr
import zarr.codecs
from numcodecs.checksum32 import CRC32C
from PIL import Image, PngImagePlugin

GIGABYTE = 1 << 30
MEMORY = 500_000_000  # bytes that a task may use
PIECE = bytes(1 << 22)
TILE = (256, 512)
JXL_SIZE = 0b110 | 64999 << 3 | 1 << 33  # of the first of four lengths, and as wide as high
SQUARE = np.zeros((64, 64), np.uint8)


def packed(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """A compressed stream, made once and only when it is wanted."""
    return cache(make)


def zlib_stream() -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(PIECE) for _ in range(GIGABYTE // len(PIECE))) + packer.flush()


ZLIB = packed(zlib_stream)
SHORT = packed(lambda: zlib.compress(bytes(GIGABYTE // 16), 1))  # shorter than what it should hold
ZSTD = packed(lambda: imagecodecs.zstd_encode(bytes(GIGABYTE)))
GZIP = packed(lambda: gzip.compress(PIECE) * (GIGABYTE // len(PIECE)))
BZ2 = packed(lambda: bz2.compress(PIECE) * (GIGABYTE // len(PIECE)))
XZ = packed(lambda: lzma.compress(bytes(GIGABYTE // 4), preset=0))
LZW = packed(lambda: imagecodecs.lzw_encode(bytes(GIGABYTE // 4)))
PACKBITS = packed(lambda: b"\x81\x00" * (GIGABYTE // 128))
LZF = packed(lambda: imagecodecs.lzf_encode(bytes(GIGABYTE // 4)))


# HDF5


def hdf5(path: Path, content: bytes, chunks: tuple[int, ...], **options: object) -> None:
    with h5py.File(path, "w") as file:
        shape = tuple(min(edge, 64) for edge in chunks)
        how = {"shape": shape, "maxshape": (None,) * 3, "chunks": chunks, "dtype": "uint8"}
        dataset = file.create_dataset("main", **how, **options)
        dataset.id.write_direct_chunk((0, 0, 0), content)


def hdf5_large_chunk(path: Path) -> None:
    hdf5(path, ZLIB(), (1024, 2048, 2000), compression="gzip")


def hdf5_chunk_beyond_the_shape(path: Path) -> None:
    hdf5(path, ZLIB(), (256, 512, 1024), compression="gzip")


def hdf5_deflate(path: Path) -> None:
    hdf5(path, ZLIB(), (64, 64, 64), compression="gzip")


def hdf5_deflate_under_a_checksum(path: Path) -> None:
    hdf5(path, ZLIB() + bytes(4), (64, 64, 64), compression="gzip", shuffle=True, fletcher32=True)


def hdf5_lzf(path: Path) -> None:
    hdf5(path, LZF(), (64, 64, 64), compression="lzf")


def hdf5_szip(path: Path) -> None:
    hdf5(path, struct.pack("<I", 0xFFFFFFF0) + bytes(64), (64, 64, 64), compression="szip")


def hdf5_scale_offset(path: Path) -> None:
    """The number of values in a chunk is among the parameters of the filter."""
    with h5py.File(path, "w") as file:
        values = np.arange(64**3).reshape(64, 64, 64) % 9
        file.create_dataset("main", data=values.astype("u2"), chunks=(64, 64, 64), scaleoffset=True)
    content = path.read_bytes()
    parameters = struct.pack("<5I", 2, 0, 64**3, 0, 2)
    assert content.count(parameters) == 1
    path.write_bytes(content.replace(parameters, struct.pack("<5I", 2, 0, 0x7FFFFFFF, 0, 2)))


def hdf5_virtual(path: Path) -> None:
    """A virtual dataset of a dataset in large chunks, after one that is not."""
    hdf5(path.with_name("large.h5x"), ZLIB(), (1024, 1024, 1024), compression="gzip")
    with h5py.File(path.with_name("small.h5x"), "w") as file:
        file.create_dataset("main", data=np.zeros((64, 64, 64), "u1"), chunks=(16, 16, 16))
    layout = h5py.VirtualLayout((128, 64, 64), "uint8")
    layout[:64] = h5py.VirtualSource("small.h5x", "main", (64, 64, 64))[:]
    layout[64:] = h5py.VirtualSource("large.h5x", "main", (64, 64, 64))[:]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("main", layout)


# TIFF


def tiff(
    compression: str, segment: Callable[[], bytes], dtype: str = "uint8"
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tifffile.imwrite(
            path, iter([segment()] * 2), shape=(512, 512), dtype=dtype, tile=TILE,
            compression=compression, photometric="minisblack",
        )  # fmt: skip

    return write


def sections(write: Callable[[Path], None], suffix: str) -> Callable[[Path], None]:
    def write_some(path: Path) -> None:
        path.mkdir()
        for z in range(2):
            write(path / f"{z}{suffix}")

    return write_some


def larger(picture: bytes, mark: bytes, after: int, form: str, side: int = 65000) -> bytes:
    """A picture that says that it is larger."""
    at = picture.index(mark) + after
    size = struct.pack(form, side, side)
    return picture[:at] + size + picture[at + len(size) :]


def tiff_large_tile(path: Path) -> None:
    tifffile.imwrite(
        path, iter([ZLIB()]), shape=(64, 64), dtype="uint8", tile=(32768, 65536),
        compression="zlib", photometric="minisblack",
    )  # fmt: skip


def tiff_large_strip(path: Path) -> None:
    tifffile.imwrite(
        path, iter([ZLIB()]), shape=(32768, 65536), dtype="uint8", rowsperstrip=32768,
        compression="zlib", photometric="minisblack",
    )  # fmt: skip


def tiff_stored_large(path: Path) -> None:
    """A tile that is said to have two gigabytes, in a file that has them, as holes."""
    tiff("zlib", lambda: zlib.compress(bytes(1024)))(path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["TileByteCounts"].overwrite([2 * GIGABYTE - 1] * 2)
    with path.open("r+b") as file:
        file.truncate(3 * GIGABYTE)


def ome(change: Callable[[str], str]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tifffile.imwrite(path, np.zeros((2, 64, 64), "u1"), ome=True, metadata={"axes": "ZYX"})
        with tifffile.TiffFile(path, mode="r+b") as file:
            text = change(file.ome_metadata)
            file.pages.first.tags["ImageDescription"].overwrite(text)

    return write


MODULO = (
    '<StructuredAnnotations><XMLAnnotation ID="A:1" Namespace="openmicroscopy.org/omero/'
    'dimension/modulo"><Value><Modulo><ModuloAlongZ Type="other" Start="0" End="1e9" Step="1"/>'
    "</Modulo></Value></XMLAnnotation></StructuredAnnotations></OME>"
)


# PNG and JPEG


def png_of_size(path: Path, width: int = 60000, height: int = 60000) -> None:
    def part(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = part(b"IHDR", header) + part(b"IDAT", ZLIB()) + part(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def cut_png(path: Path) -> None:
    """A picture within the bounds whose end is not there, which a plan might decode to be sure."""
    png_of_size(path, 9000, 9000)
    path.write_bytes(path.read_bytes()[:-12] + bytes(100))


def png_of_text(path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add(b"zTXt", b"Comment\0\0" + ZLIB())
    Image.fromarray(np.zeros((64, 64), "u1")).save(path, pnginfo=text)


def jpeg_of_size(path: Path) -> None:
    stream = BytesIO()
    Image.fromarray(np.zeros((64, 64), "u1")).save(stream, "JPEG")
    path.write_bytes(larger(stream.getvalue(), b"\xff\xc0", 5, ">HH"))


def sparse_png(path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), "u1")).save(path)
    with path.open("r+b") as file:
        file.truncate(2 * GIGABYTE)
        file.seek(-12, 2)
        file.write(b"IEND")


# Zarr


def zarr_2(
    compressor: dict | None, chunk: Callable[[], bytes], **changes: object
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        metadata = {
            "zarr_format": 2, "shape": [64, 64, 64], "chunks": [64, 64, 64], "dtype": "|u1",
            "compressor": compressor, "fill_value": 0, "order": "C", "filters": None,
        }  # fmt: skip
        (path / ".zarray").write_text(json.dumps(metadata | changes))
        (path / "0.0.0").write_bytes(chunk())

    return write


def zarr_3(
    compressor: Callable[[], object], chunk: Callable[[], bytes], **options: object
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        how = {"shape": (64, 64, 64), "chunks": (64, 64, 64), "dtype": "uint8"} | options
        zarr.create_array(path, compressors=compressor(), **how)
        (path / "c" / "0" / "0").mkdir(parents=True)
        (path / "c" / "0" / "0" / "0").write_bytes(chunk())

    return write


def sharded(promised: int | None = None) -> bytes:
    """A shard of one chunk, whose index says where it is."""
    index = struct.pack("<QQ", 0, promised or len(ZSTD()))
    return ZSTD() + bytes(CRC32C(location="end").encode(np.frombuffer(index, "u1")))


BLOSC = bytes([2, 1, 0x21, 1]) + struct.pack("<III", 0x7FFFFF00, 1 << 18, 64) + bytes(48)


# NIfTI, build chunks


def nifti_longer_than_it_says(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), "u1"), np.eye(4)), path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())) + GZIP())


def nifti_of_size(path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((8, 8, 8), "u1"), np.eye(4))
    content = bytearray(image.to_bytes())
    content[40:48] = struct.pack("<4h", 3, 30000, 30000, 30000)
    path.write_bytes(gzip.compress(bytes(content)))


def build_chunk(path: Path) -> None:
    path.mkdir()
    stream = BytesIO()
    np.save(stream, np.zeros((16, 16, 16), "u1"))
    packer = zlib.compressobj(1)
    content = packer.compress(stream.getvalue())
    content += b"".join(packer.compress(PIECE) for _ in range(GIGABYTE // len(PIECE)))
    (path / "0-16_0-16_0-16").write_bytes(content + packer.flush())


BOMBS: dict[str, Callable[[Path], None]] = {
    "large.h5": hdf5_large_chunk,
    "beyond.h5": hdf5_chunk_beyond_the_shape,
    "deflate.h5": hdf5_deflate,
    "short.h5": lambda path: hdf5(path, SHORT(), (64, 64, 64), compression="gzip"),
    "checksum.h5": hdf5_deflate_under_a_checksum,
    "lzf.h5": hdf5_lzf,
    "szip.h5": hdf5_szip,
    "scaleoffset.h5": hdf5_scale_offset,
    "virtual.h5": hdf5_virtual,
    "large_tile.tif": tiff_large_tile,
    "large_strip.tif": tiff_large_strip,
    "stored.tif": tiff_stored_large,
    "zlib.tif": tiff("zlib", ZLIB),
    "zstd.tif": tiff("zstd", ZSTD),
    "lzma.tif": tiff("lzma", XZ),
    "lzw.tif": tiff("lzw", LZW),
    "packbits.tif": tiff("packbits", PACKBITS),
    "jpeg.tif": tiff(
        "jpeg", lambda: larger(imagecodecs.jpeg8_encode(SQUARE), b"\xff\xc0", 5, ">HH")
    ),
    "png.tif": tiff("png", lambda: larger(imagecodecs.png_encode(SQUARE), b"IHDR", 4, ">II")),
    "jpeg2000.tif": tiff(
        "jpeg2000", lambda: larger(imagecodecs.jpeg2k_encode(SQUARE), b"\xff\x4f\xff\x51", 8, ">II")
    ),
    "jxl.tif": tiff("jpegxl", lambda: b"\xff\x0a" + JXL_SIZE.to_bytes(16, "little")),
    "lerc.tif": tiff("lerc", lambda: larger(imagecodecs.lerc_encode(SQUARE), b"Lerc2 ", 14, "<II")),
    "zlib sections": sections(tiff("zlib", ZLIB), ".tif"),
    "planes.tif": ome(lambda text: text.replace('SizeZ="2"', 'SizeZ="2000000000"')),
    "count.tif": ome(lambda text: text.replace('PlaneCount="2"', 'PlaneCount="2000000000"')),
    "modulo.tif": ome(lambda text: text.replace("</OME>", MODULO)),
    "png sections": sections(png_of_size, ".png"),
    "cut png sections": sections(cut_png, ".png"),
    "sparse png sections": sections(sparse_png, ".png"),
    "text png sections": sections(png_of_text, ".png"),
    "size.jpg": jpeg_of_size,
    "zlib.zarr": zarr_2({"id": "zlib", "level": 1}, ZLIB),
    "gzip.zarr": zarr_2({"id": "gzip", "level": 1}, GZIP),
    "bz2.zarr": zarr_2({"id": "bz2", "level": 1}, BZ2),
    "lzma.zarr": zarr_2({"id": "lzma"}, XZ),
    "zstd.zarr": zarr_2({"id": "zstd", "level": 1}, ZSTD),
    "lz4.zarr": zarr_2({"id": "lz4"}, lambda: struct.pack("<I", 0x7FFFFFF0) + bytes(64)),
    "blosc.zarr": zarr_2({"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 0}, lambda: BLOSC),
    "chunk.zarr": zarr_2({"id": "zlib", "level": 1}, ZLIB, chunks=[1024, 1024, 2048]),
    "gzip.zarr3": zarr_3(zarr.codecs.GzipCodec, GZIP),
    "zstd.zarr3": zarr_3(zarr.codecs.ZstdCodec, ZSTD),
    "blosc.zarr3": zarr_3(zarr.codecs.BloscCodec, lambda: BLOSC),
    "lzma.zarr3": zarr_3(zarr.codecs.LZMA, XZ),
    "shard.zarr3": zarr_3(
        zarr.codecs.ZstdCodec, sharded, chunks=(64, 64, 64), shards=(64, 64, 64)
    ),
    "index.zarr3": zarr_3(
        zarr.codecs.ZstdCodec, lambda: sharded(1 << 40), chunks=(64, 64, 64), shards=(64, 64, 64)
    ),
    "longer.nii.gz": nifti_longer_than_it_says,
    "size.nii.gz": nifti_of_size,
    "build": build_chunk,
}  # fmt: skip


def main(folder: Path) -> None:
    """Plan and read what is in a folder; print a line for each with what is said and taken."""
    from igneous_airflow.errors import IgneousError
    from igneous_airflow.geometry.bbox import BoundingBox, Vec3
    from igneous_airflow.sources.opening import Reading, find_source, open_source
    from igneous_airflow.stages.ingest import Ingest
    from igneous_airflow.storage.overlap import Overlap

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    for name in BOMBS:
        axes = None if name.endswith((".tif", ".jpg", ".gz", "sections", "build")) else "zyx"
        stage = Ingest(
            source=f"{folder}/{name}", dest=f"{folder}/d", resolution=(1, 1, 1), axes=axes,
            memory_target=MEMORY,
        )  # fmt: skip
        said, planned = stage.plan().refusals, memory()
        try:
            found = open_source(find_source(stage.source), Reading(axes=axes, memory=MEMORY))
            with Overlap(1) as overlap:
                for _ in found.parts(BoundingBox.at(found.bounds.min, Vec3(1, 1, 1)), overlap):
                    pass
            read = ""
        except IgneousError as error:
            read = str(error)
        answer = {"name": name, "plan": said, "planned": planned, "task": read, "taken": memory()}
        sys.stdout.write(f"{json.dumps(answer)}\n")


def memory() -> int:
    """Megabytes that this process has had at most."""
    # not ru_maxrss, which begins with the peak of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def write(folder: Path) -> None:
    """Write all of them; the memory that this takes does not count."""
    for name, write_one in BOMBS.items():
        write_one(folder / name)


if __name__ == "__main__":
    {"write": write, "read": main}[sys.argv[1]](Path(sys.argv[2]))
