"""What is there already of files that a run would write, counted without listing for ever."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.storage.files import Folder
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.overlap import Overlap, overlap_width

#: Names of one folder that a plan looks at: a hundred requests in a bucket.
LOOKED_AT = 100_000
_PROBES = 1_000


@dataclass(frozen=True, slots=True)
class Existing:
    """How many files there are, and their stored bytes; `more` when there may be more of them.

    It is true unless it is known that there are none.
    """

    files: int = 0
    bytes: int = 0
    more: bool = False

    def __add__(self, other: "Existing") -> "Existing":
        return Existing(self.files + other.files, self.bytes + other.bytes, self.more or other.more)

    def __bool__(self) -> bool:
        return self.files > 0 or self.more

    @classmethod
    def among(
        cls, listed: Iterable[tuple[str, int]], is_wanted: Callable[[str], bool]
    ) -> "Existing":
        """Count the wanted ones of a listing of names and sizes, of which the first are looked at.

        Where the listing goes on after those, there may be more.
        """
        seen = files = size_of_all = 0
        for name, size in islice(listed, LOOKED_AT + 1):
            seen += 1
            if is_wanted(name):
                files, size_of_all = files + 1, size_of_all + size
        return cls(files, size_of_all, more=seen > LOOKED_AT)


def chunks_in(folder: Folder, scale: Scale, box: BoundingBox) -> Existing:
    """The chunk files of a scale that hold voxels of a box, on its grid or not.

    Of a scale with very many files only the first are looked at, and some chunks of the box, all
    where it has few.
    """

    def is_inside(name: str) -> bool:
        try:
            return bool(BoundingBox.parse(name).intersection(box))
        except InvalidParameter:  # a file of others
            return False

    found = Existing.among(folder.sizes(scale.key), is_inside)
    if found.files or not found.more:
        return found
    return _probed(folder, scale, box)


def _probed(folder: Folder, scale: Scale, box: BoundingBox) -> Existing:
    """Which of a box's chunks are there, or of some that are spread over it."""
    whole = box.expanded_to_grid(scale.chunk_size, scale.voxel_offset).intersection(scale.bounds)
    chunks = Grid(whole, scale.chunk_size)
    places = range(0, len(chunks), -(-len(chunks) // _PROBES) or 1)
    names = (f"{scale.key}/{chunks[place]}" for place in places)
    with Overlap(overlap_width(folder.url)) as overlap:
        files = sum(is_there for _, is_there in overlap.map(folder.exists, names))
    return Existing(files, more=files > 0 or len(places) < len(chunks))
