"""The documentation as it is built, and the examples on its pages."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stage import Stage, field_schemas
from igneous_airflow.stages import registered_stages
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` builds them: any warning is an error."""
    out = tmp_path_factory.mktemp("site")
    (command,) = re.findall(r"\$\(BIN\)/(sphinx-build .*html.*)", (ROOT / "Makefile").read_text())
    arguments = command.replace(".docs/html", str(out)).split()[1:]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_stage_and_every_parameter_is_in_the_reference(site: Path) -> None:
    assert registered_stages()
    for name, stage in registered_stages().items():
        page = (site / "reference" / f"{name.replace('_', '-')}.html").read_text()
        assert f"igneous_{name}" in page
        for field, schema in field_schemas(stage).items():
            assert f">{field}<" in page
            flag = f"--{field.replace('_', '-')}" if "default" in schema else field.upper()
            assert schema.get("flag", flag) in page


def test_bounds_defaults_and_choices_are_in_the_reference(site: Path) -> None:
    page = re.sub("<[^>]+>", "", (site / "reference" / "downsample.html").read_text())
    assert "whole number, at least -1 and at most 64; default: 0" in page
    assert "address; must be given" in page
    assert "one of auto, average, mode, min, max, striding; default: auto" in page


def test_chains_commands_and_options_are_in_the_reference(site: Path) -> None:
    chains = (site / "reference" / "chains.html").read_text()
    assert "ingest_dest" in chains
    assert "--run-id" in (site / "reference" / "commands.html").read_text()
    assert "AIRFLOW__IGNEOUS__RUNS" in (site / "reference" / "options.html").read_text()


def test_every_page_shows_the_files_it_promises(site: Path) -> None:
    assert "WatchedFolder" in (site / "schedule.html").read_text()
    assert "resource_group" in (site / "ci.html").read_text()
    for image in (DOCS / "images").glob("*.png"):
        assert (site / "_images" / image.name).stat().st_size > 10_000


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (tmp_path / "index.md").write_text("# Page\n\n[gone](gone.md)\n")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet"]
    done = subprocess.run(
        [*command, str(tmp_path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "gone.md" in done.stderr


def test_the_stage_that_is_shown_is_a_whole_one(tmp_path: Path) -> None:
    (example,) = blocks("python", "add-a-stage.md")
    names: dict[str, type[Stage]] = {}
    exec(example, names)
    voxels = random_voxels(Vec3(41, 35, 9), "uint8")
    write_layer(tmp_path / "image", voxels, LayerSpec(chunk_size=(16, 16, 8)))
    made = tmp_path / "inverted"
    stage = names["Invert"].model_validate({"src": f"{tmp_path}/image", "dest": str(made)})
    stage.plan().require_accepted()
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    stage.finish(by="me")
    layer = Layer.open(f"file://{made}")
    scale = layer.info.scales[0]
    assert np.array_equal(layer.read(scale, scale.bounds), 255 - voxels)


def test_the_volume_of_the_tutorial_is_what_the_tutorial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", "tutorial.md")
    exec(example, {})
    labels = np.load("strands.npy")
    assert labels.shape == (128, 128, 128)
    assert list(np.unique(labels)) == list(range(13))


def test_no_secret_is_written_into_the_examples_for_ci() -> None:
    github = yaml.safe_load((DOCS / "ci/github-actions.yml").read_text())
    (job,) = github["jobs"].values()
    given = job["steps"][-1]["env"]
    for name in ("AIRFLOW_USER", "AIRFLOW_PASSWORD"):
        assert given[name] == f"${{{{ secrets.{name} }}}}"
    assert "${{" not in "".join(step.get("run", "") for step in job["steps"]), "shell injection"
    gitlab = yaml.safe_load((DOCS / "ci/gitlab-ci.yml").read_text())["ingest"]
    assert not {"AIRFLOW_USER", "AIRFLOW_PASSWORD"} & gitlab["variables"].keys()
