"""Hypersquare ingest: its contract, and what arrives from cubes that an independent writer made."""

import io
import json
import lzma
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinybrain
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from igneous_airflow.errors import CorruptChunk, MissingChunk, PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.hypersquare_ingest import HypersquareIngest
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.testing.layers import (
    LayerSpec,
    assert_mips,
    info_of,
    random_voxels,
    read_with_cloudvolume,
    read_with_tensorstore,
    write_layer,
)
from igneous_airflow.testing.stages import (
    StageTests,
    complete,
    complete_whole_and_in_parts,
    peak_memory,
    snapshot,
)
from igneous_airflow.testing.strategies import sizes


@dataclass(frozen=True)
class Writing:
    """How a volume is cut into cubes, and how their metadata are written."""

    edge: int = 24
    overlap: int = 8
    corner: tuple[int, int, int] = (0, 0, 0)  # of the volume
    resolution: tuple[float, float, float] = (16, 16, 40)
    nanometres: bool = True
    type_key: str = "segment_id_type"


def write_cubes(folder, volume, writing=None):
    """Write a volume of labels as the Julia program did: numbered cubes, half an overlap wider.

    What is around the volume is noise, which nobody must ever see. Its lowest bytes are the greys.
    """
    how = writing or Writing()
    half, step = how.overlap // 2, how.edge - how.overlap
    noise = np.random.default_rng(9).integers(1, 200, np.array(volume.shape) + 2 * half)
    padded = noise.astype(volume.dtype)
    padded[tuple(slice(half, half + n) for n in volume.shape)] = volume
    starts = [range(0, n, step) for n in volume.shape]
    places = [(x, y, z) for z in starts[2] for y in starts[1] for x in starts[0]]
    for number, place in enumerate(places):
        cube = padded[tuple(slice(start, start + how.edge) for start in place)]
        low = [how.corner[i] + place[i] - half for i in range(3)]
        write_cube(folder / f"cube {number}", cube, low, how)
    return f"{folder}"


def write_cube(folder, cube, low, how):
    (folder / "jpg").mkdir(parents=True)
    scale = how.resolution if how.nanometres else (1, 1, 1)
    bits = cube.dtype.itemsize * 8
    high = [a + n for a, n in zip(low, cube.shape, strict=True)]
    metadata = {
        how.type_key: f"UInt{bits}",
        "affinity_type": "Float32",
        "bounding_box_type": "UInt16",
        "size_type": "UInt32",
        "image_type": "UInt8",
        "num_segments": int(cube.max()) + 1,
        "num_edges": 0,
        "chunk_voxel_dimensions": list(cube.shape),
        "voxel_resolution": list(how.resolution),
        "resolution_units": "nanometers",
        "physical_offset_min": [a * s for a, s in zip(low, scale, strict=True)],
        "physical_offset_max": [a * s for a, s in zip(high, scale, strict=True)],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    stream = lzma.compress(cube.tobytes("F"), format=lzma.FORMAT_ALONE, preset=0)
    (folder / "segmentation.lzma").write_bytes(stream)
    for z in range(cube.shape[2]):
        section = (cube[:, :, z] & 255).astype(np.uint8)
        Image.fromarray(section.T).save(folder / "jpg" / f"{z}.jpg", quality=100)


def labels_of(size, dtype="uint16"):
    return np.asfortranarray(random_voxels(size, dtype)[..., 0])


def smooth(size):
    """Greys that jpeg keeps nearly as they are."""
    x, y, z = np.ogrid[: size.x, : size.y, : size.z]
    return np.asfortranarray((100 + 50 * np.sin(x / 9) * np.cos(y / 11) + z).astype(np.uint16))


def ingest(tmp_path, **wishes):
    """The stage that reads `cubes` below a folder."""
    wishes = {"overlap": 8, "compress": "none", **wishes}
    return HypersquareIngest(src=f"{tmp_path}/cubes", dest=f"{tmp_path}/dest", **wishes)


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        write_cubes(tmp_path / "cubes", labels_of(Vec3(37, 20, 17)))
        return ingest(tmp_path, shape=(32, 32, 16), max_mips=1)


class TestContractOfImages(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        write_cubes(tmp_path / "cubes", labels_of(Vec3(37, 20, 17)))
        return ingest(tmp_path, content="image", shape=(32, 32, 16), max_mips=1)


@pytest.mark.parametrize("nanometres", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_labels_arrive_cropped_and_in_their_place(tmp_path, dtype, nanometres):
    """Igneous wrote cubes at their uncropped offset, and took nanometres for voxels."""
    volume = labels_of(Vec3(40, 32, 16), dtype)
    write_cubes(tmp_path / "cubes", volume, Writing(corner=(100, -7, 3), nanometres=nanometres))
    stage = ingest(tmp_path, max_mips=1)
    assert stage.plan().notes[0].endswith("nanometres" if nanometres else "voxels")
    complete(stage)
    mips = [volume, *tinybrain.downsample_segmentation(volume, (2, 2, 1), num_mips=1)]
    mips = [mip[..., None] for mip in mips]
    for read in (read_with_tensorstore, read_with_cloudvolume):
        assert_mips(tmp_path / "dest", mips, read=read)
    info = info_of(tmp_path / "dest")
    assert (info["data_type"], info["type"], info["num_channels"]) == (dtype, "segmentation", 1)
    scale = info["scales"][0]
    assert (scale["key"], scale["voxel_offset"]) == ("16_16_40", [100, -7, 3])
    assert (scale["size"], scale["chunk_sizes"]) == ([40, 32, 16], [[16, 16, 16]])


def test_the_cubes_of_e2198_give_chunks_of_56(tmp_path):
    """256 voxels with 32 in common leave 224, which is four chunks of 56."""
    from igneous_airflow.pyramid.cubes import CubeGrid
    from igneous_airflow.storage.hypersquare import Cube

    metadata = {
        "chunk_voxel_dimensions": [256, 256, 256],
        "voxel_resolution": [17, 17, 23],
        "physical_offset_min": [-16, -16, -16],
        "physical_offset_max": [240, 240, 240],
        "segment_id_type": "UInt16",
    }
    cube = Cube.parse(open_folder(f"file://{tmp_path}"), "x", json.dumps(metadata).encode())
    grid = CubeGrid([cube], 32).grid
    assert str(grid.box) == "0-224_0-224_0-224"
    (tmp_path / "cubes/a").mkdir(parents=True)
    (tmp_path / "cubes/a/metadata.json").write_text(json.dumps(metadata))
    stage = HypersquareIngest(src=f"{tmp_path}/cubes", dest=f"{tmp_path}/dest", max_mips=0)
    assert stage.plan().outputs == ("17_17_23: 224,224,224 voxels, chunks of 56,56,56, raw",)
    assert stage.plan().tasks == 1


def test_each_cube_is_decoded_once_where_it_holds_whole_chunks(tmp_path, monkeypatch):
    volume = labels_of(Vec3(64, 48, 32))
    write_cubes(tmp_path / "cubes", volume)
    decoded = []
    real = lzma.LZMADecompressor
    monkeypatch.setattr(lzma, "LZMADecompressor", lambda **how: (decoded.append(1), real(**how))[1])
    stage = ingest(tmp_path, shape=(32, 32, 16), max_mips=1, chunk_size=(8, 8, 8))
    complete(stage)
    assert len(decoded) == 4 * 3 * 2
    assert not any("decoded" in note for note in stage.plan().notes)
    assert_mips(
        tmp_path / "dest", [volume[..., None], *pool(volume[..., None], Vec3(2, 2, 1), 1, "mode")]
    )


@pytest.mark.parametrize("encoding", [None, "raw", "png"])
def test_sections_become_an_image_with_averaged_mips(tmp_path, encoding):
    volume = smooth(Vec3(40, 32, 16))
    write_cubes(tmp_path / "cubes", volume)
    stage = ingest(tmp_path, content="image", encoding=encoding, max_mips=2)
    complete(stage)
    info = info_of(tmp_path / "dest")
    assert (info["data_type"], info["type"]) == ("uint8", "image")
    assert {scale["encoding"] for scale in info["scales"]} == {encoding or "jpeg"}
    result = read_with_cloudvolume(tmp_path / "dest", 0)
    assert np.abs(result[..., 0].astype(int) - volume).max() <= (12 if encoding is None else 4)
    if encoding == "raw":
        averages = tinybrain.downsample_with_averaging(result, (2, 2, 1), num_mips=2)
        assert_mips(tmp_path / "dest", [result, *averages])


def test_a_section_is_read_exactly_as_its_jpeg_holds_it(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(16, 16, 16)), Writing(edge=24))
    complete(ingest(tmp_path, content="image", encoding="raw", max_mips=0))
    result = read_with_tensorstore(tmp_path / "dest", 0)
    for z in range(16):
        with Image.open(tmp_path / f"cubes/cube 0/jpg/{z + 4}.jpg") as picture:
            np.testing.assert_array_equal(result[:, :, z, 0], np.asarray(picture).T[4:20, 4:20])


@st.composite
def works(draw):
    """Draw a small volume, how it is cut into cubes, and how it is ingested."""
    overlap = draw(st.sampled_from([0, 2, 6]))
    edge = st.integers(3, 16)
    writing = Writing(
        edge=overlap + draw(st.integers(5, 20)),
        overlap=overlap,
        corner=draw(st.tuples(*[st.integers(-30, 30)] * 3)),
        nanometres=draw(st.booleans()),
        resolution=draw(st.sampled_from([(16, 16, 40), (4.6, 4.6, 45.5), (1, 1, 1)])),
    )
    wishes = {
        "overlap": overlap,
        "max_mips": draw(st.integers(0, 2)),
        "chunk_size": draw(st.none() | st.builds(Vec3, edge, edge, edge)),
        "voxel_offset": draw(st.none() | st.builds(Vec3, *[st.integers(-9, 9)] * 3)),
    }
    return labels_of(draw(sizes(33)), "uint32"), writing, wishes


@given(works(), st.integers(1, 3), st.randoms(), st.sampled_from(["segmentation", "image"]))
@settings(deadline=None, max_examples=25)
def test_the_result_does_not_depend_on_the_cut(work, blocks, random, content):
    volume, writing, wishes = work
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cubes(folder / "cubes", volume, writing)
        same = {"src": f"{folder}/cubes", "compress": "none", "content": content, **wishes}
        same["encoding"] = "raw"
        whole = HypersquareIngest(dest=f"{folder}/whole", **same)
        made = complete_whole_and_in_parts(whole, blocks, random)
        scales = info_of(made)["scales"]
        assert scales[0]["voxel_offset"] == list(wishes["voxel_offset"] or writing.corner)
        assert scales[0]["size"] == list(volume.shape)
        if content == "segmentation":
            labels = volume[..., None]
            mips = [labels, *pool(labels, Vec3(2, 2, 1), len(scales) - 1, "mode")]
            assert_mips(made, mips)


def test_the_other_key_of_the_label_type_is_read(tmp_path):
    volume = labels_of(Vec3(16, 16, 16), "uint32")
    write_cubes(tmp_path / "cubes", volume, Writing(type_key="segmentation_type"))
    complete(ingest(tmp_path, max_mips=0))
    assert_mips(tmp_path / "dest", [volume[..., None]])


def test_cubes_of_several_label_types_make_a_layer_of_the_largest(tmp_path):
    volume = labels_of(Vec3(32, 16, 16), "uint16") % 200
    write_cubes(tmp_path / "cubes", volume)
    small = tmp_path / "cubes/cube 0"
    with lzma.open(small / "segmentation.lzma") as stream:
        content = np.frombuffer(stream.read(), np.uint16).astype(np.uint8)
    packed = lzma.compress(content.tobytes(), format=lzma.FORMAT_ALONE)
    (small / "segmentation.lzma").write_bytes(packed)
    change_metadata(small, segment_id_type="UInt8")
    complete(ingest(tmp_path, max_mips=0))
    assert info_of(tmp_path / "dest")["data_type"] == "uint16"
    assert_mips(tmp_path / "dest", [volume[..., None]])


def test_cubes_in_a_bucket_are_ingested(tmp_path):
    volume = labels_of(Vec3(40, 20, 16))
    write_cubes(tmp_path / "cubes", volume)
    bucket = open_folder(f"mem://{tmp_path.name}/cubes")
    for name, content in snapshot(tmp_path / "cubes").items():
        bucket.write(name, StoredFile(content))
    stage = ingest(tmp_path, max_mips=0).model_copy(update={"src": bucket.url})
    complete(stage)
    assert_mips(tmp_path / "dest", [volume[..., None]])


def change_metadata(cube, **changes):
    data = json.loads((cube / "metadata.json").read_text()) | changes
    data = {key: value for key, value in data.items() if value is not None}
    (cube / "metadata.json").write_text(json.dumps(data))


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    with pytest.raises(ValueError, match=r".+"):
        stage.prepare()
    return "\n".join(refusals)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"chunk_voxel_dimensions": None}, "chunk_voxel_dimensions"),
        ({"chunk_voxel_dimensions": [24, 24]}, "three integers"),
        ({"chunk_voxel_dimensions": [24, 24, 0]}, "24,24,0"),
        ({"chunk_voxel_dimensions": [24, 24, 10.5]}, "three integers"),
        ({"voxel_resolution": [16, 16, 0]}, "voxel_resolution"),
        ({"voxel_resolution": "16"}, "ValueError"),
        ({"resolution_units": "furlongs"}, "furlongs"),
        ({"physical_offset_min": [0.5, 0, 0]}, "no whole number of voxels"),
        ({"physical_offset_min": [float("nan"), 0, 0]}, "ValueError"),
        ({"physical_offset_max": [0, 0]}, "ValueError"),
        ({"segment_id_type": "Float32"}, "Float32"),
        ({"segment_id_type": ["UInt8"]}, "TypeError"),
    ],
    ids=str,
)
def test_broken_metadata_are_named_with_the_file(tmp_path, changes, named):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    change_metadata(tmp_path / "cubes/cube 1", **changes)
    refusals = refusals_of(ingest(tmp_path))
    assert "cube 1/metadata.json is broken: " in refusals
    assert named in refusals


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'"a"', b"[" * 99_999], ids=range(7)
)
def test_metadata_that_are_none_are_named(tmp_path, content):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    (tmp_path / "cubes/cube 0/metadata.json").write_bytes(content)
    assert "cube 0/metadata.json is broken" in refusals_of(ingest(tmp_path))


def test_every_broken_cube_is_named(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(48, 16, 16)))
    for number in (0, 2):
        (tmp_path / f"cubes/cube {number}/metadata.json").write_text("{")
    with pytest.raises(PlanRefused, match=r"cube 0.*cube 2"):
        ingest(tmp_path).cells()


def test_labels_of_an_unknown_type_are_refused_but_not_for_the_image(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    change_metadata(tmp_path / "cubes/cube 1", segment_id_type=None)
    assert "cube 1 do not say what its labels are" in refusals_of(ingest(tmp_path))
    complete(ingest(tmp_path, content="image"))


def test_no_cubes_are_refused(tmp_path):
    assert "so that there are no cubes" in refusals_of(ingest(tmp_path))
    (tmp_path / "cubes/folder").mkdir(parents=True)
    assert "so that there are no cubes" in refusals_of(ingest(tmp_path))


def test_a_wrong_overlap_is_refused_with_the_likely_one(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(48, 32, 16)))
    for overlap in (0, 4, 10):
        refusals = refusals_of(ingest(tmp_path, overlap=overlap))
        assert "24 voxels long and begin every 16: set overlap to 8" in refusals
    assert "are all of cube cube 0" in refusals_of(ingest(tmp_path, overlap=24))


def test_an_odd_overlap_is_refused_by_the_form(tmp_path):
    with pytest.raises(ValidationError, match="multiple of 2"):
        ingest(tmp_path, overlap=7)


def test_cubes_that_lie_askew_or_in_one_place_are_refused(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(48, 16, 16)), Writing(nanometres=False))
    change_metadata(
        tmp_path / "cubes/cube 1",
        physical_offset_min=[13, -4, -4],
        physical_offset_max=[37, 20, 20],
    )
    assert "do not lie side by side" in refusals_of(ingest(tmp_path))
    assert "cube 1" in refusals_of(ingest(tmp_path))
    change_metadata(tmp_path / "cubes/cube 1", physical_offset_min=[-4, -4, -4])
    assert "cubes cube 0 and cube 1 are in the same place" in refusals_of(ingest(tmp_path))


def test_cubes_that_disagree_are_refused(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)), Writing(nanometres=False))
    change_metadata(tmp_path / "cubes/cube 1", voxel_resolution=[8, 8, 40])
    assert "do not agree on their resolution: cube 0 has (16" in refusals_of(ingest(tmp_path))


def test_cubes_of_other_units_than_their_neighbours_are_refused(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    change_metadata(
        tmp_path / "cubes/cube 1",
        physical_offset_min=[12, -4, -4],
        physical_offset_max=[36, 20, 20],
    )
    assert "cube 0 has nanometres, cube 1 has voxels" in refusals_of(ingest(tmp_path))


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


@pytest.mark.parametrize("content", ["segmentation", "image"])
def test_missing_cubes_are_named_by_the_plan_or_filled(tmp_path, content):
    volume = smooth(Vec3(48, 32, 16))
    write_cubes(tmp_path / "cubes", volume)
    remove(tmp_path / "cubes/cube 1")
    wishes = {"content": content, "encoding": "raw", "max_mips": 0}
    refusals = refusals_of(ingest(tmp_path, **wishes))
    assert "cubes are missing at 12-36_-4-20_-4-20: restore them, or set fill_missing" in refusals
    stage = ingest(tmp_path, fill_missing=True, background_color=7, **wishes)
    assert any("12-36_-4-20_-4-20: background is taken" in note for note in stage.plan().notes)
    complete(stage)
    result = read_with_tensorstore(tmp_path / "dest", 0)[..., 0]
    assert (result[16:32, :16] == 7).all()
    assert np.abs(result[:16].astype(int) - volume[:16]).max() <= 4
    assert np.abs(result[32:].astype(int) - volume[32:]).max() <= 4


def test_a_folder_without_metadata_is_named(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    (tmp_path / "cubes/notes").mkdir()
    assert "folders without metadata.json are no cubes: notes" in refusals_of(ingest(tmp_path))
    complete(ingest(tmp_path, fill_missing=True))


@pytest.mark.parametrize(
    ("content", "file"),
    [("segmentation", "segmentation.lzma"), ("image", "jpg/7.jpg")],
)
def test_missing_files_are_named_or_filled(tmp_path, content, file):
    volume = smooth(Vec3(32, 16, 16))
    write_cubes(tmp_path / "cubes", volume)
    (tmp_path / "cubes/cube 1" / file).unlink()
    wishes = {"content": content, "encoding": "raw", "max_mips": 0}
    with pytest.raises(MissingChunk, match=rf"cube 1/{file} is missing: .*fill_missing"):
        complete(ingest(tmp_path, **wishes))
    complete(ingest(tmp_path, fill_missing=True, **wishes))
    result = read_with_tensorstore(tmp_path / "dest", 0)[..., 0]
    hole = result[16:, :, 3] if content == "image" else result[16:]
    assert (hole == 0).all()
    assert (result[16:, :, 4] > 0).all() == (content == "image")
    assert (result[:16] > 0).all()


def squeezed(content, size):
    return lzma.compress(content[:size], format=lzma.FORMAT_ALONE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed, content: b"",
        lambda packed, content: packed[:-1],
        lambda packed, content: packed[: len(packed) // 2],
        lambda packed, content: b"\xff" * 100,
        lambda packed, content: squeezed(content, len(content) - 2),
        lambda packed, content: squeezed(content + b"\0", len(content) + 1),
    ],
    ids=["empty", "one byte less", "half", "nonsense", "too small", "too large"],
)
def test_damaged_labels_are_named_and_never_filled(tmp_path, damage):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    file = tmp_path / "cubes/cube 1/segmentation.lzma"
    packed = file.read_bytes()
    file.write_bytes(damage(packed, lzma.decompress(packed)))
    with pytest.raises(CorruptChunk, match=r"cube 1/segmentation.lzma is (cut off|damaged)"):
        complete(ingest(tmp_path, fill_missing=True))


def jpeg(size, mode="L"):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not a JPEG file"),
        (b"nonsense", "not a JPEG file"),
        (jpeg((24, 24))[:-100], "[Tt]runcated"),
        (jpeg((24, 24))[:-2], "truncated"),
        (jpeg((12, 48)), r"12 x 48 pixels .* 24 x 24"),
        (jpeg((24, 23)), r"24 x 23 pixels"),
        (jpeg((24, 24), "RGB"), "kind RGB"),
    ],
    ids=["empty", "nonsense", "half", "two bytes less", "turned", "too small", "colours"],
)
def test_damaged_sections_are_named_and_never_filled(tmp_path, content, named):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    (tmp_path / "cubes/cube 1/jpg/9.jpg").write_bytes(content)
    with pytest.raises(CorruptChunk, match=rf"cube 1/jpg/9.jpg cannot be used: .*{named}"):
        complete(ingest(tmp_path, content="image", fill_missing=True))


def test_a_destination_that_exists_keeps_its_info_or_is_refused(tmp_path):
    volume = labels_of(Vec3(32, 16, 16))
    write_cubes(tmp_path / "cubes", volume)
    there = LayerSpec("segmentation", (8, 16, 16), (-8, 0, 0), (16, 16, 40))
    write_layer(tmp_path / "dest", np.zeros((48, 16, 16, 1), np.uint16), there)
    complete(ingest(tmp_path, max_mips=0))
    scale = info_of(tmp_path / "dest")["scales"][0]
    assert (scale["chunk_sizes"], scale["size"]) == ([[8, 16, 16]], [48, 16, 16])
    result = read_with_tensorstore(tmp_path / "dest", 0)
    np.testing.assert_array_equal(result[8:40, :, :, 0], volume)
    assert "only parts of" in refusals_of(ingest(tmp_path, max_mips=0, voxel_offset=(1, 0, 0)))
    assert "holds uint16" in refusals_of(ingest(tmp_path, content="image", max_mips=0))


def test_the_source_stays_as_it_is_and_the_provenance_names_it(tmp_path):
    write_cubes(tmp_path / "cubes", labels_of(Vec3(32, 16, 16)))
    before = snapshot(tmp_path / "cubes")
    stage = ingest(tmp_path)
    complete(stage)
    assert snapshot(tmp_path / "cubes") == before
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    (entry,) = provenance["processing"]
    assert entry["method"] == {"task": "HypersquareIngestTask", **stage.parameters()}
    assert provenance["sources"] == [f"file://{tmp_path}/cubes"]


@pytest.mark.parametrize("content", ["segmentation", "image"])
def test_a_task_stays_within_the_memory_that_its_plan_names(tmp_path, content):
    writing = Writing(edge=72, overlap=8)
    write_cubes(tmp_path / "cubes", labels_of(Vec3(128, 64, 64)), writing)
    stage = ingest(tmp_path, content=content, encoding="raw", max_mips=2)
    plan = stage.plan().require_accepted()
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < plan.memory + 1_000_000


@pytest.mark.real_data
def test_cubes_of_a_segmentation_of_neurons(tmp_path, neurons):
    labels = np.unique(neurons[100:196, 200:264, 300:332], return_inverse=True)[1]
    labels = np.asfortranarray(labels.reshape(96, 64, 32), np.uint32)
    writing = Writing(edge=40, overlap=8, corner=(-16, 32, 7))
    write_cubes(tmp_path / "cubes", labels, writing)
    stage = ingest(tmp_path, max_mips=1, encoding="compressed_segmentation")
    complete(stage)
    mips = [labels[..., None], *pool(labels[..., None], Vec3(2, 2, 1), 1, "mode")]
    assert_mips(tmp_path / "dest", mips, read=read_with_cloudvolume)
