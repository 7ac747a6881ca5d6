"""Commands on levels: `levels plot` draws what luminance-levels has counted."""

from collections.abc import Sequence

import click

from igneous_airflow.cli.addresses import folder_url, shown
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.stages.contrast_normalization import clip_fractions


@click.group
def levels() -> None:
    """Look at the levels of a layer, which luminance-levels has counted."""


def _fractions(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[float, float]:
    try:
        return clip_fractions(value)
    except ValueError as error:
        raise click.BadParameter(f"write a number, or two as 0.01,0.02; {error}") from error


def _sections(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> list[int] | None:
    try:
        return None if value is None else [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"write sections as 12,40,41; got {value!r}") from error


@levels.command
@click.argument("layer")
@click.option("--mip", default=0, show_default=True, help="Mip of the levels; -1 is the coarsest.")
@click.option("--z", metavar="Z,Z", callback=_sections, help="Sections to draw, as 12,40,41.")
@click.option(
    "--clip-fraction",
    default="0.01",
    show_default=True,
    callback=_fractions,
    help="As of contrast-normalization: 0.01, or two numbers as 0.01,0.02.",
)
@click.option(
    "--scope",
    type=click.Choice(["section", "global"]),
    default="section",
    show_default=True,
    help="As of contrast-normalization: clip points of each section, or of all together.",
)
@click.option("--levels-path", help="Folder of the levels, where it is not the layer.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    default="levels.png",
    show_default=True,
    help="The PNG file to write.",
)
def plot(
    layer: str,
    mip: int,
    z: list[int] | None,
    clip_fraction: tuple[float, float],
    scope: str,
    levels_path: str | None,
    out: str,
) -> None:
    """Draw the histograms of LAYER's sections and their clip points, as a PNG file.

    What is left of the blue line becomes black, what is right of the orange one white.
    """
    from igneous_airflow.cli.histograms import Histograms, draw_histograms
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.storage.levels import LevelsFolder, grey_problems

    url = folder_url(layer)
    opened = Layer.open(url)
    if problems := list(grey_problems(opened.info)):
        raise InvalidParameter("; ".join(problems))
    number = opened.info.scales.index(opened.scale(mip))
    place = folder_url(levels_path) if levels_path else url
    folder = LevelsFolder(place, number, opened.info.data_type)
    found = Histograms.read(folder, clip_fraction, z, together=scope == "global")
    picture = draw_histograms(found, f"{shown(url)}, mip {number}")
    try:
        picture.save(out, format="PNG")
    except OSError as error:
        raise InvalidParameter(f"cannot write {out}: {error.strerror}") from error
    low, high = zip(*(found.clips[section] for section in found.sections), strict=True)
    click.echo(
        f"wrote {out}: {len(low):,} sections, black up to {_range(low)}, white from {_range(high)}"
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"
