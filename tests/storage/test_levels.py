"""Levels files: Igneous' keys, read and judged; a folder of thousands is listed, not read."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.errors import InvalidLevels
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.storage.info import Info
from igneous_airflow.storage.levels import Levels, LevelsFolder, grey_problems, named


@pytest.fixture(params=["file", "mem"])
def levels(request, tmp_path):
    """The levels of mip 2 of a uint8 layer."""
    url = f"{request.param}://{tmp_path}/layer"
    yield LevelsFolder(url, 2, "uint8")
    LevelsFolder(url, 2, "uint8").folder.delete_folder("levels")


def made(bins=256, value=3):
    return Levels(np.full(bins, value), (300, 200, 1), 1, 0.25)


def put(levels, z, content, compression=""):
    levels.folder.write(f"levels/2/{z}", StoredFile(content, compression))


def test_a_file_has_the_keys_and_the_place_that_igneous_reads(tmp_path):
    levels = LevelsFolder(f"file://{tmp_path}", 2, "uint8")
    size = levels.write(-7, made())
    text = (tmp_path / "levels/2/-7").read_bytes()
    assert len(text) == size
    assert json.loads(text) == {
        "levels": [3] * 256,
        "patch_size": [300, 200, 1],
        "num_patches": 1,
        "coverage_ratio": 0.25,
    }


def test_what_was_written_is_read(levels):
    for z in (-7, 0, 12):
        levels.write(z, made(value=z + 9))
    assert set(levels.sizes()) == {-7, 0, 12}
    for z, found in levels.read_all([12, -7]):
        np.testing.assert_array_equal(found.counts, z + 9)
        assert found.counts.dtype == np.int64
        assert (found.patch_size, found.num_patches, found.coverage_ratio) == (
            (300, 200, 1),
            1,
            0.25,
        )
    assert list(levels.problems([-7, 0, 12])) == []


def test_files_of_others_in_the_folder_are_let_be(levels):
    put(levels, "README", b"x")
    levels.write(4, made())
    assert set(levels.sizes()) == {4}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no",
        b"[1, 2]",
        b"{}",
        b'{"levels": 7}',
        b'{"levels": [[1], [2]]}',
        b'{"levels": [1.5, 2]}',
        b'{"levels": [-1, 2]}',
        b'{"levels": ["a"]}',
        b'{"levels": [1, 2], "patch_size": "wide"}',
        b"\xff\xfe",
        json.dumps({"levels": [2**70] * 256}).encode(),
    ],
)
def test_a_broken_file_is_named_with_the_way_out(levels, content):
    put(levels, 3, content)
    with pytest.raises(InvalidLevels, match=r"levels/2/3 .*run luminance_levels"):
        levels.read(3)
    if len(content) < 512:  # which no 256 numbers are; else only the task finds out
        assert "levels/2/3 cannot be read" in "".join(levels.problems([3]))


def test_files_without_the_other_keys_and_compressed_ones_are_read(levels):
    text = json.dumps({"levels": [5] * 256}).encode()
    put(levels, 3, gzip.compress(text), "gzip")
    np.testing.assert_array_equal(levels.read(3).counts, 5)
    assert list(levels.problems([3])) == []


def test_a_missing_file_is_named(levels):
    with pytest.raises(InvalidLevels, match="levels/2/9 is missing: run luminance_levels"):
        levels.read(9)


@pytest.mark.parametrize("value", [0, 10**9])
@pytest.mark.parametrize(("own", "other"), [("uint8", "uint16"), ("uint16", "uint8")])
def test_levels_of_another_bit_depth_are_refused_by_section(tmp_path, own, other, value):
    url = f"file://{tmp_path}"
    levels, wrong = LevelsFolder(url, 0, own), LevelsFolder(url, 0, other)
    for z in range(20):
        (wrong if z in (4, 8, 9) else levels).write(
            z, made((wrong if z in (4, 8, 9) else levels).bins, value)
        )
    (problem,) = levels.problems(range(20))
    assert "levels/0/4 has" in problem
    assert problem.endswith("so it seems with sections 8 to 9")
    with pytest.raises(InvalidLevels, match="counted on another layer"):
        levels.read(8)
    assert list(levels.problems([0, 1, 2, 3, 5, 6, 7, 10])) == []


def test_missing_sections_are_named(levels):
    levels.write(5, made())
    (problem,) = levels.problems(range(-2, 9))
    assert "those of sections -2 to 4, 6 to 8 are missing in" in problem
    assert "run luminance_levels" in problem
    (problem,) = levels.problems([7])
    assert "there are none in" in problem


def test_a_thousand_files_are_listed_and_not_read(levels, monkeypatch):
    for z in range(1000):
        levels.write(z, made())
    monkeypatch.setattr(LevelsFolder, "read", None)
    assert list(levels.problems(range(1000))) == []


@given(st.sets(st.integers(-50, 50), min_size=1))
def test_sections_are_named_in_ranges(sections):
    text = named(sorted(sections))
    words = text.removeprefix("sections ").removeprefix("section ").partition(" and ")
    low_high = [list(map(int, word.split(" to "))) for word in words[0].split(", ")]
    told = {z for part in low_high for z in range(part[0], part[-1] + 1)}
    left = int(words[2].removesuffix(" more") or 0)
    assert told <= sections
    assert len(told) + left == len(sections)
    assert left == 0 or len(low_high) == 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"data_type": "uint16"}, None),
        ({"data_type": "int16"}, "holds int16"),
        ({"data_type": "int8"}, "holds int8"),
        ({"data_type": "uint32"}, "holds uint32"),
        ({"data_type": "float32"}, "holds float32"),
        ({"num_channels": 3}, "has 3 channels"),
        ({"type": "segmentation"}, "values are labels"),
    ],
    ids=str,
)
def test_only_grey_values_have_levels(changes, reason):
    info = Info({"data_type": "uint8", "num_channels": 1, "type": "image", "scales": []} | changes)
    problems = list(grey_problems(info))
    assert [reason in problem for problem in problems] == [True] * bool(reason)
