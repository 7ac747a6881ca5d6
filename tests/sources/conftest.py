import numpy as np
import pytest

from igneous_airflow.sources.opening import Reading, find_source, open_source
from igneous_airflow.storage.overlap import Overlap


@pytest.fixture(scope="session")
def opened():
    """Open what lies at a path."""
    return lambda path, **options: open_source(find_source(f"file://{path}"), Reading(**options))


@pytest.fixture(scope="session")
def assert_part():
    """Compare a box of a source with that of a (z, y, x) or (z, y, x, channel) array."""

    def check(source, array, part):
        voxels = array if array.ndim == 4 else array[..., np.newaxis]
        expected = voxels.transpose(2, 1, 0, 3)[part.slices_within(source.bounds)]
        with Overlap(1) as overlap:
            ((box, read),) = source.parts(part, overlap)
        assert box == part
        assert read.dtype == source.data_type
        assert read.flags.f_contiguous
        np.testing.assert_array_equal(read, expected.astype(read.dtype))

    return check
