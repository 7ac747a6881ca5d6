"""Parameters that several stages share, written once: type, default checks, help text.

A field's description is its label's help in the Airflow form, the help of its command line option
and its entry in the reference. `Section` orders the form.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from igneous_airflow.geometry.bbox import BoundingBox, Vec3

LAYER = "layer"  # the `kind` of fields that hold a layer's address
WHERE, WHAT, HOW, LIMITS, RUN = "Where", "What", "How", "Limits", "Run"
PODS = "Kubernetes pods"
SECTIONS = (WHERE, WHAT, HOW, LIMITS, RUN, PODS)  # in the order in which people think

_OTHER_FORMATS = ("graphene", "boss", "n5", "zarr", "zarr2", "zarr3", "nifti", "dvid", "brainmaps")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def section(name: str, *, first: bool = False, flag: str | None = None) -> dict[str, Any]:
    """The `json_schema_extra` that puts a field in a section of the form, `first` before others.

    `flag` is the name that a yes-or-no field has on the command line, where it can only be set.
    """
    extra: dict[str, Any] = {"section": name}
    if first:
        extra["first"] = True
    if flag is not None:
        extra["flag"] = flag
    return extra


def _layer_url(text: str) -> str:
    url = text.strip().removeprefix("precomputed://").removesuffix("|neuroglancer-precomputed:")
    scheme, separator, rest = url.partition("://")
    if _CONTROL.search(url):
        raise ValueError(f"{url!r} contains control characters")
    if not separator:
        if not url.startswith("/"):
            raise ValueError(
                f"{text!r} is not an address: write gs://BUCKET/PATH, s3://BUCKET/PATH or an "
                "absolute path as /data/layer"
            )
        scheme, rest = "file", url
    if scheme in _OTHER_FORMATS:
        raise ValueError(
            f"{text!r}: only Neuroglancer Precomputed layers are supported, not {scheme}"
        )
    if scheme.startswith(("s3+", "gs+")):
        raise ValueError(
            f"{text!r}: {scheme}:// is not a storage protocol; configure an alias instead"
        )
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"{text!r} is not absolute: write file:///data/layer")
    if not rest.strip("/"):
        raise ValueError(f"{text!r} names no layer")
    return f"{scheme}://{rest.rstrip('/')}"


def _vec3(value: object) -> Vec3:
    if isinstance(value, Vec3):
        return value
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"write three integers x,y,z, as 64,64,64; got {value!r}")
    try:
        if any(isinstance(part, bool) or int(part) != float(part) for part in value):
            raise ValueError
        return Vec3(int(value[0]), int(value[1]), int(value[2]))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"write three integers x,y,z, as 64,64,64; got {value!r}") from None


def _positive(vector: Vec3) -> Vec3:
    if min(vector) < 1:
        raise ValueError(f"each number must be at least 1; got {vector}")
    return vector


def _powers_of_two(vector: Vec3) -> Vec3:
    if any(part not in (1, 2, 4, 8, 16, 32, 64) for part in vector):
        raise ValueError(f"each number must be a power of two from 1 to 64; got {vector}")
    if vector == Vec3.full(1):
        raise ValueError("1,1,1 pools nothing: at least one number must be 2 or more")
    return vector


def _box_text(value: object) -> object:
    if isinstance(value, str):
        box = BoundingBox.parse(value.strip())
        if not box:
            raise ValueError(f"{value} holds no voxels")
        return str(box)
    return value


def _vec3_schema(number: str, **limits: int) -> WithJsonSchema:
    # Text comes first: Airflow's form shows a line for 64,64,64 then, and a code editor for a list.
    return WithJsonSchema(
        {
            "type": ["string", "array"],
            "pattern": rf"^\s*{number}\s*,\s*{number}\s*,\s*{number}\s*$",
            "items": {"type": "integer", **limits},
            "minItems": 3,
            "maxItems": 3,
        }
    )


_Vec3Schema = _vec3_schema(r"\d+", minimum=1)
_AsList = PlainSerializer(list, return_type=list[int])

IntegerVec3 = Annotated[Vec3, PlainValidator(_vec3), _AsList, _vec3_schema(r"-?\d+")]
PositiveVec3 = Annotated[
    Vec3, PlainValidator(_vec3), AfterValidator(_positive), _AsList, _Vec3Schema
]
PoolingFactor = Annotated[
    Vec3, PlainValidator(_vec3), AfterValidator(_powers_of_two), _AsList, _Vec3Schema
]

LayerUrl = Annotated[
    str,
    AfterValidator(_layer_url),
    Field(
        min_length=1,
        title="Layer",
        description="Address of the Precomputed layer: gs://BUCKET/PATH, s3://BUCKET/PATH, or an "
        "absolute path on this machine as /data/layer.",
        json_schema_extra={**section(WHERE), "kind": LAYER},
    ),
]
Mip = Annotated[
    int,
    Field(
        ge=-1,
        le=64,
        title="Mip",
        description="Mip level to read: 0 is the finest, -1 the coarsest that exists.",
        json_schema_extra=section(WHERE),
    ),
]
Bounds = Annotated[
    str | None,
    BeforeValidator(_box_text),
    Field(
        title="Bounds",
        description="Work on a part only: a box in voxels of the chosen mip, written as its chunk "
        "files are named, x0-x1_y0-y1_z0-z1, for example 0-1024_0-1024_0-64. Empty means all.",
        json_schema_extra=section(WHERE),
    ),
]
Factor = Annotated[
    PoolingFactor | None,
    Field(
        title="Factor",
        description="How many voxels are pooled on x,y,z from mip to mip: powers of two, as "
        "2,2,2 for isotropic data. Empty: 2,2,1.",
        json_schema_extra=section(WHAT),
    ),
]
PoolingMethod = Annotated[
    Literal["auto", "average", "mode", "min", "max", "striding"],
    Field(
        title="Method",
        description="How voxels are pooled. auto averages images, takes the most frequent "
        "label of segmentations, and the first voxel of anything else.",
        json_schema_extra=section(WHAT),
    ),
]
Sparse = Annotated[
    bool,
    Field(
        title="Sparse",
        description="Leave zeros out: averages over the other voxels only, and labels win "
        "over background, so that thin objects survive.",
        json_schema_extra=section(WHAT),
    ),
]
FillMissing = Annotated[
    bool,
    Field(
        title="Fill missing",
        description="Read missing chunks as background instead of failing with their names.",
        json_schema_extra=section(HOW),
    ),
]
ChunkSize = Annotated[
    PositiveVec3 | None,
    Field(
        title="Chunk size",
        description="Chunk size of new mips in voxels, x,y,z as 64,64,64. Empty: decided by "
        "'preserve chunk size'.",
        json_schema_extra=section(HOW),
    ),
]
Encoding = Annotated[
    Literal[
        "raw",
        "jpeg",
        "png",
        "compressed_segmentation",
        "compresso",
        "crackle",
        "jxl",
        "fpzip",
        "zfpc",
    ]
    | None,
    Field(
        title="Encoding",
        description="Encoding of new mips. Empty: the encoding of the mip that is read.",
        json_schema_extra=section(HOW),
    ),
]
Compress = Annotated[
    Literal["auto", "gzip", "br", "zstd", "none"],
    Field(
        title="Compression",
        description="Compression of chunk files after encoding; auto is gzip for raw and "
        "label encodings, none for jpeg, png and the like.",
        json_schema_extra=section(HOW),
    ),
]
CompressLevel = Annotated[
    int | None,
    Field(
        ge=0,
        le=12,
        title="Compression level",
        description="Effort of the compression, 1 (fast) to 9 (small) for gzip. Empty: fast for "
        "grey values, which hardly shrink, and 6 for labels.",
        json_schema_extra=section(LIMITS),
    ),
]
SkipEmpty = Annotated[
    Literal["write", "skip", "delete"],
    Field(
        title="Empty chunks",
        description="What to do with a new chunk that is all background: write it, skip it, or "
        "delete the file that may be there from an earlier run.",
        json_schema_extra=section(HOW),
    ),
]
BackgroundColor = Annotated[
    float,
    Field(
        allow_inf_nan=False,
        title="Background value",
        description="Voxel value that counts as background and fills missing chunks.",
        json_schema_extra=section(HOW),
    ),
]
MemoryTarget = Annotated[
    int,
    Field(
        ge=1_000_000,
        title="Memory target",
        description="Bytes of memory that one task may use for voxels.",
        json_schema_extra=section(LIMITS),
    ),
]
