import subprocess
import sys

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.protocol import Counts, open_queue


@pytest.mark.parametrize("url", ["", "redis://host/0", "/data/queue.db", "SQLITE:///a.db", "://"])
def test_an_address_of_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(InvalidParameter, match="sqlite://") as caught:
        open_queue(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "drained"),
    [
        (Counts(0, 0, 0), True),
        (Counts(0, 0, 5), True),
        (Counts(1, 0, 0), False),
        (Counts(0, 1, 0), False),
    ],
)
def test_a_queue_is_drained_when_nothing_waits_and_nothing_is_leased(
    counts: Counts, drained: bool
) -> None:
    assert counts.drained is drained


def test_backends_are_imported_when_they_are_used() -> None:
    program = (
        "import sys; from igneous_airflow.queue.protocol import open_queue; "
        "assert 'sqlite3' not in sys.modules; open_queue('sqlite:///tmp/never-made.db'); "
        "assert 'sqlite3' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
