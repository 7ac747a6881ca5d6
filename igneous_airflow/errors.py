"""The exceptions of the package; the tree says whether a retry is of any use.

    IgneousError
    ├── PermanentError              a retry is useless: the task goes to the dead letters at once
    │   ├── InvalidParameter        (ValueError)         a value that a stage cannot work with
    │   │   └── PlanRefused         (ValueError)         a stage must not start, with every reason
    │   ├── LayerNotFound           (FileNotFoundError)  no `info` file at the layer's address
    │   ├── InvalidInfo             (ValueError)         an `info` file that breaks the format
    │   ├── UnsupportedLayer        (ValueError)         a layer of a kind we do not work on
    │   ├── MissingChunk            (FileNotFoundError)  a chunk file that should exist does not
    │   ├── CorruptChunk            (ValueError)         a chunk file that cannot be decoded
    │   ├── InvalidLevels           (ValueError)         a levels file that is missing or broken
    │   ├── SourceNotFound          (FileNotFoundError)  a file to read voxels from does not exist
    │   ├── UnreadableSource        (ValueError)         a file of voxels that cannot be decoded
    │   ├── SourceChanged           (RuntimeError)       other files than those that were planned
    │   ├── AlignmentError          (ValueError)         a write that does not fill whole chunks
    │   ├── AccessDenied            (PermissionError)    the storage refuses the operation
    │   └── InvalidMessage          (ValueError)         a queue message that is not a task
    ├── TransientError              a retry may help: the task waits and is tried again
    │   ├── StorageUnavailable      (OSError)            the storage did not answer, or is full
    │   └── WorkerDied              (RuntimeError)       the process that held the task ended
    ├── LeaseLost                   (RuntimeError)       the task belongs to another worker now
    ├── RunNotFound                 (FileNotFoundError)  no run is recorded at this address
    ├── WrongRunsFolder             (RuntimeError)       a worker has not the runs of its queue
    ├── RunFailed                   (RuntimeError)       a run cannot be completed without help
    └── AuditFailed                 (RuntimeError)       every task is done, yet output is missing

Raised everywhere; judged by `worker/loop.py`, which retries whatever is not a `PermanentError`.
"""

from collections.abc import Sequence


class IgneousError(Exception):
    """Something that this package names and explains."""


class PermanentError(IgneousError):
    """A retry of the same task gives the same error."""


class TransientError(IgneousError):
    """A later retry of the same task may succeed."""


class InvalidParameter(PermanentError, ValueError):
    """A parameter has a value that the stage cannot work with."""


class PlanRefused(InvalidParameter, ValueError):
    """A plan found reasons not to start; nothing has been written."""

    def __init__(self, stage: str, refusals: Sequence[str]) -> None:
        self.stage = stage
        self.refusals = tuple(refusals)
        lines = "\n".join(f"  - {reason}" for reason in self.refusals)
        super().__init__(f"{stage} cannot start, nothing was written:\n{lines}")

    def __reduce__(self) -> tuple[type["PlanRefused"], tuple[str, tuple[str, ...]]]:
        """Let the error pass from one process to another."""
        return type(self), (self.stage, self.refusals)


class LayerNotFound(PermanentError, FileNotFoundError):
    """There is no layer at the address."""


class InvalidInfo(PermanentError, ValueError):
    """The layer's `info` file breaks the Precomputed format."""


class UnsupportedLayer(PermanentError, ValueError):
    """The layer is of a kind that this package does not work on."""


class MissingChunk(PermanentError, FileNotFoundError):
    """A chunk file that should exist does not."""


class CorruptChunk(PermanentError, ValueError):
    """A chunk file exists but cannot be decoded."""


class InvalidLevels(PermanentError, ValueError):
    """The levels of a section, its histogram, are missing or broken."""


class SourceNotFound(PermanentError, FileNotFoundError):
    """A file that voxels are to be read from does not exist."""


class UnreadableSource(PermanentError, ValueError):
    """A file exists, but cannot be decoded to voxels that a layer can hold."""


class SourceChanged(PermanentError, RuntimeError):
    """The files that voxels are read from are not those that were planned."""


class AlignmentError(PermanentError, ValueError):
    """A write would fill only a part of a chunk."""


class AccessDenied(PermanentError, PermissionError):
    """The storage refuses a read or a write."""


class InvalidMessage(PermanentError, ValueError):
    """A queue message is not a task of this package."""


class StorageUnavailable(TransientError, OSError):
    """The storage did not answer, or has no room left."""


class WorkerDied(TransientError, RuntimeError):
    """The process that worked on a task ended before the task did."""


class LeaseLost(IgneousError, RuntimeError):
    """A lease ran out, so that the task belongs to somebody else now."""


class RunNotFound(IgneousError, FileNotFoundError):
    """No run is recorded at the address."""


class WrongRunsFolder(IgneousError, RuntimeError):
    """A worker was given another runs folder than the sender of a message, or one not mounted."""


class RunFailed(IgneousError, RuntimeError):
    """A run cannot be completed: tasks failed for good, or nobody works on it."""


class AuditFailed(IgneousError, RuntimeError):
    """Every task reports success, but promised output is missing.

    `cells` are the numbers of the stage's cells to do again; none when the stage cannot tell.
    """

    def __init__(self, message: str, cells: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.cells = tuple(cells)

    def __reduce__(self) -> tuple[type["AuditFailed"], tuple[str, tuple[int, ...]]]:
        """Let the error pass from one process to another."""
        return type(self), (str(self), self.cells)
