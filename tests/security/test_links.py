"""Links that lead out of a layer are followed by nothing: they are refused by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from igneous_airflow.errors import AccessDenied, IgneousError
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stage import Stage
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage import links
from igneous_airflow.storage.files import StoredFile, open_folder, open_source_folder
from igneous_airflow.storage.links import leads_outside
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete, snapshot

SECRET = b"root:$6$secret"
KEY = "8_8_40"
CHUNK = "0-8_0-8_0-8"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "shadow").write_bytes(SECRET)
    (folder / CHUNK).write_bytes(bytes(512))
    return folder


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    write_layer(tmp_path / "layer", random_voxels(Vec3(32, 16, 8)))
    return tmp_path / "layer"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    voxels = random_voxels(Vec3(32, 16, 8), "uint64")
    write_layer(tmp_path / "labels", voxels, LayerSpec("segmentation"))
    return tmp_path / "labels"


def read_part(folder: LocalFolder, name: str) -> None:
    folder.read_part(name, 0, memoryview(bytearray(1)))


USES: dict[str, Callable[[LocalFolder, str], Any]] = {
    "read": lambda f, name: f.read(name),
    "write": lambda f, name: f.write(name, StoredFile(b"new")),
    "write compressed": lambda f, name: f.write(name, StoredFile(b"new", "gzip")),
    "delete": lambda f, name: f.delete(name),
    "exists": lambda f, name: f.exists(name),
    "stream": lambda f, name: f.stream(name),
    "version": lambda f, name: f.version(name),
    "entry": lambda f, name: f.entry(name),
    "part": read_part,
}
LISTS: dict[str, Callable[[LocalFolder, str], Any]] = {
    "names": lambda f, prefix: list(f.names(prefix)),
    "starting": lambda f, prefix: list(f.names_starting(prefix, ["chunk"])),
    "sizes": lambda f, prefix: list(f.sizes(prefix)),
    "entries": lambda f, prefix: list(f.entries(prefix)),
    "folders": lambda f, prefix: list(f.folders(prefix)),
    "delete": lambda f, prefix: f.delete_folder(prefix),
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".br", ".zstd"])
@pytest.mark.parametrize("use", USES)
def test_a_file_that_is_a_link_out_of_the_folder_is_refused_by_name(
    tmp_path: Path, outside: Path, use: str, suffix: str
) -> None:
    if suffix and use in ("stream", "version", "entry", "part"):
        suffix = ""  # they take names as they are
    folder = tmp_path / "layer" / "scale"
    folder.mkdir(parents=True)
    (folder / f"chunk{suffix}").symlink_to(outside / "shadow")
    with pytest.raises(AccessDenied, match=rf"scale/chunk.* is a link to {outside}/shadow.*remove"):
        USES[use](LocalFolder(tmp_path / "layer"), "scale/chunk")
    assert (folder / f"chunk{suffix}").is_symlink()
    assert (outside / "shadow").read_bytes() == SECRET


@pytest.mark.parametrize("deep", ["", "a/", "a/b/"])
@pytest.mark.parametrize("use", USES)
def test_a_folder_on_the_way_that_is_a_link_out_is_refused_by_name(
    tmp_path: Path, outside: Path, use: str, deep: str
) -> None:
    root = tmp_path / "layer"
    (root / deep).mkdir(parents=True)
    (root / deep / "scale").symlink_to(outside)
    before = snapshot(outside)
    for name in ("shadow", "new", "new/chunk"):
        with pytest.raises(AccessDenied, match=f"{deep}scale is a link to {outside}"):
            USES[use](LocalFolder(root), f"{deep}scale/{name}")
    assert snapshot(outside) == before


@pytest.mark.parametrize("use", LISTS)
def test_a_listed_folder_that_is_a_link_out_is_refused_by_name(
    tmp_path: Path, outside: Path, use: str
) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "scale").symlink_to(outside)
    for prefix in ("scale", "scale/"):
        with pytest.raises(AccessDenied, match=f"scale is a link to {outside}"):
            LISTS[use](LocalFolder(tmp_path / "layer"), prefix)
    assert (outside / "shadow").exists()


@pytest.mark.parametrize("use", [use for use in LISTS if use != "folders"])
def test_a_listing_that_holds_a_link_out_or_to_nothing_is_refused_by_name(
    tmp_path: Path, outside: Path, use: str
) -> None:
    folder = tmp_path / "layer" / "scale"
    folder.mkdir(parents=True)
    (folder / "another").touch()
    for target, why in ((outside / "shadow", "out of"), (folder / "gone", "is not there")):
        (folder / "chunk").symlink_to(target)
        with pytest.raises(AccessDenied, match=f"scale/chunk is a link to {target}.*{why}"):
            LISTS[use](LocalFolder(tmp_path / "layer"), "scale")
        (folder / "chunk").unlink()
        assert (folder / "another").exists()


@pytest.mark.parametrize("use", ["names", "delete"])
def test_a_linked_folder_below_is_not_entered(tmp_path: Path, outside: Path, use: str) -> None:
    (tmp_path / "layer" / "scale").mkdir(parents=True)
    (tmp_path / "layer" / "scale" / "inner").symlink_to(outside)
    if use == "names":
        assert list(LocalFolder(tmp_path / "layer").names("scale")) == []
    else:
        with pytest.raises(AccessDenied, match="inner is a link"):
            LocalFolder(tmp_path / "layer").delete_folder("scale")
    assert sorted(path.name for path in outside.iterdir()) == [CHUNK, "shadow"]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("target", ["gone", "chunk", "../../gone", "loop"])
def test_a_link_to_nothing_is_named(tmp_path: Path, use: str, target: str) -> None:
    folder = tmp_path / "layer" / "scale"
    folder.mkdir(parents=True)
    (folder / "chunk").symlink_to(target)
    (folder / "loop").symlink_to("chunk")
    with pytest.raises(AccessDenied, match=r"scale/chunk is a link to .*remove"):
        USES[use](LocalFolder(tmp_path / "layer"), "scale/chunk")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["..", "../secret", "scale/../../secret", "scale/.."])
def test_a_name_that_leads_upwards_is_refused(tmp_path: Path, use: str, name: str) -> None:
    (tmp_path / "layer" / "scale").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(SECRET)
    with pytest.raises(AccessDenied, match=r"names hold no '\.\.'"):
        USES[use](LocalFolder(tmp_path / "layer"), name)
    assert (tmp_path / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("relative", [False, True])
def test_links_within_the_folder_and_to_it_and_hard_links_are_read(
    tmp_path: Path, relative: bool
) -> None:
    real = tmp_path / "real"
    (real / "scale").mkdir(parents=True)
    (real / "scale" / "chunk").write_bytes(b"chunk")
    (real / "scale" / "same").symlink_to("chunk" if relative else real / "scale" / "chunk")
    (real / "linked").symlink_to("scale" if relative else real / "scale")
    os.link(real / "scale" / "chunk", real / "scale" / "hard")
    (tmp_path / "layer").symlink_to(real)
    folder = LocalFolder(tmp_path / "layer")
    for name in ("scale/chunk", "scale/same", "scale/hard", "linked/chunk", "linked/same"):
        stored = folder.read(name)
        assert stored is not None
        assert stored.content == b"chunk"
        assert folder.exists(name)
        assert folder.entry(name) is not None
    assert sorted(folder.names("linked")) == ["chunk", "hard", "same"]
    assert dict(folder.sizes("scale")) == {"chunk": 5, "hard": 5, "same": 5}
    folder.write("scale/same", StoredFile(b"new"))
    assert (real / "scale" / "chunk").read_bytes() == b"chunk"
    assert (real / "scale" / "same").read_bytes() == b"new"
    folder.delete("scale/hard")
    assert sorted(folder.names("scale")) == ["chunk", "same"]
    folder.delete_folder("scale")
    assert list(folder.names("scale")) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.write("linked/new", StoredFile(b"new")),
        lambda f: f.write("linked/deep/new", StoredFile(b"new")),
        lambda f: f.delete("linked/chunk"),
        lambda f: f.delete_folder("linked"),
        lambda f: f.delete_folder("linked/deep"),
        lambda f: f.rename("linked/chunk", "elsewhere"),
        lambda f: f.rename("other", "linked/other"),
        lambda f: f.rename("linked", "elsewhere"),
        lambda f: f.check_writable(["scale", "linked"]),
    ],
)
def test_nothing_is_changed_through_a_link_within_the_folder(
    tmp_path: Path, change: Callable[[LocalFolder], Any]
) -> None:
    (tmp_path / "scale" / "deep").mkdir(parents=True)
    for name in ("scale/chunk", "scale/deep/chunk", "other"):
        (tmp_path / name).write_bytes(b"chunk")
    (tmp_path / "linked").symlink_to("scale")
    before = snapshot(tmp_path)
    folder = LocalFolder(tmp_path)
    assert folder.exists("linked/chunk")  # which is remembered
    with pytest.raises(AccessDenied, match=r"linked is a link to .*/scale: nothing is written"):
        change(folder)
    assert snapshot(tmp_path) == before


def test_a_partial_file_that_is_a_link_is_not_written_through(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalFolder(tmp_path / "layer")
    planted: list[Path] = []
    real = os.replace

    def replace(source: str, target: str) -> None:
        planted.append(Path(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    folder.write("chunk", StoredFile(b"first"))
    planted[0].symlink_to(outside / "shadow")
    with pytest.raises(AccessDenied, match="is a link"):
        folder.write("chunk", StoredFile(b"second"))
    assert (outside / "shadow").read_bytes() == SECRET
    assert (tmp_path / "layer" / "chunk").read_bytes() == b"first"


def test_a_folder_that_becomes_a_link_while_it_is_used_is_noticed_after_a_second(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: now))
    scale = tmp_path / "layer" / "scale"
    scale.mkdir(parents=True)
    folder = LocalFolder(tmp_path / "layer")
    assert folder.read("scale/shadow") is None
    scale.rmdir()
    scale.symlink_to(outside)
    now += 1.01
    with pytest.raises(AccessDenied, match="scale is a link"):
        folder.read("scale/shadow")


def test_files_of_sources_may_be_links_to_anywhere(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "1.npy").symlink_to(outside / "shadow")
    (tmp_path / "stack" / "2.npy").symlink_to(outside / "gone")
    folder = open_source_folder(f"file://{tmp_path}/stack")
    stored = folder.read("1.npy")
    assert stored is not None
    assert stored.content == SECRET
    assert [(e.name, e.size) for e in sorted(folder.entries(""), key=lambda e: e.name)] == [
        ("1.npy", len(SECRET)),
        ("2.npy", 0),
    ]
    with pytest.raises(AccessDenied):
        open_folder(f"file://{tmp_path}/stack").read("1.npy")


def test_whether_a_name_leads_outside_is_told_for_a_viewer(tmp_path: Path, outside: Path) -> None:
    url = f"file://{tmp_path}/layer"
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "chunk.gz").symlink_to(outside / "shadow")
    (tmp_path / "layer" / "inside").symlink_to(tmp_path / "layer")
    assert leads_outside(url, "chunk")
    assert leads_outside(url, "../outside/shadow")
    assert not leads_outside(url, "inside/info")
    assert not leads_outside("s3://bucket/layer", "../x")


# Stages


def link_chunk(layer: Path, outside: Path) -> None:
    chunk = layer / KEY / CHUNK
    chunk.unlink()
    chunk.symlink_to(outside / CHUNK)


def link_folder(folder: Path, outside: Path) -> None:
    """Put the folder, or an empty one, elsewhere, and a link in its place."""
    target = outside / folder.name
    if folder.exists():
        folder.rename(target)
    else:
        target.mkdir()
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(target)


def refuses(stage: Stage, *, named: Path, outside: Path) -> None:
    """Go through all of a stage's life; it must end by naming the link, and leave the outside."""
    before = snapshot(outside)
    with pytest.raises(IgneousError, match=f"{named}.* is a link to {outside}"):
        complete(stage)
    assert snapshot(outside) == before


@pytest.mark.parametrize("linked", ["chunk", "scale"])
@pytest.mark.parametrize(
    "make",
    [
        lambda layer, tmp_path: Transfer(src=layer, dest=f"{tmp_path}/dest"),
        lambda layer, tmp_path: Transfer(src=layer, dest=f"{tmp_path}/dest", chunk_size=(4, 4, 4)),
        lambda layer, _: Downsample(layer=layer, num_mips=1),
        lambda layer, _: LuminanceLevels(layer=layer),
        lambda layer, _: Delete(layer=layer, confirm=True),
    ],
    ids=["transfer", "rechunk", "downsample", "levels", "delete"],
)
def test_what_stages_read_or_delete_is_never_outside(
    tmp_path: Path, layer: Path, outside: Path, make: Callable[..., Stage], linked: str
) -> None:
    if linked == "chunk":
        link_chunk(layer, outside)
    else:
        link_folder(layer / KEY, outside)
    named = layer / KEY / CHUNK if linked == "chunk" else layer / KEY
    refuses(make(f"file://{layer}", tmp_path), named=named, outside=outside)


@pytest.mark.parametrize("linked", ["chunk", "scale"])
def test_labels_that_are_meshed_are_never_outside(labels: Path, outside: Path, linked: str) -> None:
    if linked == "chunk":
        link_chunk(labels, outside)
    else:
        link_folder(labels / KEY, outside)
    refuses(Mesh(layer=f"file://{labels}"), named=labels / KEY, outside=outside)


def test_new_mips_are_not_written_through_a_link(layer: Path, outside: Path) -> None:
    link_folder(layer / "16_16_40", outside)
    refuses(
        Downsample(layer=f"file://{layer}", num_mips=1), named=layer / "16_16_40", outside=outside
    )


def test_levels_are_not_written_through_a_link(layer: Path, outside: Path) -> None:
    link_folder(layer / "levels", outside)
    refuses(LuminanceLevels(layer=f"file://{layer}"), named=layer / "levels", outside=outside)


def test_a_destination_is_not_written_through_a_link(
    tmp_path: Path, layer: Path, outside: Path
) -> None:
    link_folder(tmp_path / "dest" / KEY, outside)
    stage = Transfer(src=f"file://{layer}", dest=f"{tmp_path}/dest")
    refuses(stage, named=tmp_path / "dest" / KEY, outside=outside)


def test_meshes_and_manifests_are_not_written_through_a_link(labels: Path, outside: Path) -> None:
    meshes = labels / "mesh_mip_0_err_40"
    link_folder(meshes, outside)
    refuses(Mesh(layer=f"file://{labels}"), named=meshes, outside=outside)
    meshes.unlink()
    complete(Mesh(layer=f"file://{labels}"))
    link_folder(meshes / "cells", outside)
    refuses(MeshManifest(layer=f"file://{labels}"), named=meshes / "cells", outside=outside)


def test_an_info_that_is_a_link_out_is_refused(layer: Path, outside: Path) -> None:
    (layer / "info").rename(outside / "info")
    (layer / "info").symlink_to(outside / "info")
    plan = Downsample(layer=f"file://{layer}").plan()
    assert [f"{layer}/info is a link to" in refusal for refusal in plan.refusals] == [True]


def test_a_proof_does_not_take_links_for_chunks(layer: Path, outside: Path) -> None:
    stage = Downsample(layer=f"file://{layer}", num_mips=1)
    complete(stage)
    chunk = next((layer / "16_16_40").iterdir())
    chunk.rename(outside / chunk.name)
    chunk.symlink_to(outside / chunk.name)
    with pytest.raises(AccessDenied, match="is a link to"):
        stage.finish("tester")


def test_sections_that_are_links_within_their_folder_are_ingested(tmp_path: Path) -> None:
    (tmp_path / "stack" / "archive").mkdir(parents=True)
    for z in range(2):
        Image.new("L", (8, 8), z + 1).save(tmp_path / "stack" / "archive" / f"{z}.png")
        (tmp_path / "stack" / f"{z}.png").symlink_to(f"archive/{z}.png")
    stage = Ingest(
        source=f"{tmp_path}/stack",
        dest=f"{tmp_path}/dest",
        resolution=(8, 8, 40),
        layer_type="image",
    )
    assert sum(complete(stage).outputs.values()) >= 1


@pytest.mark.parametrize(
    ("make", "linked"),
    [
        (lambda layer: Delete(layer=layer, mip=1, confirm=True), "16_16_40"),
        (lambda layer: Downsample(layer=layer, num_mips=1, confirm=True), "16_16_40"),
        (lambda layer: Transfer(src=f"{layer}_copy", dest=layer, max_mips=0), KEY),
        (lambda layer: LuminanceLevels(layer=layer), "levels"),
        (lambda layer: Mesh(layer=layer), "mesh_mip_0_err_40"),
    ],
    ids=["delete", "downsample", "transfer", "levels", "mesh"],
)
def test_a_plan_refuses_to_change_a_folder_that_is_a_link_within_the_layer(
    labels: Path, layer: Path, make: Callable[..., Stage], linked: str
) -> None:
    layer = labels if linked.startswith("mesh") else layer
    complete(Downsample(layer=f"file://{layer}", num_mips=1))
    shutil.copytree(layer, f"{layer}_copy")
    (layer / "real").mkdir()
    for file in (layer / linked).iterdir() if (layer / linked).is_dir() else ():
        file.rename(layer / "real" / file.name)
    if (layer / linked).is_dir():
        (layer / linked).rmdir()
    (layer / linked).symlink_to("real")
    before = snapshot(layer)
    plan = make(f"file://{layer}").plan()
    assert f"{layer}/{linked} is a link to {layer}/real" in "\n".join(plan.refusals)
    assert snapshot(layer) == before
