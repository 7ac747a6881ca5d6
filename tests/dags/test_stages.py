"""The DAG files: a DAG for every stage, and nothing heavy to load; in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from igneous_airflow.stages import registered_stages

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "dags").glob("[!_]*.py"))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
HEAVY = ("numpy", "boto3", "cloudvolume", "cloudfiles", "kubernetes", "tinybrain", "zmesh", "PIL")
REPORT = """
import json, runpy, sys
{load}
print(json.dumps(sorted(name for name in {heavy!r} if name in sys.modules)))
"""


def answer_of(script: str, home: Path) -> Any:
    """What a fresh process with an Airflow of its own prints last, as JSON."""
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "AIRFLOW_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def loaded(load: str, home: Path) -> list[str]:
    """The heavy libraries that a fresh process has after `load`."""
    names: list[str] = answer_of(REPORT.format(load=load, heavy=HEAVY), home)
    return names


@pytest.mark.parametrize("file", [*FILES, *EXAMPLES], ids=lambda file: file.name)
def test_a_dag_file_is_light_to_load(file: Path, tmp_path: Path) -> None:
    assert loaded(f"runpy.run_path({str(file)!r})", tmp_path) == []


@pytest.mark.parametrize("module", ["plugin", "provider"])
def test_what_every_process_of_airflow_loads_is_light(module: str, tmp_path: Path) -> None:
    assert loaded(f"import igneous_airflow.operators.{module}", tmp_path) == []


def test_every_stage_and_every_chain_has_a_dag_that_is_only_triggered(tmp_path: Path) -> None:
    script = (
        "import json, pathlib\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"folder = pathlib.Path({str(ROOT / 'dags')!r})\n"
        "bag = DagBag(dag_folder=folder, bundle_path=folder, bundle_name='igneous')\n"
        "assert bag.import_errors == {}\n"
        "said = lambda d: [d.schedule, d.doc_md, d.max_active_runs, pathlib.Path(d.fileloc).stem]\n"
        "print(json.dumps({d.dag_id: said(d) for d in bag.dags.values()}))\n"
    )
    found = answer_of(script, tmp_path)
    chains = {file.stem for file in FILES} - {"stages"}
    assert found.keys() == {f"igneous_{name}" for name in chains | registered_stages().keys()}
    for dag_id, (schedule, words, active, file) in found.items():
        name = dag_id.removeprefix("igneous_")
        assert file == (name if name in chains else "stages")
        assert schedule is None
        assert words
        assert active >= 2


def test_a_dag_for_every_stage_needs_no_list() -> None:
    text = (ROOT / "dags" / "stages.py").read_text()
    assert [name for name in registered_stages() if name in text] == []
