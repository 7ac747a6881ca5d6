"""Plans and tasks of small sources that promise or become gigabytes stay small, and say why."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import source_bombs
import tifffile
import zarr
from PIL import Image

from igneous_airflow.errors import CorruptChunk, PermanentError, UnreadableSource
from igneous_airflow.sources.embedded import promised_pixels
from igneous_airflow.sources.opening import Reading, find_source, open_source
from igneous_airflow.stages.hypersquare_ingest import HypersquareIngest
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage.overlap import Overlap

MEGABYTES = 400
TOO_LARGE = "which are decoded as a whole, and a task may use 500,000,000"
#: What is said of each, by the plan, or by the task where the metadata promise nothing wrong.
IN_THE_PLAN = {
    "large.h5": f"in blocks of 4,194,304,000 bytes, {TOO_LARGE}",
    "beyond.h5": "in blocks of 134,217,728 bytes, though all of its voxels have 262,144",
    "virtual.h5": "main in large.h5x is stored in chunks of 1,073,741,824 bytes",
    "large_tile.tif": TOO_LARGE,
    "large_strip.tif": TOO_LARGE,
    "planes.tif": "promise 2,000,000,000 planes",
    "count.tif": "promise 2,000,000,000 planes",
    "modulo.tif": "promise 1,000,000,000 planes",
    "png sections": f"0.png is stored in blocks of 3,600,000,000 bytes, {TOO_LARGE}",
    "cut png sections": "0.png is cut off: what ends every PNG",
    "sparse png sections": "0.png has 2,147,483,648 bytes for 4,096 bytes of pixels",
    "text png sections": "0.png is no picture that can be read: Decompressed data too large",
    "size.jpg": f"in blocks of 4,225,000,000 bytes, {TOO_LARGE}",
    "chunk.zarr": TOO_LARGE,
    "size.nii.gz": "is cut off: it holds 864 bytes",
}
IN_THE_TASK = {
    "deflate.h5": "is stored in 4,685,465 bytes, though it holds 262,144",
    "short.h5": "the zlib stream is damaged, or longer than it should be",
    "checksum.h5": "though it holds 262,144",
    "lzf.h5": "though it holds 262,144",
    "szip.h5": "packed by szip would become 4,294,967,280 bytes",
    "scaleoffset.h5": "packed by scaleoffset would become 4,294,967,294 bytes",
    "stored.tif": "is stored in 2,147,483,647 bytes",
    "zlib.tif": "is stored in 4,685,465 bytes",
    "zstd.tif": "Destination buffer is too small",
    "lzma.tif": "",  # what is too much is left out, as in every reader of TIFF
    "lzw.tif": "",
    "packbits.tif": "is stored in 16,777,216 bytes",
    **{
        f"{name}.tif": "holds a picture of 4,225,"
        for name in ("jpeg", "png", "jpeg2000", "jxl", "lerc")
    },
    "zlib sections": "0.tif cannot be decoded",
    **{f"{name}.zarr": f"its {name} stream holds more than 360,448 bytes"
       for name in ("gzip", "bz2", "lzma", "zstd")},
    **{f"{name}.zarr": f"its {name} stream promises 2,147,483,"
       for name in ("lz4", "blosc")},
    **{f"{name}.zarr3": f"its {name} stream holds more than 360,448 bytes"
       for name in ("gzip", "zstd", "lzma")},
    "zlib.zarr": "its zlib stream is damaged: the zlib stream is damaged, or longer",
    "blosc.zarr3": "its blosc stream promises 2,147,483,392 bytes",
    "shard.zarr3": "its zstd stream holds more than",
    "index.zarr3": "cannot be read",
    "longer.nii.gz": "",  # what comes after the voxels is not unpacked
    "build": "but at most 139,264 are expected",
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process of its own says of each, and the memory that it has taken until then."""
    folder = tmp_path_factory.mktemp("bombs")
    program = [sys.executable, "-W", "ignore", source_bombs.__file__]
    subprocess.run([*program, "write", str(folder)], check=True, timeout=240)
    reading = [*program, "read", str(folder)]
    answer = subprocess.run(reading, capture_output=True, check=True, text=True, timeout=240)
    return {line["name"]: line for line in map(json.loads, answer.stdout.splitlines())}


@pytest.mark.parametrize("name", source_bombs.BOMBS)
def test_a_bomb_takes_little_memory_and_is_named(answers, name: str) -> None:
    answer = answers[name]
    assert answer["planned"] < MEGABYTES
    assert answer["taken"] < MEGABYTES
    if name in IN_THE_PLAN:
        assert IN_THE_PLAN[name] in "; ".join(answer["plan"])
    else:
        assert answer["plan"] == []
        assert IN_THE_TASK[name] in answer["task"]
        assert bool(answer["task"]) == bool(IN_THE_TASK[name])


@pytest.mark.parametrize("library", ["h5py", "zarr"])
def test_a_plan_reads_no_chunk(tmp_path: Path, library: str, monkeypatch) -> None:
    values = np.ones((64, 64, 64), "u1")
    path = tmp_path / "v.h5"
    if library == "zarr":
        zarr.create_array(tmp_path / "v.h5", data=values, chunks=(32, 32, 32))
        chunk = tmp_path / "v.h5" / "c" / "0" / "0" / "0"
        chunk.write_bytes(b"damaged")
    else:
        source_bombs.hdf5(path, b"damaged", (64, 64, 64), compression="gzip")
    stage = Ingest(source=f"{path}", dest=f"{tmp_path}/d", resolution=(1, 1, 1), axes="zyx")
    assert stage.plan().refusals == ()
    with pytest.raises(UnreadableSource, match="cannot be read"):
        read(f"file://{path}")


def read(url: str, axes: str | None = "zyx") -> np.ndarray:
    source = open_source(find_source(url), Reading(axes=axes))
    with Overlap(1) as overlap:
        ((_, voxels),) = source.parts(source.bounds, overlap)
    return voxels


# codecs


class Run:
    """What a pickle may do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_a_zarr_that_is_unpickled_is_refused_in_the_plan(tmp_path: Path, place: str) -> None:
    change = {"filters": [{"id": "pickle"}]} if place == "filters" else {}
    compressor = {"id": "pickle"} if place == "compressor" else None
    content = pickle.dumps(Run(tmp_path / "run"))
    source_bombs.zarr_2(compressor, lambda: content, **change)(tmp_path / "v")
    stage = Ingest(source=f"{tmp_path}/v", dest=f"{tmp_path}/d", resolution=(1, 1, 1), axes="zyx")
    assert "pickle" in "; ".join(stage.plan().refusals)
    with pytest.raises(PermanentError):
        read(f"file://{tmp_path}/v")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "codec", [{"id": "json2"}, {"id": "vlen-bytes"}, {"id": "msgpack2"}, {"id": "base64"}]
)
def test_zarr_codecs_that_are_not_known_to_be_bounded_are_named(tmp_path: Path, codec) -> None:
    source_bombs.zarr_2(None, bytes, filters=[codec])(tmp_path / "v")
    with pytest.raises(UnreadableSource, match=codec["id"]):
        read(f"file://{tmp_path}/v")


ENCODERS = {
    "jpeg": (7, imagecodecs.jpeg8_encode),
    "lossless jpeg": (7, imagecodecs.ljpeg_encode),
    "png": (34933, imagecodecs.png_encode),
    "jpeg2000": (34712, imagecodecs.jpeg2k_encode),
    "webp": (50001, lambda a: imagecodecs.webp_encode(np.stack([a] * 3, -1), lossless=True)),
    "lossy webp": (50001, lambda a: imagecodecs.webp_encode(np.stack([a] * 3, -1), level=50)),
    "lerc": (34887, imagecodecs.lerc_encode),
    "jxl": (50002, imagecodecs.jpegxl_encode),
    "jxl in a container": (50002, lambda a: imagecodecs.jpegxl_encode(a, usecontainer=True)),
}


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (40, 80), (100, 75), (513, 300), (7, 2000)])
@pytest.mark.parametrize("form", ENCODERS)
def test_the_pixels_that_an_embedded_picture_promises_are_those_it_has(form, size) -> None:
    compression, encode = ENCODERS[form]
    content = encode(np.random.default_rng(1).integers(0, 255, size, "u1"))
    assert promised_pixels(bytes(content), compression) == size[0] * size[1]


@pytest.mark.parametrize("compression", [7, 34933, 34712, 50001, 34887, 50002, 22610])
def test_a_picture_whose_size_is_not_to_be_found_is_refused(compression: int) -> None:
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\0", bytes(9)):
        with pytest.raises(ValueError, match="size of an embedded picture"):
            promised_pixels(content, compression)


@pytest.mark.parametrize("compression", ["jpeg", "webp", "jpegxl", "jpeg2000", "png", "lerc"])
def test_pictures_in_tiffs_are_read_as_tifffile_does(tmp_path: Path, compression: str) -> None:
    array = np.random.default_rng(2).integers(0, 255, (70, 90, 3), "u1")
    options = {"tile": (32, 48), "photometric": "rgb", "compression": compression}
    tifffile.imwrite(tmp_path / "v.tif", array, **options)
    expected = tifffile.imread(tmp_path / "v.tif")
    voxels = read(f"file://{tmp_path}/v.tif", axes=None)[:, :, 0]
    np.testing.assert_array_equal(voxels.transpose(1, 0, 2), expected)


# cubes


def test_a_section_of_a_cube_that_is_too_large_is_a_typed_error(tmp_path: Path) -> None:
    cube = tmp_path / "cubes" / "one"
    (cube / "jpg").mkdir(parents=True)
    source_bombs.jpeg_of_size(cube / "jpg" / "0.jpg")
    metadata = {
        "chunk_voxel_dimensions": [16, 16, 1], "voxel_resolution": [4, 4, 40],
        "physical_offset_min": [0, 0, 0], "physical_offset_max": [64, 64, 40],
    }  # fmt: skip
    (cube / "metadata.json").write_text(json.dumps(metadata))
    stage = HypersquareIngest(
        src=f"{tmp_path}/cubes", dest=f"{tmp_path}/d", content="image", overlap=0, max_mips=0
    )
    assert stage.plan().refusals == ()
    stage.prepare()
    with pytest.raises(CorruptChunk, match="it is 65000 x 65000 pixels"):
        stage.run(stage.cells()[0])


def test_a_cube_larger_than_a_task_may_be_is_refused(tmp_path: Path) -> None:
    for x in range(2):
        cube = tmp_path / "cubes" / f"{x}"
        cube.mkdir(parents=True)
        metadata = {
            "chunk_voxel_dimensions": [1008, 1008, 1008], "voxel_resolution": [1, 1, 1],
            "physical_offset_min": [8 * x, 0, 0], "physical_offset_max": [8 * x + 1008, 1008, 1008],
            "segment_id_type": "UInt32",
        }  # fmt: skip
        (cube / "metadata.json").write_text(json.dumps(metadata))
    stage = HypersquareIngest(
        src=f"{tmp_path}/cubes", dest=f"{tmp_path}/d", overlap=1000, memory_target=1_000_000_000
    )
    said = "; ".join(stage.plan().refusals)
    assert "a cube has 4,096,770,048 bytes, which are decoded as a whole" in said


def test_a_picture_beyond_the_limit_of_pillow_is_read_where_memory_allows(tmp_path: Path) -> None:
    """Sections of microscopes have more pixels than Pillow takes for a bomb."""
    side = 13_500
    (tmp_path / "s").mkdir()
    Image.new("L", (side, side), 7).save(tmp_path / "s" / "0.png")
    stage = Ingest(source=f"{tmp_path}/s", dest=f"{tmp_path}/d", resolution=(1, 1, 1))
    assert stage.plan().refusals == ()
