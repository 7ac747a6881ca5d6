"""What a worker process does with its memory."""

import subprocess
import sys

_SCRIPT = """
import resource
from igneous_airflow.worker.memory import keep_freed_memory
{call}
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        blocks = [b"x" * 262_144 for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults(50))
"""


def printed(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def page_faults(call: str) -> int:
    return int(printed(_SCRIPT.format(call=call)))


def test_freed_chunks_are_not_fetched_from_the_system_again() -> None:
    by_default = page_faults("")
    assert by_default > 5_000
    assert page_faults("keep_freed_memory()") < by_default / 10


def test_garbage_collection_skips_what_was_imported() -> None:
    script = """
import gc
import numpy
from igneous_airflow.worker.memory import spare_what_lasts
spare_what_lasts()
print(gc.get_freeze_count() > 10_000 and len(gc.get_objects()) < 1_000)
"""
    assert printed(script) == "True\n"
