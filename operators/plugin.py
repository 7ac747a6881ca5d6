"""The Airflow plugin; loaded through the entry point in every process of Airflow, so kept light."""

from airflow.plugins_manager import AirflowPlugin


class IgneousPlugin(AirflowPlugin):
    """Makes Airflow list this package among its plugins."""

    name = "igneous"
