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
CASES = {
    "a": Case("image u8 raw", "image", (1024, 1024, 128), (4, 4, 50), "raw", 4, 2.8, None),
    "b": Case("labels u64 raw", "segmentation", _CUBE, (16, 16, 40), "raw", 3, 3.4, 1.20),
    "c": Case("labels u64 cseg", "segmentation", _CUBE, (16, 16, 40), _CSEG, 3, 1.5, 1.05),
    "e": Case("sections to 64 cubed", "image", *_EM, 0, 4.0, 1.01, _SECTION, "transfer"),
    "f": Case("the same and 4 mips", "image", *_EM, 4, 3.0, 1.01, _SECTION, "transfer"),
    "g": Case("copy of files", "image", *_EM, 0, 2.0, 1.0, stage="transfer"),
    "l": Case("luminance levels", "image", *_EM, 0, 40.0, None, stage="luminance_levels"),
    "n": Case("contrast and 4 mips", "image", *_EM, 4, 5.0, 1.02, stage="contrast_normalization"),
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
        image[:, :, z] = turned[::-1] if variant % 8 >= 4 else turned
    return image


def real_labels(path: Path) -> "NDArray[np.uint64]":
    import crackle
    import numpy as np

    with gzip.open(path) as stream:
        labels: NDArray[Any] = crackle.decompress(stream.read())
    return np.asfortranarray(labels, np.uint64)


def voxels_of(case: Case, data: Path) -> tuple["NDArray[Any]", str]:
    """Read the real volume where there is one, draw one otherwise; with a word on which it is."""
    sections, labels = data / "em_vnc_stack", data / "labels_512.npy.ckl.gz"
    if case.layer_type == "image" and sections.is_dir():
        return real_image(sections, case.size), "real electron microscopy"
    if case.layer_type == "segmentation" and labels.is_file():
        return real_labels(labels), "a real segmentation"
    from igneous_airflow.geometry.bbox import Vec3
    from igneous_airflow.testing.sample import SampleVolume

    sample = SampleVolume(
        size=Vec3(*case.size), voxel_offset=Vec3(0, 0, 0), resolution=case.resolution, seed=1
    )
    return (sample.image() if case.layer_type == "image" else sample.labels()), "the drawn sample"


def make(case: Case, data: Path, folder: Path) -> dict[str, Any]:
    """Write mip 0 as the peer would: by cloud-volume, gzipped."""
    from cloudvolume import CloudVolume

    voxels, source = voxels_of(case, data)
    info = CloudVolume.create_new_info(
        num_channels=1,
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
