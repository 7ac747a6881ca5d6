"""Who uses the Airflow of the browser tests beside its administrator."""

READER = "reader"  # reads every DAG but one
HIDDEN_DAG = "igneous_transfer"
