"""The order of files by the numbers in their names, and what is missing in it; used by sections."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import PurePosixPath

_DIGITS = re.compile("([0-9]+)")
_NAMED_AT_MOST = 10


def natural_key(name: str) -> tuple[list[str | int], str]:
    """The key that sorts s2.tif before s10.tif."""
    parts = _DIGITS.split(name.rpartition(".")[0] or name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


@dataclass(frozen=True)
class Numbering:
    """The numbers of files that are in natural order, each `step` after the one before at least."""

    numbers: tuple[int, ...]

    @cached_property
    def step(self) -> int:
        """The largest step that reaches every number from the first one."""
        return math.gcd(*(later - earlier for earlier, later in pairwise(self.numbers))) or 1

    @property
    def places(self) -> tuple[int, ...]:
        """Where each file comes when the missing ones keep their places."""
        return tuple((number - self.numbers[0]) // self.step for number in self.numbers)

    @property
    def doubled(self) -> list[int]:
        """Positions of files that have the same number as the file before."""
        pairs = enumerate(pairwise(self.numbers), start=1)
        return [i for i, (earlier, later) in pairs if earlier == later]

    @property
    def missing(self) -> int:
        """How many numbers are missing between the first and the last."""
        return self.places[-1] + 1 - len(set(self.places))

    def missing_text(self) -> str:
        """Name the missing numbers: `3, 7-9`."""
        gaps = [
            (low + self.step, high - self.step)
            for low, high in pairwise(self.numbers)
            if high - low > self.step
        ]
        texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in gaps]
        more = len(texts) - _NAMED_AT_MOST
        return ", ".join(texts[:_NAMED_AT_MOST]) + (f" and {more:,} more gaps" if more > 0 else "")


def numbering(names: Sequence[str]) -> Numbering | None:
    """The numbers that tell files in natural order apart; None when it is not clear which do.

    Names that differ in more than numbers have none. Of several numbers that vary, the first one
    counts when it alone tells the files apart, as in s1_t0915.tif, s2_t0917.tif.
    """
    split = [_DIGITS.split(PurePosixPath(name).stem) for name in names]
    if len({tuple(parts[::2]) for parts in split}) != 1:
        return None
    columns = list(zip(*(map(int, parts[1::2]) for parts in split), strict=True))
    varying = [column for column in columns if len(set(column)) > 1] or columns[-1:]
    if not varying or (len(varying) > 1 and len(set(varying[0])) < len(names)):
        return None
    return Numbering(varying[0])
