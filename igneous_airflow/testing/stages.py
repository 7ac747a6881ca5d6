"""What every stage must do: subclass `StageTests` and give it the fixture `example`.

The stage is what `example` returns, so that nobody lists the stages; a test of ours sees to it that
every registered stage has such a subclass.
"""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from igneous_airflow.errors import AuditFailed, InvalidParameter, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage
from igneous_airflow.stages import registered_stages, stage_class
from igneous_airflow.storage.files import SUFFIXES, plain_name
from igneous_airflow.storage.rehearsal import rehearsal
from igneous_airflow.voxel_stages import WritesLayer

#: Modules that must not be imported just because a stage is described.
HEAVY = ("airflow", "boto3", "cloudfiles", "cloudvolume", "numpy", "tinybrain")
_CUT_AT_MOST = 12  # files of a task, each with a proof of its own
#: What a form of Airflow can show; it follows no `$ref` and no nested `properties`.
_SHOWN = frozenset({"boolean", "integer", "number", "string"})


class StageTests:
    """The contract of a stage, for pytest.

    The subclass supplies the fixture `example`: a stage on a tiny layer below `tmp_path`, ready to
    be launched, that is accepted, has at least two cells, and writes everything it writes below
    `tmp_path`.
    """

    @pytest.fixture
    def example(self, tmp_path: Path) -> Stage:
        """Return a stage that is ready to be launched; supplied by the subclass."""
        raise NotImplementedError

    @pytest.fixture
    def launched(self, example: Stage) -> Stage:
        """Return the example as a run launches it: resolved, accepted and prepared."""
        stage = example.resolved()
        stage.plan().require_accepted()
        stage.prepare()
        return stage

    def test_a_form_can_show_every_field(self, example: Stage) -> None:
        schema = type(example).model_json_schema()
        assert "$defs" not in schema
        for name, field in schema["properties"].items():
            _assert_shown(name, field)

    def test_every_field_has_a_title_a_description_and_a_section(self, example: Stage) -> None:
        for name, field in type(example).model_json_schema()["properties"].items():
            assert field.get("title"), name
            assert str(field.get("description", "")).endswith("."), name
            assert field.get("section"), name

    def test_its_docstring_says_what_it_does(self, example: Stage) -> None:
        own = type(example).__doc__
        assert own is not None
        assert own != Stage.__doc__
        assert own.split("\n")[0].endswith((".", ","))

    def test_it_is_found_by_its_name(self, example: Stage) -> None:
        assert example.name.isidentifier()
        assert example.name == example.name.lower()
        assert registered_stages()[example.name] is stage_class(example.name) is type(example)

    def test_describing_it_imports_nothing_heavy(self, example: Stage) -> None:
        module = type(example).__module__
        script = (
            f"import sys, {module}; sys.modules[{module!r}].{type(example).__name__}"
            f".model_json_schema(); print([m for m in {HEAVY} if m in sys.modules])"
        )
        answer = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert answer.stdout.strip() == "[]"

    def test_a_field_that_does_not_exist_is_refused(self, example: Stage) -> None:
        with pytest.raises(ValidationError, match="no_such_field"):
            type(example).model_validate({**example.parameters(), "no_such_field": 1})

    def test_its_parameters_cannot_be_changed(self, example: Stage) -> None:
        name = next(iter(type(example).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(example, name, getattr(example, name))

    def test_parameters_come_back_from_json_defaults_included(self, example: Stage) -> None:
        parameters = example.parameters()
        assert set(parameters) == set(type(example).model_fields)
        assert type(example).model_validate(json.loads(json.dumps(parameters))) == example
        assert type(example).model_validate_json(example.model_dump_json()) == example

    def test_a_record_brings_the_stage_to_the_worker(self, example: Stage, tmp_path: Path) -> None:
        run = _launch(example, tmp_path)
        assert run.requested == example.parameters()
        assert Run.load(run.url).make_stage().parameters() == run.resolved
        assert run.blocks == len(example.resolved().cells())

    def test_a_record_with_a_broken_parameter_is_refused(
        self, example: Stage, tmp_path: Path
    ) -> None:
        run = _launch(example, tmp_path)
        for name in type(example).model_fields:
            broken = {**run.resolved, name: {"neither": ["here", "nor there"]}}
            with pytest.raises(InvalidParameter, match=name):
                run.model_copy(update={"resolved": broken}).make_stage()

    def test_preparing_in_a_rehearsal_writes_nothing(self, example: Stage, tmp_path: Path) -> None:
        """As it is done when a chain is planned."""
        before = snapshot(tmp_path)
        with rehearsal():
            stage = example.resolved()
            plan = stage.plan()
            stage.prepare()
        assert snapshot(tmp_path) == before
        assert plan == example.model_copy().resolved().plan()

    def test_a_plan_writes_nothing(self, example: Stage, tmp_path: Path) -> None:
        before = snapshot(tmp_path)
        folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
        for folder in folders:
            os.utime(folder, (0, 0))
        plan = example.resolved().plan()
        assert plan == example.resolved().plan()
        assert plan.refusals == ()
        assert plan.stage == example.name
        assert plan.describe()
        len(example.resolved().cells())
        assert snapshot(tmp_path) == before
        assert not any(folder.stat().st_mtime for folder in folders), "a file came and went"

    @pytest.mark.parametrize("why", ["refusals", "unconfirmed"])
    def test_nothing_begins_before_its_plan_is_accepted(
        self, example: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        stage = example.resolved()
        cell = stage.cells()[0]
        reason = "the reason" if why == "unconfirmed" else ("the reason",)
        plan = stage.plan().model_copy(update={why: reason})
        before = snapshot(tmp_path)
        monkeypatch.setattr(type(stage), "plan", lambda _: plan)
        begins: tuple[Callable[[Stage], object], ...] = (
            lambda stage: stage.prepare(),
            lambda stage: stage.cells(),
            lambda stage: stage.run(cell),
        )
        for begin in begins:
            with pytest.raises(PlanRefused, match="the reason"):
                begin(example.model_copy().resolved())
        assert snapshot(tmp_path) == before

    def test_its_plan_is_looked_at_once_for_all_cells(
        self, launched: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans: list[Plan] = []
        plan = type(launched).plan

        def looked_at(stage: Stage) -> Plan:
            plans.append(plan(stage))
            return plans[-1]

        monkeypatch.setattr(type(launched), "plan", looked_at)
        stage = launched.model_copy()
        for cell in stage.cells():
            stage.run(cell)
        assert len(plans) == 1
        for cell in launched.model_copy().accepted().cells():
            assert cell is not None
        assert len(plans) == 1

    def test_preparing_twice_is_preparing_once(self, launched: Stage, tmp_path: Path) -> None:
        before = snapshot(tmp_path)
        launched.prepare()
        assert snapshot(tmp_path) == before

    def test_cells_are_the_same_before_and_after_prepare(self, example: Stage) -> None:
        stage = example.resolved()
        before = list(stage.cells())
        stage.prepare()
        cells = stage.cells()
        assert list(cells) == before
        assert len(cells) == len(before) == stage.plan().tasks >= 2
        assert [cells[index] for index in range(len(cells))] == before

    def test_cells_cover_the_work_once(self, launched: Stage) -> None:
        cells = launched.cells()
        boxes = [cell for cell in cells if isinstance(cell, BoundingBox)]
        for one, other in combinations(boxes, 2):
            assert not one.intersection(other)
        if boxes:
            assert sum(box.voxels for box in boxes) == launched.plan().voxels
        assert len({str(cell) for cell in cells}) == len(cells)

    def test_cells_in_any_order_and_twice_leave_what_once_leaves(
        self, launched: Stage, tmp_path: Path
    ) -> None:
        cells = list(launched.cells())
        for cell in cells:
            launched.run(cell)
        once = snapshot(tmp_path)
        for cell in reversed(cells):
            launched.run(cell)
        assert snapshot(tmp_path) == once

    def test_every_cell_has_work_of_its_own(self, launched: Stage, tmp_path: Path) -> None:
        for cell in launched.cells():
            before = snapshot(tmp_path)
            launched.run(cell)
            assert snapshot(tmp_path) != before

    def test_finish_refuses_while_work_is_missing_and_names_the_cell(
        self, launched: Stage, tmp_path: Path
    ) -> None:
        *cells, last = launched.cells()
        for cell in cells:
            launched.run(cell)
        before = snapshot(tmp_path)
        with pytest.raises(AuditFailed) as caught:
            launched.finish("tester")
        assert caught.value.cells == (len(cells),)
        assert snapshot(tmp_path) == before
        launched.run(last)
        assert launched.finish("tester").outputs

    def test_finish_refuses_files_that_were_emptied_and_names_their_cell(
        self, launched: Stage
    ) -> None:
        works = [launched.run(cell) for cell in launched.cells()]
        for number, work in enumerate(works):
            for name in {min(work.files), max(work.files)} if work.files else set[str]():
                file = _stored(launched.output, name)
                content = file.read_bytes()
                assert work.files[name] == len(content), name
                file.write_bytes(b"")
                with pytest.raises(AuditFailed) as caught:
                    launched.finish("tester")
                assert caught.value.cells == (number,)
                file.write_bytes(content)
        assert any(work.files for work in works) == bool(launched.plan().outputs)
        launched.finish("tester")

    def test_a_run_refuses_files_that_were_cut_and_names_their_cell(
        self, example: Stage, tmp_path: Path
    ) -> None:
        """By its receipts, which tell the size of each file; of many files some are cut."""
        run = worked_run(example, tmp_path)
        for task in range(run.planned):
            receipt = run.ledger.receipt(task)
            assert receipt is not None
            names = sorted(receipt.work.files)
            for name in names[:: len(names) // _CUT_AT_MOST + 1]:
                file = _stored(run.make_stage().output, name)
                content = file.read_bytes()
                file.write_bytes(content[:-3])
                with pytest.raises(AuditFailed) as caught:
                    run.finish()
                assert caught.value.cells == (task,), name
                assert not run.ledger.has_receipt(task)
                file.write_bytes(content)
                run.ledger.write_receipt(receipt)
        assert run.finish().audit.outputs
        assert run.is_finished

    def test_work_tells_of_every_file_and_folder_that_it_changes(self, launched: Stage) -> None:
        """So that all of it is on the disk before the receipt is."""
        for cell in launched.cells():
            assert changes_untold(launched, cell) == (set(), set())

    def test_finishing_twice_is_finishing_once(self, launched: Stage, tmp_path: Path) -> None:
        for cell in launched.cells():
            launched.run(cell)
        audit = launched.finish("tester")
        files = set(snapshot(tmp_path))
        assert launched.finish("tester") == audit
        assert set(snapshot(tmp_path)) == files


def _launch(stage: Stage, folder: Path) -> Run:
    url = f"file://{folder}/runs/run"
    return Run.launch(stage, url=url, queue="memory://conformance", by="tester")[0]


def worked_run(stage: Stage, folder: Path) -> Run:
    """Launch a run of a stage below a folder, and do all of its tasks, with their receipts."""
    run = _launch(stage, folder)
    run.prepare()
    do_missing(run)
    return run


def do_missing(run: Run) -> None:
    """Do the tasks of a run that have no receipt, of one block each, as workers would."""
    stage = run.make_stage()
    cells = stage.cells()
    for task in list(run.done().missing()):
        work = stage.run(cells[task])
        run.ledger.write_receipt(Receipt(task=task, attempt=1, seconds=1, worker="w", work=work))


def changes_untold(stage: Stage, cell: Any) -> tuple[set[str], set[str]]:
    """Do a cell; return the files that it wrote, and the folders it changed, and did not tell of.

    Files that it tells of and did not write are among the former. Moving a file changes folders.
    """
    root = Path(stage.output.removeprefix("file://"))
    before = {path.stat().st_ino: path.stat().st_mtime_ns for path in _files_below(root)}
    for folder in _folders_of(root):
        os.utime(folder, (0, 0))
    work = stage.run(cell)
    written = {
        plain_name(str(path.relative_to(root)))
        for path in _files_below(root)
        if before.get(path.stat().st_ino) != path.stat().st_mtime_ns
    }
    changed = {
        str(folder.relative_to(root)) for folder in _folders_of(root) if folder.stat().st_mtime_ns
    }
    told = {str(parent) for name in work.files for parent in Path(name).parents}
    return written ^ work.files.keys(), changed - told - set(work.folders)


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _folders_of(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.is_dir()]


def _stored(output: str, name: str) -> Path:
    """The file of a name, in whatever compression."""
    path = f"{output.removeprefix('file://')}/{name}"
    (file,) = filter(Path.is_file, (Path(path + suffix) for suffix in ("", *SUFFIXES.values())))
    return file


def complete(stage: Stage, random: Random | None = None) -> Audit:
    """Do all of a stage, as a run would; with `random`, its cells in any order.

    What its plan would have confirmed counts as confirmed, but for what the stage itself insists
    on.
    """
    stage = stage.resolved()
    stage.plan().require_possible()
    stage.accepted().prepare()
    cells = list(stage.cells())
    if random is not None:
        random.shuffle(cells)
    for cell in cells:
        stage.run(cell)
    return stage.finish("tester")


def complete_whole_and_in_parts(
    whole: WritesLayer, blocks: int, random: Random, *, smallest_tiles: bool = False
) -> Path:
    """Make a layer in one cell, then beside it in cells of some blocks; the bytes must be the same.

    A block is the least that a cell can be. `smallest_tiles` lets the cells work in steps as small
    as possible, as if memory were short. Returns the folder of the layer.
    """
    folder = Path(whole.dest.removeprefix("file://"))
    complete(whole)
    assert whole.plan().tasks == 1
    geometry = whole._route().geometry
    there = {"dest": f"{whole.dest}_in_parts", "shape": geometry.unit * blocks}
    parts = type(whole).model_validate(whole.model_dump(exclude_unset=True) | there)
    with pytest.MonkeyPatch.context() as patch:
        if smallest_tiles:
            patch.setattr(type(geometry), "tile", property(lambda self: self.block))
        complete(parts, random)
    made = [snapshot(path) for path in (folder, folder.with_name(f"{folder.name}_in_parts"))]
    for files in made:
        del files["provenance"]  # which names the layer
    assert made[0] == made[1]
    return folder


def peak_memory(stage: Stage, cell: Any) -> int:
    """Bytes that Python and numpy hold at most while a cell is worked on."""
    stage.run(cell)  # imports, caches
    tracemalloc.start()
    try:
        stage.run(cell)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _assert_shown(name: str, field: Mapping[str, Any]) -> None:
    """Check that a field is plain, a list of plain values, or one of these or null."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind != {"type": "null"}]
    assert len(kinds) == 1, f"{name}: a form shows one kind of value"
    (kind,) = kinds
    types = [kind["type"]] if isinstance(kind.get("type"), str) else kind.get("type", [])
    assert types, f"{name}: no type, so a model or an enum of its own"
    assert set(types) <= _SHOWN | {"array"} | ({"object"} if "string" in types else set()), name
    if "array" in types:
        items = kind["items"]["type"]
        assert ({items} if isinstance(items, str) else set(items)) <= _SHOWN, name
        assert "prefixItems" not in kind, name
