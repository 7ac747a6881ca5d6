"""JSON of files that anyone may have written, read strictly: what other readers refuse is an error.

Python's reader takes NaN and Infinity, makes infinity of 1e400, and forgets the first of two equal
keys; JavaScript and other readers of the format do not, or keep another one.
"""

import json
from collections import Counter
from reprlib import Repr
from typing import Any, NoReturn

from igneous_airflow.storage.files import Buffer

_LONGEST_SHOWN = 80  # characters of a value in a message
_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST_SHOWN


def shown(value: object) -> str:
    """A value for a message, in a few words however large it is."""
    return _short.repr(value)


def parse_json(content: Buffer) -> Any:
    """Read JSON; raises ValueError saying what is wrong."""
    try:
        return json.loads(
            bytes(content),
            parse_constant=_refused_constant,
            parse_float=_finite,
            object_pairs_hook=_without_repeats,
        )
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply") from error


def _refused_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if abs(number) == float("inf"):
        raise ValueError(f"{text[:_LONGEST_SHOWN]} is too large a number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{shown(repeated)} comes twice")
    return found
