"""Methods: the stage and parameters that a provenance entry names, and when two are the same."""

from collections.abc import Mapping
from typing import Any

#: Parameters that say what may go and what is kept of it, not what is made: two runs that differ in
#: nothing else have the same parameters.
PERMISSIONS = frozenset({"confirm", "keep_deleted", "trash_entry"})


def without_permissions(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decide what is made."""
    return {name: value for name, value in parameters.items() if name not in PERMISSIONS}


def same_method(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two methods are of the same task and parameters, whatever was confirmed for them."""
    return without_permissions(one) == without_permissions(other)
