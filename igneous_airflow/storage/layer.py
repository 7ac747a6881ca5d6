"""A Neuroglancer Precomputed layer: its scales, and its voxels read and written by chunk."""

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import (
    AlignmentError,
    CorruptChunk,
    InvalidInfo,
    InvalidParameter,
    LayerNotFound,
    MissingChunk,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.codecs import (
    compress_bytes,
    compression_for,
    decode,
    decompress_bytes,
    decompress_first,
    encode,
)
from igneous_airflow.storage.encodings import most_bytes
from igneous_airflow.storage.files import Folder, StoredFile, open_folder
from igneous_airflow.storage.info import INFO_BYTES, Info, Scale, read_info, write_info
from igneous_airflow.storage.overlap import Overlap, overlap_width
from igneous_airflow.storage.possible import least_bytes, require_possible, stored_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


class Layer:
    """An existing layer. Arrays are (x, y, z, channel), Fortran order, in the layer's dtype."""

    def __init__(self, folder: Folder, info: Info) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, url: str, most: int = INFO_BYTES) -> "Layer":
        """Open a layer; raises LayerNotFound, InvalidInfo, AccessDenied, StorageUnavailable.

        An info of more than `most` bytes is invalid.
        """
        folder = open_folder(url)
        return cls(folder, read_info(folder, most))

    @classmethod
    def create(cls, url: str, info: Info) -> "Layer":
        """Make a new layer; one that is there with the same info is opened.

        Raises InvalidInfo when another layer is there: nothing is overwritten.
        """
        folder = open_folder(url)
        try:
            present = read_info(folder)
        except LayerNotFound:
            write_info(folder, info)
            return cls(folder, info)
        if present.data != info.data:
            raise InvalidInfo(f"{url} holds another layer already: choose another address")
        return cls(folder, present)

    @cached_property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of the voxels, little-endian as stored."""
        import numpy as np

        return np.dtype(self.info.data_type)

    @property
    def overlap_width(self) -> int:
        """How many storage operations to keep under way: one on disk, many in a bucket."""
        return overlap_width(self.folder.url)

    def scale(self, mip: int) -> Scale:
        """The scale of a mip, -1 being the coarsest there is; raises InvalidParameter."""
        scales, coarsest = self.info.scales, self.info.coarsest
        if coarsest is None:
            raise InvalidParameter(f"the layer {self.folder.url} has no scales")
        if not -1 <= mip < len(scales):
            raise InvalidParameter(
                f"mip {mip} does not exist: the layer has mips 0 to {len(scales) - 1}"
            )
        return coarsest if mip == -1 else scales[mip]

    def read_chunk(
        self, scale: Scale, box: BoundingBox, channel: int | None = None
    ) -> "NDArray[Any] | None":
        """Read one chunk file; None when it is missing. The array may be read-only.

        With `channel`, the array has that one alone. Raises CorruptChunk naming the file.
        """
        name = f"{scale.key}/{box}"
        stored = self.folder.read(name)
        if stored is None:
            return None
        try:
            return self._decoded(scale, box, stored, channel)
        except CorruptChunk as error:
            raise CorruptChunk(f"chunk {self.folder.url}/{name}: {error}") from error

    def _decoded(
        self, scale: Scale, box: BoundingBox, stored: StoredFile, channel: int | None
    ) -> "NDArray[Any]":
        channels = self.info.channels
        if channel is not None and channel + 1 < channels and scale.encoding == "raw":
            channels = channel + 1  # one follows the other, so that the later ones are not needed
            count = box.voxels * channels * self.dtype.itemsize
            content = decompress_first(stored, count)
        else:
            content = decompress_bytes(stored, self.most_bytes_of(scale, box))
        voxels = decode(
            content,
            scale.encoding,
            shape=(*box.size, channels),
            dtype=self.dtype,
            block_size=scale.block_size,
        )
        return voxels if channel is None else voxels[..., channel : channel + 1]

    def read(
        self,
        scale: Scale,
        box: BoundingBox,
        *,
        missing: float | None = None,
        overlap: Overlap | None = None,
        channel: int | None = None,
    ) -> "NDArray[Any]":
        """Read a box inside the scale's bounds, of any alignment; the array may be read-only.

        `missing` is the value of the voxels of missing chunks; with None, one of them raises
        MissingChunk with its name. `overlap` reads several chunks at once; `channel` one channel
        alone. Raises InvalidParameter for a box outside of the bounds.
        """
        import numpy as np

        if scale.chunks.is_cell(box):
            return self._chunk_or_fill(scale, box, missing, channel)
        channels = self.info.channels if channel is None else 1
        array = np.empty((*box.size, channels), dtype=self.dtype, order="F")
        parts = self.parts(
            scale, box, missing=missing, overlap=overlap or Overlap(1), channel=channel
        )
        for part, voxels in parts:
            array[part.slices_within(box)] = voxels
        return array

    def parts(
        self,
        scale: Scale,
        box: BoundingBox,
        *,
        missing: float | None,
        overlap: Overlap,
        channel: int | None,
    ) -> "Iterator[tuple[BoundingBox, NDArray[Any]]]":
        """Read a box as `read` does, but chunk by chunk: what it has of each, and the voxels."""
        if not scale.bounds.contains(box):
            raise InvalidParameter(f"{box} reaches out of scale {scale.key}, {scale.bounds}")
        read = partial(self._chunk_or_fill, scale, missing=missing, channel=channel)
        for chunk, voxels in overlap.map(read, scale.chunks.overlapping(box)):
            part = chunk.intersection(box)
            yield part, voxels[part.slices_within(chunk)]

    def _chunk_or_fill(
        self, scale: Scale, box: BoundingBox, missing: float | None, channel: int | None
    ) -> "NDArray[Any]":
        import numpy as np

        voxels = self.read_chunk(scale, box, channel)
        if voxels is not None:
            return voxels
        if missing is None:
            raise MissingChunk(
                f"chunk {box} of {self.folder.url}/{scale.key} is missing: restore it, or set "
                "fill_missing to read missing chunks as background"
            )
        channels = self.info.channels if channel is None else 1
        return np.full((*box.size, channels), missing, dtype=self.dtype, order="F")

    def write_chunk(
        self,
        scale: Scale,
        box: BoundingBox,
        voxels: "NDArray[Any]",
        *,
        compress: str = "auto",
        level: int | None = None,
    ) -> int:
        """Write one whole chunk file and return its stored bytes.

        Raises AlignmentError when the box is not one chunk of the scale, InvalidParameter when
        dtype or shape differ from the layer's.
        """
        if not scale.chunks.is_cell(box):
            raise AlignmentError(f"{box} is not one chunk of {self.folder.url}/{scale.key}")
        if voxels.dtype != self.dtype or voxels.shape != (*box.size, self.info.channels):
            raise InvalidParameter(
                f"chunk {box}: voxels are {voxels.dtype} {voxels.shape}, the layer holds "
                f"{self.dtype} {(*box.size, self.info.channels)}"
            )
        content = encode(voxels, scale.encoding, block_size=scale.block_size, tuning=scale.tuning)
        stored = compress_bytes(
            content,
            compression_for(compress, scale.encoding),
            grey=self._is_grey(scale),
            level=level,
        )
        return self._store(scale, box, stored)

    def _store(self, scale: Scale, box: BoundingBox, stored: StoredFile) -> int:
        self.folder.write(
            f"{scale.key}/{box}", stored, content_type=_CONTENT_TYPES.get(scale.encoding, "")
        )
        return len(stored.content)

    def copy_chunk(
        self,
        scale: Scale,
        box: BoundingBox,
        stored: StoredFile,
        *,
        compress: str,
        level: int | None,
    ) -> int:
        """Write one whole chunk file from the file of a scale that stores alike; never decode it.

        The compression is changed only when another one, or a level, is asked for. Returns the
        stored bytes. Raises CorruptChunk for a file that cannot be a chunk, as an empty one, and
        when a compression that must be undone is damaged.
        """
        require_possible(stored, scale.encoding, *self.range_of(scale, box.size))
        wanted = compression_for(compress, scale.encoding)
        if level is not None or (compress != "auto" and stored.compression != wanted):
            stored = compress_bytes(
                decompress_bytes(stored, self.most_bytes_of(scale, box)),
                wanted,
                grey=self._is_grey(scale),
                level=level,
            )
        return self._store(scale, box, stored)

    def most_bytes_of(self, scale: Scale, box: BoundingBox) -> int:
        """The most bytes that the file of a chunk has, before its compression."""
        return most_bytes(scale.encoding, box.size, self._voxel_bytes, scale.block_size)

    def range_of(self, scale: Scale, size: Vec3) -> tuple[int, int]:
        """The fewest and the most bytes of the file of a chunk, before its compression."""
        voxels = (scale.encoding, size, self._voxel_bytes, scale.block_size)
        return least_bytes(*voxels), most_bytes(*voxels)

    def stored_range_of(self, scale: Scale, size: Vec3, compression: str | None) -> tuple[int, int]:
        """The fewest and the most stored bytes of a chunk; the compression may not be known."""
        return stored_range(compression, *self.range_of(scale, size))

    @cached_property
    def _voxel_bytes(self) -> int:
        return self.dtype.itemsize * self.info.channels

    def _is_grey(self, scale: Scale) -> bool:
        return scale.encoding == "raw" and self.info.layer_type == "image"

    def write(self, scale: Scale, voxels: "NDArray[Any]") -> None:
        """Write all chunks of a scale from an array of its size."""
        for chunk in scale.chunks:
            block = voxels[chunk.slices_within(scale.bounds)]
            self.write_chunk(
                scale, chunk, block.reshape(*chunk.size, self.info.channels, order="A")
            )

    def delete_chunk(self, scale: Scale, box: BoundingBox) -> None:
        """Remove one chunk file; it may be absent."""
        self.folder.delete(f"{scale.key}/{box}")


_CONTENT_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "jxl": "image/jxl"}
