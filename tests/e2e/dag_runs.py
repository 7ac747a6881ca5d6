"""DAG runs over REST as tests see them: what they say, who works, what is left in the bucket."""

import json
import os
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

import boto3

from igneous_airflow.receipts import decode_receipts
from igneous_airflow.storage.files import Folder, open_folder

DAG = "igneous_downsample"


def trigger(stack: Any, run: str, **conf: Any) -> None:
    stack.wait_for("dag-processor", lambda: stack.has_dag(DAG))
    body = {"dag_run_id": run, "logical_date": None, "conf": conf}
    stack.call("POST", f"/api/v2/dags/{DAG}/dagRuns", body)


def as_ci(stack: Any, run: str, **conf: Any) -> tuple[int, str]:
    """Start a DAG run as a CI job does, or go on with it; its exit code, and what it says."""
    command = [sys.executable, "-m", "igneous_airflow", "trigger", DAG, "--run-id", run, "--resume"]
    account = {
        "AIRFLOW_URL": stack.url("airflow"),
        "AIRFLOW_USER": "admin",
        "AIRFLOW_PASSWORD": stack.secrets["AIRFLOW_ADMIN_PASSWORD"],
    }
    done = subprocess.run(
        [*command, *(f"{name}={value}" for name, value in conf.items())],
        env=os.environ | account,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def end_of(stack: Any, run: str) -> str:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        state = stack.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run}")["state"]
        if state in ("success", "failed"):
            return str(state)
        time.sleep(1)
    return "undecided"


def is_deferred(stack: Any, run: str, step: str) -> bool:
    """Whether a task of a run is left to the triggerer."""
    tasks = stack.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances")["task_instances"]
    return (f"downsample.{step}", "deferred") in ((t["task_id"], t["state"]) for t in tasks)


def logs(stack: Any, run: str) -> str:
    """The logs of all tasks of a run."""
    text = ""
    tasks = stack.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances")
    for task in tasks["task_instances"]:
        path = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances/{task['task_id']}"
        for attempt in range(1, task["try_number"] + 1):
            text += f"\n== {task['task_id']} {task['state']}\n"
            path_of_log = f"{path}/logs/{attempt}?map_index={task['map_index']}"
            try:
                text += stack.call("GET", path_of_log, accept="x-ndjson")
            except urllib.error.HTTPError as error:  # of an attempt that has none
                text += f"{error}: {path_of_log}"
    return text


def stored(folder: Folder, prefix: str) -> dict[str, bytes]:
    """The bytes of every chunk of a mip, as stored."""
    found = {}
    for name in folder.names(prefix):
        file = folder.read(f"{prefix}/{name}")
        assert file is not None
        found[name] = bytes(file.content) + file.compression.encode()
    return found


def keys_of(layer: Path) -> list[str]:
    """The folders of a layer's mips."""
    return [scale["key"] for scale in json.loads((layer / "info").read_text())["scales"]]


def assert_same_chunks(url: str, embedded: Path) -> None:
    bucket, local = open_folder(url), open_folder(f"file://{embedded}")
    keys = keys_of(embedded)
    assert len(keys) == 3
    for key in keys:
        expected = stored(local, key)
        assert len(expected) >= 4
        assert stored(bucket, key) == expected


def workers_of(run: str) -> set[str]:
    """Who wrote the receipts of a run."""
    runs = open_folder("s3://igneous/runs")
    found = set()
    for page in (
        boto3.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket="igneous", Prefix="runs/")
    ):
        for entry in page.get("Contents", []):
            if f"_{run}_" in entry["Key"] and "/done/" in entry["Key"]:
                file = runs.read(entry["Key"].removeprefix("runs/"))
                found |= {receipt.worker.rpartition(":")[2] for receipt in decode_receipts(file)}
    return found
