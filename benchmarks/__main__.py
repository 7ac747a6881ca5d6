"""Measure our stages beside igneous-pipeline's, then the queue: `python -m benchmarks`.

See README.md for what is measured and how to read it. Only the standard library is imported here,
so that this process stays small: its children inherit its peak memory.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.layers import CASES, Case

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
PEER = BENCH / "igneous"
_SCRATCH_BYTES = 2_000_000_000
_SCALING = 1.8  # times one process, asked of two
_SCALING_REPEATS = 8  # of the volume, so that a run takes seconds
_QUIET = 0.95  # of a core, that a process gets on a machine without other work


@dataclass(frozen=True, slots=True)
class Result:
    """What one process, or several at once, took; seconds and megabytes (of the largest)."""

    wall: float
    cpu: float
    megabytes: float
    cores: float


Pair = tuple[Result, Result]  # the other side, then ours


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: ours beside the other, which is the peer or, in case d, one process.

    Speeds are million voxels of mip 0 per second, ratios medians over the pairs.
    """

    case: str
    title: str
    other: float
    ours: float
    ratio: float
    cpu_ratio: float
    needed: float
    bytes_ratio: float | None = None
    bytes_allowed: float | None = None
    megabytes: tuple[float, float] | None = None
    differing: int | None = None
    missed: tuple[str, ...] = ()

    def text(self) -> str:
        """Write the line; its columns are those of HEADINGS."""
        stored = "" if self.bytes_ratio is None else f"{self.bytes_ratio:.3f}"
        allowed = "" if self.bytes_allowed is None else f"{self.bytes_allowed:.2f}"
        other, ours = ("", "") if self.megabytes is None else (f"{mb:.0f}" for mb in self.megabytes)
        voxels = {None: "", 0: "equal"}.get(self.differing, f"{self.differing} differ")
        return (
            f"{self.case} {self.title:<24}{self.other:>8.1f}{self.ours:>8.1f}"
            f"{self.ratio:>7.2f}{self.cpu_ratio:>6.2f}{self.needed:>9.2f}"
            f"{stored:>8}{allowed:>7}{other:>8}{ours:>7}  {voxels:<8}"
            + (f"MISSED {', '.join(self.missed)}" if self.missed else "ok")
        )


HEADINGS = (
    f"{'':<26}{'Mvox/s':>16}{'ratio':>13}{'':>9}{'bytes':>15}{'peak MB':>15}\n"
    f"{'  case':<26}{'other':>8}{'ours':>8}{'wall':>7}{'cpu':>6}{'needed':>9}"
    f"{'ratio':>8}{'most':>7}{'other':>8}{'ours':>7}  {'voxels':<8}result"
)


def child_environment() -> dict[str, str]:
    """Copy the environment without the settings that change how numpy allocates and computes."""
    unset = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {name: value for name, value in os.environ.items() if name not in unset}


def run(*commands: Sequence[str]) -> Result:
    """Start the processes one after the other, let them work together, and wait for them all."""
    children = []
    for command in commands:
        child = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        while (line := child.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"ended too early: {' '.join(command)}")
        children.append(child)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    printed = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a measured process failed; its error is above")
    took = [json.loads(text.splitlines()[-1]) for text in printed]
    wall = max(t["end"] for t in took) - min(t["start"] for t in took)
    cpu = sum(t["cpu"] for t in took)
    return Result(wall, cpu, max(t["megabytes"] for t in took), cpu / wall)


def layers(action: str, case: str, first: Path, second: Path) -> dict[str, Any]:
    """Make a layer of a case, or compare two, in another process."""
    command = [sys.executable, "-m", "benchmarks.layers", action, case, str(first), str(second)]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), check=True, text=True, stdout=subprocess.PIPE
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peer_python() -> str:
    """Make the peer's environment if there is none yet, and return its interpreter."""
    python = PEER / "bin" / "python"
    lock = ROOT / "benchmarks" / "igneous.lock"
    made_from = PEER / "igneous.lock"
    if not made_from.exists() or made_from.read_bytes() != lock.read_bytes():
        print(f"making the peer's environment in {PEER.relative_to(ROOT)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(lock)]
        subprocess.run(install, check=True)
        shutil.copyfile(lock, made_from)
    return str(python)


def fresh_copy(source: Path, copy: Path) -> str:
    """Make a layer that has mip 0 only, its chunks linked to the source's; return its address."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy, copy_function=os.link)
    for metadata in ("info", "provenance"):  # are written again, so must not be shared
        if (source / metadata).exists():
            (copy / metadata).unlink()
            shutil.copyfile(source / metadata, copy / metadata)
    return copy.as_uri()


def layer_to_write(case: Case, source: Path, layer: Path) -> str:
    """Clear the place of what is made: a copy of the source, or nothing; return its address."""
    if not case.is_transfer:
        return fresh_copy(source, layer)
    shutil.rmtree(layer, ignore_errors=True)
    return layer.as_uri()


def new_bytes(case: Case, layer: Path) -> int:
    """Add up the stored bytes of all mips that were made."""
    scales = json.loads((layer / "info").read_text())["scales"][case.first :]
    folders = [layer / scale["key"] for scale in scales]
    return sum(file.stat().st_size for folder in folders for file in folder.iterdir())


def own_command(layer: str, case: Case, core: int, *options: str) -> list[str]:
    """Put together the command of our side."""
    program = [sys.executable, "-m", "benchmarks.own_side"]
    return [*program, layer, str(case.mips), str(core), *options]


class Bench:
    """The measurements, with the number of counted pairs, the cores and the folders they use."""

    def __init__(self, runs: int, data: Path, scratch: Path) -> None:
        self.runs = runs
        self.data = data
        self.scratch = scratch
        self.cores = sorted(os.sched_getaffinity(0))
        self.details: dict[str, dict[str, Any]] = {}

    def source(self, name: str) -> Path:
        """Return the layer of a case, made when first asked for."""
        folder = self.scratch / name / "source"
        if not folder.exists():
            print(f"case {name}: {CASES[name].title}, making the layer ...", flush=True)
            self.details[name] = layers("make", name, self.data, folder)
            print(f"  from {self.details[name]['source']}", flush=True)
        return folder

    def pairs(self, name: str, pair: Callable[[], Pair], voxels: int) -> list[Pair]:
        """Measure pairs; the first warms up and is not counted."""
        pair()
        pairs = []
        for _ in range(self.runs):
            pairs.append(pair())
            speeds = (voxels / result.wall / 1e6 for result in pairs[-1])
            print("  {:7.1f} {:7.1f} Mvox/s".format(*speeds), flush=True)
        self.details.setdefault(name, {})["pairs"] = [[asdict(r) for r in p] for p in pairs]
        return pairs

    def against_the_peer(self, name: str) -> Row:
        """Run both sides by turns on the same core."""
        case, source, core = CASES[name], self.source(name), self.cores[0]
        script = [peer_python(), str(ROOT / "benchmarks" / "igneous_side.py")]
        theirs, ours = source.parent / "igneous", source.parent / "own"
        sent = [source.as_uri()] if case.is_transfer else []
        options = ["--transfer-from", *sent] if sent else []

        def pair() -> Pair:
            theirs_url, ours_url = (layer_to_write(case, source, side) for side in (theirs, ours))
            peer = run([*script, theirs_url, str(case.mips), str(core), *sent])
            return peer, run(own_command(ours_url, case, core, *options))

        pairs = self.pairs(name, pair, case.voxels)
        counted = layers("compare", name, theirs, ours)
        stored = new_bytes(case, theirs), new_bytes(case, ours)
        self.details[name] |= counted | {"bytes": stored}
        return judged(name, pairs, stored, counted["differing"])

    def scaling(self) -> Row | None:
        """Run one process with all cells of case a, then two with half each; None on one core."""
        if len(self.cores) < 2:
            print("case d: left out, since only one core may be used", flush=True)
            return None
        case, source = CASES["a"], self.source("a")
        layer, voxels = source.parent / "own", case.voxels * _SCALING_REPEATS
        repeated = ("--repeats", str(_SCALING_REPEATS))

        def pair() -> Pair:
            alone = run(own_command(fresh_copy(source, layer), case, self.cores[0], *repeated))
            url = fresh_copy(source, layer)
            halves = (("--parts", "2", "--part", str(part), *repeated) for part in (0, 1))
            return alone, run(
                *(own_command(url, case, self.cores[i], *half) for i, half in enumerate(halves))
            )

        print("case d: case a by one process and by two", flush=True)
        pairs = self.pairs("d", pair, voxels)
        if (share := median(both.cores for _, both in pairs)) < _QUIET * 2:
            print(f"  two processes got only {share:.2f} cores: the machine is busy", flush=True)
        row = medians("d", "two processes beside one", voxels, pairs, _SCALING)
        return replace(row, missed=("speed",) if row.ratio < row.needed else ())

    def profile(self, name: str) -> None:
        """Print where our side spends its time."""
        case, source = CASES[name], self.source(name)
        layer = layer_to_write(case, source, source.parent / "own")
        options = ["--transfer-from", source.as_uri()] if case.is_transfer else []
        command = own_command(layer, case, self.cores[0], "--profile", *options)
        subprocess.run(command, cwd=ROOT, env=child_environment(), check=True)


def medians(name: str, title: str, voxels: int, pairs: list[Pair], needed: float) -> Row:
    """Reduce pairs to a line without a verdict."""
    other, ours = (voxels / median(pair[side].wall for pair in pairs) / 1e6 for side in (0, 1))
    ratio = median(a.wall / b.wall for a, b in pairs)
    return Row(name, title, other, ours, ratio, median(a.cpu / b.cpu for a, b in pairs), needed)


def judged(name: str, pairs: list[Pair], stored: tuple[int, int], differing: int) -> Row:
    """Compare a case with what is needed; the memory of a side is the largest of all its runs."""
    case = CASES[name]
    row = medians(name, case.title, case.voxels, pairs, case.speed)
    bytes_ratio = stored[1] / stored[0]
    peer, own = (max(pair[side].megabytes for pair in pairs) for side in (0, 1))
    missed = {
        "speed": min(row.ratio, row.cpu_ratio) < case.speed,
        "bytes": case.stored is not None and bytes_ratio > case.stored,
        "memory": own >= peer,
        "voxels": differing > 0,
    }
    return replace(
        row,
        bytes_ratio=bytes_ratio,
        bytes_allowed=case.stored,
        megabytes=(peer, own),
        differing=differing,
        missed=tuple(what for what, is_missed in missed.items() if is_missed),
    )


def scratch_parent() -> str | None:
    """Choose memory over disk where it has room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _SCRATCH_BYTES
    return str(memory) if roomy else None


def processor() -> str:
    """Name the processor, on which the ratios depend."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def measure(bench: Bench, names: str) -> None:
    """Measure the cases, print the table and write `.bench/results.json`."""
    rows = [bench.against_the_peer(name) for name in names if name in CASES]
    scaling = bench.scaling() if "d" in names else None
    rows += [scaling] if scaling else []
    if not rows:
        return
    print("", HEADINGS, *(row.text() for row in rows), sep="\n", flush=True)
    results = {
        "machine": {"processor": processor(), "cores": bench.cores},
        "python": platform.python_version(),
        "runs": bench.runs,
        "cases": {row.case: asdict(row) | bench.details[row.case] for row in rows},
    }
    BENCH.mkdir(exist_ok=True)
    (BENCH / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted pairs of a case")
    parser.add_argument(
        "--cases", default="abcdefgmq", help="some of a to g, m: meshes, q: the queue"
    )
    parser.add_argument("--profile", choices=list(CASES), help="only show our profile of a case")
    options = parser.parse_args()
    data = Path(os.environ.get("IGNEOUS_AIRFLOW_DATA", ROOT / ".." / "shared" / "data")).resolve()
    with tempfile.TemporaryDirectory(prefix="downsample-", dir=scratch_parent()) as scratch:
        bench = Bench(options.runs, data, Path(scratch))
        if options.profile:
            bench.profile(options.profile)
            return
        measure(bench, options.cases)
    others = {"m": ("bench_mesh",), "q": ("bench_queue", "bench_enqueue")}
    for name in (name for case in options.cases for name in others.get(case, ())):
        print(f"\n{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
