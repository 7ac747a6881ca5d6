"""Voxels and levels that are there are replaced when that was confirmed, or by their own makers."""

import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.errors import AuditFailed, PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage import existing
from igneous_airflow.storage.existing import Existing, chunks_in
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.storage.provenance import made_by, read_provenance
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete, do_missing, snapshot
from igneous_airflow.voxel_stages import PyramidOptions

SPEC = LayerSpec(voxel_offset=(3, -7, 11))
SIZE = Vec3(65, 33, 9)


@pytest.fixture
def layer(tmp_path):
    return write_layer(tmp_path / "layer", random_voxels(SIZE), SPEC)


def question_of(stage):
    """The only reason why a stage cannot start; nothing is written."""
    folder = Path(getattr(stage, "dest", None) or stage.layer.removeprefix("file://"))
    before = snapshot(folder)
    with pytest.raises(PlanRefused) as refused:
        stage.resolved().plan().require_accepted()
    (question,) = refused.value.refusals
    assert snapshot(folder) == before
    return question


def is_accepted(stage):
    plan = stage.resolved().plan()
    assert plan.refusals == ()
    return plan.unconfirmed == ""


def test_every_stage_that_writes_voxels_can_be_confirmed():
    for stage in registered_stages().values():
        if issubclass(stage, PyramidOptions) or stage is LuminanceLevels:
            assert stage.model_json_schema()["properties"]["confirm"]["flag"] == "--yes"


def test_a_transfer_onto_other_voxels_of_the_same_size_is_confirmed_first(tmp_path, layer):
    other = write_layer(tmp_path / "other", random_voxels(SIZE), SPEC)
    complete(Downsample(layer=other, num_mips=2))
    stage = Transfer(src=layer, dest=other, max_mips=2)
    question = question_of(stage)
    assert question.startswith(f"confirm: the voxels of mips 0 to 2 of {other} would be replaced: ")
    chunks = sum(len(list((tmp_path / "other" / key).iterdir())) for key in ("8_8_40", "16_16_40"))
    chunks += len(list((tmp_path / "other" / "32_32_40").iterdir()))
    assert f"{chunks} chunk files, " in question
    assert "8_8_40: 90 chunk files" in question
    assert "no finished run is recorded" in question
    assert "16_16_40: 30 chunk files" in question
    assert "made by DownsampleTask" in question
    assert is_accepted(stage.model_copy(update={"confirm": True}))
    lines = stage.plan().replaces
    assert [line.partition(":")[0] for line in lines] == ["8_8_40", "16_16_40", "32_32_40"]
    assert "replaces 8_8_40: 90 chunk files" in stage.plan().describe()


def test_an_ingest_onto_other_voxels_is_confirmed_first(tmp_path):
    grey = np.zeros((9, 33, 65), np.uint8)
    for name in ("one", "other"):
        np.save(tmp_path / f"{name}.npy", grey)
    wishes = {"dest": str(tmp_path / "dest"), "resolution": (4, 4, 40), "axes": "zyx"}
    complete(Ingest(source=str(tmp_path / "one.npy"), **wishes))
    assert is_accepted(Ingest(source=str(tmp_path / "one.npy"), **wishes))
    question = question_of(Ingest(source=str(tmp_path / "other.npy"), **wishes))
    assert "the voxels of mip" in question
    assert "made by IngestTask" in question


def test_the_same_parameters_ask_nothing_whatever_was_confirmed_or_kept(layer):
    complete(Downsample(layer=layer, num_mips=2, confirm=True))
    assert is_accepted(Downsample(layer=layer, num_mips=2))
    complete(Downsample(layer=layer, num_mips=2))
    entries = read_provenance(open_folder(layer))["processing"]
    assert len(entries) == 1  # of the same method
    assert is_accepted(Downsample(layer=layer, num_mips=2))


@pytest.mark.parametrize(
    "changes", [{"method": "min"}, {"num_mips": 1}, {"skip_empty": "delete"}, {"sparse": True}]
)
def test_other_parameters_are_asked_for(layer, changes):
    complete(Downsample(layer=layer, num_mips=2))
    stage = Downsample(**{"layer": layer, "num_mips": 2} | changes)
    assert "the voxels of mip" in question_of(stage)


def test_chunks_that_would_be_deleted_for_being_empty_are_asked_for_as_such(layer):
    complete(Downsample(layer=layer, num_mips=1))
    question = question_of(Downsample(layer=layer, num_mips=1, skip_empty="delete"))
    assert "would be replaced, or deleted where they are all background: 30 chunk files" in question
    complete(Downsample(layer=layer, num_mips=1, skip_empty="delete"))
    assert is_accepted(Downsample(layer=layer, num_mips=1, skip_empty="delete"))


def test_voxels_that_skipping_would_leave_are_no_matter_of_confirmation(layer):
    complete(Downsample(layer=layer, num_mips=1))
    stage = Downsample(layer=layer, num_mips=1, skip_empty="skip", confirm=True)
    question = question_of(stage)
    assert question.startswith(f"skip_empty: the voxels of mip 1 of {layer} would stay as they are")
    assert "Set `skip_empty` to delete or write" in question
    assert is_accepted(stage.model_copy(update={"skip_empty": "delete"}))
    complete(Delete(layer=layer, mip=1, confirm=True))
    complete(stage)
    assert is_accepted(stage)


def test_old_voxels_that_were_skipped_are_not_proved(tmp_path):
    spec = LayerSpec(chunk_size=(8, 8, 8))
    full, empty = np.full((16, 8, 8, 1), 7, np.uint8), np.zeros((16, 8, 8, 1), np.uint8)
    dest = write_layer(tmp_path / "dest", full, spec)
    src = write_layer(tmp_path / "src", empty, spec)
    stage = Transfer(src=src, dest=dest, max_mips=0, skip_empty="skip")
    with pytest.raises(PlanRefused, match="skip_empty"):
        stage.resolved().plan().require_accepted()
    run, _ = launch(stage, f"file://{tmp_path}/run", trusted=[{}])
    run.prepare()
    do_missing(run)
    with pytest.raises(AuditFailed, match="although the new voxels are background: set skip_empty"):
        run.finish()


def test_mips_of_an_earlier_run_elsewhere_ask_nothing(layer):
    """Steps of a pyramid made one after the other, as CI repeats them."""
    steps = [Downsample(layer=layer, num_mips=2), Downsample(layer=layer, mip=2, num_mips=1)]
    for _ in range(2):
        for step in steps:
            assert is_accepted(step)
            complete(step)
    assert not is_accepted(Downsample(layer=layer, mip=1, num_mips=1))


def test_parts_ask_only_for_what_lies_in_them(layer):
    low, high = "3-35_-7-26_11-20", "35-68_-7-26_11-20"
    complete(Downsample(layer=layer, num_mips=2, bounds=low))
    assert is_accepted(Downsample(layer=layer, num_mips=2, bounds=high))
    complete(Downsample(layer=layer, num_mips=2, bounds=high))
    assert is_accepted(Downsample(layer=layer, num_mips=2, bounds=low))
    assert "mips 1 to 2" in question_of(Downsample(layer=layer, num_mips=2))


def test_a_later_run_of_other_parameters_is_who_made_it(tmp_path, layer):
    dest = tmp_path / "dest"
    first = Transfer(src=layer, dest=str(dest), max_mips=1)
    complete(first)
    complete(Downsample(layer=str(dest), num_mips=1, method="max"))
    assert is_accepted(Transfer(src=layer, dest=str(dest), skip_downsamples=True)) is False
    question = question_of(first)
    assert f"the voxels of mip 1 of file://{dest} would be replaced" in question
    assert "made by DownsampleTask" in question
    assert "resume the run" not in question


def test_deleted_mips_and_new_scales_ask_nothing(layer):
    complete(Downsample(layer=layer, num_mips=2, method="min"))
    complete(Delete(layer=layer, mip=1, num_mips=2, confirm=True))
    assert is_accepted(Downsample(layer=layer, num_mips=2))


def test_files_in_the_folder_of_a_scale_that_the_info_does_not_name_are_asked_for(tmp_path, layer):
    complete(Downsample(layer=layer, num_mips=1))
    info = tmp_path / "layer" / "info"
    data = json.loads(info.read_text())
    info.write_text(json.dumps(data | {"scales": data["scales"][:1]}))
    assert "the voxels of scale 16_16_40" in question_of(Downsample(layer=layer, num_mips=2))


def test_entries_of_other_programs_and_older_versions_count_as_having_written_everything(layer):
    complete(Downsample(layer=layer, num_mips=1))
    path = Path(layer.removeprefix("file://")) / "provenance"
    provenance = json.loads(path.read_text())
    method = provenance["processing"][0]["method"]
    older = {key: value for key, value in method.items() if key not in ("confirm", "sparse")}
    path.write_text(json.dumps(provenance | {"processing": [{"method": older, "by": "me"}]}))
    assert is_accepted(Downsample(layer=layer, num_mips=1))
    theirs = [{"method": {"task": "TransferTask"}}, "a text", {"by": "me"}]
    path.write_text(json.dumps(provenance | {"processing": [{"method": older}, *theirs]}))
    assert "made by TransferTask" in question_of(Downsample(layer=layer, num_mips=1))
    path.write_text("not JSON")
    assert "provenance cannot be read" in Downsample(layer=layer, num_mips=1).plan().refusals[0]


@pytest.mark.parametrize("written", [None, 5, {"16_16_40": "no box"}, {"16_16_40": 5}])
def test_what_an_entry_says_in_no_way_of_ours_counts_as_everything(layer, written):
    complete(Downsample(layer=layer, num_mips=1))
    path = Path(layer.removeprefix("file://")) / "provenance"
    provenance = json.loads(path.read_text())
    theirs = {"method": {"task": "Other"}, "written": written}
    provenance["processing"].append(theirs)
    path.write_text(json.dumps(provenance))
    assert "made by Other" in question_of(Downsample(layer=layer, num_mips=1))


def test_levels_of_other_parameters_are_asked_for(layer):
    complete(LuminanceLevels(layer=layer, bounds="3-68_-7-26_11-14"))
    assert is_accepted(LuminanceLevels(layer=layer, bounds="3-68_-7-26_11-14"))
    assert is_accepted(LuminanceLevels(layer=layer, bounds="3-68_-7-26_14-20"))
    question = question_of(LuminanceLevels(layer=layer, seed=1))
    assert f"the levels in {layer}/levels/0 would be replaced: 3 histograms" in question
    assert question_of(LuminanceLevels(layer=layer, bounds="3-11_-7-1_11-12"))


# A run that goes on asks nothing


def launch(stage, url, trusted=()):
    queue = f"sqlite://{url.removeprefix('file://')}.db"
    return Run.launch(stage, url=url, queue=queue, by="me", trusted=trusted)


def test_a_run_that_is_taken_up_need_not_be_confirmed_for_what_it_made_itself(tmp_path, layer):
    url = f"file://{tmp_path}/run"
    stage = Downsample(layer=layer, num_mips=2)
    run, _ = launch(stage, url)
    run.prepare()
    launched = run.make_stage()
    launched.run(launched.cells()[0])
    assert launched.plan().unconfirmed
    again, plan = launch(stage, url)
    assert again.launch_id == run.launch_id
    assert plan.unconfirmed == ""
    with pytest.raises(PlanRefused, match="or resume the run that wrote them"):
        launch(stage, f"{url}_of_another_name")


def test_a_run_that_waits_to_begin_is_asked_for_what_others_have_made_meanwhile(tmp_path, layer):
    url = f"file://{tmp_path}/run"
    stage = Downsample(layer=layer, num_mips=1)
    launch(stage, url)
    complete(Downsample(layer=layer, num_mips=1, method="min"))
    with pytest.raises(PlanRefused, match="the voxels of mip 1"):
        launch(stage, url)


def test_runs_that_differ_in_what_was_confirmed_are_the_same(tmp_path, layer):
    url = f"file://{tmp_path}/run"
    complete(Downsample(layer=layer, num_mips=1, method="min"))
    confirmed = Downsample(layer=layer, num_mips=1, confirm=True)
    run, _ = launch(confirmed, url)
    again, _ = launch(Downsample(layer=layer, num_mips=1), url)
    assert again == run


def test_a_run_of_which_only_the_plan_was_made_has_confirmed_nothing(tmp_path, layer):
    url = f"file://{tmp_path}/run"
    complete(Downsample(layer=layer, num_mips=1, method="min"))
    stage = Downsample(layer=layer, num_mips=1)
    _, plan = Run.launch(stage, url=url, queue="memory://q", by="me", plan_only=True)
    assert plan.unconfirmed
    with pytest.raises(PlanRefused, match="confirm"):
        launch(stage, url)


def test_what_a_step_of_the_same_chain_made_need_not_be_confirmed(tmp_path, layer):
    dest = str(tmp_path / "dest")
    first = Transfer(src=layer, dest=dest, max_mips=2).resolved()
    complete(first)
    second = Downsample(layer=dest, num_mips=2, method="min").resolved()
    plan = second.plan()
    with pytest.raises(PlanRefused):
        plan.require_accepted()
    assert plan.require_accepted(trusted=[first.provenance()]).unconfirmed == ""
    with pytest.raises(PlanRefused):
        plan.require_accepted(trusted=[{**first.provenance(), "max_mips": 1}])
    with pytest.raises(PlanRefused):  # what is deleted is confirmed, whatever made it
        Delete(layer=dest).resolved().plan().require_accepted(trusted=[first.provenance()])


# Counting


def a_scale(size, chunk):
    return Scale("8_8_40", (8.0, 8.0, 40.0), size, Vec3(0, 0, 0), chunk, "raw")


@pytest.mark.parametrize("place", ["file", "mem"])
def test_a_plan_counts_no_further_than_it_must(tmp_path, place, monkeypatch):
    monkeypatch.setattr(existing, "LOOKED_AT", 10)
    scale = a_scale(Vec3(64, 8, 8), Vec3(2, 8, 8))
    url = f"file://{tmp_path}/layer" if place == "file" else f"mem://{uuid.uuid4()}/layer"
    folder = open_folder(url)
    info = Info.new(data_type="uint8", layer_type="image", scale=scale)
    Layer.create(url, info).write(scale, np.zeros((64, 8, 8, 1), np.uint8))
    found = chunks_in(folder, scale, scale.bounds)
    assert (found.more, 0 < found.files <= 11) == (True, True)
    listed = []
    sizes = type(folder).sizes

    def counting(self, prefix):
        for entry in sizes(self, prefix):
            listed.append(entry)
            yield entry

    monkeypatch.setattr(type(folder), "sizes", counting)
    chunks_in(folder, scale, scale.bounds)
    assert len(listed) == 11


def test_a_part_is_looked_for_by_name_where_others_fill_the_listing(tmp_path, monkeypatch):
    from igneous_airflow.geometry.bbox import BoundingBox

    sizes = LocalFolder.sizes
    monkeypatch.setattr(LocalFolder, "sizes", lambda self, prefix: sorted(sizes(self, prefix)))
    monkeypatch.setattr(existing, "LOOKED_AT", 4)
    scale = a_scale(Vec3(64, 8, 8), Vec3(2, 8, 8))
    folder = open_folder(f"file://{tmp_path}")
    for chunk in scale.chunks:
        if chunk.min.x < 32:
            folder.write(f"8_8_40/{chunk}", StoredFile(b"x"))
    assert not chunks_in(folder, scale, BoundingBox.parse("32-64_0-8_0-8"))
    monkeypatch.setattr(existing, "_PROBES", 4)  # of which none is there
    assert chunks_in(folder, scale, BoundingBox.parse("32-64_0-8_0-8")) == Existing(more=True)
    found = chunks_in(folder, scale, BoundingBox.parse("30-64_0-8_0-8"))
    assert found.files
    assert found.more


def test_chunks_that_could_not_be_counted_are_asked_for(tmp_path, layer, monkeypatch):
    """A listing that notes of others fill, and a chunk between those that are looked for."""
    monkeypatch.setattr(existing, "LOOKED_AT", 3)
    monkeypatch.setattr(existing, "_PROBES", 2)
    dest = tmp_path / "dest" / "8_8_40"
    shutil.copytree(layer.removeprefix("file://"), dest.parent)
    _, kept, *_ = Layer.open(layer).info.scales[0].chunks
    for path in list(dest.iterdir()):
        if path.name != str(kept):
            path.rename(dest / f"note {path.name}")
    sizes = LocalFolder.sizes
    monkeypatch.setattr(LocalFolder, "sizes", lambda *folder: sorted(sizes(*folder), reverse=True))
    stage = Transfer(src=layer, dest=str(dest.parent), max_mips=0)
    assert "replaced: chunk files that could not be counted (8_8_40: " in question_of(stage)
    monkeypatch.setattr(existing, "_PROBES", 1000)
    assert "replaced: more than 1 chunk file (8_8_40: " in question_of(stage)


def test_the_maker_is_the_latest_that_wrote_there(layer):
    complete(Downsample(layer=layer, num_mips=2))
    complete(Downsample(layer=layer, mip=1, num_mips=1, method="min"))
    makers = made_by(open_folder(layer), {"8_8_40": None, "16_16_40": None, "32_32_40": None})
    assert makers["8_8_40"] == {}
    assert makers["16_16_40"]["method"] == "auto"
    assert makers["32_32_40"]["method"] == "min"


def test_a_proof_that_failed_records_nothing(layer):
    stage = Downsample(layer=layer, num_mips=1).resolved()
    stage.prepare()
    with pytest.raises(AuditFailed):
        stage.finish("me")
    assert read_provenance(open_folder(layer))["processing"] == []
