"""The golden record notices what changes, and only that."""

import gzip
import json
from copy import deepcopy
from pathlib import Path
from random import Random

import golden
import golden_inputs as inputs
import numpy as np
import pytest
from golden_adapter import stages
from golden_case import OFFSET, Step, step
from golden_inputs import Spec
from golden_record import Entry, differences, facts_of, look, record_case

RECORD = json.loads(golden.RECORD.read_text())


def small(root: Path) -> list[Step]:
    """A layer of two chunks that gets a mip."""
    spec = Spec(offset=OFFSET)
    layer = inputs.write_layer(root / "layer", inputs.blobs((16, 8, 8), "uint16"), spec)
    (root / "sources").mkdir()
    (root / "sources" / "note").write_text("only read")
    return [step("downsample", layer=layer, num_mips=1, compress="none")]


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """What is kept of the small case, which is still in `tmp_path`."""
    return record_case(small, tmp_path)


def changed(old: Entry, new: Entry) -> list[str]:
    """Where two entries differ in more than wording."""
    return [found.where for found in differences(old, new) if not found.is_wording]


def test_the_same_is_recorded_in_another_folder_and_in_any_order(
    entry: Entry, tmp_path: Path
) -> None:
    for seed in range(3):
        root = tmp_path / "elsewhere" / str(seed)
        root.mkdir(parents=True)
        assert differences(entry, record_case(small, root, Random(seed))) == []


@pytest.mark.parametrize(
    "name", ["downsample_sparse_labels", "ingest_hdf5", "mesh_simplified", "chain_segmentation"]
)
def test_a_case_is_as_the_record_has_it(name: str, tmp_path: Path) -> None:
    made = record_case(golden.CASES[name], tmp_path, Random(1))
    assert changed(RECORD["cases"][name], made) == []


def test_every_case_is_in_the_record_and_every_stage_in_a_case() -> None:
    assert list(RECORD["cases"]) == list(golden.CASES)
    steps = [step for entry in RECORD["cases"].values() for step in entry.get("steps", [])]
    assert {step["stage"] for step in steps if "audit" in step} == stages()


def test_a_changed_byte_is_noticed(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "layer" / "info"
    path.write_bytes(path.read_bytes() + b" ")
    made = {**entry, "made": look(tmp_path)}
    assert changed(entry, made) == ["/made/layer/files/info"]


def test_a_changed_voxel_is_noticed_in_the_file_and_in_the_voxels(
    entry: Entry, tmp_path: Path
) -> None:
    (chunk,) = (tmp_path / "layer" / "16_16_40").iterdir()
    voxels = np.frombuffer(chunk.read_bytes(), np.uint16).copy()
    voxels[0] ^= 1
    chunk.write_bytes(voxels.tobytes())
    assert changed(entry, {**entry, "made": look(tmp_path)}) == [
        f"/made/layer/files/16_16_40/{chunk.name}",
        "/made/layer/voxels/16_16_40",
    ]


def test_the_same_voxels_in_other_bytes_are_a_changed_file_only(
    entry: Entry, tmp_path: Path
) -> None:
    (chunk,) = (tmp_path / "layer" / "16_16_40").iterdir()
    chunk.with_name(f"{chunk.name}.gz").write_bytes(gzip.compress(chunk.read_bytes()))
    chunk.unlink()
    assert changed(entry, {**entry, "made": look(tmp_path)}) == [
        f"/made/layer/files/16_16_40/{chunk.name}",
        f"/made/layer/files/16_16_40/{chunk.name}.gz",
    ]


def test_a_missing_file_a_new_one_and_a_new_folder_are_noticed(
    entry: Entry, tmp_path: Path
) -> None:
    (chunk,) = (tmp_path / "layer" / "16_16_40").iterdir()
    chunk.unlink()
    (tmp_path / "layer" / "left").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert changed(entry, {**entry, "made": look(tmp_path)}) == [
        f"/made/layer/files/16_16_40/{chunk.name}",
        "/made/layer/files/left",
        "/made/layer/voxels/16_16_40",
        "/made/other/files/file",
    ]


def test_the_info_and_the_provenance_are_compared_but_not_who_and_when(
    entry: Entry, tmp_path: Path
) -> None:
    path = tmp_path / "layer" / "provenance"
    provenance = json.loads(path.read_text())
    provenance["processing"][0] |= {"by": "another@example.org", "date": "2001-01-01 00:00 UTC"}
    path.write_text(json.dumps(provenance))
    assert changed(entry, {**entry, "made": look(tmp_path)}) == []
    provenance["processing"][0]["method"]["num_mips"] = 2
    path.write_text(json.dumps(provenance))
    info = json.loads((tmp_path / "layer" / "info").read_text())
    (tmp_path / "layer" / "info").write_text(json.dumps({**info, "type": "segmentation"}))
    assert changed(entry, {**entry, "made": look(tmp_path)}) == [
        "/made/layer/files/info",
        "/made/layer/info",
        "/made/layer/provenance/0",
    ]


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("memory", 1, 2),
        ("tasks", 1, 2),
        ("writes_to", "file://ROOT/layer", "file://ROOT/other"),
        ("makes", ["8_8_40 raw"], ["8_8_40 jpeg"]),
        ("notes", ["17 of 20"], ["18 of 20"]),
        ("notes", ["17 of 20"], []),
        ("refused", [], [""]),
    ],
)
def test_a_changed_plan_is_noticed(entry: Entry, kind: str, old: object, new: object) -> None:
    before, after = deepcopy(entry), deepcopy(entry)
    before["steps"][0]["plan"][kind] = old
    after["steps"][0]["plan"][kind] = new
    (where,) = changed(before, after)
    assert where.startswith(f"/steps/0/plan/{kind}")


def test_numbers_and_names_of_formats_are_the_facts_of_a_text() -> None:
    old = "a grid of 3,2,1 cells (16,16,9 voxels each); file://ROOT/layer is 'raw', 2.00 times."
    new = "3,2,1 blocks: 16,16,9 voxels at file://ROOT/layer, `raw` (2.00)"
    assert facts_of(old) == facts_of(new) == "3,2,1 16,16,9 file://ROOT/layer raw 2.00"
    assert facts_of("its losses go on") == facts_of("its compression artifacts carry over") == ""


def test_another_wording_is_shown_but_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = deepcopy(RECORD)
    says = kept["cases"]["chain_that_cannot_start"]["planned_ahead"][0]["says"]
    says[0] = "refused: mip 2 is not there: the layer has mips 0 to 1"
    (tmp_path / "record.json").write_text(json.dumps(kept))
    assert run(tmp_path, "chain_that_cannot_start") == 0
    shown = capsys.readouterr().out
    assert "chain_that_cannot_start: 1 sentence differs, which is not compared" in shown
    assert "mip 2 is not there" in shown


def run(folder: Path, *words: str) -> int:
    return golden.main(["--folder", str(folder), "--record", f"{folder}/record.json", *words])


def test_differences_are_shown_case_by_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = deepcopy(RECORD)
    layer = kept["cases"]["downsample_narrow_maximum"]["made"]["layer"]
    layer["voxels"]["64_64_320"] = "uint16 17,1,1,1 0123456789abcdef"
    del layer["files"]["info"]
    (tmp_path / "record.json").write_text(json.dumps(kept))
    assert run(tmp_path, "downsample_narrow_maximum", "chain_that_cannot_start") == 1
    shown = capsys.readouterr().out
    assert "downsample_narrow_maximum: 2 values differ" in shown
    assert "/made/layer/files/info: is new" in shown
    assert "was uint16 17,1,1,1 0123456789abcdef" in shown
    assert "1 of 2 cases are as the record has them" in shown


def test_updating_some_cases_leaves_the_others(tmp_path: Path) -> None:
    cases = {name: RECORD["cases"][name] for name in ("transfer_moved", "chain_that_cannot_start")}
    kept = {"made_with": {}, "cases": {**cases, "chain_that_cannot_start": {}}}
    (tmp_path / "record.json").write_text(json.dumps(kept))
    assert run(tmp_path, "chain_that_cannot_start", "--update") == 0
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["cases"] == cases
    assert written["made_with"]["numpy"] == np.__version__


def fails(root: Path) -> list[Step]:
    return [step("downsample", layer=f"{root}/layer", num_mips=0)]


def changes_its_source(root: Path) -> list[Step]:
    layer = inputs.write_layer(root / "sources" / "layer", inputs.blobs((16, 8, 8)))
    return [step("downsample", layer=layer, num_mips=1)]


def test_a_case_that_fails_is_named_and_updates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(golden.CASES, "fails", fails)
    (tmp_path / "record.json").write_text('{"made_with": {}, "cases": {}}')
    assert run(tmp_path, "fails", "--update") == 1
    assert (tmp_path / "record.json").read_text() == '{"made_with": {}, "cases": {}}'
    assert run(tmp_path, "fails") == 1
    shown = capsys.readouterr().out
    assert "fails: ValidationError: 1 validation error" in shown
    assert "fails: 1 value differs" in shown


def test_a_stage_that_writes_to_its_source_is_noticed(tmp_path: Path) -> None:
    assert record_case(changes_its_source, tmp_path)["sources"] == "changed by a stage"


def test_a_case_of_the_record_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "chain_that_cannot_start"
    monkeypatch.setattr(golden, "CASES", {name: golden.CASES[name]})
    cases = {name: RECORD["cases"][name], "gone": {"sources": "0123456789abcdef"}}
    (tmp_path / "record.json").write_text(json.dumps({"made_with": {}, "cases": cases}))
    assert run(tmp_path) == 1
    assert "gone: 1 value differs" in capsys.readouterr().out
