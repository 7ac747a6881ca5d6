"""Levels and contrast from the command line, and the picture of the histograms."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igneous_airflow.cli.histograms import Histograms, draw_histograms
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.histogram import clip_values
from igneous_airflow.storage.levels import Levels, LevelsFolder
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_cloudvolume,
    write_layer,
)

BLACK_POINT, WHITE_POINT = (31, 95, 191), (217, 96, 26)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A layer of five sections whose levels have been counted."""
    path = tmp_path / "image"
    write_layer(path, random_voxels(Vec3(40, 30, 5)), LayerSpec(voxel_offset=(0, 0, -2)))
    return path


def count(cli, image: Path, *options: str) -> None:
    answer = cli("luminance-levels", str(image), "--processes", "1", *options)
    assert answer.code == 0, answer.err


def rows_of(pixels, colour) -> set[int]:
    return set(np.flatnonzero((pixels == colour).all(axis=2).any(axis=1)).tolist())


def test_levels_then_contrast(cli, image: Path, tmp_path: Path):
    """Limits are numbers, and the task's shape goes by the chunks: both fail in Igneous."""
    count(cli, image, "--coverage-factor", "1", "--levels-path", str(tmp_path / "levels"))
    answer = cli(
        *("contrast-normalization", str(image), str(tmp_path / "dest"), "--processes", "1"),
        *("--levels-path", str(tmp_path / "levels"), "--clip-fraction", "0.05,0.1"),
        *("--minval", "10", "--maxval", "240"),
    )
    assert answer.code == 0, answer.err
    result = read_with_cloudvolume(tmp_path / "dest", 0)
    assert (result.min(), result.max()) == (10, 240)
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    assert provenance["processing"][0]["method"]["levels_path"] == f"file://{tmp_path}/levels"


def test_contrast_without_levels_is_refused_before_anything_is_written(
    cli, image: Path, tmp_path: Path
):
    answer = cli("contrast-normalization", str(image), str(tmp_path / "dest"))
    assert answer.code == 1
    assert "run luminance_levels on the layer at this mip first" in answer.err
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--clip-fraction", "2"), ("--scope", "all"), ("--minval", "x")]
)
def test_wrong_options_of_contrast_exit_2_by_name(cli, option: str, value: str):
    answer = cli("contrast-normalization", "/data/a", "/data/b", option, value)
    assert answer.code == 2
    assert option in answer.err


def test_a_picture_shows_every_section_and_some_of_them_apart(cli, image: Path, tmp_path: Path):
    count(cli, image)
    out = tmp_path / "levels.png"
    answer = cli("levels", "plot", str(image), "--out", str(out))
    assert answer.code == 0
    levels = LevelsFolder(f"file://{image}", 0, "uint8").read_all(range(-2, 3))
    low, high = zip(*(clip_values(found.counts, 0.01, 0.01) for _, found in levels), strict=True)

    def words(values):
        return f"{min(values)} to {max(values)}" if min(values) < max(values) else str(values[0])

    expected = f"wrote {out}: 5 sections, black up to {words(low)}, white from {words(high)}\n"
    assert answer.out == expected
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (330 + 2 * 240, 3 * 436, 3)
    for colour in (BLACK_POINT, WHITE_POINT):
        assert rows_of(pixels, colour)


def test_clip_points_are_drawn_where_they_are(tmp_path: Path):
    """In the overview a grey value lies as high as its share of all grey values."""
    folder = LevelsFolder(f"file://{tmp_path}", 0, "uint8")
    for z in range(3):
        counts = np.zeros(256, np.int64)
        counts[51 : 204 + 1] = 1
        folder.write(z, Levels(counts, (64, 64, 1), 1, 1.0))
    found = Histograms.read(folder, (0, 0.5), None, together=False)
    assert set(found.clips.values()) == {(50, 127)}
    overview = np.asarray(draw_histograms(found, "title"))[46:286, 60:1200]
    for value, colour in ((50, BLACK_POINT), (127, WHITE_POINT)):
        (first, *_, last) = sorted(rows_of(overview, colour))
        assert first - 1 <= 240 - (value + 0.5) * 240 / 256 <= last + 1
        assert last - first <= 2
    ink = overview[:, 5, 0]
    assert (ink[240 - 190 : 240 - 130] < 255).all()
    assert (ink[:40] == 255).all()


def test_global_scope_draws_the_sum_first(cli, image: Path, tmp_path: Path):
    count(cli, image)
    out = tmp_path / "levels.png"
    answer = cli("levels", "plot", str(image), "--scope", "global", "--z", "0,2", "--out", str(out))
    assert answer.code == 0
    assert np.asarray(Image.open(out)).shape[0] == 330 + 240  # three histograms
    total = sum(
        found.counts
        for _, found in LevelsFolder(f"file://{image}", 0, "uint8").read_all(range(-2, 3))
    )
    black, white = clip_values(total, 0.01, 0.01)
    assert answer.out.endswith(f"5 sections, black up to {black}, white from {white}\n")


@pytest.mark.parametrize("largest", [0, 4095, 65535])
def test_levels_of_uint16_are_shown_as_far_as_there_are_any(tmp_path: Path, largest: int):
    folder = LevelsFolder(f"file://{tmp_path}", 0, "uint16")
    counts = np.zeros(65536, np.int64)
    counts[[largest // 2, largest]] = 5, 1
    folder.write(0, Levels(counts, (64, 64, 1), 1, 1.0))
    found = Histograms.read(folder, (0.01, 0.01), [0], together=False)
    assert largest < found.end <= largest + 16
    draw_histograms(found, "title")
    heights = found.heights(0, 100)
    assert heights.sum() == (1.2 if largest else 0)


def test_thousands_of_sections_are_drawn_with_their_gaps(tmp_path: Path):
    folder = LevelsFolder(f"file://{tmp_path}", 0, "uint8")
    levels = Levels(np.full(256, 9), (64, 64, 1), 1, 1.0)
    for z in [*range(-1000, 0), *range(1000, 2000)]:
        folder.write(z, levels)
    found = Histograms.read(folder, (0.01, 0.01), None, together=False)
    assert found.curves == [-1000, -600, -200, 1199, 1599, 1999]
    assert len(found.counts) == 1001
    overview = np.asarray(draw_histograms(found, "title"))[50:280, 56:1280, 0]
    dark = (overview[0] < 255).tolist()
    assert all(dark[: 1224 // 3 - 9])
    assert not any(dark[1224 // 3 + 9 : 2 * 1224 // 3 - 9])
    assert all(dark[2 * 1224 // 3 + 9 :])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--z", "9"], 1, "there are no levels of section 9"),
        (["--mip", "1"], 1, "mips 0 to 0"),
        (["--levels-path", "elsewhere"], 1, "run luminance-levels first"),
        (["--z", "a"], 2, "write sections as 12,40,41"),
        (["--clip-fraction", "7"], 2, "write a number, or two"),
        (["--scope", "volume"], 2, "--scope"),
        (["--out", "/no/such/folder/x.png"], 1, "cannot write /no/such/folder/x.png"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cli, image: Path, options: list[str], code, words: str):
    count(cli, image)
    answer = cli("levels", "plot", str(image), *options)
    assert answer.code == code
    assert words in answer.err


def test_labels_have_no_levels_to_draw(cli, tmp_path: Path):
    layer = tmp_path / "labels"
    write_layer(layer, random_voxels(Vec3(8, 8, 8), "uint64"), LayerSpec("segmentation"))
    answer = cli("levels", "plot", str(layer))
    assert answer.code == 1
    assert "its values are labels" in answer.err
