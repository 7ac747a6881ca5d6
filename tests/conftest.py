"""Stored data of earlier versions, for tests of any folder."""

import importlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from igneous_airflow.storage import allowed

FORMAT1 = Path(__file__).parent / "data" / "format1"


@pytest.fixture(autouse=True)
def _limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What limits this process: Airflow's configuration in tests of Airflow, else nothing.

    Not whatever the first import of the operators, or another test, has left.
    """
    monkeypatch.setattr(allowed, "_limits", {})
    if request.node.get_closest_marker("airflow"):
        operators = importlib.import_module("igneous_airflow.operators")
        allowed.limit_process("[igneous] allowed", operators.configured)


@pytest.fixture
def format1(tmp_path: Path) -> Path:
    """A copy of `data/format1` of one's own, whose addresses are where it is.

    `data/format1/README.md` says what is in it.
    """
    root = tmp_path / "format1"
    shutil.copytree(FORMAT1, root)
    for pattern in ("runs/*/*.json", "layers/*/info", "layers/*/provenance"):
        for path in root.glob(pattern):
            path.write_text(path.read_text().replace("/placeholder", str(root)))
    for path in root.glob("runs/*/queue.db"):
        with sqlite3.connect(path) as connection:
            for table in ("messages", "dead"):
                connection.execute(
                    f"UPDATE {table} SET body = replace(body, '/placeholder', ?)", (str(root),)
                )
        connection.close()
    return root
