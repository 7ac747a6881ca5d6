"""The `Range` header: which bytes of a file a request wants. RFC 9110, sections 14.1 and 14.2."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_DIGITS = 18  # of a number of bytes; whatever has more is beyond every file


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a file: from `first` to `last`, both included; the last `-first` without a last."""

    first: int
    last: int | None = None

    def within(self, size: int) -> tuple[int, int] | None:
        """The first byte and the end of what a file of a size has of it; None when nothing."""
        if self.first < 0:
            start, end = max(size + self.first, 0), size
        else:
            start, end = self.first, size if self.last is None else min(self.last + 1, size)
        return (start, end) if start < end else None


def wanted_range(header: str | None) -> ByteRange | None:
    """The range that a header asks for; None where the whole file is to be given.

    That is without a header, and with one to be ignored: of another unit, of several ranges, or
    malformed.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        return ByteRange(-_number(last)) if _number(last) else ByteRange(10**_DIGITS)
    if last and _number(last) < _number(first):
        return None
    return ByteRange(_number(first), _number(last) if last else None)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS else 10**_DIGITS
