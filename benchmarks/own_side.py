"""One measured run, or a profile, of our stages; started by `__main__.py`."""

import argparse
import cProfile
import pstats
from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks.igneous_side import pin, timed
from igneous_airflow.stages import stage_class
from igneous_airflow.worker.memory import keep_freed_memory, spare_what_lasts

if TYPE_CHECKING:
    from igneous_airflow.stage import Stage

#: What `run` imports when it is first called; the peer's imports are not measured either.
IMPORTED_LATE = (
    "cloudfiles",
    "cloudfiles.compression",
    "cloudvolume.chunks",
    "compressed_segmentation",
    "deflate",
    "igneous_airflow.kernels.histogram",
    "igneous_airflow.kernels.lookup",
    "igneous_airflow.kernels.pooling",
    "igneous_airflow.kernels.quantizing",
    "igneous_airflow.pyramid.route",
    "igneous_airflow.storage.codecs",
    "igneous_airflow.storage.layer",
    "igneous_airflow.storage.levels",
    "isal.igzip_lib",
    "isal.isal_zlib",
    "tinybrain",
)


def stage_of(options: argparse.Namespace) -> "Stage":
    """Make the stage that is measured."""
    stage = stage_class(options.stage)
    if options.stage == "downsample":
        return stage(layer=options.layer, mip=0, num_mips=options.mips)
    if options.stage == "luminance_levels":
        return stage(layer=options.layer)
    wishes = {"chunk_size": (64, 64, 64), "max_mips": options.mips}
    if options.stage == "watershed_remap":
        wishes["map_path"] = f"{options.source.rpartition('/')[0]}/map.npy"
    return stage(
        src=options.source, dest=options.layer, skip_downsamples=options.mips == 0, **wishes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("layer")
    parser.add_argument("mips", type=int)
    parser.add_argument("core", type=int)
    parser.add_argument("--part", type=int, default=0, help="which of the equal parts of the cells")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="do the same cells again")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--source", help="the layer that is read, where it is another one")
    options = parser.parse_args()
    pin(options.core)
    keep_freed_memory()  # as every worker process does
    for module in IMPORTED_LATE:
        import_module(module)
    spare_what_lasts()  # as they do after their first task
    stage = stage_of(options)
    if (
        options.part == 0
    ):  # of several processes, the first writes the info, before the others start
        stage.prepare()
    every = stage.cells()
    if len(every) % options.parts:
        raise SystemExit(f"{len(every)} cells cannot be shared equally by {options.parts}")
    cells = [every[i] for i in range(options.part, len(every), options.parts)] * options.repeats

    def work() -> None:
        for cell in cells:
            stage.run(cell)

    if not options.profile:
        timed(work)
        return
    with cProfile.Profile() as profile:
        work()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
