"""The beginnings of whole numbers in decimal digits, shared out among tasks; used by stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """The beginnings of names that one task works on; no name begins in two of these ways."""

    number: int
    starts: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.starts) - 3
        return ",".join(self.starts[:3]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Prefixes(Sequence[PrefixGroup]):
    """The beginnings of all names `NUMBER:...`, so that each name of a number above 0 has one.

    A number of `digits` digits or more is caught by its first ones, a smaller one as a whole with
    its colon: 1: to 9: and 10 to 99 for two digits, 10**digits - 1 in all. They are dealt out to
    `groups` groups like cards, so that numbers of similar beginnings are shared.
    """

    digits: int
    groups: int

    def __len__(self) -> int:
        return min(self.groups, int(10**self.digits) - 1)

    @overload
    def __getitem__(self, index: int) -> PrefixGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PrefixGroup]: ...
    def __getitem__(self, index: int | slice) -> PrefixGroup | Sequence[PrefixGroup]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        group = range(len(self))[index]
        whole = int(10 ** (self.digits - 1))  # numbers below have fewer digits
        numbers = range(group + 1, 10**self.digits, len(self))
        return PrefixGroup(group, tuple(f"{n}:" if n < whole else f"{n}" for n in numbers))
