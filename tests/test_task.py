"""Messages: what was sent is what is done, and anything else is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import InvalidMessage
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.task import Task, TaskEncoder

STAGE = Downsample(layer="gs://bucket/layer", factor="2,2,2", bounds="-8-64_0-64_0-64", mip=1)


@pytest.fixture
def message():
    return json.loads(TaskEncoder("file:///runs/a", "1a2b", STAGE, batch=10, cells=25).encode(2))


@given(
    st.integers(1, 50),
    st.integers(1, 200),
    st.text(min_size=1),
    st.from_regex(r"[0-9a-z]{4,32}", fullmatch=True),
)
@settings(deadline=None)
def test_the_tasks_of_a_run_hold_each_cell_once(batch, cells, run, launch_id):
    encoder = TaskEncoder(run, launch_id, STAGE, batch, cells)
    tasks = [Task.decode(encoder.encode(index)) for index in range(-(-cells // batch))]
    assert [task.index for task in tasks] == list(range(len(tasks)))
    assert [c for task in tasks for c in range(task.start, task.stop)] == list(range(cells))
    assert {(task.run, task.launch_id) for task in tasks} == {(run, launch_id)}
    assert tasks[-1].make_stage() == STAGE


def test_a_message_is_json_with_every_parameter(message):
    assert set(message) == set(Task.model_fields)
    assert message["parameters"] == STAGE.parameters()
    assert set(message["parameters"]) == set(Downsample.model_fields)
    assert (message["index"], message["start"], message["stop"]) == (2, 20, 25)


def test_many_messages_are_made_when_they_are_asked_for():
    encoder = TaskEncoder("file:///runs/a", "1a2b", STAGE, batch=1, cells=10**12)
    bodies = encoder.encode_all(iter(range(10**12)))
    assert Task.decode(next(bodies)).index == 0


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", "5", '"text"', "{}", "\0", "[" * 100_000, '{"version": 1}', "NaN"],
    ids=lambda body: body[:10],
)
def test_what_is_no_task_is_refused_and_shown(body):
    with pytest.raises(InvalidMessage, match="this message is not a task") as caught:
        Task.decode(body)
    assert len(str(caught.value)) < 5_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 0),
        ("version", 2),
        ("version", "1"),
        ("run", ""),
        ("run", None),
        ("launch_id", ""),
        ("launch_id", "../../../etc"),
        ("launch_id", "1a2b\n"),
        ("stage", 5),
        ("parameters", []),
        ("parameters", None),
        ("index", -1),
        ("index", "2"),
        ("index", 2.5),
        ("index", True),
        ("start", -1),
        ("start", 25),
        ("stop", 20),
        ("stop", None),
        ("more", 1),
    ],
)
def test_a_task_with_a_wrong_value_is_refused(message, key, value):
    with pytest.raises(InvalidMessage):
        Task.decode(json.dumps({**message, key: value}))


@pytest.mark.parametrize(
    "key", ["run", "launch_id", "stage", "parameters", "index", "start", "stop"]
)
def test_a_task_without_a_part_is_refused(message, key):
    del message[key]
    with pytest.raises(InvalidMessage, match=key):
        Task.decode(json.dumps(message))


@pytest.mark.parametrize("name", ["", "os.system", "no_such_stage", "downsample "])
def test_a_stage_that_is_not_registered_is_never_made(message, name):
    task = Task.decode(json.dumps({**message, "stage": name}))
    with pytest.raises(InvalidMessage, match=r"choose one of .*downsample"):
        task.make_stage()


@pytest.mark.parametrize(
    "parameters",
    [{}, {"layer": 5}, {"layer": "/a", "unknown": 1}, {"layer": "/a", "factor": [1, 1, 1]}],
    ids=str,
)
def test_a_stage_with_wrong_parameters_is_never_made(message, parameters):
    task = Task.decode(json.dumps({**message, "parameters": parameters}))
    with pytest.raises(InvalidMessage, match="no valid downsample"):
        task.make_stage()


def test_a_task_cannot_be_changed(message):
    with pytest.raises(ValidationError):
        Task.decode(json.dumps(message)).index = 3
