"""The layers that are worked on: making them, and comparing what two programs made of them.

`__main__.py` imports the cases, and runs this module in processes of its own for the rest: a child
inherits its parent's peak memory, so the parent of a measured process must stay small.
"""

import argparse
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Case:
    """A layer, how many mips are made of it, and what is asked of us beside the peer."""

    title: str
    layer_type: str
    size: tuple[int, int, int]
    resolution: tuple[int, int, int]
    encoding: str
    mips: int
    speed: float  # times the peer's voxels per second, at least
    stored: float | None  # times the peer's stored bytes, at most
    chunk: tuple[int, int, int] = (64, 64, 64)
    stage: str = "downsample"  # all others write another layer, with mip 0 in chunks of 64 cubed
    is_bare: bool = False  # the other side is a bare loop: nothing else does this

    @property
    def is_in_place(self) -> bool:
        """Whether the layer itself gets what is made."""
        return self.stage in ("downsample", "luminance_levels")

    @property
    def first(self) -> int:
        """The first mip that is made."""
        return 1 if self.is_in_place else 0

    @property
    def voxels(self) -> int:
        """Voxels of mip 0."""
        return self.size[0] * self.size[1] * self.size[2]


_CUBE = (512, 512, 512)
_EM = ((1024, 1024, 128), (4, 4, 50), "raw")
_SECTION = (1024, 1024, 1)
_CSEG = "compressed_segmentation"
_LABELS = ("segmentation", _CUBE, (16, 16, 40), "raw")
_AFFINITIES = ("affinities", (512, 512, 128), (4, 4, 50), "raw")
_MAP_LENGTH = 10_000_000
CASES = {
    "a": Case("image u8 raw", "image", (1024, 1024, 128), (4, 4, 50), "raw", 4, 2.8, None),
    "b": Case("labels u64 raw", "segmentation", _CUBE, (16, 16, 40), "raw", 3, 3.4, 1.20),
    "c": Case("labels u64 cseg", "segmentation", _CUBE, (16, 16, 40), _CSEG, 3, 1.5, 1.05),
    "e": Case("sections to 64 cubed", "image", *_EM, 0, 4.0, 1.01, _SECTION, "transfer"),
    "f": Case("the same and 4 mips", "image", *_EM, 4, 3.0, 1.01, _SECTION, "transfer"),
    "g": Case("copy of files", "image", *_EM, 0, 2.0, 1.0, stage="transfer"),
    "l": Case("luminance levels", "image", *_EM, 0, 40.0, None, stage="luminance_levels"),
    "n": Case("contrast and 4 mips", "image", *_EM, 4, 5.0, 1.02, stage="contrast_normalization"),
    "w": Case("remap of labels u32", *_LABELS, 0, 0.5, 1.0, stage="watershed_remap", is_bare=True),
    "z": Case("affinities to greys", *_AFFINITIES, 3, 3.0, 1.02, stage="quantize_affinities"),
}


def real_image(folder: Path, size: tuple[int, int, int]) -> "NDArray[np.uint8]":
    """Stack the sections, turned or mirrored differently each time round, so none comes twice."""
    import numpy as np
    from PIL import Image

    sections = [np.asarray(Image.open(path)).T for path in sorted(folder.glob("*.tif"))]
    image = np.empty(size, np.uint8, order="F")
    for z in range(size[2]):
        variant, section = divmod(z, len(sections))
        turned = np.rot90(sections[section], variant % 4)
        turned = turned[::-1] if variant % 8 >= 4 else turned
        image[:, :, z] = turned[: size[0], : size[1]]
    return image


def real_labels(path: Path) -> "NDArray[np.uint64]":
    import crackle
    import numpy as np

    with gzip.open(path) as stream:
        labels: NDArray[Any] = crackle.decompress(stream.read())
    return np.asfortranarray(labels, np.uint64)


def spread(labels: "NDArray[np.uint64]", folder: Path) -> "NDArray[np.uint32]":
    """Give the labels numbers all over a map, and write the map beside the layer."""
    import fastremap
    import numpy as np

    random = np.random.default_rng(1)
    numbers, known = fastremap.renumber(labels, in_place=True)
    ids = random.choice(_MAP_LENGTH, len(known) + 1, replace=False).astype(np.uint32)
    values = random.integers(0, 2**32 - 1, _MAP_LENGTH, dtype=np.uint32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    np.save(folder.parent / "map.npy", values)
    return np.asfortranarray(ids[numbers])


def affinities_of(image: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """Make three channels of numbers from 0 to 1 that look like a network's output."""
    import numpy as np

    random = np.random.default_rng(1)
    values = np.empty((*image.shape, 3), np.float32, order="F")
    for axis in range(3):
        change = np.abs(np.diff(image.astype(np.float32), axis=axis, append=0)) / 255
        noise = random.normal(0, 0.002, image.shape).astype(np.float32)
        values[..., axis] = np.clip((1 - change) ** 2 + noise, 0, 1)
    return values


def voxels_of(case: Case, data: Path, folder: Path) -> tuple["NDArray[Any]", str]:
    """Make the voxels of a case from an image or labels; with a word on where these are from."""
    voxels, source = grey_or_labels(case, data)
    if case.stage == "watershed_remap":
        voxels = spread(voxels, folder)
    if case.stage == "quantize_affinities":
        voxels = affinities_of(voxels)
    return voxels, source


def grey_or_labels(case: Case, data: Path) -> tuple["NDArray[Any]", str]:
    """Read the real volume where there is one, draw one otherwise; with a word on which it is."""
    sections, labels = data / "em_vnc_stack", data / "labels_512.npy.ckl.gz"
    is_grey = case.layer_type != "segmentation"
    if is_grey and sections.is_dir():
        return real_image(sections, case.size), "real electron microscopy"
    if not is_grey and labels.is_file():
        return real_labels(labels), "a real segmentation"
    from igneous_airflow.geometry.bbox import Vec3
    from igneous_airflow.testing.sample import SampleVolume

    sample = SampleVolume(
        size=Vec3(*case.size), voxel_offset=Vec3(0, 0, 0), resolution=case.resolution, seed=1
    )
    return (sample.image() if is_grey else sample.labels()), "the drawn sample"


def make(case: Case, data: Path, folder: Path) -> dict[str, Any]:
    """Write mip 0 as the peer would: by cloud-volume, gzipped."""
    from cloudvolume import CloudVolume

    voxels, source = voxels_of(case, data, folder)
    info = CloudVolume.create_new_info(
        num_channels=voxels.shape[3] if voxels.ndim == 4 else 1,
        layer_type=case.layer_type,
        data_type=str(voxels.dtype),
        encoding=case.encoding,
        resolution=case.resolution,
        voxel_offset=(0, 0, 0),
        volume_size=case.size,
        chunk_size=case.chunk,
    )
    volume = CloudVolume(folder.as_uri(), info=info, compress="gzip", progress=False)
    volume.commit_info()
    volume[:, :, :] = voxels
    if case.stage == "contrast_normalization":
        write_levels(voxels, folder / "levels" / "0")
    return {"source": source}


def write_levels(voxels: "NDArray[np.uint8]", folder: Path) -> None:
    """Count each section, as both sides need it before contrast is normalized."""
    import numpy as np

    folder.mkdir(parents=True)
    for z in range(voxels.shape[2]):
        counts = np.bincount(voxels[:, :, z].ravel(), minlength=256).tolist()
        patch = {"patch_size": [*voxels.shape[:2], 1], "num_patches": 1, "coverage_ratio": 1.0}
        (folder / str(z)).write_text(json.dumps({"levels": counts, **patch}))


def levels_of(layer: Path) -> "NDArray[np.int64]":
    """Read the counts of every section: the row is z, the column the grey value."""
    import numpy as np

    files = sorted((layer / "levels" / "0").iterdir(), key=lambda file: int(file.name))
    return np.array([json.loads(file.read_text())["levels"] for file in files])


def compare(case: Case, left: Path, right: Path) -> dict[str, Any]:
    """Decode what was made of two layers and count the voxels, and those that differ."""
    import numpy as np
    from cloudvolume import CloudVolume

    compared = differing = 0
    mips = range(case.first, case.mips + 1)
    pairs = (
        tuple(CloudVolume(side.as_uri(), mip=mip)[:] for side in (left, right)) for mip in mips
    )
    if case.stage == "luminance_levels":
        pairs = iter([(levels_of(left), levels_of(right))])
    for one, other in pairs:
        compared += one.size
        same_shape = one.shape == other.shape
        differing += int(np.count_nonzero(one != other)) if same_shape else one.size
    return {"compared": compared, "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["make", "compare"])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args()
    action = make if options.action == "make" else compare
    print(json.dumps(action(CASES[options.case], options.first, options.second)))


if __name__ == "__main__":
    main()
