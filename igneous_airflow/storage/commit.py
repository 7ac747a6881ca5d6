"""Changing a small file that others may change at the same time, so that no change is lost."""

from collections.abc import Callable
from typing import TypeVar

from igneous_airflow.errors import StorageUnavailable
from igneous_airflow.storage.durable import sync
from igneous_airflow.storage.files import Folder
from igneous_airflow.storage.local import locked

_ATTEMPTS = 5

_Content = TypeVar("_Content")


def commit(
    folder: Folder,
    name: str,
    read: Callable[[], _Content],
    change: Callable[[_Content], _Content],
    write: Callable[[_Content], None],
) -> _Content:
    """Change a file of a folder, and return what it says then.

    It is read again, changed, written and read back; where another process wrote in between, this
    is repeated, so `change` must leave alone what it has changed already. On disk a lock keeps our
    own processes apart. Raises StorageUnavailable when the change never holds.
    """
    with locked(folder):
        for _ in range(_ATTEMPTS):
            current = read()
            changed = change(current)
            if changed == current:
                return current
            write(changed)
            sync(folder.url, [name])
    raise StorageUnavailable(
        f"{folder.url}/{name} keeps being overwritten by somebody else: try again"
    )
