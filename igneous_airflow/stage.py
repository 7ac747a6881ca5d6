"""What a stage is: a frozen model whose fields are its parameters and whose methods are its life.

Derived from it, elsewhere and once: the Airflow form, the command line, the queue message, the
provenance entry and the conformance tests.

How a stage proves its output: `run` says in its `Work` which files it wrote for a block, with their
stored bytes, and which it left out on purpose. `finish` lists what is there and compares
(`require_files`). A file that is missing, empty or cut makes it raise AuditFailed with the numbers
of the blocks that should have written it. The run then takes back the receipts of these blocks'
tasks, so that resuming it does them, and only them, again.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from igneous_airflow.credentials import LONGEST
from igneous_airflow.errors import AccessDenied, PlanRefused
from igneous_airflow.field_values import checked_value
from igneous_airflow.fields import ADDRESS, FILES, LAYER, SECTIONS
from igneous_airflow.proof import Account
from igneous_airflow.storage.allowed import require_allowed
from igneous_airflow.storage.methods import same_method, without_permissions
from igneous_airflow.validation import WithoutCredentials
from igneous_airflow.wording import counted


class Plan(BaseModel):
    """What a stage is about to do, counted before anything is written."""

    model_config = ConfigDict(frozen=True)

    stage: str
    tasks: int = 0
    grid: str = Field(default="", description="cells on each axis, and their size in voxels")
    voxels: int = Field(default=0, description="voxels to read")
    bytes_read: int = Field(default=0, description="uncompressed bytes to read")
    bytes_written: int = Field(default=0, description="uncompressed bytes to write")
    memory: int = Field(default=0, description="bytes of memory for the voxels of one task")
    memory_target: int = 0
    scratch: int = Field(
        default=0, description="bytes that each machine or pod puts into its temporary folder"
    )
    outputs: tuple[str, ...] = Field(default=(), description="what will be made, a line each")
    notes: tuple[str, ...] = ()
    replaces: tuple[str, ...] = Field(
        default=(), description="what is there and will be written over, a line each"
    )
    deletions: tuple[str, ...] = Field(default=(), description="what will be gone, a line each")
    refusals: tuple[str, ...] = Field(default=(), description="every reason not to start")
    awaited: tuple[str, ...] = Field(
        default=(),
        exclude=True,
        description="those of the refusals that an earlier step of a chain takes away",
    )
    unconfirmed: str = Field(default="", description="what must be confirmed before the start")
    made_by: tuple[dict[str, Any], ...] = Field(
        default=(),
        exclude=True,
        description="the methods, as in the provenance, of the runs of other parameters that made "
        "what is replaced, confirmed or not; none where it has to be confirmed whatever made it",
    )
    writes_to: str = Field(default="", description="folder that is tried before a run is recorded")

    def require_possible(self) -> Self:
        """Return the plan; raises PlanRefused with every reason when there is one."""
        if self.refusals:
            raise PlanRefused(self.stage, self.refusals)
        return self

    def require_accepted(
        self, *, resumed: bool = False, trusted: Sequence[Mapping[str, Any]] = ()
    ) -> Self:
        """Return the plan; raises PlanRefused as well when something is not confirmed.

        Nothing need be confirmed for a run that is `resumed`: it was when that began, and what is
        there by now is the run's own. `trusted` are the methods of the steps of one chain, which
        may replace what the others have made.
        """
        accepted = self.model_copy(update={"unconfirmed": ""})
        if resumed or self._is_made_by(trusted):
            return accepted.require_possible()
        if self.unconfirmed:
            raise PlanRefused(self.stage, [*self.refusals, self.unconfirmed])
        return self.require_possible()

    def _is_made_by(self, trusted: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all that is unconfirmed was made by one of these methods."""
        return bool(self.made_by) and all(
            any(same_method(made, method) for method in trusted) for made in self.made_by
        )

    def as_later_step(self) -> Self:
        """The plan without the reasons that hold only until earlier steps of a chain have run."""
        lasting = tuple(refusal for refusal in self.refusals if refusal not in self.awaited)
        return self.model_copy(update={"refusals": lasting, "awaited": ()})

    def describe(self) -> str:
        """The plan in words, for logs and terminals."""
        lines = [f"{self.stage}: {counted(self.tasks, 'task')} ({self.grid})"]
        if self.voxels:
            lines.append(
                f"  reads  {self.voxels:,} voxels, {human_bytes(self.bytes_read)} uncompressed"
            )
            if self.bytes_written:
                lines.append(f"  writes {human_bytes(self.bytes_written)} uncompressed")
            lines.append(
                f"  needs  {human_bytes(self.memory)} of memory a task, "
                f"of {human_bytes(self.memory_target)} allowed"
            )
        lines += [f"  makes  {output}" for output in self.outputs]
        lines += [f"  replaces {replaced}" for replaced in self.replaces]
        lines += [f"  deletes {deletion}" for deletion in self.deletions]
        lines += [f"  note:  {note}" for note in self.notes]
        lines += [f"  UNCONFIRMED: {self.unconfirmed}"] if self.unconfirmed else []
        lines += [f"  REFUSED: {refusal}" for refusal in self.refusals]
        return "\n".join(lines)


class Work(BaseModel):
    """What running one cell did."""

    model_config = ConfigDict(frozen=True)

    voxels: int = Field(default=0, description="voxels read")
    chunks_written: int = 0
    chunks_skipped: int = Field(default=0, description="all-background chunks left out on request")
    bytes_written: int = Field(default=0, description="stored bytes")
    files: dict[str, int] = Field(
        default_factory=dict,
        description="stored bytes of each file that was written, by its name below `output`",
    )
    folders: tuple[str, ...] = Field(
        default=(), description="folders below `output` in which files were only removed"
    )
    left_out: tuple[str, ...] = Field(
        default=(), description="names of the files that are not there, and rightly so"
    )
    counts: dict[str, int] = Field(
        default_factory=dict, description="what else was met, and how often, in words"
    )

    def __add__(self, other: "Work") -> "Work":
        names = type(self).model_fields.keys() - {"counts", "files", "folders"}
        counts = Counter(self.counts) + Counter(other.counts)
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Work(
            **sums,
            counts=dict(counts),
            files=self.files | other.files,
            folders=tuple(dict.fromkeys((*self.folders, *other.folders))),
        )

    def in_numbers(self) -> "Work":
        """The same without the names of files."""
        return self.model_copy(update={"files": {}, "folders": (), "left_out": ()})


class Audit(BaseModel):
    """What a finished stage left behind, counted in the storage."""

    model_config = ConfigDict(frozen=True)

    outputs: dict[str, int] = Field(description="what was made, and how many files of it there are")
    files: str = Field(default="chunks", description="what these files are")
    absent: int = Field(default=0, description="files that were left out: all background")
    moved: str = Field(default="", description="what was moved to the trash, and which entry of it")


@dataclass(frozen=True, slots=True)
class Launch:
    """The launch of a run that a stage is worked on for; empty outside of runs.

    `begun` tells that workers were allowed to do its tasks, so that some may be done.
    """

    run: str = ""
    id: str = ""
    begun: bool = False


#: What a stage does only when its plan is accepted; and what its `vars` hold then, beside fields.
_BEGINS = frozenset({"prepare", "cells", "run"})
_ACCEPTED = "_accepted"
_NO_LAUNCH = Launch()


def _once_accepted(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a stage, which raises PlanRefused unless the plan is accepted.

    Whether it is, each stage that was made finds out once.
    """

    @wraps(method)
    def checked(stage: "Stage", *values: Any) -> Any:
        if _ACCEPTED not in vars(stage):
            stage.plan().require_accepted()
            stage.accepted()
        return method(stage, *values)

    return checked


class Stage(WithoutCredentials, ABC):
    """A kind of work: its fields are its parameters, its methods its life."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        str_max_length=LONGEST,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Let nothing begin before its plan is accepted, whatever the stage."""
        super().__pydantic_init_subclass__(**options)
        for name in _BEGINS & vars(cls).keys():
            setattr(cls, name, _once_accepted(vars(cls)[name]))

    #: Message key, DAG id after `igneous_`, and, with hyphens, the command.
    name: ClassVar[str]
    #: The stage without which nobody sees what this one made.
    followed_by: ClassVar[str] = ""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the parameters, and nothing that was found by them and kept."""
        copied = super().model_copy(update=update, deep=deep)
        for name in vars(copied).keys() - type(self).model_fields.keys():
            del vars(copied)[name]
        return copied

    @property
    def output(self) -> str:
        """Address of the folder that the names of files in `Work` are below; empty for none."""
        return ""

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_what_no_field_takes(cls, value: Any, field: ValidationInfo) -> Any:
        return checked_value(value, cls.model_fields[str(field.field_name)].annotation)

    def accepted(self, launch: Launch = _NO_LAUNCH) -> Self:
        """This stage, whose plan is taken for accepted: it is not looked at before work begins.

        For runs, which are planned and confirmed when they are launched.
        """
        vars(self)[_ACCEPTED] = launch
        return self

    @property
    def launch(self) -> Launch:
        """The launch that this stage was accepted for."""
        launch: Launch = vars(self).get(_ACCEPTED, _NO_LAUNCH)
        return launch

    def resolved(self) -> Self:
        """Replace values that depend on the layer's present state, as `mip=-1`, by what they mean.

        A run is launched with this form, so that its tasks mean the same after `prepare`.
        """
        return self

    @abstractmethod
    def plan(self) -> Plan:
        """Check and count; reads metadata, writes nothing, and refuses rather than raises.

        What is refused only because a stage before it has not run yet, as for want of its meshes,
        is in `awaited` too, or no chain of the two could begin.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Write metadata that tasks rely on, before any of them; may run again.

        Chains are planned by it as well, with folders that keep in memory what is written: it must
        write by `open_folder` alone, opened in the thread that it is called in.
        """

    @abstractmethod
    def cells(self) -> Sequence[Any]:
        """The pieces of the work, made when asked for; the same before and after `prepare`."""

    @abstractmethod
    def run(self, cell: Any) -> Work:
        """Do one piece; doing it twice leaves what doing it once leaves."""

    @abstractmethod
    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check the output and record its provenance; after every task; may run again.

        The account tells what was left out. Without one, as in a notebook, whatever the parameters
        allow to be absent is taken for left out. Raises AuditFailed naming what is missing, and
        the cells whose it is.
        """

    def require_allowed(self) -> None:
        """Raise PlanRefused naming each address that this process may not open; opens nothing."""
        if problems := list(self.forbidden_addresses()):
            raise PlanRefused(self.name, [f"{name}: {why}" for name, why in problems])

    def forbidden_addresses(self) -> Iterator[tuple[str, str]]:
        """Fields whose addresses this process may not open, and why."""
        for name in _address_fields(type(self)):
            if url := getattr(self, name):
                try:
                    require_allowed(url)
                except AccessDenied as denied:
                    yield name, str(denied)

    def parameters(self) -> dict[str, Any]:
        """Every parameter as JSON data, defaults included."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """The parameters as JSON data by which two runs are the same: no permissions among them."""
        return without_permissions(self.parameters())

    def provenance(self) -> dict[str, Any]:
        """The `method` of the stage's entry in a layer's provenance."""
        return {"task": f"{type(self).__name__}Task", **self.parameters()}


def field_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each field, as flat as forms and command lines read it.

    They come section by section, the first ones of each section before the others. `X | None`
    becomes `type: [X, "null"]`, with None in the `enum` where there is one. Raises TypeError for a
    field of any other composition, which no form could show.
    """
    properties = model.model_json_schema(mode="validation")["properties"]
    schemas = {name: _flat_schema(name, schema) for name, schema in properties.items()}
    return dict(sorted(schemas.items(), key=lambda field: _place_in_form(field[1])))


def fields_of_kind(model: type[BaseModel], *kinds: str) -> list[str]:
    """The names of the fields of one of these kinds, as LAYER, in the order of the form."""
    schemas = field_schemas(model)
    return [name for name, schema in schemas.items() if schema.get("kind") in kinds]


@cache
def _address_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """The names of the fields that hold an address, whether or not a form could show the model."""
    properties = model.model_json_schema(mode="validation")["properties"]
    kinds = {
        name: {option.get("kind") for option in (schema, *schema.get("anyOf", ()))}
        for name, schema in properties.items()
    }
    return tuple(name for name, found in kinds.items() if found & {LAYER, ADDRESS, FILES})


def _place_in_form(schema: dict[str, Any]) -> tuple[int, bool, bool]:
    very_first = "default" not in schema and bool(schema.get("first"))
    return SECTIONS.index(schema["section"]), not very_first, not matters_most(schema)


def matters_most(schema: Mapping[str, Any]) -> bool:
    """Whether a field must be filled in, or is marked as one of the first."""
    return "default" not in schema or bool(schema.get("first"))


def _flat_schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    for option in schema.get("anyOf", []):
        if option == {"type": "null"}:
            kinds = rest["type"] if isinstance(rest["type"], list) else [rest["type"]]
            rest["type"] = [*kinds, "null"]
            if "enum" in rest:
                rest["enum"] = [*rest["enum"], None]
        else:
            rest |= option
    if "$ref" in rest or "allOf" in rest or "prefixItems" in rest or "type" not in rest:
        raise TypeError(f"field {name} cannot be shown in a form: {schema}")
    return rest


def with_words(description: str, words: Mapping[str, str]) -> str:
    """A description that names other fields in backticks, with the words that people see for them.

    A form has titles, a command line has options.
    """
    return re.sub(r"`(\w+)`", lambda match: words.get(match[1], match[0]), description)


def human_bytes(count: float) -> str:
    """Write a number of bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
