"""A task: one message of the queue, which names a run, one of its launches, and a number.

It holds no parameters and no addresses: a worker looks the run up below the runs folder that it was
given, and believes only the record there (`worker/assignments.py`). The mark of the sender's runs
folder tells it whether that is the right one. Written by `run.py`.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igneous_airflow.credentials import hide_credentials
from igneous_airflow.errors import InvalidMessage
from igneous_airflow.run_record import LAUNCH_ID, RUN_ID
from igneous_airflow.runs_folder import MARK

_SHOWN = 200  # characters of a foreign message, in an error


class Task(BaseModel):
    """Task number `task` of one launch of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[2] = 2
    runs: str | None = Field(
        default=None, pattern=MARK, description="mark of the runs folder of the sender"
    )
    run: str = Field(pattern=RUN_ID, description="the run's id")
    launch: str = Field(pattern=LAUNCH_ID, description="of the launch that sent the message")
    task: int = Field(ge=0)

    @classmethod
    def decode(cls, body: str) -> Self:
        """Read a message; raises InvalidMessage."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise InvalidMessage(_older(body) or _foreign(body, error)) from None


def _older(body: str) -> str:
    """What to do about a message of format 1, which held all parameters; empty for any other."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(data, dict) or data.get("version") != 1 or "parameters" not in data:
        return ""
    run = str(data.get("run", "")).rstrip("/").rpartition("/")[2][:_SHOWN]
    return f"this message was sent by an older version: igneous-airflow resume {run!r}"


def _foreign(body: str, error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    why = "; ".join(f"{'.'.join(map(str, p['loc']))} {p['msg']}".strip() for p in problems[:3])
    shown = hide_credentials(body[:_SHOWN])
    return f"this message is not a task of igneous-airflow ({why}): {shown!r}"


class TaskEncoder:
    """Writes the messages of one launch of a run: only the number at the end differs."""

    def __init__(self, runs: str, run: str, launch: str) -> None:
        head = {"version": 2, "runs": runs, "run": run, "launch": launch}
        self._head = json.dumps(head, separators=(",", ":"))[:-1]

    def encode(self, task: int) -> str:
        """The message of a task."""
        return f'{self._head},"task":{task}}}'

    def encode_all(self, tasks: Iterator[int]) -> Iterator[str]:
        """The messages of many tasks, one after the other."""
        return map(self.encode, tasks)
