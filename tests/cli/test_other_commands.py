import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igneous_airflow.cli import main
from igneous_airflow.cli.addresses import program
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer


def test_the_version_is_the_packages(cli):
    assert cli("--version").out.strip().endswith(version("igneous-airflow"))


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(cli, flag: str):
    answer = cli(flag)
    assert answer.code == 0
    for command in ("worker", "status", "resume", "finish", "stages", "downsample", "picture"):
        assert f"  {command} " in answer.out


def test_an_unknown_command_exits_2(cli):
    answer = cli("upsample")
    assert answer.code == 2
    assert "upsample" in answer.err


def test_a_stage_is_found_by_its_own_name(cli):
    answer = cli("mesh_manifest", "--help")
    assert answer.code == 0
    assert "Put the fragments of each label together" in answer.out


def test_a_command_that_the_shell_would_not_find_is_named_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    command = Path(sys.executable).with_name("igneous-airflow")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert program() == str(command)
    monkeypatch.chdir(command.parent.parent)
    assert program() == str(command.relative_to(Path.cwd()))
    monkeypatch.setenv("PATH", str(command.parent))
    assert program() == "igneous-airflow"


def test_the_folder_of_the_dags_holds_them(cli):
    answer = cli("dags-folder")
    folder = Path(answer.out.strip())
    assert answer.code == 0
    assert folder.is_absolute()
    assert (folder / "stages.py").exists()


def test_the_module_is_the_command_and_needs_no_airflow():
    code = "import sys, igneous_airflow.cli; sys.exit('airflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    answer = subprocess.run(
        [sys.executable, "-m", "igneous_airflow", "stages"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "\ndownsample " in answer.stdout


def test_errors_that_are_not_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["igneous_airflow.cli.stages"]
    monkeypatch.setattr(module, "registered_stages", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["igneous-airflow", "stages"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("queue", ["", "nonsense", "memory://x", "sqlite://relative", "http://x"])
def test_an_address_that_is_no_queue_exits_2(cli, queue: str):
    answer = cli("worker", queue, "--until-done")
    assert answer.code == 2
    assert "QUEUE" in answer.err


@pytest.mark.parametrize(
    "options",
    [
        ["--processes", "0"],
        ["--lease-seconds", "0"],
        ["--lease-seconds", "43201"],
        ["--max-attempts", "0"],
    ],
)
def test_wrong_options_of_a_worker_exit_2(cli, tmp_path: Path, options: list[str]):
    answer = cli("worker", f"sqlite://{tmp_path}/q.db", *options)
    assert answer.code == 2
    assert options[0] in answer.err


@pytest.mark.parametrize("options", [[], ["--until-done"]])
def test_a_queue_that_nobody_made_is_refused_and_not_made(cli, tmp_path: Path, options: list[str]):
    answer = cli("worker", f"sqlite://{tmp_path}/misspelt/q.db", *options)
    assert answer.code == 1
    assert f"there is no queue sqlite://{tmp_path}/misspelt/q.db: nobody has made it" in answer.err
    assert not (tmp_path / "misspelt").exists()


def test_a_worker_is_told_where_runs_are_recorded(cli, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("IGNEOUS_AIRFLOW_RUNS")
    answer = cli("worker", f"sqlite://{tmp_path}/q.db", "--until-done")
    assert answer.code == 2
    assert "Missing option '--runs'" in answer.err


def test_a_worker_of_another_runs_folder_ends_and_leaves_the_queue(
    cli, layer: Path, tmp_path: Path
):
    queue = f"sqlite://{tmp_path}/q.db"
    assert cli("downsample", str(layer), "--num-mips", "1", "--queue", queue).code == 0
    waiting = open_queue(queue).counts().waiting
    answer = cli("worker", queue, "--runs", f"{tmp_path}/away", "--processes", "2", "--until-done")
    assert answer.code == 1
    assert answer.err.count(f"file://{tmp_path}/away is not a runs folder") == 1
    counts = open_queue(queue).counts()
    assert (counts.waiting, counts.leased, counts.dead) == (waiting, 0, 0)
    assert cli("worker", queue, "--until-done").code == 0


def test_a_message_that_is_not_a_task_is_refused_and_counted_apart(cli, tmp_path: Path):
    url = f"sqlite://{tmp_path}/q.db"
    open_queue(url).send(["delete everything\n\x1b[2J"])
    answer = cli("worker", url, "--until-done")
    assert answer.code == 0
    assert answer.err.startswith("1 message was refused, for the reasons above")
    assert len(answer.out.splitlines()) == 1
    assert "outcome=refused" in answer.out
    assert "\x1b" not in answer.out
    assert open_queue(url).counts().dead == 1


# Pictures


def test_a_picture_has_a_row_a_layer_and_a_panel_a_mip(cli, layer: Path, tmp_path: Path):
    labels = tmp_path / "labels"
    write_layer(labels, random_voxels(Vec3(20, 20, 3), "uint64"), LayerSpec("segmentation"))
    assert cli("downsample", str(layer), "--num-mips", "1", "--processes", "1").code == 0
    out = tmp_path / "out.png"
    answer = cli("picture", str(layer), str(labels), "--out", str(out))
    assert answer.code == 0
    assert answer.out == f"wrote {out}\n"
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (2 * 344 - 6, 2 * 326 - 6, 3)
    images, segments = pixels[18:338], pixels[362:]
    assert (images[:, :320, 0] == images[:, :320, 1]).all()  # grey
    assert len(np.unique(segments[:, :320].reshape(-1, 3), axis=0)) > 10
    assert (segments[:, 326:] == 255).all()  # nothing is there


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_picture_of_a_layer_far_from_the_origin_with_odd_edges(cli, tmp_path: Path, dtype: str):
    layer = tmp_path / "odd"
    spec = LayerSpec(voxel_offset=Vec3(3, 5, 3))
    write_layer(layer, random_voxels(Vec3(41, 7, 4), dtype), spec)
    options = ("--num-mips", "3", "--factor", "2,2,2", "--processes", "1")
    assert cli("downsample", str(layer), *options).code == 0
    out = tmp_path / "out.png"
    answer = cli("picture", str(layer), "--out", str(out), "--width", "5")
    assert answer.code == 0, answer.err
    pixels = np.asarray(Image.open(out))[18:]
    assert pixels.shape == (320, 4 * 326 - 6, 3)
    assert (pixels[:, 320:326] == 255).all()


def test_a_picture_shows_missing_chunks_as_background(cli, tmp_path: Path):
    layer = tmp_path / "layer"
    voxels = np.full((32, 32, 1, 1), 200, "uint8", order="F")
    write_layer(layer, voxels, LayerSpec(chunk_size=Vec3(16, 16, 1)))
    (layer / "8_8_40" / "0-16_0-16_0-1").unlink()
    out = tmp_path / "out.png"
    assert cli("picture", str(layer), "--out", str(out)).code == 0
    pixels = np.asarray(Image.open(out))[18:]
    assert (pixels[30:150, 5:150] == 0).all()
    assert (pixels[170:, 170:] == 200).all()


def test_a_picture_of_nothing_or_to_nowhere_exits_1(cli, layer: Path, tmp_path: Path):
    assert "there is no layer" in cli("picture", str(tmp_path / "nothing")).err
    answer = cli("picture", str(layer), "--out", str(tmp_path / "no" / "where.png"))
    assert answer.code == 1
    assert f"cannot write {tmp_path}/no/where.png" in answer.err


@pytest.fixture
def meshed(cli, tmp_path: Path) -> Path:
    """Two labels, of which the larger one has the smaller number, with meshes and manifests."""
    labels = tmp_path / "meshed"
    voxels = np.zeros((40, 40, 12, 1), "uint64", order="F")
    voxels[4:36, 4:20], voxels[10:16, 26:32, 3:9] = 3, 2**60 + 1
    write_layer(labels, voxels, LayerSpec("segmentation"))
    assert cli("mesh", str(labels), "--shape", "20,20,12", "--processes", "1").code == 0
    assert cli("mesh-manifest", str(labels), "--processes", "1").code == 0
    return labels


def test_a_picture_of_a_layer_with_meshes_shows_them_beside_in_the_same_colours(
    cli, layer: Path, meshed: Path, tmp_path: Path
):
    out = tmp_path / "out.png"
    assert cli("picture", str(layer), str(meshed), "--out", str(out)).code == 0
    pixels = np.asarray(Image.open(out))
    side = 2 * 344 - 18 - 6
    assert pixels.shape == (side + 18, 326 + side, 3)
    section, meshes = pixels[362:, :320].astype(int), pixels[18:, 326:].astype(int)
    colours = [c for c in np.unique(section.reshape(-1, 3), axis=0) if c.any()]
    assert len(colours) == 2
    shares = []
    for colour in colours:
        brightness = (meshes @ colour) / (colour @ colour)
        off = np.abs(meshes - brightness[..., np.newaxis] * colour).max(axis=2)
        shares.append(((off < 4) & (brightness > 0.3) & (brightness < 1.05)).mean())
    assert max(shares) > 0.05
    assert 0.001 < min(shares) < max(shares)


def test_a_picture_shows_as_many_mips_and_meshes_as_are_asked_for(
    cli, meshed: Path, tmp_path: Path
):
    assert cli("downsample", str(meshed), "--num-mips", "2", "--processes", "1").code == 0
    out = tmp_path / "out.png"

    def width(*options: str) -> int:
        assert cli("picture", str(meshed), "--out", str(out), *options).code == 0
        return np.asarray(Image.open(out)).shape[1]

    assert width() == 3 * 326 + 320
    assert width("--mips", "2") == 2 * 326 + 320
    assert width("--meshes", "0") == 3 * 326 - 6


def test_a_picture_names_a_fragment_that_is_missing(cli, meshed: Path, tmp_path: Path):
    fragment = min(meshed.glob("mesh_mip_0_err_40/3:0:*"))
    fragment.unlink()
    answer = cli("picture", str(meshed), "--out", str(tmp_path / "out.png"))
    assert answer.code == 1
    assert fragment.name.removesuffix(".gz") in answer.err
