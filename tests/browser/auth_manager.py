"""Airflow's simple auth manager, with one user who may not read one DAG."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from users import HIDDEN_DAG, READER


class GuardedAuthManager(SimpleAuthManager):
    """Hides a DAG, and with it all that concerns every DAG, from the reader."""

    def is_authorized_dag(self, *, details: Any = None, user: Any, **asked: Any) -> bool:
        hidden = details is None or details.id in (None, HIDDEN_DAG)
        if user.username == READER and hidden:
            return False
        return super().is_authorized_dag(details=details, user=user, **asked)
