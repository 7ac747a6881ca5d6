"""What Neuroglancer is told to show: layers, place, zoom, and the objects whose meshes are drawn.

Format: https://github.com/google/neuroglancer/tree/master/python (`neuroglancer.ViewerState`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import Any

from igneous_airflow.errors import InvalidInfo, InvalidParameter
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.meshes import read_name
from igneous_airflow.viewer.links import folder_is_inside
from igneous_airflow.viewer.served import folder_inside

#: Stands for the address of the viewer, which only the browser knows.
BASE = "{base}"
_PIXELS = 500  # that the finest mip is fitted into, in a panel of a usual window
_OBJECTS = 12  # whose meshes are shown at first
_LISTED = 50_000  # files of a mesh folder that are looked at for that
_NANOMETRES = 1e-6, 1e15  # of an edge of a voxel that can be drawn: less than an atom, a light day
_VOXELS = 2**53  # along an axis, and from the origin: whole numbers that a browser can tell apart
_GREY = "#uicontrol invlerp normalized\nvoid main() {\n  emitGrayscale(normalized());\n}\n"
_COLOUR = (
    "#uicontrol invlerp red(channel=0)\n#uicontrol invlerp green(channel=1)\n"
    "#uicontrol invlerp blue(channel=2)\n"
    "void main() {\n  emitRGB(vec3(red(), green(), blue()));\n}\n"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A layer in the viewer: its name there, and where its files are below the viewer's address."""

    name: str
    path: str
    info: Info
    objects: tuple[str, ...] = ()  # whose meshes are drawn at first

    @classmethod
    def of(cls, name: str, path: str, layer: Layer) -> "Shown":
        """A layer, with its largest objects, which are looked for in its storage."""
        is_segmentation = layer.info.layer_type == "segmentation"
        objects = tuple(_largest_objects(layer)) if is_segmentation else ()
        return cls(name, path, layer.info, objects)


def viewer_state(shown: Sequence[Shown]) -> dict[str, Any]:
    """The viewer's state, as JSON data; sources begin with BASE.

    The finest mip with voxels of the topmost layer that has some, the last, decides the place.
    Raises InvalidParameter when no layer has any, InvalidInfo for one that cannot be drawn.
    """
    scales = [scale for one in reversed(shown) for scale in one.info.scales if scale.bounds]
    if not scales:
        raise InvalidParameter("there is nothing to show: no layer has voxels")
    scale = scales[0]
    _require_drawable(scale)
    low, high, size = scale.bounds.min, scale.bounds.max, scale.size
    layers = [_layer(one) for one in shown]
    nanometres = [edge * r for edge, r in zip(size, scale.resolution, strict=True)]
    return {
        "dimensions": {
            axis: [r * 1e-9, "m"] for axis, r in zip("xyz", scale.resolution, strict=True)
        },
        "position": [(a + b) / 2 for a, b in zip(low, high, strict=True)],
        "crossSectionScale": max(nanometres[:2]) / min(scale.resolution) / _PIXELS,
        "projectionScale": 1.2 * max(nanometres) / min(scale.resolution),
        "layers": layers,
        "layout": "4panel" if any("segments" in layer for layer in layers) else "xy",
    }


def _require_drawable(scale: Scale) -> None:
    """Raise InvalidInfo for sizes that no browser can reckon with."""
    least, most = _NANOMETRES
    if not all(least <= edge <= most for edge in scale.resolution):
        raise InvalidInfo(
            f"scale {scale.key!r} cannot be shown: its resolution is {list(scale.resolution)} nm, "
            f"and {least:g} to {most:g} nm can be drawn"
        )
    if any(abs(edge) > _VOXELS for edge in (*scale.bounds.min, *scale.bounds.max)):
        raise InvalidInfo(
            f"scale {scale.key!r} cannot be shown: it reaches beyond voxel {_VOXELS:,}"
        )


def _layer(one: Shown) -> dict[str, Any]:
    info = one.info
    segmentation = info.layer_type == "segmentation"
    entry: dict[str, Any] = {
        "type": "segmentation" if segmentation else "image",
        "source": f"precomputed://{BASE}/{one.path}",
        "name": one.name,
    }
    if segmentation:
        if one.objects:
            entry |= {"segments": list(one.objects), "hideSegmentZero": True}
    elif info.channels == 3:
        entry["shader"] = _COLOUR
    elif info.data_type != "uint8":
        entry["shader"] = _GREY
    return entry


def _largest_objects(layer: Layer) -> Iterator[str]:
    """Labels with a mesh that lies in many blocks, which are large objects, as text."""
    folder = folder_inside(layer.info.data.get("mesh"))
    if folder is None or not folder_is_inside(layer.folder.url, folder):
        return
    manifests = []
    for name, size in islice(layer.folder.sizes(folder), _LISTED):
        label, block = read_name(name)
        if label and not block:
            manifests.append((size, label))
    for _, label in nlargest(_OBJECTS, manifests):
        yield str(label)
