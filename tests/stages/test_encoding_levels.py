"""Quality and level of encodings: kept from the source, or as asked for, in info and in bytes."""

import json
import re
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from cloudvolume import CloudVolume
from PIL import Image
from pydantic import ValidationError

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.contrast_normalization import ContrastNormalization
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.quantize_affinities import QuantizeAffinities
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.tuning import TUNING_KEYS
from igneous_airflow.testing.layers import (
    LayerSpec,
    info_of,
    random_voxels,
    read_with_cloudvolume,
    write_layer,
)
from igneous_airflow.testing.stages import complete

SIZE = Vec3(48, 40, 16)
KEPT = [
    ("jxl", {"jxl_quality": 100}),
    ("jxl", {"jxl_quality": 100, "jxl_effort": 1, "jxl_decodingspeed": 4}),
    ("jxl", {"jxl_quality": 40, "jxl_effort": 2}),
    ("jxl", {}),
    ("png", {"png_level": 0}),
    ("png", {"png_level": 4}),
    ("png", {}),
    ("jpeg", {"jpeg_quality": 30}),
    ("jpeg", {"jpeg_quality": 100}),
    ("jpeg", {}),
]


def greys(size=SIZE):
    """Smooth grey values with noise, as sections have them."""
    x, y, z = np.indices(tuple(size))
    noise = np.random.default_rng(3).normal(0, 9, tuple(size))
    return (120 + 60 * np.sin(x / 9) * np.cos(y / 7 + z) + noise).clip(0, 255).astype(np.uint8)


def write(path, encoding="raw", tuning=None, voxels=None, chunk_size=(16, 16, 16)):
    """A layer as cloud-volume writes it, with these keys in its info."""
    voxels = greys() if voxels is None else voxels
    info = CloudVolume.create_new_info(
        1, "image", "uint8", encoding, (8, 8, 40), (0, 0, 0), voxels.shape, chunk_size=chunk_size
    )
    info["scales"][0] |= tuning or {}
    volume = CloudVolume(f"file://{path}", info=info, progress=False)
    volume.commit_info()
    volume[:] = voxels[..., np.newaxis]
    return f"file://{path}"


def tunings(path):
    """What the info says of each mip's encoding."""
    return [
        {key: value for key, value in scale.items() if key in TUNING_KEYS}
        for scale in info_of(path)["scales"]
    ]


def chunk_files(path, mip):
    return sorted((path / info_of(path)["scales"][mip]["key"]).iterdir())


def assert_encoded(path, mip, expected):
    """Check that the files of a mip are those that cloud-volume writes of these voxels."""
    scale = info_of(path)["scales"][mip]
    twin = path.with_name(f"{path.name}-twin-{mip}")
    info = {**info_of(path), "scales": [scale]}
    volume = CloudVolume(f"file://{twin}", info=info, progress=False)
    volume.commit_info()
    volume[:] = expected
    theirs = sorted((twin / scale["key"]).iterdir())
    assert [file.name for file in chunk_files(path, mip)] == [file.name for file in theirs]
    for ours, their in zip(chunk_files(path, mip), theirs, strict=True):
        assert ours.read_bytes() == their.read_bytes(), ours.name


@pytest.mark.parametrize(("encoding", "tuning"), KEPT)
def test_a_transfer_to_other_chunks_keeps_quality_and_level(tmp_path, encoding, tuning):
    src = write(tmp_path / "src", encoding, tuning)
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", chunk_size=(24, 40, 8), max_mips=2))
    assert tunings(tmp_path / "dest") == [tuning] * 3
    assert_encoded(tmp_path / "dest", 0, read_with_cloudvolume(tmp_path / "src", 0))
    if encoding == "png" or tuning.get("jxl_quality") == 100:
        voxels = read_with_cloudvolume(tmp_path / "dest", 0)
        np.testing.assert_array_equal(voxels[..., 0], greys())


@pytest.mark.parametrize(("encoding", "tuning"), KEPT)
def test_downsampled_mips_are_stored_as_well_as_the_mip_that_is_read(tmp_path, encoding, tuning):
    src = write(tmp_path / "layer", encoding, tuning)
    complete(Downsample(layer=src, num_mips=2))
    assert tunings(tmp_path / "layer") == [tuning] * 3
    complete(Transfer(src=src, dest=f"{tmp_path}/raw", encoding="raw", max_mips=2))
    for mip in (1, 2):
        assert_encoded(tmp_path / "layer", mip, read_with_cloudvolume(tmp_path / "raw", mip))


def test_the_quality_of_a_mip_that_is_there_is_its_own(tmp_path):
    src = write(tmp_path / "layer", "jxl", {"jxl_quality": 100})
    complete(Downsample(layer=src, num_mips=1))
    path = tmp_path / "layer/info"
    info = json.loads(path.read_text())
    info["scales"][1]["jxl_quality"] = 50
    path.write_text(json.dumps(info))
    complete(Downsample(layer=src, num_mips=2))
    assert [tuning["jxl_quality"] for tuning in tunings(tmp_path / "layer")] == [100, 50, 100]
    complete(Transfer(src=src, dest=f"{tmp_path}/raw", encoding="raw", max_mips=2))
    for mip in (1, 2):
        assert_encoded(tmp_path / "layer", mip, read_with_cloudvolume(tmp_path / "raw", mip))


@pytest.mark.parametrize(("encoding", "tuning"), KEPT)
def test_stages_that_change_voxels_keep_quality_and_level(tmp_path, encoding, tuning):
    src = write(tmp_path / "src", encoding, tuning)
    complete(LuminanceLevels(layer=src, coverage_factor=1))
    for name, more in (("dest", {}), ("raw", {"encoding": "raw"})):
        dest = f"{tmp_path}/{name}"
        complete(ContrastNormalization(src=src, dest=dest, max_mips=1, **more))
    assert tunings(tmp_path / "dest") == [tuning] * 2
    for mip in (0, 1):
        assert_encoded(tmp_path / "dest", mip, read_with_cloudvolume(tmp_path / "raw", mip))


ASKED = [("jxl", 100, "jxl_quality"), ("jxl", 30, "jxl_quality"), ("jpeg", 20, "jpeg_quality")]
ASKED += [("jpeg", 100, "jpeg_quality"), ("png", 0, "png_level"), ("png", 1, "png_level")]


@pytest.mark.parametrize(("encoding", "level", "key"), ASKED)
def test_a_level_that_is_asked_for_is_in_the_info_and_in_the_bytes(tmp_path, encoding, level, key):
    src = write(tmp_path / "src")
    wishes = {"encoding": encoding, "encoding_level": level}
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", max_mips=1, **wishes))
    complete(Downsample(layer=src, num_mips=1, **wishes))
    assert tunings(tmp_path / "dest") == [{key: level}] * 2
    assert tunings(tmp_path / "src") == [{}, {key: level}]
    complete(Transfer(src=src, dest=f"{tmp_path}/raw", encoding="raw", max_mips=1))
    for mip in (0, 1):
        assert_encoded(tmp_path / "dest", mip, read_with_cloudvolume(tmp_path / "raw", mip))
    assert_encoded(tmp_path / "src", 1, read_with_cloudvolume(tmp_path / "raw", 1))


@pytest.mark.parametrize("level", [1, 30, 85, 100])
def test_pillow_finds_the_quality_in_the_tables_of_a_jpeg(tmp_path, level):
    src = write(tmp_path / "src")
    wishes = {"encoding": "jpeg", "encoding_level": level}
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", max_mips=1, **wishes))
    reference = BytesIO()
    Image.fromarray(greys()[..., 0]).save(reference, "JPEG", quality=level)
    expected = Image.open(reference).quantization[0]
    for mip in (0, 1):
        for file in chunk_files(tmp_path / "dest", mip):
            assert Image.open(BytesIO(file.read_bytes())).quantization[0] == expected


def test_the_level_of_png_is_in_the_size_of_its_files(tmp_path):
    src = write(tmp_path / "src", "png", {"png_level": 5})
    sizes = {}
    for level in (0, 1, 9):
        dest = tmp_path / str(level)
        complete(Transfer(src=src, dest=str(dest), encoding_level=level, max_mips=0))
        assert tunings(dest) == [{"png_level": level}]
        sizes[level] = sum(file.stat().st_size for file in chunk_files(dest, 0))
        np.testing.assert_array_equal(read_with_cloudvolume(dest, 0)[..., 0], greys())
    assert sizes[0] > SIZE.product > max(sizes[1], sizes[9])


def test_imagecodecs_finds_every_voxel_in_a_lossless_jxl(tmp_path):
    src = write(tmp_path / "src")
    wishes = {"encoding": "jxl", "encoding_level": 100, "skip_downsamples": True}
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", **wishes))
    for file in chunk_files(tmp_path / "dest", 0):
        box = [tuple(map(int, part.split("-"))) for part in file.name.split("_")]
        expected = greys()[tuple(slice(*part) for part in box)]
        pixels = imagecodecs.jpegxl_decode(file.read_bytes())
        np.testing.assert_array_equal(pixels.ravel(), expected.ravel(order="F"))


@pytest.mark.parametrize(
    ("wishes", "bytes_are_the_same"),
    [({}, True), ({"encoding_level": 60}, True), ({"encoding_level": 61}, False)],
)
def test_files_are_copied_as_they_are_only_at_the_same_level(tmp_path, wishes, bytes_are_the_same):
    src = write(tmp_path / "src", "jpeg", {"jpeg_quality": 60})
    stage = Transfer(src=src, dest=f"{tmp_path}/dest", skip_downsamples=True, **wishes)
    notes = " ".join(stage.plan().notes)
    complete(stage)
    same = [
        ours.read_bytes() == theirs.read_bytes()
        for ours, theirs in zip(
            chunk_files(tmp_path / "dest", 0), chunk_files(tmp_path / "src", 0), strict=True
        )
    ]
    assert set(same) == {bytes_are_the_same}
    assert ("copied as they are" in notes) == bytes_are_the_same
    assert ("artifacts" in notes) != bytes_are_the_same


def test_other_encodings_get_no_keys_of_the_source(tmp_path):
    src = write(tmp_path / "src", "jpeg", {"jpeg_quality": 60, "png_level": 3})
    for encoding, made in (("png", {}), ("jxl", {}), ("raw", {}), (None, {"jpeg_quality": 60})):
        dest = tmp_path / f"{encoding}"
        complete(Transfer(src=src, dest=str(dest), encoding=encoding, max_mips=1))
        assert tunings(dest) == [made] * 2


# Destinations that exist


def test_an_existing_destination_keeps_its_own_quality(tmp_path):
    src = write(tmp_path / "src", "jxl", {"jxl_quality": 100})
    write(tmp_path / "dest", "jxl", {"jxl_quality": 60}, chunk_size=(48, 40, 16))
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", max_mips=1))
    assert tunings(tmp_path / "dest") == [{"jxl_quality": 60}] * 2
    assert_encoded(tmp_path / "dest", 0, greys()[..., np.newaxis])


@pytest.mark.parametrize(
    ("encoding", "tuning", "level", "has"),
    [
        ("jpeg", {"jpeg_quality": 60}, 61, r"jpeg \(quality 60\)"),
        ("jpeg", {}, 86, r"jpeg \(quality 85\)"),
        ("jxl", {"jxl_quality": 100}, 99, "lossless jxl"),
        ("png", {"png_level": 3}, 4, r"png \(level 3\)"),
        ("raw", {}, 9, "no level"),
    ],
)
def test_another_level_than_that_of_what_exists_is_refused(tmp_path, encoding, tuning, level, has):
    src = write(tmp_path / "src")
    write(tmp_path / "dest", encoding, tuning)
    refusal = rf"encoding_level: {level}, but the existing scale 8_8_40 has {has}: delete that mip"
    stage = Transfer(src=src, dest=f"{tmp_path}/dest", encoding_level=level)
    assert any(re.search(refusal, text) for text in stage.plan().refusals)
    with pytest.raises(InvalidParameter, match=refusal):
        stage.prepare()
    complete(Downsample(layer=f"{tmp_path}/dest", num_mips=1))
    again = Downsample(layer=f"{tmp_path}/dest", num_mips=1, encoding_level=level)
    with pytest.raises(InvalidParameter, match=refusal.replace("8_8", "16_16")):
        again.prepare()


def test_asking_for_the_level_that_exists_is_no_conflict(tmp_path):
    src = write(tmp_path / "src")
    for name, tuning, level in (("a", {"jpeg_quality": 60}, 60), ("b", {}, 85)):
        write(tmp_path / name, "jpeg", tuning)
        stage = Transfer(src=src, dest=f"{tmp_path}/{name}", encoding_level=level, max_mips=0)
        complete(stage)
        assert tunings(tmp_path / name) == [tuning]


# What is refused


@pytest.mark.parametrize(
    ("encoding", "level", "refusal"),
    [
        (
            "raw",
            5,
            "encoding_level: 5, but raw has no level: leave encoding_level empty, or choose",
        ),
        (None, 5, "encoding_level: 5, but raw has no level"),
        ("png", 10, "encoding_level: 10, but the level of png is between 0 and 9"),
        ("jpeg", 0, "encoding_level: 0, but the quality of jpeg is between 1 and 100"),
        ("jxl", 0, "encoding_level: 0, but the quality of jxl is between 1 and 100"),
    ],
)
def test_a_level_that_the_encoding_cannot_have_is_refused(tmp_path, encoding, level, refusal):
    src = write(tmp_path / "src")
    wishes = {"encoding": encoding, "encoding_level": level}
    for stage in (
        Downsample(layer=src, num_mips=1, **wishes),
        Transfer(src=src, dest=f"{tmp_path}/dest", **wishes),
        Transfer(src=src, dest=f"{tmp_path}/dest", skip_downsamples=True, **wishes),
    ):
        assert [text for text in stage.plan().refusals if text.startswith(refusal)]
        with pytest.raises(InvalidParameter, match=refusal):
            stage.prepare()
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("level", [-1, 101, 1.5, "high"])
def test_a_level_of_no_encoding_is_refused_by_the_form(level):
    with pytest.raises(ValidationError, match="encoding_level"):
        Downsample(layer="/data/layer", encoding_level=level)


# What plans say


def notes_of(stage):
    return [note for note in stage.plan().notes if "lossy" in note or "artifacts" in note]


@pytest.mark.parametrize(
    ("encoding", "tuning"),
    [("raw", {}), ("png", {}), ("png", {"png_level": 0}), ("jxl", {"jxl_quality": 100})],
)
def test_nothing_is_said_of_losses_where_there_are_none(tmp_path, encoding, tuning):
    src = write(tmp_path / "src", encoding, tuning)
    assert notes_of(Downsample(layer=src)) == []
    assert notes_of(Transfer(src=src, dest=f"{tmp_path}/dest", chunk_size=(8, 8, 8))) == []


@pytest.mark.parametrize(
    ("encoding", "tuning", "named"),
    [
        ("jpeg", {}, "jpeg (quality 85)"),
        ("jpeg", {"jpeg_quality": 100}, "jpeg (quality 100)"),
        ("jxl", {}, "jxl (quality 85)"),
        ("jxl", {"jxl_quality": 99}, "jxl (quality 99)"),
    ],
)
def test_what_was_lost_and_what_is_lost_again_is_said(tmp_path, encoding, tuning, named):
    src = write(tmp_path / "src", encoding, tuning)
    carry_over = f"8_8_40 is stored as lossy {named}: its compression artifacts carry over"
    again = f"voxels are encoded again, as {named}, which is lossy: more detail is lost"
    dest = f"{tmp_path}/dest"
    assert notes_of(Downsample(layer=src)) == [carry_over, again]
    assert notes_of(Transfer(src=src, dest=dest, chunk_size=(8, 8, 8))) == [carry_over, again]
    assert notes_of(Transfer(src=src, dest=dest, encoding="png")) == [carry_over]
    assert notes_of(Transfer(src=src, dest=dest, skip_downsamples=True)) == []  # copies


def test_where_a_lossless_layer_becomes_lossy_is_said(tmp_path):
    src = write(tmp_path / "src")
    np.save(tmp_path / "stack.npy", greys())
    lost = "voxels are encoded as jpeg (quality 50), which is lossy: detail is lost; png, or jxl "
    lost += "with an encoding_level of 100, keeps every voxel"
    wishes = {"encoding": "jpeg", "encoding_level": 50}
    dest = f"{tmp_path}/dest"
    ingest = Ingest(
        source=f"{tmp_path}/stack.npy",
        dest=dest,
        resolution=(8, 8, 40),
        axes="xyz",
        **wishes,
    )
    for stage in (
        Downsample(layer=src, **wishes),
        Transfer(src=src, dest=dest, **wishes),
        ingest,
    ):
        assert notes_of(stage) == [lost]
    complete(ingest)
    assert {tuple(tuning.items()) for tuning in tunings(tmp_path / "dest")} == {
        (("jpeg_quality", 50),)
    }


def test_affinities_become_lossless_jxl_where_that_is_asked_for(tmp_path):
    values = np.random.default_rng(4).random((33, 17, 9, 3)).astype(np.float32)
    src = write_layer(tmp_path / "src", np.asfortranarray(values), LayerSpec("affinities"))
    wishes = {"encoding": "jxl", "encoding_level": 100, "max_mips": 1}
    stage = QuantizeAffinities(src=src, dest=f"{tmp_path}/dest", **wishes)
    assert notes_of(stage) == []
    complete(stage)
    assert tunings(tmp_path / "dest") == [{"jxl_quality": 100}] * 2
    expected = (values[..., :1] * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path / "dest", 0), expected)


def test_the_plan_names_quality_and_level_of_what_is_written(tmp_path):
    src = write_layer(tmp_path / "src", random_voxels(SIZE))
    for encoding, level, named in (
        ("jpeg", 7, "jpeg (quality 7)"),
        ("jxl", 100, "lossless jxl"),
        ("png", None, "png (level 9)"),
        ("raw", None, "raw"),
    ):
        stage = Downsample(layer=src, num_mips=1, encoding=encoding, encoding_level=level)
        assert stage.plan().outputs[0].endswith(f", {named}")
