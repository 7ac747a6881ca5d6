"""Receipts: files of a run's folder that say which tasks are done, and what each of them wrote.

The *name* of a receipt file tells its tasks, so that one listing is the whole evidence; its content
says what they did. Format 2 holds the receipts of one or several tasks; format 1 held a single one,
without the sizes of what was written.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.stage import Work
from igneous_airflow.storage.codecs import compress_bytes, decompress_bytes
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.storage.json_files import RECORD_BYTES

_VERSION = 2
_MOST_GAPS = 150  # characters of a name, which file systems limit to 255 bytes
_LARGE = 1_000  # bytes that are worth compressing


class Receipt(BaseModel):
    """What one task did."""

    model_config = ConfigDict(frozen=True)

    task: int = Field(ge=0)
    attempt: int
    seconds: float
    worker: str = Field(description="host and process that did it")
    work: Work = Work()
    names_files: bool = Field(
        default=True, exclude=True, description="whether it tells of files: format 1 did not"
    )


def receipts_name(tasks: Sequence[int], launch: str) -> str:
    """The name of the file with the receipts of some tasks, in ascending order.

    It is `FIRST-LAUNCH`, and for several tasks `FIRST-LAUNCH-GAP.GAP...`, where a gap is the
    difference to the task before. Raises ValueError where such a name would be too long.
    """
    name = f"{tasks[0]:010d}-{launch}"
    gaps = ".".join(str(later - earlier) for earlier, later in pairwise(tasks))
    if len(gaps) > _MOST_GAPS:
        raise ValueError(f"{len(tasks)} receipts do not go into one file")
    return f"{name}-{gaps}" if gaps else name


def tasks_of(name: str, launch: str) -> list[int]:
    """The tasks of a file of receipts; none for a file of another launch, or another kind."""
    first, _, rest = name.partition("-")
    of_launch, _, gaps = rest.partition("-")
    numbers = [first, *(gaps.split(".") if gaps else [])]
    if of_launch != launch or not all(n.isascii() and n.isdecimal() for n in numbers):
        return []
    tasks = [int(first)]
    for gap in numbers[1:]:
        tasks.append(tasks[-1] + int(gap))
    return tasks


def encode_receipts(receipts: Sequence[Receipt]) -> StoredFile:
    """The content of the file of some receipts."""
    data = {
        "version": _VERSION,
        "receipts": [r.model_dump(mode="json", exclude_defaults=True) for r in receipts],
    }
    content = json.dumps(data, separators=(",", ":")).encode()
    compression = "gzip" if len(content) > _LARGE else ""
    return compress_bytes(content, compression, grey=False)


def decode_receipts(stored: StoredFile) -> Iterator[Receipt]:
    """Read such a file, of either format; raises ValueError when it is damaged.

    Raises InvalidParameter for one that a newer version wrote.
    """
    data: Any = json.loads(bytes(decompress_bytes(stored, RECORD_BYTES)))
    if not isinstance(data, dict):
        raise ValueError("it is not a receipt")
    version = data.get("version", 1)
    if isinstance(version, int) and version > _VERSION:
        raise InvalidParameter(
            f"receipts of version {version} need a newer igneous-airflow: update this one"
        )
    for receipt in [data] if version == 1 else data["receipts"]:
        yield Receipt.model_validate({**receipt, "names_files": version != 1})
