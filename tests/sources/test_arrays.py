"""Arrays of every format read part by part, and what their metadata say."""

import itertools
import tempfile

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from igneous_airflow.errors import InvalidParameter, UnreadableSource
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.sources.opening import find_source
from igneous_airflow.sources.protocol import copy_voxels, worthwhile_block
from igneous_airflow.sources.zarr_array import OmeImage
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import boxes_within

SIZE = Vec3(83, 61, 7)
GREY = random_voxels(SIZE, "uint16")[..., 0].transpose(2, 1, 0)  # z, y, x
RGB = random_voxels(SIZE, channels=3).transpose(2, 1, 0, 3)


@pytest.fixture
def assert_all_parts(assert_part):
    def assert_all(source, array):
        @given(boxes_within(SIZE))
        @settings(max_examples=15, deadline=None)
        def check(part):
            assert_part(source, array, part)

        check()

    return assert_all


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx"])
def test_a_part_of_an_npy_is_read_in_as_few_runs_as_there_are(
    tmp_path, opened, assert_part, axes, fortran
):
    array = GREY.transpose(["zyx".index(axis) for axis in axes])
    np.save(tmp_path / "v.npy", np.asarray(array, order="F" if fortran else "C"))
    source = opened(tmp_path / "v.npy", axes=axes)
    order = axes[::-1] if fortran else axes
    content = type(source.array.content)
    read_into = content.read_into
    whole = dict(zip("xyz", SIZE, strict=True))

    @given(boxes_within(SIZE))
    @settings(max_examples=25, deadline=None)
    def check(part):
        runs = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                content,
                "read_into",
                lambda self, start, buffer: (runs.append(1), read_into(self, start, buffer))[1],
            )
            assert_part(source, GREY, part)
        lengths = dict(zip("xyz", part.size, strict=True))
        cut = [i for i, axis in enumerate(order) if lengths[axis] < whole[axis]]
        outer = order[: cut[-1]] if cut else ""
        assert len(runs) == np.prod([lengths[axis] for axis in outer], dtype=int)

    check()


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 1 << 16),
)
def test_a_worthwhile_block_is_contiguous_and_goes_well_with_chunks(shape, itemsize, worthwhile):
    block = worthwhile_block(shape, itemsize, worthwhile)
    assert all(1 <= edge <= length for edge, length in zip(block, shape, strict=True))
    assert np.prod(block) * itemsize >= min(worthwhile, np.prod(shape) * itemsize)
    assert np.prod(block) * itemsize < 2 * max(worthwhile, itemsize)
    partial = [i for i, (e, n) in enumerate(zip(block, shape, strict=True)) if e < n]
    assert all(edge == 1 for edge in block[: partial[-1] if partial else 0])
    assert all(block[i].bit_count() == 1 for i in partial)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_any_part_of_a_nifti_is_what_was_written(tmp_path, opened, assert_all_parts, kind, suffix):
    nibabel.save(kind(GREY.transpose(2, 1, 0), np.eye(4)), tmp_path / f"v{suffix}")
    assert_all_parts(opened(tmp_path / f"v{suffix}"), GREY)


@pytest.mark.parametrize(
    ("unit", "sizes", "nanometres"),
    [
        ("mm", (0.004, 0.004, 0.04), (4000, 4000, 40000)),
        ("micron", (0.0046, 0.0046, 0.045), (4.6, 4.6, 45)),
        ("meter", (1e-6, 2e-6, 3e-6), (1000, 2000, 3000)),
        ("unknown", (1, 1, 1), None),
    ],
)
def test_the_voxels_of_a_nifti_are_as_large_as_its_header_says(
    tmp_path, opened, unit, sizes, nanometres
):
    image = nibabel.Nifti1Image(GREY.transpose(2, 1, 0), np.diag([*sizes, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "v.nii")
    assert opened(tmp_path / "v.nii").resolution == nanometres


def test_channels_of_a_nifti_are_on_its_fifth_axis(tmp_path, opened, assert_part):
    array = RGB.transpose(2, 1, 0, 3)[:, :, :, np.newaxis]
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii")
    source = opened(tmp_path / "v.nii")
    assert source.channels == 3
    assert_part(source, RGB, source.bounds)


def test_a_packed_nifti_is_unpacked_once_and_leaves_nothing_behind(
    tmp_path, opened, assert_part, monkeypatch
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/tmp")
    nibabel.save(nibabel.Nifti1Image(GREY.transpose(2, 1, 0), np.eye(4)), tmp_path / "v.nii.gz")
    source = opened(tmp_path / "v.nii.gz")
    assert any("is packed as a whole" in note for note in source.notes)
    for z in range(SIZE.z):
        assert_part(source, GREY, BoundingBox(Vec3(0, 0, z), Vec3(SIZE.x, SIZE.y, z + 1)))
        (tmp_path / "v.nii.gz").unlink(missing_ok=True)  # nobody needs it again
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (2, 16, 16)}, {"chunks": (3, 61, 83), "compression": "lzf"}]
)
def test_any_part_of_an_hdf5_dataset_is_what_was_written(
    tmp_path, opened, assert_all_parts, options
):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("a/b", data=GREY, **options)
        for axis, name in zip(file["a/b"].dims, "zyx", strict=True):
            axis.label = name
    source = opened(tmp_path / "v.h5")
    assert source.chunk_size == Vec3(*options.get("chunks", GREY.shape)[::-1])
    assert_all_parts(source, GREY)


def test_the_axes_of_hdf5_may_be_named_in_capitals(tmp_path, opened, assert_part):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["main"] = GREY
        for axis, name in zip(file["main"].dims, "ZYX", strict=True):
            axis.label = name
    source = opened(tmp_path / "v.h5")
    assert_part(source, GREY, source.bounds)


def test_hdf5_after_a_block_of_another_program_is_read_as_matlab_writes_it(
    tmp_path, opened, assert_all_parts
):
    with h5py.File(tmp_path / "v.mat", "w", userblock_size=512) as file:
        file["main"] = GREY
    with (tmp_path / "v.mat").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file")
    assert_all_parts(opened(tmp_path / "v.mat", axes="zyx"), GREY)


def test_integers_of_odd_bits_are_read_as_hdf5_means_them(tmp_path, opened, assert_all_parts):
    of_12_bits = h5py.h5t.STD_U16LE.copy()
    of_12_bits.set_precision(12)
    of_12_bits.set_offset(4)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        space = h5py.h5s.create_simple(GREY.shape)
        dataset = h5py.h5d.create(file.id, b"main", of_12_bits, space)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, GREY & 0xFFF)
    assert_all_parts(opened(tmp_path / "v.h5", axes="zyx"), GREY & 0xFFF)


def test_a_virtual_dataset_of_hdf5_is_read(tmp_path, opened, assert_all_parts):
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["main"] = GREY
    layout = h5py.VirtualLayout(GREY.shape, GREY.dtype)
    layout[:] = h5py.VirtualSource(tmp_path / "part.h5", "main", GREY.shape)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("all", layout)
    assert_all_parts(opened(tmp_path / "all.h5", axes="zyx"), GREY)


def test_chunks_of_zarr_that_were_never_written_hold_the_fill_value(
    tmp_path, opened, assert_all_parts
):
    array = zarr.create_array(
        tmp_path / "v.zarr", shape=GREY.shape, dtype="uint16", chunks=(2, 16, 16), fill_value=7
    )
    array[2:4, :16, :16] = GREY[2:4, :16, :16]
    source = opened(tmp_path / "v.zarr", axes="zyx")
    assert source.chunk_size == Vec3(16, 16, 2)
    assert_all_parts(source, array[:])


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (3, {"dimension_names": ("z", "y", "x")}),
        (2, {"attributes": {"_ARRAY_DIMENSIONS": ["z", "y", "x"]}}),
    ],
)
def test_axes_may_be_named_by_zarr_itself_or_by_xarray(
    tmp_path, opened, assert_part, version, options
):
    zarr.create_array(tmp_path / "v.zarr", data=GREY, zarr_format=version, **options)
    source = opened(tmp_path / "v.zarr")
    assert_part(source, GREY, source.bounds)


def space(unit):
    return [{"name": name, "type": "space", "unit": unit} for name in "zyx"]


FLAT = [
    {"name": "channel", "type": "channel"},
    *({"name": name, "unit": "angstrom"} for name in "yx"),
]
SCALED = [{"type": "scale", "scale": [4, 2, 1]}, {"type": "translation", "translation": [1, 1, 1]}]
COMMON = [{"type": "scale", "scale": [0.1, 0.1, 0.01]}]


@pytest.mark.parametrize(
    ("image", "axes", "resolution"),
    [
        ({"axes": ["z", "y", "x"]}, "zyx", None),
        ({}, "tczyx", None),
        ({"axes": space("nanometer")}, "zyx", (1, 2, 4)),
        (
            {"axes": space("micrometer"), "coordinateTransformations": COMMON},
            "zyx",
            (10, 200, 400),
        ),
        ({"axes": FLAT}, "cyx", (0.1, 0.2, 1)),
        ({"axes": space("parsec")}, "zyx", None),
    ],
)
def test_metadata_of_ome_zarr(image, axes, resolution):
    image = image | {"datasets": [{"path": "s0", "coordinateTransformations": SCALED}]}
    for attributes in ({"multiscales": [image]}, {"ome": {"multiscales": [image]}}):
        found = OmeImage.of(attributes)
        assert (found.axes, found.finest) == (axes, "s0")
        assert found.resolution("s0") == resolution


@pytest.mark.parametrize("scale", [[4, 2], [], [4, 2, 0], [4, -2, 1], [4, 2, float("nan")]])
def test_scales_that_mean_nothing_are_no_resolution(scale):
    made = [{"type": "scale", "scale": scale}]
    image = {"axes": space("nanometer"), "datasets": [{"path": "0"}]}
    assert OmeImage.of({"multiscales": [image]}).resolution("0") is None
    image = image | {"datasets": [{"path": "0", "coordinateTransformations": made}]}
    assert OmeImage.of({"multiscales": [image]}).resolution("0") is None


def image_of(nanometres):
    """The attributes of an image of one array, `0`."""
    made = [{"type": "scale", "scale": nanometres}]
    datasets = [{"path": "0", "coordinateTransformations": made}]
    return {"ome": {"multiscales": [{"axes": space("nanometer"), "datasets": datasets}]}}


@pytest.mark.parametrize(
    ("dataset", "resolution"),
    [("0", (4, 4, 40)), ("labels/cells", (8, 8, 40)), ("labels/cells/0", (8, 8, 40))],
)
def test_each_image_of_a_zarr_has_its_own_scale(tmp_path, opened, dataset, resolution):
    root = zarr.open_group(tmp_path / "v.zarr", mode="w", attributes=image_of([40, 4, 4]))
    root.create_array("0", data=GREY)
    cells = root.create_group("labels/cells", attributes=image_of([40, 8, 8]))
    cells.create_array("0", data=GREY)
    source = opened(tmp_path / "v.zarr", dataset=dataset)
    assert (source.axes, source.resolution) == ("zyx", resolution)


def test_an_array_beside_an_image_has_nothing_of_it(tmp_path, opened):
    root = zarr.open_group(tmp_path / "v.zarr", mode="w", attributes=image_of([40, 4, 4]))
    root.create_array("0", data=GREY)
    root.create_array("other", data=GREY)
    assert opened(tmp_path / "v.zarr", dataset="other", axes="zyx").resolution is None
    with pytest.raises(InvalidParameter, match="does not say which of its axes is which"):
        opened(tmp_path / "v.zarr", dataset="other")


def test_the_images_of_a_group_are_named(tmp_path, opened):
    root = zarr.open_group(tmp_path / "v.zarr", mode="w")
    root.create_group("OME")
    for name in ("0", "1"):
        root.create_group(name, attributes=image_of([40, 4, 4])).create_array("0", data=GREY)
    with pytest.raises(InvalidParameter, match=r"holds 0 \(an image\), 1 \(an image\): set"):
        opened(tmp_path / "v.zarr")


@pytest.mark.parametrize("image", [{"datasets": []}, {}, {"axes": [3], "datasets": []}, 3])
def test_broken_metadata_of_ome_are_named(tmp_path, opened, image):
    zarr.open_group(tmp_path / "v.zarr", mode="w", attributes={"ome": {"multiscales": [image]}})
    with pytest.raises(UnreadableSource, match=r"v\.zarr.*metadata of an OME image are broken"):
        opened(tmp_path / "v.zarr")


@pytest.mark.parametrize("attributes", [{}, {"multiscales": []}, {"ome": {}}, {"ome": 3}])
def test_groups_without_an_image_have_none(attributes):
    assert OmeImage.of(attributes) is None


def save(path, array):
    suffix = path.name.partition(".")[2]
    if suffix == "tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    elif suffix in ("png", "jpg"):
        Image.fromarray(array[0]).save(path)
    elif suffix == "npy":
        np.save(path, array)
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            file["main"] = array
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "npy", "h5", "nii", "nii.gz"])
def test_a_format_is_known_by_its_first_bytes_not_by_its_name(tmp_path, opened, suffix):
    path = tmp_path / f"x.{suffix}"
    save(path, GREY[:, :20, :20].astype("uint8"))
    path.rename(tmp_path / "nameless")
    axes = "zyx" if suffix in ("npy", "h5") else None
    assert opened(tmp_path / "nameless", axes=axes).data_type == "uint8"


def test_the_state_of_a_source_tells_changes_apart(tmp_path):
    states = []
    (tmp_path / "s").mkdir()
    for z, keep in itertools.product(range(3), (10, 20)):
        tifffile.imwrite(tmp_path / f"s/{z}.tif", GREY[z][:keep])
        states.append(find_source(f"file://{tmp_path}/s").state)
    assert len(set(states)) == len(states)
    assert find_source(f"file://{tmp_path}/s").state == states[-1]
    assert states[-1].startswith("3 files, ")


@given(st.permutations(range(4)), st.sampled_from(["u1", ">u2", "f4"]), st.integers(1, 3))
@settings(deadline=None)
def test_voxels_in_any_order_are_copied_as_they_are(axes, dtype, channels):
    stored = np.random.default_rng(3).integers(0, 99, (35, 20, 37, channels)).astype(dtype)
    voxels = np.ascontiguousarray(stored.transpose(axes)).transpose(np.argsort(axes))
    out = np.empty(voxels.shape, np.dtype(dtype).newbyteorder("="), order="F")
    copy_voxels(out, voxels)
    np.testing.assert_array_equal(out, stored)


@pytest.mark.parametrize("suffix", ["tif", "h5", "nii", "zarr"])
def test_a_library_that_is_not_installed_is_named(tmp_path, opened, monkeypatch, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "zarr":
        zarr.create_array(path, data=GREY)
    else:
        save(path, GREY)
    monkeypatch.setattr("igneous_airflow.sources.protocol.find_spec", lambda _: None)
    with pytest.raises(UnreadableSource, match=r"which is not installed: pip install 'igneous-"):
        opened(path)
