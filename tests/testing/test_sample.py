"""The sample volume: the same bytes for the same seed, and an image that fits its labels."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.sample import DEFAULT, SampleVolume

SMALL = replace(DEFAULT, size=Vec3(301, 283, 11))
#: Changes only when the sample is changed on purpose, for all users of it.
SMALL_DIGEST = "b59dfe55fb363079d9ea2a48a7f244f7ce8bda0b23a822a651d8621857da2ed8"


def digest(sample: SampleVolume) -> str:
    return sha256(b"".join(volume.tobytes("F") for volume in sample.volumes())).hexdigest()


@pytest.fixture(scope="module")
def volumes():
    return SMALL.volumes()


def test_a_seed_gives_the_committed_bytes_every_time():
    assert digest(SMALL) == SMALL_DIGEST
    assert digest(SMALL) == SMALL_DIGEST


def test_another_seed_gives_other_bytes():
    assert digest(replace(SMALL, seed=SMALL.seed + 1)) != SMALL_DIGEST


def test_the_default_is_odd_large_and_away_from_the_origin():
    assert DEFAULT.size == Vec3(1037, 1029, 131)
    assert DEFAULT.voxel_offset == Vec3(13, -7, 5)
    assert DEFAULT.resolution == (4, 4, 40)


def test_image_and_labels_alone_are_those_made_together(volumes):
    image, labels = volumes
    assert np.array_equal(SMALL.image(), image)
    assert np.array_equal(SMALL.labels(), labels)


@pytest.mark.parametrize(
    "size", [SMALL.size, Vec3(70, 50, 9), Vec3(3, 1, 2), Vec3(1, 1, 1)], ids=str
)
def test_volumes_of_any_size_are_x_y_z_in_fortran_order(size):
    image, labels = replace(DEFAULT, size=size).volumes()
    assert (image.dtype, labels.dtype) == (np.uint8, np.uint64)
    for volume in (image, labels):
        assert volume.shape == tuple(size)
        assert volume.flags.f_contiguous


def test_many_labels_are_above_what_a_double_can_hold(volumes):
    numbers = np.unique(volumes[1])
    assert len(numbers) > 20
    assert (numbers > 2**53).sum() > 20


def test_cells_touch_with_thin_membranes_between_them(volumes):
    labels = volumes[1]
    assert 0.05 < (labels == 0).mean() < 0.25
    within_ten_voxels = labels[:-10] != labels[10:]
    both_cells = (labels[:-10] != 0) & (labels[10:] != 0)
    assert (within_ten_voxels & both_cells).sum() > 0.02 * labels.size


def test_cells_go_on_from_section_to_section(volumes):
    labels = volumes[1]
    cells = (labels[..., :-1] != 0) & (labels[..., 1:] != 0)
    assert (labels[..., :-1] == labels[..., 1:])[cells].mean() > 0.8


def test_membranes_are_darker_than_cells_in_every_section(volumes):
    image, labels = volumes
    for z in range(SMALL.size.z):
        section, inside = image[..., z], labels[..., z] != 0
        assert section[~inside].mean() + 40 < section[inside].mean()
        assert section.std() > 10


def test_sections_differ_in_brightness(volumes):
    assert volumes[0].mean(axis=(0, 1)).std() > 1
