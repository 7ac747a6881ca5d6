"""What a plan refuses cannot be done all the same, by whoever calls a stage's methods in Python."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from igneous_airflow.errors import InvalidParameter, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.testing.stages import snapshot

BOX = BoundingBox.parse("0-8_0-8_0-8")
ADDRESSES = {"layer", "src", "dest", "source"}


def begins(stage: Stage) -> Sequence[Callable[[], object]]:
    return stage.prepare, stage.cells, lambda: stage.run(BOX)


def image(folder: Path, dtype: str = "uint8") -> str:
    return write_layer(folder / "layer", random_voxels(Vec3(16, 16, 8), dtype))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda url: Mesh(layer=url), "only a segmentation has objects"),
        (lambda url: MeshManifest(layer=url), "names no mesh directory"),
        (lambda url: Downsample(layer=url, bounds="0-3_0-16_0-8"), "bounds"),
        (lambda url: Downsample(layer=f"{url}/none"), "layer/none"),
        (lambda url: Delete(layer=url), "confirm"),
        (lambda url: Delete(layer=url, mip=7, confirm=True), "mip"),
    ],
)
def test_a_refused_or_unconfirmed_stage_does_not_begin(
    tmp_path: Path, make: Callable[[str], Stage], reason: str
) -> None:
    stage = make(image(tmp_path))
    before = snapshot(tmp_path)
    assert stage.plan().refusals or stage.plan().unconfirmed
    for begin in begins(stage):
        with pytest.raises((PlanRefused, InvalidParameter), match=reason):
            begin()
    assert snapshot(tmp_path) == before


def test_levels_of_floats_are_refused_rather_than_an_index_error(tmp_path: Path) -> None:
    stage = LuminanceLevels(layer=image(tmp_path, "float32"))
    assert stage.plan().refusals
    for begin in begins(stage):
        with pytest.raises(PlanRefused, match="float32"):
            begin()


def test_a_stage_begins_once_the_cause_is_gone(tmp_path: Path) -> None:
    stage = Downsample(layer=f"file://{tmp_path}/layer", num_mips=1)
    with pytest.raises(PlanRefused):
        stage.prepare()
    image(tmp_path)
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    assert stage.finish("tester").outputs


@pytest.mark.parametrize("name", registered_stages())
def test_no_stage_begins_without_its_layers(tmp_path: Path, name: str) -> None:
    model = registered_stages()[name]
    required = {key for key, field in model.model_fields.items() if field.is_required()}
    values = {key: f"{tmp_path}/{key}" for key in required & ADDRESSES}
    stage = model.model_validate(values | dict.fromkeys(required - ADDRESSES, f"{tmp_path}/x"))
    assert stage.plan().refusals
    for begin in begins(stage):
        with pytest.raises(PlanRefused, match=f"{stage.name} cannot start"):
            begin()
    assert snapshot(tmp_path) == {}


def test_a_recorded_run_goes_on_although_a_plan_of_today_would_refuse(tmp_path: Path) -> None:
    """Its plan was accepted when it was launched; what its tasks have done since may not fit it."""
    stage = Delete(layer=image(tmp_path), confirm=True)
    run, _ = Run.launch(stage, url=f"file://{tmp_path}/run", queue="memory://q", by="tester")
    again = run.make_stage()
    (tmp_path / "layer" / "info").rename(tmp_path / "layer" / "away")
    assert again.plan().refusals
    (tmp_path / "layer" / "away").rename(tmp_path / "layer" / "info")
    again.prepare()
    assert len(again.cells()) == run.blocks


class Nothing(Stage):
    """Do nothing, to see what that costs."""

    name: ClassVar[str] = "nothing"
    plans: ClassVar[list[int]] = []

    def plan(self) -> Plan:
        self.plans.append(1)
        return Plan(stage=self.name, tasks=1)

    def prepare(self) -> None:
        """Write nothing."""

    def cells(self) -> Sequence[int]:
        return range(1)

    def run(self, cell: Any) -> Work:
        return Work()

    def finish(self, by: str, account: Any = None) -> Audit:
        return Audit(outputs={})


def test_the_plan_is_asked_for_once_however_many_tasks_run() -> None:
    Nothing.plans.clear()
    stage = Nothing()
    stage.prepare()
    for _ in range(1_000):
        stage.run(0)
    assert len(Nothing.plans) == 1
