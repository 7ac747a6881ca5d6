"""Declarations of chains: what they say, and what they refuse to say."""

import pytest

from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer

pytestmark = pytest.mark.airflow

TRANSFER = Step(Transfer)


def test_a_step_is_named_as_its_stage_unless_it_says_otherwise() -> None:
    assert [step.name for step in (TRANSFER, Step(Transfer, name="back"))] == ["transfer", "back"]


def test_a_field_that_the_stage_has_not_is_an_error_where_it_is_written() -> None:
    message = "the stage transfer has no field layer"
    with pytest.raises(TypeError, match=message):
        TRANSFER["layer"]
    with pytest.raises(TypeError, match=message):
        Step(Transfer, defaults={"layer": "/x"})
    with pytest.raises(TypeError, match=message):
        Step(Transfer, binds={"layer": TRANSFER["dest"]})


def test_a_bound_field_has_no_default() -> None:
    with pytest.raises(TypeError, match="layer of downsample: what is bound has no default"):
        Step(Downsample, binds={"layer": TRANSFER["dest"]}, defaults={"layer": "/x"})


def test_a_condition_that_can_never_be_met_is_an_error() -> None:
    assert TRANSFER["method"].is_("mode").value == "mode"
    with pytest.raises(TypeError, match=r"transfer.method is never 'best': it is in \['auto'"):
        TRANSFER["method"].is_("best")


@pytest.mark.parametrize(
    "late",
    [
        Step(Downsample, binds={"layer": TRANSFER["dest"]}),
        Step(Downsample, only_if=TRANSFER["method"].is_("mode")),
    ],
    ids=["bound", "conditional"],
)
def test_a_step_depends_on_steps_before_it_only(late: Step) -> None:
    Chain((TRANSFER, late))
    for steps in ((late, TRANSFER), (late,), (Step(Transfer), late)):
        with pytest.raises(TypeError, match="transfer does not come before downsample"):
            Chain(steps)


def test_two_steps_have_two_names() -> None:
    with pytest.raises(TypeError, match="two steps are named downsample"):
        Chain((Step(Downsample), Step(Downsample)))
    Chain((Step(Downsample), Step(Downsample, name="again")))


@pytest.mark.parametrize("name", ["num_mips", "layer", "nothing"])
def test_only_what_several_steps_mean_the_same_by_is_shared(name: str) -> None:
    steps = (TRANSFER, Step(Downsample), Step(Delete, binds={"layer": TRANSFER["dest"]}))
    Chain(steps, shared=("fill_missing", "bounds"))
    with pytest.raises(TypeError, match=f"{name} cannot be shared"):
        Chain(steps, shared=(name,))
