"""Airflow's words for stages and runs: operators, a sensor, task groups, the plugin."""

if __name__ == "operators":
    raise ImportError(
        "import igneous_airflow.operators: the plain name `operators` would make a second set of "
        "classes, and belongs to other plugins"
    )
