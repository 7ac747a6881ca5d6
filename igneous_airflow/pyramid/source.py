"""Where the voxels of a layer that is written come from; used by routes.

A stage that fills a layer brings a source of its own kind: another layer, a stack of sections, a
file. Whoever reads from it need not know which.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.encodings import writing_problem
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.overlap import Overlap

Array = NDArray[Any]
#: Makes other voxels of those of a box, which is given in voxels of the source; of equal x, y, z.
Change = Callable[[BoundingBox, Array], Array]


class VoxelSource(Protocol):
    """Voxels on their way into a layer; all boxes are in voxels of the scale that is written."""

    @property
    def chunk_size(self) -> Vec3:
        """Voxels of the blocks that are best read as a whole."""

    @property
    def decodes_chunks(self) -> bool:
        """Whether a block must be decoded as a whole, even for a part of it."""

    @property
    def whole_bytes(self) -> int:
        """Bytes of a block as it is decoded, where it goes on beyond the voxels; else 0."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel as decoded, with all channels."""

    @property
    def changes_voxels(self) -> bool:
        """Whether decoded voxels are made into others, so that memory holds both for a while."""

    @property
    def overlap_width(self) -> int:
        """How many reads to keep under way."""

    def phase(self, region: BoundingBox) -> Vec3:
        """How many voxels before a region the block begins that the region starts in."""

    def parts(self, box: BoundingBox, overlap: Overlap) -> Iterator[tuple[BoundingBox, Array]]:
        """Read a box part by part, each voxel in one of them.

        Voxels are (x, y, z, channel) of the dtype that is written, and may be read-only.
        """


@dataclass(frozen=True)
class LayerSource:
    """A scale of another layer, whose voxels move by `shift`.

    `missing` fills missing chunks; with None, one of them raises MissingChunk. `channel`, where
    given, is the only one that is read. `change` makes the voxels that are written of those that
    are read.
    """

    layer: Layer
    scale: Scale
    shift: Vec3
    missing: float | None = None
    change: Change | None = None
    channel: int | None = None

    @property
    def chunk_size(self) -> Vec3:
        """Voxels of a chunk."""
        return self.scale.chunk_size

    @property
    def decodes_chunks(self) -> bool:
        """Whether a chunk must be decoded as a whole: always."""
        return True

    @property
    def whole_bytes(self) -> int:
        """Bytes of a chunk as it is decoded, where it goes on beyond the voxels: it never does."""
        return 0

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel with all channels that are decoded."""
        channels = self.layer.info.channels
        if self.channel is not None and self.scale.encoding == "raw":  # those after it are skipped
            channels = self.channel + 1
        return self.layer.dtype.itemsize * channels

    @property
    def changes_voxels(self) -> bool:
        """Whether voxels are made into others."""
        return self.change is not None

    @property
    def overlap_width(self) -> int:
        """How many reads to keep under way."""
        return self.layer.overlap_width

    def at_source(self, box: BoundingBox) -> BoundingBox:
        """Where in the source the voxels of a box come from."""
        return box.translated(self.shift * -1)

    def phase(self, region: BoundingBox) -> Vec3:
        """How many voxels before the region the chunk begins that it starts in."""
        return (self.at_source(region).min - self.scale.voxel_offset) % self.chunk_size

    def parts(self, box: BoundingBox, overlap: Overlap) -> Iterator[tuple[BoundingBox, Array]]:
        """Read the chunks that a box reaches into, and change what it has of them."""
        found = self.layer.parts(
            self.scale,
            self.at_source(box),
            missing=self.missing,
            overlap=overlap,
            channel=self.channel,
        )
        for origin, voxels in found:
            changed = voxels if self.change is None else self.change(origin, voxels)
            yield origin.translated(self.shift), changed

    def has_the_files_of(self, scale: Scale, region: BoundingBox) -> bool:
        """Whether the chunk files of a region would be right in another scale as they are."""
        here = self.scale
        return (
            self.change is None
            and self.channel is None
            and (here.chunk_size, here.encoding, here.block_size, here.tuning)
            == (scale.chunk_size, scale.encoding, scale.block_size, scale.tuning)
            and (self.missing is None or writing_problem(scale.encoding) is None)  # to fill holes
            and here.chunks.is_aligned(self.at_source(region))
            and scale.chunks.is_aligned(region)
        )
