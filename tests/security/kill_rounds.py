"""Runs stages to their proof through many real SIGKILLs; a process of its own, for it forks.

Usage: kill_rounds.py FOLDER SEED ROUNDS. Prints a line for each round as JSON: its stage, how often
it was killed, and how many partial files dead writers had left before and at its end.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.stage import Stage
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete
from igneous_airflow.worker.loop import Worker, WorkerOptions

MOST_KILLS = 12  # of a round, which then goes on undisturbed
MOST_FILES = 40  # that a process may write before it is killed
OPTIONS = WorkerOptions(until_done=True, idle_seconds=0.01)


def image(url: str) -> None:
    write_layer(Path(url.removeprefix("file://")), random_voxels(Vec3(64, 64, 16)))


def labels(url: str) -> None:
    spec = LayerSpec("segmentation", chunk_size=(16, 16, 16))
    write_layer(Path(url.removeprefix("file://")), random_voxels(Vec3(32, 32, 16), "uint64"), spec)


def meshed(url: str) -> None:
    labels(url)
    complete(Mesh(layer=url, shape=(16, 16, 16)))


STAGES: list[tuple[Callable[[str], None], Callable[[str], Stage]]] = [
    (image, lambda url: Downsample(layer=url, num_mips=2, memory_target=1_000_000)),
    (labels, lambda url: Mesh(layer=url, shape=(16, 16, 16))),
    (meshed, lambda url: MeshManifest(layer=url)),
    (image, lambda url: LuminanceLevels(layer=url)),
    (image, lambda url: Delete(layer=url, confirm=True)),
]


def kill_sometimes(seed: int) -> None:
    """Let SIGKILL end this process at a random file that it writes, before or after its rename."""
    chance, rename = random.Random(seed), os.replace
    dies_at = chance.randrange(1, MOST_FILES)
    written = 0

    def counted(source: str, target: str) -> None:
        nonlocal written
        written += 1
        if written == dies_at and chance.random() < 0.7:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if written == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted  # type: ignore[assignment]


def go_on(stage: Stage, folder: Path) -> None:
    """Take the run up wherever it is, and bring it to its proof."""
    run, _ = Run.launch(
        stage, url=f"file://{folder}/runs/run", queue=f"sqlite://{folder}/queue.db", by="tester"
    )
    run.prepare()
    run.enqueue()
    queue = open_queue(run.queue)
    Worker(queue, f"file://{folder}/runs", OPTIONS, lambda _: None).work()
    queue.close()
    run.finish()


def attempt(stage: Stage, folder: Path, seed: int | None) -> bool:
    """Go on in a process of its own, killed if there is a seed; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            if seed is not None:
                kill_sometimes(seed)
            go_on(stage, folder)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the run in {folder} failed")
    return os.WIFEXITED(status)


def partials(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.partial")]


def one_round(folder: Path, seed: int) -> dict[str, object]:
    chance = random.Random(seed)
    make_layer, make_stage = STAGES[seed % len(STAGES)]
    url = f"file://{folder}/layer"
    make_layer(url)
    stage = make_stage(url)
    kills = 0
    met: set[str] = set()
    while not attempt(stage, folder, chance.randrange(2**32) if kills < MOST_KILLS else None):
        kills += 1
        met.update(partials(folder))
    left = partials(folder)
    return {"stage": stage.name, "seed": seed, "kills": kills, "met": sorted(met), "left": left}


def main(folder: Path, seed: int, rounds: int) -> None:
    for number in range(seed, seed + rounds):
        place = folder / str(number)
        place.mkdir()
        sys.stdout.write(json.dumps(one_round(place, number)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
