"""Chains: steps one after the other with one form; declared by the DAG files.

`form.py` derives the form, `group.py` the DAG.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from igneous_airflow.operators.params import titled_schemas
from igneous_airflow.stage import Stage, field_schemas
from igneous_airflow.storage.methods import PERMISSIONS

#: What may differ between the fields that a chain shares: the first step's words are shown.
_WORDS = frozenset({"title", "description", "section", "first"})


@dataclass(frozen=True, slots=True)
class StepField:
    """A field of a step, to bind a later step's field to, or to make a condition of."""

    step: "Step"
    name: str

    def is_(self, value: object) -> "Condition":
        """The condition that it has this value; raises TypeError when it never can."""
        choices = field_schemas(self.step.stage)[self.name].get("enum", [value])
        if value not in choices:
            raise TypeError(f"{self.step.name}.{self.name} is never {value!r}: it is in {choices}")
        return Condition(self, value)

    def is_not(self, value: object) -> "Condition":
        """The condition that it has another value; raises TypeError when it always has."""
        return replace(self.is_(value), negated=True)


@dataclass(frozen=True, slots=True)
class Condition:
    """That a field of an earlier step has a certain value, or, negated, that it has another."""

    field: StepField
    value: object
    negated: bool = False

    def met_by(self, value: object) -> bool:
        """Whether it is met when the field has this value."""
        return (value == self.value) != self.negated


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a step cannot work with: all the conditions are met, each by a step that runs.

    It is told at the start, as the fields with their values and then `why`, with the way out.
    """

    conditions: tuple[Condition, ...]
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A stage in a chain.

    `name` is its TaskGroup's; it must be given when a chain has a stage twice. `binds` takes values
    of fields from earlier steps instead of the form: of several, the first whose step runs, or else
    the last. With None as the last the form has the field, for when none of the steps runs.
    `defaults` are what the form opens with in place of the stage's own. With a `switch` the form
    can turn the step on and off; it opens with that value. Steps of one `switch_name` are turned on
    and off together. With `only_if` it runs under that condition only. A step that does not run
    keeps nobody after it from running. `refusals` are what it cannot run with.
    """

    stage: type[Stage]
    name: str = ""
    binds: Mapping[str, StepField | tuple[StepField | None, ...]] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    switch: bool | None = None
    switch_name: str = ""
    only_if: Condition | None = None
    refusals: tuple[Refusal, ...] = ()
    #: The fields whose values are the form's, and how they look there.
    fields: Mapping[str, dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.stage.name)
        object.__setattr__(self, "switch_name", self.switch_name or self.name)
        for name in (*self.binds, *self.defaults):
            self[name]
        if both := self.binds.keys() & self.defaults.keys():
            raise TypeError(f"{', '.join(both)} of {self.name}: what is bound has no default")
        fields = {
            name: schema
            for name, schema in titled_schemas(self.stage).items()
            if name not in self.binds or None in self.sources(name)
        }
        fields |= {name: fields[name] | {"default": value} for name, value in self.defaults.items()}
        object.__setattr__(self, "fields", fields)

    def __getitem__(self, name: str) -> StepField:
        """Take a field of this step; raises TypeError when its stage has none of that name."""
        if name not in self.stage.model_fields:
            raise TypeError(f"the stage {self.stage.name} has no field {name}")
        return StepField(self, name)

    @property
    def summary(self) -> str:
        """What its stage does, in a line."""
        return (self.stage.__doc__ or "").partition("\n")[0]

    @property
    def always_runs(self) -> bool:
        """Whether nothing in the form keeps it from running."""
        return self.switch is None and self.only_if is None

    def sources(self, name: str) -> tuple[StepField | None, ...]:
        """What a field is bound to, None for its own in the form; nothing when it is not bound."""
        bound = self.binds.get(name, ())
        return bound if isinstance(bound, tuple) else (bound,)


def part_that_moves(step: Step) -> Refusal:
    """That a step moves a part of a layer; for later steps that are bound to its bounds."""
    return Refusal(
        (step["bounds"].is_not(None), step["translate"].is_not(None)),
        "do not go together in one run with coarser mips, which would be made where the part was, "
        "not where it goes: leave one of them empty, or switch the mips off here and make them "
        "with igneous_downsample afterwards",
    )


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps one after the other; each starts when the one before it was proved done.

    Fields named in `shared` have one value for all steps that have them, and so have permissions:
    what may go is confirmed once. Raises TypeError for a declaration that makes no sense.
    """

    steps: tuple[Step, ...]
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        earlier: list[Step] = []
        for step in self.steps:
            used = [source for name in step.binds for source in step.sources(name)]
            used += [step.only_if.field] if step.only_if else []
            used += [met.field for refusal in step.refusals for met in refusal.conditions]
            for source in filter(None, used):
                if source.step not in earlier:
                    raise TypeError(f"{source.step.name} does not come before {step.name}")
            if step.name in (other.name for other in earlier):
                raise TypeError(f"two steps are named {step.name}: give one another name")
            earlier.append(step)
        for name in self.shared:
            self._require_same(name)
        together = [name for name in sorted(PERMISSIONS) if len(self.owners(name)) > 1]
        shared = dict.fromkeys((*self.shared, *together))
        object.__setattr__(self, "shared", tuple(shared))

    def owners(self, shared: str) -> list[Step]:
        """The steps that have a shared field."""
        return [step for step in self.steps if shared in step.fields]

    def _require_same(self, name: str) -> None:
        """Check that several steps have a shared field, and mean the same by it."""
        meanings = [
            {key: value for key, value in step.fields[name].items() if key not in _WORDS}
            for step in self.owners(name)
        ]
        if len(meanings) < 2 or any(meaning != meanings[0] for meaning in meanings):
            raise TypeError(f"{name} cannot be shared, as the steps have it: {meanings}")
