"""HDF5 files opened with care: names are followed one by one, and no other file is touched.

HDF5 itself opens whatever file a link, a virtual dataset or external storage names, wherever it
lies. Used by label maps and by sources; h5py lets one thread into the library at a time.
"""

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py

_MOST_LINKS = 32  # that are followed on the way to one object
_MOST_OBJECTS = 100_000  # that are looked at when no dataset is named
_SLASHES = re.compile("/+")


@dataclass(frozen=True, slots=True)
class ExternalLink:
    """A link at `at` to the object `path` of another file, as the file names it."""

    at: str
    file: str
    path: str

    def __str__(self) -> str:
        return f"{self.at} is an external link to {self.path} in {self.file!r}"


@dataclass(slots=True)
class Contents:
    """What a file holds: datasets by their paths, and where its links lead, without following."""

    datasets: "dict[str, h5py.Dataset]" = field(default_factory=dict)
    links: dict[str, str | ExternalLink] = field(default_factory=dict)


@contextmanager
def opened(content: "str | IO[bytes]") -> "Iterator[h5py.File]":
    """Open a file by its path or as a stream, and close it and all that was opened in it.

    HDF5 closes at the end of the process what is still open then. A stream is gone by that time,
    and the process crashes. Raises OSError for what is not a readable HDF5 file.
    """
    import h5py

    with h5py.File(content, "r", locking=False) as file:
        yield file


def find(file: "h5py.File", path: str) -> "h5py.Dataset | ExternalLink | None":
    """Find a dataset, along soft links too; None where there is none.

    A link to another file is returned, not followed. Raises ValueError for links in a circle, and
    for links of a kind that only the program which wrote them can follow.
    """
    import h5py

    root = file["/"]
    node, at, left, followed = root, "", _steps(path), 0
    while left:
        name = left.popleft()
        target = _target(node, name) if isinstance(node, h5py.Group) else None
        if target is None:
            return None
        if isinstance(target, ExternalLink):
            rest = "/".join([target.path, *left])
            return ExternalLink(f"{at}/{name}", target.file, rest)
        if isinstance(target, str):
            followed += 1
            if followed > _MOST_LINKS:
                raise ValueError(f"{path} leads through more than {_MOST_LINKS} links")
            node, at = (root, "") if target.startswith("/") else (node, at)
            left.extendleft(reversed(_steps(target)))
            continue
        node, at = target, f"{at}/{name}"
    return node if isinstance(node, h5py.Dataset) else None


def contents(file: "h5py.File") -> Contents:
    """List the datasets and the links of a file; raises ValueError when there are too many.

    A dataset of several names is listed once.
    """
    import h5py

    found, seen = Contents(), set()
    waiting: deque[tuple[str, Any]] = deque([("", file["/"])])
    while waiting:
        prefix, group = waiting.popleft()
        for name in map(_text, group.id):
            path, target = f"{prefix}{name}", _target(group, name)
            if isinstance(target, ExternalLink):
                target = replace(target, at=path)
            if isinstance(target, str | ExternalLink):
                found.links[path] = target
                continue
            if target is None or (place := _place(target)) in seen:
                continue
            seen.add(place)
            if isinstance(target, h5py.Dataset):
                found.datasets[path] = target
            elif isinstance(target, h5py.Group):
                waiting.append((f"{path}/", target))
            if len(seen) > _MOST_OBJECTS:
                raise ValueError(f"it holds more than {_MOST_OBJECTS:,} objects")
    return found


def shape_of(dataset: "h5py.Dataset") -> tuple[int, ...]:
    """The shape of a dataset, () where it has none.

    Asked for the shape of a virtual dataset, HDF5 may open the files that this one is made of.
    """
    properties = dataset.id.get_create_plist()
    if is_virtual(dataset):
        shape = properties.get_virtual_vspace(0).get_simple_extent_dims()
    else:
        shape = dataset.shape
    return tuple(map(int, shape or ()))


def axis_letters(dataset: "h5py.Dataset") -> str | None:
    """The letters that name the axes, where each has another one."""
    labels = "".join(dimension.label for dimension in dataset.dims).lower()
    return labels if len(labels) == len(set(labels)) == len(shape_of(dataset)) else None


def is_virtual(dataset: "h5py.Dataset") -> bool:
    """Whether a dataset is made of parts of others."""
    import h5py

    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    return bool(layout == h5py.h5d.VIRTUAL and properties.get_virtual_count() > 0)


def external_files(dataset: "h5py.Dataset") -> list[tuple[str, int, int | None]]:
    """The other files that hold the values of a dataset: names, where they begin there, and bytes.

    The last one may hold all that is left, None.
    """
    import h5py

    properties = dataset.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS:
        return []
    files = [properties.get_external(i) for i in range(properties.get_external_count())]
    return [
        (_text(name), int(start), None if size == h5py.h5s.UNLIMITED else int(size))
        for name, start, size in files
    ]


def lies_elsewhere(dataset: "h5py.Dataset") -> str | None:
    """Say in which other files the values of a dataset lie; None when they are in its own."""
    if is_virtual(dataset):
        return "it is a virtual dataset, which is made of parts of others"
    if files := external_files(dataset):
        return f"its values lie in another file, {files[0][0]!r}"
    return None


def _steps(path: str) -> deque[str]:
    return deque(step for step in _SLASHES.split(path) if step not in ("", "."))


def _target(group: "h5py.Group", name: str) -> Any:
    """What a name in a group stands for: an object, the path of a soft link, an ExternalLink, None.

    Not by h5py's `get` and `in`, which follow links to find out.
    """
    import h5py

    stored = name.encode("utf-8", "surrogateescape")
    if not group.id.links.exists(stored):
        return None
    kind = group.id.links.get_info(stored).type
    if kind == h5py.h5l.TYPE_SOFT:
        return _text(group.id.links.get_val(stored))
    if kind == h5py.h5l.TYPE_EXTERNAL:
        file, path = group.id.links.get_val(stored)
        return ExternalLink(name, _text(file), _text(path))
    if kind != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{group.name}/{name} is a link of kind {kind}, which cannot be followed")
    found = h5py.h5o.open(group.id, stored)
    kinds = {h5py.h5g.GroupID: h5py.Group, h5py.h5d.DatasetID: h5py.Dataset}
    return kinds[type(found)](found) if type(found) in kinds else None


def _place(node: Any) -> tuple[int, int]:
    """What tells an object of a file from the others, by whatever name it was found."""
    import h5py

    info = h5py.h5o.get_info(node.id)
    return int(info.fileno), int(info.addr)


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
