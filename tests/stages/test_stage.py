"""What all stages share: plans in words, work added up, schemas that a form can show."""

import pytest

from igneous_airflow.errors import PlanRefused
from igneous_airflow.stage import Plan, Work, human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (1_500_000_000, "1.5 GB"),
        (999_999_999_999, "1 TB"),
        (1.5e18, "1.5e+03 PB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_bytes_are_written_for_people(count, text):
    assert human_bytes(count) == text


def test_work_adds_up():
    one = Work(voxels=1, chunks_written=2, chunks_skipped=3, bytes_written=4)
    assert one + one == Work(voxels=2, chunks_written=4, chunks_skipped=6, bytes_written=8)
    assert one + Work() == one
    counted = Work(counts={"a": 1, "b": 2}) + Work(counts={"b": 3}) + Work()
    assert counted.counts == {"a": 1, "b": 5}


def test_a_plan_without_refusals_is_accepted():
    plan = Plan(stage="x", tasks=1, outputs=("out",), notes=("note",))
    assert plan.require_accepted() is plan
    assert "x: 1 task (" in plan.describe()
    assert "makes  out" in plan.describe()


def test_a_refused_plan_raises_every_reason():
    plan = Plan(stage="x", refusals=("one", "two"))
    with pytest.raises(PlanRefused, match=r"(?s)x cannot start.*one.*two"):
        plan.require_accepted()
    assert "REFUSED: two" in plan.describe()
