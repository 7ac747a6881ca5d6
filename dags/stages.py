"""One DAG for every registered stage; its form is the stage's fields."""

import inspect

from airflow.sdk import DAG

from igneous_airflow.operators.group import stage_group
from igneous_airflow.operators.params import RunOptions, model_params
from igneous_airflow.stages import registered_stages

for stage in registered_stages().values():
    words = inspect.getdoc(stage) or ""
    with DAG(
        f"igneous_{stage.name}",
        description=words.partition("\n")[0],
        doc_md=words,
        schedule=None,
        params=model_params(stage, RunOptions),
        tags=["igneous"],
        render_template_as_native_obj=True,
        max_active_runs=16,
    ):
        stage_group(stage)
