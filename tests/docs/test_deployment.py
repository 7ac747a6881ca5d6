"""What the deployment guides name is there, and their examples can be read."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from igneous_airflow.operators.provider import get_provider_info

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs").glob("deploy-kubernetes.md"))
OURS = "\n".join(path.read_text() for path in (ROOT / "operators").glob("*.py"))


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(), re.DOTALL)


@pytest.fixture(params=GUIDES, ids=lambda guide: guide.stem)
def guide(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_files_that_a_guide_names_are_there(guide: Path) -> None:
    named = set(re.findall(r"worker_image/[\w./-]+\.yaml", guide.read_text()))
    named |= {
        f"worker_image/manifests/{name}" for name in re.findall(r"`(\w+\.yaml)`", guide.read_text())
    }
    named -= {"worker_image/manifests/pod_template.yaml"}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_options_that_a_guide_sets_are_known(guide: Path) -> None:
    known = get_provider_info()["config"]["igneous"]["options"]
    for block in blocks(guide, "ini"):
        config = configparser.ConfigParser()
        config.read_string(re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE))
        assert config["igneous"].keys() <= known.keys()
        assert len(config["igneous"]) > 3


def test_policies_of_a_guide_are_json(guide: Path) -> None:
    for block in blocks(guide, "json"):
        assert json.loads(block)["Version"] == "2012-10-17"


def test_messages_that_a_guide_explains_are_ours(guide: Path) -> None:
    source = re.sub(r'"\s+f?"', "", OURS)
    for message in re.findall(r"^\| `(the [^`]*)`", guide.read_text(), re.MULTILINE):
        words = message.replace("the pod ", "").partition(":")[0]
        for part in words.split(" ... "):
            assert part.removeprefix("the ") in source, part


def test_the_folder_of_the_files_is_found_as_the_guide_says() -> None:
    (guide,) = GUIDES
    (command,) = (line for line in blocks(guide, "console") if "import igneous_airflow" in line)
    _, _, script = shlex.split(command.removeprefix("$ "))
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    folder = Path(answer.stdout.decode().strip())
    assert (folder / "Dockerfile").samefile(ROOT / "worker_image" / "Dockerfile")
