"""Parameters that several stages share, written once: type, default checks, help text.

A field's description is its label's help in the Airflow form, the help of its command line option
and its entry in the reference. It names other fields in backticks, so that each place can use its
own words for them (`stage.with_words`). `section` orders the form.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.field_values import CONTROL, shown
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.folder_names import ODD_CHARACTERS, folder_problem

LAYER = "layer"  # the `kind` of fields that hold an address; on a command line also a path
ADDRESS = "address"  # likewise, of what is no layer
FILES = "files"  # of fields that hold the address of other files
MIP = "mip"  # of fields that hold a mip, or COARSEST
COARSEST = -1  # whichever mip that is now
WHERE, WHAT, HOW, LIMITS = "Where", "What", "How", "Limits"
RUN, PODS = "Run", "Kubernetes pods"
SECTIONS = (WHERE, WHAT, HOW, LIMITS, RUN, PODS)  # in the order in which people think

_OTHER_FORMATS = ("graphene", "boss", "n5", "zarr", "zarr2", "zarr3", "nifti", "dvid", "brainmaps")
_LABELS_AT_MOST = 10_000  # each message of a task holds them all
_LABEL = r"\s*\d+\s*"
_LABEL_TEXT = re.compile("[0-9]{1,20}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,16}")
_FURTHEST = 2**53  # voxels from the origin: what JSON and floating point hold
_LONGEST_NAME = 255  # bytes, of a folder or file on a disk
_NOT_FOR_FOLDERS = frozenset({"cells", "info", "levels", "provenance"})
_RESOLUTIONS = (1e-6, 1e12)  # nm: from less than atoms to more than any animal


def section(
    name: str, *, first: bool = False, flag: str | None = None, cli_default: bool | None = None
) -> dict[str, Any]:
    """The `json_schema_extra` that puts a field in a section of the form.

    With `first` it comes before the others of the section, and the form opens with it.
    `flag` is the name that a yes-or-no field has on the command line, where it can only be set.
    `cli_default` is what the command line takes a yes-or-no field for where that differs.
    """
    extra: dict[str, Any] = {"section": name}
    if first:
        extra["first"] = True
    if flag is not None:
        extra["flag"] = flag
    if cli_default is not None:
        extra["cli_default"] = cli_default
    return extra


def _layer_url(text: str) -> str:
    refuse_credentials(text)
    url = text.strip().removeprefix("precomputed://").removesuffix("|neuroglancer-precomputed:")
    scheme = url.partition("://")[0]
    if scheme in _OTHER_FORMATS:
        raise ValueError(
            f"{shown(text)}: only Neuroglancer Precomputed layers are supported, not {scheme}"
        )
    return _place(url, text)


def _source_url(text: str) -> str:
    refuse_credentials(text)
    return _place(re.sub(r"^(zarr[23]?|nifti)://", "", text.strip()), text)


def _place(url: str, text: str) -> str:
    """An address in its one spelling; `text` is what somebody wrote."""
    url = re.sub("^file://localhost/", "file:///", url)
    scheme, separator, rest = url.partition("://")
    if CONTROL.search(url):
        raise ValueError(f"{shown(url)} contains control characters")
    if not separator:
        if not url.startswith("/"):
            raise ValueError(
                f"{shown(text)} is not an address: write gs://BUCKET/PATH, s3://BUCKET/PATH or an "
                "absolute path as /data/layer"
            )
        scheme, rest = "file", url
    if scheme.startswith(("s3+", "gs+")):
        raise ValueError(
            f"{shown(text)}: {scheme}:// is not a storage protocol; configure an alias instead"
        )
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"{shown(text)} is not absolute: write file:///data/layer")
    if not rest.strip("/"):
        raise ValueError(f"{shown(text)} names no layer or file")
    if scheme == "file":
        _check_names(rest)
    return f"{scheme}://{rest.rstrip('/')}"


def _check_names(path: str) -> None:
    """Raise ValueError for a path with a name that no disk holds."""
    for name in path.split("/"):
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"{shown(name)} is longer than {_LONGEST_NAME} bytes")


def _vec3(value: object) -> Vec3:
    if isinstance(value, Vec3):
        return value
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    wrong = f"write three integers x,y,z, as 64,64,64; got {shown(value)}"
    if not isinstance(parts, Sequence) or len(parts) != 3:
        raise ValueError(wrong)
    if not all(map(_is_whole, parts)):
        raise ValueError(wrong)
    return Vec3(*map(int, parts))


def _is_whole(part: object) -> bool:
    """Whether it is a whole number of voxels, or text of one."""
    if isinstance(part, bool):
        return False
    if isinstance(part, Integral) or (isinstance(part, str) and _WHOLE.fullmatch(part)):
        part = int(part)
    if not isinstance(part, int | float):
        return False
    return abs(part) <= _FURTHEST and int(part) == part


def _resolution(value: object) -> tuple[float, float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    wrong = f"write three positive numbers x,y,z in nanometres, as 4,4,40; got {shown(value)}"
    if not isinstance(parts, Sequence) or len(parts) != 3 or any(type(p) is bool for p in parts):
        raise ValueError(wrong)
    try:
        x, y, z = map(float, parts)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(wrong) from None
    smallest, largest = _RESOLUTIONS
    if not all(smallest <= length <= largest for length in (x, y, z)):
        raise ValueError(f"{wrong}, each from {smallest:g} to {largest:g}")
    return x, y, z


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


def _label(value: object) -> int:
    """Read a label; text is as good as a number, and safer in JSON, which cuts numbers at 2^53."""
    if isinstance(value, str) and _LABEL_TEXT.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
        return value
    raise ValueError(f"{shown(value)} is not a label: write a whole number from 0 to {2**64 - 1}")


def _parts(value: object, what: str) -> Sequence[object]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not 0 < len(parts) <= _LABELS_AT_MOST:
        raise ValueError(f"write 1 to {_LABELS_AT_MOST:,} {what}; got {shown(value)}")
    return parts


def _labels(value: object) -> tuple[int, ...]:
    labels = sorted(set(map(_label, _parts(value, "labels, as 17,42"))))
    if labels[0] == 0:
        raise ValueError("0 is the background, which is no object")
    return tuple(labels)


def _label_table(value: object) -> tuple[tuple[int, int], ...]:
    if isinstance(value, Mapping):
        value = [f"{old}:{new}" for old, new in value.items()]
    table: dict[int, int] = {}
    for pair in _parts(value, "pairs OLD:NEW, as 17:1,42:1"):
        both = pair.split(":") if isinstance(pair, str) else pair
        if not isinstance(both, Sequence) or len(both) != 2:
            raise ValueError(f"{shown(pair)} is not OLD:NEW, as 17:1")
        old, new = both
        key, label = _label(old), _label(new)
        if key == 0 or table.setdefault(key, label) != label:
            why = "0 is the background" if key == 0 else f"{key} is given twice"
            raise ValueError(f"{shown(pair)}: {why}")
    return tuple(sorted(table.items()))


def _pair_texts(table: Iterable[tuple[int, int]]) -> list[str]:
    return [f"{old}:{new}" for old, new in table]


def folder_in_layer(name: str) -> str:
    """The name of a folder inside the layer; raises ValueError for any other place."""
    path, quoted = PurePosixPath(name.strip()), shown(name)
    if problem := folder_problem(str(path)):
        raise ValueError(f"{quoted} {problem}: choose another name")
    if odd := ODD_CHARACTERS.search(name):
        raise ValueError(f"{quoted}: no name in it may contain {odd[0]!r}")
    if taken := _NOT_FOR_FOLDERS.intersection(path.parts):
        raise ValueError(f"{quoted}: {min(taken)} is the name of something else in a layer")
    if any(part.startswith(".") or part != part.strip() for part in path.parts):
        raise ValueError(f"{quoted}: no name in it may begin with a dot, or have a space at an end")
    _check_names(str(path))
    return str(path)


def _box_text(value: object) -> object:
    if isinstance(value, str):
        box = BoundingBox.parse(value.strip())
        if not box:
            raise ValueError(f"{value} holds no voxels")
        return str(box)
    return value


def _vec3_schema(number: str, *, kind: str = "integer", **limits: int) -> WithJsonSchema:
    # Text comes first: Airflow's form shows a line for 64,64,64 then, and a code editor for a list.
    return WithJsonSchema(
        {
            "type": ["string", "array"],
            "pattern": rf"^\s*{number}\s*,\s*{number}\s*,\s*{number}\s*$",
            "items": {"type": kind, **limits},
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

LabelList = Annotated[
    tuple[int, ...],
    PlainValidator(_labels),
    PlainSerializer(lambda labels: list(map(str, labels)), return_type=list[str]),
    WithJsonSchema(
        {
            "type": ["string", "array"],
            "pattern": f"^{_LABEL}(,{_LABEL})*$",
            "items": {"type": ["string", "integer"]},
            "minItems": 1,
            "metavar": "LABEL,LABEL,...",
        }
    ),
]
LabelTable = Annotated[
    tuple[tuple[int, int], ...],
    PlainValidator(_label_table),
    PlainSerializer(_pair_texts, return_type=list[str]),
    WithJsonSchema(
        {
            "type": ["string", "array", "object"],
            "pattern": f"^{_LABEL}:{_LABEL}(,{_LABEL}:{_LABEL})*$",
            "items": {"type": "string"},
            "minItems": 1,
            "metavar": "OLD:NEW,OLD:NEW,...",
        }
    ),
]

FolderInLayer = Annotated[str, AfterValidator(folder_in_layer)]

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
LevelsPath = Annotated[
    str | None,
    AfterValidator(lambda text: None if text is None else _layer_url(text)),
    Field(
        title="Levels path",
        description="Address of the folder in which levels/MIP/Z are the histograms of the "
        "sections: gs://BUCKET/PATH, or a path as /data/folder. Empty: the layer that is read.",
        json_schema_extra={**section(WHERE), "kind": ADDRESS},
    ),
]
FileUrl = Annotated[
    str,
    AfterValidator(_layer_url),
    Field(
        min_length=1,
        title="File",
        description="Address of a file: gs://BUCKET/PATH, s3://BUCKET/PATH, or an absolute path on "
        "this machine as /data/file.",
        json_schema_extra={**section(WHERE), "kind": ADDRESS},
    ),
]
Fingerprint = Annotated[
    str | None,
    Field(
        title="Fingerprint",
        description="What the content of the files read beside the layers must be, as a "
        "provenance names it; another is refused. Empty: as it is when the run is launched.",
        json_schema_extra=section(LIMITS),
    ),
]
SourceUrl = Annotated[
    str,
    AfterValidator(_source_url),
    Field(
        min_length=1,
        title="Source",
        description="Address of what to read: a folder of sections, a pattern such as "
        "/data/stack/*.tif, one file, a Zarr folder, or a folder of build chunks: "
        "gs://BUCKET/PATH, s3://BUCKET/PATH, or an absolute path on this machine.",
        json_schema_extra={**section(WHERE, first=True), "kind": FILES},
    ),
]
Resolution = Annotated[
    Annotated[
        tuple[float, float, float],
        PlainValidator(_resolution),
        PlainSerializer(list, return_type=list[float]),
        _vec3_schema(r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", kind="number", exclusiveMinimum=0),
    ]
    | None,
    Field(
        title="Resolution",
        description="Nanometres of a voxel on x,y,z, as 4,4,40 or 4.6,4.6,45. Empty: as the "
        "source's metadata say, or an existing destination.",
        json_schema_extra=section(WHERE, first=True),
    ),
]
Mip = Annotated[
    int,
    Field(
        ge=COARSEST,
        le=64,
        title="Mip",
        description="Mip level to read, by its place in the info file: 0 is the first, the finest; "
        "-1 is the coarsest, that with the largest voxels.",
        json_schema_extra={**section(WHERE), "kind": MIP},
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
        "`preserve_chunk_size`.",
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
    ]
    | None,
    Field(
        title="Encoding",
        description="Encoding of new mips. Empty: the encoding of the mip that is read.",
        json_schema_extra=section(HOW),
    ),
]
EncodingLevel = Annotated[
    int | None,
    Field(
        ge=0,
        le=100,
        title="Encoding level",
        description="How well jpeg and jxl keep voxels, 1 to 100, where jxl keeps all of them at "
        "100; or how hard png tries, 0 (fast) to 9 (small). Empty: as the mip that is read or that "
        "exists has it, otherwise 85 and 9.",
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
        description="What to do with a new chunk that is all background: write it, skip it where "
        "there are no chunks yet, or delete the file that may be there from an earlier run.",
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
        description="Bytes of memory that one task may use for voxels, as 3500000000 for 3.5 GB.",
        json_schema_extra=section(LIMITS),
    ),
]
Confirm = Annotated[
    bool,
    Field(
        title="Yes, replace or delete",
        description="Confirm that the files which the plan lists as replaced or deleted may go. "
        "Nothing needs it where there are none, or a run of the same parameters made them.",
        json_schema_extra=section(WHAT, flag="--yes"),
    ),
]
KeepDeleted = Annotated[
    bool,
    Field(
        title="Keep in the trash",
        description="Move what goes to the folder .trash of the layer, from where `igneous-airflow "
        "trash restore` brings it back. Only on disks: what goes from a bucket is gone, unless the "
        "bucket keeps versions.",
        json_schema_extra=section(WHAT, cli_default=False),
    ),
]
TrashEntry = Annotated[
    str | None,
    Field(
        pattern=r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}$",
        title="Trash entry",
        description="Name of the entry of the trash that gets what goes, as "
        "20250102T030405Z-0a1b2c. Empty: a new one, named when "
        "the run is launched.",
        json_schema_extra=section(LIMITS),
    ),
]
