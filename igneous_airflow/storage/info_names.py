"""Names of folders that an `info` file gives: each inside the layer, and none in another."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.storage.folder_names import folder_problem, shares_files
from igneous_airflow.storage.strict_json import shown

_FOLDERS = ("mesh", "skeletons", "segment_properties")


def check_key(key: object) -> str:
    """The key of a scale; raises InvalidInfo for one that names no folder inside the layer."""
    problem = folder_problem(key) if isinstance(key, str) else folder_problem("")
    if not isinstance(key, str) or problem:
        raise InvalidInfo(
            f"the key {shown(key)} of a scale {problem}: move the files of the scale to a folder "
            "of another name, and correct the key in the info file"
        )
    return key


def check_folders(data: Mapping[str, Any]) -> None:
    """Raise InvalidInfo where meshes, skeletons or properties are not inside the layer."""
    for kind, name in _given(data):
        if problem := folder_problem(name):
            raise InvalidInfo(
                f"the folder {shown(name)} that is given for {kind} {problem}: move it to another "
                f"name inside the layer and correct {kind!r} in the info file, or remove it there"
            )


def check_apart(data: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise InvalidInfo where scales share files with each other, or with meshes and the like."""
    scales: dict[str, str] = {}
    for key in keys:
        if normpath(key) in scales:
            raise InvalidInfo(_shared(f"scale {key}", f"scale {scales[normpath(key)]}"))
        scales[normpath(key)] = key
    for folder, key in scales.items():
        for above in map(str, PurePosixPath(folder).parents):
            if above in scales:
                raise InvalidInfo(_shared(f"scale {key}", f"scale {scales[above]}"))
        for kind, name in _given(data):
            if shares_files(folder, name):
                raise InvalidInfo(_shared(f"scale {key}", f"{kind}, {name}"))


def _given(data: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    given = ((kind, data.get(kind)) for kind in _FOLDERS)
    return ((kind, name) for kind, name in given if isinstance(name, str) and name)


def _shared(one: str, other: str) -> str:
    return (
        f"the folder of {one} is that of {other}, or one lies in the other: move the files of one "
        "of them to a folder of its own, and correct its name in the info file"
    )
