"""Methods: the stage and parameters that a provenance entry names, and when two are the same."""

import json
from collections.abc import Mapping
from hashlib import sha256
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


def method_digest(method: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that are equal for equal methods."""
    return sha256(json.dumps(without_permissions(method), sort_keys=True).encode()).hexdigest()[:16]
