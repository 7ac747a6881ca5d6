"""The provenance file, as cloud-volume reads and writes it."""

import json
import uuid

import numpy as np
import pytest
from cloudvolume import CloudVolume

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.provenance import author, read_provenance, record_processing

EMPTY = {"description": "", "owners": [], "processing": [], "sources": []}


@pytest.fixture(params=["file", "mem"])
def folder(request, tmp_path):
    places = {"file": f"file://{tmp_path}/layer", "mem": f"mem://{uuid.uuid4()}/layer"}
    return open_folder(places[request.param])


def test_a_layer_without_the_file_has_the_empty_form(folder):
    assert read_provenance(folder) == EMPTY


def test_an_entry_holds_the_method_the_author_and_the_date(folder):
    record_processing(folder, {"task": "x", "mip": 0}, "someone@example.org")
    (entry,) = read_provenance(folder)["processing"]
    assert entry["method"] == {"task": "x", "mip": 0}
    assert entry["by"] == "someone@example.org"
    assert entry["date"].endswith(" UTC")


def test_recording_the_same_twice_leaves_one_entry_and_something_else_another(folder):
    for method in ({"task": "x"}, {"task": "x"}, {"task": "y"}, {"task": "x"}):
        record_processing(folder, method, "me")
    entries = read_provenance(folder)["processing"]
    assert [entry["method"]["task"] for entry in entries] == ["x", "y", "x"]


def test_what_others_wrote_stays(folder):
    theirs = {"sources": ["a"], "owners": ["b"], "processing": ["once a text"], "extra": {"c": 1}}
    folder.write("provenance", StoredFile(json.dumps(theirs).encode()))
    record_processing(folder, {"task": "x"}, "me")
    after = read_provenance(folder)
    assert after["processing"].pop()["method"] == {"task": "x"}
    assert after == {"description": "", **theirs}


@pytest.mark.parametrize(
    "content",
    [b"", b"not JSON", b"[1]", b"5", b"\xff", b'{"processing": {}}', b'{"processing": null}'],
)
def test_a_file_of_another_form_is_refused_and_left_alone(folder, content):
    folder.write("provenance", StoredFile(content))
    with pytest.raises(InvalidInfo, match=f"{folder.url}/provenance"):
        record_processing(folder, {"task": "x"}, "me")
    assert folder.read("provenance") == StoredFile(content)


def test_cloud_volume_reads_what_we_write_after_what_it_wrote(tmp_path):
    voxels = np.ones((4, 4, 4), np.uint8)
    CloudVolume.from_numpy(voxels, vol_path=f"file://{tmp_path}", progress=False)
    folder = open_folder(f"file://{tmp_path}")
    record_processing(folder, {"task": "DownsampleTask", "mip": 0}, author())
    provenance = CloudVolume(f"file://{tmp_path}", progress=False).provenance
    assert [entry["method"] for entry in provenance.processing][1:] == [
        {"task": "DownsampleTask", "mip": 0}
    ]
    assert "b'" not in (tmp_path / "provenance").read_text()


def test_the_author_is_a_plain_text():
    assert isinstance(author(), str)
    assert author() == author().strip()
    assert not author().startswith("b'")


def test_the_layers_that_voxels_come_from_are_named_once(folder):
    for sources in (["a"], ["b", "a"], []):
        record_processing(folder, {"task": "x"}, "someone", sources=sources)
    assert read_provenance(folder)["sources"] == ["a", "b"]
