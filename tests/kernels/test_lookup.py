"""Tables looked up voxel by voxel, against numpy on the whole array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.lookup import first_beyond, look_up, look_up_sections
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import sizes

LABELS = ["uint8", "uint16", "uint32", "uint64"]


@given(
    st.sampled_from(LABELS).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9),
            elements=st.integers(0, 200),
        )
    ),
    st.sampled_from(["<u4", "<u8", ">u8", "u1"]),
)
@settings(deadline=None)
def test_every_label_becomes_its_entry(labels, dtype):
    table = np.random.default_rng(3).integers(0, 255, 256).astype(dtype)
    labels = np.asfortranarray(labels)
    result = look_up(labels, table)
    np.testing.assert_array_equal(result, table[labels])
    assert result.dtype == table.dtype.newbyteorder("=")
    assert result.flags.f_contiguous


def test_many_voxels_are_looked_up_piece_by_piece():
    random = np.random.default_rng(1)
    table = random.integers(2**60, 2**64 - 1, 100_000, dtype=np.uint64)
    labels = random.integers(0, 100_000, (70, 60, 50, 2)).astype(np.uint32, order="F")
    np.testing.assert_array_equal(look_up(labels, table), table[labels])


def test_read_only_labels_and_tables_are_taken():
    labels, table = np.arange(8, dtype=np.uint8), np.arange(8, dtype=np.uint32)[::-1]
    labels.flags.writeable = table.flags.writeable = False
    assert look_up(labels, table).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("dtype", LABELS)
def test_the_first_label_beyond_the_table_is_found_in_the_order_of_voxels(dtype):
    labels = np.zeros((4, 3, 2), dtype, order="F")
    labels[3, 2, 1] = 9
    assert first_beyond(labels, 10) is None
    assert first_beyond(labels, 9) == (3, 2, 1)
    labels[1, 2, 0] = 200
    assert first_beyond(labels, 9) == (1, 2, 0)


@pytest.mark.parametrize("label", [2**63 - 1, 2**63, 2**64 - 1])
def test_labels_that_no_signed_integer_holds_are_beyond_any_table(label):
    labels = np.array([[1, label]], dtype=np.uint64)
    assert first_beyond(labels, 2**40) == (0, 1)


def test_no_labels_are_never_beyond():
    assert first_beyond(np.zeros((0, 3, 1), np.uint32), 1) is None


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
