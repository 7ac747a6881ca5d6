"""The pod that a template and a run make."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.crew import require_workable
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.pod_template import PodTemplate
from igneous_airflow.operators.settings import PodSettings
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState, StateChange
from igneous_airflow.stages.downsample import Downsample

pytestmark = pytest.mark.airflow


def run(memory: int = 0, scratch: int = 0) -> Run:
    return Run(
        id="a-run-1a2b3c4d",
        url="s3://bucket/runs/a-run-1a2b3c4d",
        launch_id="1a2b",
        stage="downsample",
        resolved={},
        requested={},
        queue="sqs://tasks",
        own_queue=True,
        blocks=10,
        memory=memory,
        scratch=scratch,
        by="me",
        created=0,
        changes=(StateChange.now(LaunchState.PLANNED, "me"),),
    )


def pod(memory: int = 0, **options: Any) -> dict[str, Any]:
    settings = PodSettings.read()
    template = PodTemplate.load(settings.template)
    return template.fill_in(run(memory), RunOptions(**options), settings)


def worker(manifest: dict[str, Any]) -> dict[str, Any]:
    (container,) = manifest["spec"]["containers"]
    return dict(container)


def option(manifest: dict[str, Any], name: str) -> float:
    arguments = worker(manifest)["args"]
    return float(arguments[arguments.index(name) + 1])


def test_the_pod_has_no_rights_and_no_place_to_write_but_tmp() -> None:
    manifest = pod()
    spec, container = manifest["spec"], worker(manifest)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    writable = [m for m in container["volumeMounts"] if not m.get("readOnly")]
    assert [(m["mountPath"], list(volumes[m["name"]])[1]) for m in writable] == [
        ("/tmp", "emptyDir")
    ]


def test_secrets_are_where_cloud_volume_looks_and_may_be_missing() -> None:
    manifest = pod()
    (mount,) = (m for m in worker(manifest)["volumeMounts"] if m.get("readOnly"))
    dockerfile = (Path(__file__).parents[2] / "worker_image" / "Dockerfile").read_text()
    assert "HOME=/home/worker" in dockerfile
    assert mount["mountPath"] == "/home/worker/.cloudvolume/secrets"
    secret = manifest["spec"]["volumes"][1]["secret"]
    assert (secret["optional"], oct(secret["defaultMode"])) == (True, "0o440")


def test_it_works_on_the_queue_until_the_run_is_done() -> None:
    manifest = pod(max_attempts=3, lease_seconds=60)
    arguments = worker(manifest)["args"]
    assert arguments[0] == "sqs://tasks"
    assert "--until-done" in arguments
    assert arguments[arguments.index("--runs") + 1] == "s3://bucket/runs"
    assert option(manifest, "--stopped-code") == 143  # else Kubernetes takes it for its end
    assert (option(manifest, "--max-attempts"), option(manifest, "--lease-seconds")) == (3, 60)


@pytest.mark.parametrize("period", [30, 120, None, 5])
def test_a_task_is_back_before_the_pod_would_be_killed(tmp_path: Path, period: int | None) -> None:
    settings = PodSettings.read()
    manifest = yaml.safe_load(settings.template.read_text())
    manifest["spec"]["terminationGracePeriodSeconds"] = period
    if period is None:
        del manifest["spec"]["terminationGracePeriodSeconds"]
    made = PodTemplate(tmp_path, manifest).fill_in(run(), RunOptions(), settings)
    killed = 30 if period is None else period
    assert 0 <= option(made, "--grace-seconds") <= max(killed - 10, 0)


@pytest.mark.parametrize(("limit", "bytes_there"), [("1Gi", 1 << 30), ("500M", 500 * 10**6)])
def test_tmp_has_room_for_what_a_run_copies_there(limit: str, bytes_there: int) -> None:
    settings = PodSettings.read()
    manifest = yaml.safe_load(settings.template.read_text())
    tmp, secrets = manifest["spec"]["volumes"]
    tmp["emptyDir"]["sizeLimit"] = limit
    template = PodTemplate(settings.template, manifest)

    def volumes(scratch: int) -> list[dict[str, Any]]:
        made = template.fill_in(run(scratch=scratch), RunOptions(), settings)
        return list(made["spec"]["volumes"])

    assert volumes(0) == [tmp, secrets]
    roomy, same = volumes(5 * 10**9)
    assert same == secrets
    size = int(roomy["emptyDir"]["sizeLimit"].removesuffix("M")) * 10**6
    assert 0 <= size - bytes_there - 5 * 10**9 < 10**6
    del tmp["emptyDir"]["sizeLimit"]
    assert volumes(5 * 10**9) == [tmp, secrets], "no limit, as the template says"


def test_memory_is_what_the_plan_needs_for_each_process() -> None:
    def megabytes(**values: Any) -> int:
        resources = worker(pod(**values))["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        return int(resources["requests"]["memory"].removesuffix("M"))

    assert megabytes(memory=0) >= 256
    assert megabytes(memory=10**9) - megabytes(memory=0) == 1250
    assert megabytes(memory=10**9, pod_cpus=4) > 4 * 1250
    template = PodTemplate.load(PodSettings.read().template)
    made = template.fill_in(
        run(10**9), RunOptions(pod_memory=3.5, pod_cpus=2.5), PodSettings.read()
    )
    assert worker(made)["resources"]["requests"] == {"cpu": "2.5", "memory": "3500M"}
    assert option(made, "--processes") == 2


def test_the_form_decides_before_the_configuration_and_that_before_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__WORKER_IMAGE", "registry/image:2")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__NAMESPACE", "configured")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__IMAGES", "registry/image:1, registry/image:3")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__NAMESPACES", "other")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__SERVICE_ACCOUNTS", "somebody")
    manifest = pod()
    assert worker(manifest)["image"] == "registry/image:2"
    assert manifest["metadata"]["namespace"] == "configured"
    assert manifest["spec"]["serviceAccountName"] == "igneous-worker"
    manifest = pod(
        worker_image="registry/image:3",
        namespace="other",
        service_account="somebody",
        node_selector={"pool": "spot"},
        tolerations=[{"key": "spot", "operator": "Exists", "tolerationSeconds": 300}],
    )
    assert worker(manifest)["image"] == "registry/image:3"
    assert manifest["metadata"]["namespace"] == "other"
    spec = manifest["spec"]
    assert spec["serviceAccountName"] == "somebody"
    assert spec["nodeSelector"] == {"pool": "spot"}
    assert spec["tolerations"] == [{"key": "spot", "operator": "Exists", "tolerationSeconds": 300}]


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("worker_image", "attacker/image:1", "images"),
        ("worker_image", "registry/image", "images"),
        ("namespace", "kube-system", "namespaces"),
        ("service_account", "admin", "service_accounts"),
    ],
)
def test_what_the_configuration_does_not_offer_is_refused_by_name(
    field: str, value: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__IMAGES", "registry/image:3")
    refused = rf"{field}: '{value}' is not offered.*add it to \[igneous\] {option}$"
    with pytest.raises(InvalidParameter, match=refused):
        pod(**{field: value})
    for run_on in ("local", "kubernetes"):
        options = RunOptions.model_validate({field: value, "run_on": run_on})
        with pytest.raises(InvalidParameter, match=refused):
            require_workable(options, Downsample(layer="s3://b/x"), ())


def test_the_template_adds_to_what_the_form_says(tmp_path: Path) -> None:
    settings = PodSettings.read()
    manifest = yaml.safe_load(settings.template.read_text())
    manifest["spec"]["nodeSelector"] = {"arch": "amd64"}
    manifest["spec"]["containers"][0]["env"] = [{"name": "AWS_REGION", "value": "eu-west-1"}]
    template = PodTemplate(tmp_path, manifest)
    made = template.fill_in(run(), RunOptions(node_selector={"pool": "spot"}), settings)
    assert made["spec"]["nodeSelector"] == {"arch": "amd64", "pool": "spot"}
    assert worker(made)["env"] == [{"name": "AWS_REGION", "value": "eu-west-1"}]
    assert manifest["spec"]["nodeSelector"] == {"arch": "amd64"}, "the template is as it was"


@pytest.mark.parametrize(
    "text", ["", "spec: {}", "spec: {containers: [{name: base}]}", "- 1", "a: [", "spec: 3"]
)
def test_a_file_that_is_no_template_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(text)
    with pytest.raises(InvalidParameter, match=f"{path} cannot be used: it must be the YAML"):
        PodTemplate.load(path)


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"nothing\.yaml cannot be used"):
        PodTemplate.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_image", "two words"),
        ("worker_image", ""),
        ("namespace", "Upper"),
        ("namespace", "-a"),
        ("service_account", "a/b"),
        ("pod_cpus", 0),
        ("pod_memory", -1),
        ("run_on", "moon"),
        ("tolerations", [{"key": 1}]),
        ("tolerations", [{"tolerationSeconds": "300"}]),
    ],
)
def test_values_that_kubernetes_would_refuse_are_refused_before(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        RunOptions(**{field: value})
