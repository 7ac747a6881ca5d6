"""Messages: references of about a hundred bytes, and anything else is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import InvalidMessage
from igneous_airflow.run_record import LAUNCH_ID, RUN_ID, new_run_name
from igneous_airflow.task import Task, TaskEncoder


@pytest.fixture
def message():
    return json.loads(TaskEncoder("5e6f7a8b", "a-run", "1a2b3c4d").encode(2))


@given(
    st.from_regex(RUN_ID, fullmatch=True),
    st.from_regex(LAUNCH_ID, fullmatch=True),
    st.lists(st.integers(0, 2**70)),
)
@settings(deadline=None)
def test_a_message_names_run_launch_and_task(run, launch, tasks):
    bodies = TaskEncoder("5e6f7a8b", run, launch).encode_all(iter(tasks))
    decoded = [Task.decode(body) for body in bodies]
    assert [(t.run, t.launch, t.task) for t in decoded] == [(run, launch, n) for n in tasks]


def test_a_message_is_json_and_about_a_hundred_bytes_long():
    body = TaskEncoder("5e6f7a8b", new_run_name("contrast_normalization"), "1a2b3c4d").encode(
        99_999
    )
    assert set(json.loads(body)) == set(Task.model_fields)
    assert set(Task.model_fields) == {"version", "runs", "run", "launch", "task"}
    assert len(body) < 140


def test_many_messages_are_made_when_they_are_asked_for():
    bodies = TaskEncoder("5e6f7a8b", "a-run", "1a2b").encode_all(iter(range(10**12)))
    assert Task.decode(next(bodies)).task == 0


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", "5", '"text"', "{}", "\0", "[" * 100_000, '{"version": 1}', "NaN"],
    ids=lambda body: body[:10],
)
def test_what_is_not_a_task_is_refused_and_shown(body):
    with pytest.raises(InvalidMessage, match="this message is not a task") as caught:
        Task.decode(body)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 1),
        ("version", 3),
        ("version", "2"),
        ("version", True),
        ("run", ""),
        ("run", ".."),
        ("run", "."),
        ("run", ".hidden"),
        ("run", "../other"),
        ("run", "a/b"),
        ("run", "a\\b"),
        ("run", "/etc"),
        ("run", "s3://bucket/runs/a"),
        ("run", "a%2fb"),
        ("run", "a\n"),
        ("run", "a\x00"),
        ("run", "x" * 201),
        ("run", 5),
        ("launch", ""),
        ("launch", "ABCD"),
        ("launch", "1a2b-"),
        ("launch", "1a2b\n"),
        ("launch", "x" * 33),
        ("task", -1),
        ("task", "1"),
        ("task", 1.0),
        ("task", True),
        ("task", None),
        ("parameters", {"layer": "/data/other"}),
    ],
)
def test_a_message_with_another_value_is_refused(message, key, value):
    with pytest.raises(InvalidMessage, match=key):
        Task.decode(json.dumps({**message, key: value}))


@pytest.mark.parametrize("key", ["run", "launch", "task"])
def test_a_message_without_a_value_is_refused(message, key):
    del message[key]
    with pytest.raises(InvalidMessage, match=key):
        Task.decode(json.dumps(message))


def test_a_message_of_the_older_form_says_how_to_go_on():
    older = {
        "version": 1,
        "run": "file:///srv/runs/igneous_downsample_manual-1a2b3c4d",
        "launch_id": "1a2b3c4d",
        "stage": "delete",
        "parameters": {"layer": "file:///data/layer", "confirm": True},
        "index": 0,
        "start": 0,
        "stop": 1,
    }
    way_out = "igneous-airflow resume 'igneous_downsample_manual-1a2b3c4d'"
    with pytest.raises(InvalidMessage, match=f"sent by an older version: {way_out}"):
        Task.decode(json.dumps(older))


def test_a_task_does_not_change(message):
    with pytest.raises(ValidationError, match="frozen"):
        Task.decode(json.dumps(message)).task = 3
