"""Every example of the README and of CONTRIBUTING.md that a newcomer can copy is run here."""

import io
import json
import lzma
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
STAGES = (ROOT / "docs" / "stages.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def folder_with_a_layer(tmp_path: Path) -> Path:
    size = Vec3(70, 50, 9)
    scale = Scale("4_4_40", (4.0, 4.0, 40.0), size, Vec3(3, -5, 1), Vec3.full(16), "raw")
    info = Info.new(data_type="uint8", layer_type="image", scale=scale)
    voxels = np.random.default_rng(1).integers(0, 255, tuple(size), dtype=np.uint8)
    Layer.create(f"file://{tmp_path}/layer", info).write(scale, voxels)
    labels = Info.new(data_type="uint8", layer_type="segmentation", scale=scale)
    Layer.create(f"file://{tmp_path}/labels", labels).write(scale, voxels)
    floats = Info.new(data_type="float32", layer_type="image", scale=scale, channels=3)
    affinities = np.zeros((*size, 3), np.float32)
    Layer.create(f"file://{tmp_path}/affinities", floats).write(scale, affinities)
    write_a_cube(tmp_path / "cubes" / "first")
    return tmp_path


def write_a_cube(folder: Path) -> None:
    (folder / "jpg").mkdir(parents=True)
    metadata = {
        "chunk_voxel_dimensions": [24, 24, 24],
        "voxel_resolution": [16, 16, 40],
        "physical_offset_min": [-4, -4, -4],
        "physical_offset_max": [20, 20, 20],
        "segment_id_type": "UInt16",
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    labels = lzma.compress(bytes(2 * 24**3), format=lzma.FORMAT_ALONE)
    (folder / "segmentation.lzma").write_bytes(labels)
    for z in range(24):
        Image.new("L", (24, 24)).save(folder / "jpg" / f"{z}.jpg")


def write_files_of_other_formats(folder: Path) -> None:
    """Write what the README ingests."""
    grey = np.random.default_rng(1).integers(0, 255, (8, 40, 50), dtype=np.uint8)  # z, y, x
    (folder / "stack").mkdir()
    for z, section in enumerate(grey):
        tifffile.imwrite(folder / f"stack/em_{z}.tif", section)
    tifffile.imwrite(folder / "pages.tif", grey, photometric="minisblack")
    np.save(folder / "labels.npy", grey.astype(np.uint64))
    with h5py.File(folder / "volume.h5", "w") as file:
        file["volumes/raw"], file["volumes/labels"] = grey, grey
    nifti = nibabel.Nifti1Image(grey.T, np.diag([0.004, 0.004, 0.04, 1]))
    nifti.header.set_xyzt_units("mm")
    nibabel.save(nifti, folder / "brain.nii.gz")
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [0.04, 0.004, 0.004]}]
    group = zarr.open_group(folder / "image.ome.zarr", mode="w")
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    group.create_array("0", data=grey)
    (folder / "seed/build").mkdir(parents=True)
    for x in (0, 25):
        stream = io.BytesIO()
        np.save(stream, grey.T[x : x + 25, :, :, np.newaxis])
        name = f"{3 + x}-{28 + x}_23-63_5-13"
        (folder / "seed/build" / name).write_bytes(zlib.compress(stream.getvalue()))


def blocks_that_ingest() -> list[str]:
    return [block for block in blocks("console", STAGES) if "-airflow ingest " in block]


def run_lines(block: str, folder: Path) -> None:
    """Run commands one after the other, as somebody would in a folder of their own."""
    for line in block.splitlines():
        done = subprocess.run(
            ["bash", "-c", line.removeprefix("$ ")],
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(folder),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(900)  # many runs, each with worker processes
def test_the_commands_of_the_documents_work_in_their_order(folder_with_a_layer: Path) -> None:
    local, queued = blocks("console")
    queue = f"sqlite://{folder_with_a_layer}/queue.db"
    queued = queued.replace("sqlite:///tmp/queue.db", queue)
    for block in (local, queued, *blocks("console", STAGES)):
        if block not in blocks_that_ingest():
            run_lines(block, folder_with_a_layer)
    assert (folder_with_a_layer / "layer.png").exists()
    assert len(Layer.open(f"file://{folder_with_a_layer}/layer").info.scales) == 4
    assert len(Layer.open(f"file://{folder_with_a_layer}/deep").info.scales) == 1
    for name in ("levels.png", "contrast.png", "meshes.png"):
        assert (folder_with_a_layer / name).exists()
    assert (folder_with_a_layer / "labels/mesh_mip_0_err_40/1:0").exists()


@pytest.mark.timeout(900)  # nine runs, each with worker processes
def test_the_commands_that_ingest_work(tmp_path: Path) -> None:
    write_files_of_other_formats(tmp_path)
    (block,) = blocks_that_ingest()
    run_lines(block, tmp_path)
    for ingested in ("em", "part", "pages", "labels", "raw", "brain", "ome", "seed"):
        assert len(Layer.open(f"file://{tmp_path}/{ingested}").info.scales) == 6


def test_the_commands_for_own_data_work(tmp_path: Path) -> None:
    (tmp_path / "sections").mkdir()
    for z in range(5):
        grey = np.random.default_rng(z).integers(0, 255, (60, 70), dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / "sections" / f"s{z}.png")
    look, work = blocks("console", (ROOT / "docs/own-data.md").read_text())
    run_lines(look, tmp_path)
    assert not (tmp_path / "em").exists()
    run_lines(work, tmp_path)
    assert (tmp_path / "em.png").exists()
    assert len(Layer.open(f"file://{tmp_path}/em").info.scales) == 6


def test_the_commands_that_undo_a_delete_work(folder_with_a_layer: Path) -> None:
    restored, emptied = blocks("console", (ROOT / "docs/undo.md").read_text())
    run_lines(restored, folder_with_a_layer)
    layer = folder_with_a_layer / "layer"
    assert len(Layer.open(f"file://{layer}").info.scales) == 3
    assert not list((layer / ".trash").iterdir())
    assert len(list((layer / "8_8_40").iterdir())) == 6
    run_lines(emptied, folder_with_a_layer)


def test_the_python_example_of_the_readme_works(
    folder_with_a_layer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks("python")
    exec(example.replace("/data/layer", f"{folder_with_a_layer}/layer"), {})
    assert "outputs={'8_8_40': 6, '16_16_40': 2}" in capsys.readouterr().out


def test_the_stage_example_of_contributing_is_a_stage() -> None:
    from typing import ClassVar

    from igneous_airflow.fields import LayerUrl
    from igneous_airflow.stage import Stage

    example, _ = blocks("python", (ROOT / "CONTRIBUTING.md").read_text())
    names = {"ClassVar": ClassVar, "LayerUrl": LayerUrl, "Stage": Stage}
    exec(example, names)
    made = names["Invert"]
    assert isinstance(made, type)
    assert issubclass(made, Stage)
    assert made.name == "invert"


def test_the_chain_example_of_contributing_is_the_chain_of_the_tests() -> None:
    _, example = blocks("python", (ROOT / "CONTRIBUTING.md").read_text())
    assert example in (ROOT / "tests/operators/chains/copy.py").read_text()


def test_every_chain_is_in_the_table_of_the_readme() -> None:
    chains = {file.stem for file in (ROOT / "dags").glob("[!_]*.py")} - {"stages"}
    assert chains
    for name in chains:
        assert f"| `igneous_{name}` |" in README


def test_every_target_that_the_documents_name_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    documents = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
    for document in [*documents, "docs/deploy-aws.md"]:
        named |= set(re.findall(r"[`\n]make ([a-z0-9]+)", (ROOT / document).read_text()))
    assert named
    assert named <= targets


def test_every_stage_is_in_the_table_of_the_readme() -> None:
    from igneous_airflow.stages import registered_stages

    assert registered_stages()
    for name in registered_stages():
        assert f"| `{name}` |" in README


def test_the_picture_of_the_readme_is_there() -> None:
    (path,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert (ROOT / path).stat().st_size > 10_000


def test_the_lock_file_names_no_registry() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "--index-url" not in lock
