"""A Neuroglancer Precomputed layer: its scales, and its voxels read and written by chunk."""

from functools import partial
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import (
    AlignmentError,
    CorruptChunk,
    InvalidInfo,
    InvalidParameter,
    LayerNotFound,
    MissingChunk,
)
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.codecs import (
    compress_bytes,
    compression_for,
    decode,
    decompress_bytes,
    encode,
)
from igneous_airflow.storage.files import Folder, StoredFile, open_folder
from igneous_airflow.storage.info import Info, Scale, read_info, write_info
from igneous_airflow.storage.overlap import Overlap, overlap_width

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Layer:
    """An existing layer. Arrays are (x, y, z, channel), Fortran order, in the layer's dtype."""

    def __init__(self, folder: Folder, info: Info) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, url: str) -> "Layer":
        """Open a layer; raises LayerNotFound, InvalidInfo, AccessDenied, StorageUnavailable."""
        folder = open_folder(url)
        return cls(folder, read_info(folder))

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

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of the voxels, little-endian as stored."""
        import numpy as np

        return np.dtype(self.info.data_type)

    @property
    def overlap_width(self) -> int:
        """How many storage operations to keep under way: one on disk, many in a bucket."""
        return overlap_width(self.folder.url)

    def scale(self, mip: int) -> Scale:
        """The scale of a mip, -1 being the coarsest; raises InvalidParameter."""
        scales = self.info.scales
        if not scales:
            raise InvalidParameter(f"the layer {self.folder.url} has no scales")
        if not -1 <= mip < len(scales):
            raise InvalidParameter(
                f"mip {mip} does not exist: the layer has mips 0 to {len(scales) - 1}"
            )
        return scales[mip]

    def read_chunk(self, scale: Scale, box: BoundingBox) -> "NDArray[Any] | None":
        """Read one chunk file; None when it is missing. The array may be read-only.

        Raises CorruptChunk naming the file.
        """
        name = f"{scale.key}/{box}"
        stored = self.folder.read(name)
        if stored is None:
            return None
        size = box.size
        try:
            return decode(
                decompress_bytes(stored),
                scale.encoding,
                shape=(size.x, size.y, size.z, self.info.channels),
                dtype=self.dtype,
                block_size=scale.block_size,
            )
        except CorruptChunk as error:
            raise CorruptChunk(f"chunk {self.folder.url}/{name}: {error}") from error

    def read(
        self,
        scale: Scale,
        box: BoundingBox,
        *,
        missing: float | None = None,
        overlap: Overlap | None = None,
    ) -> "NDArray[Any]":
        """Read a box inside the scale's bounds, of any alignment; the array may be read-only.

        `missing` is the value of the voxels of missing chunks; with None, one of them raises
        MissingChunk with its name. `overlap` reads several chunks at once. Raises InvalidParameter
        for a box outside of the bounds.
        """
        import numpy as np

        chunks = list(scale.chunks.overlapping(box))
        if len(chunks) == 1 and chunks[0] == box:
            return self._chunk_or_fill(scale, box, missing)
        if not scale.bounds.contains(box):
            raise InvalidParameter(f"{box} reaches out of scale {scale.key}, {scale.bounds}")
        array = np.empty((*box.size, self.info.channels), dtype=self.dtype, order="F")
        read = partial(self._chunk_or_fill, scale, missing=missing)
        for chunk, voxels in (overlap or Overlap(1)).map(read, chunks):
            common = chunk.intersection(box)
            array[common.slices_within(box)] = voxels[common.slices_within(chunk)]
        return array

    def _chunk_or_fill(
        self, scale: Scale, box: BoundingBox, missing: float | None
    ) -> "NDArray[Any]":
        import numpy as np

        voxels = self.read_chunk(scale, box)
        if voxels is not None:
            return voxels
        if missing is None:
            raise MissingChunk(
                f"chunk {box} of {self.folder.url}/{scale.key} is missing: restore it, or set "
                "fill_missing to read missing chunks as background"
            )
        return np.full((*box.size, self.info.channels), missing, dtype=self.dtype, order="F")

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
        if next(scale.chunks.overlapping(box), None) != box:
            raise AlignmentError(f"{box} is not one chunk of {self.folder.url}/{scale.key}")
        if voxels.dtype != self.dtype or voxels.shape != (*box.size, self.info.channels):
            raise InvalidParameter(
                f"chunk {box}: voxels are {voxels.dtype} {voxels.shape}, the layer holds "
                f"{self.dtype} {(*box.size, self.info.channels)}"
            )
        content = encode(voxels, scale.encoding, block_size=scale.block_size, quality=scale.quality)
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
        stored bytes. Raises CorruptChunk when a compression that must be undone is damaged.
        """
        wanted = compression_for(compress, scale.encoding)
        if level is not None or (compress != "auto" and stored.compression != wanted):
            stored = compress_bytes(
                decompress_bytes(stored), wanted, grey=self._is_grey(scale), level=level
            )
        return self._store(scale, box, stored)

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
