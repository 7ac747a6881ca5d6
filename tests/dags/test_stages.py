"""The DAG files: a DAG for every stage, and nothing heavy to load; in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from igneous_airflow.stages import registered_stages

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "dags").glob("[!_]*.py"))
HEAVY = ("numpy", "boto3", "cloudvolume", "cloudfiles", "kubernetes", "tinybrain", "zmesh", "PIL")
REPORT = """
import json, runpy, sys
before = set(sys.modules)
{load}
print(json.dumps(sorted(name for name in {heavy!r} if name in sys.modules)))
"""


def loaded(load: str, home: Path) -> list[str]:
    """The heavy libraries that a fresh process has after `load`."""
    answer = subprocess.run(
        [sys.executable, "-c", REPORT.format(load=load, heavy=HEAVY)],
        env={**os.environ, "AIRFLOW_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    names: list[str] = json.loads(answer.stdout.splitlines()[-1])
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_dag_file_is_light_to_load(file: Path, tmp_path: Path) -> None:
    assert loaded(f"runpy.run_path({str(file)!r})", tmp_path) == []


@pytest.mark.parametrize("module", ["plugin", "provider"])
def test_what_every_process_of_airflow_loads_is_light(module: str, tmp_path: Path) -> None:
    assert loaded(f"import igneous_airflow.operators.{module}", tmp_path) == []


def test_every_stage_has_a_dag_that_is_only_triggered(tmp_path: Path) -> None:
    script = (
        "import json, runpy\n"
        "from airflow.sdk import DAG\n"
        "from airflow.sdk.definitions._internal.contextmanager import DagContext\n"
        "DagContext.current_autoregister_module_name = '__main__'\n"
        f"runpy.run_path({str(ROOT / 'dags' / 'stages.py')!r})\n"
        "dags = [dag for dag, _ in DagContext.autoregistered_dags]\n"
        "for dag in dags: dag.validate(); dag.check_cycle()\n"
        "print(json.dumps({d.dag_id: [d.schedule, d.doc_md, d.max_active_runs] for d in dags}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found.keys() == {f"igneous_{name}" for name in registered_stages()}
    for schedule, words, active in found.values():
        assert schedule is None
        assert words
        assert active >= 2


def test_a_dag_for_every_stage_needs_no_list() -> None:
    text = (ROOT / "dags" / "stages.py").read_text()
    assert [name for name in registered_stages() if name in text] == []
