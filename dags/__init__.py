"""The DAGs: declarations only; `igneous-airflow dags-folder` prints where they are installed."""
