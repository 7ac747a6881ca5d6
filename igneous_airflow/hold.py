"""A hold on a run: why it may not begin, and who has allowed it after all; used by runs."""

from dataclasses import dataclass

from pydantic import BaseModel

from igneous_airflow.errors import RunFailed
from igneous_airflow.storage.files import open_own_folder
from igneous_airflow.storage.json_files import read_json, write_json

_FILE = "hold.json"


class _Note(BaseModel):
    """What is written down; it holds for one launch."""

    launch_id: str
    why: str
    released_by: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """The hold on one launch of the run in the folder `run`, if there is one."""

    run: str
    launch_id: str

    def place(self, why: str) -> None:
        """Let no task be sent, and nothing be written to the layer, until it is released."""
        self._write(_Note(launch_id=self.launch_id, why=why))

    def release(self, by: str) -> None:
        """Let the run begin if it is held, and note who allowed it."""
        if (note := self._read()) is not None:
            self._write(note.model_copy(update={"released_by": by}))

    @property
    def why(self) -> str:
        """Why the run may not begin; empty when it may."""
        note = self._read()
        return note.why if note and not note.released_by else ""

    @property
    def released_by(self) -> str:
        """Who has released the run; empty when nobody had to, or nobody has."""
        note = self._read()
        return note.released_by if note else ""

    def require_released(self) -> None:
        """Raise RunFailed when the run may not begin."""
        if why := self.why:
            raise RunFailed(
                f"the run {self.run} is held ({why}): nothing was written; start it anew to do "
                "the work"
            )

    def _read(self) -> _Note | None:
        note = read_json(open_own_folder(self.run), _FILE, _Note)
        return note if note and note.launch_id == self.launch_id else None  # of this launch

    def _write(self, note: _Note) -> None:
        write_json(open_own_folder(self.run), _FILE, note)
