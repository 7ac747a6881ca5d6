"""Where the voxels of another layer go: the destination's info, scale and place.

A destination that exists keeps every scale as it is: its files would be orphaned otherwise.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from igneous_airflow.errors import InvalidParameter, LayerNotFound
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.pyramid.layout import ScaleWishes, scale_conflicts
from igneous_airflow.pyramid.source import LayerSource
from igneous_airflow.storage.encodings import encoding_problem
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.storage.info import Info, Scale, read_info
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.tuning import TUNING_KEYS

_NOWHERE = Vec3(0, 0, 0)
_OF_THE_FORMAT = frozenset({"@type", "data_type", "num_channels", "type", "scales"})


@dataclass(frozen=True, slots=True)
class VoxelKind:
    """What the voxels of a layer are."""

    data_type: str
    channels: int
    layer_type: str

    @classmethod
    def of(cls, info: Info) -> Self:
        """The voxels of a layer that exists."""
        return cls(info.data_type, info.channels, info.layer_type)

    def conflict(self, present: Info) -> str | None:
        """The reason why a layer that exists cannot take such voxels."""
        if (present.data_type, present.channels) == (self.data_type, self.channels):
            return None
        return (
            f"the destination holds {present.data_type} in {present.channels} channel(s), but "
            f"would get {self.data_type} in {self.channels}: choose another destination"
        )


@dataclass(frozen=True)
class Destination:
    """A scale of a layer, and the region of it that is written; `info` is the one with the scale.

    The layer itself may not be there yet.
    """

    folder: Folder
    info: Info
    exists: bool
    scale: Scale
    region: BoundingBox

    @cached_property
    def layer(self) -> Layer:
        """The layer by the info that it has or will have."""
        return Layer(self.folder, self.info)


def open_destination(url: str) -> tuple[Folder, Info | None]:
    """The folder of a layer that is written, and its info where there is one."""
    folder = open_folder(url)
    with suppress(LayerNotFound):
        return folder, read_info(folder)
    return folder, None


@dataclass(frozen=True, slots=True)
class Request:
    """Which voxels of a layer shall go where, and what they become; None: what they are.

    Offsets and translations are in voxels of the layer's mip 0.
    """

    mip: int
    bounds: str | None
    wishes: ScaleWishes
    kind: VoxelKind | None = None
    translate: Vec3 | None = None
    dest_voxel_offset: Vec3 | None = None
    cutout: bool = False
    clean_info: bool = False


def find_destination(
    source: Layer, url: str, request: Request
) -> tuple[Destination, Vec3, list[str]]:
    """Say where the voxels go, how far they move, and every conflict with what is there.

    They move in voxels of the mip. Nothing is written. Raises InvalidParameter when the place
    cannot be computed at all, InvalidInfo and the like for a destination that cannot be read.
    """
    folder, present = open_destination(url)
    scale = source.info.scales[request.mip]
    region = scale.bounds if request.bounds is None else BoundingBox.parse(request.bounds)
    there = None if present is None else present.scale_at(scale.resolution)
    shift = _shift(source.info, request, region, there)
    kind = request.kind or VoxelKind.of(source.info)
    if present is None:
        info, made = _new_info(source.info, request, region, shift)
        conflicts = []
    else:
        made = _new_entry(source.info, request.mip, request, region, shift)
        scales = present.data["scales"]
        info = present if there else Info({**present.data, "scales": [*scales, made]})
        conflicts = list(_conflicts(present, there, scale, request.wishes))
        if problem := kind.conflict(present):
            conflicts.insert(0, problem)
        if request.kind is not None and present.layer_type != kind.layer_type:
            conflicts.insert(
                0,
                f"the destination is of type {present.layer_type}, but its voxels would be those "
                f"of type {kind.layer_type}: choose another destination",
            )
    if _same_place(source.folder, folder):
        conflicts.append(f"src and dest are the same layer, {source.folder.url}")
    place = Destination(
        folder, info, present is not None, there or Scale.parse(made), region.translated(shift)
    )
    return place, shift, conflicts


def _same_place(one: Folder, other: Folder) -> bool:
    paths = [folder.url.removeprefix("file://") for folder in (one, other)]
    if all(path.startswith("/") for path in paths):
        return Path(paths[0]).resolve() == Path(paths[1]).resolve()
    return one.url == other.url


def _new_info(
    source: Info, request: Request, region: BoundingBox, shift: Vec3
) -> tuple[Info, dict[str, Any]]:
    """The info of a new destination, as far as the chosen mip, and the entry of that mip."""
    entries = [_new_entry(source, mip, request, region, shift) for mip in range(request.mip + 1)]
    kept = _OF_THE_FORMAT if request.clean_info else source.data.keys()
    data = {key: value for key, value in source.data.items() if key in kept}
    if (kind := request.kind) is not None:
        data |= {
            "data_type": kind.data_type,
            "num_channels": kind.channels,
            "type": kind.layer_type,
        }
    return Info({**data, "scales": entries}), entries[-1]


def _shift(source: Info, request: Request, region: BoundingBox, there: Scale | None) -> Vec3:
    """How far voxels move, in voxels of the mip; raises InvalidParameter."""
    scale, finest = source.scales[request.mip], source.scales[0]
    ratio = _ratio(scale, finest)
    if request.translate is not None:
        moved, name = request.translate, "translate"
    elif request.dest_voxel_offset is not None:
        first = region.min * ratio if request.cutout else finest.voxel_offset
        moved, name = request.dest_voxel_offset - first, "dest_voxel_offset"
    elif there is not None and there.size == scale.size and not request.cutout:
        return there.voxel_offset - scale.voxel_offset
    else:
        return _NOWHERE
    if moved % ratio != _NOWHERE:
        raise InvalidParameter(
            f"{name}: {moved} voxels of mip 0 are no whole voxels of mip {request.mip}: move by "
            f"multiples of {ratio}, for example {moved // ratio * ratio}"
        )
    return moved // ratio


def _ratio(coarse: Scale, fine: Scale) -> Vec3:
    ratio = coarse.ratio_to(fine)
    if ratio is None:
        raise InvalidParameter(
            f"scale {coarse.key} is no whole multiple of scale {fine.key}: transfer mip 0"
        )
    return ratio


def _new_entry(
    source: Info, mip: int, request: Request, region: BoundingBox, shift: Vec3
) -> dict[str, Any]:
    """The info entry of a new scale, with every key of the source's that is still true."""
    scale, read = source.scales[mip], source.scales[request.mip]
    ratio = _ratio(read, scale)
    box = scale.bounds
    if request.cutout:
        box = BoundingBox(region.min * ratio, region.max * ratio).intersection(box)
    box = box.translated(shift * ratio)
    scale = replace(scale, size=box.size, voxel_offset=box.min)
    wishes = request.wishes if mip == request.mip else ScaleWishes()
    scale = _as_wished(scale, wishes, request.kind)
    stale = {"sharding", "compressed_segmentation_block_size", *TUNING_KEYS}
    entry = {key: v for key, v in source.data["scales"][mip].items() if key not in stale}
    return entry | scale.entry()


def _as_wished(scale: Scale, wishes: ScaleWishes, kind: VoxelKind | None) -> Scale:
    """The scale in the chunks and encoding wished for, or that the new voxels allow."""
    chunk_size, encoding = wishes.chunk_size or scale.chunk_size, wishes.encoding
    if encoding is None and kind is not None:
        block = chunk_size.minimum(scale.size)
        cannot = encoding_problem(scale.encoding, kind.data_type, kind.channels, block)
        encoding = "raw" if cannot else None
    return scale.stored_as(encoding, wishes.encoding_level, chunk_size)


def _conflicts(
    present: Info, there: Scale | None, read: Scale, wishes: ScaleWishes
) -> Iterator[str]:
    if there is not None:
        yield from scale_conflicts(there, there, wishes)
    elif any(read.ratio_to(scale) is None for scale in present.scales):
        yield (
            f"the destination has mips, but none of {read.resolution} nm, and finer ones must come "
            "before coarser ones: choose another destination, or delete the coarser mips first"
        )


def place_problems(source: LayerSource, place: Destination, unit: Vec3) -> Iterator[str]:
    """Reasons why the region cannot be read or written; `unit` is what mips need whole blocks of.

    Boxes are named as `bounds` are given, in voxels of the source.
    """
    inside, scale, shift = source.scale.bounds, place.scale, source.shift
    origin, volume = source.at_source(place.region), source.at_source(scale.bounds)
    if not inside:
        yield f"scale {source.scale.key} has no voxels: its size is {inside.size}"
    elif not inside.contains(origin):
        yield f"bounds: {origin} reaches out of the source, which is {inside}"
    elif not volume.contains(origin):
        common = volume.intersection(origin)
        way_out = f"set bounds to {common}, or" if common else "set"
        yield (
            f"{origin} moved by {shift} reaches out of the destination's scale "
            f"{scale.key}, which is {scale.bounds}: {way_out} translate to move it elsewhere"
        )
    elif not Grid(volume, unit).is_aligned(origin):
        yield (
            f"bounds: {origin} moved by {shift} would fill only parts of the "
            f"destination's chunks, which come in blocks of {unit} voxels counted from "
            f"{scale.voxel_offset} at all mips: {_aligned(origin, inside, volume, unit)}"
        )


def _aligned(origin: BoundingBox, inside: BoundingBox, volume: BoundingBox, unit: Vec3) -> str:
    grown = origin.expanded_to_grid(unit, volume.min).intersection(volume)
    if inside.contains(grown):
        return f"set bounds to {grown}, or make fewer mips"
    low = (origin.min - volume.min).ceil_div(unit) * unit + volume.min
    high = (origin.max - volume.min) // unit * unit + volume.min
    ends = zip(origin.max, volume.max, high, strict=True)  # the volume's end may cut a block
    high = Vec3(*(end if end == last else cut for end, last, cut in ends))
    shrunk = BoundingBox(low, high)
    if shrunk:
        return f"set bounds to {shrunk}, or choose a smaller chunk_size or fewer mips"
    return "choose a smaller chunk_size or fewer mips"
