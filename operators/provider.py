"""What Airflow shows of this package among its providers; called through the entry point.

Airflow calls it in every process: it imports nothing heavy.
"""

from importlib.metadata import version
from typing import Any

_PACKAGE = "igneous-airflow"


def get_provider_info() -> dict[str, Any]:
    """Name, version and configuration of the package, as Airflow's provider schema asks."""
    return {
        "package-name": _PACKAGE,
        "name": "Igneous",
        "description": "Stages of work on Neuroglancer Precomputed volumes, proved done.",
        "versions": [version(_PACKAGE)],
        "config": {
            "igneous": {
                "description": "Work on Neuroglancer Precomputed volumes.",
                "options": {
                    "state": {
                        "description": (
                            "Folder in which runs keep their record, receipts and errors: a "
                            "bucket URL, or a folder that every Airflow component and worker sees."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://bucket/igneous",
                        "default": "file://{AIRFLOW_HOME}/igneous",
                    },
                    "queue": {
                        "description": (
                            "Where tasks wait for workers. `sqlite`: a file for each run, for "
                            "workers on one machine. `sqs`: a queue on Amazon SQS for each run, "
                            "made and removed with it; `sqs?region=eu-west-1` and "
                            "`sqs?endpoint=http://host:port` say where. Or the address of a queue "
                            "that is there, `sqs://NAME` or its full URL. Forms can say otherwise."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "sqs",
                        "default": "sqlite",
                    },
                    "aws_conn_id": {
                        "description": (
                            "Connection with the credentials, region and endpoint for SQS; where "
                            "there is no such connection, those of the environment are used."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "aws_default",
                        "default": "aws_default",
                    },
                },
            }
        },
    }
