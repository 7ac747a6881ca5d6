import json
import os
import re
from pathlib import Path

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.stage import field_schemas
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer


def tree(path: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def test_the_stages_are_listed_with_what_they_do(cli):
    answer = cli("stages")
    assert answer.code == 0
    names = [line.split()[0] for line in answer.out.splitlines()]
    assert names == [name.replace("_", "-") for name in registered_stages()]
    assert "Make coarser mips of a layer, so that a viewer can zoom out." in answer.out


def test_every_stage_is_a_command(cli):
    for name in registered_stages():
        assert cli(name.replace("_", "-"), "--help").code == 0


def test_help_shows_every_field_with_description_and_default(cli):
    answer = cli("downsample", "--help")
    words = "".join(answer.out.split())  # lines are broken at hyphens too
    for name, schema in field_schemas(Downsample).items():
        if name == "layer":
            assert "[OPTIONS]LAYER" in words
            continue
        flag = schema.get("flag") or f"--{name.replace('_', '-')}"
        assert flag in words
        seen = re.sub("`(.*?)`", lambda m: f"--{m[1].replace('_', '-')}", schema["description"])
        help_text, _, rest = words.partition("".join(seen.split()))
        assert rest, name
        assert "`" not in seen
        if schema["type"] == "boolean" and "flag" not in schema:
            assert f"{flag}/--no-{flag[2:]}" in help_text
            default = flag[2:] if schema["default"] else f"no-{flag[2:]}"
            assert rest.startswith(f"[default:{default}]"), name
        elif schema["default"] is not None and "flag" not in schema:
            assert rest.startswith(f"[default:{schema['default']}"), name
        for choice in schema.get("enum", []):
            assert choice is None or choice in words


def test_a_dry_run_prints_the_plan_and_writes_nothing_at_all(cli, layer: Path, tmp_path: Path):
    before = tree(tmp_path)
    os.utime(layer, (0, 0))
    answer = cli("downsample", str(layer), "--num-mips", "1", "--dry-run")
    assert answer.code == 0
    assert answer.out.startswith("downsample: 4 tasks (a grid of 4,1,1 cells")
    assert "makes  16_16_40: 32,8,8 voxels, chunks of 8,8,8, raw" in answer.out
    assert tree(tmp_path) == before
    assert layer.stat().st_mtime == 0, "a file was there for a moment"


def test_a_dry_run_that_is_refused_says_why_and_exits_1(cli, layer: Path, tmp_path: Path):
    before = tree(tmp_path)
    answer = cli("downsample", str(layer), "--bounds", "0-8_0-16_0-8", "--dry-run")
    assert answer.code == 1
    assert "bounds: 0-8_0-16_0-8" in answer.err
    assert tree(tmp_path) == before


def test_a_refused_plan_exits_1_with_every_reason_and_writes_nothing(
    cli, layer: Path, tmp_path: Path
):
    before = tree(tmp_path)
    answer = cli(
        *("downsample", str(layer), "--bounds", "0-800_0-16_0-8"),
        *("--encoding", "compressed_segmentation"),
    )
    assert answer.code == 1
    assert "downsample cannot start, nothing was written" in answer.err
    assert "bounds: 0-800_0-16_0-8 reaches out of the volume" in answer.err
    assert "compressed_segmentation" in answer.err
    assert tree(tmp_path) == before


def test_a_layer_that_is_not_there_exits_1(cli, tmp_path: Path, state: Path):
    answer = cli("downsample", str(tmp_path / "nothing"))
    assert answer.code == 1
    assert f"there is no layer at file://{tmp_path}/nothing" in answer.err
    assert not state.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--chunk-size", "64,64"], "--chunk-size"),
        (["--chunk-size", "0,64,64"], "--chunk-size"),
        (["--factor", "3,3,1"], "--factor"),
        (["--factor", "2,2,1; rm -rf /"], "--factor"),
        (["--num-mips", "0"], "--num-mips"),
        (["--num-mips", "many"], "--num-mips"),
        (["--mip", "-2"], "--mip"),
        (["--bounds", "everything"], "--bounds"),
        (["--bounds", "5-5_0-1_0-1"], "--bounds"),
        (["--method", "magic"], "--method"),
        (["--axis", "x", "--factor", "2,2,2"], "axis"),
        (["--queue", "nonsense"], "--queue"),
        (["--queue", "memory://lost"], "--queue"),
        (["--queue", "sqlite://relative.db"], "--queue"),
        (["--processes", "0"], "--processes"),
        (["--runs", ""], "--runs"),
        (["--unheard-of"], "--unheard-of"),
    ],
)
def test_a_wrong_option_exits_2_and_is_named(
    cli, layer: Path, tmp_path: Path, options: list[str], named: str
):
    before = tree(tmp_path)
    answer = cli("downsample", str(layer), *options)
    assert answer.code == 2
    assert named in answer.err
    assert "Value error," not in answer.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "LAYER"),
        ("gs://", "names no layer"),
        ("zarr://x/y", "only Neuroglancer Precomputed"),
        ("file://relative", "not absolute"),
        ("a\nb\x1b[2J", "control characters"),
    ],
)
def test_a_wrong_layer_exits_2_and_says_why(cli, state: Path, text: str, words: str):
    answer = cli("downsample", text)
    assert answer.code == 2
    assert words in answer.err
    assert "\x1b" not in answer.err
    assert not state.exists()


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "' ; rm -rf ~ '", "%s%n{0}", "日本/層"])
def test_a_strange_path_is_taken_literally(cli, tmp_path: Path, monkeypatch, text: str):
    monkeypatch.chdir(tmp_path)
    answer = cli("downsample", text, "--dry-run")
    assert answer.code == 1
    assert f"there is no layer at file://{tmp_path}/{text}: " in answer.err


def test_lists_and_relative_paths_are_understood(cli, layer: Path, monkeypatch):
    monkeypatch.chdir(layer.parent)
    answer = cli(
        *("downsample", "layer", "--num-mips", "1", "--factor", "2,2,2", "--chunk-size", "8,8,4"),
        "--dry-run",
    )
    assert answer.code == 0
    assert "makes  16_16_80: 32,8,4 voxels, chunks of 8,8,4, raw" in answer.out


def test_a_run_is_worked_on_finished_and_summed_up(cli, layer: Path, state: Path):
    answer = cli("downsample", str(layer), "--num-mips", "1", "--processes", "1")
    assert answer.code == 0, answer.err
    assert "downsample: all 4 tasks are done and 4 chunks were found" in answer.out
    assert "8,192 voxels" in answer.out
    assert "100%" in answer.err
    (run,) = state.glob("[!.]*")
    assert f"recorded in {run}" in answer.out
    kept = {path.name for path in run.iterdir()} - {"workers"}  # notes of who was there
    assert kept == {"done", "run.json", "summary.json"}
    (entry,) = json.loads((layer / "provenance").read_text())["processing"]
    assert entry["method"]["num_mips"] == 1


def test_a_run_with_tasks_given_up_exits_1_with_their_errors_and_can_be_resumed(
    cli, layer: Path, state: Path
):
    chunk = layer / "8_8_40" / "0-8_0-8_0-8"
    content = chunk.read_bytes()
    chunk.unlink()
    answer = cli("downsample", str(layer), "--num-mips", "1", "--processes", "1")
    assert answer.code == 1
    (run,) = state.glob("[!.]*")
    assert "1 of 4 tasks" in answer.err
    assert "task 0, attempt 1: MissingChunk" in answer.err
    assert f"igneous-airflow resume {run}" in answer.err
    assert not (layer / "provenance").exists()

    status = cli("status", run.name)
    assert "state    failed" in status.out
    assert "failed   1 given up, 1 failed attempts" in status.out
    assert "task 0, attempt 1: MissingChunk" in status.out

    chunk.write_bytes(content)
    answer = cli("resume", run.name, "--processes", "1")
    assert answer.code == 0, answer.err
    assert "all 4 tasks are done" in answer.out


def test_with_a_queue_the_tasks_are_only_sent(cli, layer: Path, state: Path, tmp_path: Path):
    queue = f"sqlite://{tmp_path}/q.db"
    answer = cli("downsample", str(layer), "--num-mips", "1", "--queue", queue)
    assert answer.code == 0
    (run,) = state.glob("[!.]*")
    assert f"4 tasks are in {queue}" in answer.out
    assert open_queue(queue).counts().waiting == 4
    assert (layer / "16_16_40").exists() is False

    answer = cli("finish", str(run))
    assert answer.code == 1
    assert "4 of 4 tasks" in answer.err

    work = cli("worker", queue, "--until-done")
    assert work.code == 0
    assert work.out.count("outcome=done") == 4
    assert all(line.startswith("time=20") for line in work.out.splitlines())

    answer = cli("finish", run.name)
    assert answer.code == 0
    assert "all 4 tasks are done and 4 chunks were found" in answer.out
    assert Path(tmp_path, "q.db").exists()  # it may hold the tasks of others


def test_a_deletion_is_listed_and_needs_a_yes(cli, layer: Path, tmp_path: Path):
    before = tree(tmp_path)
    answer = cli("delete", str(layer), "--dry-run")
    assert answer.code == 0
    assert "deletes 8_8_40: 16 chunk files, 8.19 kB" in answer.out
    answer = cli("delete", str(layer))
    assert answer.code == 1
    assert "confirm: 16 chunk files" in answer.err
    assert tree(tmp_path) == before
    answer = cli("delete", str(layer), "--yes", "--processes", "1")
    assert answer.code == 0, answer.err
    assert "all 1 tasks are done and 0 chunks were found" in answer.out
    assert list((layer / "8_8_40").iterdir()) == []
    assert "--yes" in cli("delete", "--help").out
    assert "--confirm" not in cli("delete", "--help").out


def test_a_transfer_takes_negative_numbers_and_two_addresses(cli, layer: Path, monkeypatch):
    monkeypatch.chdir(layer.parent)
    answer = cli("transfer", "layer", "there", "--translate", "-5,0,3", "--processes", "1")
    assert answer.code == 0, answer.err
    info = json.loads((layer.parent / "there" / "info").read_text())
    assert info["scales"][0]["voxel_offset"] == [-5, 0, 3]


def test_objects_are_meshed_and_listed_by_two_commands(cli, tmp_path: Path, state: Path):
    voxels, big = random_voxels(Vec3(16, 16, 8), "uint64"), 2**64 - 1
    write_layer(tmp_path / "labels", voxels, LayerSpec("segmentation"))
    path = str(tmp_path / "labels")
    help_text = cli("mesh", "--help").out
    assert "--object-ids LABEL,LABEL,..." in help_text
    assert "--remap-table OLD:NEW,OLD:NEW,..." in help_text
    answer = cli("mesh", path, "--remap-table", f"{big}:5", "--shape", "8,8,8", "--processes", "1")
    assert answer.code == 0, answer.err
    assert "fragments were found" in answer.out
    assert answer.out.endswith(f"Next: igneous-airflow mesh-manifest {path}\n")
    answer = cli("mesh-manifest", path, "--magnitude", "1", "--processes", "1")
    assert answer.code == 0, answer.err
    assert "1 manifests were found" in answer.out
    assert (tmp_path / "labels/mesh_mip_0_err_40/5:0").exists()
    answer = cli("mesh", path, "--object-ids", "0")
    assert answer.code == 2
    assert "--object-ids: 0 is the background" in answer.err
