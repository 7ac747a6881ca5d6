"""A stack of sections: a file for each, in the natural order of their names."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import PurePosixPath

from igneous_airflow.errors import IgneousError, SourceChanged, UnreadableSource
from igneous_airflow.sources.order import numbering
from igneous_airflow.sources.pictures import (
    Picture,
    PictureKind,
    is_whole_picture,
    open_whole_picture,
)
from igneous_airflow.sources.protocol import ArrayFacts, Findings, named
from igneous_airflow.sources.stack import PictureStack
from igneous_airflow.sources.tiff import MAGIC, open_page
from igneous_airflow.storage.files import FileEntry, Folder
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts
from igneous_airflow.wording import counted

_HEADERS_KEPT = 256
_HEADERS_AT_ONCE = 16  # also on disks, which may be in a network


def open_picture(file: FileInParts, memory: int) -> Picture:
    """Read the header of a picture of any format.

    Raises UnreadableSource, also when it cannot be decoded with so many bytes of memory.
    """
    head = bytes(file.head(8))
    if head.startswith(MAGIC):
        return open_page(file, memory)
    if is_whole_picture(head):
        return open_whole_picture(file, memory)
    why = "is neither TIFF nor PNG nor JPEG" if head else "is empty, or a link to nothing"
    raise UnreadableSource(f"{file.url} {why}")


@dataclass(frozen=True)
class Sections(Sequence[Picture | None]):
    """The sections of a stack in natural order; None where one is missing and its place is kept."""

    folder: Folder
    files: tuple[FileEntry, ...]
    places: tuple[int, ...]
    kind: PictureKind
    memory: int

    def __len__(self) -> int:
        return self.places[-1] + 1

    def __getitem__(self, index: int) -> Picture | None:  # type: ignore[override] # no slices
        entry = self._at.get(index)
        return None if entry is None else self._opened(entry)

    @cached_property
    def _at(self) -> dict[int, FileEntry]:
        return dict(zip(self.places, self.files, strict=True))

    @cached_property
    def _opened(self) -> Callable[[FileEntry], Picture]:
        """Opens a section; a task reads the same ones again and again."""
        return lru_cache(_HEADERS_KEPT)(self._open)

    def _open(self, entry: FileEntry) -> Picture:
        picture = open_picture(FileInParts(self.folder, entry), self.memory)
        if picture.kind != self.kind:
            raise SourceChanged(
                f"{self.folder.url}/{entry.name} is {picture.kind}, but {self.files[0].name} is "
                f"{self.kind}: plan again, and the plan names every section that differs"
            )
        return picture


def look_at_sections(folder: Folder, files: Sequence[FileEntry], memory: int) -> Findings:
    """Open every section, and name those that are unlike most, or cannot be read.

    A task may use `memory` bytes.
    """
    broken: list[str] = []
    kinds: dict[str, PictureKind] = {}
    with Overlap(_HEADERS_AT_ONCE) as overlap:
        for entry, found in overlap.map(partial(_kind_or_problem, folder, memory), files):
            if isinstance(found, PictureKind):
                kinds[entry.name] = found
            else:
                broken.append(found)
    return Findings((*_broken(broken), *_odd(kinds), *_doubled(files)))


def _kind_or_problem(folder: Folder, memory: int, entry: FileEntry) -> PictureKind | str:
    try:
        picture = open_picture(FileInParts(folder, entry), memory)
        problem = picture.problem()
    except IgneousError as error:
        return str(error).replace(f"{folder.url}/", "")
    return picture.kind if problem is None else f"{entry.name} {problem}"


def _broken(problems: Sequence[str]) -> Iterator[str]:
    if problems:
        count = counted(len(problems), "section")
        yield f"{count} cannot be read: {named(problems, '; ')}"


def _odd(kinds: Mapping[str, PictureKind]) -> Iterator[str]:
    """Name the sections of another size or type than most."""
    if len(set(kinds.values())) > 1:
        ((usual, _),) = Counter(kinds.values()).most_common(1)
        odd = [f"{name} is {kind}" for name, kind in kinds.items() if kind != usual]
        yield (
            f"{len(odd):,} of {len(kinds):,} sections are not {usual}, as the others are: "
            f"{named(odd)}. Leave them out, or make them alike"
        )


def _doubled(files: Sequence[FileEntry]) -> Iterator[str]:
    """Name pairs of sections with the same number."""
    names = [entry.name for entry in files]
    order = numbering(names)
    pairs = [f"{names[i - 1]} and {names[i]}" for i in (order.doubled if order else ())]
    if pairs:
        yield (
            f"sections have the same number: {named(pairs)}. Choose some by a pattern, such as "
            f"*{PurePosixPath(names[0]).suffix}"
        )


def open_sections(
    folder: Folder, files: tuple[FileEntry, ...], missing: float | None, memory: int
) -> PictureStack:
    """Open a stack of sections that are in natural order, reading the header of the first.

    Sections that are missing in the numbering are `missing`; with None, the others close up. A task
    may use `memory` bytes. Raises UnreadableSource.
    """
    keep_places = missing is not None
    order = numbering([entry.name for entry in files])
    gaps = order is not None and not order.doubled and order.missing > 0
    places = order.places if order and gaps and keep_places else tuple(range(len(files)))
    first = open_picture(FileInParts(folder, files[0]), memory)
    sections = Sections(folder, files, places, first.kind, memory)
    count = counted(len(files), "section")
    notes = [f"{count} in this order: {files[0].name} to {files[-1].name}", *first.notes]
    if order and gaps:
        fate = (
            "they become background"
            if keep_places
            else "those after them close up; set fill_missing to keep their places as background"
        )
        count = counted(order.missing, "section")
        notes.append(f"missing are {count}, {order.missing_text()}; {fate}")
    facts = ArrayFacts(
        (len(sections), *first.kind.shape),
        first.kind.dtype,
        (1, *first.block, *first.kind.shape[2:]),
        "zyxc"[: 1 + len(first.kind.shape)],
        is_encoded=first.is_encoded,
        overlap_width=FileInParts(folder, files[0]).overlap_width,
        whole_bytes=first.whole_bytes,
        notes=tuple(notes),
    )
    look = partial(look_at_sections, folder, files, memory)
    return PictureStack(facts, sections, first.kind, look, missing or 0)
