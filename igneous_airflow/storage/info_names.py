"""Names of folders that an `info` file gives: they must lie inside the layer."""

from collections.abc import Mapping
from posixpath import normpath
from typing import Any
from unicodedata import category
from urllib.parse import unquote

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.storage.strict_json import shown

_FOLDERS = ("mesh", "skeletons", "segment_properties")
_UNPRINTABLE = frozenset({"Cc", "Cs"})  # control characters, halves of surrogate pairs


def check_key(key: object) -> str:
    """The key of a scale; raises InvalidInfo for one that names no folder inside the layer."""
    if not isinstance(key, str) or normpath(key) == "." or _leads_away(key):
        raise InvalidInfo(
            f"the key {shown(key)} of a scale is not the name of a folder inside the layer: move "
            "the files of the scale there, and correct the key in the info file"
        )
    return key


def check_folders(data: Mapping[str, Any]) -> None:
    """Raise InvalidInfo where meshes, skeletons or properties are not inside the layer."""
    for kind in _FOLDERS:
        name = data.get(kind)
        if isinstance(name, str) and _leads_away(name):
            raise InvalidInfo(
                f"the folder {shown(name)} that is given for {kind} is not inside the layer: move "
                f"it there, or remove {kind!r} from the info file"
            )


def _leads_away(name: str) -> bool:
    """Whether a name leads out of its folder, also for a web server; or no storage can have it."""
    path = unquote(name).replace("\\", "/")
    has_odd_characters = any(category(character) in _UNPRINTABLE for character in path)
    return path.startswith("/") or ".." in path.split("/") or has_odd_characters
