"""A mesh manifest names files of its own directory, and nothing else is read or deleted for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.storage import bucket
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.storage.meshes import MeshFolder, encode_fragment
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete

ELSEWHERE: list[Any] = [
    "../secret", "..", ".", "/etc/passwd", "a/../../secret", "cells/x", "a/b", "\\..\\secret", "",
    "x\0y", "x\ny", "x\x7f", "\ud800", "x" * 1_025, None, 7, True, ["1:0:x"], {"1:0:x": 1},
]  # fmt: skip
BROKEN: list[Any] = ["1:0:x", {"1:0:x": 1}, None, 7]


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    import numpy as np

    folder = tmp_path / "layer"
    (folder / "mesh").mkdir(parents=True)
    fragment = encode_fragment(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    (folder / "secret").write_bytes(fragment)
    (folder / "mesh" / "1:0:0-8_0-8_0-8").write_bytes(fragment)
    return folder


@pytest.mark.parametrize("name", ELSEWHERE, ids=lambda name: f"{name!r:.20}")
def test_a_manifest_that_names_files_elsewhere_is_refused(layer: Path, name: Any) -> None:
    fragments = ["1:0:0-8_0-8_0-8", name]
    (layer / "mesh" / "1:0").write_text(json.dumps({"fragments": fragments}))
    with pytest.raises(InvalidInfo, match=r"mesh/1:0.*is not the name of a fragment beside it"):
        MeshFolder(open_folder(f"file://{layer}"), "mesh").read_mesh(1)


@pytest.mark.parametrize("fragments", BROKEN)
def test_a_manifest_that_is_no_list_is_refused(layer: Path, fragments: Any) -> None:
    (layer / "mesh" / "1:0").write_text(json.dumps({"fragments": fragments}))
    with pytest.raises(InvalidInfo, match="mesh/1:0 is missing or broken: its fragments"):
        MeshFolder(open_folder(f"file://{layer}"), "mesh").read_mesh(1)


def test_a_manifest_in_a_bucket_is_refused_before_anything_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder: Folder = open_folder("mem://manifests/layer")
    MeshFolder(folder, "mesh").write_manifest(1, ["../../secret"])
    asked: list[str] = []
    real = bucket.BucketFolder.read

    def read(self: bucket.BucketFolder, name: str, *rest: Any) -> Any:
        asked.append(name)
        return real(self, name, *rest)

    monkeypatch.setattr(bucket.BucketFolder, "read", read)
    with pytest.raises(InvalidInfo, match="fragment beside it"):
        MeshFolder(open_folder("mem://manifests/layer"), "mesh").read_mesh(1)
    assert asked == ["mesh/1:0"]


def test_stages_do_not_follow_what_an_older_manifest_names(tmp_path: Path) -> None:
    voxels = random_voxels(Vec3(16, 16, 8), "uint64")
    url = write_layer(tmp_path / "layer", voxels, LayerSpec("segmentation"))
    complete(Mesh(layer=url))
    (tmp_path / "precious").write_bytes(b"x")
    meshes = tmp_path / "layer" / "mesh_mip_0_err_40"
    label = next(name for name in meshes.iterdir() if ":0:" in name.name).name.partition(":")[0]
    (meshes / f"{label}:0").write_text(json.dumps({"fragments": ["../../precious"]}))
    complete(MeshManifest(layer=url, remove_stale=True, confirm=True))
    assert (tmp_path / "precious").exists()
    named = json.loads((meshes / f"{label}:0").read_text())["fragments"]
    assert named
    assert all(name.startswith(f"{label}:0:") for name in named)
