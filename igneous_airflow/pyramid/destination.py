"""Where the voxels of another layer go: the destination's info, scale and place; used by transfers.

A destination that exists keeps every scale as it is: its files would be orphaned otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.pyramid.layout import ScaleWishes, scale_conflicts
from igneous_airflow.storage.info import Info, Scale, resolution_key

_NOWHERE = Vec3(0, 0, 0)
_OF_THE_FORMAT = frozenset({"@type", "data_type", "num_channels", "type", "scales"})


@dataclass(frozen=True, slots=True)
class Request:
    """Which voxels of a layer shall go where; offsets and translations in voxels of its mip 0."""

    mip: int
    bounds: str | None
    translate: Vec3 | None
    dest_voxel_offset: Vec3 | None
    cutout: bool
    clean_info: bool
    wishes: ScaleWishes


@dataclass(frozen=True, slots=True)
class Destination:
    """A scale that takes the voxels of another: they move by `shift`, in voxels of that mip.

    `region` is what is written, `info` is the info file that has the scale.
    """

    info: Info
    scale: Scale
    source: Scale
    shift: Vec3
    region: BoundingBox

    @property
    def origin(self) -> BoundingBox:
        """The region in the source."""
        return self.at_source(self.region)

    def at_source(self, box: BoundingBox) -> BoundingBox:
        """Where in the source the voxels of a box come from."""
        return box.translated(self.shift * -1)

    @property
    def phase(self) -> Vec3:
        """How many voxels before the region the chunk of the source begins that it starts in."""
        return (self.origin.min - self.source.voxel_offset) % self.source.chunk_size

    @property
    def has_the_same_chunks(self) -> bool:
        """Whether the region's chunk files are right in both places."""
        here, there = self.source, self.scale
        return (
            (here.chunk_size, here.encoding, here.block_size)
            == (there.chunk_size, there.encoding, there.block_size)
            and self.source.chunks.is_aligned(self.origin)
            and self.scale.chunks.is_aligned(self.region)
        )


def find_destination(
    source: Info, present: Info | None, request: Request
) -> tuple[Destination, list[str]]:
    """Say where the voxels go, and every conflict with what is there; nothing is written.

    Raises InvalidParameter when the place cannot be computed at all.
    """
    scale = source.scales[request.mip]
    region = scale.bounds if request.bounds is None else BoundingBox.parse(request.bounds)
    there = None if present is None else present.scale_at(scale.resolution)
    shift = _shift(source, request, region, there)
    made = _new_entry(source, request.mip, request, region, shift)
    if present is None:
        entries = [_new_entry(source, mip, request, region, shift) for mip in range(request.mip)]
        kept = _OF_THE_FORMAT if request.clean_info else source.data.keys()
        data = {key: value for key, value in source.data.items() if key in kept}
        info, conflicts = Info({**data, "scales": [*entries, made]}), []
    else:
        info = (
            present if there else Info({**present.data, "scales": [*present.data["scales"], made]})
        )
        conflicts = list(_conflicts(source, present, there, scale, request))
    written = there or Scale.parse(made)
    return Destination(info, written, scale, shift, region.translated(shift)), conflicts


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
    safe = _stays_inside(scale.key)
    scale = replace(
        scale,
        key=scale.key if safe else resolution_key(scale.resolution),
        size=box.size,
        voxel_offset=box.min,
    )
    if mip == request.mip:
        scale = _as_wished(scale, request.wishes)
    stale = {"sharding", "compressed_segmentation_block_size", "jpeg_quality"}
    entry = {key: v for key, v in source.data["scales"][mip].items() if key not in stale}
    return entry | scale.entry()


def _as_wished(scale: Scale, wishes: ScaleWishes) -> Scale:
    # through `downsampled` by nothing, which knows what belongs to an encoding
    made = scale.downsampled(
        Vec3.full(1),
        chunk_size=wishes.chunk_size or scale.chunk_size,
        encoding=wishes.encoding or scale.encoding,
    )
    return replace(made, key=scale.key)


def _stays_inside(key: str) -> bool:
    path = PurePosixPath(key)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _conflicts(
    source: Info, present: Info, there: Scale | None, read: Scale, request: Request
) -> Iterator[str]:
    if (present.data_type, present.channels) != (source.data_type, source.channels):
        yield (
            f"the destination holds {present.data_type} in {present.channels} channel(s), the "
            f"source {source.data_type} in {source.channels}: choose another destination"
        )
    if there is not None:
        yield from scale_conflicts(there, there, request.wishes)
        if not _stays_inside(there.key):
            yield f"the destination's scale {there.key!r} lies outside of its folder"
    elif any(read.ratio_to(scale) is None for scale in present.scales):
        yield (
            f"the destination has mips, but none of {read.resolution} nm, and finer ones must come "
            "before coarser ones: choose another destination, or delete the coarser mips first"
        )


def place_problems(destination: Destination, unit: Vec3) -> Iterator[str]:
    """Reasons why the region cannot be read or written; `unit` is what mips need whole blocks of.

    Boxes are named as `bounds` are given, in voxels of the source.
    """
    inside, scale = destination.source.bounds, destination.scale
    origin = destination.origin
    volume = destination.at_source(scale.bounds)
    if not inside:
        yield f"scale {destination.source.key} has no voxels: its size is {inside.size}"
    elif not inside.contains(origin):
        yield f"bounds: {origin} reaches out of the source, which is {inside}"
    elif not volume.contains(origin):
        common = volume.intersection(origin)
        way_out = f"set bounds to {common}, or" if common else "set"
        yield (
            f"{origin} moved by {destination.shift} reaches out of the destination's scale "
            f"{scale.key}, which is {scale.bounds}: {way_out} translate to move it elsewhere"
        )
    elif not Grid(volume, unit).is_aligned(origin):
        yield (
            f"bounds: {origin} moved by {destination.shift} would fill only parts of the "
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
