"""Hostile values for every field of every stage: refused where they enter, or harmless after."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from igneous_airflow.errors import IgneousError
from igneous_airflow.field_values import shown
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stage import Stage
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import snapshot

HUGE = 10**400


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS: list[Any] = [
    HUGE, -HUGE, 10**4_500, 10**300, 2**63, 2**64, 2**64 - 1, -(2**63), float("inf"),
    float("-inf"), float("nan"), 1e308, -1e308, 5e-324, True, False, -1, 0, 1.5, "9" * 400,
    "9" * 5_000, "1e400", "inf", "nan", " 7 ", "7\n", "1_000", "\u0667", "\u2460", "\u00b2",
    "\uff17", "0x10", "1e2", "+1", "-0", "",
]  # fmt: skip
VECTORS: list[Any] = [
    [HUGE, 1, 1], [10**300, 1, 1], [2**63] * 3, [float("inf")] * 3, [float("nan")] * 3, [True] * 3,
    [1, 1], [1, 1, 1, 1], [None] * 3, ["1", "1", "\u0667"], [b"1"] * 3, b"\1\1\1",
    {"0": 1, "1": 1, "2": 1}, [1e308] * 3, [5e-324] * 3, [-HUGE] * 3, "\u0661,1,1", "1_0,1,1",
    "9" * 400 + ",1,1", " 1 , 1 , 1 ", "1;1;1", "1e-300,1e300,1", "inf,inf,inf",
    "0-" + "9" * 400 + "_0-1_0-1", "0-\u0661_0-1_0-1", "0-1_0-1_0-1\0", "1:" + "9" * 400,
    "\u0661:2", {"1": HUGE}, {HUGE: 1}, {1.5: 2}, [[1, HUGE]], ["1:2:3"], [True], [1.5],
]  # fmt: skip
TEXTS: list[Any] = [
    "a\0b", "\0", "a\ud800b", "\udfff", "a\nb", "a\rb", "a\tb", "a\x1b[2Jb", "a\x7fb", "a\x85b",
    "a\u2028b", ".", "..", "/", "//", "a/../b", "../x", "a/./b", "./", "cells", "mesh/cells",
    ".trash", ".trash/x", "8_8_40", "8_8_40/x", "info", "provenance", "levels", ".hidden",
    "a/.hidden", "x" * 256, "\u795e" * 86, "a/" + "x" * 256, "x" * 5_000, "x" * 1_000_000, " ",
    "a ", " a", "a /b", "a\\b", "a:b", "a%2e%2e/b", "\u202eb", "\ufeffb", "/a\0b", "/a\ud800",
    "/a\nb", "/" + "x" * 256, "/a/" + "x" * 5_000, "/" + "x/" * 3_000, "file:///a\0",
    "file://host/a", "s3://b/a\tb", "s3://b/a\x85b", "s3://b/\ud800", "s3://KEY:SECRET@b/a\nb",
    "'; DROP TABLE x; --", "{{ x }}", "$(id)", "\U0001f480",
]  # fmt: skip
OTHERS: list[Any] = [
    None, [], {}, [[]], {"a": {"b": [1]}}, nested(50), nested(100_000), b"a\xff", bytearray(b"a"),
    object(), lambda: 0, {1, 2}, ("a",), ["a\0b"], ["a\ud800"], {"a\0b": 1}, ["x" * 1_000_000],
]  # fmt: skip
HOSTILE = [*NUMBERS, *VECTORS, *TEXTS, *OTHERS]
REMOTE = ("s3://", "gs://", "precomputed://", "http")
FIELDS = [
    (name, field) for name, model in registered_stages().items() for field in model.model_fields
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny layers for fields that need one, by the names of the fields."""
    folder = tmp_path_factory.mktemp("layers")
    voxels = random_voxels(Vec3(16, 16, 8), "uint64")
    for name in ("layer", "src"):
        write_layer(folder / name, voxels, LayerSpec("segmentation"))
    return folder


def values_of(model: type[Stage], folder: Path) -> dict[str, Any]:
    fields = model.model_fields.items()
    return {name: f"{folder}/{name}" for name, field in fields if field.is_required()}


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_hostile_value_is_refused_at_its_field_or_harmless(
    folder: Path, name: str, field: str
) -> None:
    """No other error than ours, at once or later, and no error that is longer than a screen."""
    model = registered_stages()[name]
    values = values_of(model, folder)
    before = snapshot(folder)
    accepted: list[Stage] = []
    refused = 0
    for value in HOSTILE:
        try:
            stage = model.model_validate(values | {field: value})
        except ValidationError as error:
            refused += 1
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            assert {found["loc"][:1] for found in errors} <= {(field,), ()}, shown(value)
            assert all(len(found["msg"]) < 600 for found in errors), shown(value)
            str(error).encode()
            continue
        text = json.dumps(stage.parameters(), allow_nan=False)
        assert len(text.encode()) < 20_000, shown(value)
        assert model.model_validate(json.loads(text)) == stage
        if stage not in accepted:
            accepted.append(stage)
    assert refused > len(HOSTILE) / 2
    for stage in accepted:
        if not str(getattr(stage, field)).startswith(REMOTE):
            stage.plan().describe().encode()
            try:
                stage.resolved()
            except IgneousError as error:
                str(error).encode()
    assert snapshot(folder) == before


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_no_field_takes_control_characters_or_halves_of_characters(
    folder: Path, name: str, field: str
) -> None:
    model = registered_stages()[name]
    for character in "\0\n\r\t\x1b\x7f\x85\u2028\ud800\udfff":
        for text in (
            f"a{character}b",
            f"/a{character}b",
            f"s3://b/a{character}b",
            f"1{character},1,1",
        ):
            with pytest.raises(ValidationError, match="control characters") as caught:
                model.model_validate(values_of(model, folder) | {field: text})
            assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("value", [10**15, HUGE, -1, 2**63])
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_number_is_never_beyond_what_json_holds(
    folder: Path, name: str, field: str, value: int
) -> None:
    model = registered_stages()[name]
    try:
        stage = model.model_validate(values_of(model, folder) | {field: value})
    except ValidationError:
        return
    found = getattr(stage, field)
    assert not isinstance(found, int) or abs(found) <= 2**53


@pytest.mark.parametrize(
    "directory",
    [".", "..", "/", "cells", "mesh/cells", ".trash", ".trash/x", ".x", "a/.x", "info",
     "provenance", "levels/0", "a\0b",
     "a\nb", "a\ud800", "x" * 256, "\u795e" * 86, "a /b", "", " "],
)  # fmt: skip
def test_a_mesh_directory_is_a_plain_new_folder(folder: Path, directory: str) -> None:
    with pytest.raises(ValidationError, match="mesh_dir"):
        Mesh(layer=f"{folder}/layer", mesh_dir=directory)


@pytest.mark.parametrize("directory", ["8_8_40", "8_8_40/", "./8_8_40", "8_8_40/meshes"])
def test_a_mesh_directory_is_no_scale_and_lies_in_none(folder: Path, directory: str) -> None:
    (refusal,) = Mesh(layer=f"{folder}/layer", mesh_dir=directory).plan().refusals
    assert "holds the chunks of a scale" in refusal


@pytest.mark.parametrize(
    "directory", ["meshes", "deep/meshes", "a b", "\u795e\u7d4c", "x" * 255, "meshes/"]
)
def test_other_mesh_directories_are_taken(folder: Path, directory: str) -> None:
    assert Mesh(layer=f"{folder}/layer", mesh_dir=directory).plan().refusals == ()


def test_a_secret_in_an_address_that_is_refused_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Downsample(layer="s3://KEY:SECRET@bucket/a\nb")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(HUGE, "1000"), ("x" * 10_000, "'xxx"), (nested(100_000), "[[["), (b"a", "b'a'")],
)
def test_a_value_is_shown_short_whatever_it_is(value: Any, text: str) -> None:
    assert shown(value).startswith(text)
    assert len(shown(value)) < 150
