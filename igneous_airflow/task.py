"""A task: one message of the queue, a stage at some of its cells in a run.

Messages are JSON data with every parameter of the stage, checked when read. They name no code but
a registered stage. Written by `run.py`, read by the workers.
"""

import json
from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from igneous_airflow.errors import InvalidMessage, InvalidParameter
from igneous_airflow.stage import Stage
from igneous_airflow.stages import stage_class
from igneous_airflow.validation import wrong_fields

_VERSION = 1
#: Part of the names of receipts.
LAUNCH_ID = r"^[0-9a-z]{4,32}$"


class Task(BaseModel):
    """Cells `start` up to `stop` of a stage, as task number `index` of the run at `run`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = Field(default=_VERSION, ge=_VERSION, le=_VERSION)
    run: str = Field(min_length=1, description="URL of the folder that records the run")
    launch_id: str = Field(pattern=LAUNCH_ID, description="of the launch that sent the message")
    stage: str
    parameters: dict[str, Any]
    index: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int

    @model_validator(mode="after")
    def _holds_cells(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"no cells from {self.start} to {self.stop}")
        return self

    @classmethod
    def decode(cls, body: str) -> Self:
        """Read a message; raises InvalidMessage."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise InvalidMessage(f"this message is not a task: {error}: {body[:500]!r}") from error

    def make_stage(self) -> Stage:
        """The stage with its parameters checked; raises InvalidMessage."""
        try:
            return stage_class(self.stage).model_validate(self.parameters)
        except ValidationError as error:
            problems = "; ".join(wrong_fields(error))
            raise InvalidMessage(f"this message holds no valid {self.stage}: {problems}") from None
        except InvalidParameter as error:
            raise InvalidMessage(f"this message holds no valid {self.stage}: {error}") from error


class TaskEncoder:
    """Writes the messages of one run: only the numbers at the end differ, so the rest is kept."""

    def __init__(self, run: str, launch_id: str, stage: Stage, batch: int, cells: int) -> None:
        common = {
            "version": _VERSION,
            "run": run,
            "launch_id": launch_id,
            "stage": stage.name,
            "parameters": stage.parameters(),
        }
        self._head = json.dumps(common, separators=(",", ":"))[:-1]
        self._batch = batch
        self._cells = cells

    def encode(self, index: int) -> str:
        """The message of task `index`."""
        start = index * self._batch
        stop = min(start + self._batch, self._cells)
        return f'{self._head},"index":{index},"start":{start},"stop":{stop}}}'

    def encode_all(self, indices: Iterator[int]) -> Iterator[str]:
        """The messages of many tasks, one after the other."""
        return map(self.encode, indices)
