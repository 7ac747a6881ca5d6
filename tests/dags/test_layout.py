"""The package as it is installed: real files under one name."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built without fetching anything."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("floor", ["operators", "dags"])
def test_a_wheel_holds_the_real_files_of_a_linked_floor(wheel: zipfile.ZipFile, floor: str) -> None:
    files = list((ROOT / floor).glob("*.py"))
    assert files
    for file in files:
        assert wheel.read(f"igneous_airflow/{floor}/{file.name}") == file.read_bytes()


def test_a_wheel_holds_what_the_worker_image_and_its_pods_are_made_of(
    wheel: zipfile.ZipFile,
) -> None:
    files = [path for path in (ROOT / "worker_image").rglob("*") if path.is_file()]
    assert files
    for file in files:
        name = file.relative_to(ROOT)
        assert wheel.read(f"igneous_airflow/{name}") == file.read_bytes()


def test_a_wheel_has_no_top_level_operators_or_dags(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {
        "igneous_airflow"
    }


def test_the_plain_name_operators_is_refused() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "import operators"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode != 0
    assert "import igneous_airflow.operators: the plain name" in answer.stderr
