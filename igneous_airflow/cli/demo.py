"""The demonstration: a real Airflow DAG run on a sample dataset, on this machine alone."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from igneous_airflow.cli.addresses import folder_url, program, shown
from igneous_airflow.cli.embedded import EmbeddedAirflow, stop
from igneous_airflow.cli.picture import draw_picture
from igneous_airflow.cli.runs import bar_of
from igneous_airflow.cli.stages import in_our_words, make_stage
from igneous_airflow.errors import RunFailed
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.progress import Summary
from igneous_airflow.run import Run
from igneous_airflow.stage import Work, human_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POLL = 0.3
_MESHED_VOXELS = 10_000_000  # at most, of the mip that is meshed: seconds of work
_MESHED_CELL = "144,144,144"  # small, so that every worker gets some


@click.command
@click.argument("data", required=False)
@click.option(
    "--folder",
    default=".demo",
    show_default=True,
    help="Where the sample dataset and the embedded Airflow live.",
)
@click.option("--yes", is_flag=True, help="Replace mips and meshes that are there already.")
def demo(data: str | None, folder: str, yes: bool) -> None:
    """Make a sample dataset, or take the layer DATA, and work on it by real Airflow DAG runs.

    An image gets coarser mips, a segmentation meshes as well, from two worker processes on an
    embedded queue. Running it again works.
    """
    started = time.monotonic()
    root = Path(folder).absolute()
    urls = [folder_url(data)] if data else _sample_layers(root / "layers")
    jobs = [_plan(url, confirm=yes) for url in urls]
    airflow = EmbeddedAirflow(root / "airflow")
    click.echo(f"Setting up Airflow in {airflow.home} ...")
    airflow.set_up()
    summaries = [_run(airflow, job) for job in jobs]
    out = root / "layers.png"
    draw_picture(tuple(urls), out)
    seconds = time.monotonic() - started
    click.echo(
        f"\nDone in {seconds:.0f} s, and proved: every task has its receipt, and every promised "
        "file was found.\n"
    )
    for job, of_stages in zip(jobs, summaries, strict=True):
        click.echo(f"{shown(job.layer)}, by {job.dag}\n{_table(of_stages)}\n")
    last = jobs[-1]
    click.echo(
        f"Look at it:\n"
        f"  a picture         {out}\n"
        f"  the Airflow UI    make airflow, then trigger {last.dag} with the form\n"
        f"  in Neuroglancer   {program()} view {' '.join(shown(job.layer) for job in jobs)}"
    )


@dataclass(frozen=True)
class _Job:
    """A DAG run on a layer."""

    layer: str
    dag: str
    conf: dict[str, Any]
    stages: frozenset[str]


def _plan(url: str, *, confirm: bool) -> _Job:
    """Say what there is to do for a layer; raises PlanRefused with every reason not to start."""
    from igneous_airflow.stages.downsample import Downsample
    from igneous_airflow.stages.mesh import Mesh
    from igneous_airflow.storage.layer import Layer

    downsample = make_stage(Downsample, {"layer": url, "confirm": confirm})
    with in_our_words(Downsample):
        click.echo(downsample.plan().require_accepted().describe())
    info = Layer.open(url).info
    if info.layer_type != "segmentation":
        conf = {"layer": url, "confirm": confirm}
        return _Job(url, "igneous_downsample", conf, frozenset({"downsample"}))
    sizes = [scale.size.product for scale in info.scales]
    sizes += [sizes[0] // 4**mip for mip in range(len(sizes), 6)]
    mip = next((m for m, voxels in enumerate(sizes) if voxels <= _MESHED_VOXELS), len(sizes) - 1)
    there = min(mip, len(info.scales) - 1)
    wishes = {"layer": url, "mip": there, "shape": _MESHED_CELL, "confirm": confirm}
    meshes = make_stage(Mesh, wishes).resolved().plan()
    refusals = meshes.refusals
    if not refusals and mip == there:
        with in_our_words(Mesh):
            meshes.require_accepted()
    for refusal in refusals:
        click.echo(f"  no meshes are made: {refusal}")
    conf = {"layer": url, "mesh_mip": mip, "shape": _MESHED_CELL, "confirm": confirm}
    without = {"run_mesh": False, "run_mesh_manifest": False} if refusals else {}
    stages = {"downsample"} if refusals else {"downsample", "mesh", "mesh_manifest"}
    return _Job(url, "igneous_segmentation", conf | without, frozenset(stages))


def _sample_layers(root: Path) -> list[str]:
    """Write the sample layers, unless they are there already, and return their addresses."""
    from igneous_airflow.storage.info import Info, Scale, resolution_key
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.testing.sample import DEFAULT

    urls = [f"file://{root}/{name}" for name in ("image", "segmentation")]
    finished = root / "sample.json"
    if finished.exists():
        click.echo(f"The sample dataset is in {root} already.")
        return urls
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
    for url, voxels in zip(urls, volumes, strict=True):
        kind = url.rpartition("/")[2]
        info = Info.new(data_type=voxels.dtype.name, layer_type=kind, scale=scale)
        Layer.create(url, info).write(scale, voxels)
    finished.write_text(json.dumps({"seed": DEFAULT.seed}))
    click.echo(f"  image and segmentation written in {time.monotonic() - started:.1f} s")
    return urls


def _run(airflow: EmbeddedAirflow, job: _Job) -> list[Summary]:
    """Run a DAG, a progress bar for each stage; raises RunFailed with the place of the log."""
    log = airflow.home / f"{job.dag}.log"
    click.echo(f"Airflow runs {job.dag} on {shown(job.layer)} (log: {log})")
    before = _records(airflow)
    call = airflow.start(["dags", "test", job.dag, "--conf", json.dumps(job.conf)], log)
    bars: dict[Path, tqdm[Any]] = {}
    try:
        while call.poll() is None:
            time.sleep(_POLL)
            _show_progress(_records(airflow) - before, bars)
    finally:
        stop([call])
        for bar in bars.values():
            bar.close()
    runs = [_load(record) for record in sorted(_records(airflow) - before, key=_written)]
    summaries = [summary for run in runs if (summary := run.summary()) is not None]
    unproved = sorted(job.stages - {summary.stage for summary in summaries})
    if call.returncode != 0 or unproved:
        which = f" ({', '.join(unproved)} not proved)" if unproved else ""
        raise RunFailed(f"the DAG run on {shown(job.layer)} failed{which}: read {log}")
    return summaries


def _show_progress(records: set[Path], bars: "dict[Path, tqdm[Any]]") -> None:
    """Bring the bars of runs up to date; a new run has the last bar, and those before it end."""
    for record in sorted(records, key=_written):
        run = _load(record)
        if record not in bars:
            for bar in bars.values():
                bar.close()
            bars[record] = bar_of(run)
        bars[record].update(run.done().count - bars[record].n)


def _records(airflow: EmbeddedAirflow) -> set[Path]:
    return set(airflow.runs.glob("*/run.json"))


def _written(record: Path) -> float:
    return record.stat().st_mtime


def _load(record: Path) -> Run:
    return Run.load(f"file://{record.parent}")


def _table(summaries: Sequence[Summary]) -> str:
    """What each stage made and how fast, a line for each kind of output."""
    rows = [["stage", "made", "", "stored", "seconds", "voxels read", "a second"]]
    for summary in summaries:
        work = summary.work or Work()
        about = [human_bytes(work.bytes_written), f"{summary.seconds:.1f}"]
        if work.voxels:
            about += [f"{work.voxels:,}", f"{work.voxels / summary.seconds:,.0f}"]
        stage = summary.stage
        for name, count in summary.audit.outputs.items():
            rows.append([stage, name, f"{count:,} {summary.audit.files}", *about, "", ""][:7])
            stage, about = "", [""] * 4
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for stage, name, *numbers in rows:
        words = [stage.ljust(widths[0]), name.ljust(widths[1])]
        words += [number.rjust(w) for number, w in zip(numbers, widths[2:], strict=True)]
        lines.append(f"  {'  '.join(words)}".rstrip())
    return "\n".join(lines)
