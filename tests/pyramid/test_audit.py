"""What is there of a stage's chunks, and which cells lack some."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.pyramid.audit import ChunkAudit
from igneous_airflow.storage.files import FileEntry, StoredFile
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

CELL = Vec3(16, 16, 8)


@pytest.fixture
def layer(tmp_path) -> Layer:
    """A layer of 5 x 4 x 2 chunks, in 3 x 2 x 2 cells of 2 x 2 x 1 chunks."""
    spec = LayerSpec(voxel_offset=(-3, 5, 1))
    return Layer.open(write_layer(tmp_path, random_voxels(Vec3(33, 32, 9)), spec))


def audited(layer: Layer, region: BoundingBox | None = None) -> ChunkAudit:
    (scale,) = layer.info.scales
    return ChunkAudit(layer, Grid(region or scale.bounds, CELL), lambda box: [(scale, box)])


def absent(audit: ChunkAudit, cells: int) -> list[tuple[int, list[str]]]:
    """The cells that lack files, in order, each with the files' names."""
    found = [
        (cell, [f.name for f in audit.files_of(cell) if f.size is None]) for cell in range(cells)
    ]
    return [(cell, names) for cell, names in found if names]


def test_sizes_are_those_of_the_stored_files(layer):
    (scale,) = layer.info.scales
    sizes = {f.name: f.size for cell in range(12) for f in audited(layer).files_of(cell)}
    stored = {f"{scale.key}/{name}": size for name, size in layer.folder.sizes(scale.key)}
    assert sizes == stored
    assert min(sizes.values()) > 0


def test_a_scale_that_is_complete_lacks_nothing(layer):
    audit = audited(layer)
    assert audit.outputs == {"8_8_40": 40}
    assert absent(audit, 12) == []


def test_chunks_that_are_lost_are_named_with_their_cell(layer):
    (scale,) = layer.info.scales
    chunks = list(scale.chunks)
    for lost in (chunks[0], chunks[6], chunks[-1]):
        layer.delete_chunk(scale, lost)
    audit = audited(layer)
    assert audit.outputs == {"8_8_40": 37}
    assert absent(audit, 12) == [
        (0, [f"8_8_40/{chunks[0]}", f"8_8_40/{chunks[6]}"]),
        (11, [f"8_8_40/{chunks[-1]}"]),
    ]


def test_only_the_region_is_looked_at(layer):
    (scale,) = layer.info.scales
    first, *_, last = scale.chunks
    layer.delete_chunk(scale, first)
    region = BoundingBox(first.min, first.min + CELL)
    assert audited(layer, region).outputs == {"8_8_40": 3}
    assert absent(audited(layer, region), 1) == [(0, [f"8_8_40/{first}"])]
    assert audited(layer, last).outputs == {"8_8_40": 1}
    assert absent(audited(layer, last), 1) == []


def test_a_scale_without_a_folder_lacks_everything(layer):
    (scale,) = layer.info.scales
    layer.folder.delete_folder(scale.key)
    audit = audited(layer)
    assert audit.outputs == {"8_8_40": 0}
    lacking = absent(audit, 12)
    assert [cell for cell, _ in lacking] == list(range(12))
    names = [name for _, names in lacking for name in names]
    assert sorted(names) == sorted(f"8_8_40/{chunk}" for chunk in scale.chunks)


def test_files_of_others_are_no_chunks(layer):
    (scale,) = layer.info.scales
    chunk = scale.chunks[7]
    layer.delete_chunk(scale, chunk)
    for name in ("notes.txt", f"{chunk}.tmp", "0-8_0-8_0-8", f"0{chunk}", "9-8_0-8_0-8"):
        layer.folder.write(f"{scale.key}/{name}", StoredFile(b""))
    assert audited(layer).outputs == {"8_8_40": 39}


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_absent_chunks_are_those_that_are_not_there(data):
    size = Vec3(*(data.draw(st.integers(1, 40)) for _ in range(3)))
    scale_chunk = Vec3(*(data.draw(st.integers(3, 9)) for _ in range(3)))
    cell = scale_chunk * Vec3(*(data.draw(st.integers(1, 3)) for _ in range(3)))
    bounds = BoundingBox.at(Vec3(-5, 0, 7), size)
    chunks = list(Grid(bounds, scale_chunk))
    lost = set(data.draw(st.lists(st.sampled_from(chunks))))

    class Scale:
        key, chunk_size = "s", scale_chunk

    class Folder:
        def entries(self, key: str) -> Iterator[FileEntry]:
            return (FileEntry(str(chunk), 7) for chunk in chunks if chunk not in lost)

    class Lost:
        folder = Folder()

        def stored_range_of(self, *_: object) -> tuple[int, int]:
            return 1, 9

    cells = Grid(bounds, cell)
    audit = ChunkAudit(Lost(), cells, lambda box: [(Scale, box)])
    assert audit.outputs == {"s": len(chunks) - len(lost)}
    found = [
        (number, BoundingBox.parse(name.removeprefix("s/")))
        for number, names in absent(audit, len(cells))
        for name in names
    ]
    assert {chunk for _, chunk in found} == lost
    assert len(found) == len(lost)
    assert all(cells[number].contains(chunk) for number, chunk in found)
    assert [number for number, _ in found] == sorted(number for number, _ in found)
