"""Cases of the golden record that copy layers."""

from collections.abc import Sequence
from pathlib import Path

import golden_inputs as inputs
from golden_case import OFFSET, Case, Step, step
from golden_inputs import Spec


def transfer_moved(root: Path) -> Sequence[Step]:
    """Other chunks, another place, mips on the way, in several tasks."""
    spec = Spec(chunk=(37, 21, 1), offset=OFFSET)
    src = inputs.write_layer(root / "sources" / "image", inputs.blobs((37, 21, 9)), spec)
    return [
        step(
            "transfer",
            src=src,
            dest=f"{root}/dest",
            mip=-1,
            chunk_size="8,8,8",
            max_mips=2,
            shape="32,32,8",
            translate="-4,5,2",
        )
    ]


def transfer_copied(root: Path) -> Sequence[Step]:
    """Files as they are, uncompressed and compressed, the latter beginning elsewhere."""
    src = inputs.write_layer(root / "sources" / "image", inputs.blobs((33, 17, 9), "uint16"))
    common = {"skip_downsamples": True, "shape": "16,16,8"}
    return [
        step("transfer", src=src, dest=f"{root}/same", **common),
        step("transfer", src=src, dest=f"{root}/brotli", compress="br", **common),
        step(
            "transfer",
            src=f"{root}/brotli",
            dest=f"{root}/moved",
            dest_voxel_offset="16,-8,100",
            **common,
        ),
    ]


def transfer_cutout_to_jpeg(root: Path) -> Sequence[Step]:
    """A part of an image, lossy, with a clean info."""
    src = inputs.write_layer(root / "sources" / "image", inputs.tissue((64, 48, 16)))
    return [
        step(
            "transfer",
            src=src,
            dest=f"{root}/dest",
            bounds="16-55_8-40_0-11",
            cutout=True,
            clean_info=True,
            encoding="jpeg",
            chunk_size="16,16,16",
            max_mips=1,
        )
    ]


def transfer_to_png_and_jxl(root: Path) -> Sequence[Step]:
    """Two channels of png; one of jxl, pooled on."""
    colors = inputs.tissue((30, 20, 8), channels=2)
    two = inputs.write_layer(root / "sources" / "two", colors, Spec(chunk=(16, 16, 8)))
    gray = inputs.tissue((30, 20, 8))
    one = inputs.write_layer(root / "sources" / "one", gray, Spec(chunk=(16, 16, 8)))
    return [
        step("transfer", src=two, dest=f"{root}/png", encoding="png", max_mips=1),
        step("transfer", src=one, dest=f"{root}/jxl", encoding="jxl", skip_downsamples=True),
        step("downsample", layer=f"{root}/jxl", num_mips=1),
    ]


def transfer_to_label_encodings(root: Path) -> Sequence[Step]:
    """All encodings of labels, each with its mips, and back from each."""
    steps = []
    for encoding, dtype, compress in (
        ("compressed_segmentation", "uint64", "br"),
        ("compresso", "uint32", "gzip"),
        ("crackle", "uint16", "none"),
    ):
        labels, spec = inputs.blobs((30, 20, 8), dtype), Spec("segmentation", (16, 16, 8), OFFSET)
        src = inputs.write_layer(root / "sources" / encoding, labels, spec)
        dest = f"{root}/{encoding}"
        back = {"dest": f"{root}/{encoding}_back", "encoding": "raw", "skip_downsamples": True}
        wishes = {"encoding": encoding, "compress": compress, "max_mips": 1}
        steps.append(step("transfer", src=src, dest=dest, **wishes))
        steps.append(step("transfer", src=dest, mip=1, **back))
    return steps


def transfer_into_an_existing_layer(root: Path) -> Sequence[Step]:
    """One half after the other, each with its mips."""
    src = inputs.write_layer(root / "sources" / "labels", inputs.blobs((32, 32, 8), "uint8"))
    common = {"src": src, "dest": f"{root}/dest", "max_mips": 1, "method": "mode"}
    return [
        step("transfer", bounds="0-16_0-32_0-8", **common),
        step("transfer", bounds="16-32_0-32_0-8", skip_empty="skip", **common),
    ]


def transfer_coarse_floats(root: Path) -> Sequence[Step]:
    """Three channels of floats, mip 1 read, zstd of a chosen level."""
    values = inputs.blobs((32, 24, 8), "float32", channels=3)
    src = inputs.write_layer(root / "layer", values, Spec("affinities", offset=(0, 8, -8)))
    return [
        step("downsample", layer=src, num_mips=1),
        step(
            "transfer",
            src=src,
            dest=f"{root}/dest",
            mip=1,
            max_mips=1,
            compress="zstd",
            compress_level=7,
        ),
    ]


def transfer_of_a_large_chunk(root: Path) -> Sequence[Step]:
    """Chunks of 64 cubed, which are compressed in another way than small ones."""
    src = inputs.write_layer(
        root / "sources" / "image", inputs.tissue((65, 64, 64)), Spec(chunk=(64, 64, 64))
    )
    return [step("transfer", src=src, dest=f"{root}/dest", max_mips=1)]


def in_little_memory(root: Path) -> Sequence[Step]:
    """Tasks that work in several tiles, and fewer mips than were asked for."""
    voxels = inputs.blobs((200, 130, 64), "uint32")
    spec = Spec("segmentation", chunk=(32, 32, 32), offset=OFFSET)
    src = inputs.write_layer(root / "sources" / "labels", voxels, spec)
    little = {"memory_target": 2_500_000}
    return [
        step("transfer", src=src, dest=f"{root}/dest", **little),
        step("downsample", layer=f"{root}/dest", num_mips=2, factor="2,2,2", **little),
        step("transfer", src=src, dest=f"{root}/other", memory_target=1_000_000),
    ]


CASES: tuple[Case, ...] = (
    transfer_moved,
    transfer_copied,
    transfer_cutout_to_jpeg,
    transfer_to_png_and_jxl,
    transfer_to_label_encodings,
    transfer_into_an_existing_layer,
    transfer_coarse_floats,
    transfer_of_a_large_chunk,
    in_little_memory,
)
