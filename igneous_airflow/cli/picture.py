"""A picture of layers: one row a layer, one panel a mip, the same place in each; meshes beside."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igneous_airflow.cli.addresses import folder_url
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer

_PANEL = 320  # pixels
_CAPTION = 18
_GAP = 6
_FINER = 2  # meshes are rendered with so many pixels for one


@click.command
@click.argument("layers", nargs=-1, required=True, metavar="LAYER...")
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    default="layer.png",
    show_default=True,
    help="The PNG file to write.",
)
@click.option(
    "--width", type=click.IntRange(1), default=384, show_default=True, help="Voxels of mip 0 shown."
)
@click.option("--mips", type=click.IntRange(1), default=6, show_default=True, help="Mips at most.")
@click.option(
    "--meshes",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="Labels at most whose meshes are shown: the largest ones.",
)
def picture(layers: tuple[str, ...], out: str, width: int, mips: int, meshes: int) -> None:
    """Draw the middle of each LAYER at its mips, and its meshes, as a PNG file."""
    draw_picture(layers, Path(out), width, mips, meshes)
    click.echo(f"wrote {out}")


def draw_picture(
    layers: tuple[str, ...], out: Path, width: int = 384, mips: int = 6, meshes: int = 30
) -> None:
    """Draw `width` x `width` voxels of mip 0, the same place at coarser mips, and meshes if any.

    Raises InvalidParameter when the file cannot be written.
    """
    from PIL import Image

    from igneous_airflow.storage.layer import Layer

    opened = [Layer.open(folder_url(layer)) for layer in layers]
    rows = [
        [
            (_mip_caption(mip, scale), _panel(_section(layer, scale, width), _PANEL))
            for mip, scale in enumerate(layer.info.scales[:mips])
        ]
        for layer in opened
    ]
    side = len(rows) * (_PANEL + _CAPTION + _GAP) - _CAPTION - _GAP
    beside = [panel for layer in opened for panel in _mesh_panel(layer, meshes, side)]
    left = max(map(len, rows)) * (_PANEL + _GAP)
    size = (left + len(beside) * (side + _GAP) - _GAP, side + _CAPTION)
    canvas = Image.new("RGB", size, "white")
    for number, row in enumerate(rows):
        _paste(canvas, row, 0, number * (_PANEL + _CAPTION + _GAP))
    _paste(canvas, beside, left, 0)
    try:
        canvas.save(out, format="PNG")
    except OSError as error:
        raise InvalidParameter(f"cannot write {out}: {error.strerror}") from error


def _paste(canvas: "Image", panels: "list[tuple[str, Image]]", left: int, top: int) -> None:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(canvas)
    for caption, panel in panels:
        canvas.paste(panel, (left, top + _CAPTION))
        pen.text((left + 2, top + 2), caption, fill="black")
        left += panel.width + _GAP


def _panel(pixels: "NDArray[np.uint8]", side: int) -> "Image":
    from PIL import Image

    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _mip_caption(mip: int, scale: "Scale") -> str:
    return f"mip {mip}: {' x '.join(f'{r:g}' for r in scale.resolution)} nm"


def _section(layer: "Layer", scale: "Scale", width: int) -> "NDArray[np.uint8]":
    """Read the shown place at one mip as (rows, columns, 3) pixels."""
    finest = layer.info.scales[0]
    shown = finest.bounds.size.minimum(Vec3(width, width, 1))
    corner = finest.voxel_offset + (finest.size - shown) // 2
    low, high = [
        Vec3(
            *(
                int(edge * fine // coarse)
                for edge, fine, coarse in zip(
                    place, finest.resolution, scale.resolution, strict=True
                )
            )
        )
        for place in (corner, corner + shown)
    ]
    low = low.minimum(scale.bounds.max - 1)  # rounded down, an offset may leave the place outside
    box = BoundingBox(low, high.maximum(low + 1)).intersection(scale.bounds)
    voxels = layer.read(scale, box, missing=0)[:, :, 0, 0].T
    return _coloured(voxels) if layer.info.layer_type == "segmentation" else _grey(voxels)


def _grey(voxels: "NDArray[Any]") -> "NDArray[np.uint8]":
    import numpy as np

    if voxels.dtype != np.uint8:
        low, high = float(voxels.min()), float(voxels.max())
        voxels = ((voxels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.repeat(voxels[..., np.newaxis], 3, axis=2)


def _coloured(labels: "NDArray[Any]") -> "NDArray[np.uint8]":
    """Give each label a colour of its own, and background black."""
    import numpy as np

    mixed = labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    channels = [
        (mixed >> np.uint64(shift)).astype(np.uint8) // 4 * 3 + 64 for shift in (40, 48, 56)
    ]
    return np.where(labels[..., np.newaxis] == 0, 0, np.stack(channels, axis=-1)).astype(np.uint8)


def _mesh_panel(layer: "Layer", count: int, side: int) -> "Iterator[tuple[str, Image]]":
    """Draw the meshes of the largest labels, if there are any with a manifest."""
    import numpy as np
    from PIL import Image

    from igneous_airflow.kernels.rendering import Surface, render
    from igneous_airflow.storage.meshes import MeshFolder

    directory = layer.info.mesh_directory
    if directory is None or not count:
        return
    folder = MeshFolder(layer.folder, directory)
    sizes = folder.stored_bytes()
    largest = sorted(sizes, key=lambda label: (-sizes[label], label))[:count]
    meshes = {label: mesh for label in largest if (mesh := folder.read_mesh(label)) is not None}
    if not meshes:
        return
    colours = _coloured(np.array(list(meshes), np.uint64)) / 255
    surfaces = [
        Surface(*mesh, colour) for mesh, colour in zip(meshes.values(), colours, strict=True)
    ]
    finest = layer.info.scales[0]
    corners = (finest.bounds.min, finest.bounds.max)
    low, high = np.array([tuple(corner) for corner in corners]) * finest.resolution
    pixels = render(surfaces, low, high, side * _FINER)
    caption = f"meshes: the {len(meshes):,} largest of {len(sizes):,} labels"
    yield caption, Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
