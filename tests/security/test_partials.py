"""What killed writers leave half written goes by itself; what somebody still writes never does."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage import partials
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.storage.partials import partial_path, remove_abandoned, remove_if_abandoned
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.testing.stages import complete, worked_run

DAY = 24 * 3600
ROUNDS = Path(__file__).with_name("kill_rounds.py")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 12, 24])
def test_a_run_that_was_killed_again_and_again_leaves_nothing_half_written(
    tmp_path: Path, seed: int
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROUNDS), str(tmp_path), str(seed), "12"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 12
    assert [found for found in rounds if found["left"]] == [], "seeds are in each"
    assert sum(found["kills"] for found in rounds) > 12
    assert sum(len(found["met"]) for found in rounds) > 5, "no kill came before a rename"


def made_by(folder: Path, name: str, owner: str, *, age: float = 0) -> Path:
    path = folder / f".{name}.{owner}-7f01.partial"
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def machine() -> str:
    """This machine, as it names its partial files."""
    return Path(partial_path("/x")).name.removeprefix(".x.").rsplit("-", 2)[0]


def test_only_what_is_surely_abandoned_goes(tmp_path: Path, machine: str) -> None:
    dead, alive = dead_process(), os.getpid()
    kept = [
        made_by(tmp_path, "info", f"{machine}-{alive}"),
        made_by(tmp_path, "info", "another_host-1"),
        made_by(tmp_path, "provenance", "another_host-1", age=DAY - 60),
        made_by(tmp_path, "provenance", f"{machine}-1"),
    ]
    gone = [
        made_by(tmp_path, "info", f"{machine}-{dead}"),
        made_by(tmp_path, "ahead", "another_host-1", age=-2 * DAY),
        made_by(tmp_path, "old", "another_host-1", age=DAY + 60),
        made_by(tmp_path, "reused", f"{machine}-{alive}", age=DAY + 60),
    ]
    strange = [tmp_path / name for name in ("x.partial", ".partial", ".a.b-c-d.partial", "info")]
    for path in strange:
        path.touch()
    remove_abandoned(f"file://{tmp_path}")
    assert set(tmp_path.iterdir()) == {*kept, *strange}
    assert not any(path.exists() for path in gone)


def test_a_process_of_another_container_is_not_taken_for_one_of_here(
    tmp_path: Path, machine: str
) -> None:
    """Containers that share a host's name count their processes on their own."""
    there = made_by(tmp_path, "info", f"{machine}0-{dead_process()}")
    remove_abandoned(f"file://{tmp_path}")
    assert there.exists()


def test_a_writer_that_has_died_but_was_not_waited_for_is_dead(
    tmp_path: Path, machine: str
) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    left = made_by(tmp_path, "info", f"{machine}-{child}")
    remove_if_abandoned(str(left))
    os.waitpid(child, 0)
    assert not left.exists()


def test_what_a_thread_is_writing_stays_while_others_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalFolder(tmp_path)
    writes, goes_on = threading.Event(), threading.Event()
    rename = os.replace

    def replace(source: str, target: str) -> None:
        writes.set()
        assert goes_on.wait(60)
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    writer = threading.Thread(target=folder.write, args=("scale/chunk", StoredFile(b"chunk")))
    writer.start()
    assert writes.wait(60)
    for _ in range(3):
        remove_abandoned(f"file://{tmp_path}", depth=1)
        assert list(folder.names("scale")) == []
        assert list(folder.names_starting("scale", ["chunk"])) == []
    goes_on.set()
    writer.join()
    assert list(folder.names("scale")) == ["chunk"]


def test_every_kind_of_listing_cleans(tmp_path: Path, machine: str) -> None:
    folder = LocalFolder(tmp_path)
    for use in (
        lambda: list(folder.names("")),
        lambda: list(folder.names_starting("", ["1:"])),
        lambda: list(folder.sizes("")),
        lambda: list(folder.entries("")),
    ):
        left = made_by(tmp_path, "1:0", f"{machine}-{dead_process()}")
        use()
        assert not left.exists()


def test_who_may_not_remove_can_still_list(
    tmp_path: Path, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = made_by(tmp_path, "info", f"{machine}-{dead_process()}")

    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(partials.os, "unlink", refuse)
    assert list(LocalFolder(tmp_path).names("")) == []
    assert left.exists()


def test_a_link_is_not_cleaned_through(tmp_path: Path, machine: str) -> None:
    (tmp_path / "outside").mkdir()
    outside = made_by(tmp_path / "outside", "info", f"{machine}-{dead_process()}")
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "scale").symlink_to(tmp_path / "outside")
    remove_abandoned(f"file://{tmp_path}/layer", depth=5)
    assert outside.exists()


def test_a_proof_cleans_the_layer_and_leaves_what_is_written(tmp_path: Path, machine: str) -> None:
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(16, 16, 8)))
    layer = tmp_path / "layer"
    (layer / "16_16_40").mkdir()
    dead, alive = dead_process(), os.getpid()
    for name in ("info", "provenance", "probe", "16_16_40/0-8_0-8_0-8"):
        folder, _, base = name.rpartition("/")
        made_by(layer / folder, base, f"{machine}-{dead}")
    living = made_by(layer, "info", f"{machine}-{alive}")
    complete(Downsample(layer=url, num_mips=1))
    assert list(layer.rglob("*.partial")) == [living]


def test_a_proof_cleans_the_folders_of_its_run_and_of_all_runs(
    tmp_path: Path, machine: str
) -> None:
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(16, 16, 8)))
    run = worked_run(Downsample(layer=url, num_mips=1), tmp_path)
    runs, owner = Path(run.runs_folder.removeprefix("file://")), f"{machine}-{dead_process()}"
    made_by(runs, ".runs.json", owner)
    made_by(runs / run.id, "run.json", owner)
    run.finish()
    assert list(runs.rglob("*.partial")) == []
