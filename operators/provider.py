"""What Airflow shows of this package among its providers; called through the entry point.

Airflow calls it in every process: it imports nothing heavy.
"""

from importlib.metadata import version
from typing import Any

_PACKAGE = "igneous-airflow"


def _option(
    description: str, *, default: str, example: str | None = None, kind: str = "string"
) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }


def get_provider_info() -> dict[str, Any]:
    """Name, version and configuration of the package, as Airflow's provider schema asks."""
    return {
        "package-name": _PACKAGE,
        "name": "Igneous",
        "description": "Stages of work on Neuroglancer Precomputed volumes, proved done.",
        "versions": [version(_PACKAGE)],
        "extra-links": ["igneous_airflow.operators.links.NeuroglancerLink"],
        "config": {
            "igneous": {
                "description": "Work on Neuroglancer Precomputed volumes.",
                "options": {
                    "runs": _option(
                        "Folder in which runs keep their record, receipts and errors: a bucket "
                        "URL, or a folder that every Airflow component and worker sees.",
                        default="file://{AIRFLOW_HOME}/igneous",
                        example="s3://bucket/igneous",
                    ),
                    "sync": _option(
                        "Whether workers wait, on local disks, until what a task wrote is on the "
                        "disk before the task counts as done. Turn it off for scratch disks whose "
                        "content need not survive a power cut.",
                        default="True",
                    ),
                    "allowed": _option(
                        "Addresses below which runs may read and write layers and sources, "
                        "separated by commas: prefixes by whole segments, so that `s3://lab` "
                        "does not admit `s3://lab-private`. They hold for forms, the REST API, "
                        "the viewer and the workers that Airflow starts. Empty: everything that "
                        "the credentials of Airflow and its workers reach, except for the folder "
                        "of runs and Airflow's home; fit for one person's machine only.",
                        default="",
                        example="s3://bucket/layers, gs://other-bucket/raw, /data/layers",
                    ),
                    "workers": _option(
                        "Where workers run unless a run says otherwise: local processes of the "
                        "Airflow task, or pods in a Kubernetes cluster.",
                        default="local",
                        example="kubernetes",
                    ),
                    "worker_image": _option(
                        "The worker image of pods.",
                        default=f"igneous-airflow-worker:{version(_PACKAGE)}",
                        example="registry.example.org/igneous-airflow-worker:0.1.0",
                    ),
                    "images": _option(
                        "Further worker images that forms may choose in place of `worker_image`, "
                        "separated by commas. Empty: there is no choice.",
                        default="",
                        example="registry.example.org/igneous-airflow-worker:0.2.0",
                    ),
                    "namespace": _option("The namespace of pods.", default="igneous"),
                    "namespaces": _option(
                        "Further namespaces that forms may choose, separated by commas. Empty: "
                        "there is no choice.",
                        default="",
                        example="igneous-large",
                    ),
                    "service_accounts": _option(
                        "Service accounts that forms may choose in place of that of the pod "
                        "template, separated by commas. Anyone who may trigger a DAG can use their "
                        "rights. Empty: there is no choice.",
                        default="",
                        example="igneous-reader",
                    ),
                    "pod_template": _option(
                        "A pod template to use instead of the one that comes with the package.",
                        default="",
                        example="/etc/airflow/worker_pod.yaml",
                    ),
                    "kubernetes_conn_id": _option(
                        "The connection to the cluster. Without such a connection, the cluster "
                        "that Airflow runs in.",
                        default="kubernetes_default",
                    ),
                    "deferrable": _option(
                        "Whether the triggerer waits for pods, so that no Airflow worker has to.",
                        default="True",
                        kind="boolean",
                    ),
                    "queue": _option(
                        "Where tasks wait for workers. `sqlite`: a file for each run, for workers "
                        "on one machine. `sqs`: a queue on Amazon SQS for each run, made and "
                        "removed with it; `sqs?region=eu-west-1` and "
                        "`sqs?endpoint=http://host:port` say where. Or the address of a queue that "
                        "is there, `sqs://NAME` or its full URL.",
                        default="sqlite",
                        example="sqs",
                    ),
                    "queues": _option(
                        "Further queues that forms may choose in place of `queue`, separated by "
                        "commas: each as `queue` is written, or `NAME = ADDRESS` to show a name. "
                        "Empty: there is no choice.",
                        default="",
                        example="sqlite, large = sqs://large-tasks?region=eu-west-1",
                    ),
                    "prices": _option(
                        "What things cost, in JSON, so that plans say what a run will cost: the "
                        "`currency`, and the price of a `worker_hour` (of one process), a `task`, "
                        "a `gigabyte_read` and a `gigabyte_written` (uncompressed). Empty: plans "
                        "say nothing of costs.",
                        default="",
                        example='{"currency": "USD", "worker_hour": 0.05, "task": 0.00001}',
                    ),
                    "approve_above_tasks": _option(
                        "A run of more tasks waits after its plan until a person approves it. "
                        "Empty: none does.",
                        default="",
                        example="100000",
                    ),
                    "approve_above_cost": _option(
                        "A run that is expected to cost more, by `prices`, waits after its plan "
                        "until a person approves it; so does one whose cost is not known yet. "
                        "Empty: none does.",
                        default="",
                        example="100",
                    ),
                    "on_failure_callback": _option(
                        "What is called when a run has failed, with the context of the task that "
                        "says so: the dotted path of a function, of one of Airflow's notifiers, or "
                        "of the class of one. Empty: nothing.",
                        default="",
                        example="our_company.airflow.tell_the_channel",
                    ),
                    "aws_conn_id": _option(
                        "Connection with the credentials, region and endpoint for SQS; where there "
                        "is no such connection, those of the environment are used.",
                        default="aws_default",
                        example="aws_default",
                    ),
                },
            }
        },
    }
