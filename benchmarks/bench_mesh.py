"""Meshes and manifests beside igneous-pipeline's: `python -m benchmarks.bench_mesh`.

Meshes: the real labels, uint32, 512 cubed, in cells of 256 cubed with an error of 40 nm. Each cell
takes the peer a minute, so that two of the eight are measured; `--cells 0 1 2 3 4 5 6 7` takes all.
Manifests: 100,000 labels with 250,000 fragments in a folder. Both sides use one process on one
core, by turns. Distances are taken at points on the exact surface to the simplified one, and back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.__main__ import (
    ROOT,
    Pair,
    child_environment,
    fresh_copy,
    peer_python,
    run,
    scratch_parent,
)

_SIDES = str(ROOT / "benchmarks" / "mesh_sides.py")
_SPEED, _TRIANGLES, _MANIFEST_SECONDS = 6.0, 1.2, 30.0


def in_child(action: str, first: Path, second: Path, cells: list[int]) -> dict[str, Any]:
    """Make or compare layers in another process, so that this one stays small."""
    program = [sys.executable, "-m", "benchmarks.mesh_layers", action]
    command = [*program, str(first), str(second), *map(str, cells)]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), check=True, text=True, stdout=subprocess.PIPE
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Bench:
    """Two copies of a layer, and runs of both sides on them by turns."""

    def __init__(self, work: str, source: Path, cells: list[int]) -> None:
        self.work = work
        self.cells = cells
        self.folders = source.parent / "peer", source.parent / "own"
        self.urls = [fresh_copy(source, folder) for folder in self.folders]
        self.core = str(min(os.sched_getaffinity(0)))

    def pair(self) -> Pair:
        """One run of each side, from the same state."""
        for folder in self.folders:
            for manifest in folder.glob("mesh*/*:0"):
                manifest.unlink()
        cells = list(map(str, self.cells))
        one, other = (
            run([python, _SIDES, side, self.work, url, self.core, *cells])
            for python, side, url in (
                (peer_python(), "peer", self.urls[0]),
                (sys.executable, "own", self.urls[1]),
            )
        )
        return one, other

    def pairs(self, count: int) -> list[Pair]:
        """Several pairs, each printed as it ends."""
        pairs = []
        for _ in range(count):
            pairs.append(self.pair())
            peer, own = pairs[-1]
            print(f"  {peer.wall:8.2f} s {own.wall:8.2f} s   {peer.cpu / own.cpu:.2f} times")
        return pairs


def show(what: str, sides: Sequence[float], most: float) -> None:
    """Print a line; `most` is what ours may be of theirs."""
    peer, own = sides
    ratio, verdict = own / max(peer, 1e-9), "ok" if own <= peer * most else "MISSED"
    print(f"{what:<34}{peer:>14,.2f}{own:>14,.2f}{ratio:>8.2f}{most:>8.2f}  {verdict}")


def show_costs(title: str, pairs: list[Pair], most: float) -> None:
    """Print what the runs took: medians of time, and the largest memory."""
    print(f"\n{title:<34}{'igneous':>14}{'ours':>14}{'ratio':>8}{'most':>8}")
    sides = list(zip(*pairs, strict=True))
    show("wall seconds", [median(result.wall for result in side) for side in sides], most)
    show("cpu seconds", [median(result.cpu for result in side) for side in sides], most)
    show("peak MB", [max(result.megabytes for result in side) for side in sides], 1.0)


def meshes(pairs: list[Pair], found: dict[str, Any], cells: list[int]) -> None:
    """Print how meshing compares."""
    show_costs(f"meshes of cells {cells}", pairs, 1 / _SPEED)
    show("triangles", found["triangles"], _TRIANGLES)
    show("stored bytes", found["bytes"], 1.0)
    for way in ("from exact", "to exact"):
        for index, kind in enumerate(("mean", "99th percentile", "largest")):
            show(f"nm {way}, {kind}", [side[index] for side in found[way]], 1.0)
    verdict = "ok" if found["lost"][1] <= found["lost"][0] else "MISSED"
    print(f"labels lost of {found['labels']:,}: {found['lost']}  {verdict}")


def manifests(pairs: list[Pair], found: dict[str, Any]) -> None:
    """Print how manifests compare."""
    show_costs(f"{found['manifests'][1]:,} manifests", pairs, 1.0)
    slowest = max(pair[1].wall for pair in pairs)
    verdict = "ok" if slowest <= _MANIFEST_SECONDS and not found["differing"] else "MISSED"
    print(f"slowest {slowest:.1f} s, {found['differing']} differ  {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_mesh", description=__doc__)
    parser.add_argument("--runs", type=int, default=2, help="pairs of runs")
    parser.add_argument("--cells", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--only", choices=["meshes", "manifests"])
    options = parser.parse_args()
    data = Path(os.environ.get("IGNEOUS_AIRFLOW_DATA", ROOT / ".." / "shared" / "data")).resolve()
    with tempfile.TemporaryDirectory(prefix="meshes-", dir=scratch_parent()) as scratch:
        if options.only != "manifests":
            source = Path(scratch, "labels", "source")
            print(in_child("make-labels", data, source, []), flush=True)
            bench = Bench("meshes", source, options.cells)
            pairs = bench.pairs(options.runs)
            found = in_child("compare-meshes", *bench.folders, options.cells)
            meshes(pairs, found, options.cells)
        if options.only != "meshes":
            source = Path(scratch, "fragments", "source")
            print(in_child("make-fragments", data, source, []), flush=True)
            bench = Bench("manifests", source, [])
            pairs = bench.pairs(options.runs)
            manifests(pairs, in_child("compare-manifests", *bench.folders, []))


if __name__ == "__main__":
    main()
