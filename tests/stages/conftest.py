"""Real volumes, where they are present: in IGNEOUS_AIRFLOW_DATA, or beside the project."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

DATA = Path(
    os.environ.get("IGNEOUS_AIRFLOW_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)


@pytest.fixture
def em_stack() -> Path:
    """The folder of 20 sections of electron microscopy, 8 bits, 1024 x 1024."""
    folder = DATA / "em_vnc_stack"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture
def em_voxels(em_stack: Path) -> Any:
    """The same as an array (x, y, z, channel)."""
    sections = [tifffile.imread(path) for path in sorted(em_stack.glob("*.tif"))]
    return np.asfortranarray(np.stack(sections).transpose(2, 1, 0)[..., None])


@pytest.fixture
def neurons() -> Any:
    """A segmentation of neurons, 512 voxels cubed, decompressed where it is sliced."""
    import crackle

    path = DATA / "labels_512.npy.ckl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return crackle.CrackleArray(gzip.decompress(path.read_bytes()))
