"""What data type of a layer voxels of a file become; used by every source."""

from typing import Any

import numpy as np

from igneous_airflow.errors import InvalidParameter

_AS_THEY_ARE = frozenset(
    [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["float32", "float64"]
)
_CHANGED = {"bool": "uint8", "float16": "float32"}
_NOT_SHOWN = ("int64", "float64")


def data_type_for(dtype: "np.dtype[Any]") -> str:
    """The data type that holds such voxels, in little-endian order.

    True and False become 1 and 0, half precision becomes single. Raises InvalidParameter where the
    format has nothing for them.
    """
    if dtype.name in _AS_THEY_ARE:
        return dtype.name
    if dtype.name in _CHANGED:
        return _CHANGED[dtype.name]
    raise InvalidParameter(f"source: voxels of type {dtype} cannot be in a Precomputed layer")


def data_type_notes(dtype: "np.dtype[Any]", made: str) -> tuple[str, ...]:
    """What is worth knowing when voxels of a type become others."""
    changed = f"voxels of type {dtype.name} become {made}"
    hidden = f"Neuroglancer does not show {made}, which other readers know"
    return (
        *([changed] if dtype.name != made else []),
        *([hidden] if made in _NOT_SHOWN else []),
    )
