"""Hypothesis strategies for geometry: small numbers, with odd and narrow edges; used by tests."""

from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3


def vectors(low: int = -1_000, high: int = 1_000) -> st.SearchStrategy[Vec3]:
    """Vectors with every number from `low` to `high`."""
    return st.builds(Vec3, *[st.integers(low, high)] * 3)


def sizes(largest: int = 40) -> st.SearchStrategy[Vec3]:
    """Sizes of at least one voxel; edges of 1, and odd ones next to powers of two, are frequent."""
    narrow = [edge for edge in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33) if edge <= largest]
    edge = st.sampled_from(narrow) | st.integers(1, largest)
    return st.builds(Vec3, edge, edge, edge)


def boxes(largest: int = 40, offset: int = 100) -> st.SearchStrategy[BoundingBox]:
    """Boxes of at least one voxel, at corners up to `offset` from the origin on either side."""
    return st.builds(BoundingBox.at, vectors(-offset, offset), sizes(largest))


def boxes_within(size: Vec3) -> st.SearchStrategy[BoundingBox]:
    """Boxes of at least one voxel inside a volume of a size that starts at the origin."""
    corners = st.tuples(*(st.integers(0, length - 1) for length in size))
    return corners.flatmap(
        lambda low: st.builds(
            BoundingBox,
            st.just(Vec3(*low)),
            st.builds(Vec3, *(st.integers(a + 1, n) for a, n in zip(low, size, strict=True))),
        )
    )


def factors() -> st.SearchStrategy[Vec3]:
    """Pooling factors: the usual ones, anisotropic ones, and each axis alone."""
    usual = ["221", "222", "212", "122", "211", "121", "112", "441", "421", "142"]
    return st.sampled_from([Vec3.of(map(int, factor)) for factor in usual])
