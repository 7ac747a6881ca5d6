"""Addresses and commands as people write them on a command line; used by its commands."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import IgneousError
from igneous_airflow.queue.protocol import open_queue

_FILE = "file://"


def folder_url(text: str) -> str:
    """The URL of a folder given as a path, which may be relative, or as a URL already.

    Raises click.BadParameter for an empty one, which would be the folder one happens to be in, and
    InvalidParameter for one that holds credentials.
    """
    refuse_credentials(text)
    scheme, separator, rest = text.partition("://")
    if separator:
        return f"{scheme}://{rest.rstrip('/')}"
    if not text:
        raise click.BadParameter("an empty address")
    return f"{_FILE}{Path(os.path.expanduser(text)).absolute()}"  # noqa: PTH111 - which fails for ~nobody


def shown(url: str) -> str:
    """A URL as people would write it: a path when it is one."""
    return url.removeprefix(_FILE)


def quoted(url: str) -> str:
    """A URL or path as a shell takes it for one word: queues on SQS have `&` in theirs."""
    return shlex.quote(shown(url))


def program() -> str:
    """What to type for `igneous-airflow`: its path where the name alone would not be found."""
    name = "igneous-airflow"
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


def embedded_queue(run_url: str) -> str:
    """The queue of a run on this machine: beside its record, or at home when that is a bucket."""
    if run_url.startswith(_FILE):
        return f"sqlite://{shown(run_url)}/queue.db"
    return f"sqlite://{Path.home()}/.igneous_airflow/queues/{run_url.rpartition('/')[2]}.db"


def queue_url(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    """Check the address of a queue that other processes are to share; opens nothing."""
    if value is None:
        return None
    if value.startswith("memory://"):
        raise click.BadParameter(f"{value!r} cannot be shared: its tasks end with this process")
    try:
        open_queue(value)
    except IgneousError as error:
        raise click.BadParameter(str(error)) from error
    return value
