"""Airflow's words for stages and runs: operators, a sensor, task groups, the plugin.

Whatever imports this package in a process of Airflow is limited to `[igneous] allowed`.
"""

from igneous_airflow.storage.allowed import Allowed, limit_process

if __name__ == "operators":
    raise ImportError(
        "import igneous_airflow.operators: the plain name `operators` would make a second set of "
        "classes, and belongs to other plugins"
    )


def configured() -> Allowed:
    """What the configuration allows now; Airflow reads the package before its configuration."""
    from igneous_airflow.operators.settings import allowed

    return allowed()


limit_process("[igneous] allowed", configured)
