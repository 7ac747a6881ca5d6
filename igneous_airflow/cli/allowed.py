"""What the command line and the environment say of the addresses that may be opened."""

from dataclasses import replace

from igneous_airflow.storage.allowed import Allowed, limit_process, process_limits

#: The environment variable that limits every command of a machine or a pod.
ALLOWED = "IGNEOUS_AIRFLOW_ALLOWED"


def limit_to(text: str | None, setting: str) -> None:
    """Limit this process to prefixes, beside all other limits; None and spaces change nothing.

    Raises AccessDenied when a prefix cannot be understood.
    """
    if text is not None and text.strip():
        limit_process(setting, Allowed.parse(text, setting))


def keep_out_of(folder: str) -> None:
    """Let no layer be in a folder of the deployment, unless a prefix names one inside of it."""
    for limit in process_limits() or (Allowed(setting="--allowed"),):
        limit_process(limit.setting, replace(limit, own=(*limit.own, folder)))
