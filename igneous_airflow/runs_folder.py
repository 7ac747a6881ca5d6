"""The mark of a runs folder, by which workers know that they were given the one of a message.

A worker whose runs folder is another one, or is not mounted, finds no run that the queue speaks of.
Without a mark it could not tell its own mistake from messages that name no run.
"""

import uuid
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.storage.commit import commit
from igneous_airflow.storage.files import open_own_folder
from igneous_airflow.storage.json_files import read_json, write_json

_FILE = ".runs.json"
#: Of a folder's mark.
MARK = r"^[0-9a-f]{8}$"


class _Mark(BaseModel):
    model_config = ConfigDict(frozen=True)

    version: int = 1
    id: str = Field(pattern=MARK)


_NONE = _Mark(id="0" * 8)  # stands for that of a folder without


def read_mark(runs: str) -> str | None:
    """The mark of a runs folder; None where no run was sent to workers from.

    Raises InvalidParameter for a damaged one.
    """
    mark = read_json(open_own_folder(runs), _FILE, _Mark)
    return None if mark is None else mark.id


def mark_of(runs: str) -> str:
    """The mark of a runs folder, which gets one the first time; raises as `read_mark` does."""
    folder, new = open_own_folder(runs), _Mark(id=uuid.uuid4().hex[:8])

    def read() -> _Mark:
        return read_json(folder, _FILE, _Mark) or _NONE

    def change(present: _Mark) -> _Mark:
        return new if present is _NONE else present

    return commit(folder, _FILE, read, change, partial(write_json, folder, _FILE)).id
