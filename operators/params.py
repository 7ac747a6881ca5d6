"""A model's fields <-> the Params of a DAG; nothing here knows any stage.

The way there is derived from the model's schema, for Airflow's form and its check at trigger time.
The way back builds the model, so that what a schema cannot say is checked as well.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException
from pydantic import BaseModel, Field, ValidationError

from igneous_airflow.fields import RUN, SECTIONS, section
from igneous_airflow.operators.pod_options import PodOptions
from igneous_airflow.stage import field_schemas
from igneous_airflow.worker.loop import WorkerOptions

Model = TypeVar("Model", bound=BaseModel)

_DEFAULTS = WorkerOptions()


class RunOptions(PodOptions):
    """How a stage is run by its workers: the parameters that every stage's form has."""

    workers: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            title="Workers",
            description="Worker processes on the machine, or pods in the cluster.",
            json_schema_extra=section(RUN),
        ),
    ] = 2
    max_attempts: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            title="Attempts",
            description="Attempts at a task before it is given up.",
            json_schema_extra=section(RUN),
        ),
    ] = _DEFAULTS.max_attempts
    lease_seconds: Annotated[
        float,
        Field(
            ge=10,
            le=43_200,
            title="Lease",
            description="Seconds after which the task of a worker that fell silent is given to "
            "another.",
            json_schema_extra=section(RUN),
        ),
    ] = _DEFAULTS.lease_seconds


def model_params(*models: type[BaseModel]) -> dict[str, Param]:
    """The Params of the models' fields, section by section.

    A field without default becomes a Param without value, which the form demands. Raises
    TypeError for a field that no form can show, or that two of the models have.
    """
    fields: dict[str, dict[str, Any]] = {}
    for model in models:
        schemas = field_schemas(model)
        if twice := fields.keys() & schemas.keys():
            raise TypeError(f"{model.__name__} repeats the fields {', '.join(sorted(twice))}")
        fields |= schemas
    ordered = sorted(fields.items(), key=lambda field: SECTIONS.index(field[1]["section"]))
    return {name: Param(**_shown_as_text(schema)) for name, schema in ordered}


def _shown_as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Let the form show a line of text for what may be written as text or as a list.

    Airflow's form decides by `type`: with a list among the types it shows an editor, without any
    type a line of text. What `type` says then stands in `anyOf`, which only the check reads.
    """
    if not {"string", "array"} <= set(schema["type"]):
        return schema
    rest = {key: value for key, value in schema.items() if key != "type"}
    return {**rest, "anyOf": [{"type": kind} for kind in schema["type"]]}


def read_params(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The model with its fields taken from a DAG run's params; other params are left alone.

    Raises AirflowFailException, after which Airflow does not retry, naming each wrong field.
    """
    known = {name: values[name] for name in model.model_fields if name in values}
    try:
        return model.model_validate(known)
    except ValidationError as error:
        raise AirflowFailException(_problems(model, error)) from None


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise AirflowFailException for parameters that nobody reads, such as misspelt ones."""
    problems = []
    for name in sorted(set(given) - set(known)):
        similar = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"choose from {', '.join(known)}"
        problems.append(f"  - {name}: there is no such parameter; {hint}")
    if problems:
        raise AirflowFailException("\n".join(["Nothing was started:", *problems]))


def _problems(model: type[BaseModel], error: ValidationError) -> str:
    """Each wrong field with its value and what is wrong, a line each."""
    lines = [f"Nothing was started, the parameters of {model.__name__} do not fit:"]
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if problem["type"] in ("value_error", "missing") else f"; got {problem['input']!r}"
        lines.append(f"  - {field + ': ' if field else ''}{message}{got}")
    return "\n".join(lines)
