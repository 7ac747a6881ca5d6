"""What Neuroglancer is told, judged by Neuroglancer's own model of its state."""

import json
from urllib.parse import quote

import neuroglancer
import numpy as np
import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.viewer.state import BASE, Shown, viewer_state

LARGE = 2**63 + 5


@pytest.fixture
def image(tmp_path):
    spec = LayerSpec(voxel_offset=(10, -20, 7), resolution=(4, 4, 40))
    return Layer.open(write_layer(tmp_path / "image", random_voxels(Vec3(100, 60, 20)), spec))


def shown(layer, name="image"):
    return Shown.of(name, f"data/view/{name}", layer)


def test_the_state_is_one_that_neuroglancer_reads(image):
    state = viewer_state([shown(image)])
    text = json.dumps(state).replace(BASE, "http://127.0.0.1:1")
    read = neuroglancer.parse_url(f"http://127.0.0.1:1/#!{quote(text)}")
    assert read.layers["image"].source[0].url == "precomputed://http://127.0.0.1:1/data/view/image"
    assert list(read.dimensions.names) == ["x", "y", "z"]
    np.testing.assert_allclose(read.dimensions.scales, [4e-9, 4e-9, 40e-9])


def test_the_middle_of_the_volume_is_shown_and_all_of_it_fits(image):
    state = viewer_state([shown(image)])
    assert state["position"] == [60, 10, 17]
    assert state["crossSectionScale"] * 500 == 100
    assert state["layout"] == "xy"


def test_objects_that_lie_in_many_blocks_are_chosen_for_their_meshes(tmp_path):
    url = write_layer(
        tmp_path / "labels", random_voxels(Vec3(9, 9, 9), "uint64"), LayerSpec("segmentation")
    )
    folder = tmp_path / "labels"
    info = json.loads((folder / "info").read_text())
    (folder / "info").write_text(json.dumps(info | {"mesh": "mesh_mip_0_err_40"}))
    meshes = folder / "mesh_mip_0_err_40"
    meshes.mkdir()
    for label, fragments in ((3, 1), (LARGE, 9), (5, 2)):
        names = [f"{label}:0:{i}-{i + 1}_0-1_0-1" for i in range(fragments)]
        (meshes / f"{label}:0").write_text(json.dumps({"fragments": names}))
        (meshes / names[0]).write_bytes(b"x" * 1000)
    state = viewer_state([shown(Layer.open(url), "labels")])
    assert state["layers"][0]["segments"] == [str(LARGE), "5", "3"]
    assert state["layers"][0]["type"] == "segmentation"
    assert state["layout"] == "4panel"


@pytest.mark.parametrize(
    ("dtype", "channels", "words"),
    [("uint16", 1, "emitGrayscale"), ("float32", 1, "emitGrayscale"), ("uint8", 3, "emitRGB")],
)
def test_grey_values_of_many_bits_and_colours_are_shown_as_such(tmp_path, dtype, channels, words):
    voxels = random_voxels(Vec3(9, 9, 9), dtype, channels=channels)
    layer = Layer.open(write_layer(tmp_path / "image", voxels, LayerSpec()))
    assert words in viewer_state([shown(layer)])["layers"][0]["shader"]


def test_layers_without_voxels_are_refused(tmp_path):
    layer = Layer.open(write_layer(tmp_path / "none", np.zeros((0, 4, 4, 1), "uint8"), LayerSpec()))
    with pytest.raises(InvalidParameter, match="nothing to show"):
        viewer_state([shown(layer)])
