"""Looking voxels up is indexing a table with them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.lookup import look_up_sections
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import sizes


@given(sizes(33), st.sampled_from(["uint8", "uint16"]), st.sampled_from("CF"), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_each_section_has_a_table_of_its_own(size, dtype, order, seed):
    voxels = np.array(random_voxels(size, dtype), order=order)
    voxels.flags.writeable = False
    random = np.random.default_rng(seed)
    bins = np.iinfo(dtype).max + 1
    tables = random.integers(0, bins, (size.z, bins)).astype(dtype)
    result = look_up_sections(voxels, list(tables))
    assert result.flags.f_contiguous
    assert result.dtype == voxels.dtype
    for z in range(size.z):
        np.testing.assert_array_equal(result[:, :, z], tables[z][voxels[:, :, z]])


def test_large_sections_are_looked_up_in_pieces():
    voxels = random_voxels(Vec3(700, 500, 1), "uint16")
    table = np.arange(65536, dtype=np.uint16)[::-1]
    np.testing.assert_array_equal(look_up_sections(voxels, [table]), table[voxels])
