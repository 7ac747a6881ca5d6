"""Cases of the golden record that make mips, move layers, and delete them."""

from collections.abc import Sequence
from pathlib import Path

import golden_inputs as inputs
import numpy as np
from golden_case import OFFSET, Case, Step, step
from golden_inputs import Spec


def downsample_odd_image(root: Path) -> Sequence[Step]:
    """Averages, positive and negative offset, odd edges, as many mips as there can be."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((37, 21, 9)), Spec(offset=OFFSET))
    return [step("downsample", layer=layer, num_mips=6)]


def downsample_uint16_cubes(root: Path) -> Sequence[Step]:
    """Isotropic pooling, zstd."""
    voxels = inputs.tissue((40, 24, 20), "uint16")
    layer = inputs.write_layer(root / "layer", voxels, Spec(resolution=(16, 16, 16)))
    return [step("downsample", layer=layer, num_mips=2, factor="2,2,2", compress="zstd")]


def downsample_compressed_segmentation(root: Path) -> Sequence[Step]:
    """Modes of 32 bits, negative offset, brotli."""
    spec = Spec("segmentation", (16, 16, 8), (-16, -24, -8), encoding="compressed_segmentation")
    layer = inputs.write_layer(root / "layer", inputs.blobs((50, 30, 12), "uint32"), spec)
    return [step("downsample", layer=layer, num_mips=2, compress="br", compress_level=5)]


def downsample_sparse_labels(root: Path) -> Sequence[Step]:
    """Sparse modes of 64 bits with x kept; background is left out."""
    labels = inputs.blobs((20, 40, 24), "uint64")
    labels[:, 20:] = 0
    spec = Spec("segmentation", offset=OFFSET, resolution=(40, 8, 8))
    layer = inputs.write_layer(root / "layer", labels, spec)
    return [
        step("downsample", layer=layer, num_mips=2, axis="x", sparse=True, skip_empty="skip"),
    ]


def downsample_float32(root: Path) -> Sequence[Step]:
    """Averages of floats, uncompressed."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((33, 17, 9), "float32"))
    return [step("downsample", layer=layer, num_mips=2, compress="none")]


def downsample_three_channels_of_jpeg(root: Path) -> Sequence[Step]:
    """Colors, lossy."""
    voxels = inputs.tissue((40, 24, 8), channels=3)
    spec = Spec(chunk=(16, 16, 8), encoding="jpeg")
    layer = inputs.write_layer(root / "layer", voxels, spec)
    return [step("downsample", layer=layer, num_mips=2)]


def downsample_narrow_maximum(root: Path) -> Sequence[Step]:
    """One voxel wide on an axis, two on another."""
    spec = Spec(chunk=(16, 16, 16), offset=(1, -1, 0))
    layer = inputs.write_layer(root / "layer", inputs.blobs((131, 1, 2), "uint16"), spec)
    return [step("downsample", layer=layer, num_mips=3, method="max", factor="2,2,2")]


def downsample_part_with_holes(root: Path) -> Sequence[Step]:
    """Minimum, a part, missing chunks, background of its own that is deleted."""
    voxels = inputs.blobs((48, 32, 8))
    voxels[16:32] = 255
    layer = inputs.write_layer(root / "layer", voxels, Spec(offset=(8, 0, -8)))
    (root / "layer" / "8_8_40" / "40-48_8-16_-8-0").unlink()
    return [
        step("downsample", layer=layer, num_mips=1, compress="none", fill_missing=True),
        step(
            "downsample",
            layer=layer,
            num_mips=1,
            bounds="24-56_0-32_-8-0",
            method="min",
            fill_missing=True,
            background_color=255,
            skip_empty="delete",
            compress="none",
        ),
    ]


def downsample_twice_from_the_coarsest(root: Path) -> Sequence[Step]:
    """Striding, png, mip -1."""
    spec = Spec(chunk=(16, 16, 4), encoding="png")
    layer = inputs.write_layer(root / "layer", inputs.tissue((50, 34, 6)), spec)
    once = step("downsample", layer=layer, mip=-1, num_mips=1, method="striding")
    return [once, once]


def downsample_other_chunks(root: Path) -> Sequence[Step]:
    """Chunks of sections that become deep, in another encoding."""
    voxels = inputs.blobs((70, 66, 5), "uint32")
    spec = Spec("segmentation", chunk=(35, 33, 1))
    layer = inputs.write_layer(root / "layer", voxels, spec)
    return [
        step("downsample", layer=layer, num_mips=1, preserve_chunk_size=False),
        step("downsample", layer=layer, mip=1, num_mips=1, encoding="crackle", chunk_size="9,9,5"),
    ]


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


def delete_mips(root: Path) -> Sequence[Step]:
    """The two coarser ones of three."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 24, 8)), Spec(offset=OFFSET))
    return [
        step("downsample", layer=layer, num_mips=2),
        step("delete", layer=layer, mip=1, num_mips=2, confirm=True),
    ]


def delete_part(root: Path) -> Sequence[Step]:
    """A part of two mips; unconfirmed at first."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 24, 8)), Spec(offset=OFFSET))
    part = {"layer": layer, "num_mips": 2, "bounds": "19-43_-7-9_11-19"}
    return [
        step("downsample", layer=layer, num_mips=1),
        step("delete", **part),
        step("delete", confirm=True, **part),
    ]


def refused(root: Path) -> Sequence[Step]:
    """Plans that name why a stage cannot start."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 24, 8)), Spec(offset=OFFSET))
    floats = inputs.write_layer(root / "floats", np.ones((8, 8, 8, 1), np.float32, order="F"))
    (root / "sources").mkdir()
    return [
        step("downsample", layer=f"{root}/nothing"),
        step("downsample", layer=layer, bounds="0-8_0-8_0-8", mip=3),
        step("downsample", layer=layer, bounds="4-8_0-8_11-19"),
        step("downsample", layer=layer, background_color=300, encoding="crackle"),
        step("transfer", src=floats, dest=f"{root}/dest", encoding="jpeg"),
        step("transfer", src=layer, dest=floats),
        step("delete", layer=layer, mip=4),
        step("ingest", source=f"{root}/sources", dest=f"{root}/dest"),
        step("luminance_levels", layer=floats),
        step("contrast_normalization", src=layer, dest=f"{root}/dest"),
        step("mesh", layer=layer),
        step("mesh_manifest", layer=layer),
        step("watershed_remap", src=layer, dest=f"{root}/dest", map_path=f"{root}/map.npy"),
        step("quantize_affinities", src=layer, dest=f"{root}/dest", channel=4),
        step("hypersquare_ingest", src=f"{root}/sources", dest=f"{root}/dest"),
        step(
            "hypersquare_consensus",
            src=layer,
            dest=f"{root}/dest",
            volume_map_path=f"{root}/a.json",
            consensus_map_path=f"{root}/b.json",
        ),
    ]


CASES: tuple[Case, ...] = (
    downsample_odd_image,
    downsample_uint16_cubes,
    downsample_compressed_segmentation,
    downsample_sparse_labels,
    downsample_float32,
    downsample_three_channels_of_jpeg,
    downsample_narrow_maximum,
    downsample_part_with_holes,
    downsample_twice_from_the_coarsest,
    downsample_other_chunks,
    transfer_moved,
    transfer_copied,
    transfer_cutout_to_jpeg,
    transfer_to_png_and_jxl,
    transfer_to_label_encodings,
    transfer_into_an_existing_layer,
    transfer_coarse_floats,
    transfer_of_a_large_chunk,
    in_little_memory,
    delete_mips,
    delete_part,
    refused,
)
