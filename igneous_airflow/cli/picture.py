"""A picture of layers and their mips: one row a layer, one panel a mip, the same place in each."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igneous_airflow.cli.addresses import folder_url
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer

_PANEL = 320  # pixels
_CAPTION = 18
_GAP = 6


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
def picture(layers: tuple[str, ...], out: str, width: int) -> None:
    """Draw the middle of the middle section of each LAYER at all its mips, as a PNG file."""
    draw_picture(layers, Path(out), width)
    click.echo(f"wrote {out}")


def draw_picture(layers: tuple[str, ...], out: Path, width: int = 384) -> None:
    """Draw `width` x `width` voxels of mip 0, and the same place at the coarser mips.

    Raises InvalidParameter when the file cannot be written.
    """
    from PIL import Image, ImageDraw

    from igneous_airflow.storage.layer import Layer

    opened = [Layer.open(folder_url(layer)) for layer in layers]
    columns = max(len(layer.info.scales) for layer in opened)
    size = (columns * (_PANEL + _GAP) - _GAP, len(opened) * (_PANEL + _CAPTION + _GAP) - _GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for row, layer in enumerate(opened):
        for column, scale in enumerate(layer.info.scales):
            left, top = column * (_PANEL + _GAP), row * (_PANEL + _CAPTION + _GAP)
            pixels = _section(layer, scale, width)
            panel = Image.fromarray(pixels).resize((_PANEL, _PANEL), Image.Resampling.NEAREST)
            canvas.paste(panel, (left, top + _CAPTION))
            nanometres = " x ".join(f"{r:g}" for r in scale.resolution)
            pen.text((left + 2, top + 2), f"mip {column}: {nanometres} nm", fill="black")
    try:
        canvas.save(out, format="PNG")
    except OSError as error:
        raise InvalidParameter(f"cannot write {out}: {error.strerror}") from error


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
    return np.where(labels[..., np.newaxis] == 0, 0, np.stack(channels, axis=2)).astype(np.uint8)
