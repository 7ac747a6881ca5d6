"""A model's fields <-> the Params of a DAG; nothing here knows any stage.

The way there is derived from the model's schema, for Airflow's form and its check at trigger time.
The way back builds the model, so that what a schema cannot say is checked as well.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException
from pydantic import BaseModel, Field, ValidationError

from igneous_airflow.credentials import CREDENTIALS
from igneous_airflow.fields import ADDRESS, FILES, LAYER, RUN, section
from igneous_airflow.operators.pod_options import PodOptions
from igneous_airflow.stage import field_schemas, with_words
from igneous_airflow.validation import wrong_fields
from igneous_airflow.worker.loop import WorkerOptions

Model = TypeVar("Model", bound=BaseModel)

_DEFAULTS = WorkerOptions()


class RunOptions(PodOptions):
    """How a stage is run by its workers: the parameters that every stage's form has."""

    plan_only: Annotated[
        bool,
        Field(
            title="Plan only",
            description="End after the plan: it says in the log, and on the page Igneous, what "
            "would be done, what it needs and what it would take. Nothing is written to the layer.",
            json_schema_extra=section(RUN, first=True),
        ),
    ] = False
    workers: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            title="Workers",
            description="Worker processes on the machine, or pods in the cluster; 0 leaves the "
            "tasks to workers elsewhere.",
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
    batch: Annotated[
        int | None,
        Field(
            ge=1,
            title="Cells of a task",
            description="How many cells make one task, and so one message. Empty: 1, or more where "
            "there would be over 100,000 tasks.",
            json_schema_extra=section(RUN),
        ),
    ] = None
    queue: Annotated[
        str | None,
        Field(
            title="Queue",
            description="Where tasks wait: one of the queues that Airflow's configuration lists. "
            "Empty: the usual one.",
            json_schema_extra=section(RUN),
        ),
    ] = None


def make_params(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Param]:
    """The Params of fields' schemas, in their order.

    A field without default becomes a Param without value, which the form demands.
    """
    return {name: Param(**_without_credentials(_shown_as_text(f))) for name, f in fields.items()}


def run_schemas(offered: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The fields' schemas of RunOptions, with what the configuration offers for some of them."""
    schemas = titled_schemas(RunOptions)
    for name, choices in offered.items():
        schemas[name]["enum"] = [*choices, None]
    return schemas


def titled_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The fields' schemas of a model, whose words name other fields by their titles in the form."""
    schemas = field_schemas(model)
    words = {name: f"'{schema['title']}'" for name, schema in schemas.items()}
    for schema in schemas.values():
        schema["description"] = with_words(schema.get("description", ""), words)
    return schemas


def _without_credentials(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let Airflow refuse addresses that hold credentials, before it stores them with a DAG run."""
    if schema.get("kind") not in (ADDRESS, FILES, LAYER):
        return schema
    return {**schema, "not": {"type": "string", "pattern": CREDENTIALS}}


def _shown_as_text(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the form show a line of text for what may be written as text or as a list or mapping.

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
    try:
        return model.model_validate({n: values[n] for n in model.model_fields if n in values})
    except ValidationError as error:
        raise refusal(wrong_fields(error)) from None


def refusal(problems: Iterable[str]) -> AirflowFailException:
    """The error, after which Airflow does not retry, that names problems with parameters."""
    lines = [f"  - {problem}" for problem in problems]
    return AirflowFailException("\n".join(["Nothing was started:", *lines]))


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise AirflowFailException for parameters that nobody reads, such as misspelt ones."""
    problems = []
    for name in sorted(set(given) - set(known)):
        similar = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"choose from {', '.join(known)}"
        problems.append(f"{name}: there is no such parameter; {hint}")
    if problems:
        raise refusal(problems)
