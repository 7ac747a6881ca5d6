"""Names of folders in a layer: one rule for those that are written and those that are read.

A name passes through storage libraries, web servers and disks, and each reads it in its own way: it
must lie inside the layer in all of them.
"""

import re
from pathlib import PurePosixPath
from posixpath import normpath
from unicodedata import category, normalize
from urllib.parse import unquote

from igneous_airflow.credentials import decoded_forms

TRASH = ".trash"  # the folder of a layer with what was deleted and can be restored
#: Characters that a server, a shell or a disk reads in its own way: no folder of ours gets them.
ODD_CHARACTERS = re.compile(r'[\\%?#:*"<>|]')
_FILES = ("info", "provenance")  # of every layer
_UNPRINTABLE = frozenset({"Cc", "Cs"})  # control characters, halves of surrogate pairs


def readings(name: str) -> list[list[str]]:
    """The segments of a name, in each way in which it may be read on its way to a file.

    Percent signs may be decoded again and again, a backslash may be taken for a slash, and `‥` for
    two dots. A name that is encoded more often than any ever is may lead anywhere.
    """
    forms = decoded_forms(name)
    if unquote(forms[-1]) != forms[-1]:
        forms.append("..")
    return [normalize("NFKC", form).replace("\\", "/").split("/") for form in forms]


def folder_problem(name: str) -> str:
    """Why a name cannot be that of a folder in a layer, to follow the name; empty if it can."""
    for parts in readings(name):
        plain = [part.strip() for part in parts if part.strip() not in ("", ".")]
        is_absolute = not parts[0] and len(parts) > 1
        if not plain or is_absolute or ".." in plain or any(map(_is_unprintable, parts)):
            return "is not the name of a folder inside the layer"
        if "" in parts[:-1]:
            return "has two slashes in a row, which not every storage takes for one"
        if plain[0].casefold() == TRASH:
            return "is the trash of the layer, or lies in it"
        if plain[0].casefold() in _FILES:
            return f"takes the place of the file {plain[0]!r} of the layer"
    return ""


def _is_unprintable(text: str) -> bool:
    return any(category(character) in _UNPRINTABLE for character in text)


def shares_files(one: str, other: str) -> bool:
    """Whether two folders of a layer are the same, or one lies in the other."""
    first, second = PurePosixPath(normpath(one)), PurePosixPath(normpath(other))
    return first.is_relative_to(second) or second.is_relative_to(first)
