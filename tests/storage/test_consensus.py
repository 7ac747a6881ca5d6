"""Volume maps and consensus: what is read from them, and what is refused by name."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.consensus import Consensus
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.testing.strategies import boxes

VOLUMES = {"0-8_0-8_0-8": 1, "8-16_0-8_0-8": 70_000}
CELLS = {"1": {"45": [7, 12], "46": [65535]}, "70000": {"45": [1]}}


@pytest.fixture
def open_maps(tmp_path):
    def write_and_open(volumes=VOLUMES, cells=CELLS):
        for name, content in (("volumes", volumes), ("cells", cells)):
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            (tmp_path / f"{name}.json").write_bytes(text)
        return Consensus.open(f"file://{tmp_path}/volumes.json", f"file://{tmp_path}/cells.json")

    return write_and_open


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_a_table_has_the_cell_of_each_segment_or_a_label_of_its_own(open_maps, dtype):
    table = open_maps().table(1, dtype)
    expected = np.arange(65536, dtype=dtype) + 65536
    expected[[0, 7, 12, 65535]] = 0, 45, 45, 46
    np.testing.assert_array_equal(table, expected)
    assert table.dtype == dtype


def test_a_volume_without_agreement_keeps_its_segments_apart(open_maps):
    table = open_maps(cells={}).table(70_000, "uint64")
    assert table[[0, 1, 65535]].tolist() == [0, (70_000 << 16) + 1, (70_000 << 16) + 65535]


def test_cells_above_2_to_the_53_are_exact(open_maps):
    consensus = open_maps(cells={"1": {str(2**64 - 1): [5], str(2**53 + 1): [6]}})
    assert consensus.table(1, "uint64")[[5, 6]].tolist() == [2**64 - 1, 2**53 + 1]
    assert consensus.largest_label == 2**64 - 1


def test_the_largest_label_is_that_of_a_segment_or_of_a_cell(open_maps):
    assert open_maps().largest_label == (70_000 << 16) + 65535
    assert open_maps(volumes={"0-8_0-8_0-8": 1}).largest_label == (1 << 16) + 65535


def test_the_content_is_that_of_both_files(open_maps, tmp_path):
    hashes = [
        hashlib.sha256((tmp_path / f"{name}.json").read_bytes()).hexdigest()
        for name in ("volumes", "cells")
        if open_maps()
    ]
    assert open_maps().content == "sha256:{} sha256:{}".format(*hashes)
    assert open_maps(cells={}).content != open_maps().content


def test_maps_are_read_from_buckets_compressed_too(open_maps):
    bucket = open_folder("mem://consensus/maps")
    import gzip

    bucket.write("v", StoredFile(gzip.compress(json.dumps(VOLUMES).encode()), "gzip"))
    bucket.write("c", StoredFile(json.dumps(CELLS).encode()))
    assert Consensus.open(f"{bucket.url}/v", f"{bucket.url}/c").volumes == open_maps().volumes


def test_maps_of_one_name_never_meet(tmp_path):
    """Igneous keeps maps by the name of their file alone."""
    found = []
    for folder, volume in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "map.json").write_text(json.dumps({"0-1_0-1_0-1": volume}))
        url = f"file://{tmp_path}/{folder}/map.json"
        (tmp_path / "none.json").write_text("{}")
        found += Consensus.open(url, f"file://{tmp_path}/none.json").volumes.values()
    assert found == [1, 2]


def pairs(found):
    return {frozenset(pair) for pair in found}


@given(st.lists(boxes(12, 10), min_size=1, max_size=12, unique=True), boxes(12, 10))
@settings(deadline=None)
def test_overlaps_are_those_of_each_pair_of_boxes(volumes, box):
    consensus = Consensus({volume: i for i, volume in enumerate(volumes)}, {}, "")
    overlaps = pairs((a, b) for a in volumes for b in volumes if a != b and a.intersection(b))
    assert pairs(consensus._overlapping()) == overlaps
    touched = {volume for volume in volumes if volume.intersection(box)}
    assert {volume for volume, _ in consensus.overlapping(box)} == touched


@pytest.mark.parametrize(
    ("volumes", "named"),
    [
        (b"", "Expecting value"),
        (b"[]", "no object"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "decode"),
        ({}, "no volumes"),
        ({"0-8_0-8": 1}, "not a box"),
        ({"0-8_0-8_8-8": 1}, "holds no voxels"),
        ({"0-9999999999999999999_0-8_0-8": 1}, "beyond"),
        ({"0-8_0-8_0-8": -1}, "number -1"),
        ({"0-8_0-8_0-8": 2**48}, "number 281474976710656"),
        ({"0-8_0-8_0-8": 1.5}, "number 1.5"),
        ({"0-8_0-8_0-8": True}, "number True"),
        ({"0-8_0-8_0-8": "x"}, "number 'x'"),
        ({"0-8_0-8_0-8": None}, "number None"),
        (b'{"0-8_0-8_0-8": 1, "0-8_0-8_0-8": 2}', "comes twice"),
        ({"0-8_0-8_0-8": 1, "7-9_7-9_7-9": 2}, "overlap"),
    ],
)
def test_a_volume_map_that_makes_no_sense_is_refused_by_name(open_maps, volumes, named):
    with pytest.raises(InvalidParameter, match=rf"volumes\.json: .*{named}"):
        open_maps(volumes=volumes)


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        (b"{", "Expecting"),
        (b"7", "no object"),
        ({"x": {}}, "volume 'x'"),
        ({"1": [7]}, "volume '1'"),
        (b'{"1": {"45": [7]}, "01": {}}', "volume '01'"),
        ({"1": {"0": [7]}}, "cell '0'"),
        ({"1": {"-1": [7]}}, "cell '-1'"),
        ({"1": {str(2**64): [7]}}, "cell '18446744073709551616'"),
        ({"1": {"45": 7}}, "cell '45'"),
        ({"1": {"45": [0]}}, "segment 0"),
        ({"1": {"45": [65536]}}, "segment 65536"),
        ({"1": {"45": [7.0]}}, "segment 7.0"),
        ({"1": {"45": [[7]]}}, r"segment \[7\]"),
        ({"1": {"45": [7], "46": [7]}}, "segment 7 of volume 1 is in two cells, 45 and 46"),
        (b'{"1": {"45": [7], "45": [8]}}', "'45' comes twice"),
    ],
)
def test_a_consensus_that_makes_no_sense_is_refused_by_name(open_maps, cells, named):
    with pytest.raises(InvalidParameter, match=rf"cells\.json: .*{named}"):
        open_maps(cells=cells)


def test_absent_maps_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidParameter, match=r"nothing\.json is not there"):
        Consensus.open(f"file://{tmp_path}/nothing.json", f"file://{tmp_path}/nothing.json")


def test_numbers_may_be_written_as_text(open_maps):
    consensus = open_maps({"0-8_0-8_0-8": "1"}, {"1": {"45": ["7"]}})
    assert consensus.volumes == {BoundingBox.parse("0-8_0-8_0-8"): 1}
    assert consensus.cells == {1: {7: 45}}


def test_cells_with_the_label_of_another_segment_are_found(open_maps):
    own, other = (1 << 16) + 7, (1 << 16) + 9
    consensus = open_maps(cells={"1": {str(own): [7], str(other): [8], "45": [3]}})
    assert list(consensus.ambiguous()) == [(other, 1, 9)]
