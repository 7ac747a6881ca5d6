"""The files that people apply to their clusters, judged by Kubernetes' own schemas."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.pod_template import PodTemplate
from igneous_airflow.operators.settings import PodSettings

pytestmark = pytest.mark.airflow

FOLDER = Path(__file__).parents[3] / "worker_image"
FILES = sorted([FOLDER / "pod_template.yaml", *(FOLDER / "manifests").glob("*.yaml")])
OLDEST, LATEST = "1.27", kubernetes_validate.latest_version()


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def validate(manifest: dict[str, Any]) -> None:
    """Raise when a version does not know the manifest, or a field of it."""
    for version in (OLDEST, LATEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def template() -> dict[str, Any]:
    (pod,) = documents(FOLDER / "pod_template.yaml")
    return pod


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_manifest_fits_the_schema_of_kubernetes(file: Path) -> None:
    found = documents(file)
    assert found
    for manifest in found:
        if not manifest["apiVersion"].startswith("keda.sh/"):  # not of Kubernetes
            validate(manifest)


def test_the_schema_finds_what_is_wrong() -> None:
    for wrong in ({"restartPolicies": "Never"}, {"tolerations": "none"}):
        pod = template()
        pod["spec"] |= wrong
        with pytest.raises(kubernetes_validate.ValidationError):
            validate(pod)


def test_the_pod_of_a_run_fits_the_schema(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__IMAGES", "registry.example.org/worker:1")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__SERVICE_ACCOUNTS", "somebody")
    settings = PodSettings.read()
    options = RunOptions(
        node_selector={"pool": "spot"},
        tolerations=[{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
        service_account="somebody",
        worker_image="registry.example.org/worker:1",
    )
    validate(PodTemplate.load(settings.template).fill_in(launch(), options, settings))


def test_the_job_of_a_run_fits_the_schema(
    launch: Any, use_cluster: Any, cluster: Any, task: Any
) -> None:
    from airflow.sdk.exceptions import TaskDeferred

    from igneous_airflow.operators.stage_workers import StageWorkers

    use_cluster(deferrable=True)
    workers = StageWorkers(task_id="workers", run_url=launch().url, worker="job of 3 pods")
    with pytest.raises(TaskDeferred):
        workers.execute(task(workers=3))
    (listed,) = cluster.jobs()
    job = {"apiVersion": "batch/v1", "kind": "Job", **listed}  # which lists leave out
    for known_to_servers_only in ("uid", "creationTimestamp", "resourceVersion"):
        del job["metadata"][known_to_servers_only]
    del job["status"]
    validate(job)
    assert job["spec"]["parallelism"] == 3
    assert "completions" not in job["spec"], "one pod that finds nothing more to do is enough"


def test_keda_starts_the_pods_of_the_template() -> None:
    _, scaled = documents(FOLDER / "manifests" / "keda.yaml")
    pod = scaled["spec"]["jobTargetRef"]["template"]
    validate({"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": pod}, "metadata": {}})
    ours = template()
    for spec in (pod["spec"], ours["spec"]):
        for filled_in in ("args", "resources"):
            spec["containers"][0].pop(filled_in, None)
    assert pod["spec"] == ours["spec"]
    assert pod["metadata"]["labels"] == ours["metadata"]["labels"]


def test_everything_is_in_one_namespace_with_the_account_of_the_template() -> None:
    (namespace,) = documents(FOLDER / "manifests" / "namespace.yaml")
    (account,) = documents(FOLDER / "manifests" / "worker.yaml")
    role, binding = documents(FOLDER / "manifests" / "airflow.yaml")
    assert namespace["metadata"]["name"] == PodSettings.read().namespace
    assert {m["metadata"]["namespace"] for m in (account, role, binding)} == {
        namespace["metadata"]["name"]
    }
    assert account["metadata"]["name"] == template()["spec"]["serviceAccountName"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
