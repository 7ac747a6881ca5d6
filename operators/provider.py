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
        "extra-links": ["igneous_airflow.operators.links.NeuroglancerLink"],
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
                    }
                },
            }
        },
    }
