"""Pictures of every format read part by part, against the arrays that others wrote."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from PIL import Image

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import boxes_within

SIZE = Vec3(83, 61, 7)
GREY = random_voxels(SIZE, "uint16")[..., 0].transpose(2, 1, 0)  # z, y, x
RGB = random_voxels(SIZE, channels=3).transpose(2, 1, 0, 3)


def sections(array, suffix=".tif", **options):
    def write(path):
        path.mkdir()
        for z, section in enumerate(np.ascontiguousarray(array)):
            if suffix == ".tif":
                kind = {"photometric": "rgb" if section.ndim == 3 else "minisblack"}
                tifffile.imwrite(path / f"{z}.tif", section, **(kind | options))
            else:
                Image.fromarray(section).save(path / f"{z}{suffix}")
        return array

    return write


def pages(array, **options):
    def write(path):
        with tifffile.TiffWriter(path, bigtiff=options.get("bigtiff", False)) as file:
            for page in array:
                rest = {k: v for k, v in options.items() if k != "bigtiff"}
                file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", **rest)
        return array

    return write


def imagej(path):
    tifffile.imwrite(path, GREY, imagej=True, metadata={"axes": "ZYX"})
    return GREY


def imagej_channels(path):
    two = np.stack([GREY, GREY[::-1]], axis=1)
    tifffile.imwrite(path, two, imagej=True, metadata={"axes": "ZCYX"})
    return two.transpose(0, 2, 3, 1)


def ome_tiff(path):
    two = np.stack([GREY, GREY[::-1]])
    options = {"compression": "zlib", "metadata": {"axes": "CZYX"}, "photometric": "minisblack"}
    tifffile.imwrite(path, two, ome=True, **options)
    return two.transpose(1, 2, 3, 0)


def planar(compression):
    def write(path):
        path.mkdir()
        for z, section in enumerate(RGB):
            tifffile.imwrite(
                path / f"{z}.tif", section.transpose(2, 0, 1), photometric="rgb",
                planarconfig="separate", rowsperstrip=9, compression=compression,
            )  # fmt: skip
        return RGB

    return write


def pyramid(path):
    """A stack whose pages have smaller copies, as other programs make them."""
    path.mkdir()
    for z, section in enumerate(GREY):
        with tifffile.TiffWriter(path / f"{z}.tif") as file:
            file.write(section, tile=(16, 16))
            file.write(section[::2, ::2], tile=(16, 16), subfiletype=1)
    return GREY


def never_written(path):
    """A stack with a page whose only strip was left out, as sparse files have it."""
    array = GREY.copy()
    array[3] = 0
    sections(array)(path)
    with tifffile.TiffFile(path / "3.tif", mode="r+b") as file:
        for tag in ("StripOffsets", "StripByteCounts"):
            file.pages.first.tags[tag].overwrite(0)
    return array


TIFFS = {
    "one strip": sections(GREY),
    "big-endian": sections(GREY, byteorder=">"),
    "strips of 7 rows": sections(GREY, rowsperstrip=7),
    "compressed strips": sections(GREY, rowsperstrip=7, compression="lzw", predictor=True),
    "big-endian strips": sections(GREY, rowsperstrip=5, compression="zlib", byteorder=">"),
    "tiles": sections(GREY, tile=(16, 32)),
    "compressed tiles": sections(GREY, tile=(32, 16), compression="zstd"),
    "packed bits": sections(GREY.astype("uint8"), compression="packbits", rowsperstrip=9),
    "bilevel": sections(GREY > 1000, photometric="minisblack", rowsperstrip=9),
    "half floats": sections((GREY // 2).astype("float16"), compression="zlib", rowsperstrip=9),
    "colours": sections(RGB, rowsperstrip=10),
    "compressed colours": sections(RGB, tile=(16, 16), compression="zlib"),
    "colour planes": planar(None),
    "compressed colour planes": planar("lzw"),
    "smaller copies": pyramid,
}
FORMATS = TIFFS | {
    "a TIFF that was never written": never_written,
    "PNG": sections(GREY.astype("uint8"), ".png"),
    "deep PNG": sections(GREY, ".png"),
    "colour PNG": sections(RGB, ".png"),
    "bilevel PNG": sections(GREY > 1000, ".png"),
    "pages": pages(GREY, contiguous=True),
    "pages written one by one": pages(GREY, rowsperstrip=8),
    "compressed pages": pages(GREY, compression="zlib", rowsperstrip=8),
    "colour pages": pages(RGB, tile=(16, 16), compression="lzw"),
    "BigTIFF": pages(GREY, bigtiff=True),
    "ImageJ": imagej,
    "ImageJ channels": imagej_channels,
    "OME-TIFF": ome_tiff,
}


@pytest.mark.parametrize("form", FORMATS)
def test_any_part_of_pictures_is_what_was_written(tmp_path, opened, assert_part, form):
    array = FORMATS[form](tmp_path / "source")
    source = opened(tmp_path / "source")
    assert source.bounds.size == SIZE
    assert source.channels == (1 if array.ndim == 3 else array.shape[3])

    @given(boxes_within(SIZE))
    @settings(max_examples=15, deadline=None)
    def check(part):
        assert_part(source, array, part)

    check()


@pytest.mark.parametrize("form", TIFFS)
def test_a_part_of_a_tiff_reads_little_more_than_its_bytes(tmp_path, opened, monkeypatch, form):
    TIFFS[form](tmp_path / "source")
    source = opened(tmp_path / "source")
    whole = (tmp_path / "source/3.tif").stat().st_size
    read = []
    read_into = FileInParts.read_into
    part = BoundingBox.parse("0-16_0-16_3-4")

    def counted(self, start, buffer):
        read.append(len(buffer))
        read_into(self, start, buffer)

    with Overlap(1) as overlap:
        list(source.parts(part, overlap))  # the header is known then
        monkeypatch.setattr(FileInParts, "worthwhile", 1)
        monkeypatch.setattr(FileInParts, "read_into", counted)
        list(source.parts(part, overlap))
    assert 0 < sum(read) <= whole * 0.55


@pytest.mark.parametrize("array", [GREY.astype("uint8"), RGB], ids=["grey", "colours"])
def test_jpegs_inside_of_tiffs_are_decoded_as_tifffile_does(tmp_path, opened, assert_part, array):
    sections(array, tile=(32, 32), compression="jpeg")(tmp_path / "source")
    decoded = np.stack([tifffile.imread(tmp_path / f"source/{z}.tif") for z in range(SIZE.z)])
    source = opened(tmp_path / "source")
    assert_part(source, decoded, source.bounds)
    assert_part(source, decoded, BoundingBox.parse("10-50_30-61_2-4"))


def test_a_picture_alone_that_was_never_written_is_zero(tmp_path, opened, assert_part):
    array = never_written(tmp_path / "source")[3:4]
    source = opened(tmp_path / "source" / "3.tif")
    assert_part(source, array, source.bounds)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_whose_0_is_white_are_pointed_out(tmp_path, opened, compression):
    options = {"photometric": "miniswhite", "compression": compression}
    tifffile.imwrite(tmp_path / "v.tif", GREY, **options)
    (note,) = opened(tmp_path / "v.tif").notes
    assert "0 means white in the pictures" in note
