"""HDF5 sources read nothing outside of their folder, whatever the file names."""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from igneous_airflow.errors import PermanentError
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.sources.opening import Reading, find_source, look_into, open_source
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.overlap import Overlap

SHAPE = (6, 20, 30)
SECRET = (np.arange(np.prod(SHAPE)) % 251 + 1).astype("uint8").reshape(SHAPE)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the source's, of a name that begins alike."""
    folder = tmp_path / "data-private"
    folder.mkdir()
    (folder / "secret.json").write_bytes(SECRET.tobytes())
    with h5py.File(folder / "secret.h5", "w") as file:
        file["main"] = SECRET
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture(params=["disk", "bucket"])
def ingest(request: pytest.FixtureRequest, tmp_path: Path, data: Path):
    """Ingests a file of the folder, from disk or from a bucket with the same content."""

    def make(name: str = "v.h5", **wishes: object) -> Ingest:
        url = f"file://{data}"
        if request.param == "bucket":
            url = f"mem://{tmp_path.name}{os.getpid()}/data"
            for path in filter(Path.is_file, data.rglob("*")):
                folder = open_folder(url)
                folder.write(str(path.relative_to(data)), StoredFile(path.read_bytes()))
        options = {"axes": "zyx", "resolution": (4, 4, 40), "max_mips": 0} | wishes
        return Ingest(source=f"{url}/{name}", dest=f"{tmp_path}/dest", **options)

    return make


def external(path: Path, name: str) -> None:
    """A dataset whose values lie in another file, as h5py writes it."""
    with h5py.File(path, "w") as file:
        file.create_dataset("main", SHAPE, "uint8", external=[(name, 0, SECRET.size)])


def virtual(path: Path, *sources: tuple[str, str], shape: tuple[int, ...] = SHAPE) -> None:
    """A dataset of planes, taken in turn from the first planes of other datasets."""
    layout = h5py.VirtualLayout((len(sources) * shape[0], *shape[1:]), "uint8")
    for i, (file, dataset) in enumerate(sources):
        at = slice(i * shape[0], (i + 1) * shape[0])
        layout[at] = h5py.VirtualSource(file, dataset, shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("main", layout)


def growing(path: Path, name: str) -> None:
    """A virtual dataset that has as many planes as its source."""
    with h5py.File(path, "w", libver="latest") as file:
        spaces = []
        for _ in range(2):
            space = h5s.create_simple(SHAPE, (h5s.UNLIMITED, *SHAPE[1:]))
            space.select_hyperslab((0, 0, 0), (h5s.UNLIMITED, 1, 1), (1, 1, 1), (1, *SHAPE[1:]))
            spaces.append(space)
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_virtual(spaces[0], name.encode(), b"main", spaces[1])
        space = h5s.create_simple(SHAPE, (h5s.UNLIMITED, *SHAPE[1:]))
        h5d.create(file.id, b"main", h5t.STD_U8LE, space, properties)


def read_as_a_task(stage: Ingest) -> None:
    """Read all that tasks read; they do not plan."""
    reading = Reading(axes=stage.axes, dataset=stage.dataset)
    read(open_source(find_source(stage.source), reading))


def refusals(stage: Ingest) -> str:
    return "; ".join(stage.plan().refusals)


def through_a_file(path: Path, write, name: str) -> None:
    """A virtual dataset of a dataset that leads outside."""
    write(path.with_name("inner.h5"), name)
    virtual(path, ("inner.h5", "main"))


def through_two_files(path: Path, write, name: str) -> None:
    through_a_file(path.with_name("middle.h5"), write, name)
    virtual(path, ("middle.h5", "main"))


def through_a_link(path: Path, write, name: str) -> None:
    """An external link inside of the folder to a dataset that leads outside."""
    write(path.with_name("inner.h5"), name)
    with h5py.File(path, "w") as file:
        file["deep/er/main"] = h5py.ExternalLink("inner.h5", "main")


def link(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file["groups/of/groups/main"] = h5py.ExternalLink(name, "main")


def link_as_main(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file["main"] = h5py.ExternalLink(name, "main")


def soft_link_to_a_link(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = h5py.ExternalLink(name, "main")
        file["b"] = h5py.SoftLink("/a")


def virtual_of_one(path: Path, name: str) -> None:
    virtual(path, (name, "main"))


WAYS = {
    "external storage": (external, {}),
    "a virtual dataset": (virtual_of_one, {}),
    "a growing virtual dataset": (growing, {}),
    "an external link": (link, {}),
    "an external link by name": (link, {"dataset": "groups/of/groups/main"}),
    "a soft link to an external link": (soft_link_to_a_link, {"dataset": "b"}),
    "external storage behind a virtual dataset": (
        lambda path, name: through_a_file(path, external, name), {},
    ),
    "a virtual dataset behind two others": (
        lambda path, name: through_two_files(path, virtual_of_one, name), {},
    ),
    "external storage behind a link": (
        lambda path, name: through_a_link(path, external, name), {},
    ),
    "a link behind a virtual dataset": (
        lambda path, name: through_a_file(path, link_as_main, name), {},
    ),
}  # fmt: skip
DIRECT = ("external storage", "a virtual dataset", "an external link")
NAMES = ["../data-private/{}", "sub/../../data-private/{}", "./../data-private/{}"]


@pytest.mark.parametrize(
    ("way", "spelling"),
    [(way, "absolute") for way in WAYS] + [(way, name) for way in DIRECT for name in NAMES],
)
def test_a_file_outside_of_the_folder_is_refused_by_its_name(
    data: Path, outside: Path, ingest, way: str, spelling: str
) -> None:
    write, wishes = WAYS[way]
    file = "secret.json" if "storage" in way else "secret.h5"
    name = str(outside / file) if spelling == "absolute" else spelling.format(file)
    write(data / "v.h5", name)
    (data / "sub").mkdir()
    stage = ingest(**wishes)
    said = refusals(stage)
    assert repr(name) in said
    assert "outside of" in said
    with pytest.raises(PermanentError, match="outside of"):
        read_as_a_task(stage)


@pytest.mark.parametrize("way", DIRECT)
@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e/secret.h5", "%252E%252e/secret.h5", "..\\secret.h5", "sub\\..\\..\\secret.h5",
        "s3://other/secret.h5", "https://example.org/x.h5", "//other/x.h5", "..",
    ],
)  # fmt: skip
def test_in_a_bucket_no_spelling_leads_out(tmp_path: Path, data: Path, way: str, name: str) -> None:
    written = name.replace("%", "%%") if way == "a virtual dataset" else name
    WAYS[way][0](data / "v.h5", written)
    url = f"mem://{tmp_path.name}/data"
    open_folder(url).write("v.h5", StoredFile((data / "v.h5").read_bytes()))
    open_folder(f"mem://{tmp_path.name}").write("secret.h5", StoredFile(SECRET.tobytes()))
    stage = Ingest(source=f"{url}/v.h5", dest=f"{tmp_path}/d", axes="zyx", resolution=(1, 1, 1))
    assert f"names the file {name!r}, which lies outside of {url}" in refusals(stage)


@pytest.mark.parametrize("way", DIRECT)
def test_a_link_on_disk_that_leads_out_is_refused(
    tmp_path: Path, data: Path, outside: Path, way: str
) -> None:
    file = "secret.json" if way == "external storage" else "secret.h5"
    (data / "inner.h5").symlink_to(outside / file)
    WAYS[way][0](data / "v.h5", "inner.h5")
    stage = Ingest(source=f"{data}/v.h5", dest=f"{tmp_path}/d", axes="zyx", resolution=(1, 1, 1))
    assert "'inner.h5', which lies outside of" in refusals(stage)


@pytest.mark.parametrize("way", ["a virtual dataset", "a growing virtual dataset"])
def test_a_pipe_among_the_sources_is_not_waited_for(tmp_path: Path, data: Path, way: str) -> None:
    os.mkfifo(data / "pipe.h5")
    WAYS[way][0](data / "v.h5", "pipe.h5")
    stage = Ingest(source=f"{data}/v.h5", dest=f"{tmp_path}/d", axes="zyx", resolution=(1, 1, 1))
    expected = "grows with its sources" if "growing" in way else "main in pipe.h5"
    assert expected in refusals(stage)


@pytest.mark.parametrize("way", DIRECT)
def test_what_comes_to_lead_out_after_the_plan_is_refused_by_the_task(
    data: Path, outside: Path, ingest, way: str
) -> None:
    """As when the file is changed in the moment between a task's look at it and its reading."""
    storage = way == "external storage"
    shutil.copy(outside / ("secret.json" if storage else "secret.h5"), data / "inner.h5")
    write, wishes = WAYS[way]
    write(data / "v.h5", "inner.h5")
    stage = ingest(**wishes)
    assert stage.plan().refusals == ()
    found = find_source(stage.source)
    write(data / "v.h5", str(outside / ("secret.json" if storage else "secret.h5")))
    ingest()  # copies the folder again where it is in a bucket
    with pytest.raises(PermanentError, match=r"outside of|is no HDF5 that can be read"):
        read(open_source(found, Reading(axes="zyx", fill_missing=True)))


def test_a_dataset_that_becomes_another_one_while_tasks_read_is_refused(
    data: Path, outside: Path
) -> None:
    with h5py.File(data / "v.h5", "w") as file:
        file.create_dataset("main", data=SECRET, chunks=(2, 10, 10))
    source = open_source(find_source(f"file://{data}/v.h5"), Reading(axes="zyx"))
    np.testing.assert_array_equal(read(source), SECRET)
    for write in (external, virtual_of_one, link_as_main):
        file = "secret.json" if write is external else "secret.h5"
        write(data / "v.h5", str(outside / file))
        with pytest.raises(PermanentError, match="main, cannot be read"):
            read(source)


def test_values_that_come_to_lie_elsewhere_while_tasks_read_are_refused(
    data: Path, outside: Path
) -> None:
    odd = h5t.STD_U16LE.copy()
    odd.set_precision(12)

    def write(properties: h5p.PropDCID) -> None:
        with h5py.File(data / "v.h5", "w") as file:
            space = h5s.create_simple(SHAPE)
            dataset = h5d.create(file.id, b"main", odd, space, properties)
            if not properties.get_external_count():
                dataset.write(h5s.ALL, h5s.ALL, SECRET.astype("u2"))

    write(h5p.create(h5p.DATASET_CREATE))
    source = open_source(find_source(f"file://{data}/v.h5"), Reading(axes="zyx"))
    np.testing.assert_array_equal(read(source), SECRET)
    leads_out = h5p.create(h5p.DATASET_CREATE)
    leads_out.set_external(str(outside / "secret.json").encode(), 0, h5s.UNLIMITED)
    write(leads_out)
    with pytest.raises(PermanentError, match="its values lie in another file"):
        read(source)


def test_references_are_not_followed(tmp_path: Path, data: Path, outside: Path) -> None:
    with h5py.File(data / "v.h5", "w") as file:
        file["other"] = SECRET[0]
        file["main"] = np.full((2, 2), file["other"].ref, h5py.ref_dtype)
        region = file["other"].regionref[0:1, 0:1]
        file["region"] = np.full((2, 2), region, h5py.regionref_dtype)
    for dataset in ("main", "region"):
        stage = Ingest(
            source=f"{data}/v.h5", dest=f"{tmp_path}/d", axes="zyx", resolution=(1, 1, 1),
            dataset=dataset,
        )  # fmt: skip
        assert f"has no dataset '{dataset}' of numbers" in refusals(stage)


def read(source, part: BoundingBox | None = None) -> np.ndarray:
    """A box of a source as (z, y, x)."""
    with Overlap(1) as overlap:
        ((_, voxels),) = source.parts(part or source.bounds, overlap)
    return voxels[..., 0].transpose(2, 1, 0)


# what is inside works


def opened(stage: Ingest, **reading: object):
    found = find_source(stage.source)
    options = Reading(axes="zyx", **reading)
    findings = look_into(found, options)
    assert findings.problems == ()
    return open_source(found, options), findings.notes


@pytest.mark.parametrize("way", WAYS)
def test_files_of_the_folder_are_read(data: Path, outside: Path, ingest, way: str) -> None:
    if "growing" in way:
        return
    write, wishes = WAYS[way]
    (data / "sub").mkdir()
    for name in ("secret.h5", "secret.json"):
        shutil.copy(outside / name, data / "sub" / name)
    write(data / "v.h5", "sub/../sub/secret.json" if "storage" in way else "./sub/secret.h5")
    source, _ = opened(ingest(), dataset=wishes.get("dataset"))
    np.testing.assert_array_equal(read(source), SECRET)


def test_files_of_the_folder_may_be_named_from_the_root_and_through_links(
    tmp_path: Path, data: Path, outside: Path
) -> None:
    shutil.copy(outside / "secret.h5", data / "part.h5")
    (data / "again.h5").symlink_to("part.h5")
    virtual(data / "v.h5", (f"{data}/part.h5", "main"), ("again.h5", "main"))
    (tmp_path / "linked").symlink_to(data)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "v.h5").symlink_to(data / "v.h5")
    for address in (data, tmp_path / "linked", tmp_path / "elsewhere"):
        source = open_source(find_source(f"file://{address}/v.h5"), Reading(axes="zyx"))
        np.testing.assert_array_equal(read(source), np.concatenate([SECRET, SECRET]))


@pytest.mark.parametrize("chunks", [None, (2, 7, 11)])
def test_virtual_datasets_of_any_parts_are_what_hdf5_reads(data: Path, ingest, chunks) -> None:
    random = np.random.default_rng(3)
    parts = [random.integers(0, 255, (9, 20, 30), "uint8") for _ in range(3)]
    for i, part in enumerate(parts):
        with h5py.File(data / f"p{i}.h5", "w") as file:
            file.create_dataset("main", data=part, chunks=chunks)
            file.create_dataset("plane", data=part[0], chunks=chunks and chunks[1:])
    layout = h5py.VirtualLayout((20, 20, 30), "uint16")
    layout[0:9:3] = h5py.VirtualSource("p0.h5", "main", (9, 20, 30))[3:6]
    layout[1:9:3] = h5py.VirtualSource("p1.h5", "main", (9, 20, 30))[::4]
    layout[9, 3:13, 5:25:2] = h5py.VirtualSource("p2.h5", "plane", (20, 30))[5:15, 10:20]
    layout[12:15, :, 0:15] = h5py.VirtualSource("p2.h5", "main", (9, 20, 30))[2:8:2, :, ::2]
    with h5py.File(data / "v.h5", "w") as file:
        file.create_virtual_dataset("main", layout, fillvalue=77)
    with h5py.File(data / "v.h5") as file:
        expected = file["main"][:]
    source, notes = opened(ingest())
    assert any("come from no source: they are 77" in note for note in notes + source.notes)
    np.testing.assert_array_equal(read(source), expected)
    for text in ("3-17_2-19_8-14", "0-1_0-1_0-20", "29-30_19-20_0-20", "4-28_0-20_9-10"):
        part = BoundingBox.parse(text)
        x, y, z = part.slices_within(source.bounds)
        np.testing.assert_array_equal(read(source, part), expected[z, y, x])


def test_values_in_several_files_are_joined(data: Path, ingest) -> None:
    values = SECRET.tobytes()
    (data / "a.raw").write_bytes(b"head" + values[:1000] + b"tail")
    (data / "b.raw").write_bytes(values[1000:])
    files = [("a.raw", 4, 1000), ("b.raw", 0, h5s.UNLIMITED)]
    with h5py.File(data / "v.h5", "w") as file:
        file.create_dataset("main", SHAPE, "uint8", external=files)
    source, _ = opened(ingest())
    np.testing.assert_array_equal(read(source), SECRET)


def test_a_file_that_is_shorter_than_what_is_taken_of_it_is_refused(data: Path, ingest) -> None:
    (data / "a.raw").write_bytes(bytes(1000))
    (data / "b.raw").write_bytes(bytes(SECRET.size))
    files = [("a.raw", 0, 1001), ("b.raw", 0, h5s.UNLIMITED)]
    with h5py.File(data / "v.h5", "w") as file:
        file.create_dataset("main", SHAPE, "uint8", external=files)
    assert "takes 1,001 bytes of" in refusals(ingest())


# what is missing is named


@pytest.fixture
def nineteen(data: Path) -> Path:
    """A virtual dataset of 19 files."""
    for i in range(19):
        with h5py.File(data / f"part{i}.h5", "w") as file:
            file["main"] = np.full((2, 8, 9), i + 1, "uint8")
    virtual(data / "v.h5", *[(f"part{i}.h5", "main") for i in range(19)], shape=(2, 8, 9))
    return data


def test_missing_sources_are_counted_and_the_first_ones_named(nineteen: Path, ingest) -> None:
    (nineteen / "part7.h5").unlink()
    said = refusals(ingest())
    assert "1 of 19 sources of the virtual dataset /main of" in said
    assert "missing: main in part7.h5. Restore them, or set fill_missing" in said
    for path in nineteen.glob("part*.h5"):
        path.unlink()


def test_when_all_sources_are_missing_all_are_counted(nineteen: Path, tmp_path: Path) -> None:
    for path in nineteen.glob("part*.h5"):
        path.unlink()
    stage = Ingest(
        source=f"{nineteen}/v.h5", dest=f"{tmp_path}/d", axes="zyx", resolution=(1, 1, 1)
    )
    said = refusals(stage)
    assert "19 of 19 sources" in said
    assert "main in part9.h5 and 9 more" in said
    with pytest.raises(PermanentError, match=r"part0\.h5, which is not there"):
        read_as_a_task(stage)


def test_with_fill_missing_they_are_background_and_the_plan_says_which(
    nineteen: Path, ingest
) -> None:
    (nineteen / "part7.h5").unlink()
    with h5py.File(nineteen / "part3.h5", "w") as file:
        file["other"] = 1
    with h5py.File(nineteen / "part4.h5", "w") as file:
        file["main"] = np.ones((1, 8, 9), "uint8")
    stage = ingest(fill_missing=True, background_color=99)
    plan = stage.plan()
    assert plan.refusals == ()
    (note,) = [note for note in plan.notes if "are missing" in note]
    assert "3 of 19 sources" in note
    for part in ("main in part3.h5 (the file has no such", "main in part4.h5 (", "part7.h5"):
        assert part in note
    assert note.endswith("they become background")
    source, _ = opened(stage, fill_missing=True, background=99)
    planes = read(source)[:, 0, 0].tolist()
    assert planes == [v for i in range(19) for v in [99 if i in (3, 4, 7) else i + 1] * 2]


def test_a_missing_source_of_a_source_is_named_too(nineteen: Path, ingest) -> None:
    virtual(nineteen / "all.h5", ("v.h5", "main"), shape=(38, 8, 9))
    (nineteen / "part7.h5").unlink()
    assert "main in part7.h5" in refusals(ingest("all.h5"))
    (note,) = [n for n in ingest("all.h5", fill_missing=True).plan().notes if "missing" in n]
    assert "main in part7.h5; they become background" in note


def test_a_broken_source_is_refused_whatever_is_filled(nineteen: Path, ingest) -> None:
    (nineteen / "part7.h5").write_bytes(b"no HDF5")
    assert "part7.h5 is no HDF5 that can be read" in refusals(ingest(fill_missing=True))


# files that lead around


def test_datasets_that_are_made_of_themselves_are_refused(data: Path, ingest) -> None:
    virtual(data / "a.h5", ("b.h5", "main"))
    virtual(data / "b.h5", ("a.h5", "main"))
    assert "through more than 4 other files" in refusals(ingest("a.h5"))


def test_links_in_a_circle_are_refused(data: Path, ingest) -> None:
    with h5py.File(data / "v.h5", "w") as file:
        file["a"] = h5py.SoftLink("/b")
        file["b"] = h5py.SoftLink("/a")
    assert "leads through more than 32 links" in refusals(ingest(dataset="a"))
    with h5py.File(data / "w.h5", "w") as file:
        file["a"] = h5py.ExternalLink("w.h5", "a")
    assert "through more than 4 other files" in refusals(ingest("w.h5", dataset="a"))


def test_what_takes_the_same_voxels_over_and_over_is_refused(data: Path, ingest) -> None:
    with h5py.File(data / "part.h5", "w") as file:
        file["main"] = SECRET
    layout = h5py.VirtualLayout(SHAPE, "uint8")
    for _ in range(3):
        layout[:] = h5py.VirtualSource("part.h5", "main", SHAPE)[:]
    with h5py.File(data / "v.h5", "w") as file:
        file.create_virtual_dataset("main", layout)
    assert "takes 10,800 voxels for the 3,600 that it has" in refusals(ingest())


def test_links_are_named_with_the_datasets(data: Path, ingest) -> None:
    with h5py.File(data / "v.h5", "w") as file:
        file["a"] = SECRET
        file["b"] = SECRET
        file["deep/c"] = h5py.ExternalLink("other.h5", "main")
    said = refusals(ingest())
    assert "holds a (6x20x30 uint8), b (6x20x30 uint8), deep/c (in other.h5): set dataset" in said
