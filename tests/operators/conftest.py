"""An Airflow of its own for these tests: home, SQLite database, and the DAGs of this repository.

The environment is set when pytest loads this file, before any test module imports Airflow.
"""

import atexit
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorstore

ROOT = Path(__file__).parents[2]
HOME = tempfile.mkdtemp(prefix="igneous-airflow-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
BUNDLES = {"igneous": ROOT / "dags", "chains": Path(__file__).parent / "chains"}
os.environ.update(
    AIRFLOW_HOME=HOME,
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST=json.dumps(
        [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder)},
            }
            for name, folder in BUNDLES.items()
        ]
    ),
    AIRFLOW__API_AUTH__JWT_SECRET="a-secret-of-the-tests-" * 4,
)

MakeLayer = Callable[..., Path]


@pytest.fixture
def make_layer(tmp_path: Path) -> MakeLayer:
    """Write an image layer with tensorstore and return its folder."""

    def make(name: str = "layer", size: tuple[int, int, int] = (256, 256, 64)) -> Path:
        path = tmp_path / name
        store = tensorstore.open(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "file", "path": f"{path}/"},
                "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
                "scale_metadata": {
                    "size": size,
                    "resolution": [4, 4, 40],
                    "chunk_size": [64, 64, 64],
                    "encoding": "raw",
                },
            },
            create=True,
        ).result()
        rng = np.random.default_rng(len(name))
        store[...] = rng.integers(1, 255, (*size, 1), dtype=np.uint8)
        return path

    return make


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.utils.db import initdb

        initdb()


@pytest.fixture
def dags(airflow_database: None) -> dict[str, Any]:
    """The DAGs of this repository and of the tests, by id; new, since a run leaves its params."""
    from airflow.dag_processing.dagbag import DagBag

    found: dict[str, Any] = {}
    for name, folder in BUNDLES.items():
        bag = DagBag(dag_folder=str(folder), bundle_path=folder, bundle_name=name)
        assert bag.import_errors == {}
        found |= bag.dags
    return found


@pytest.fixture
def context() -> Callable[..., Any]:
    """Make what Airflow hands to `execute`, as far as our operators look."""

    def make(conf: dict[str, Any] | None = None, *, run_id: str = "manual-1", **params: Any) -> Any:
        given = {**params, **(conf or {})}
        return {
            "params": given,
            "dag": SimpleNamespace(params=params),
            "dag_run": SimpleNamespace(
                dag_id="a_dag", run_id=run_id, conf=conf, triggering_user_name="somebody"
            ),
        }

    return make


@pytest.fixture(autouse=True)
def _state_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__RUNS", f"file://{tmp_path}/state")
