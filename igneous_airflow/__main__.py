"""Makes `python -m igneous_airflow` the same as `igneous-airflow`."""

from igneous_airflow.cli import main

if __name__ == "__main__":
    main()
