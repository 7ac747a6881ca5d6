"""Where voxels go that come from no layer: the destination's info, scale and place.

A destination that exists keeps every scale as it is: its files would be orphaned otherwise.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.pyramid.destination import Destination, VoxelKind, open_destination
from igneous_airflow.pyramid.layout import ScaleWishes, scale_conflicts
from igneous_airflow.storage.info import Info, Scale, resolution_key

_ORIGIN = Vec3(0, 0, 0)


@dataclass(frozen=True, slots=True)
class NewVoxels:
    """Voxels for a layer; None leaves it to an existing destination.

    `resolution` in nm; `voxel_offset` is where their first one comes to lie; `info_keys` is what a
    new info says besides.
    """

    kind: VoxelKind
    size: Vec3
    resolution: tuple[float, float, float] | None
    voxel_offset: Vec3 | None
    wishes: ScaleWishes
    default_chunk_size: Vec3
    info_keys: Mapping[str, Any] = field(default_factory=dict)


def place_voxels(url: str, voxels: NewVoxels) -> tuple[Destination, list[str]]:
    """Say where the voxels go, and every conflict with what is there; nothing is written.

    Raises InvalidParameter when the resolution is not known, InvalidInfo and the like for a
    destination that cannot be read.
    """
    folder, present = open_destination(url)
    there = _scale_there(present, voxels.resolution)
    resolution = voxels.resolution or (there.resolution if there else None)
    if resolution is None:
        raise InvalidParameter(
            "resolution: the source does not say how large its voxels are: set resolution to their "
            "nanometres on x,y,z, as 4,4,40"
        )
    corner = voxels.voxel_offset or (there.voxel_offset if there else _ORIGIN)
    region = BoundingBox.at(corner, voxels.size)
    if there is not None and present is not None:
        conflicts = [*_conflicts(present, voxels), *scale_conflicts(there, there, voxels.wishes)]
        return Destination(folder, present, True, there, region), conflicts
    made = _new_scale(resolution, region, voxels)
    kind = voxels.kind
    info = Info.new(
        data_type=kind.data_type, layer_type=kind.layer_type, scale=made, channels=kind.channels
    )
    if present is None:
        info = Info({**info.data, **voxels.info_keys})
        return Destination(folder, info, False, made, region), []
    scales = present.data["scales"]
    info = Info({**present.data, "scales": [*scales, made.entry()]})
    conflicts = list(_conflicts(present, voxels))
    if scales:
        conflicts.append(
            f"resolution: the destination has mips, but none of {_text(resolution)} nm: choose "
            "another destination, or one of its resolutions, "
            f"{'; '.join(_text(scale.resolution) for scale in present.scales)}"
        )
    return Destination(folder, info, True, made, region), conflicts


def _text(resolution: tuple[float, float, float]) -> str:
    return ",".join(f"{length:g}" for length in resolution)


def _scale_there(
    present: Info | None, resolution: tuple[float, float, float] | None
) -> Scale | None:
    if present is None or not present.scales:
        return None
    return present.scales[0] if resolution is None else present.scale_at(resolution)


def _new_scale(
    resolution: tuple[float, float, float], region: BoundingBox, voxels: NewVoxels
) -> Scale:
    wishes = voxels.wishes
    scale = Scale(
        key=resolution_key(resolution),
        resolution=resolution,
        size=region.size,
        voxel_offset=region.min,
        chunk_size=voxels.default_chunk_size,
        encoding="raw",
    )
    return scale.stored_as(wishes.encoding, wishes.encoding_level, wishes.chunk_size)


def _conflicts(present: Info, voxels: NewVoxels) -> Iterator[str]:
    if problem := voxels.kind.conflict(present):
        yield problem
    if present.layer_type != voxels.kind.layer_type:
        yield (
            f"layer_type: the destination is of type {present.layer_type}, not "
            f"{voxels.kind.layer_type}: set layer_type to that, or choose another destination"
        )


def placement_problems(place: Destination, unit: Vec3) -> Iterator[str]:
    """Reasons why a region cannot be written; `unit` is what mips need whole blocks of."""
    volume, region = place.scale.bounds, place.region
    if not volume.contains(region):
        yield (
            f"voxel_offset: the voxels would fill {region}, which reaches out of the destination's "
            f"scale {place.scale.key}, which is {volume}: set another voxel_offset, or choose "
            "another destination"
        )
    elif not Grid(volume, unit).is_aligned(region):
        yield (
            f"voxel_offset: {region} would fill only parts of the destination's chunks, which come "
            f"in blocks of {unit} voxels counted from {place.scale.voxel_offset} at all mips: set "
            "another voxel_offset, make fewer mips, or choose another destination"
        )


def source_place_problems(source: str, dest: str, keys: Iterable[str]) -> Iterator[str]:
    """The reason why a folder cannot be read while scales of those keys are written."""
    read, layer = _path(source), _path(dest)
    if read == layer:
        yield f"dest: {dest} is the folder of the source: choose another one for the layer"
    for folder in {_path(f"{dest}/{key}") for key in keys}:
        if read.is_relative_to(folder):
            yield f"dest: the folder {folder} of the destination holds the source: choose another"


def _path(url: str) -> PurePath:
    if url.startswith("file://"):
        return Path(url.removeprefix("file://")).resolve()
    return PurePosixPath(posixpath.normpath(url))
