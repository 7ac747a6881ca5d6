"""The audit log: who launched, approved, cancelled, deleted or restored what, and when.

Each entry is a file of one line below `.audit/` of the runs folder, so that nothing is lost when
several processes write at once, and `cat .audit/*` shows all of them in order of time.
"""

import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.storage.files import StoredFile, open_own_folder

_FOLDER = ".audit"

Action = Literal["approved", "launched", "cancelled", "deleted", "restored", "emptied"]


class AuditEntry(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True)

    at: str = Field(description="time in UTC, ISO 8601")
    action: Action
    by: str
    what: str = Field(description="the layer")
    run: str = ""
    launch: str = ""
    stage: str = ""
    why: str = ""
    triggered_by: dict[str, str] = Field(default={}, description="a DAG run, for example")


def now() -> str:
    """The time of an entry."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def audit_folder(runs: str) -> str:
    """The address of the log of a runs folder."""
    return f"{runs}/{_FOLDER}"


def write_entry(runs: str, entry: AuditEntry) -> None:
    """Add an entry to the log of a runs folder; written twice it is one, and no other is lost."""
    stamp = re.sub(r"[^0-9T]", "", entry.at[:19])
    subject = entry.run or re.sub(r"[^A-Za-z0-9]+", "_", entry.what).strip("_")[-60:]
    line = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
    name = f"{stamp}Z-{entry.action}-{subject}-{sha256(line).hexdigest()[:8]}"
    open_own_folder(runs).write(
        f"{_FOLDER}/{name}", StoredFile(line), content_type="application/json"
    )


def read_entries(runs: str) -> list[AuditEntry]:
    """Read the log of a runs folder, in order of time; lines that are damaged are left out."""
    folder = open_own_folder(runs)
    stored = [folder.read(f"{_FOLDER}/{name}") for name in sorted(folder.names(_FOLDER))]
    lines = [bytes(file.content) for file in stored if file is not None]
    return [entry for line in lines if (entry := _parsed(line))]


def _parsed(line: bytes) -> AuditEntry | None:
    try:
        return AuditEntry.model_validate_json(line)
    except ValueError:
        return None
