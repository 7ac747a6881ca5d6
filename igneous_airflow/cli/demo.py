"""The demonstration: a real Airflow DAG run on a sample dataset, on this machine alone."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from igneous_airflow.cli.addresses import folder_url
from igneous_airflow.cli.embedded import EmbeddedAirflow, stop
from igneous_airflow.cli.picture import draw_picture
from igneous_airflow.errors import RunFailed
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.progress import Summary
from igneous_airflow.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DAG = "igneous_downsample"
_POLL = 0.3


@click.command
@click.argument("data", required=False)
@click.option(
    "--folder",
    default=".demo",
    show_default=True,
    help="Where the sample dataset and the embedded Airflow live.",
)
def demo(data: str | None, folder: str) -> None:
    """Make a sample dataset, or take the layer DATA, and downsample it by a real Airflow DAG run.

    Two worker processes work on an embedded queue. Running it again works.
    """
    root = Path(folder).absolute()
    layers = (
        [Path(folder_url(data).removeprefix("file://"))]
        if data
        else _sample_layers(root / "layers")
    )
    airflow = EmbeddedAirflow(root / "airflow")
    click.echo(f"Setting up Airflow in {airflow.home} ...")
    airflow.set_up()
    summaries = [_downsample(airflow, layer) for layer in layers]
    out = root / "mips.png"
    draw_picture(tuple(map(str, layers)), out)
    click.echo("\nDone, and proved: every promised chunk was found.\n")
    for layer, summary in zip(layers, summaries, strict=True):
        click.echo(f"{layer}\n{summary.describe()}\n")
    click.echo(
        f"Look at it:\n"
        f"  the mips side by side   {out}\n"
        f"  the Airflow UI          make airflow, then trigger {_DAG} with the form\n"
        f"  the voxels, in Python   from cloudvolume import CloudVolume\n"
        f"                          CloudVolume('file://{layers[0]}', mip=1).viewer()"
    )


def _sample_layers(root: Path) -> list[Path]:
    """Write the sample layers, unless they are there already."""
    from igneous_airflow.storage.info import Info, Scale, resolution_key
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.testing.sample import DEFAULT

    layers = [root / "image", root / "segmentation"]
    finished = root / "sample.json"
    if finished.exists():
        click.echo(f"The sample dataset is in {root} already.")
        return layers
    started = time.monotonic()
    click.echo(f"Making a sample dataset of {DEFAULT.size} voxels in {root} ...")
    x, y, z = DEFAULT.resolution
    scale = Scale(
        key=resolution_key(DEFAULT.resolution),
        resolution=(float(x), float(y), float(z)),
        size=DEFAULT.size,
        voxel_offset=DEFAULT.voxel_offset,
        chunk_size=Vec3.full(64),
        encoding="raw",
    )
    volumes: tuple[NDArray[Any], ...] = DEFAULT.volumes()
    for layer, voxels in zip(layers, volumes, strict=True):
        info = Info.new(data_type=voxels.dtype.name, layer_type=layer.name, scale=scale)
        Layer.create(f"file://{layer}", info).write(scale, voxels)
    finished.write_text(json.dumps({"seed": DEFAULT.seed}))
    click.echo(f"  image and segmentation written in {time.monotonic() - started:.1f} s")
    return layers


def _downsample(airflow: EmbeddedAirflow, layer: Path) -> Summary:
    """Run the DAG on a layer and show its progress; raises RunFailed with the log's place."""
    log = airflow.home / f"{layer.name}.log"
    click.echo(f"Airflow runs {_DAG} on {layer} (log: {log})")
    before = _records(airflow)
    conf = json.dumps({"layer": str(layer)})
    call = airflow.start(["dags", "test", _DAG, "--conf", conf], log)
    run: Run | None = None
    try:
        with tqdm(total=0, unit="task", file=sys.stderr) as bar:
            while call.poll() is None:
                time.sleep(_POLL)
                new = _records(airflow) - before
                if run is None and new:
                    run = Run.load(f"file://{new.pop().parent}")
                    bar.reset(total=run.planned)
                if run is not None:
                    bar.update(run.done().count - bar.n)
    finally:
        stop([call])
    summary = run.summary() if run is not None else None
    if call.returncode != 0 or summary is None:
        raise RunFailed(f"the DAG run on {layer} failed: read {log}")
    return summary


def _records(airflow: EmbeddedAirflow) -> set[Path]:
    return set(airflow.state.glob("*/run.json"))
