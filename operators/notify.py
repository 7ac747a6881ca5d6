"""Telling people that a run has failed, as a site's configuration says; used by `group.py`."""

from importlib import import_module
from typing import TYPE_CHECKING

from airflow.sdk import conf

from igneous_airflow.errors import InvalidParameter

if TYPE_CHECKING:
    from airflow.sdk import Context


def notify_failure(context: "Context") -> None:
    """Call what the option `[igneous] on_failure_callback` names, if any, with the context.

    That is a function, one of Airflow's notifiers, or the class of one that needs no arguments.
    The context's `exception` says what is wrong. Raises InvalidParameter when there is no such
    thing; Airflow notes that in the task's log, and the task fails as it did.
    """
    path = str(conf.get("igneous", "on_failure_callback")).strip()
    if not path:
        return
    module, _, name = path.rpartition(".")
    try:
        callback = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidParameter(
            f"[igneous] on_failure_callback = {path!r} cannot be imported: {error}"
        ) from error
    if isinstance(callback, type):
        callback = callback()
    callback(context)
