"""How well and how hard encodings work: the keys of `info` that say so, and what they mean.

jpeg_quality, jxl_quality   1 to 100; jxl loses nothing at 100
png_level                   effort, 0 to 9; nothing is lost at any
fpzip_precision             bits that are kept; 0 keeps all of them
The keys are those of cloud-volume, which hands them to its encoders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Keys of an info's scale with their values, those of its encoding only.
Tuning = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Level:
    """The number that matters most for an encoding, and what it is where the info does not say."""

    key: str
    noun: str
    low: int
    high: int
    default: int


_LEVELS = {
    "jpeg": _Level("jpeg_quality", "quality", 1, 100, 85),
    "jxl": _Level("jxl_quality", "quality", 1, 100, 85),
    "png": _Level("png_level", "level", 0, 9, 9),
    "fpzip": _Level("fpzip_precision", "precision", 0, 64, 0),
}
_ZFPC = ("zfpc_rate", "zfpc_precision", "zfpc_tolerance")  # one of them makes it lossy
_ZFPC_DIMENSIONS = "zfpc_correlated_dims"
_OTHERS = {"jxl": ("jxl_effort", "jxl_decodingspeed"), "zfpc": (*_ZFPC, _ZFPC_DIMENSIONS)}
#: Every key of an info's scale that belongs to some encoding.
TUNING_KEYS = frozenset(
    [level.key for level in _LEVELS.values()] + [key for keys in _OTHERS.values() for key in keys]
)


def read_tuning(encoding: str, entry: Mapping[str, Any]) -> Tuning:
    """What a scale's entry in the info says of its encoding.

    Raises ValueError for a value that no encoder takes.
    """
    level = _LEVELS.get(encoding)
    keys = ([level.key] if level else []) + list(_OTHERS.get(encoding, ()))
    given = {key: entry[key] for key in keys if entry.get(key) is not None}
    return tuple((key, _checked(key, value, level)) for key, value in given.items())


def _checked(key: str, value: Any, level: _Level | None) -> Any:
    if key == _ZFPC_DIMENSIONS:
        if not isinstance(value, list) or [*map(type, value)] != [bool] * 4:
            raise ValueError(f"{key} is {value!r}, not four of true and false")
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r}, not a number")
    if key in _ZFPC:
        return value
    if level is not None and key == level.key and not 0 <= value <= level.high:
        raise ValueError(f"{key} is {value!r}, not between {level.low} and {level.high}")
    if value != int(value):
        raise ValueError(f"{key} is {value!r}, not a whole number")
    return int(value)


def tuning_entry(tuning: Tuning) -> dict[str, Any]:
    """The keys of an info's scale that say so."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in tuning}


def with_level(encoding: str, tuning: Tuning, value: int) -> Tuning:
    """The tuning with another level."""
    level = _LEVELS[encoding]
    return ((level.key, value), *(pair for pair in tuning if pair[0] != level.key))


def level_of(encoding: str, tuning: Tuning) -> int | None:
    """The level that encoders work at; None for an encoding that has none."""
    level = _LEVELS.get(encoding)
    return None if level is None else int(dict(tuning).get(level.key, level.default))


def level_problem(encoding: str, value: int) -> str | None:
    """Say why a level cannot be an encoding's, or None when it can."""
    level = _LEVELS.get(encoding)
    if level is None:
        return (
            f"encoding_level: {value}, but {encoding} has no level: leave encoding_level empty, or "
            "choose the encoding jpeg, jxl or png"
        )
    if level.low <= value <= level.high:
        return None
    return (
        f"encoding_level: {value}, but the {level.noun} of {encoding} is between {level.low} and "
        f"{level.high}"
    )


def is_lossy(encoding: str, tuning: Tuning) -> bool:
    """Whether voxels may be others once they are encoded and decoded."""
    if encoding == "jxl":
        return level_of(encoding, tuning) != 100
    if encoding == "fpzip":
        return level_of(encoding, tuning) != 0
    if encoding == "zfpc":
        return any(value >= 0 for key, value in tuning if key in _ZFPC)
    return encoding in ("jpeg", "kempressed")  # kempressed adds 2 to floats, which rounds them


def described(encoding: str, tuning: Tuning) -> str:
    """The encoding in words, as `jpeg (quality 85)` or `lossless jxl`."""
    level = _LEVELS.get(encoding)
    if level is None or encoding == "fpzip":
        return encoding
    if encoding == "jxl" and not is_lossy(encoding, tuning):
        return "lossless jxl"
    return f"{encoding} ({level.noun} {level_of(encoding, tuning)})"


def encoder_options(encoding: str, tuning: Tuning) -> dict[str, Any]:
    """The tuning as cloud-volume's encoders take it; its own defaults where nothing is said."""
    level = _LEVELS.get(encoding)
    return {"level" if level and key == level.key else key: value for key, value in tuning}
