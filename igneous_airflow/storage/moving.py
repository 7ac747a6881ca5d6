"""Moving files and folders on a disk so that none is ever replaced; used by `local.py`."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from igneous_airflow.errors import InvalidParameter

#: What file systems without hard links answer, and kernels that refuse links to files of others.
_NO_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


def move_without_replacing(source: str, target: str) -> bool:
    """Move a file or folder, and say whether it was there; one that was half moved is completed.

    Raises InvalidParameter for a target that is taken, and OSError.
    """
    move = os.rename if os.path.isdir(source) else _move_file  # noqa: PTH112 - for every chunk
    try:
        try:
            move(source, target)
        except FileNotFoundError:
            if not os.path.lexists(source):  # others have moved it
                return False
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            move(source, target)
    except OSError as error:
        if error.errno not in _TAKEN or not os.path.lexists(target):
            raise
        raise InvalidParameter(
            f"{source} cannot be moved to {target}, where there is another one: nothing is replaced"
        ) from error
    return True


def _move_file(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not complete_move(source, target):
            raise
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(source, target)  # noqa: PTH104
        return
    Path(source).unlink(missing_ok=True)


def complete_move(source: str, target: str) -> bool:
    """Take the old name from a file that a stopped move has left with both; whether it had both."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.path.samestat(os.lstat(source), os.lstat(target)):
            Path(source).unlink(missing_ok=True)
            return True
    return False
