"""Plans of stages that come one after the other, before the first has begun."""

from pathlib import Path

import pytest

from igneous_airflow.chained_plans import plan_following
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stage import Plan, Stage
from igneous_airflow.stages.contrast_normalization import ContrastNormalization
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import snapshot


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    write_layer(path, random_voxels(Vec3(40, 33, 6)), LayerSpec(chunk_size=(16, 16, 4)))
    return f"file://{path}"


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels"
    spec = LayerSpec("segmentation", chunk_size=(16, 16, 8))
    write_layer(path, random_voxels(Vec3(40, 33, 9), "uint64"), spec)
    return f"file://{path}"


def planned(first: Stage, *following: Stage) -> list[Plan]:
    first = first.resolved()
    return plan_following(first, first.plan(), following)


def test_each_stage_is_planned_on_what_those_before_it_would_make(
    image: str, tmp_path: Path
) -> None:
    before, bright = snapshot(tmp_path), f"file://{tmp_path}/bright"
    contrast = ContrastNormalization(src=image, dest=bright, skip_downsamples=True)
    plans = planned(LuminanceLevels(layer=image), contrast, Downsample(layer=bright, num_mips=1))
    assert [plan.refusals for plan in plans] == [(), ()]
    assert [plan.voxels for plan in plans] == [40 * 33 * 6] * 2
    assert "20,17,6 voxels, chunks of 16,16,4" in plans[1].outputs[0]
    assert snapshot(tmp_path) == before


def test_what_is_refused_for_want_of_an_earlier_stage_is_refused_without_it(
    image: str, labels: str, tmp_path: Path
) -> None:
    contrast = ContrastNormalization(src=image, dest=f"file://{tmp_path}/bright")
    alone = contrast.plan()
    assert alone.refusals == alone.awaited != ()
    assert planned(LuminanceLevels(layer=image), contrast)[0].refusals == ()
    Mesh(layer=labels).resolved().prepare()
    alone = MeshManifest(layer=labels).plan()
    assert alone.refusals == alone.awaited != ()
    assert planned(Mesh(layer=labels), MeshManifest(layer=labels))[0].refusals == ()


def test_what_no_earlier_stage_takes_away_is_refused_and_ends_the_plans(
    image: str, tmp_path: Path
) -> None:
    bright = f"file://{tmp_path}/bright"
    outside = ContrastNormalization(src=image, dest=bright, bounds="0-40_0-33_0-7")
    plans = planned(LuminanceLevels(layer=image), outside, Downsample(layer=bright))
    assert len(plans) == 1
    assert "reaches out of the source" in plans[0].refusals[0]


@pytest.mark.parametrize("scope", ["section", "global"])
def test_damaged_levels_that_are_to_be_counted_anew_are_no_reason(
    image: str, tmp_path: Path, scope: str
) -> None:
    levels = tmp_path / "image" / "levels" / "0"
    levels.mkdir(parents=True)
    for z in range(6):
        (levels / str(z)).write_bytes(b"," * 600)
    contrast = ContrastNormalization(src=image, dest=f"file://{tmp_path}/bright", scope=scope)
    assert planned(LuminanceLevels(layer=image), contrast)[0].refusals == ()
    if scope == "global":
        assert "levels: " in contrast.resolved().plan().refusals[0]


def test_fragments_of_another_grid_are_told_before_meshes_are_made(labels: str) -> None:
    first = Mesh(layer=labels, shape=(16, 16, 9)).resolved()
    first.prepare()
    for cell in first.cells():
        first.run(cell)
    again = Mesh(layer=labels, shape=(32, 32, 9), new_grid=True)
    (plan,) = planned(again, MeshManifest(layer=labels))
    assert "Set remove_stale" in plan.refusals[0]
    (plan,) = planned(again, MeshManifest(layer=labels, remove_stale=True))
    assert plan.refusals == ()


def test_what_is_not_confirmed_is_planned_as_if_it_had_not_been_done(labels: str) -> None:
    first = Delete(layer=labels)
    assert first.plan().unconfirmed
    (plan,) = planned(first, Downsample(layer=labels, num_mips=1))
    assert plan.refusals == ()


def test_a_stage_that_cannot_be_resolved_is_refused_with_the_reason(labels: str) -> None:
    (plan,) = planned(Downsample(layer=labels, num_mips=1), Mesh(layer=f"{labels}/none"))
    assert plan.stage == "mesh"
    assert f"{labels}/none" in plan.refusals[0]
