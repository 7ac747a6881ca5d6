"""The form that the steps of a chain have together; made by `group.py`, read by `PlanStage`.

It is derived from the stages: a shared field appears once, any other under its step. The way back
makes the stages of all steps at once, so that a wrong value of a late one is refused at the start.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow.sdk import Param
from pydantic import BaseModel, ValidationError

from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.operators.params import (
    RunOptions,
    make_params,
    refusal,
    titled_schemas,
    wrong_fields,
)
from igneous_airflow.stage import Stage

Model = TypeVar("Model", bound=BaseModel)
Schema = dict[str, Any]

_ALL_STEPS = "All steps"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step that does not run, and why."""

    reason: str


class Form:
    """The form of a chain, and the stages that come out of it.

    A field has its own name where no other in the form has it, else its step's name before it.
    Raises TypeError when two fields have one name nevertheless.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        own = [
            (step, name) for step in chain.steps for name in step.fields if name not in chain.shared
        ]
        switches = [name for name, _ in self._switches()]
        others = [*chain.shared, *switches, *RunOptions.model_fields]
        count = Counter([*others, *(name for _, name in own)])
        self._names = {
            (step.name, name): name if count[name] == 1 else f"{step.name}_{name}"
            for step, name in own
        }
        for name, times in Counter([*others, *self._names.values()]).items():
            if times > 1:
                raise TypeError(f"{times} fields of the form are named {name}")

    def params(self) -> dict[str, Param]:
        """What the form opens with, then what steps share, each step's own, and how it is run.

        Airflow's form opens with the fields that are in no section, and folds all others away: it
        opens with what must be filled in or matters most, and which steps run.
        """
        parts = (self._shared(), self._own(), self._switches())
        fields = {name: schema for part in parts for name, schema in part}
        fields |= titled_schemas(RunOptions)
        opening = {name: _without_section(field) for name, field in fields.items() if _opens(field)}
        return make_params(opening | {n: f for n, f in fields.items() if n not in opening})

    def _shared(self) -> Iterator[tuple[str, Schema]]:
        for name in self.chain.shared:
            owners = self.chain.owners(name)
            schema = owners[0].fields[name] | {"section": _ALL_STEPS}
            # of steps that all have it, one at least runs
            needed = any(step.always_runs for step in owners) or owners == [*self.chain.steps]
            yield name, schema if needed else _may_be_empty(schema)

    def _switches(self) -> Iterator[tuple[str, Schema]]:
        together: dict[str, list[Step]] = {}
        for step in self.chain.steps:
            if step.switch is not None:
                together.setdefault(_switch(step), []).append(step)
        for name, steps in together.items():
            which = "this step runs" if len(steps) == 1 else "these steps run"
            yield (
                name,
                {
                    "type": "boolean",
                    "default": steps[0].switch,
                    "title": name.replace("_", " ").capitalize(),
                    "description": f"Whether {which}. {' '.join(step.summary for step in steps)}",
                    "section": _ALL_STEPS,
                    "first": True,
                },
            )

    def _own(self) -> Iterator[tuple[str, Schema]]:
        for step in self.chain.steps:
            heading = {"section": _title(step)} if len(self.chain.steps) > 1 else {}
            for name, schema in step.fields.items():
                if name not in self.chain.shared:
                    shown = schema if step.always_runs else _may_be_empty(schema)
                    yield self._names[step.name, name], shown | heading

    def read(self, values: Mapping[str, Any]) -> dict[str, Stage | Skipped]:
        """Make the stage of every step from a DAG run's params, or say why it does not run.

        Raises AirflowFailException, after which Airflow does not retry, naming every wrong field of
        the steps that run, and of how they are run.
        """
        skipped = self._skipped(values)
        stages: dict[str, Stage] = {}
        problems: list[str] = []
        if len(skipped) == len(self.chain.steps):
            reasons = "; ".join(step.reason for step in skipped.values())
            problems.append(f"no step is to run: {reasons}")
        for step in self.chain.steps:
            if step.name not in skipped:
                places = self._places(step, skipped)
                try:
                    stages[step.name] = _make(step.stage, places, values)
                except ValidationError as error:
                    problems += [_renamed(text, places) for text in wrong_fields(error)]
        try:
            _make(RunOptions, {name: name for name in RunOptions.model_fields}, values)
        except ValidationError as error:
            problems += wrong_fields(error)
        if problems:
            raise refusal(dict.fromkeys(problems))
        return skipped | stages

    def in_its_words(self, step: Step, text: str, values: Mapping[str, Any]) -> str:
        """A text about a step with the form's names for the fields that it names as `field:`."""
        return _renamed(text, self._places(step, self._skipped(values)))

    def _skipped(self, values: Mapping[str, Any]) -> dict[str, Skipped]:
        """The steps that do not run."""
        skipped: dict[str, Skipped] = {}
        for step in self.chain.steps:
            if step.switch is not None and not values.get(_switch(step), step.switch):
                skipped[step.name] = Skipped(f"{_switch(step)} is off")
            elif step.only_if is not None:
                condition = step.only_if
                place = self._place(condition.field.step, condition.field.name, skipped)
                if values.get(place) != condition.value:
                    reason = f"{place} is {values.get(place)!r}, not {condition.value!r}"
                    skipped[step.name] = Skipped(reason)
        return skipped

    def _places(self, step: Step, skipped: Mapping[str, object]) -> dict[str, str]:
        """The form's field for each field of a step."""
        return {name: self._place(step, name, skipped) for name in step.stage.model_fields}

    def _place(self, step: Step, name: str, skipped: Mapping[str, object]) -> str:
        if sources := step.sources(name):
            running = (source for source in sources if source.step.name not in skipped)
            source = next(running, sources[-1])
            return self._place(source.step, source.name, skipped)
        return self._names.get((step.name, name), name)


def _opens(schema: Schema) -> bool:
    """Whether the form opens with a field: one that must be filled in, or matters most."""
    return "default" not in schema or schema.get("first", False)


def _without_section(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "section"}


def _title(step: Step) -> str:
    return step.name.replace("_", " ").capitalize()


def _switch(step: Step) -> str:
    return f"run_{step.switch_name}"


def _may_be_empty(schema: Schema) -> Schema:
    """A field of a step that need not run: the form does not open with it, and it may be empty."""
    schema = {key: value for key, value in schema.items() if key != "first"}
    if "default" in schema:
        return schema
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    empty: Schema = {
        "type": [*kinds, "null"],
        "default": None,
        "description": f"{schema['description']} Needed when the step runs.",
    }
    if "enum" in schema:
        empty["enum"] = [*schema["enum"], None]
    return schema | empty


def _make(model: type[Model], places: Mapping[str, str], values: Mapping[str, Any]) -> Model:
    """Build a model; what is required and was left empty counts as missing."""
    given = {
        name: values[place]
        for name, place in places.items()
        if place in values
        and not (values[place] is None and model.model_fields[name].is_required())
    }
    return model.model_validate(given)


def _renamed(text: str, places: Mapping[str, str]) -> str:
    return re.sub(r"\b\w+(?=:)", lambda word: places.get(word[0], word[0]), text)
