"""What syncing files before their receipt costs: `python -m benchmarks.bench_sync DATA`.

DATA holds TIFF sections of an image. A layer of 134 million voxels is downsampled in tasks as a
worker does it, with and without syncing, in turns, in a folder on a disk (`--folder`; one in
memory would tell nothing).
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.layers import real_image
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.durable import sync
from igneous_airflow.storage.info import Info
from igneous_airflow.storage.layer import Layer

_SIZE = (1024, 1024, 128)
_ROUNDS = 7


def make_layer(data: Path, folder: Path) -> str:
    """Write the image in gzipped chunks of 64 cubed."""
    scale = {
        "key": "4_4_40",
        "size": list(_SIZE),
        "resolution": [4, 4, 40],
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[64, 64, 64]],
        "encoding": "raw",
    }
    data_of_info = {"data_type": "uint8", "num_channels": 1, "type": "image", "scales": [scale]}
    layer = Layer.create(f"file://{folder}/layer", Info(data_of_info))
    layer.write(layer.info.scales[0], real_image(data, _SIZE)[..., None])
    return f"file://{folder}/layer"


def work(stage: Downsample, *, syncs: bool) -> tuple[float, float]:
    """Wall seconds of all tasks, and of syncing alone."""
    os.sync()
    started, syncing = time.perf_counter(), 0.0
    for block in stage.cells():
        done = stage.run(block)
        if syncs:
            before = time.perf_counter()
            sync(stage.output, done.files, done.folders)
            syncing += time.perf_counter() - before
    return time.perf_counter() - started, syncing


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-sync-", dir=options.folder))
    try:
        stage = Downsample(layer=make_layer(options.data, folder), num_mips=4).resolved()
        stage.prepare()
        work(stage, syncs=True)
        pairs = [(work(stage, syncs=False), work(stage, syncs=True)) for _ in range(_ROUNDS)]
    finally:
        shutil.rmtree(folder)
    without = median(pair[0][0] for pair in pairs)
    syncing = median(pair[1][1] for pair in pairs)
    print(f"{Vec3(*_SIZE)} voxels, {_ROUNDS} rounds in turns, medians")
    print(f"without syncing {without:.3f} s, syncing {syncing:.3f} s: {syncing / without:.1%} more")
    print(f"wall with / without, pair by pair: {median(p[1][0] / p[0][0] for p in pairs):.3f}")


if __name__ == "__main__":
    main()
