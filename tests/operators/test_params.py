"""Fields to params and back: no stage is named here."""

from typing import Annotated, Literal, Self

import pytest
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from pydantic import BaseModel, Field, model_validator

from igneous_airflow.fields import LabelList, LabelTable, section
from igneous_airflow.operators.params import (
    RunOptions,
    make_params,
    read_params,
    refuse_unknown,
    titled_schemas,
)
from igneous_airflow.operators.pod_options import PodOptions

pytestmark = pytest.mark.airflow


class Shapes(BaseModel):
    """One field of each shape."""

    count: Annotated[
        int,
        Field(
            ge=1,
            lt=9,
            title="How many",
            description="Of them.",
            json_schema_extra=section("Limits"),
        ),
    ] = 3
    kind: Annotated[Literal["a", "b"] | None, Field(json_schema_extra=section("Where"))] = None
    place: Annotated[str, Field(min_length=1, json_schema_extra=section("Where", first=True))]
    sizes: Annotated[
        list[int] | None,
        Field(min_length=3, max_length=3, json_schema_extra=section("Limits")),
    ] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.kind == "a" and self.count == 8:
            raise ValueError("kind: a and count: 8 do not go together")
        return self


def model_params(*models: type[BaseModel]) -> dict[str, Param]:
    return make_params({n: s for model in models for n, s in titled_schemas(model).items()})


def test_a_field_keeps_its_words_its_default_and_its_limits() -> None:
    count = model_params(Shapes)["count"]
    assert count.value == 3
    assert count.description == "Of them."
    assert count.schema == {
        "type": "integer",
        "title": "How many",
        "minimum": 1,
        "exclusiveMaximum": 9,
        "section": "Limits",
    }


def test_a_description_names_other_fields_by_the_titles_that_the_form_shows() -> None:
    class Pair(BaseModel):
        one: Annotated[int, Field(title="The first", json_schema_extra=section("How"))] = 1
        two: Annotated[
            int,
            Field(description="More than `one`, never `three`.", json_schema_extra=section("How")),
        ] = 2

    assert model_params(Pair)["two"].description == "More than 'The first', never `three`."


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
        "section": "Limits",
    }


def test_labels_are_a_line_of_text_in_the_form_and_a_list_or_mapping_in_json() -> None:
    class Chosen(BaseModel):
        labels: Annotated[LabelList | None, Field(json_schema_extra=section("What"))] = None
        table: Annotated[LabelTable | None, Field(json_schema_extra=section("What"))] = None

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


def test_fields_stand_in_their_sections_the_first_ones_first() -> None:
    assert list(model_params(Shapes, RunOptions)) == [
        "place",
        "kind",
        "count",
        "sizes",
        "plan_only",
        "run_on",
        "workers",
        "max_attempts",
        "lease_seconds",
        "batch",
        "queue",
        *(name for name in PodOptions.model_fields if name != "run_on"),
    ]


def test_a_field_that_no_form_can_show_is_an_error_for_the_developer() -> None:
    class Nested(BaseModel):
        inner: Shapes

    with pytest.raises(TypeError, match="inner cannot be shown in a form"):
        model_params(Nested)


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
