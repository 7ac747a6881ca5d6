"""The form of every DAG: complete, shown by Airflow, checked by Airflow, and valid as it opens."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Param
from airflow.sdk.definitions._internal.types import NOTSET
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError

from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.form import Form
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.stage import Stage
from igneous_airflow.stages import registered_stages

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
CHAINS = {file.stem for file in (ROOT / "dags").glob("[!_]*.py")} - {"stages"}


@pytest.fixture(params=["copy", *sorted(CHAINS | registered_stages().keys())])
def dag(request: pytest.FixtureRequest, dags: dict[str, DAG]) -> DAG:
    return dags[f"igneous_{request.param}"]


@pytest.fixture
def form(dag: DAG) -> Form:
    return next(dag.get_task(task).form for task in dag.task_ids if task.endswith(".plan"))


def fields(form: Form) -> Iterator[tuple[Step, str, str]]:
    """Each field of each step, and the form's field that gives it its value."""
    for step in form.chain.steps:
        for name in step.stage.model_fields:
            yield step, name, form.in_its_words(step, f"{name}:", {}).removesuffix(":")


def is_required(step: Step, name: str) -> bool:
    return step.stage.model_fields[name].is_required()


def _example(param: Param) -> Any:
    """A value for a field without default."""
    kinds = param.schema["type"]
    return "file:///data/example" if "string" in kinds else param.schema.get("minimum", 1)


def _is_demanded(param: Param) -> bool:
    try:
        param.resolve()
    except ParamValidationError as error:
        return "No value passed" in str(error)
    return False


def test_every_field_of_every_step_has_a_place_in_the_form(dag: DAG, form: Form) -> None:
    places = {place for _, _, place in fields(form)}
    switches = {f"run_{step.switch_name}" for step in form.chain.steps if step.switch is not None}
    assert dag.params.keys() == places | switches | RunOptions.model_fields.keys()


def test_airflow_can_show_every_field(dag: DAG) -> None:
    for name in dag.params:
        param = dag.params.get_param(name)
        words = f"{name}: {param.schema}"
        assert not {"$ref", "allOf", "oneOf", "prefixItems"} & set(param.schema), words
        assert all(set(option) == {"type"} for option in param.schema.get("anyOf", [])), words
        assert param.schema["title"], words
        assert param.description, words


#: What a stage needs that nobody can guess: maps beside the layers.
MAPS = {"map_path", "volume_map_path", "consensus_map_path"}


def test_the_form_opens_with_two_fields_to_fill_in_at_most(dag: DAG, form: Form) -> None:
    params = {name: dag.params.get_param(name) for name in dag.params}
    opening = [name for name, param in params.items() if "section" not in param.schema]
    assert list(params)[: len(opening)] == opening
    assert opening[-1] == "plan_only"
    demanded = {name for name, param in params.items() if _is_demanded(param)}
    assert demanded <= set(opening)
    assert len(demanded - MAPS) <= 2
    assert len(opening) <= 10


def test_the_form_as_it_opens_is_valid_for_every_step(dag: DAG, form: Form) -> None:
    needed = {place for step, name, place in fields(form) if is_required(step, name)}
    values = {}
    for name in dag.params:
        param = dag.params.get_param(name)
        values[name] = param.resolve(_example(param) if name in needed else param.value)
    read = form.read(values)
    for step, name, _ in fields(form):
        stage = read[step.name]
        if isinstance(stage, Stage) and not is_required(step, name):
            default = step.stage.model_fields[name].get_default(call_default_factory=True)
            assert getattr(stage, name) == step.defaults.get(name, default)


def test_every_field_that_is_written_in_a_certain_way_shows_an_example(dag: DAG) -> None:
    for name in dag.params.keys() - RunOptions.model_fields.keys():
        param = dag.params.get_param(name)
        if pattern := param.schema.get("pattern"):
            words = [word.rstrip(".,:;") for word in param.description.split()]
            assert any(re.fullmatch(pattern, word) for word in words), param.description


@pytest.mark.parametrize(
    ("dag_id", "values", "words"),
    [
        (
            "igneous_quantize_affinities",
            {"src": "/a", "dest": "/b", "low": 2},
            "low: 2 must be below high: 1",
        ),
        (
            "igneous_transfer",
            {"src": "/a", "dest": "/b", "translate": "1,2,3", "dest_voxel_offset": "4,5,6"},
            "translate: 1,2,3 and dest_voxel_offset: 4,5,6 are both given; leave one empty",
        ),
        (
            "igneous_contrast",
            {"layer": "/a", "dest": "/b", "minval": 5, "maxval": 5},
            "minval: 5 must be smaller than maxval: 5",
        ),
        (
            "igneous_contrast",
            {"layer": "/a", "dest": "/b", "clip_values": "12,243"},
            "clip_values: they hold for every section; set scope: global as well",
        ),
        (
            "igneous_contrast",
            {"layer": "/a", "dest": "/b", "bounds": "0-9_0-9_0-9", "translate": "1,0,0"},
            "bounds: 0-9_0-9_0-9 and translate: 1,0,0 do not go together in one run",
        ),
        (
            "igneous_ingest",
            {
                "source": "/a",
                "ingest_dest": "/b",
                "contrast_dest": "/c",
                "layer_type": "segmentation",
                "run_contrast": True,
            },
            "layer_type: segmentation has no grey values to stretch: switch run_contrast off",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_named(
    dags: dict[str, DAG], dag_id: str, values: dict[str, Any], words: str
) -> None:
    dag = dags[dag_id]
    form = next(dag.get_task(task).form for task in dag.task_ids if task.endswith(".plan"))
    opened = {name: dag.params.get_param(name).value for name in dag.params}
    given = {name: value for name, value in opened.items() if value is not NOTSET}
    with pytest.raises(AirflowFailException, match=f"\n  - {re.escape(words)}"):
        form.read(given | values)


@pytest.mark.parametrize("name", ["contrast", "ingest"])
def test_mips_are_made_of_the_part_whose_contrast_was_stretched(
    dags: dict[str, DAG], name: str
) -> None:
    """Elsewhere the layer has no chunks to make them of."""
    dag = dags[f"igneous_{name}"]
    form = dag.get_task("downsample.plan").form
    given = {"run_contrast": True, "run_downsample": True}
    downsample = next(step for step in form.chain.steps if step.name == "downsample")
    contrast = next(step for step in form.chain.steps if step.name == "contrast")
    for field in ("bounds", "mip"):
        places = [form.in_its_words(step, f"{field}:", given) for step in (contrast, downsample)]
        assert places[0] == places[1]


def test_airflow_itself_refuses_values_outside_the_limits(dag: DAG) -> None:
    for name in dag.params:
        param = dag.params.get_param(name)
        if "maximum" in param.schema:
            with pytest.raises(ParamValidationError, match="maximum"):
                param.resolve(param.schema["maximum"] + 1)
        if "enum" in param.schema:
            with pytest.raises(ParamValidationError, match=r"is not one of|does not match"):
                param.resolve(f"no {name}")


def test_all_steps_but_the_one_a_chain_is_for_can_be_left_out(dag: DAG, form: Form) -> None:
    assert sum(step.switch is None for step in form.chain.steps) <= 1
