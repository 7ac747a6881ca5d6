"""Every example of the README and of CONTRIBUTING.md that a newcomer can copy is run here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


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
    Layer.create(f"file://{tmp_path}/segmentation", labels).write(scale, voxels // 128)
    return tmp_path


def test_the_commands_of_the_readme_work_in_their_order(folder_with_a_layer: Path) -> None:
    local, queued, *later = blocks("console")
    queue = f"sqlite://{folder_with_a_layer}/queue.db"
    queued = queued.replace("sqlite:///tmp/queue.db", queue)
    for block in (local, queued, *later):
        for line in block.splitlines():
            done = subprocess.run(
                ["bash", "-c", line.removeprefix("$ ")],
                cwd=folder_with_a_layer,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": str(folder_with_a_layer),
                },
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (folder_with_a_layer / "layer.png").exists()
    assert len(Layer.open(f"file://{folder_with_a_layer}/layer").info.scales) == 4
    assert len(Layer.open(f"file://{folder_with_a_layer}/deep").info.scales) == 1
    assert (folder_with_a_layer / "segmentation/mesh_mip_0_err_40/1:0").exists()


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

    (example,) = blocks("python", (ROOT / "CONTRIBUTING.md").read_text())
    names = {"ClassVar": ClassVar, "LayerUrl": LayerUrl, "Stage": Stage}
    exec(example, names)
    made = names["Invert"]
    assert isinstance(made, type)
    assert issubclass(made, Stage)
    assert made.name == "invert"


def test_every_target_that_the_documents_name_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"):
        named |= set(re.findall(r"[`\n]make ([a-z]+)", (ROOT / document).read_text()))
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
