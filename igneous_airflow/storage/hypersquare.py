"""Hypersquares: a volume in overlapping cubes, each in a folder of its own, as Eyewire keeps them.

A folder has `metadata.json`, `segmentation.lzma` (labels, x fastest, in an LZMA stream) and
`jpg/0.jpg`, `jpg/1.jpg` ... (a grey section for each z). Its name means nothing.
"""

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import CorruptChunk, InvalidInfo, InvalidParameter, MissingChunk
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import Buffer, Folder
from igneous_airflow.storage.links import leads_outside
from igneous_airflow.storage.overlap import Overlap, overlap_width

_METADATA, _LABELS = "metadata.json", "segmentation.lzma"
_TYPES = {"UInt8": "uint8", "UInt16": "uint16", "UInt32": "uint32", "UInt64": "uint64"}
_NANOMETRES = ("nanometers", "nanometres", "nm")
_LZMA_MEMORY = 1 << 28  # bytes; four times what lzma's highest level needs
NAMED_AT_MOST = 10
_METADATA_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20  # of labels or a picture, whose remarks may be long


@dataclass(frozen=True)
class Cube:
    """A cube by its metadata; `box` includes what it shares with its neighbours, in voxels.

    `unit` is what its offsets are given in, `label_type` the dtype of its labels.
    """

    folder: Folder
    name: str
    box: BoundingBox
    resolution: tuple[float, float, float]
    unit: str
    label_type: str | None

    @classmethod
    def parse(cls, folder: Folder, name: str, content: Buffer) -> "Cube":
        """Read the metadata; raises InvalidInfo naming the file and what is wrong.

        Offsets are nanometres where they are as far apart as the cube is long in nanometres, and
        voxels otherwise: both are found.
        """
        try:
            data = json.loads(bytes(content))
            size, resolution = Vec3.of(data["chunk_voxel_dimensions"]), data["voxel_resolution"]
            x, y, z = map(float, resolution)
            low, high = (list(map(float, data[f"physical_offset_{end}"])) for end in ("min", "max"))
            unit = _unit(low, high, size, (x, y, z))
            lengths = (x, y, z) if unit == "nanometres" else (1.0, 1.0, 1.0)
            corner = Vec3(*map(_whole, low, lengths))
            label_type = data.get("segment_id_type", data.get("segmentation_type"))
            problem = _problem(data, size, (x, y, z), label_type)
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise InvalidInfo(f"{folder.url}/{name}/{_METADATA} is broken: {problem}")
        labels = None if label_type is None else _TYPES[label_type]
        return cls(folder, name, BoundingBox.at(corner, size), (x, y, z), unit, labels)

    @property
    def url(self) -> str:
        """The address of the cube's folder."""
        return f"{self.folder.url}/{self.name}"

    def labels(self) -> NDArray[Any]:
        """All labels as (x, y, z); raises MissingChunk or CorruptChunk naming the file."""
        expected = self.box.voxels * self._dtype.itemsize
        content = self._read(_LABELS, 2 * expected + _HEADER_BYTES)
        decoder = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
        try:
            labels = decoder.decompress(content, expected + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise CorruptChunk(f"{self.url}/{_LABELS} is damaged: {error}") from error
        if len(labels) != expected or not decoder.eof:
            found = "more" if len(labels) > expected else f"{len(labels):,}"
            raise CorruptChunk(
                f"{self.url}/{_LABELS} is cut off, or not of the size that {_METADATA} says: a "
                f"cube of {self.box.size} voxels has {expected:,} bytes, and it has {found}"
            )
        return np.frombuffer(labels, self._dtype).reshape(tuple(self.box.size), order="F")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of its labels, or of its grey values where it has none."""
        return self.box.voxels * np.dtype(self.label_type or "uint8").itemsize

    @cached_property
    def _dtype(self) -> "np.dtype[Any]":
        return np.dtype(self.label_type).newbyteorder("<")

    def section(self, number: int) -> NDArray[np.uint8]:
        """The grey values of a section as (x, y); raises MissingChunk or CorruptChunk."""
        from PIL.JpegImagePlugin import JpegImageFile

        name = f"jpg/{number}.jpg"
        pixels = self.box.size.x * self.box.size.y
        content = self._read(name, 4 * pixels + _HEADER_BYTES)
        try:
            with JpegImageFile(BytesIO(content)) as picture:  # its header, not yet its pixels
                if picture.size != (self.box.size.x, self.box.size.y) or picture.mode != "L":
                    width, height = picture.size
                    raise ValueError(
                        f"it is {width} x {height} pixels of kind {picture.mode}, but a section of "
                        f"{self.box.size.x} x {self.box.size.y} of kind L (grey) is expected"
                    )
                return np.asarray(picture).T
        except (OSError, ValueError, SyntaxError) as error:
            raise CorruptChunk(f"{self.url}/{name} cannot be used: {error}") from error

    def _read(self, name: str, most: int) -> bytes:
        _require_inside(self.folder, f"{self.name}/{name}")
        stored = self.folder.read(f"{self.name}/{name}")
        if stored is None:
            raise MissingChunk(
                f"{self.url}/{name} is missing: restore it, or set fill_missing to take background"
            )
        try:
            return bytes(decompress_bytes(stored, most))
        except CorruptChunk as error:
            raise CorruptChunk(f"{self.url}/{name}: {error}") from error


def _unit(
    low: list[float], high: list[float], size: Vec3, resolution: tuple[float, float, float]
) -> str:
    lengths = [end - start for start, end in zip(low, high, strict=True)]
    physical = [voxels * length for voxels, length in zip(size, resolution, strict=True)]
    return "nanometres" if np.allclose(lengths, physical, rtol=1e-6, atol=1e-6) else "voxels"


def _whole(offset: float, length: float) -> int:
    voxels = round(offset / length)
    if abs(offset / length - voxels) > 1e-3:
        raise ValueError(f"physical_offset_min {offset:g} is no whole number of voxels")
    return voxels


def _problem(
    data: dict[str, Any], size: Vec3, resolution: tuple[float, float, float], label_type: object
) -> str | None:
    if min(size) < 1:
        return f"chunk_voxel_dimensions are {size}"
    if not all(0 < length < np.inf for length in resolution):
        return f"voxel_resolution is {data['voxel_resolution']}"
    if (unit := data.get("resolution_units", _NANOMETRES[0])) not in _NANOMETRES:
        return f"resolution_units are {unit!r}, only nanometers are known"
    if label_type is not None and label_type not in _TYPES:
        return f"segment_id_type is {label_type!r}: it must be one of {', '.join(_TYPES)}"
    return None


def read_cubes(folder: Folder) -> tuple[list[Cube], list[str]]:
    """Read the metadata of every cube, in the order of their names.

    Returns the names of folders without metadata as well. Raises InvalidInfo naming the broken
    ones, InvalidParameter where there are no cubes.
    """
    cubes: list[Cube] = []
    problems: list[str] = []
    others: list[str] = []
    with Overlap(overlap_width(folder.url)) as overlap:
        names = sorted(folder.folders(""))
        for name in names:
            _require_inside(folder, f"{name}/{_METADATA}")
        for name, stored in overlap.map(lambda name: folder.read(f"{name}/{_METADATA}"), names):
            if stored is None:
                others.append(name)
                continue
            try:
                cubes.append(Cube.parse(folder, name, decompress_bytes(stored, _METADATA_BYTES)))
            except (InvalidInfo, CorruptChunk) as error:
                problems.append(str(error))
    if problems:
        raise InvalidInfo(first_few(problems, "; "))
    if not cubes:
        raise InvalidParameter(
            f"src: no folder in {folder.url} has a {_METADATA}, so that there are no cubes"
        )
    return cubes, others


def _require_inside(folder: Folder, name: str) -> None:
    """Raise InvalidParameter when links lead from a file of a cube out of the folder of all."""
    if leads_outside(folder.url, name):
        raise InvalidParameter(
            f"src: links lead from {folder.url}/{name} out of {folder.url}: put the files "
            "themselves there, or give the folder in which they are"
        )


def first_few(texts: Sequence[str], separator: str = ", ", of: int | None = None) -> str:
    """Join the first few of many texts, and say how many more there are."""
    more = (of or len(texts)) - NAMED_AT_MOST
    return separator.join(texts[:NAMED_AT_MOST]) + (f" and {more:,} more" if more > 0 else "")
