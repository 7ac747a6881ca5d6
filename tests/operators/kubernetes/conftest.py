"""A cluster of the tests' own: an API server, a node, and accounts with the roles that we ship.

With IGNEOUS_AIRFLOW_CLUSTER the API server is a real one (`real_cluster.py`); with
IGNEOUS_AIRFLOW_ENGINE and IGNEOUS_AIRFLOW_IMAGE pods are containers of the worker image.
"""

import asyncio
import json
import os
import runpy
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample

HERE = Path(__file__).parent
SHIPPED = HERE.parents[2] / "worker_image"
ApiServer = runpy.run_path(str(HERE / "api_server.py"))["ApiServer"]
Kubelet = runpy.run_path(str(HERE / "kubelet.py"))["Kubelet"]

NAMESPACE = "igneous"
ENGINE = os.environ.get("IGNEOUS_AIRFLOW_ENGINE", "")
IMAGE = os.environ.get("IGNEOUS_AIRFLOW_IMAGE", "igneous-airflow-worker:test")
#: With Airflow's role, with no role, and with every right.
AIRFLOW, NOBODY, ADMIN = "airflow", "nobody", "admin"


@dataclass
class Cluster:
    """What tests do with the cluster beside Airflow."""

    address: str
    tokens: dict[str, str]
    kubelet: Any
    certificate: list[str] = field(default_factory=list)  # and its key
    eviction: str = "policy/v1"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.tokens[ADMIN]}",
                "Content-Type": "application/json",
            },
        )
        trusted = self.certificate[0] if self.certificate else None
        secure = ssl.create_default_context(cafile=trusted)
        with urllib.request.urlopen(request, timeout=20, context=secure) as answer:
            return json.load(answer)

    def pods(self, phase: str = "") -> list[dict[str, Any]]:
        pods = self.call("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        return [pod for pod in pods if phase in ("", pod["status"]["phase"])]

    def pods_started(self) -> list[dict[str, Any]]:
        """What has been told of the starts of containers, since ever."""
        events = self.call("GET", f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
        return [event for event in events if event["reason"] == "Started"]

    def jobs(self) -> list[dict[str, Any]]:
        found = self.call("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs")["items"]
        return list(found)

    def wait_until_empty(self) -> None:
        """Return when every pod is gone; fails when that takes long."""
        wait_until(lambda: self.pods() == [])

    def evict(self, pod: dict[str, Any]) -> None:
        """Ask a pod to leave its node, as a drain or a preemption does."""
        name = pod["metadata"]["name"]
        body = {
            "apiVersion": self.eviction,
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": NAMESPACE},
        }
        self.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction", body)

    def config(self, folder: Path, account: str) -> Path:
        """Write the kubeconfig of an account."""
        context = {"cluster": "tests", "user": account, "namespace": NAMESPACE}
        server = {"server": self.address}
        if self.certificate:
            server["certificate-authority"] = self.certificate[0]
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": server}],
            "users": [{"name": account, "user": {"token": self.tokens[account]}}],
            "contexts": [{"name": "tests", "context": context}],
        }
        path = folder / f"{account}.kubeconfig"
        path.write_text(json.dumps(text))
        return path


@contextmanager
def running(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster with one node, which gives its containers an environment of its own."""
    server = None
    if "IGNEOUS_AIRFLOW_CLUSTER" in os.environ:
        given = json.loads(os.environ["IGNEOUS_AIRFLOW_CLUSTER"])
    else:
        role, *_ = yaml.safe_load_all((SHIPPED / "manifests" / "airflow.yaml").read_text())
        server = ApiServer({ADMIN: None, AIRFLOW: role["rules"], NOBODY: []}, NAMESPACE)
        tokens = {account: account for account in (ADMIN, AIRFLOW, NOBODY)}
        given = {"address": server.start(), "tokens": tokens}
    path = [Path(sys.executable).parent, *os.environ["PATH"].split(":")]
    kubelet = Kubelet(
        given["address"],
        given["tokens"][ADMIN],
        folder,
        images={IMAGE: [sys.executable, "-m", "igneous_airflow", "worker"]},
        environment={
            "PATH": ":".join(map(str, path)),
            "HOME": os.environ.get("HOME", "/"),
            **(environment or {}),
        },
        engine=ENGINE,
        certificate=given.get("certificate"),
    )
    kubelet.start()
    yield Cluster(kubelet=kubelet, **given)
    kubelet.stop()
    if server is not None:
        server.stop()


def settings_for(cluster: Cluster, folder: Path, account: str = AIRFLOW) -> dict[str, str]:
    """The environment of an Airflow that uses the cluster; `folder` is in its pods as well."""
    template = yaml.safe_load((SHIPPED / "pod_template.yaml").read_text())
    (container,) = template["spec"]["containers"]
    container["volumeMounts"].append({"name": "tests", "mountPath": str(folder)})
    template["spec"]["volumes"].append({"name": "tests", "hostPath": {"path": str(folder)}})
    owner = {"runAsUser": os.getuid(), "runAsGroup": os.getgid(), "runAsNonRoot": os.getuid() > 0}
    template["spec"]["securityContext"] |= owner
    path = folder / "template.yaml"
    path.write_text(yaml.safe_dump(template))
    extra = {"kube_config_path": str(cluster.config(folder, account))}
    return {
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps({"conn_type": "kubernetes", "extra": extra}),
        "AIRFLOW__IGNEOUS__WORKER_IMAGE": IMAGE,
        "AIRFLOW__IGNEOUS__NAMESPACE": NAMESPACE,
        "AIRFLOW__IGNEOUS__POD_TEMPLATE": str(path),
    }


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with one node."""
    with running(tmp_path_factory.mktemp("kubelet")) as cluster:
        yield cluster


@pytest.fixture
def use_cluster(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Configure Airflow for the cluster."""

    def configure(*, deferrable: bool = False, account: str = AIRFLOW, **options: str) -> None:
        own = {"WORKERS": "kubernetes", "DEFERRABLE": str(deferrable), **options}
        settings = settings_for(cluster, tmp_path, account)
        settings |= {f"AIRFLOW__IGNEOUS__{name}": value for name, value in own.items()}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    from igneous_airflow.operators import jobs, pods

    monkeypatch.setattr(pods, "_START_POLL_SECONDS", 0.2)
    monkeypatch.setattr(pods, "_POLL_SECONDS", 0.3)
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.3)
    return configure


@pytest.fixture(autouse=True)
def _leave_nothing(cluster: Cluster) -> Iterator[None]:
    yield
    for kind, group in (("jobs", "/apis/batch/v1"), ("pods", "/api/v1")):
        place = f"{group}/namespaces/{NAMESPACE}/{kind}"
        for found in cluster.call("GET", place)["items"]:
            with suppress(urllib.error.HTTPError):  # it has just gone
                cluster.call("DELETE", f"{place}/{found['metadata']['name']}?gracePeriodSeconds=0")


@pytest.fixture
def launch(make_layer: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    """Launch a run whose messages are in the queue; `slow` ones take seconds."""

    def make(name: str = "layer", *, slow: bool = False) -> Run:
        layer = make_layer(name, (384, 384, 64) if slow else (256, 256, 64))
        effort = {"compress": "br", "compress_level": 11} if slow else {}
        stage = Downsample(layer=f"file://{layer}", num_mips=1, **effort)
        url = f"file://{tmp_path}/runs/run-{name}"
        run, _ = Run.launch(stage, url=url, queue=f"sqlite://{tmp_path}/{name}.db", by="me")
        run.prepare()
        run.enqueue()
        return run

    return make


@pytest.fixture
def task() -> Callable[..., dict[str, Any]]:
    """Make what Airflow hands to a task with pods."""
    from datetime import UTC, datetime

    def make(index: int = 0, **params: Any) -> dict[str, Any]:
        ti = SimpleNamespace(
            dag_id="a_dag",
            task_id="workers",
            map_index=index,
            try_number=1,
            start_date=datetime.now(UTC),
            xcom_push=lambda **_: None,
        )
        dag = SimpleNamespace(params={}, dag_id="a_dag")
        return {"ti": ti, "run_id": "manual", "dag": dag, "params": params}

    return make


def wait_until(happened: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what happened as soon as it is true; fails when it is not in time."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture
def to_the_end() -> Callable[..., int]:
    """Execute, with the triggers that are deferred to; returns how often that happened."""
    from airflow.sdk.exceptions import TaskDeferred
    from airflow.sdk.module_loading import import_string

    async def fire(deferred: TaskDeferred) -> Any:
        path, arguments = deferred.trigger.serialize()
        event = await anext(import_string(path)(**arguments).run())
        return event.payload

    def execute(workers: Any, context: dict[str, Any]) -> int:
        method, arguments, deferrals = "execute", {}, 0
        while True:
            resumed = type(workers)(
                task_id=workers.task_id, run_url=workers.run_url, worker=workers.worker
            )
            try:
                getattr(resumed, method)(context, **arguments)
            except TaskDeferred as deferred:
                method, arguments = deferred.method_name, {"event": asyncio.run(fire(deferred))}
                deferrals += 1
            else:
                return deferrals

    return execute
