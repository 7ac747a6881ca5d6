"""Shared fields: what they accept, how they tidy it, and what they refuse."""

from typing import Annotated, get_args

import pytest
from hypothesis import given, settings
from pydantic import Field, TypeAdapter, ValidationError

from igneous_airflow import fields
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.testing.strategies import boxes, vectors

LAYER = TypeAdapter(fields.LayerUrl)
BOUNDS = TypeAdapter(fields.Bounds)
FACTOR = TypeAdapter(fields.PoolingFactor)
SIZE = TypeAdapter(fields.PositiveVec3)
BACKGROUND = TypeAdapter(fields.BackgroundColor)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("gs://bucket/path", "gs://bucket/path"),
        ("  s3://bucket/path/  ", "s3://bucket/path"),
        ("/data/layer", "file:///data/layer"),
        ("/data/layer//", "file:///data/layer"),
        ("/data/a b/é", "file:///data/a b/é"),
        ("file:///data/layer", "file:///data/layer"),
        ("precomputed://gs://bucket/path", "gs://bucket/path"),
        ("gs://bucket/path/|neuroglancer-precomputed:", "gs://bucket/path"),
        ("mem://bucket/layer", "mem://bucket/layer"),
        ("https://server/layer", "https://server/layer"),
        ("minio://bucket/layer", "minio://bucket/layer"),
    ],
)
def test_an_address_is_tidied(text, url):
    assert LAYER.validate_python(text) == url
    assert LAYER.validate_python(url) == url


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "is not an address"),
        ("   ", "is not an address"),
        ("data/layer", "absolute path"),
        ("~/layer", "absolute path"),
        ("C:\\data", "absolute path"),
        ("gs:/bucket/path", "is not an address"),
        ("gs://", "names no layer"),
        ("gs:///", "names no layer"),
        ("/", "names no layer"),
        ("file://data/layer", "not absolute"),
        ("zarr://gs://bucket/path", "not zarr"),
        ("precomputed://n5://gs://bucket/path", "not n5"),
        ("graphene://https://server/x", "not graphene"),
        ("s3+http://host/bucket", "alias"),
        ("gs://bucket/a\nb", "control characters"),
        ("/data/\0", "control characters"),
        (5, "string"),
        (None, "string"),
        ("/data/\ud800", "control characters"),
    ],
)
def test_an_address_that_is_none_is_refused(text, named):
    with pytest.raises(ValidationError, match=named):
        LAYER.validate_python(text)


@given(boxes())
@settings(deadline=None)
def test_bounds_are_written_as_chunk_files_are_named(box):
    assert BOUNDS.validate_python(f" {box} ") == str(box)
    assert BoundingBox.parse(BOUNDS.validate_python(str(box))) == box


@pytest.mark.parametrize("text", ["", "everything", "0-1_0-1", "5-5_0-1_0-1", "5-4_0-1_0-1", 5, []])
def test_bounds_without_voxels_are_refused(text):
    with pytest.raises(ValidationError):
        BOUNDS.validate_python(text)


@given(vectors(1, 1000))
@settings(deadline=None)
def test_three_numbers_are_read_from_text_lists_and_vectors(vector):
    for form in (vector, list(vector), tuple(vector), str(vector), " , ".join(map(str, vector))):
        assert SIZE.validate_python(form) == vector
    assert SIZE.dump_python(vector, mode="json") == list(vector)
    assert SIZE.validate_json(SIZE.dump_json(vector)) == vector


@pytest.mark.parametrize(
    "value",
    [
        *["", "8", "8,8", "8,8,8,8", "8;8;8", "a,b,c", "1e3,8,8", 8, None, {}, {"x": 8}],
        *[[8, 8], [8, 8, 8.5], [8, 8, None], [True, 8, 8], [8, 8, 0], [-1, 8, 8], [[8], 8, 8]],
        *[[float("inf"), 8, 8], [float("nan"), 8, 8]],
    ],
    ids=repr,
)
def test_anything_but_three_positive_integers_is_refused(value):
    for adapter in (SIZE, FACTOR):
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize("factor", ["2,2,1", "2,2,2", "1,1,2", "4,4,1", "64,1,1"])
def test_factors_are_powers_of_two(factor):
    assert FACTOR.validate_python(factor) == Vec3.of(map(int, factor.split(",")))


@pytest.mark.parametrize("factor", ["1,1,1", "3,2,1", "2,2,6", "128,1,1"])
def test_other_factors_are_refused(factor):
    with pytest.raises(ValidationError, match=r"powers? of two|pools nothing"):
        FACTOR.validate_python(factor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-Infinity", "NaN", "black", None])
def test_a_background_is_a_number(value):
    with pytest.raises(ValidationError):
        BACKGROUND.validate_python(value)


def described_fields():
    for name, alias in vars(fields).items():
        metadata = get_args(alias)[1:] if name[0].isupper() else ()
        for info in metadata:
            if type(info) is type(Field()):
                yield name, info


def test_every_shared_field_has_a_title_a_description_and_a_section():
    found = dict(described_fields())
    assert {"LayerUrl", "Mip", "Bounds", "FillMissing", "MemoryTarget"} <= set(found)
    for name, info in found.items():
        assert info.title, name
        assert info.description.endswith("."), name
        assert info.json_schema_extra["section"] in {"Where", "What", "How", "Limits"}, name


def test_a_section_orders_the_form():
    field = Annotated[int, Field(json_schema_extra=fields.section(fields.HOW))]
    assert TypeAdapter(field).json_schema()["section"] == "How"


LABELS, TABLE = TypeAdapter(fields.LabelList), TypeAdapter(fields.LabelTable)
FOLDER = TypeAdapter(fields.FolderInLayer)
BIG = 2**64 - 1


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("17", (17,)),
        (" 42 , 17,42", (17, 42)),
        ([42, 17], (17, 42)),
        (["42", 17], (17, 42)),
        ((f"{BIG}",), (BIG,)),
        (str(2**53 + 1), (2**53 + 1,)),
    ],
)
def test_labels_are_text_or_a_list_and_survive_json_as_text(given, labels):
    assert LABELS.validate_python(given) == labels
    text = LABELS.dump_json(labels)
    assert text == str([str(label) for label in labels]).replace("'", '"').replace(" ", "").encode()
    assert LABELS.validate_json(text) == labels


@pytest.mark.parametrize(
    "value", ["", "x", "1,,2", "-1", "1.5", [], [1.5], [None], [True], ["0"], [2**64], {}, 5, "²"]
)
def test_what_is_no_list_of_labels_is_refused(value):
    with pytest.raises(ValidationError):
        LABELS.validate_python(value)


def test_no_more_labels_are_taken_than_a_message_holds():
    assert len(LABELS.validate_python(list(range(1, 10_001)))) == 10_000
    with pytest.raises(ValidationError, match="1 to 10,000 labels"):
        LABELS.validate_python(list(range(1, 10_002)))


@pytest.mark.parametrize(
    "given",
    [
        f"17:1,42:{BIG}",
        f" 42 : {BIG} , 17:1",
        {"17": 1, "42": str(BIG)},
        {17: 1, 42: BIG},
        ["17:1", f"42:{BIG}"],
        [(17, 1), [42, BIG]],
        ["17:1", "17:1", f"42:{BIG}"],
    ],
)
def test_a_table_of_labels_is_text_a_mapping_or_a_list(given):
    table = ((17, 1), (42, BIG))
    assert TABLE.validate_python(given) == table
    assert TABLE.validate_json(TABLE.dump_json(table)) == table
    assert TABLE.dump_json(table) == f'["17:1","42:{BIG}"]'.encode()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("17", "'17' is not OLD:NEW"),
        ("17:1:2", "not OLD:NEW"),
        ("a:b", "'a' is not a label"),
        ("0:1", "0 is the background"),
        ({"1": "2", " 1": "3"}, "1 is given twice"),
        ({}, "pairs OLD:NEW"),
        ([[1]], "not OLD:NEW"),
        ("1:-1", "not a label"),
    ],
)
def test_what_is_no_table_of_labels_is_refused(value, named):
    with pytest.raises(ValidationError, match=named):
        TABLE.validate_python(value)


def test_a_folder_in_a_layer_is_tidied_or_refused():
    assert FOLDER.validate_python(" mesh/v2/ ") == "mesh/v2"
    for name in ("", "/mesh", "../mesh", "a/../../b", "gs://bucket/mesh", "."):
        with pytest.raises(ValidationError, match=r"not the name of a folder|may contain ':'"):
            FOLDER.validate_python(name)
