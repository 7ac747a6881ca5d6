"""Links and names in sources lead nowhere else, and damaged headers are typed errors."""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from h5py import h5s
from PIL import Image

from igneous_airflow.errors import InvalidParameter, PermanentError
from igneous_airflow.sources.opening import Reading, find_source, open_source
from igneous_airflow.stages.hypersquare_ingest import HypersquareIngest
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.hdf5_chunks import fletcher32
from igneous_airflow.storage.label_map import LabelMap
from igneous_airflow.storage.overlap import Overlap

VALUES = np.arange(4 * 8 * 9, dtype="u1").reshape(4, 8, 9)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "data-private").mkdir()
    return tmp_path / "data-private"


def ingest(source: object, **wishes: object) -> Ingest:
    options = {"resolution": (1, 1, 1), "dest": f"{Path(str(source)).parent}-dest"} | wishes
    return Ingest(source=str(source), **options)


def refusals(stage: Ingest | HypersquareIngest) -> str:
    return "; ".join(stage.plan().refusals)


def read(url: str, axes: str | None = "zyx") -> np.ndarray:
    source = open_source(find_source(url), Reading(axes=axes))
    with Overlap(1) as overlap:
        ((_, voxels),) = source.parts(source.bounds, overlap)
    return voxels[..., 0].transpose(2, 1, 0)


def png(path: Path, value: int) -> None:
    Image.new("L", (9, 8), value).save(path)


def tif(path: Path, value: int) -> None:
    tifffile.imwrite(path, np.full((8, 9), value, "u1"))


def build(path: Path, value: int) -> None:
    stream = io.BytesIO()
    np.save(stream, np.full((9, 8, 1), value, "u1"))
    path.write_bytes(zlib.compress(stream.getvalue()))


KINDS: dict[str, tuple[Callable[[Path, int], None], Callable[[int], str]]] = {
    "PNG": (png, lambda z: f"{z}.png"),
    "TIFF": (tif, lambda z: f"{z}.tif"),
    "build chunks": (build, lambda z: f"0-9_0-8_{z}-{z + 1}"),
}


@pytest.mark.parametrize("pattern", ["", "/*"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_links_out_of_the_folder_are_refused_by_name(
    data: Path, outside: Path, kind: str, pattern: str
) -> None:
    write, name = KINDS[kind]
    for z in range(3):
        write(data / name(z), z)
    secret = outside / name(7)
    write(secret, 99)
    for z in (1, 2):
        (data / name(z)).unlink()
    (data / name(1)).symlink_to(secret)
    (data / name(2)).symlink_to(f"../data-private/{name(7)}")
    if pattern and kind == "build chunks":
        pattern = ""
    stage = ingest(f"{data}{pattern}")
    said = refusals(stage)
    assert f"links lead out of file://{data}: {name(1)} -> {secret}, {name(2)} -> {secret}" in said
    with pytest.raises(PermanentError, match="links lead out of"):
        stage.cells()


def test_links_within_the_folder_and_to_it_are_followed(tmp_path: Path, data: Path) -> None:
    (data / "raw").mkdir()
    for z in range(3):
        png(data / "raw" / f"{z}.png", z + 1)
        (data / f"{z}.png").symlink_to(f"raw/{z}.png")
    (tmp_path / "linked").symlink_to(data)
    (tmp_path / "one.png").symlink_to(data / "1.png")
    for source in (data, tmp_path / "linked", tmp_path / "linked" / "*.png"):
        assert read(f"file://{source}", None)[:, 0, 0].tolist() == [1, 2, 3]
    assert read(f"file://{tmp_path}/one.png", None).max() == 2


# Zarr


def zarr_3(path: Path, **options: object) -> None:
    zarr.create_array(path, data=VALUES, chunks=(2, 8, 9), **options)


def link_to(path: Path, target: Path) -> None:
    """Move what is there to another place, and leave a link."""
    shutil.move(path, target)
    path.symlink_to(target)


@pytest.mark.parametrize("part", ["c/1/0/0", "c/1", "c", "zarr.json"])
def test_parts_of_a_zarr_that_are_links_out_of_it_are_refused(
    data: Path, outside: Path, part: str
) -> None:
    zarr_3(data / "v")
    link_to(data / "v" / part, outside / "moved")
    url = f"file://{data}/v"
    with pytest.raises(PermanentError, match=rf"links lead out of {url}: .* -> {outside}/moved"):
        read(url)


def test_links_within_a_zarr_are_followed(data: Path) -> None:
    zarr_3(data / "v")
    link_to(data / "v" / "c", data / "v" / "chunks")
    np.testing.assert_array_equal(read(f"file://{data}/v"), VALUES)


@pytest.mark.parametrize("path", ["../../secret", "../secret", "/../secret", "a/../../../secret"])
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_an_image_of_ome_zarr_is_not_looked_for_outside(
    tmp_path: Path, data: Path, place: str, path: str
) -> None:
    zarr_3(data / "secret")
    zarr_3(tmp_path / "secret")
    group = zarr.open_group(data / "v", mode="w", zarr_format=2)
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": ["z", "y", "x"], "datasets": [{"path": path}]}
    ]
    url = f"file://{data}/v"
    if place == "bucket":
        url = f"mem://{tmp_path.name}/data/v"
        for file in filter(Path.is_file, tmp_path.rglob("*")):
            content = StoredFile(file.read_bytes())
            open_folder(f"mem://{tmp_path.name}").write(str(file.relative_to(tmp_path)), content)
    with pytest.raises(PermanentError):
        read(url)
    for dataset in (path, "../../data/secret", "..", "../v/../secret"):
        with pytest.raises(PermanentError):
            open_source(find_source(url), Reading(axes="zyx", dataset=dataset))


# OME-TIFF


@pytest.mark.parametrize(
    "name", ["../../data-private/x.ome.tif", "/etc/passwd", "other.ome.tif", "http://host/x.tif"]
)
def test_files_that_ome_metadata_name_are_named_and_not_opened(
    data: Path, outside: Path, name: str
) -> None:
    tifffile.imwrite(data / "a.ome.tif", VALUES, ome=True, metadata={"axes": "ZYX"})
    for other in (outside / "x.ome.tif", data / "other.ome.tif"):
        tifffile.imwrite(other, VALUES, ome=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(data / "a.ome.tif", mode="r+b") as file:
        text = file.ome_metadata.replace(
            'PlaneCount="4"/>',
            f'PlaneCount="2"/><TiffData FirstZ="2" PlaneCount="2"><UUID FileName="{name}">'
            "urn:uuid:1</UUID></TiffData>",
        )
        assert name in text
        file.pages.first.tags["ImageDescription"].overwrite(text)
    said = refusals(ingest(data / "a.ome.tif"))
    assert f"planes lie in {name}, which are not opened" in said


def test_a_file_of_several_is_read_as_the_section_that_it_holds(data: Path) -> None:
    for z in range(2):
        tifffile.imwrite(data / f"{z}.ome.tif", VALUES[z], ome=True, metadata={"axes": "YX"})
        with tifffile.TiffFile(data / f"{z}.ome.tif", mode="r+b") as file:
            other = f'PlaneCount="1"><UUID FileName="{1 - z}.ome.tif">urn:uuid:1</UUID></TiffData>'
            text = file.ome_metadata.replace('PlaneCount="1"/>', other)
            assert "urn:uuid:1" in text
            file.pages.first.tags["ImageDescription"].overwrite(text)
    np.testing.assert_array_equal(read(f"file://{data}", None), VALUES[:2])


def test_metadata_with_entities_are_refused(data: Path) -> None:
    tifffile.imwrite(data / "a.tif", VALUES, ome=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(data / "a.tif", mode="r+b") as file:
        text = file.ome_metadata.replace("<OME", '<!DOCTYPE x [<!ENTITY a "b">]><OME')
        file.pages.first.tags["ImageDescription"].overwrite(text)
    assert "its OME metadata have a DOCTYPE" in refusals(ingest(data / "a.tif"))


# headers


def npy_of(shape: str, dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + bytes(64)


@pytest.mark.parametrize(
    "shape",
    ["(-1, 4, 4)", "(4, -4, -4)", "(-1, -4, 4)", "(True, 4, 4)", "(4, 4, -9223372036854775808)"],
)
def test_shapes_that_no_array_has_are_refused(data: Path, shape: str) -> None:
    (data / "v.npy").write_bytes(npy_of(shape))
    assert "says that its shape is " in refusals(ingest(data / "v.npy", axes="zyx"))


@pytest.mark.parametrize("shape", ["(10**99, 4, 4)", "(4.5, 4, 4)", "('4', 4, 4)", "((4,), 4, 4)"])
def test_shapes_of_other_things_are_refused(data: Path, shape: str) -> None:
    (data / "v.npy").write_bytes(npy_of(shape))
    assert "is no .npy file that can be read" in refusals(ingest(data / "v.npy", axes="zyx"))


@pytest.mark.parametrize("dtype", ["|O", "|V8", "<M8[s]", "|S4"])
def test_arrays_of_other_things_than_numbers_are_refused(data: Path, dtype: str) -> None:
    (data / "v.npy").write_bytes(npy_of("(4, 4, 4)", dtype))
    assert "cannot be in a Precomputed layer" in refusals(ingest(data / "v.npy", axes="zyx"))


@pytest.mark.parametrize(
    ("at", "form", "values", "said"),
    [
        (40, "<4h", (3, -1, 4, 4), "says that its shape is -1x4x4"),
        (40, "<4h", (3, 4, -4, -4), "says that its shape is 4x-4x-4"),
        (108, "<f", (-4.0,), "vox offset -4 too low"),
        (108, "<f", (float("nan"),), "is no NIfTI that can be read"),
        (108, "<f", (1e30,), "is cut off"),
        (70, "<h", (1536,), "is no NIfTI that can be read"),
        (70, "<h", (12345,), "is no NIfTI that can be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_headers_that_mean_nothing_are_refused(
    data: Path, suffix: str, at: int, form: str, values: tuple[float, ...], said: str
) -> None:
    import gzip

    content = bytearray(nibabel.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    struct.pack_into(form, content, at, *values)
    packed = gzip.compress(bytes(content)) if suffix.endswith("gz") else bytes(content)
    (data / f"v{suffix}").write_bytes(packed)
    assert said in refusals(ingest(data / f"v{suffix}"))


def test_half_of_a_pair_of_nifti_files_is_refused(data: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VALUES, np.eye(4)), data / "v.img")
    assert "is half of a pair of .hdr and .img" in refusals(ingest(data / "v.hdr"))


@pytest.mark.parametrize("name", ["v.h5", "v.npy", "v.nii", "v.tif"])
def test_pipes_and_devices_are_no_sources(tmp_path: Path, data: Path, name: str) -> None:
    os.mkfifo(data / name)
    assert f"{data / name}: Not a directory" in refusals(ingest(data / name, axes="zyx"))
    device = ingest("/dev/zero", dest=f"{tmp_path}/d", axes="zyx")
    assert "/dev/zero: Not a directory" in refusals(device)


# label maps


def label_map(path: Path, write: Callable[[h5py.File], None]) -> str:
    with h5py.File(path, "w") as file:
        write(file)
    return f"file://{path}"


def elsewhere(outside: Path) -> dict[str, Callable[[h5py.File], None]]:
    labels = np.arange(1, 9, dtype="u8")
    (outside / "secret.raw").write_bytes(labels.tobytes())
    with h5py.File(outside / "secret.h5", "w") as file:
        file["main"] = labels
    layout = h5py.VirtualLayout((8,), "u8")
    layout[:] = h5py.VirtualSource(outside / "secret.h5", "main", (8,))[:]
    raw = [(str(outside / "secret.raw"), 0, h5s.UNLIMITED)]
    return {
        "external storage": lambda f: f.create_dataset("main", (8,), "u8", external=raw),
        "a virtual dataset": lambda f: f.create_virtual_dataset("main", layout),
        "an external link": lambda f: f.__setitem__(
            "main", h5py.ExternalLink(outside / "secret.h5", "main")
        ),
    }


@pytest.mark.parametrize("way", ["external storage", "a virtual dataset", "an external link"])
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_label_maps_in_other_files_are_refused_by_name(
    tmp_path: Path, data: Path, outside: Path, way: str, place: str
) -> None:
    url = label_map(data / "map.h5", elsewhere(outside)[way])
    if place == "bucket":
        content = StoredFile((data / "map.h5").read_bytes())
        open_folder(f"mem://{tmp_path.name}").write("map.h5", content)
        url = f"mem://{tmp_path.name}/map.h5"
    with pytest.raises(InvalidParameter, match="which is not opened: write the map itself"):
        LabelMap.open(url)


def test_a_label_map_may_be_behind_a_soft_link(data: Path) -> None:
    def write(file: h5py.File) -> None:
        file["a/b"] = np.arange(1, 9, dtype="u8")
        file["main"] = h5py.SoftLink("/a/b")

    assert LabelMap.open(label_map(data / "map.h5", write)).values.tolist() == list(range(9))


def test_label_maps_in_large_chunks_or_that_grow_beyond_them_are_refused(data: Path) -> None:
    how = {"shape": (64,), "maxshape": (None,), "dtype": "u8", "compression": "gzip"}
    url = label_map(data / "l.h5", lambda f: f.create_dataset("main", chunks=(1 << 28,), **how))
    with pytest.raises(InvalidParameter, match="its chunks have 2,147,483,648 bytes"):
        LabelMap.open(url)

    def write(file: h5py.File) -> None:
        dataset = file.create_dataset("main", chunks=(64,), **how)
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 24)))

    with pytest.raises(InvalidParameter, match="is damaged, or longer than it should be"):
        _ = LabelMap.open(label_map(data / "m.h5", write)).values


@pytest.mark.parametrize("shape", ["(-1,)", "(True,)"])
def test_label_maps_of_impossible_length_are_refused(data: Path, shape: str) -> None:
    (data / "map.npy").write_bytes(npy_of(shape, "<u8"))
    with pytest.raises(InvalidParameter, match="its header is damaged"):
        LabelMap.open(f"file://{data}/map.npy")


def test_a_pipe_is_no_label_map(data: Path) -> None:
    os.mkfifo(data / "map.npy")
    with pytest.raises(InvalidParameter, match="is not there, or no file"):
        LabelMap.open(f"file://{data}/map.npy")


# cubes


@pytest.mark.parametrize("part", ["", "metadata.json", "jpg", "jpg/0.jpg"])
def test_cubes_that_are_links_out_of_the_folder_are_refused(
    data: Path, outside: Path, part: str
) -> None:
    cube = data / "one"
    (cube / "jpg").mkdir(parents=True)
    Image.new("L", (16, 16), 7).save(cube / "jpg" / "0.jpg")
    metadata = {
        "chunk_voxel_dimensions": [16, 16, 1], "voxel_resolution": [4, 4, 40],
        "physical_offset_min": [0, 0, 0], "physical_offset_max": [64, 64, 40],
    }  # fmt: skip
    (cube / "metadata.json").write_text(json.dumps(metadata))
    link_to(cube / part if part else cube, outside / "moved")
    stage = HypersquareIngest(
        src=str(data), dest=f"{data}-dest", content="image", overlap=0, max_mips=0
    )
    with pytest.raises(InvalidParameter, match=f"links lead from file://{data}/one/.* out of"):
        work(stage)


def work(stage: HypersquareIngest) -> None:
    stage.prepare()
    stage.run(stage.cells()[0])


# filters of HDF5


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"}, {"compression": "gzip", "shuffle": True},
        {"compression": "lzf", "shuffle": True}, {"fletcher32": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"compression": "szip"},
        {"scaleoffset": 0}, {"scaleoffset": 0, "compression": "gzip"}, {"shuffle": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "<u4", ">u2", "<f8", ">i8", "?"])
def test_chunks_that_we_unpack_are_what_hdf5_reads(data: Path, options, dtype: str) -> None:
    if "scaleoffset" in options and dtype in ("<f8", "?"):
        options = {**options, "scaleoffset": 3} if dtype == "<f8" else {"compression": "gzip"}
    array = (np.random.default_rng(4).integers(0, 200, (9, 20, 31)) % 100).astype(dtype)
    with h5py.File(data / "v.h5", "w") as file:
        dataset = file.create_dataset("main", shape=array.shape, dtype=dtype, chunks=(4, 7, 11),
                                      fillvalue=1, **options)  # fmt: skip
        dataset[:4] = array[:4]  # the other chunks are not there
        dataset[8:] = array[8:]
    with h5py.File(data / "v.h5") as file:
        expected = file["main"][:]
    np.testing.assert_array_equal(read(f"file://{data}/v.h5"), expected)


def test_a_chunk_that_is_too_short_is_noticed(data: Path) -> None:
    with h5py.File(data / "v.h5", "w") as file:
        dataset = file.create_dataset("main", data=VALUES, chunks=VALUES.shape)
        dataset.id.write_direct_chunk((0, 0, 0), bytes(288 // 2))
    with pytest.raises(PermanentError, match="a chunk holds 144 bytes, not 288"):
        read(f"file://{data}/v.h5")


def test_a_wrong_checksum_is_noticed(data: Path) -> None:
    with h5py.File(data / "v.h5", "w") as file:
        dataset = file.create_dataset("main", data=VALUES, chunks=VALUES.shape, fletcher32=True)
        _, stored = dataset.id.read_direct_chunk((0, 0, 0))
        changed = bytes([stored[0] ^ 1]) + stored[1:]
        dataset.id.write_direct_chunk((0, 0, 0), changed)
    with pytest.raises(PermanentError, match="the checksum of a chunk is wrong"):
        read(f"file://{data}/v.h5")


@pytest.mark.parametrize("length", [0, 1, 2, 719, 720, 40_001, 200_000])
def test_the_checksum_is_that_of_hdf5(data: Path, length: int) -> None:
    from numcodecs import Fletcher32

    for content in (bytes(length), b"\xff" * length, np.random.default_rng(5).bytes(length)):
        if length % 2 == 0 and length:
            stored = bytes(Fletcher32().encode(np.frombuffer(content, "u1")))[-4:]
            assert fletcher32(content) == int.from_bytes(stored, "little")
    path = data / "v.h5"
    if length:
        array = np.frombuffer(np.random.default_rng(6).bytes(length), "u1")
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("main", data=array, chunks=array.shape, fletcher32=True)
            _, stored = dataset.id.read_direct_chunk((0,))
        assert fletcher32(array.tobytes()) == int.from_bytes(stored[-4:], "little")


def test_a_filter_that_is_not_installed_is_named_in_the_plan(data: Path) -> None:
    from h5py import h5d, h5p, h5t, h5z

    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((2, 8, 9))
    properties.set_filter(32008, h5z.FLAG_OPTIONAL, (0, 0))
    with h5py.File(data / "v.h5", "w") as file:
        h5d.create(file.id, b"main", h5t.STD_U8LE, h5s.create_simple(VALUES.shape), properties)
    said = refusals(ingest(data / "v.h5", axes="zyx"))
    assert "packed by filter 32008" in said
    assert "store it with gzip" in said
