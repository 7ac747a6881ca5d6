"""The commands on the trash of a layer, and the words in which the command line asks."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from igneous_airflow.audit_log import read_entries
from igneous_airflow.run import Run
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.provenance import author
from igneous_airflow.testing.stages import complete, snapshot


def entry_of(age: timedelta, letters: str = "abcdef") -> str:
    return f"{(datetime.now(UTC) - age).strftime('%Y%m%dT%H%M%SZ')}-{letters}"


def delete(layer: Path, entry: str, mip: int = 0) -> None:
    complete(Delete(layer=str(layer), mip=mip, confirm=True, trash_entry=entry))


@pytest.fixture
def deleted(layer: Path) -> str:
    """Delete the first of three mips of the layer; returns the entry of the trash."""
    complete(Downsample(layer=str(layer), num_mips=2))
    entry = entry_of(timedelta(days=40))
    delete(layer, entry)
    return entry


def test_the_trash_is_listed_and_an_entry_of_it_restored(cli, layer: Path, deleted: str):
    listed = cli("trash", "list", str(layer))
    assert listed.code == 0
    assert f"{deleted}  " in listed.out
    assert "16 files, " in listed.out
    assert "chunks of 8_8_40 (delete by tester)" in listed.out
    (row,) = json.loads(cli("trash", "list", str(layer), "--json").out)
    assert (row["entry"], row["files"], row["what"]) == (deleted, 16, "chunks of 8_8_40")
    assert row["bytes"] == sum(
        path.stat().st_size for path in layer.glob(f".trash/{deleted}/files/*/*")
    )
    answer = cli("trash", "restore", str(layer), deleted)
    assert answer.code == 0
    assert "16 files are back" in answer.out
    assert len(list((layer / "8_8_40").iterdir())) == 16
    again = cli("trash", "restore", str(layer), deleted)
    assert (again.code, again.out) == (0, f"{deleted} was restored before.\n")
    assert "is empty" in cli("trash", "list", str(layer)).out
    assert cli("trash", "list", str(layer), "--json").out == "[]\n"


def test_the_audit_log_says_who_restored_and_emptied(cli, layer: Path, state: Path, deleted: str):
    cli("trash", "restore", str(layer), deleted)
    delete(layer, entry_of(timedelta(days=1)))
    cli("trash", "empty", str(layer), "--yes")
    entries = read_entries(f"file://{state}")
    assert {(entry.action, entry.what) for entry in entries} == {
        ("restored", f"file://{layer}"),
        ("emptied", f"file://{layer}"),
    }
    assert {entry.by for entry in entries} == {author()}
    assert next(entry.why for entry in entries if entry.action == "restored") == deleted


def test_what_was_written_since_needs_a_yes(cli, layer: Path, deleted: str):
    (layer / "8_8_40").mkdir(exist_ok=True)
    name = sorted((layer / ".trash" / deleted / "files/8_8_40").iterdir())[0].name
    (layer / "8_8_40" / name).write_text("new")
    before = snapshot(layer)
    answer = cli("trash", "restore", str(layer), deleted)
    assert answer.code == 1
    assert f"8_8_40/{name} were written since: set --yes" in answer.err
    assert snapshot(layer) == before
    assert cli("trash", "restore", str(layer), deleted, "--yes").code == 0
    (row,) = json.loads(cli("trash", "list", str(layer), "--json").out)
    assert (row["files"], row["stage"]) == (1, "restore")


def test_the_trash_is_emptied_of_what_is_old_enough_after_a_yes(cli, layer: Path, deleted: str):
    new = entry_of(timedelta(days=1), "000000")
    delete(layer, new)
    before = snapshot(layer)
    answer = cli("trash", "empty", str(layer), "--older", "30d")
    assert answer.code == 1
    assert "1 entry of the trash, 16 files, " in answer.err
    assert "deleted for good: set --yes" in answer.err
    assert snapshot(layer) == before
    answer = cli("trash", "empty", str(layer), "--older", "30d", "--yes")
    assert answer.code == 0
    assert "Deleted 1 entry of the trash, 16 files" in answer.out
    assert [path.name for path in (layer / ".trash").iterdir()] == [new]
    assert "nothing to delete" in cli("trash", "empty", str(layer), "--older", "2w", "--yes").out
    assert cli("trash", "empty", str(layer), "--older", "12h", "--yes").code == 0
    assert not list((layer / ".trash").iterdir())


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5d", "1y", ""])
def test_an_age_without_a_unit_of_time_is_refused(cli, layer: Path, age: str):
    answer = cli("trash", "empty", str(layer), "--older", age, "--yes")
    assert answer.code == 2
    assert "as 12h or 30d" in answer.err


def test_a_damaged_entry_is_listed_and_can_be_emptied(cli, layer: Path, deleted: str):
    path = layer / ".trash" / deleted / "entry.json"
    path.write_text("{")
    assert "damaged: " in cli("trash", "list", str(layer)).out
    (row,) = json.loads(cli("trash", "list", str(layer), "--json").out)
    assert "damaged" in row
    assert cli("trash", "restore", str(layer), deleted).code == 1
    path.unlink()
    assert "does not say what it is" in cli("trash", "list", str(layer)).out
    answer = cli("trash", "empty", str(layer), "--yes")
    assert f"{deleted} stays: " in answer.out
    assert "nothing to delete" in answer.out
    assert cli("trash", "empty", str(layer), "--yes", "--unfinished").code == 0
    assert not list((layer / ".trash").iterdir())


@pytest.mark.parametrize("text", ["{", "", "{}", None], ids=str)
def test_files_of_an_entry_that_does_not_say_what_it_is_are_brought_back(
    cli, layer: Path, deleted: str, text: str | None
):
    path = layer / ".trash" / deleted / "entry.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
        answer = cli("trash", "restore", str(layer), deleted, "--unfinished")
        assert answer.code == 1
        assert "Put the file right, or remove it: without it, " in answer.err
        path.unlink()
    answer = cli("trash", "restore", str(layer), deleted)
    assert answer.code == 1
    assert "entry.json is missing: without it, `trash restore --unfinished` brings" in answer.err
    answer = cli("trash", "restore", str(layer), deleted, "--unfinished")
    assert (answer.code, "16 files are back" in answer.out) == (0, True)
    assert len(list((layer / "8_8_40").iterdir())) == 16
    assert not list((layer / ".trash").iterdir())


def test_an_entry_that_a_run_still_fills_is_not_emptied_and_shows_the_run(
    cli, layer: Path, state: Path, deleted: str
):
    stage = Delete(layer=str(layer), confirm=True)
    run, _ = Run.launch(stage, url=f"file://{state}/r", queue="memory://trash", by="tester")
    run.prepare()
    stage = run.make_stage()
    stage.run(stage.cells()[0])
    assert "(delete run r; the run is not finished)" in cli("trash", "list", str(layer)).out
    answer = cli("trash", "empty", str(layer), "--yes")
    assert (answer.code, f"{stage.trash_entry} stays: a run may" in answer.out) == (0, True)
    assert "Deleted 1 entry of the trash, 16 files" in answer.out
    answer = cli("trash", "restore", str(layer), stage.trash_entry)
    assert answer.code == 1
    assert "the delete run r may still move files there" in answer.err
    answer = cli("trash", "empty", str(layer), "--yes", "--unfinished")
    assert "Deleted 1 entry of the trash" in answer.out


def test_a_bucket_and_a_wrong_entry_are_refused_with_the_way_out(cli, layer: Path):
    answer = cli("trash", "list", "mem://bucket/layer")
    assert answer.code == 1
    assert "unless the bucket keeps versions" in answer.err
    answer = cli("trash", "restore", str(layer), "../x")
    assert answer.code == 1
    assert "is not the name of an entry" in answer.err


# What the command line is asked and asks


def test_the_command_line_keeps_deleted_files_on_request_only(cli, layer: Path, deleted: str):
    assert cli("delete", str(layer), "--yes", "--processes", "1").code == 0
    assert [path.name for path in (layer / ".trash").iterdir()] == [deleted]
    answer = cli("delete", str(layer), "--yes", "--keep-deleted", "--processes", "1")
    assert answer.code == 0
    assert "moved to the trash: " in answer.out
    assert len(list((layer / ".trash").iterdir())) == 2
    assert "no-keep-deleted]" in "".join(cli("delete", "--help").out.split())


def test_a_replacement_is_asked_for_in_the_words_of_the_command_line(cli, layer: Path):
    wishes = ("downsample", str(layer), "--num-mips", "1", "--processes", "1")
    assert cli(*wishes).code == 0
    assert cli(*wishes).code == 0  # of the same parameters
    before = snapshot(layer)
    answer = cli(*wishes, "--method", "min")
    assert answer.code == 1
    assert "confirm: the voxels of mip 1 of " in answer.err
    assert "Set --yes to replace them" in answer.err
    assert snapshot(layer) == before
    planned = cli(*wishes, "--method", "min", "--dry-run")
    assert planned.code == 0
    assert "  replaces 16_16_40: " in planned.out
    assert "Set --yes to replace them" in planned.out
    assert cli(*wishes, "--method", "min", "--yes").code == 0
