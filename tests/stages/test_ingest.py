"""Ingest: its contract, and what arrives of every format, as independent readers see it."""

import itertools
import os
import tempfile
import tracemalloc
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tensorstore
import tifffile
import tinybrain
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from igneous_airflow.errors import SourceChanged
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.testing.layers import (
    assert_mips,
    info_of,
    random_voxels,
    read_with_cloudvolume,
    read_with_tensorstore,
)
from igneous_airflow.testing.stages import (
    StageTests,
    complete,
    complete_whole_and_in_parts,
    snapshot,
)
from igneous_airflow.testing.strategies import factors, sizes, vectors

PLANE = Vec3(2, 2, 1)
RESOLUTION = (8, 8, 40)


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        write_sections(tmp_path / "stack", random_voxels(Vec3(65, 33, 9)))
        return Ingest(
            source=f"{tmp_path}/stack",
            dest=f"{tmp_path}/dest",
            resolution="4.6,4.6,45",
            voxel_offset=(3, -7, 11),
            chunk_size=(8, 8, 8),
            max_mips=1,
            shape=(32, 16, 8),
        )


class TestContractOfBuildChunks(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        write_build(
            tmp_path / "layer" / "build", random_voxels(Vec3(37, 21, 9), "uint16"), (10, 9, 8)
        )
        return Ingest(
            source=f"{tmp_path}/layer/build",
            dest=f"{tmp_path}/layer",
            resolution=RESOLUTION,
            layer_type="segmentation",
            chunk_size=(8, 8, 8),
            max_mips=1,
            shape=(16, 16, 8),
        )


def zyx(voxels):
    """Turn (x, y, z, channel) into z, y, x, and channels last where there are several."""
    array = voxels.transpose(2, 1, 0, 3)
    return np.ascontiguousarray(array[..., 0] if array.shape[3] == 1 else array)


def write_sections(folder, voxels, suffix=".tif", **options):
    folder.mkdir(parents=True)
    for z, section in enumerate(zyx(voxels)):
        if suffix == ".tif":
            _tiff(folder / f"s{z}.tif", section, **options)
        else:
            Image.fromarray(section).save(folder / f"s{z}{suffix}", **options)
    return folder


def write_build(folder, voxels, size, offset=(0, 0, 0), *, quirk=False):
    """Write build chunks with numpy and zlib alone."""
    import io
    import zlib

    folder.mkdir(parents=True, exist_ok=True)
    grid = [range(0, length, step) for length, step in zip(voxels.shape[:3], size, strict=True)]
    for x, y, z in itertools.product(*grid):
        part = voxels[x : x + size[0], y : y + size[1], z : z + size[2]]
        low = np.add((x, y, z), offset)
        name = "_".join(f"{a}-{b}" for a, b in zip(low, low + part.shape[:3], strict=True))
        stream = io.BytesIO()
        np.save(stream, part[np.newaxis, ..., 0] if quirk else part)
        (folder / name).write_bytes(zlib.compress(stream.getvalue()))
    return folder


def write_hdf5(path, array, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("main", data=array, **options)
    return path


def write_zarr(path, array, **options):
    zarr.create_array(path, data=array, **options)
    return path


#: For each format, how an independent writer makes it of (x, y, z, channel) voxels.
FORMATS = {
    "TIFF sections": lambda path, v: (write_sections(path, v), {}),
    "deflated TIFF sections": lambda path, v: (write_sections(path, v, compression="zlib"), {}),
    "tiled TIFF sections": lambda path, v: (write_sections(path, v, tile=(16, 32)), {}),
    "pages of a TIFF": lambda path, v: (_tiff_pages(path, zyx(v)), {}),
    "compressed pages of a TIFF": lambda path, v: (
        _tiff_pages(path, zyx(v), compression="lzw"),
        {},
    ),
    ".npy": lambda path, v: (_npy(path, zyx(v)), {"axes": "zyxc"[: zyx(v).ndim]}),
    "Fortran .npy": lambda path, v: (_npy(path, np.asfortranarray(v)), {"axes": "xyzc"}),
    "HDF5": lambda path, v: (write_hdf5(path, zyx(v)), {"axes": "zyxc"[: zyx(v).ndim]}),
    "chunked HDF5": lambda path, v: (
        write_hdf5(path, zyx(v), chunks=True, compression="gzip"),
        {"axes": "zyxc"[: zyx(v).ndim]},
    ),
    "Zarr 2": lambda path, v: (
        write_zarr(path, zyx(v), zarr_format=2, chunks=(5, 16, 16, 1)[: zyx(v).ndim]),
        {"axes": "zyxc"[: zyx(v).ndim]},
    ),
    "Zarr 3": lambda path, v: (
        write_zarr(path, zyx(v), chunks=(5, 16, 16, 1)[: zyx(v).ndim]),
        {"axes": "zyxc"[: zyx(v).ndim]},
    ),
    "build chunks": lambda path, v: (write_build(path, v, (16, 24, 3)), {}),
}


def _tiff(path, array, **options):
    is_rgb = array.ndim > 2 and array.shape[-1] == 3 and "planarconfig" not in options
    kind = {"photometric": "rgb" if is_rgb else "minisblack"}
    tifffile.imwrite(path, array, **(kind | options))
    return path


def _tiff_pages(path, array, **options):
    """Write page by page: of narrow arrays tifffile takes other axes for rows and columns."""
    kind = {"photometric": "rgb" if array.ndim > 3 else "minisblack"}
    with tifffile.TiffWriter(path) as file:
        for page in array:
            file.write(page, contiguous=not options, **kind, **options)
    return path


def _npy(path, array):
    with path.open("wb") as file:
        np.save(file, array)
    return path


@pytest.fixture
def ingest(tmp_path):
    """Write a source in a format, ingest it to `tmp_path/dest`, and return the audit."""

    def write_and_ingest(how, voxels, **wishes):
        source, needed = how(tmp_path / "source", voxels)
        wishes = {"resolution": RESOLUTION, "compress": "none", **needed, **wishes}
        return complete(Ingest(source=str(source), dest=f"{tmp_path}/dest", **wishes))

    return write_and_ingest


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_arrives_as_it_was_with_its_mips(tmp_path, ingest, form):
    voxels = random_voxels(Vec3(75, 53, 11))
    audit = ingest(FORMATS[form], voxels, chunk_size=(16, 16, 8), max_mips=2)
    assert audit.outputs == {"8_8_40": 5 * 4 * 2, "16_16_40": 3 * 2 * 2, "32_32_40": 2 * 1 * 2}
    averages = tinybrain.downsample_with_averaging(voxels, (2, 2, 1), num_mips=2)
    assert_mips(tmp_path / "dest", [voxels, *averages])
    assert_mips(tmp_path / "dest", [voxels, *averages], read=read_with_cloudvolume)
    info = info_of(tmp_path / "dest")
    assert (info["type"], info["data_type"], info["num_channels"]) == ("image", "uint8", 1)


@pytest.mark.parametrize(
    ("layer_type", "method"),
    [("image", "average"), ("segmentation", "mode"), ("affinities", "striding")],
)
def test_the_layer_type_chooses_the_method_and_is_in_the_info(tmp_path, ingest, layer_type, method):
    voxels = random_voxels(Vec3(16, 17, 8), "uint32")
    ingest(FORMATS[".npy"], voxels, layer_type=layer_type, max_mips=1)
    assert_mips(tmp_path / "dest", [voxels, *pool(voxels, PLANE, 1, method)])
    assert info_of(tmp_path / "dest")["type"] == layer_type


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "form", [".npy", "chunked HDF5", "TIFF sections", "build chunks", "Zarr 2"]
)
@pytest.mark.parametrize(
    ("stored", "becomes"),
    [
        ("?", "uint8"),
        *((kind, np.dtype(kind).name) for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8")),
        ("i8", "int64"),
        ("f2", "float32"),
        ("f4", "float32"),
        ("f8", "float64"),
    ],
)
def test_every_type_of_voxels_arrives_in_either_byte_order(
    tmp_path, ingest, order, form, stored, becomes
):
    voxels = random_voxels(Vec3(9, 7, 5), "float32" if stored == "f2" else becomes)
    if stored == "?":
        voxels = voxels % 2
    voxels = voxels.astype(np.dtype(order + stored))
    options = {"byteorder": order} if form == "TIFF sections" else {}
    how = FORMATS[form]
    if options:
        how = lambda path, v: (write_sections(path, v, byteorder=order), {})  # noqa: E731
    ingest(how, voxels, max_mips=0, chunk_size=(8, 8, 8))
    read = read_with_cloudvolume if becomes in ("int64", "float64") else read_with_tensorstore
    result = read(tmp_path / "dest", 0)
    assert info_of(tmp_path / "dest")["data_type"] == becomes
    np.testing.assert_array_equal(result, voxels.astype(becomes))


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if form != "Fortran .npy"] + ["PNG", "planar TIFF"]
)
def test_colours_become_three_channels(tmp_path, ingest, form):
    voxels = random_voxels(Vec3(33, 21, 6), channels=3)
    more = {
        "PNG": lambda path, v: (write_sections(path, v, ".png"), {}),
        "planar TIFF": lambda path, v: (
            _tiff(path, zyx(v).transpose(0, 3, 1, 2), planarconfig="separate", photometric="rgb"),
            {},
        ),
    }
    how = (FORMATS | more)[form]
    ingest(how, voxels, chunk_size=(8, 8, 4), max_mips=1)
    assert_mips(tmp_path / "dest", [voxels, *pool(voxels, PLANE, 1, "average")])
    assert info_of(tmp_path / "dest")["num_channels"] == 3


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("xyzc")])
@pytest.mark.parametrize("form", [".npy", "chunked HDF5", "Zarr 3"])
def test_axes_of_any_order_are_brought_into_ours(tmp_path, ingest, form, axes):
    voxels = random_voxels(Vec3(19, 13, 7), "uint16", channels=2)
    array = np.ascontiguousarray(voxels.transpose(["xyzc".index(axis) for axis in axes]))
    write = {
        ".npy": _npy,
        "chunked HDF5": lambda path, a: write_hdf5(path, a, chunks=(2, 2, 2, 2)),
        "Zarr 3": lambda path, a: write_zarr(path, a, chunks=(2, 3, 4, 2)),
    }[form]
    letters = axes.upper() if form == "Zarr 3" else axes  # both are taken
    ingest(lambda path, _: (write(path, array), {"axes": letters}), voxels, max_mips=0)
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), voxels)


def test_a_picture_alone_is_one_section(tmp_path, ingest):
    voxels = random_voxels(Vec3(33, 21, 1))
    how = lambda path, v: (write_sections(path, v, ".png") / "s0.png", {})  # noqa: E731
    ingest(how, voxels, max_mips=0)
    assert_mips(tmp_path / "dest", [voxels])


def test_grey_jpegs_arrive_as_pillow_decodes_them(tmp_path, ingest):
    smooth = np.add.outer(np.arange(40), 2 * np.arange(30)).astype(np.uint8)
    voxels = np.stack([smooth, smooth[::-1]], axis=2)[..., None]
    ingest(lambda path, v: (write_sections(path, v, ".jpg"), {}), voxels, max_mips=0)
    decoded = [np.asarray(Image.open(tmp_path / f"source/s{z}.jpg")).T for z in range(2)]
    expected = np.stack(decoded, axis=2)[..., None]
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), expected)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">f4"])
def test_nifti_arrives_with_the_resolution_of_its_header(tmp_path, suffix, dtype):
    voxels = random_voxels(Vec3(41, 30, 7), np.dtype(dtype).name)
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(voxels[..., 0], np.diag([0.004, 0.004, 0.04, 1]), header)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / f"brain{suffix}")
    stage = Ingest(source=f"{tmp_path}/brain{suffix}", dest=f"{tmp_path}/dest", compress="none")
    complete(stage)
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), voxels)
    assert info_of(tmp_path / "dest")["scales"][0]["resolution"] == [4000, 4000, 40000]


def test_nifti_with_a_scaling_becomes_what_nibabel_reads(tmp_path):
    values = np.random.default_rng(1).normal(size=(20, 12, 5)).astype("float32")
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_data_dtype("int16")
    nibabel.save(image, tmp_path / "brain.nii")
    stage = Ingest(
        source=f"{tmp_path}/brain.nii", dest=f"{tmp_path}/dest", resolution=RESOLUTION,
        compress="none", max_mips=0,
    )  # fmt: skip
    assert any("as the header says" in note for note in stage.plan().notes)
    complete(stage)
    expected = nibabel.load(tmp_path / "brain.nii").get_fdata().astype("float32")
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0)[..., 0], expected)


def ome(version, paths, scale, unit="micrometer"):
    axes = [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        *({"name": axis, "type": "space", "unit": unit} for axis in "zyx"),
    ]
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": [1, 1, *(s * 2**i for s in scale)]}
            ],
        }
        for i, path in enumerate(paths)
    ]
    image = {"version": version, "axes": axes, "datasets": datasets}
    if version == "0.5":
        return {"ome": {"version": version, "multiscales": [image]}}
    return {"multiscales": [image]}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dataset", [None, "1"])
def test_ome_zarr_arrives_with_the_axes_and_scale_of_its_metadata(tmp_path, version, dataset):
    arrays = {"0": random_voxels(Vec3(40, 30, 9), "uint16", channels=2)}
    arrays["1"] = arrays["0"][::2, ::2, ::2]
    store = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    store.attrs.update(ome(version, list(arrays), (0.04, 0.0046, 0.0046)))
    for path, voxels in arrays.items():
        store.create_array(path, data=voxels.transpose(3, 2, 1, 0)[None], chunks=(1, 1, 4, 16, 16))
    stage = Ingest(
        source=f"zarr://file://{tmp_path}/x.zarr", dest=f"{tmp_path}/dest", dataset=dataset,
        compress="none", max_mips=1,
    )  # fmt: skip
    complete(stage)
    voxels = arrays[dataset or "0"]
    assert_mips(tmp_path / "dest", [voxels, *pool(voxels, PLANE, 1, "average")])
    resolution = info_of(tmp_path / "dest")["scales"][0]["resolution"]
    assert resolution == ([9.2, 9.2, 80] if dataset else [4.6, 4.6, 40])


@pytest.mark.parametrize("driver", ["zarr", "zarr3", "sharded"])
def test_zarr_written_by_tensorstore_arrives(tmp_path, ingest, driver):
    voxels = random_voxels(Vec3(40, 30, 20), "uint16")
    metadata = {
        "zarr": {"chunks": [4, 8, 16], "compressor": {"id": "blosc"}, "dimension_separator": "/"},
        "zarr3": {"chunk_grid": _regular(4, 8, 16), "codecs": [_BYTES, _GZIP]},
        "sharded": {
            "chunk_grid": _regular(8, 16, 32),
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {"chunk_shape": [4, 8, 16], "codecs": [_BYTES, _GZIP]},
                }
            ],
        },
    }[driver]

    def write(path, voxels):
        store = tensorstore.open(
            {
                "driver": "zarr" if driver == "zarr" else "zarr3",
                "kvstore": {"driver": "file", "path": f"{path}/"},
                "metadata": metadata,
                "context": {"file_io_sync": False},
            },
            create=True, dtype=tensorstore.uint16, shape=zyx(voxels).shape,
        ).result()  # fmt: skip
        store.write(zyx(voxels)).result()
        return path, {"axes": "zyx"}

    ingest(write, voxels, max_mips=0, chunk_size=(16, 16, 16))
    assert_mips(tmp_path / "dest", [voxels])


def _regular(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_GZIP = {"name": "gzip", "configuration": {"level": 1}}


def test_the_info_of_build_chunks_is_that_of_the_old_system(tmp_path):
    """The worked example of the older system's own tests."""
    voxels = random_voxels(Vec3(256, 256, 128), "uint8")
    write_build(tmp_path / "layer/build", voxels, (256, 256, 64), offset=(3, 23, 5))
    before = snapshot(tmp_path)
    stage = Ingest(
        source=f"{tmp_path}/layer/build", dest=f"{tmp_path}/layer", resolution=(7, 5, 17),
        layer_type="segmentation", max_mips=2, compress="none",
    )  # fmt: skip
    complete(stage)
    info = info_of(tmp_path / "layer")
    assert (info["mesh"], info["type"], info["data_type"]) == ("mesh", "segmentation", "uint8")
    shown = ("key", "size", "voxel_offset", "chunk_sizes")
    assert [[scale[key] for key in shown] for scale in info["scales"]] == [
        ["7_5_17", [256, 256, 128], [3, 23, 5], [[64, 64, 64]]],
        ["14_10_17", [128, 128, 128], [1, 11, 5], [[64, 64, 64]]],
        ["28_20_17", [64, 64, 128], [0, 5, 5], [[64, 64, 64]]],
    ]
    assert_mips(tmp_path / "layer", [voxels, *pool(voxels, PLANE, 2, "mode")])
    assert before.items() <= snapshot(tmp_path).items()


def test_scales_have_the_sizes_and_offsets_of_the_old_system(tmp_path):
    voxels = np.zeros((512, 512, 128, 1), "uint8")
    write_build(tmp_path / "build", voxels, (512, 512, 128), (3, 7, 11))
    Ingest(
        source=f"{tmp_path}/build", dest=f"{tmp_path}/dest", resolution=(1, 1, 1), max_mips=3
    ).prepare()
    scales = info_of(tmp_path / "dest")["scales"]
    assert [scale["size"][:2] for scale in scales] == [[512] * 2, [256] * 2, [128] * 2, [64] * 2]
    offsets = [[3, 7, 11], [1, 3, 11], [0, 1, 11], [0, 0, 11]]
    assert [scale["voxel_offset"] for scale in scales] == offsets
    assert all(scale["chunk_sizes"] == [[64, 64, 64]] for scale in scales)


def test_images_of_build_chunks_name_no_meshes(tmp_path):
    write_build(tmp_path / "build", random_voxels(Vec3(100, 30, 7)), (100, 30, 7))
    complete(Ingest(source=f"{tmp_path}/build", dest=f"{tmp_path}/dest", resolution=RESOLUTION))
    info = info_of(tmp_path / "dest")
    assert "mesh" not in info
    assert info["scales"][0]["chunk_sizes"] == [[50, 30, 7]]


@pytest.mark.parametrize(("channels", "quirk"), [(1, False), (1, True), (3, False)])
def test_build_chunks_that_do_not_line_up_with_chunks_leave_no_holes(tmp_path, quirk, channels):
    """Of the older system, edge chunks made fewer mips, and odd sizes could not be written."""
    voxels = random_voxels(Vec3(107, 61, 23), "uint16", channels=channels)
    write_build(tmp_path / "build", voxels, (37, 29, 10), offset=(-11, 5, 2), quirk=quirk)
    stage = Ingest(
        source=f"{tmp_path}/build", dest=f"{tmp_path}/dest", resolution=RESOLUTION,
        chunk_size=(16, 16, 16), max_mips=3, shape=(128, 128, 16), compress="none",
    )  # fmt: skip
    audit = complete(stage)
    assert len(audit.outputs) == 4
    averages = tinybrain.downsample_with_averaging(voxels, (2, 2, 1), num_mips=3)
    assert_mips(tmp_path / "dest", [voxels, *averages])
    assert info_of(tmp_path / "dest")["scales"][0]["voxel_offset"] == [-11, 5, 2]


@pytest.mark.parametrize("compression", ["gzip", "br", "zstd"])
def test_build_chunks_may_be_compressed_once_more(tmp_path, compression):
    import gzip

    from cloudfiles import CloudFiles

    voxels = random_voxels(Vec3(20, 20, 6))
    write_build(tmp_path / "build", voxels, (10, 20, 6))
    for file in list((tmp_path / "build").iterdir()):
        content = file.read_bytes()
        file.unlink()
        if compression == "gzip":
            Path(f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            CloudFiles(f"file://{tmp_path}/build").put(file.name, content, compress=compression)
    complete(
        Ingest(
            source=f"{tmp_path}/build",
            dest=f"{tmp_path}/d",
            resolution=(1, 1, 1),
            compress="none",
            max_mips=0,
        )
    )
    assert_mips(tmp_path / "d", [voxels])


def test_holes_between_build_chunks_become_background_when_asked_for(tmp_path):
    voxels = random_voxels(Vec3(32, 16, 8)) | 1
    write_build(tmp_path / "build", voxels, (8, 16, 8))
    (tmp_path / "build/8-16_0-16_0-8").unlink()
    stage = Ingest(
        source=f"{tmp_path}/build", dest=f"{tmp_path}/dest", resolution=RESOLUTION,
        fill_missing=True, background_color=7, compress="none", max_mips=0,
    )  # fmt: skip
    complete(stage)
    voxels[8:16] = 7
    assert_mips(tmp_path / "dest", [voxels])


@pytest.mark.parametrize("fill", [False, True])
def test_missing_sections_close_up_or_become_background(tmp_path, fill):
    voxels = random_voxels(Vec3(16, 16, 6)) | 1
    write_sections(tmp_path / "stack", voxels)
    for z in (2, 3):
        (tmp_path / f"stack/s{z}.tif").unlink()
    stage = Ingest(
        source=f"{tmp_path}/stack", dest=f"{tmp_path}/dest", resolution=RESOLUTION,
        fill_missing=fill, background_color=9, compress="none", max_mips=0,
    )  # fmt: skip
    notes = "\n".join(stage.plan().notes)
    assert "missing are 2 sections, 2-3; " in notes
    complete(stage)
    if fill:
        voxels[:, :, 2:4] = 9
    else:
        voxels = np.delete(voxels, [2, 3], axis=2)
    assert_mips(tmp_path / "dest", [voxels])


@pytest.mark.parametrize(
    "names",
    [
        ["a b 2.tif", "a b 10.tif"],
        ["ü%20[1]#9.tif", "ü%20[1]#10.tif"],
        ["-rf 1.tif", "-rf 2.tif"],
        ["new\nline9.tif", "new\nline11.tif"],
        ["$(touch x)'\"1.TIF", "$(touch x)'\"2.TIFF"],
    ],
)
def test_files_of_hostile_names_are_read(tmp_path, names):
    voxels = random_voxels(Vec3(9, 8, 2))
    folder = tmp_path / "st*ck [0-9]"
    folder.mkdir()
    for name, section in zip(names, zyx(voxels), strict=True):
        tifffile.imwrite(folder / name, section)
    stage = Ingest(
        source=str(folder), dest=f"{tmp_path}/d", resolution=(1, 1, 1), compress="none", max_mips=0
    )
    complete(stage)
    assert_mips(tmp_path / "d", [voxels])


@st.composite
def works(draw):
    """Draw a small volume, how it lies in files, and how to ingest it."""
    edge = st.integers(1, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    size = draw(sizes(33))
    form = draw(st.sampled_from([form for form in FORMATS if form != "deflated TIFF sections"]))
    wishes = {
        "factor": draw(factors()),
        "max_mips": draw(st.integers(0, 2)),
        "method": draw(st.sampled_from(["average", "mode", "max", "striding"])),
        "chunk_size": draw(chunks),
        "voxel_offset": draw(vectors(-20, 20)),
    }
    dtype = draw(st.sampled_from(["uint8", "int16", "float32", "uint64"]))
    return random_voxels(size, dtype), form, wishes


@given(works(), st.integers(1, 3), st.randoms(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_result_does_not_depend_on_the_cut(work, blocks, random, tight):
    voxels, form, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        source, needed = FORMATS[form](Path(folder, "source"), voxels)
        common = {
            "source": str(source), "resolution": (4, 4, 40), "compress": "none", **needed, **wishes
        }  # fmt: skip
        whole = Ingest(dest=f"{folder}/whole", **common)
        made = complete_whole_and_in_parts(whole, blocks, random, smallest_tiles=tight)
        scales = info_of(made)["scales"]
        mips = pool(voxels, wishes["factor"], len(scales) - 1, wishes["method"])
        assert_mips(made, [voxels, *mips])
        assert scales[0]["voxel_offset"] == list(wishes["voxel_offset"])


@pytest.mark.parametrize("form", FORMATS)
def test_sources_in_buckets_are_read_in_parts(tmp_path, form, monkeypatch):
    monkeypatch.setattr("igneous_airflow.storage.parts.overlap_width", lambda _: 4)
    voxels = random_voxels(Vec3(75, 53, 11), "uint16")
    source, needed = FORMATS[form](tmp_path / "source", voxels)
    bucket = f"mem://{tmp_path.name}-{abs(hash(form))}"
    single = source.is_file()
    for path in [source] if single else [p for p in source.rglob("*") if p.is_file()]:
        name = path.relative_to(tmp_path).as_posix()
        open_folder(bucket).write(name, StoredFile(path.read_bytes()))
    stage = Ingest(
        source=f"{bucket}/source", dest=f"{tmp_path}/dest", resolution=RESOLUTION,
        compress="none", max_mips=1, chunk_size=(16, 16, 8), shape=(32, 32, 8), **needed,
    )  # fmt: skip
    complete(stage)
    assert_mips(tmp_path / "dest", [voxels, *pool(voxels, PLANE, 1, "average")])


def test_a_pattern_chooses_sections_in_a_bucket(tmp_path):
    voxels = random_voxels(Vec3(16, 16, 4))
    folder = open_folder(f"mem://{tmp_path.name}/stack")
    for path in write_sections(tmp_path / "stack", voxels).iterdir():
        folder.write(path.name, StoredFile(path.read_bytes()))
    folder.write("notes.txt", StoredFile(b"no picture"))
    stage = Ingest(
        source=f"mem://{tmp_path.name}/stack/s[1-3].tif", dest=f"{tmp_path}/d",
        resolution=(1, 1, 1), compress="none", max_mips=0,
    )  # fmt: skip
    complete(stage)
    assert_mips(tmp_path / "d", [voxels[:, :, 1:]])


def test_tasks_read_only_the_sections_that_they_need(tmp_path, monkeypatch):
    from igneous_airflow.sources import sections

    write_sections(tmp_path / "stack", random_voxels(Vec3(32, 32, 40)))
    stage = Ingest(
        source=f"{tmp_path}/stack", dest=f"{tmp_path}/d", resolution=(1, 1, 1), max_mips=1,
        chunk_size=(16, 16, 8), shape=(32, 32, 8),
    ).resolved()  # fmt: skip
    stage.prepare()
    opened = []
    real = sections.open_picture
    monkeypatch.setattr(
        sections,
        "open_picture",
        lambda file, memory: (opened.append(file.entry.name), real(file, memory))[1],
    )
    stage.run(BoundingBox.parse("0-32_0-32_16-24"))
    assert sorted(set(opened)) == sorted(f"s{z}.tif" for z in range(16, 24))
    assert len(opened) == 8


@pytest.mark.parametrize("change", ["added", "removed", "rewritten", "touched"])
def test_tasks_refuse_a_source_that_has_changed_since_the_plan(tmp_path, change):
    voxels = random_voxels(Vec3(16, 16, 4))
    folder = write_sections(tmp_path / "stack", voxels)
    stage = Ingest(source=str(folder), dest=f"{tmp_path}/d", resolution=(1, 1, 1)).resolved()
    stage.prepare()
    cell = stage.cells()[0]
    last = folder / "s3.tif"
    if change == "added":
        tifffile.imwrite(folder / "s4.tif", zyx(voxels)[0])
    elif change == "removed":
        last.unlink()
    elif change == "rewritten":
        tifffile.imwrite(last, zyx(voxels)[0][:8])
    else:
        os.utime(last, ns=(1, 1))
    with pytest.raises(SourceChanged, match="have changed since the run was planned"):
        stage.run(cell)
    assert not list((tmp_path / "d").glob("1_1_1/*"))
    assert "have changed" in "\n".join(stage.plan().refusals)


def test_an_existing_destination_keeps_its_info_and_is_filled_again(tmp_path, ingest):
    voxels = random_voxels(Vec3(40, 30, 9))
    ingest(FORMATS[".npy"], voxels, voxel_offset=(4, 5, 6), chunk_size=(8, 16, 4), max_mips=1)
    before = snapshot(tmp_path / "dest")
    for file in (tmp_path / "dest/8_8_40").iterdir():
        file.unlink()
    stage = Ingest(
        source=f"{tmp_path}/source",
        dest=f"{tmp_path}/dest",
        axes="zyx",
        compress="none",
        max_mips=1,
    )
    complete(stage)
    after = snapshot(tmp_path / "dest")
    del before["provenance"], after["provenance"]
    assert after == before


def test_a_source_far_larger_than_the_memory_target_is_ingested_within_it(tmp_path):
    size = Vec3(512, 512, 96)
    np.save(tmp_path / "v.npy", np.zeros((size.z, size.y, size.x), "uint16"))
    stage = Ingest(
        source=f"{tmp_path}/v.npy", dest=f"{tmp_path}/d", resolution=(1, 1, 1), axes="zyx",
        chunk_size=(32, 32, 32), memory_target=3_000_000, max_mips=2,
    ).resolved()  # fmt: skip
    plan = stage.plan().require_accepted()
    assert plan.memory <= 3_000_000
    stage.prepare()
    stage.run(stage.cells()[0])  # everything is imported
    tracemalloc.start()
    stage.run(stage.cells()[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < plan.memory + 1_000_000
    assert size.product * 2 > 10 * plan.memory


@pytest.mark.real_data
def test_an_image_stack_of_electron_microscopy_becomes_a_layer(tmp_path, em_stack, em_voxels):
    stage = Ingest(
        source=str(em_stack), dest=f"{tmp_path}/dest", resolution="4.6,4.6,45",
        max_mips=3,
    )  # fmt: skip
    audit = complete(stage)
    assert audit.outputs == {
        "4.6_4.6_45": 256, "9.2_9.2_45": 64, "18.4_18.4_45": 16, "36.8_36.8_45": 4
    }  # fmt: skip
    averages = tinybrain.downsample_with_averaging(em_voxels, (2, 2, 1), num_mips=3)
    assert_mips(tmp_path / "dest", [em_voxels, *averages], read=read_with_cloudvolume)
