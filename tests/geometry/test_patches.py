"""Patches tile a section between chunks, and each is drawn as often as any other."""

from collections import Counter
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid, Slab
from igneous_airflow.geometry.patches import Patches, Sample, drawn
from igneous_airflow.testing.strategies import boxes, sizes, vectors


@st.composite
def patches(draw):
    """Draw a part of a volume, cut in patches of at most 12 voxels or one chunk."""
    volume = draw(boxes(40, 30))
    low = Vec3(*(draw(st.integers(0, edge - 1)) for edge in volume.size))
    high = Vec3(*(draw(st.integers(a + 1, b)) for a, b in zip(low, volume.size, strict=True)))
    box = BoundingBox(volume.min + low, volume.min + high)
    return volume, Patches(box, draw(sizes(16)), volume.min, edge=12)


@given(patches())
@settings(deadline=None)
def test_every_voxel_of_a_section_is_in_one_patch_and_every_chunk_too(drawing):
    volume, cut = drawing
    count = Counter(
        place
        for patch in cut
        for place in product(range(patch.min.x, patch.max.x), range(patch.min.y, patch.max.y))
    )
    assert set(count.values()) == {1}
    assert len(count) == cut.box.size.x * cut.box.size.y
    assert all((p.min.z, p.max.z) == (cut.box.min.z, cut.box.max.z) for p in cut)
    for chunk in Grid(volume, cut.chunk).overlapping(cut.box):
        assert sum(bool(patch.intersection(chunk)) for patch in cut) == 1


@given(patches())
@settings(deadline=None)
def test_patches_are_of_nearly_equal_size_and_no_larger_than_need_be(drawing):
    _, cut = drawing
    for axis in (0, 1):
        chunk = cut.chunk[axis]
        lengths = {patch.size[axis] for patch in cut}
        assert max(lengths) <= max(cut.edge, chunk)
        assert max(lengths) - min(lengths) < 3 * chunk


def test_the_right_and_the_bottom_can_be_reached():
    """Igneous counts patches by area: of these it never reaches the last ones."""
    for size in (Vec3(3000, 3000, 1), Vec3(300, 10_000, 1)):
        whole = BoundingBox.at(Vec3(0, 0, 0), size)
        sample = Sample(Patches(whole, Vec3(64, 64, 64), whole.min, 2048), 0.01, "")
        reached = {
            str(Sample(sample.patches, 0.01, str(lot)).of(Slab(0, 1))[0]) for lot in range(100)
        }
        assert len(reached) == len(sample.patches) == (4 if size.x == 3000 else 5)
        assert max(int(name.split("_")[1].split("-")[1]) for name in reached) == size.y


def test_small_sections_are_one_patch():
    box = BoundingBox.at(Vec3(5, -7, 0), Vec3(300, 200, 9))
    assert list(Patches(box, Vec3.full(64), box.min, 2048)) == [box]


def test_each_patch_is_drawn_as_often_as_any_other():
    count = Counter(n for lot in range(4000) for n in drawn(13, 4, f"x/{lot}"))
    expected = 4000 * 4 / 13
    chi_squared = sum((count[n] - expected) ** 2 for n in range(13)) / (expected * 9 / 13)
    assert chi_squared < 32.9  # for 12 degrees of freedom, exceeded once in a thousand


@given(st.integers(1, 200), st.data())
def test_a_larger_sample_holds_the_smaller_one_of_its_lot(count, data):
    few = data.draw(st.integers(0, count))
    many = data.draw(st.integers(few, count))
    numbers = drawn(count, many, "lot")
    assert numbers == sorted(set(numbers))
    assert len(numbers) == many
    assert set(drawn(count, few, "lot")) <= set(numbers) <= set(range(count))


def test_a_lot_draws_the_same_for_ever():
    """Files that are there must come out the same from a retry on another machine."""
    assert drawn(100, 5, "0/0/16") == [4, 8, 11, 46, 87]
    assert drawn(100, 5, "0/0/17") != drawn(100, 5, "0/0/16")


def test_a_share_is_rounded_up():
    whole = BoundingBox.at(Vec3(0, 0, 0), Vec3(1000, 1, 1))
    cut = Patches(whole, Vec3(10, 1, 1), whole.min, edge=10)
    shares = {0.07: 7, 0.29: 29, 0.57: 57, 0.001: 1, 0.0101: 2, 1.0: 100, 1e-300: 1}
    assert {share: Sample(cut, share, "").size for share in shares} == shares


@given(vectors(-20, 20), st.integers(1, 9), st.integers(-30, 30), st.integers(1, 9))
def test_sections_that_share_chunks_share_the_places_of_their_patches(origin, chunk, z, depth):
    box = BoundingBox.at(origin, Vec3(50, 50, 40))
    sample = Sample(Patches(box, Vec3(5, 5, chunk), origin, edge=10), 0.2, "lot")

    def places(slab):
        return [(p.min.x, p.min.y) for p in sample.of(slab)]

    here = (z - origin.z) // chunk
    first = here * chunk + origin.z
    assert places(Slab(z, z + 1)) == places(Slab(first, first + chunk))
    assert [(p.min.z, p.max.z) for p in sample.of(Slab(z, z + depth))] == [(z, z + depth)] * 5
