"""What a plan of an ingest counts, and every reason to refuse one, before anything is written."""

import io
import json
import os
import zlib
from collections import Counter
from pathlib import Path

import h5py
import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from pydantic import ValidationError

from igneous_airflow.errors import PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage.parts import FileInParts
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import snapshot

SECTIONS = random_voxels(Vec3(40, 30, 12))[..., 0].transpose(2, 1, 0)


@pytest.fixture
def stack(tmp_path):
    """A folder of twelve sections."""
    folder = tmp_path / "stack"
    folder.mkdir()
    for z, section in enumerate(SECTIONS):
        tifffile.imwrite(folder / f"{z}.tif", section)
    return folder


@pytest.fixture
def ingest(tmp_path):
    """Make a stage that reads something below `tmp_path`, a section or so a voxel."""

    def make(source, **wishes):
        wishes = {"resolution": (4, 4, 40), "dest": f"{tmp_path}/dest", **wishes}
        return Ingest(source=str(source), **wishes)

    return make


def refusals_of(stage):
    """All reasons of a plan to refuse; nothing can be written then."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    return "\n".join(refusals)


def write_chunk(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    np.save(stream, array)
    (folder / name).write_bytes(zlib.compress(stream.getvalue()))


def test_a_plan_counts_what_is_done(stack, ingest):
    stage = ingest(stack, max_mips=2, chunk_size=(16, 16, 4), shape=(64, 64, 4)).resolved()
    plan = stage.plan()
    assert plan.tasks == len(stage.cells()) == 3
    assert plan.voxels == plan.bytes_read == 40 * 30 * 12
    assert plan.bytes_written == (40 * 30 + 20 * 15 + 10 * 8) * 12
    assert [output.split(":")[0] for output in plan.outputs] == ["4_4_40", "8_8_40", "16_16_40"]
    assert "12 sections in this order: 0.tif to 11.tif" in plan.notes
    stage.prepare()
    works = [stage.run(cell) for cell in stage.cells()]
    assert sum(work.chunks_written for work in works) == sum(stage.finish("x").outputs.values())


def test_sections_that_are_decoded_many_times_are_counted_so(tmp_path, ingest):
    """Compressed sections are decoded as a whole: a plan that cuts them says what that costs."""
    for folder in ("png", "tif"):
        (tmp_path / folder).mkdir()
    section = np.zeros((512, 512), "uint8")
    for z in range(16):
        Image.fromarray(section).save(tmp_path / f"png/{z}.png")
        tifffile.imwrite(tmp_path / f"tif/{z}.tif", section)
    wishes = {"chunk_size": (32, 32, 16), "max_mips": 0}
    roomy = ingest(tmp_path / "png", **wishes).plan()
    assert roomy.bytes_read == roomy.voxels
    tight = ingest(tmp_path / "png", memory_target=2_000_000, **wishes).plan()
    assert tight.memory <= 2_000_000
    assert tight.bytes_read > 3 * tight.voxels
    assert any("is decoded" in note and "times" in note for note in tight.notes)
    uncompressed = ingest(tmp_path / "tif", memory_target=2_000_000, **wishes).plan()
    assert uncompressed.bytes_read == uncompressed.voxels


def test_a_plan_reads_the_beginning_of_each_section_once(stack, ingest, monkeypatch):
    read = Counter()
    read_into = FileInParts.read_into

    def counted(self, start, buffer):
        read[self.entry.name] += len(buffer)
        read_into(self, start, buffer)

    big = np.zeros((1000, 1000), "uint8")
    for z in range(12):
        tifffile.imwrite(stack / f"{z}.tif", big)
    monkeypatch.setattr(FileInParts, "read_into", counted)
    assert not ingest(stack).plan().refusals
    assert len(read) == 12
    assert max(read.values()) < 100_000


def break_first(stack):
    (stack / "0.tif").write_bytes(b"II*\0 this is no TIFF")
    return "1 section cannot be read: 0.tif is no TIFF that can be read"


def break_two(stack):
    (stack / "3.tif").write_bytes(b"")
    (stack / "10.tif").write_bytes((stack / "10.tif").read_bytes()[:-100])
    empty = "3.tif is empty, or a link to nothing"
    return f"2 sections cannot be read: {empty}; 10.tif is cut off"


def link_to_nothing(stack):
    (stack / "5.tif").unlink()
    (stack / "5.tif").symlink_to(stack.parent / "moved" / "5.tif")
    return "1 section cannot be read: 5.tif is empty, or a link to nothing"


def cut_a_compressed_one(stack):
    tifffile.imwrite(stack / "5.tif", SECTIONS[5], compression="zlib")
    (stack / "5.tif").write_bytes((stack / "5.tif").read_bytes()[:-100])
    return "5.tif is cut off"


def cut_a_png(stack):
    Image.fromarray(SECTIONS[5]).save(stack / "5.png")
    (stack / "5.png").write_bytes((stack / "5.png").read_bytes()[:-100])
    (stack / "5.tif").unlink()
    return "5.png cannot be decoded"


def other_size(stack):
    tifffile.imwrite(stack / "2.tif", SECTIONS[2][:20])
    return "1 of 12 sections are not 40 x 30 uint8, as the others are: 2.tif is 40 x 20 uint8"


def other_type(stack):
    for z in (0, 7):
        tifffile.imwrite(stack / f"{z}.tif", SECTIONS[2].astype("uint16"))
    return (
        "2 of 12 sections are not 40 x 30 uint8, as the others are: 0.tif is 40 x 30 uint16, "
        "7.tif is 40 x 30 uint16. Leave them out, or make them alike"
    )


def a_colour_among_greys(stack):
    tifffile.imwrite(stack / "2.tif", np.stack([SECTIONS[2]] * 3, axis=-1), photometric="rgb")
    return "2.tif is 40 x 30 uint8 in 3 channels"


def palette_png(stack):
    Image.fromarray(SECTIONS[5]).convert("P").save(stack / "5.png")
    (stack / "5.tif").unlink()
    return "5.png: it has a palette, so that its pixels are no values"


def palette_tiff(stack):
    colormap = np.zeros((3, 256), "uint16")
    tifffile.imwrite(stack / "5.tif", SECTIONS[5], photometric="palette", colormap=colormap)
    return "5.tif: it has a palette, so that its pixels are no values"


def alpha_png(stack):
    Image.fromarray(SECTIONS[5]).convert("LA").save(stack / "5.png")
    (stack / "5.tif").unlink()
    return "5.png: it has an alpha channel: remove that first"


def alpha_tiff(stack):
    rgba = np.stack([SECTIONS[5]] * 4, axis=-1)
    tifffile.imwrite(stack / "5.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    return "5.tif: it has an alpha channel: remove that first"


def cmyk_jpeg(stack):
    Image.fromarray(SECTIONS[5]).convert("CMYK").save(stack / "5.jpeg")
    (stack / "5.tif").unlink()
    return "5.jpeg: its colours are CMYK: convert it to RGB"


def separated_tiff(stack):
    cmyk = np.stack([SECTIONS[5]] * 4, axis=-1)
    tifffile.imwrite(stack / "5.tif", cmyk, photometric="separated")
    return "5.tif: its colours are SEPARATED: convert it to grey or RGB"


def deep_colour_png(stack):
    deep = imagecodecs.png_encode(np.stack([SECTIONS[5].astype("uint16")] * 3, axis=-1))
    (stack / "5.png").write_bytes(deep)
    (stack / "5.tif").unlink()
    return "5.png: it has 16 bits a colour: store it as TIFF"


def a_stack_among_sections(stack):
    tifffile.imwrite(stack / "5.tif", SECTIONS[:4], photometric="minisblack")
    return "5.tif has 4 pages, where each file must hold one section"


def unknown_compression(stack):
    tifffile.imwrite(stack / "5.tif", SECTIONS[5], compression="zlib")
    with tifffile.TiffFile(stack / "5.tif", mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(60_000)
    return "5.tif cannot be decoded: "


def the_same_number_twice(stack):
    Image.fromarray(SECTIONS[5]).save(stack / "05.png")
    return (
        "sections have the same number: 05.png and 5.tif. Choose some by a pattern, such as *.tif"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        break_first, break_two, link_to_nothing, cut_a_compressed_one, cut_a_png, other_size,
        other_type, a_colour_among_greys, palette_png, palette_tiff, alpha_png, alpha_tiff,
        cmyk_jpeg, separated_tiff, deep_colour_png, a_stack_among_sections, unknown_compression,
        the_same_number_twice,
    ],
)  # fmt: skip
def test_sections_that_cannot_be_used_are_named(tmp_path, stack, ingest, spoil):
    named = spoil(stack)
    before = snapshot(tmp_path)
    assert named in refusals_of(ingest(stack))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("present", "named"),
    [
        ([1, 2, 5, 9, 10], "missing are 5 sections, 3-4, 6-8; those after them close up"),
        ([10, 20, 40], "missing are 1 section, 30; those after them close up"),
        (range(7, 10), None),
    ],
)
def test_gaps_in_the_numbering_are_reported(tmp_path, ingest, present, named):
    (tmp_path / "gaps").mkdir()
    for number in present:
        tifffile.imwrite(tmp_path / f"gaps/em_{number:03}.tif", SECTIONS[0])
    notes = "\n".join(ingest(tmp_path / "gaps").plan().notes)
    assert (named in notes) if named else ("missing" not in notes)


def test_files_that_are_no_pictures_are_left_alone(stack, ingest):
    (stack / "Thumbs.db").write_bytes(b"x")
    (stack / "._3.tif").write_bytes(b"resource fork")
    (stack / "deeper").mkdir()
    for source in (stack, stack / "*.tif"):
        assert ingest(source).plan().refusals == ()
        assert ingest(source).plan().voxels == SECTIONS.size


def test_a_name_that_is_no_text_is_refused_as_such(stack, ingest):
    (stack / "3.tif").rename(stack / os.fsdecode(b"\xff3.tif"))
    assert r"the name '\udcff3.tif' is no UTF-8" in refusals_of(ingest(stack))


def test_a_stack_of_unequal_pages_is_refused_by_their_numbers(tmp_path, ingest):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for z in range(5):
            file.write(SECTIONS[z][: 20 if z == 3 else 30], photometric="minisblack")
    refusals = refusals_of(ingest(tmp_path / "x.tif"))
    assert "1 of 5 pages" in refusals
    assert "page 3 is 40 x 20 uint8" in refusals


def test_points_in_time_are_refused_unless_they_are_said_to_be_sections(tmp_path, ingest):
    tifffile.imwrite(tmp_path / "t.tif", SECTIONS, imagej=True, metadata={"axes": "TYX"})
    assert "has 12 points in time, and a layer has none. If they are sections, set axes to zyx" in (
        refusals_of(ingest(tmp_path / "t.tif"))
    )
    assert ingest(tmp_path / "t.tif", axes="zyx").plan().voxels == SECTIONS.size


def npy(array):
    def write(path):
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=True)

    return write


def hdf5(**datasets):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, data in datasets.items():
                file[name] = data

    return write


def bytes_of(content):
    return lambda path: path.write_bytes(content)


def cut(write, keep):
    def write_a_part(path):
        write(path)
        path.write_bytes(path.read_bytes()[:keep])

    return write_a_part


def nifti(path):
    image = nibabel.Nifti1Image(SECTIONS, np.eye(4))
    nibabel.save(image, f"{path}.nii")
    Path(f"{path}.nii").rename(path)


def packed_nifti(path):
    nibabel.save(nibabel.Nifti1Image(SECTIONS, np.eye(4)), f"{path}.nii.gz")
    Path(f"{path}.nii.gz").rename(path)


def zarr_group(path):
    group = zarr.open_group(path, mode="w")
    group.create_array("raw", data=SECTIONS)
    group.create_array("labels", data=SECTIONS)


@pytest.mark.parametrize(
    ("write", "wishes", "named"),
    [
        (npy(SECTIONS), {}, "does not say which of its axes is which; its shape is 12x30x40"),
        (npy(SECTIONS), {"axes": "zyxc"}, "has the shape 12x30x40, but its axes would be zyxc"),
        (npy(SECTIONS), {"axes": "zcx"}, "one letter of tczyx for each axis, x and y among them"),
        (npy(SECTIONS), {"axes": "xyx"}, "one letter of tczyx for each axis, x and y among them"),
        (npy(SECTIONS), {"axes": "zyx", "resolution": None}, "resolution: the source does not say"),
        (npy(SECTIONS[:0]), {"axes": "zyx"}, "has no voxels, its shape is 0x30x40"),
        (npy(SECTIONS[:, :, :0]), {"axes": "zyx"}, "has no voxels, its shape is 12x30x0"),
        (npy(SECTIONS[None, None]), {"axes": "tczyx"}, None),
        (npy(SECTIONS[:, None]), {"axes": "tzyx"}, "has 12 points in time"),
        (npy(SECTIONS * 1j), {"axes": "zyx"}, "voxels of type complex128 cannot be in"),
        (npy(SECTIONS.astype(object)), {"axes": "zyx"}, "voxels of type object cannot be in"),
        (npy(SECTIONS.astype("U3")), {"axes": "zyx"}, "cannot be in a Precomputed layer"),
        (cut(npy(SECTIONS), 1000), {"axes": "zyx"}, "is cut off: it has 1,000 bytes"),
        (cut(npy(SECTIONS), 50), {"axes": "zyx"}, "is no .npy file that can be read"),
        (hdf5(a=SECTIONS, b=SECTIONS), {"axes": "zyx"}, "holds a (12x30x40 uint8), b (12x30x40"),
        (hdf5(a=SECTIONS, b=SECTIONS), {"axes": "zyx", "dataset": "b"}, None),
        (hdf5(a=SECTIONS[:, :0]), {"axes": "zyx"}, "has no voxels, its shape is 12x0x40"),
        (hdf5(a=SECTIONS), {"axes": "zyx", "dataset": "c/d"}, "has no dataset 'c/d' of numbers"),
        (hdf5(a=3, b="text"), {}, "holds no volumes: choose another file"),
        (cut(hdf5(a=SECTIONS), 3000), {"axes": "zyx"}, "is no HDF5 that can be read"),
        (nifti, {"resolution": None}, "resolution: the source does not say"),
        (cut(nifti, 5000), {}, "is cut off: it has 5,000 bytes"),
        (cut(packed_nifti, -200), {}, "cannot be unpacked: Compressed file ended before"),
        (bytes_of(b"\x1f\x8b no gzip"), {}, "is no NIfTI that can be read"),
        (bytes_of(b"MZ" + bytes(999)), {}, "is none of TIFF, PNG, JPEG, .npy, HDF5, NIfTI"),
        (bytes_of(b""), {}, "is none of TIFF, PNG, JPEG, .npy, HDF5, NIfTI"),
        (zarr_group, {"axes": "zyx"}, "labels (12x30x40 uint8), raw (12x30x40 uint8): set dataset"),
        (zarr_group, {"axes": "zyx", "dataset": "raw"}, None),
        (zarr_group, {"axes": "zyx", "dataset": "none"}, "has no array none"),
        (zarr_group, {"axes": "zyx", "dataset": "../../etc"}, "is no Zarr that can be read"),
        (lambda path: path.mkdir(), {}, "there is no file at"),
        (lambda path: None, {}, "there is no file at"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_read_are_refused(tmp_path, ingest, write, wishes, named):
    write(tmp_path / "source")
    before = snapshot(tmp_path)
    stage = ingest(tmp_path / "source", **wishes)
    if named is None:
        assert stage.plan().refusals == ()
    else:
        assert named in refusals_of(stage)
    assert snapshot(tmp_path) == before


def test_a_folder_of_other_files_is_refused_by_what_it_holds(tmp_path, ingest):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/readme.md").write_text("x")
    named = (
        "holds neither pictures (.tif, .tiff, .png, .jpg, .jpeg) nor build chunks, but readme.md"
    )
    assert named in refusals_of(ingest(tmp_path / "data"))


@pytest.mark.parametrize(
    ("chunks", "wishes", "named"),
    [
        (["0-4_0-4_0-4", "8-12_0-4_0-4"], {}, "leave 64 voxels out: 4-8_0-4_0-4: add the files"),
        (["0-4_0-4_0-4", "8-12_0-4_0-4"], {"fill_missing": True}, None),
        (["0-4_0-4_0-4", "3-7_0-4_0-4"], {}, "overlap, so that voxels are told twice: 0-4_0-4_0-4"),
        (["0-4_0-4_0-4", "0-2_0-2_0-2"], {}, "overlap"),
        (["0-4_0-4_0-4", "-4-0_0-4_0-4"], {}, None),
        (["0-4_0-4_0-4", "0-4_0-4_900000000000-900000000004"], {}, "leave 14,399,999,999,936 vox"),
    ],
)
def test_holes_and_overlaps_of_build_chunks_are_named(tmp_path, ingest, chunks, wishes, named):
    for name in chunks:
        sides = [part.rpartition("-") for part in name.split("_")]
        size = [int(high) - int(low) for low, _, high in sides]
        write_chunk(tmp_path / "build", name, np.zeros((*size, 1), "uint8"))
    stage = ingest(tmp_path / "build", max_mips=0, **wishes)
    if named is None:
        assert stage.plan().refusals == ()
    else:
        assert named in refusals_of(stage)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda path: path.write_bytes(b"no zlib"),
            "4-8_0-4_0-4 is no zlib stream of a .npy stream that fits its name",
        ),
        (
            lambda path: path.write_bytes(zlib.compress(b"no npy")),
            "4-8_0-4_0-4 is no zlib stream of a .npy stream that fits its name",
        ),
        (
            lambda path: write_chunk(path.parent, path.name, np.zeros((4, 4, 3, 1), "uint8")),
            "its array has the shape (4, 4, 3, 1), and its name says 4,4,4",
        ),
        (
            lambda path: write_chunk(path.parent, path.name, np.zeros((4, 4, 4, 1), "uint16")),
            "4-8_0-4_0-4 holds uint16 in 1 channel(s), 0-4_0-4_0-4 uint8 in 1",
        ),
        (
            lambda path: write_chunk(path.parent, path.name, np.zeros((4, 4, 4, 2), "uint8")),
            "4-8_0-4_0-4 holds uint8 in 2 channel(s), 0-4_0-4_0-4 uint8 in 1",
        ),
        (
            lambda path: write_chunk(path.parent, path.name, np.full((4, 4, 4), None)),
            "4-8_0-4_0-4 holds object in 1 channel(s)",
        ),
    ],
)
def test_build_chunks_that_do_not_fit_are_named(tmp_path, ingest, spoil, named):
    for name in ("0-4_0-4_0-4", "4-8_0-4_0-4"):
        write_chunk(tmp_path / "build", name, np.zeros((4, 4, 4, 1), "uint8"))
    spoil(tmp_path / "build/4-8_0-4_0-4")
    assert named in refusals_of(ingest(tmp_path / "build"))


def test_build_chunks_without_channels_are_refused(tmp_path, ingest):
    write_chunk(tmp_path / "build", "0-4_0-4_0-4", np.zeros((4, 4, 4, 0), "uint8"))
    assert "its array has the shape (4, 4, 4, 0), and its name says 4,4,4" in refusals_of(
        ingest(tmp_path / "build")
    )


@pytest.mark.parametrize(
    ("spec", "voxels", "wishes", "named"),
    [
        ({"chunk_size": (16, 16, 16)}, None, {"chunk_size": (8, 8, 8)}, "chunk_size: 8,8,8, but"),
        ({}, None, {"encoding": "png"}, "encoding: png, but the existing scale"),
        ({}, None, {"layer_type": "segmentation"}, "is of type image, not segmentation"),
        ({}, random_voxels(Vec3(40, 30, 12), "uint16"), {}, "holds uint16 in 1 channel(s)"),
        ({}, random_voxels(Vec3(40, 30, 9)), {}, "reaches out of the destination's scale"),
        ({"voxel_offset": (1, 2, 3)}, None, {"voxel_offset": (0, 0, 0)}, "reaches out of"),
        ({"resolution": (9, 9, 40)}, None, {}, "resolution: the destination has mips, but none of"),
        (
            {}, random_voxels(Vec3(90, 90, 90)), {"voxel_offset": (1, 8, 8), "max_mips": 0},
            "would fill only parts of the destination's chunks, which come in blocks of 8,8,8",
        ),
    ],
)  # fmt: skip
def test_a_destination_that_exists_is_never_changed_to_fit(
    tmp_path, stack, spec, voxels, wishes, named
):
    if voxels is None:
        voxels = random_voxels(Vec3(40, 30, 12))
    wishes = {"resolution": (4, 4, 40)} | wishes
    write_layer(tmp_path / "dest", voxels, LayerSpec(**({"resolution": (4, 4, 40)} | spec)))
    before = snapshot(tmp_path)
    assert named in refusals_of(Ingest(source=str(stack), dest=f"{tmp_path}/dest", **wishes))
    assert snapshot(tmp_path) == before


def test_a_destination_that_exists_says_what_nobody_asks_for(tmp_path, stack, ingest):
    spec = LayerSpec("segmentation", (8, 8, 4), (5, -6, 7), (3, 3, 30))
    write_layer(tmp_path / "dest", random_voxels(Vec3(40, 30, 12)), spec)
    info = json.loads((tmp_path / "dest/info").read_text())
    stage = ingest(stack, resolution=None, layer_type="segmentation", max_mips=1).resolved()
    assert "voxels are of 3 x 3 x 30 nm" in stage.plan().notes
    with pytest.raises(PlanRefused, match=r"the voxels of mip 0 of .* would be replaced"):
        stage.plan().require_accepted()
    stage.accepted().prepare()
    after = json.loads((tmp_path / "dest/info").read_text())
    assert after["scales"][0] == info["scales"][0]
    assert [scale["voxel_offset"] for scale in after["scales"]] == [[5, -6, 7], [2, -3, 7]]


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"encoding": "compressed_segmentation"}, "holds uint32, uint64, not uint8"),
        ({"background_color": 300}, "300 is not a value of uint8"),
        ({"shape": (30, 30, 30)}, "would fill only parts of chunks"),
        ({"chunk_size": (4000, 4000, 60), "memory_target": 1_000_000, "max_mips": 0}, None),
    ],
)
def test_what_a_layer_cannot_take_is_refused(stack, ingest, wishes, named):
    stage = ingest(stack, **wishes)
    assert (named in refusals_of(stage)) if named else not stage.plan().refusals


def test_labels_are_integers_of_one_channel(tmp_path, ingest):
    np.save(tmp_path / "f.npy", SECTIONS.astype("float32"))
    np.save(tmp_path / "c.npy", np.stack([SECTIONS] * 3))
    wishes = {"layer_type": "segmentation"}
    refusals = refusals_of(ingest(tmp_path / "f.npy", axes="zyx", **wishes))
    assert "labels are integers, and the source holds float32" in refusals
    refusals = refusals_of(ingest(tmp_path / "c.npy", axes="czyx", **wishes))
    assert "labels have one channel, and the source has 3" in refusals


def test_an_image_that_looks_like_labels_is_pointed_out(tmp_path, ingest):
    np.save(tmp_path / "l.npy", SECTIONS.astype("uint64"))
    notes = "\n".join(ingest(tmp_path / "l.npy", axes="zyx").plan().notes)
    assert "set layer_type to segmentation" in notes


def test_types_that_change_or_are_not_shown_are_pointed_out(tmp_path, ingest):
    for dtype, named in {
        "?": "voxels of type bool become uint8",
        "f2": "voxels of type float16 become float32",
        "f8": "Neuroglancer does not show float64",
    }.items():
        np.save(tmp_path / "v.npy", SECTIONS.astype(dtype))
        assert named in "\n".join(ingest(tmp_path / "v.npy", axes="zyx").plan().notes)


def test_the_layer_must_lie_elsewhere_than_its_source(tmp_path, stack, ingest):
    (tmp_path / "link").symlink_to(stack)
    for dest in (stack, f"{stack}/", tmp_path / "link"):
        assert "is the folder of the source" in refusals_of(ingest(stack, dest=str(dest)))
    write_layer(
        tmp_path / "dest", random_voxels(Vec3(40, 30, 12)), LayerSpec(resolution=(4, 4, 40))
    )
    stack.rename(tmp_path / "dest/8_8_40")
    refusals = refusals_of(ingest(tmp_path / "dest/8_8_40"))
    assert "8_8_40 of the destination holds the source" in refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""), ("source", "stack"), ("source", "gs://"), ("source", "/a\nb"),
        ("source", "file://x"), ("source", None),
        ("resolution", "4,4"), ("resolution", "4,4,0"), ("resolution", "4,4,nan"),
        ("resolution", (4, 4, float("inf"))), ("resolution", (4, True, 4)), ("resolution", 4),
        ("axes", "abc"), ("axes", "x"), ("axes", "zyx; rm"), ("layer_type", "mesh"),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused_at_once(field, value):
    values = {"source": "/data/stack", "dest": "/data/layer", field: value}
    with pytest.raises(ValidationError, match=field):
        Ingest(**values)


@pytest.mark.parametrize("text", ["4.6,4.6,45", " 4.6, 4.60 ,4.5e1", [4.6, 4.6, 45]])
def test_a_resolution_is_three_numbers_in_any_spelling(text):
    stage = Ingest(source="/data/stack", dest="/data/layer", resolution=text)
    assert stage.resolution == (4.6, 4.6, 45.0)
    assert stage.parameters()["resolution"] == [4.6, 4.6, 45.0]


@pytest.mark.parametrize(
    "address", ["/d/x.zarr", "zarr:///d/x.zarr", "zarr3://file:///d/x.zarr/", "file:///d/x.zarr"]
)
def test_a_source_has_one_spelling(address):
    assert Ingest(source=address, dest="/data/layer").source == "file:///d/x.zarr"
