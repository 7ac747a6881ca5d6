"""A model's fields <-> the Params of a DAG; nothing here knows any stage.

The way there is derived from the model's schema, for Airflow's form and its check at trigger time.
The way back builds the model, so that what a schema cannot say is checked as well.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igneous_airflow.fields import PODS, RUN, SECTIONS, section
from igneous_airflow.stage import field_schemas
from igneous_airflow.worker.loop import WorkerOptions

Model = TypeVar("Model", bound=BaseModel)

_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"  # of things in Kubernetes
_DEFAULTS = WorkerOptions()


class RunOptions(BaseModel):
    """How a stage is run by its workers: the parameters that every stage's form has."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    run_on: Annotated[
        Literal["local", "kubernetes"] | None,
        Field(
            title="Run on",
            description="Where workers run: on the machine of the Airflow task, or as pods in a "
            "Kubernetes cluster; empty: as this Airflow is configured.",
            json_schema_extra=section(RUN),
        ),
    ] = None
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
    cpu: Annotated[
        float,
        Field(
            ge=0.1,
            le=256,
            title="CPUs of a pod",
            description="CPUs that a pod asks for; it works with one process for each whole one.",
            json_schema_extra=section(PODS),
        ),
    ] = 1
    memory: Annotated[
        float | None,
        Field(
            ge=0.1,
            title="Memory of a pod",
            description="GB of memory that a pod gets, and no more; empty: what the plan needs.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    image: Annotated[
        str | None,
        Field(
            pattern=r"^[!-~]+$",
            title="Image",
            description="Worker image; empty: as this Airflow is configured.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    namespace: Annotated[
        str | None,
        Field(
            pattern=_NAME,
            title="Namespace",
            description="Namespace of the pods; empty: as this Airflow is configured.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    service_account: Annotated[
        str | None,
        Field(
            pattern=_NAME,
            title="Service account",
            description="Service account of the pods; empty: that of the pod template.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    node_selector: Annotated[
        dict[str, str],
        Field(
            title="Node selector",
            description='Labels of the nodes that may run the pods, as {"pool": "spot"}.',
            json_schema_extra=section(PODS),
        ),
    ] = {}
    tolerations: Annotated[
        list[dict[str, str]],
        Field(
            title="Tolerations",
            description="Taints of nodes that the pods bear, as "
            '[{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}].',
            json_schema_extra=section(PODS),
        ),
    ] = []

    @property
    def processes(self) -> int:
        """Worker processes of a pod."""
        return max(1, int(self.cpu))


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
