"""Fields to params and back: no stage is named here."""

from typing import Annotated, Any, Literal, Self

import pytest
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from pydantic import BaseModel, Field, model_validator

from igneous_airflow.fields import LabelList, LabelTable, section
from igneous_airflow.operators.params import (
    RunOptions,
    model_params,
    read_params,
    refuse_unknown,
)
from igneous_airflow.stage import Stage
from igneous_airflow.stages import registered_stages

pytestmark = pytest.mark.airflow

STAGES = pytest.mark.parametrize("stage", registered_stages().values(), ids=lambda s: s.name)


class Shapes(BaseModel):
    """One field of each shape."""

    place: Annotated[str, Field(min_length=1, json_schema_extra=section("Where"))]
    count: Annotated[int, Field(ge=1, lt=9, title="How many", description="Of them.")] = 3
    kind: Annotated[Literal["a", "b"] | None, Field(json_schema_extra=section("Where"))] = None
    sizes: Annotated[list[int] | None, Field(min_length=3, max_length=3)] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.kind == "a" and self.count == 8:
            raise ValueError("kind: a and count: 8 do not go together")
        return self


def test_a_field_keeps_its_words_its_default_and_its_limits() -> None:
    count = model_params(Shapes)["count"]
    assert count.value == 3
    assert count.description == "Of them."
    assert count.schema == {
        "type": "integer",
        "title": "How many",
        "minimum": 1,
        "exclusiveMaximum": 9,
    }


def test_an_optional_field_is_a_type_with_null_and_a_choice_of_none() -> None:
    params = model_params(Shapes)
    assert params["kind"].schema["type"] == ["string", "null"]
    assert params["kind"].schema["enum"] == ["a", "b", None]
    assert params["kind"].resolve() is None
    assert params["sizes"].schema == {
        "type": ["array", "null"],
        "items": {"type": "integer"},
        "minItems": 3,
        "maxItems": 3,
        "title": "Sizes",
    }


def test_labels_are_a_line_of_text_in_the_form_and_a_list_or_mapping_in_json() -> None:
    class Chosen(BaseModel):
        labels: LabelList | None = None
        table: LabelTable | None = None

    params, big = model_params(Chosen), str(2**64 - 1)
    assert all("type" not in param.schema for param in params.values())
    for labels in (None, f"1, {big}", [1, big]):
        assert params["labels"].resolve(labels) == labels
    for table in (None, f"1:2,{big}:3", [f"{big}:3"], {"1": 2, big: "3"}):
        assert params["table"].resolve(table) == table
    for name, wrong in (("labels", "1;2"), ("labels", 5), ("table", "1:2:3"), ("table", 5)):
        with pytest.raises(ParamValidationError):
            params[name].resolve(wrong)
    values = {"labels": f"{big}", "table": {"1": 2}}
    assert read_params(Chosen, values) == Chosen(labels=[2**64 - 1], table=["1:2"])


def test_a_required_field_has_no_value_and_must_be_given() -> None:
    place = model_params(Shapes)["place"]
    with pytest.raises(ParamValidationError, match="No value passed"):
        place.resolve()
    with pytest.raises(ParamValidationError, match=r"non-empty|too short"):
        place.resolve("")


def test_fields_of_a_section_stand_together_in_their_order() -> None:
    assert list(model_params(Shapes, RunOptions)) == [
        "place",
        "kind",
        "count",
        "sizes",
        *RunOptions.model_fields,
    ]


def test_a_field_that_no_form_can_show_is_an_error_for_the_developer() -> None:
    class Nested(BaseModel):
        inner: Shapes

    with pytest.raises(TypeError, match="inner cannot be shown in a form"):
        model_params(Nested)


def test_two_models_with_a_field_of_one_name_are_an_error_for_the_developer() -> None:
    with pytest.raises(TypeError, match="RunOptions repeats the fields lease_seconds"):
        model_params(RunOptions, RunOptions)


def test_params_become_a_model_again_and_other_params_are_left_alone() -> None:
    values = {"place": "x", "sizes": [1, 2, 3], "workers": 5}
    assert read_params(Shapes, values) == Shapes(place="x", sizes=[1, 2, 3])
    assert read_params(RunOptions, values) == RunOptions(workers=5)


def test_every_wrong_field_is_named_with_its_value() -> None:
    with pytest.raises(AirflowFailException) as caught:
        read_params(Shapes, {"count": 90, "kind": "c"})
    text = str(caught.value)
    assert "- place: Field required" in text
    assert "- count: Input should be less than 9; got 90" in text
    assert "- kind: Input should be 'a' or 'b'; got 'c'" in text
    assert "http" not in text


def test_fields_that_do_not_go_together_are_explained() -> None:
    with pytest.raises(AirflowFailException, match=r"  - kind: a and count: 8 do not go together$"):
        read_params(Shapes, {"place": "x", "count": 8, "kind": "a"})


def test_a_misspelt_parameter_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(AirflowFailException, match=r"numm: .* did you mean num\?"):
        refuse_unknown({"numm": 1, "mip": 0}, {"num": 1, "mip": 0})
    refuse_unknown({"mip": 0}, {"num": 1, "mip": 0})


def _example(schema: dict[str, Any]) -> Any:
    """A value for a required field."""
    return {"string": "file:///data/example", "integer": schema.get("minimum", 1)}[schema["type"]]


@STAGES
def test_the_form_can_show_every_field(stage: type[Stage]) -> None:
    for name, param in model_params(stage, RunOptions).items():
        words = f"{name}: {param.schema}"
        assert not {"$ref", "allOf", "oneOf", "prefixItems"} & set(param.schema), words
        assert all(set(option) == {"type"} for option in param.schema.get("anyOf", [])), words
        assert param.schema["title"], words
        assert param.description, words
        assert param.schema["section"], words


@STAGES
def test_the_form_as_it_opens_is_a_valid_stage(stage: type[Stage]) -> None:
    params = model_params(stage)
    required = {
        n: _example(params[n].schema) for n, f in stage.model_fields.items() if f.is_required()
    }
    values = {
        name: param.resolve(required.get(name, param.value)) for name, param in params.items()
    }
    assert read_params(stage, values) == stage.model_validate(required)
    assert values.keys() == stage.model_fields.keys()


@STAGES
def test_airflow_itself_refuses_values_outside_the_limits(stage: type[Stage]) -> None:
    for name, param in model_params(stage, RunOptions).items():
        if "maximum" in param.schema:
            with pytest.raises(ParamValidationError, match="maximum"):
                param.resolve(param.schema["maximum"] + 1)
        if "enum" in param.schema:
            with pytest.raises(ParamValidationError, match="is not one of"):
                param.resolve(f"no {name}")
