"""The record of a run: what was planned, by whom, and whether workers may do it; used by `run.py`.

It is the file `run.json` of the run's folder. Within a launch only its state changes, by
compare-and-swap; parameters, blocks and queue never do. Workers believe the record, not messages.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igneous_airflow.errors import InvalidParameter, RunFailed
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.commit import commit
from igneous_airflow.storage.files import Folder
from igneous_airflow.storage.json_files import RECORD_BYTES, write_json

RECORD = "run.json"
VERSION = 2
#: A run's id is the name of its folder, so it must never lead to another one.
RUN_ID = r"^[0-9A-Za-z_-][0-9A-Za-z._-]{0,199}$"
#: Part of the names of receipts.
LAUNCH_ID = r"^[0-9a-z]{4,32}$"

_APPROVAL, _SUMMARY = "hold.json", "summary.json"  # files that format 1 kept the state in
_HELD_AS_PLANNED = "nothing but its plan was asked for"  # what format 1 said of such a run
_ONLY_PLANNED = "only its plan was requested"


class LaunchState(StrEnum):
    """What may be done with a launch of a run."""

    PLANNED = "planned"  # nothing is written yet; it may have to wait for approval
    REFUSED = "refused"  # its plan says why
    APPROVED = "approved"  # by a person
    LAUNCHED = "launched"  # workers may do its tasks
    CANCELLED = "cancelled"  # no worker may begin another task
    DONE = "done"  # proved


_NEXT: Mapping[LaunchState, frozenset[LaunchState]] = {
    LaunchState.PLANNED: frozenset(
        {LaunchState.APPROVED, LaunchState.LAUNCHED, LaunchState.CANCELLED}
    ),
    LaunchState.REFUSED: frozenset(),
    LaunchState.APPROVED: frozenset({LaunchState.LAUNCHED, LaunchState.CANCELLED}),
    LaunchState.LAUNCHED: frozenset({LaunchState.DONE, LaunchState.CANCELLED}),
    LaunchState.CANCELLED: frozenset({LaunchState.LAUNCHED}),
    LaunchState.DONE: frozenset({LaunchState.LAUNCHED}),  # output was lost after the proof
}


class StateChange(BaseModel):
    """One change of a run's state: who, when and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: LaunchState
    by: str
    at: str = Field(description="time in UTC, ISO 8601")
    why: str = ""

    @classmethod
    def now(cls, state: LaunchState, by: str, why: str = "") -> Self:
        """A change that is made now."""
        return cls(state=state, by=by, at=datetime.now(UTC).isoformat(timespec="seconds"), why=why)


class RunRecord(BaseModel):
    """What is stored of one launch of a run, format 2."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    id: str = Field(pattern=RUN_ID)
    launch_id: str = Field(
        pattern=LAUNCH_ID, description="new at each launch: what older workers leave does not count"
    )
    stage: str
    requested: dict[str, Any] = Field(
        description="parameters as requested, for example with mip -1"
    )
    resolved: dict[str, Any] = Field(description="parameters as resolved when the run was planned")
    queue: str
    own_queue: bool = Field(description="whether the queue holds nothing but this run's tasks")
    blocks: int = Field(ge=0)
    batch: int = Field(default=1, ge=1, description="blocks per task")
    memory: int = Field(default=0, description="bytes of memory for the voxels of one task")
    scratch: int = Field(default=0, description="bytes in the temporary folder of each machine")
    by: str
    triggered_by: dict[str, str] = Field(
        default={}, description="what launched it: a DAG run, for example"
    )
    created: float = Field(description="seconds since the epoch")
    plan_only: bool = Field(default=False, description="whether it must never be launched")
    approval: str = Field(default="", description="why a person must approve it; empty if not")
    refusals: tuple[str, ...] = ()
    replaces: tuple[str, ...] | None = Field(
        default=None,
        description="digests of the methods that made what it may replace; None where not recorded",
    )
    changes: tuple[StateChange, ...] = Field(min_length=1)
    digest: str = Field(
        default="", description="of all that never changes once launched; empty in format 1"
    )

    @property
    def state(self) -> LaunchState:
        """The state now."""
        return self.changes[-1].state

    @property
    def planned(self) -> int:
        """Number of tasks."""
        return -(-self.blocks // self.batch)

    @property
    def was_launched(self) -> bool:
        """Whether workers were ever allowed to do its tasks."""
        return any(change.state is LaunchState.LAUNCHED for change in self.changes)

    @property
    def is_finished(self) -> bool:
        """Whether the run was proved complete."""
        return self.state is LaunchState.DONE

    @property
    def is_of_format_1(self) -> bool:
        """Whether it was read as stored by an older version, whose messages may still wait."""
        return not self.digest

    @property
    def approved_by(self) -> str:
        """Who approved the run; empty when nobody had to, or has."""
        approvals = [change.by for change in self.changes if change.state is LaunchState.APPROVED]
        return approvals[-1] if approvals else ""

    @property
    def why_it_waits(self) -> str:
        """Why the run may not begin; empty when it may, or has."""
        if self.state is LaunchState.REFUSED:
            return "its plan was refused"
        if self.state is LaunchState.CANCELLED:
            last = self.changes[-1]
            return last.why or f"{last.by or 'someone'} cancelled it"
        if self.plan_only:
            return _ONLY_PLANNED
        return self.approval if self.state is LaunchState.PLANNED else ""

    def fixed(self) -> str:
        """The digest of all that never changes once launched."""
        kept = {"launch_id", "stage", "requested", "resolved", "queue", "own_queue", "blocks"}
        kept |= {"batch", "plan_only", "approval"}
        text = json.dumps(self.model_dump(mode="json", include=kept), sort_keys=True)
        return sha256(text.encode()).hexdigest()[:16]

    def sealed(self) -> Self:
        """The record with its digest, in the present format."""
        return self.model_copy(update={"digest": self.fixed()})

    def moved_to(self, state: LaunchState, by: str, why: str = "") -> Self:
        """The record in another state; raises RunFailed when this one does not lead there."""
        if self.plan_only and state in (LaunchState.APPROVED, LaunchState.LAUNCHED):
            raise RunFailed(
                f"the run {self.id} cannot become {state}: {_ONLY_PLANNED}; start a new run to do "
                "the work"
            )
        if state is self.state:
            return self
        if state not in _NEXT[self.state]:
            raise RunFailed(
                f"the run {self.id} is {self.state}, so it cannot become {state}: start a new run"
            )
        change = StateChange.now(state, by, why)
        return self.model_copy(update={"changes": (*self.changes, change)})

    def begun(self, by: str) -> Self:
        """The record of the run once workers may do its tasks.

        Raises RunFailed when it is refused, cancelled, waits for approval, or was only planned.
        """
        if why := self.why_it_waits:
            hint = (
                "what it has done stays; to go on, resume the run"
                if self.was_launched
                else "nothing was written; start a new run to do the work"
            )
            raise RunFailed(f"the run {self.id} may not begin ({why}): {hint}")
        return self.moved_to(LaunchState.LAUNCHED, by)

    def continued(self, by: str) -> Self:
        """The record of a run that was launched before, once workers may go on with it.

        Raises RunFailed for a run that never was.
        """
        if self.state is LaunchState.CANCELLED and self.was_launched:
            return self.moved_to(LaunchState.LAUNCHED, by)
        return self.begun(by)


def read_record(folder: Folder) -> RunRecord | None:
    """Read the record in a run's folder, of any format so far; None when there is none.

    Raises InvalidParameter for one that is damaged, was changed by hand, or is of a newer format.
    """
    stored = folder.read(RECORD)
    if stored is None:
        return None
    where = f"{folder.url}/{RECORD}"
    try:
        data = json.loads(bytes(decompress_bytes(stored, RECORD_BYTES)))
        version = data.get("version", 1)
        if isinstance(version, int) and version > VERSION:
            raise InvalidParameter(
                f"{where} is of version {version}, and this is an older igneous-airflow, which "
                f"reads versions up to {VERSION}: update it"
            )
        record = RunRecord.model_validate(_from_format_1(folder, data) if version == 1 else data)
    except (ValueError, TypeError, AttributeError, RecursionError, KeyError) as error:
        if isinstance(error, InvalidParameter):
            raise
        raise InvalidParameter(f"{where} is damaged: {_brief(error)}; {_WAY_OUT}") from error
    if record.digest != ("" if version == 1 else record.fixed()):
        raise InvalidParameter(f"{where} was changed by hand after its launch; {_WAY_OUT}")
    return record


_WAY_OUT = (
    "restore the file from a backup, or remove the run's folder and start the stage again: output "
    "that is already there is written again with the same bytes"
)


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        return "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:3])
    return str(error)[:200] or type(error).__name__


def create_record(folder: Folder, record: RunRecord, earlier: RunRecord | None) -> RunRecord:
    """Store the record of a new launch in place of that of an earlier one, and return it.

    Raises RunFailed when another process has launched the run since `earlier` was read.
    """
    sealed = record.sealed()

    def replace(present: RunRecord | None) -> RunRecord | None:
        if present in (earlier, sealed):
            return sealed
        raise RunFailed(
            f"{folder.url} was launched by another process at the same time: look at it with "
            f"igneous-airflow status {record.id}"
        )

    commit(folder, RECORD, lambda: read_record(folder), replace, lambda new: _write(folder, new))
    return sealed


def change_record(
    folder: Folder, launch_id: str, change: Callable[[RunRecord], RunRecord]
) -> RunRecord:
    """Change the state of a launch and return its record; raises RunFailed for another launch."""

    def changed(present: RunRecord | None) -> RunRecord | None:
        if present is None or present.launch_id != launch_id:
            raise RunFailed(
                f"{folder.url} was started again by another process: load the run again"
            )
        return change(present)

    record = commit(
        folder, RECORD, lambda: read_record(folder), changed, lambda new: _write(folder, new)
    )
    assert record is not None  # noqa: S101 - `changed` never gives None
    return record


def _write(folder: Folder, record: RunRecord | None) -> None:
    assert record is not None  # noqa: S101 - no change gives None
    write_json(folder, RECORD, record.sealed())


def _from_format_1(folder: Folder, data: dict[str, Any]) -> dict[str, Any]:
    """The data of a record of format 1, which kept its state in other files, as of format 2."""
    names = {"parameters": "resolved", "asked": "requested", "cells": "blocks"}
    names |= {"origin": "triggered_by"}
    kept = {names.get(name, name): value for name, value in data.items() if name != "url"}
    hold = _format_1_hold(folder, str(data["launch_id"]))
    why, released_by = str(hold.get("why", "")), str(hold.get("released_by", ""))
    only_planned = why == _HELD_AS_PLANNED
    if hold and not released_by:
        states = [LaunchState.PLANNED]
    elif folder.exists(_SUMMARY):
        states = [LaunchState.PLANNED, LaunchState.LAUNCHED, LaunchState.DONE]
    else:
        states = [LaunchState.PLANNED, LaunchState.LAUNCHED]
    at = datetime.fromtimestamp(float(data["created"]), UTC).isoformat(timespec="seconds")
    changes = [{"state": state, "by": str(data["by"]), "at": at} for state in states]
    if released_by:
        changes.insert(1, {"state": LaunchState.APPROVED, "by": released_by, "at": at})
    return {
        **kept,
        "plan_only": only_planned,
        "approval": "" if only_planned else why,
        "changes": changes,
    }


def _format_1_hold(folder: Folder, launch_id: str) -> dict[str, Any]:
    stored = folder.read(_APPROVAL)
    note = {} if stored is None else json.loads(bytes(decompress_bytes(stored, RECORD_BYTES)))
    return note if note.get("launch_id") == launch_id else {}


def run_folder_name(*parts: str) -> str:
    """A folder's name for a run known by other words: readable, and different for other words."""
    words = "/".join(parts)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", words).strip("_.")[:100]
    return f"{readable}-{sha256(words.encode()).hexdigest()[:8]}"


def new_run_name(stage: str) -> str:
    """A folder's name for a run without a name of its own: the stage and the time."""
    return run_folder_name(stage, datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f"))
