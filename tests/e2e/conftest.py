"""What `make e2e` tells before it begins."""

from attempts import BASE


def pytest_report_header() -> str:
    """Say how to have the same accidents and faults again."""
    return f"accidents and faults: the same again with IGNEOUS_AIRFLOW_SEED={BASE}"
