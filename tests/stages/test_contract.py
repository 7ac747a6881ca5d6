"""Every registered stage is tested by the contract."""

from pathlib import Path

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.stages import registered_stages, stage_class


@pytest.mark.parametrize("name", registered_stages())
def test_every_stage_has_a_test_of_the_contract(name):
    path = Path(__file__).with_name(f"test_{name}.py")
    assert path.exists(), f"write {path.name} with a subclass of StageTests"
    assert "(StageTests):" in path.read_text()


def test_stages_are_found_in_alphabetical_order():
    stages = registered_stages()
    assert "downsample" in stages
    assert list(stages) == sorted(stages)


@pytest.mark.parametrize("name", ["", "stage", "os.system", "Downsample", "../downsample"])
def test_an_unknown_stage_is_refused_with_those_there_are(name):
    with pytest.raises(InvalidParameter, match=r"choose one of .*downsample"):
        stage_class(name)
