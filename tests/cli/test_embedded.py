"""An Airflow of one's own."""

from pathlib import Path

import pytest

from igneous_airflow.cli.embedded import EmbeddedAirflow
from igneous_airflow.errors import RunFailed


def test_a_second_one_on_the_same_folder_is_refused_with_the_address_of_the_first(
    tmp_path: Path,
) -> None:
    with EmbeddedAirflow(tmp_path, 8081).held():
        refused = pytest.raises(RunFailed, match=r"already, at http://127\.0\.0\.1:8081: use it")
        with refused, EmbeddedAirflow(tmp_path, 8082).held():
            pass
    with EmbeddedAirflow(tmp_path, 8083).held():
        assert (tmp_path / "address").read_text() == "http://127.0.0.1:8083"
