"""The proof that a stage's output is whole: what tasks say they wrote, against what is there.

Used by the `finish` of stages; the account of a run is its ledger's (`ledger.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from igneous_airflow.errors import AuditFailed
from igneous_airflow.wording import counted, size_range

_NAMED_AT_MOST = 10


@dataclass(frozen=True, slots=True)
class Written:
    """What the receipt of one task says of the files of its blocks."""

    blocks: range
    files: Mapping[str, int] | None  # stored bytes by name; None where the receipt does not tell
    left_out: frozenset[str]

    def problem_with(self, file: "FoundFile") -> str:
        """What is wrong with a file that one of the blocks should have; empty when nothing is."""
        if file.name in self.left_out:
            # what a task deletes is gone, so that it is the old one that `skip` left
            stays = "there, although the new voxels are background: set skip_empty to delete"
            return "" if file.size is None else f"{file.name} ({stays})"
        if file.size is None:
            return file.name
        if file.is_twice:
            return f"{file.name} (there in two compressions, and readers differ in which they take)"
        expected = "" if file.is_possible else size_range(file.least, file.most)
        if self.files is not None:
            recorded = self.files.get(file.name)
            if recorded is None:
                return f"{file.name} (there, but its task did not write it)"
            if recorded != file.size:
                expected = f"{recorded:,}"
        return f"{file.name} ({file.size:,} bytes, not {expected})" if expected else ""


class Account(Protocol):
    """What the tasks of a run have said of the files of their blocks."""

    def tasks(self) -> Iterator[Written]:
        """Give every task once, in order, from its receipt.

        Raises AuditFailed, after the last one, when receipts are damaged.
        """


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that a block should have, as the storage has it.

    `size` is in stored bytes, None when it is missing; `least` and `most` are the sizes that it can
    have at all. With `is_twice` the storage has it in several compressions.
    """

    name: str
    size: int | None
    least: int = 1
    most: int | None = None
    is_twice: bool = False

    @property
    def is_possible(self) -> bool:
        """Whether its size is one that it can have."""
        return self.size is not None and self.least <= self.size <= (self.most or self.size)


def require_files(
    files_of: Callable[[int], Iterable[FoundFile]],
    blocks: int,
    place: str,
    account: Account | None,
    *,
    may_be_absent: bool = False,
) -> int:
    """Check every file of every block; return how many were left out.

    A file must be there with the bytes that its task recorded, which must be possible ones, or be
    absent where the task left it out.
    Without an account, as in a notebook, whatever is absent was left out if it `may_be_absent`.
    `place` is what the files should be in. Raises AuditFailed naming those that are missing, empty
    or cut, with their blocks.
    """
    tasks = account.tasks() if account else _unrecorded(blocks)
    absent = wrong = 0
    named: list[str] = []
    lacking: list[int] = []
    for task in tasks:
        for block in task.blocks:
            wrong_before = wrong
            for file in files_of(block):
                may_lack = file.name in task.left_out or (account is None and may_be_absent)
                if file.size is None and may_lack:
                    absent += 1
                elif problem := task.problem_with(file):
                    wrong += 1
                    if len(named) < _NAMED_AT_MOST:
                        named.append(problem)
            if wrong > wrong_before:
                lacking.append(block)
    if wrong:
        others = ", ..." if wrong > len(named) else "."
        raise AuditFailed(
            f"{counted(wrong, 'file')} missing, empty or cut in {place} although every task "
            f"reported success: {', '.join(named)}{others}",
            lacking,
        )
    return absent


def _unrecorded(blocks: int) -> Iterator[Written]:
    return (Written(range(block, block + 1), None, frozenset()) for block in range(blocks))
