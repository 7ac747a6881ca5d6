"""What a mesh directory holds that a run would replace, counted for its plan."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.meshes.scope import Scope
from igneous_airflow.storage.existing import LOOKED_AT, Existing
from igneous_airflow.storage.meshes import read_name
from igneous_airflow.storage.provenance import made_by
from igneous_airflow.wording import counted

_LABELS_LISTED = 100  # one by one, which takes a request each in a bucket


@dataclass(frozen=True, slots=True)
class OldMeshes:
    """Fragments that a run would write over or remove, and the method of the latest run there.

    With another grid these are all that there are, and their manifests go as well.
    """

    found: Existing
    manifests: int
    method: dict[str, Any]

    @property
    def others(self) -> str:
        """What goes with the fragments, in words."""
        if not self.manifests:
            return ""
        return f" and {counted(self.manifests, 'manifest')}"


def find_old(place: MeshPlace, scope: Scope) -> OldMeshes | None:
    """Count what would be replaced, of the first files of the directory; None for nothing.

    Raises InvalidInfo for a provenance that cannot be read.
    """
    other_grid = place.has_other_grid
    is_inside = _in_region(place, scope)
    fragments = manifests = size_of_all = seen = 0
    for name, size in _listed(place, scope):
        seen += 1
        label, cell = read_name(name)
        if bool(label) if other_grid else is_inside(label, cell):
            fragments, manifests = fragments + bool(cell), manifests + (not cell)
            size_of_all += size
    found = Existing(fragments, size_of_all, more=seen > LOOKED_AT)
    if not found.files and not (found.more and _may_be_there(place)):
        return None
    directory = place.folder.directory
    box = None if other_grid else place.region
    return OldMeshes(found, manifests, made_by(place.layer.folder, {directory: box})[directory])


def _listed(place: MeshPlace, scope: Scope) -> Iterator[tuple[str, int]]:
    """The first files of the directory with their bytes, in a bucket those of a few labels."""
    folder, only = place.folder, scope.only
    few = only is not None and len(only) <= _LABELS_LISTED and not place.has_other_grid
    if few and only is not None and not place.layer.folder.renames:
        names = folder.names_starting([f"{label}:" for label in sorted(only)])
        return ((name, 0) for name in islice(names, LOOKED_AT + 1))
    return islice(folder.sizes(), LOOKED_AT + 1)


def _in_region(place: MeshPlace, scope: Scope) -> Callable[[int, str], bool]:
    """Whether a fragment of a label in a cell, as text, is of the run's labels and cells."""
    cells = place.cells

    @cache  # the same few cells come often
    def is_cell(text: str) -> bool:
        with suppress(ValueError):
            cells.index_of(BoundingBox.parse(text))
            return True
        return False

    return lambda label, cell: bool(cell) and label in scope and is_cell(cell)


def _may_be_there(place: MeshPlace) -> bool:
    """Whether cells have been meshed as far as is known, where too many files are there to tell."""
    present = place.present
    if present is None or present.has_others or not present.parts:
        return True
    return any(part.intersection(place.region) for part in present.parts)
