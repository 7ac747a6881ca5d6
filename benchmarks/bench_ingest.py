"""How fast a stack of 1024 x 1024 x 200 grey voxels is ingested from each format, on one core.

Prints million voxels (megabytes, since a voxel is a byte) a second of wall time and of CPU time,
medians, and the peak memory of a process. Source and layer lie on the disk of temporary files.
"""

import argparse
import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.__main__ import ROOT, Result, child_environment, run
from benchmarks.igneous_side import pin, timed
from benchmarks.own_side import IMPORTED_LATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIZE = (1024, 1024, 200)
_NEEDED, _MEMORY = 100, 1000  # MB of voxels a second; MB of memory
#: For each form: the name of what is read, the parameters, and whether the numbers above are asked.
_FORMS = {
    "TIFF sections": ("tiff/*.tif", {}, True),
    "TIFF sections, mip 0 only": ("tiff/*.tif", {"skip_downsamples": True}, True),
    "TIFF sections, deflated": ("deflated", {}, False),
    "PNG sections": ("png", {}, False),
    "one TIFF of 200 pages": ("pages.tif", {}, False),
    ".npy": ("stack.npy", {"axes": "zyx"}, False),
    "HDF5, chunks of 64 cubed": ("stack.h5", {"axes": "zyx"}, False),
    "Zarr 3, chunks of 64 cubed": ("stack.zarr", {"axes": "zyx"}, False),
    "build chunks of 512 x 512 x 100": ("build", {}, False),
}


def write_sources(folder: Path, data: Path) -> None:
    """Write the stack in every form."""
    import h5py
    import numpy as np
    import tifffile
    import zarr
    from PIL import Image

    stack = np.ascontiguousarray(_voxels(data).transpose(2, 1, 0))
    for name in ("tiff", "deflated", "png"):
        (folder / name).mkdir()
    for z, section in enumerate(stack):
        tifffile.imwrite(folder / f"tiff/{z}.tif", section)
        tifffile.imwrite(folder / f"deflated/{z}.tif", section, compression="zlib")
        Image.fromarray(section).save(folder / f"png/{z}.png")
    tifffile.imwrite(folder / "pages.tif", stack, photometric="minisblack")
    np.save(folder / "stack.npy", stack)
    chunks = (64, 64, 64)
    with h5py.File(folder / "stack.h5", "w") as file:
        file.create_dataset("main", data=stack, chunks=chunks, compression="gzip")
    zarr.create_array(folder / "stack.zarr", data=stack, chunks=chunks)
    _write_build(folder / "build", stack)


def _voxels(data: Path) -> "NDArray[np.uint8]":
    from benchmarks.layers import real_image
    from igneous_airflow.geometry.bbox import Vec3
    from igneous_airflow.testing.sample import SampleVolume

    if (data / "em_vnc_stack").is_dir():
        return real_image(data / "em_vnc_stack", _SIZE)
    sample = SampleVolume(
        size=Vec3(*_SIZE), voxel_offset=Vec3(0, 0, 0), resolution=(4, 4, 45), seed=1
    )
    return sample.image()[..., 0]


def _write_build(folder: Path, stack: "NDArray[np.uint8]") -> None:
    import io
    import zlib

    import numpy as np

    folder.mkdir()
    for z in range(0, 200, 100):
        for y in range(0, 1024, 512):
            for x in range(0, 1024, 512):
                stream = io.BytesIO()
                np.save(stream, stack[z : z + 100, y : y + 512, x : x + 512].T[..., np.newaxis])
                name = f"{x}-{x + 512}_{y}-{y + 512}_{z}-{z + 100}"
                (folder / name).write_bytes(zlib.compress(stream.getvalue()))


def ingest(parameters: str, core: int, *, profile: bool) -> None:
    """Ingest once, in this process; only the tasks are timed."""
    from igneous_airflow.stages.ingest import Ingest
    from igneous_airflow.worker.memory import keep_freed_memory

    pin(core)
    keep_freed_memory()
    for module in (*IMPORTED_LATE, "igneous_airflow.sources.opening", "h5py", "tifffile", "zarr"):
        import_module(module)
    stage = Ingest(**json.loads(parameters)).resolved()
    stage.plan().require_accepted()
    stage.prepare()
    cells = list(stage.cells())

    def work() -> None:
        for cell in cells:
            stage.run(cell)

    if not profile:
        timed(work)
        return
    with cProfile.Profile() as measured:
        work()
    pstats.Stats(measured).sort_stats("tottime").print_stats(25)


def command(folder: Path, form: str, core: int, *options: str) -> list[str]:
    """Put together the command that ingests a form into a new layer."""
    shutil.rmtree(folder / "layer", ignore_errors=True)
    source, extra, _ = _FORMS[form]
    values = {"source": f"{folder}/{source}", "dest": f"{folder}/layer", "resolution": [4, 4, 45]}
    program = [sys.executable, "-m", "benchmarks.bench_ingest", "--core", str(core)]
    return [*program, "--ingest", json.dumps({**values, **extra}), *options]


def text(form: str, results: list[Result]) -> str:
    """Write the line of a form."""
    megabytes = _SIZE[0] * _SIZE[1] * _SIZE[2] / 1e6
    wall, cpu = (megabytes / median(getattr(r, name) for r in results) for name in ("wall", "cpu"))
    memory = max(result.megabytes for result in results)
    verdict = ""
    if _FORMS[form][2]:
        missed = [
            *(["speed"] if min(wall, cpu) < _NEEDED else []),
            *(["memory"] if memory > _MEMORY else []),
        ]
        verdict = f"MISSED {', '.join(missed)}" if missed else "ok"
    return f"{form:<34}{wall:>8.0f}{cpu:>8.0f}{memory:>8.0f}  {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="counted runs of a form")
    parser.add_argument("--profile", choices=list(_FORMS), help="only show the profile of a form")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ingest", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = Path(os.environ.get("IGNEOUS_AIRFLOW_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if options.write:
        write_sources(options.write, data)
        return
    if options.ingest:
        ingest(options.ingest, options.core, profile=options.profile is not None)
        return
    with tempfile.TemporaryDirectory(prefix="ingest-") as name:
        folder = Path(name)
        write = [sys.executable, "-m", "benchmarks.bench_ingest", "--write", name]
        subprocess.run(write, cwd=ROOT, env=child_environment(), check=True)
        if options.profile:
            profiled = command(folder, options.profile, options.core, "--profile", options.profile)
            subprocess.run(profiled, cwd=ROOT, env=child_environment(), check=True)
            return
        print(f"{'':<34}{'MB/s':>8}{'CPU':>8}{'MB':>8}  asked: {_NEEDED} MB/s, {_MEMORY} MB")
        for form in _FORMS:
            run(command(folder, form, options.core))  # warms the files up
            results = [run(command(folder, form, options.core)) for _ in range(options.runs)]
            print(text(form, results), flush=True)


if __name__ == "__main__":
    main()
