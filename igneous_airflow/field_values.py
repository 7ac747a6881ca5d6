"""What no parameter may hold, whatever it means: looked at before each field's own checks.

Values come from forms, REST, command lines, files and notebooks. One that would be an error only
later, in a path, in JSON or in an array, is refused here, with words that are short whatever it is.
"""

import re
from collections.abc import Iterable, Mapping
from reprlib import Repr
from types import NoneType
from typing import Any, get_args

#: Control characters, ends of lines, and halves of characters that no encoding holds.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_LARGEST = 2**53  # of whole numbers that JSON and floating point hold
_LARGEST_LABEL = 2**64 - 1
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?")
_LONGEST_TEXT = 4_000  # characters of a text, such as an address
_LONGEST_LIST = 500_000  # of labels or pairs written as text
_DEEPEST = 3  # lists in lists

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120


def shown(value: object) -> str:
    """A value as an error shows it: as in Python, and short."""
    return _short.repr(value)


def checked_value(value: Any, annotation: Any) -> Any:
    """The value of a field of this annotation, without spaces around text; raises ValueError."""
    kinds = set(get_args(annotation) or (annotation,)) - {NoneType}
    _check(value, _DEEPEST)
    if kinds <= {int, float} and isinstance(value, bool | int | str):
        _check_number(value, whole=float not in kinds)
    if kinds == {str} and isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError(f"{len(value):,} characters are too many: at most {_LONGEST_TEXT:,}")
    return value.strip() if isinstance(value, str) else value


def _check(value: Any, depth: int) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):
        if abs(value) > _LARGEST_LABEL:
            raise ValueError(f"{shown(value)} is larger than any number here may be")
    elif isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{shown(value)} is bytes: write text, a number or a list")
    elif isinstance(value, Mapping):
        _check_parts([*value.keys(), *value.values()], value, depth)
    elif isinstance(value, list | tuple | set | frozenset):
        _check_parts(value, value, depth)


def _check_parts(parts: Iterable[Any], whole: object, depth: int) -> None:
    if not depth:
        raise ValueError(f"{shown(whole)} is a list in lists of lists")
    for part in parts:
        _check(part, depth - 1)


def _check_text(text: str) -> None:
    if len(text) > _LONGEST_LIST:
        raise ValueError(f"{len(text):,} characters are too many: at most {_LONGEST_LIST:,}")
    # the rest of the text is not shown: it may be an address with a secret in it
    if found := CONTROL.search(text.strip()):
        raise ValueError(f"it contains control characters, as {found[0]!r}: remove them")


def _check_number(value: bool | int | str, *, whole: bool) -> None:
    """Check what a field takes for one number."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ValueError(f"{shown(value)} is not a number: write digits, as 64")
    if whole and abs(float(value)) > _LARGEST:
        raise ValueError(f"{shown(value)} is out of range: at most {_LARGEST:,}")
