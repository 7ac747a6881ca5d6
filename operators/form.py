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

from igneous_airflow.fields import COARSEST, MIP
from igneous_airflow.operators.chain import Chain, Condition, Step, StepField
from igneous_airflow.operators.params import (
    RunOptions,
    make_params,
    refusal,
    run_schemas,
)
from igneous_airflow.operators.settings import PodSettings, queue_names
from igneous_airflow.stage import Stage, fields_of_kind, matters_most, with_words
from igneous_airflow.validation import wrong_fields

Model = TypeVar("Model", bound=BaseModel)
Schema = dict[str, Any]

_ALL_STEPS = "All steps"
_NUMBERED = (
    f"Here the number is needed, not {COARSEST}: the steps work on one mip, and an earlier run may "
    "have left coarser ones."
)


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
        self._needed = {
            place
            for step in chain.steps
            if step.always_runs
            for name in step.stage.model_fields
            if (place := self._only_place(step, name))
        }
        # mips that all steps must take for the same one: the coarsest changes under their hands
        self._numbered = {
            place
            for step in chain.steps
            if step.binds
            for name in fields_of_kind(step.stage, MIP)
            for place in self._all_places(step, name)
        }

    def params(self) -> dict[str, Param]:
        """What the form opens with, then what steps share, each step's own, and how it is run.

        Airflow's form opens with the fields that are in no section, and folds all others away: it
        opens with what must be filled in or matters most, and which steps run.
        """
        parts = (self._shared(), self._own(), self._switches())
        fields = {name: schema for part in parts for name, schema in part}
        fields |= run_schemas({"queue": queue_names(), **PodSettings.read().offered})
        first = {name: field for name, field in fields.items() if matters_most(field)}
        in_order = sorted(first, key=lambda name: "default" in first[name])
        opening = {name: _without_section(first[name]) for name in in_order}
        return make_params(opening | {n: f for n, f in fields.items() if n not in opening})

    def _shared(self) -> Iterator[tuple[str, Schema]]:
        for name in self.chain.shared:
            owners = self.chain.owners(name)
            schema = owners[0].fields[name] | {"section": _ALL_STEPS}
            # of steps that all have it, one at least runs
            needed = name in self._needed or owners == [*self.chain.steps]
            yield name, self._shown(name, schema, needed=needed)

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
                    place = self._names[step.name, name]
                    yield place, self._shown(place, schema | heading, needed=place in self._needed)

    def _shown(self, place: str, schema: Schema, *, needed: bool) -> Schema:
        schema = schema if needed else _may_be_empty(schema)
        if place in self._numbered:
            return schema | {"minimum": 0, "description": f"{schema['description']} {_NUMBERED}"}
        return schema

    def read(self, values: Mapping[str, Any]) -> dict[str, Stage | Skipped]:
        """Make the stage of every step from a DAG run's params, or say why it does not run.

        Raises AirflowFailException, after which Airflow does not retry, naming every wrong field of
        the steps that run, and of how they are run.
        """
        skipped = self._skipped(values)
        stages: dict[str, Stage] = {}
        problems: list[str] = []
        forbidden: dict[str, str] = {}
        if len(skipped) == len(self.chain.steps):
            reasons = "; ".join(step.reason for step in skipped.values())
            problems.append(f"no step is to run: {reasons}")
        for step in self.chain.steps:
            if step.name not in skipped:
                places = self._places(step, skipped)
                problems += self._overruled(step, places, values)
                try:
                    stages[step.name] = _make(step.stage, places, values)
                except ValidationError as error:
                    problems += [_renamed(text, places) for text in wrong_fields(error)]
                else:
                    forbidden = self._forbidden(step, places, stages[step.name]) | forbidden
                    problems += self._unnumbered(step, places, stages[step.name])
                    problems += self._impossible(step, stages, skipped)
        try:
            _make(RunOptions, {name: name for name in RunOptions.model_fields}, values)
        except ValidationError as error:
            problems += wrong_fields(error)
        problems += forbidden.values()
        if problems:
            raise refusal(dict.fromkeys(problems))
        return skipped | stages

    def _forbidden(self, step: Step, places: Mapping[str, str], stage: Stage) -> dict[str, str]:
        """Why addresses may not be read or written here, by the form's fields."""
        return {
            places[name]: f"{places[name]}: '{step.stage.model_fields[name].title}' names {why}"
            for name, why in stage.forbidden_addresses()
        }

    def _overruled(
        self, step: Step, places: Mapping[str, str], values: Mapping[str, Any]
    ) -> Iterator[str]:
        """Fields of a step that were filled in although their values come from another step."""
        for name in step.binds.keys() & step.fields.keys():
            own, place = self._own_place(step, name), places[name]
            if own != place and values.get(own) not in (None, step.fields[name].get("default")):
                yield f"{own}: {values[own]} is not what {step.name} goes by, but {place}: clear it"

    def _unnumbered(self, step: Step, places: Mapping[str, str], stage: Stage) -> Iterator[str]:
        """Mips of a step that are not given by their number, although they must be."""
        for name in fields_of_kind(step.stage, MIP):
            if places[name] in self._numbered and getattr(stage, name) == COARSEST:
                yield (
                    f"{places[name]}: {COARSEST}, the coarsest mip that is there, is not the same "
                    "one for each step and each run of this DAG: write its number, 0 for the finest"
                )

    def _impossible(
        self, step: Step, stages: Mapping[str, Stage], skipped: Mapping[str, object]
    ) -> Iterator[str]:
        """What a step cannot run with."""
        for impossible in step.refusals:
            if all(_is_met(condition, stages) for condition in impossible.conditions):
                fields = [condition.field for condition in impossible.conditions]
                found = [
                    f"{self._place(field.step, field.name, skipped)}: {_value(field, stages)}"
                    for field in fields
                ]
                yield f"{' and '.join(found)} {impossible.why}"

    def in_its_words(self, step: Step, text: str, values: Mapping[str, Any]) -> str:
        """A text about a step with the form's names for the fields that it names as `field:`.

        Those in backticks get their titles.
        """
        shared = {name: self.chain.owners(name)[0].fields[name] for name in self.chain.shared}
        titles = {
            name: f"'{shared.get(name, schema)['title']}'" for name, schema in step.fields.items()
        }
        return with_words(_renamed(text, self._places(step, self._skipped(values))), titles)

    def _skipped(self, values: Mapping[str, Any]) -> dict[str, Skipped]:
        """The steps that do not run."""
        skipped: dict[str, Skipped] = {}
        for step in self.chain.steps:
            if step.switch is not None and not values.get(_switch(step), step.switch):
                skipped[step.name] = Skipped(f"{_switch(step)} is off")
            elif step.only_if is not None:
                condition = step.only_if
                place = self._place(condition.field.step, condition.field.name, skipped)
                if not condition.met_by(value := values.get(place)):
                    wanted = "" if condition.negated else f", not {condition.value!r}"
                    reason = f"{place} is {value!r}{wanted}"
                    skipped[step.name] = Skipped(reason)
        return skipped

    def _places(self, step: Step, skipped: Mapping[str, object]) -> dict[str, str]:
        """The form's field for each field of a step."""
        return {name: self._place(step, name, skipped) for name in step.stage.model_fields}

    def _place(self, step: Step, name: str, skipped: Mapping[str, object]) -> str:
        sources = step.sources(name) or (None,)
        running = (s for s in sources if s is not None and s.step.name not in skipped)
        source = next(running, sources[-1])
        if source is None:
            return self._own_place(step, name)
        return self._place(source.step, source.name, skipped)

    def _own_place(self, step: Step, name: str) -> str:
        """The form's field for a field of a step that is not bound."""
        return self._names.get((step.name, name), name)

    def _only_place(self, step: Step, name: str) -> str | None:
        """The form's field that a field has its value from whichever steps run, if there is one."""
        places = set(self._all_places(step, name))
        return places.pop() if len(places) == 1 else None

    def _all_places(self, step: Step, name: str) -> Iterator[str]:
        """The form's fields that a field may have its value from."""
        for source in step.sources(name) or (None,):
            if source is None:
                yield self._own_place(step, name)
            else:
                yield from self._all_places(source.step, source.name)


def _without_section(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "section"}


def _title(step: Step) -> str:
    return step.name.replace("_", " ").capitalize()


def _switch(step: Step) -> str:
    return f"run_{step.switch_name}"


def _is_met(condition: Condition, stages: Mapping[str, Stage]) -> bool:
    runs = condition.field.step.name in stages
    return runs and condition.met_by(_value(condition.field, stages))


def _value(field: StepField, stages: Mapping[str, Stage]) -> object:
    return getattr(stages[field.step.name], field.name)


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
