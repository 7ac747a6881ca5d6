"""Chunk files copied as they are, where nothing changes but the place; used by routes."""

from dataclasses import dataclass, field

from igneous_airflow.errors import CorruptChunk
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.pyramid.destination import Destination
from igneous_airflow.pyramid.source import LayerSource
from igneous_airflow.pyramid.writer import WriteOptions


@dataclass
class FileCopier:
    """Copies chunk files and counts them; may be used by many threads."""

    source: LayerSource
    place: Destination
    options: WriteOptions
    files: dict[str, int] = field(default_factory=dict)
    chunks_skipped: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def chunks_written(self) -> int:
        """How many files were written."""
        return len(self.files)

    @property
    def bytes_written(self) -> int:
        """Their stored bytes."""
        return sum(self.files.values())

    def copy(self, chunk: BoundingBox) -> None:
        """Copy the file of one chunk of the destination; one that is missing is filled.

        Raises CorruptChunk naming a file that cannot be a chunk.
        """
        at, layer, scale = self.source.at_source(chunk), self.place.layer, self.place.scale
        compress, level = self.options.compress, self.options.compress_level
        source = self.source
        stored = source.layer.folder.read(f"{source.scale.key}/{at}")
        if stored is None:
            voxels = source.layer.read(source.scale, at, missing=source.missing)
            size = layer.write_chunk(scale, chunk, voxels, compress=compress, level=level)
        else:
            try:
                size = layer.copy_chunk(scale, chunk, stored, compress=compress, level=level)
            except CorruptChunk as error:
                raise CorruptChunk(
                    f"chunk {source.layer.folder.url}/{source.scale.key}/{at} is damaged: {error}. "
                    "Restore it, or delete it and set fill_missing to read it as background"
                ) from error
        self.files[f"{scale.key}/{chunk}"] = size
