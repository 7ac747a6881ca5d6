"""The `info` file of a layer: read, compared, and extended without losing what others wrote.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from posixpath import normpath
from typing import Any

from igneous_airflow.errors import CorruptChunk, InvalidInfo, LayerNotFound
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.commit import commit
from igneous_airflow.storage.files import Buffer, Folder, StoredFile
from igneous_airflow.storage.info_names import check_apart, check_folders, check_key
from igneous_airflow.storage.strict_json import parse_json, shown
from igneous_airflow.storage.tuning import (
    Tuning,
    level_problem,
    read_tuning,
    tuning_entry,
    with_level,
)

INFO = "info"
INFO_BYTES = 1 << 23  # 8 MiB, which no info file of volumes or meshes comes near
_DATA_TYPES = frozenset(
    [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    + [f"float{bits}" for bits in (16, 32, 64)]  # 16 and 64 as cloud-volume writes them
)
_CSEG_BLOCK = Vec3(8, 8, 8)
_FARTHEST = 1 << 53  # JavaScript counts no further, so that no viewer shows more
_FINEST, _COARSEST = 1e-6, 1e15  # nm of a voxel: less than an atom, a light day
_MOST_CHANNELS = 1 << 16
_MOST_SCALES = 256  # which layers do not come near: each is half as large as the one before
_LARGEST_BLOCK = 1 << 21  # voxels, that is 128 on each axis


def resolution_key(resolution: Sequence[float]) -> str:
    """The conventional key of a scale: its resolution in nm joined by `_`, as `8_8_40`."""
    return "_".join(f"{int(r)}" if float(r).is_integer() else f"{r!r}" for r in resolution)


@dataclass(frozen=True, slots=True)
class Scale:
    """One mip of a layer; sizes and offsets in its own voxels, resolution in nm."""

    key: str
    resolution: tuple[float, float, float]
    size: Vec3
    voxel_offset: Vec3
    chunk_size: Vec3
    encoding: str
    block_size: Vec3 | None = None  # of compressed_segmentation
    tuning: Tuning = ()  # how well and how hard the encoding works
    sharded: bool = False

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> "Scale":
        """Read an entry of `info["scales"]`; raises InvalidInfo naming what is wrong."""
        try:
            encoding = str(entry["encoding"])
            rx, ry, rz = map(float, entry["resolution"])
            block = entry.get("compressed_segmentation_block_size")
            scale = cls(
                key=check_key(entry["key"]),
                resolution=(rx, ry, rz),
                size=Vec3.of(entry["size"]),
                voxel_offset=Vec3.of(entry.get("voxel_offset", (0, 0, 0))),
                chunk_size=Vec3.of(entry["chunk_sizes"][0]),
                encoding=encoding,
                block_size=_block_size(encoding, block),
                tuning=read_tuning(encoding, entry),
                sharded=bool(entry.get("sharding")),
            )
        except InvalidInfo:
            raise
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInfo(f"a scale is broken ({error!r:.200}): {shown(entry)}") from error
        if problem := scale._problem():
            raise InvalidInfo(f"scale {scale.key}: {problem}: correct it in the info file")
        return scale

    def _problem(self) -> str | None:
        """What no scale can be; None where everything can be."""
        corners = (*self.voxel_offset, *self.bounds.max)
        if min(self.size) < 0 or min(self.chunk_size) < 1:
            return f"size {self.size}, chunk size {self.chunk_size}"
        if max(map(abs, (*corners, *self.chunk_size))) > _FARTHEST:
            return (
                f"size {self.size}, offset {self.voxel_offset}, chunk size {self.chunk_size}: a "
                f"voxel's number is larger than {_FARTHEST}"
            )
        if not all(_FINEST <= r <= _COARSEST for r in self.resolution):
            return f"resolution {self.resolution} is not between {_FINEST:g} and {_COARSEST:g} nm"
        block = self.block_size
        if block is not None and (min(block) < 1 or block.product > _LARGEST_BLOCK):
            return f"block size {block} is not of 1 to {_LARGEST_BLOCK:,} voxels"
        return None

    def entry(self) -> dict[str, Any]:
        """The entry for `info["scales"]`; only for unsharded scales."""
        entry: dict[str, Any] = {
            "key": self.key,
            "resolution": [int(r) if r.is_integer() else r for r in self.resolution],
            "size": list(self.size),
            "voxel_offset": list(self.voxel_offset),
            "chunk_sizes": [list(self.chunk_size)],
            "encoding": self.encoding,
        }
        if self.block_size is not None:
            entry["compressed_segmentation_block_size"] = list(self.block_size)
        return entry | tuning_entry(self.tuning)

    def downsampled(self, factor: Vec3) -> "Scale":
        """The next coarser scale, stored alike: size rounded up, offset rounded down."""
        rx, ry, rz = (r * f for r, f in zip(self.resolution, factor, strict=True))
        return replace(
            self,
            key=resolution_key((rx, ry, rz)),
            resolution=(rx, ry, rz),
            size=self.size.ceil_div(factor),
            voxel_offset=self.voxel_offset // factor,
            sharded=False,
        )

    def stored_as(
        self, encoding: str | None = None, level: int | None = None, chunk_size: Vec3 | None = None
    ) -> "Scale":
        """The same voxels in other chunks; None keeps what this scale has.

        An encoding keeps its quality or level, and a level that it cannot have is left out.
        """
        encoding = encoding or self.encoding
        tuning = self.tuning if encoding == self.encoding else ()
        if level is not None and level_problem(encoding, level) is None:
            tuning = with_level(encoding, tuning, level)
        return replace(
            self,
            chunk_size=chunk_size or self.chunk_size,
            encoding=encoding,
            block_size=_block_size(encoding, self.block_size),
            tuning=tuning,
        )

    def ratio_to(self, finer: "Scale") -> Vec3 | None:
        """Voxels of a finer scale along each axis of one voxel; None unless whole numbers."""
        ratios = [r / f for r, f in zip(self.resolution, finer.resolution, strict=True)]
        if any(r < 0.5 or abs(r - round(r)) > 1e-6 * r for r in ratios):
            return None
        return Vec3(*map(round, ratios))

    @property
    def bounds(self) -> BoundingBox:
        """The box of all voxels."""
        return BoundingBox.at(self.voxel_offset, self.size)

    @property
    def chunks(self) -> Grid:
        """The grid of chunk files; the last ones are clipped to the bounds."""
        return Grid(self.bounds, self.chunk_size)

    def stores_like(self, other: "Scale") -> bool:
        """Whether files written for one scale are right for the other."""
        return (self.size, self.voxel_offset, self.chunk_size, self.encoding, self.block_size) == (
            other.size,
            other.voxel_offset,
            other.chunk_size,
            other.encoding,
            other.block_size,
        )


def _block_size(encoding: str, given: Sequence[int] | Vec3 | None) -> Vec3 | None:
    if encoding != "compressed_segmentation":
        return None
    return Vec3.of(given) if given else _CSEG_BLOCK


@dataclass(frozen=True)
class Info:
    """A parsed `info` file; `data` keeps every key, known or not."""

    data: dict[str, Any]

    @classmethod
    def parse(cls, content: Buffer, place: str) -> "Info":
        """Read the file's bytes; raises InvalidInfo."""
        try:
            data = parse_json(content)
        except ValueError as error:
            raise InvalidInfo(f"{place}/info is not JSON: {error}") from error
        missing = {"data_type", "num_channels", "type", "scales"} - set(
            data if isinstance(data, dict) else ()
        )
        if missing:
            raise InvalidInfo(f"{place}/info lacks {', '.join(sorted(missing))}")
        if str(data["data_type"]).lower() not in _DATA_TYPES:
            raise InvalidInfo(
                f"{place}/info: data_type {shown(data['data_type'])} is not one we know"
            )
        channels = data["num_channels"]
        if type(channels) is not int or not 1 <= channels <= _MOST_CHANNELS:
            raise InvalidInfo(
                f"{place}/info: num_channels {shown(channels)} is not between 1 and "
                f"{_MOST_CHANNELS:,}"
            )
        if not isinstance(data["scales"], list):
            raise InvalidInfo(f"{place}/info: scales is not a list")
        if len(data["scales"]) > _MOST_SCALES:
            raise InvalidInfo(
                f"{place}/info has {len(data['scales']):,} scales, and {_MOST_SCALES} are the most "
                "that are read: remove those that are not mips"
            )
        info = cls(data)
        try:
            check_folders(data)
            info.require_apart()
        except InvalidInfo as error:
            raise InvalidInfo(f"{place}/info: {error}") from error
        return info

    @classmethod
    def new(cls, *, data_type: str, layer_type: str, scale: Scale, channels: int = 1) -> "Info":
        """The info of a layer with one scale."""
        return cls(
            {
                "@type": "neuroglancer_multiscale_volume",
                "data_type": data_type,
                "num_channels": channels,
                "type": layer_type,
                "scales": [scale.entry()],
            }
        )

    @property
    def data_type(self) -> str:
        """Name of the numpy dtype of the voxels."""
        return str(self.data["data_type"]).lower()

    @property
    def channels(self) -> int:
        """Number of channels per voxel."""
        return int(self.data["num_channels"])

    @property
    def layer_type(self) -> str:
        """`image`, `segmentation`, or a word of somebody else's."""
        return str(self.data["type"])

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """The mips, in the order of the file: mip 0 is the first, and should be the finest."""
        return tuple(Scale.parse(entry) for entry in self.data["scales"])

    @property
    def coarsest(self) -> Scale | None:
        """The scale whose voxels have the largest volume in nm, of several alike the last.

        As a rule that is the last scale of the file; not where scales were added out of order, or
        pooled by different factors.
        """
        by_volume = sorted(self.scales, key=lambda scale: prod(scale.resolution))
        return by_volume[-1] if by_volume else None

    def scale_at(self, resolution: Sequence[float]) -> Scale | None:
        """The scale of a resolution in nm, where there is one."""
        return next((s for s in self.scales if s.resolution == tuple(resolution)), None)

    def scale_in(self, key: str) -> Scale | None:
        """The scale whose files lie in the folder of a key, where there is one."""
        return next((s for s in self.scales if normpath(s.key) == normpath(key)), None)

    def with_scales(self, scales: Sequence[Scale]) -> "Info":
        """Add scales; one that is there already stays as it is, and must store alike.

        Raises InvalidInfo for a scale whose existing namesake would orphan or garble files.
        """
        added = []
        for scale in scales:
            present = self.scale_at(scale.resolution)
            if present is None:
                if (other := self.scale_in(scale.key)) is not None:
                    raise InvalidInfo(f"the folder {scale.key} holds another scale: {other}")
                added.append(scale.entry())
            elif not present.stores_like(scale):
                raise InvalidInfo(
                    f"scale {scale.key} exists with another layout: {present}, not {scale}"
                )
        return Info({**self.data, "scales": [*self.data["scales"], *added]}).require_apart()

    def require_apart(self) -> "Info":
        """This info; raises InvalidInfo where scales share their files with anything else."""
        check_apart(self.data, (scale.key for scale in self.scales))
        return self

    def without_scales(self, keys: Sequence[str]) -> "Info":
        """Leave out the scales of these keys."""
        left = [entry for entry in self.data["scales"] if entry["key"] not in keys]
        return Info({**self.data, "scales": left})

    def entries_of(self, keys: Sequence[str]) -> tuple[dict[str, Any], ...]:
        """What the file says of the scales of these keys, in its order."""
        return tuple(entry for entry in self.data["scales"] if entry["key"] in keys)

    def with_entries(self, entries: Sequence[dict[str, Any]]) -> "Info":
        """Put back entries of scales that were removed, each before the first coarser one.

        One that was made again meanwhile comes to the same place. Raises InvalidInfo when another
        scale has taken its key or its resolution.
        """
        data = [*self.data["scales"]]
        for removed in entries:
            entry, scale = removed, Scale.parse(removed)
            present = self.scale_at(scale.resolution) or self.scale_in(scale.key)
            if present is not None:
                if present.key != scale.key or not present.stores_like(scale):
                    raise InvalidInfo(
                        f"scale {scale.key} cannot come back: the layer has {present.key} now, of "
                        f"resolution {present.resolution} nm in chunks of {present.chunk_size}, "
                        f"{present.encoding}; delete that one first"
                    )
                entry = data.pop([other["key"] for other in data].index(present.key))
            coarser = (
                place
                for place, other in enumerate(data)
                if prod(Scale.parse(other).resolution) > prod(scale.resolution)
            )
            data.insert(next(coarser, len(data)), entry)
        return Info({**self.data, "scales": data}).require_apart()

    @property
    def mesh_directory(self) -> str | None:
        """The folder of the layer's meshes, where the info names one.

        Raises InvalidInfo when it is not inside the layer.
        """
        name = self.data.get("mesh")
        if not name:
            return None
        folder = normpath(str(name))
        if not isinstance(name, str) or ":" in name or folder.startswith((".", "/")):
            raise InvalidInfo(f"the mesh directory of the info, {name!r}, is not inside the layer")
        return folder

    def with_mesh_directory(self, directory: str) -> "Info":
        """Name the folder of the layer's meshes; raises InvalidInfo when it has another one."""
        present = self.mesh_directory
        if present not in (None, directory):
            raise InvalidInfo(f"the meshes of the layer are in {present}, not in {directory}")
        return self if present else Info({**self.data, "mesh": directory})


def read_info(folder: Folder, most: int = INFO_BYTES) -> Info:
    """Read a layer's info file of at most so many bytes; raises LayerNotFound and InvalidInfo."""
    try:
        stored = folder.read(INFO, most)
        content = None if stored is None else decompress_bytes(stored, most)
    except CorruptChunk as error:
        raise InvalidInfo(f"{folder.url}/info cannot be read: {error}") from error
    if content is None:
        raise LayerNotFound(
            f"there is no layer at {folder.url}: the file {folder.url}/info is missing"
        )
    return Info.parse(content, folder.url)


def write_info(folder: Folder, info: Info) -> None:
    """Write a layer's info file, replacing it as a whole."""
    text = json.dumps(info.data, indent=2, sort_keys=True)
    folder.write(INFO, StoredFile(text.encode()), content_type="application/json")


def add_scales(folder: Folder, scales: Sequence[Scale]) -> Info:
    """Add scales to a layer's info, keeping whatever others add meanwhile.

    Raises InvalidInfo on a conflict, StorageUnavailable when the merge never holds.
    """
    return _changed(folder, lambda info: info.with_scales(scales))


def remove_scales(folder: Folder, keys: Sequence[str]) -> Info:
    """Remove scales from a layer's info, keeping whatever others add meanwhile.

    Raises StorageUnavailable when the change never holds.
    """
    return _changed(folder, lambda info: info.without_scales(keys))


def put_back(folder: Folder, entries: Sequence[dict[str, Any]], mesh: str | None) -> Info:
    """Put scales and the mesh folder back into a layer's info, whatever others add meanwhile.

    Raises InvalidInfo when others have taken their places.
    """

    def change(info: Info) -> Info:
        info = info.with_entries(entries)
        return info if mesh is None else info.with_mesh_directory(mesh)

    return _changed(folder, change)


def name_mesh_directory(folder: Folder, directory: str) -> Info:
    """Say in a layer's info where its meshes are, keeping whatever others add meanwhile.

    Raises InvalidInfo when it says something else, StorageUnavailable when the change never holds.
    """
    return _changed(folder, lambda info: info.with_mesh_directory(directory))


def _changed(folder: Folder, change: Callable[[Info], Info]) -> Info:
    """Change a layer's info, keeping whatever others change meanwhile."""
    read_info(folder)  # before the lock, which needs the folder to be there
    return commit(folder, INFO, partial(read_info, folder), change, partial(write_info, folder))
