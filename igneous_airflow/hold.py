"""A hold on a run: why it may not begin, and who has allowed it after all; used by runs."""

from dataclasses import dataclass

from pydantic import BaseModel

from igneous_airflow.errors import RunFailed
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import StoredFile, open_folder

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
        stored = open_folder(self.run).read(_FILE)
        if stored is None:
            return None
        note = _Note.model_validate_json(bytes(decompress_bytes(stored)))
        return note if note.launch_id == self.launch_id else None  # else of an earlier launch

    def _write(self, note: _Note) -> None:
        content = note.model_dump_json(indent=2).encode()
        open_folder(self.run).write(_FILE, StoredFile(content), content_type="application/json")
