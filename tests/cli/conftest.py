"""What the tests of the command line share: a tiny layer, and the command itself."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from igneous_airflow.cli import main
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.layers import random_voxels, write_layer


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are recorded, and no home beside it; `igneous-airflow` is found by its name."""
    folder = tmp_path / "state"
    monkeypatch.setenv("IGNEOUS_AIRFLOW_RUNS", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def cli(state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`igneous-airflow`, in this process; no error of ours may show a traceback."""

    def call(*arguments: str) -> Answer:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["igneous-airflow", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        answer = Answer(code, *capfd.readouterr())
        assert "Traceback" not in answer.out + answer.err
        return answer

    return call


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer of 4 tasks that make one mip."""
    path = tmp_path / "layer"
    write_layer(path, random_voxels(Vec3(64, 16, 8)))
    return path
