"""Credentials in an address are refused where it enters, and never repeated."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from igneous_airflow.credentials import has_credentials, hide_credentials, refuse_credentials
from igneous_airflow.errors import InvalidMessage, InvalidParameter
from igneous_airflow.fields import FileUrl, LayerUrl, LevelsPath, SourceUrl
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.files import open_folder, open_own_folder
from igneous_airflow.task import Task
from igneous_airflow.validation import wrong_fields

SECRET = "hunter2xyzzy"
ADDRESSES = [
    f"s3://KEY:{SECRET}@bucket/path",
    f"s3://KEY:se/{SECRET}@bucket/path",
    f"s3://{SECRET}@bucket/path",
    f"precomputed://s3://KEY:{SECRET}@bucket/path",
    f"s3://https://me:{SECRET}@host/bucket/path",
    f"https://me:{SECRET}@host/",
    f"https://me%3A{SECRET}%40host/",
    f"https://me%253A{SECRET}%2540host/",
    f"graphene://https://me:{SECRET}@host/x",
    f"file://me:{SECRET}@host/data",
    f"KEY:{SECRET}@bucket/path",
    f"https://host/layer?X-Amz-Credential=KEY&X-Amz-Signature={SECRET}",
    f"https://host/layer?x=1&X-Goog-Signature={SECRET}",
    f"https://host/layer?sv=1&sig={SECRET}",
    f"https://host/layer?token={SECRET}",
    f"https://host/layer#access_token={SECRET}",
    f"https://host/layer%3Ftoken%3D{SECRET}",
    f"s3://bucket/path?access_key=KEY&secret={SECRET}",
    f"gs://bucket/path?apiKey={SECRET}",
    f"s3://bucket/AKIAABCDEFGHIJKLMNOP/{SECRET}",
    f"/data/layer?password={SECRET}",
]
PLAIN = [
    "s3://bucket/path",
    "s3://https://host:9000/bucket/me@example.org/layer",
    "https://host:8443/me@example.org",
    "https://[::1]:8080/layer",
    "http://127.0.0.1:8123/",
    "gs://bucket/2024-01-01T10:00/key=value/layer",
    "gs://bucket|neuroglancer-precomputed:",
    "/data/a:b@c/layer",
    "/data/designs/img?.tif",
    "file:///data/50%_sample",
    "sqlite:///data/queue.db",
    "sqs://q?region=eu-west-1&endpoint=http://127.0.0.1:9324&create=false",
    "sqs?endpoint=http%3A%2F%2Fsqs%3A9324",
    "https://sqs.us-east-2.amazonaws.com/123456789012/shared",
    "memory://x",
    "17:1,42:1",
    "",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_with_credentials_are_known_and_hidden(address: str) -> None:
    assert has_credentials(address)
    assert SECRET not in hide_credentials(address)
    with pytest.raises(InvalidParameter, match=r"~/\.cloudvolume/secrets.*Connection") as caught:
        refuse_credentials({"a": ["b", {"c": address}]})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", PLAIN)
def test_other_addresses_are_taken_for_what_they_are(address: str) -> None:
    assert not has_credentials(address)
    assert hide_credentials(address) == address
    refuse_credentials([address])


@pytest.mark.parametrize("text", ["a:", "://", "?key", "%25", "a%3A", "://a:", "?a=&token", "@:"])
def test_long_texts_are_judged_at_once(text: str) -> None:
    started = time.process_time()
    has_credentials(text * 300_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("field", [LayerUrl, SourceUrl, FileUrl, LevelsPath])
def test_no_field_takes_them_nor_repeats_them(field: object, address: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(field).validate_python(address)
    (problem,) = wrong_fields(caught.value)
    assert "holds credentials" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_stage_says_what_is_wrong_without_them(address: str) -> None:
    for values in ({"layer": address}, {"layer": [address]}, {"layer": "/a", "mip": address},
                   {"layer": "/a", address: 1}, {"layer": {address: address}}):  # fmt: skip
        with pytest.raises(ValidationError) as caught:
            Downsample.model_validate(values)
        told = [*wrong_fields(caught.value), str(caught.value)]
        if address not in values:  # it is the name of a field then
            assert SECRET not in "".join(told)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("opening", [open_folder, open_own_folder, open_queue])
def test_no_door_opens_for_them(opening: object, address: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        opening(address)  # type: ignore[operator]
    assert SECRET not in str(caught.value)


def test_records_and_messages_of_old_that_hold_some_are_refused_without_them(
    tmp_path: Path,
) -> None:
    address = ADDRESSES[0]
    record = {
        "id": "run", "url": f"file://{tmp_path}", "launch_id": "abcd1234", "stage": "downsample",
        "parameters": {"layer": address}, "asked": {}, "queue": "memory://x", "own_queue": True,
        "cells": 1, "by": "me", "created": 1.0,
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InvalidParameter, match="holds credentials") as caught:
        Run.load(f"file://{tmp_path}").make_stage()
    assert SECRET not in str(caught.value)
    (tmp_path / "run.json").write_text(json.dumps(record | {"cells": address}))
    with pytest.raises(InvalidParameter, match="is damaged") as caught:
        Run.load(f"file://{tmp_path}")
    assert SECRET not in str(caught.value)
    for body in (json.dumps(record | {"version": 1}), json.dumps({"layer": address}), address):
        with pytest.raises(InvalidMessage) as message:
            Task.decode(body)
        assert SECRET not in str(message.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("downsample", ADDRESSES[0]),
        ("downsample", ADDRESSES[10]),
        ("downsample", "layer", "--queue", f"sqs://KEY:{SECRET}@q"),
        ("downsample", "layer", "--queue", f"sqs://q?secret={SECRET}"),
        ("downsample", "layer", "--runs", ADDRESSES[0]),
        ("ingest", ADDRESSES[11], "out"),
        ("picture", ADDRESSES[0]),
        ("view", ADDRESSES[0]),
        ("levels", "plot", ADDRESSES[0]),
        ("status", ADDRESSES[0]),
        ("worker", f"sqs://KEY:{SECRET}@q", "--runs", "runs"),
        ("worker", "sqlite:///q.db", "--runs", "runs", "--allowed", ADDRESSES[0]),
        ("--allowed", ADDRESSES[0], "stages"),
        ("trigger", "igneous_downsample", f"layer={ADDRESSES[0]}", "--run-id", "x"),
    ],
)
def test_no_command_takes_them_nor_repeats_them(arguments: tuple[str, ...], tmp_path: Path) -> None:
    server = {"AIRFLOW_URL": "http://127.0.0.1:9", "AIRFLOW_TOKEN": "t"}
    answer = subprocess.run(
        [sys.executable, "-m", "igneous_airflow", *arguments],
        env=os.environ | server | {"HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode != 0
    assert "credentials" in answer.stderr
    assert SECRET not in answer.stdout + answer.stderr
    for path in tmp_path.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
