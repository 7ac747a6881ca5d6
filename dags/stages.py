"""One DAG for every registered stage; its form is the stage's fields.

Except for stages whose DAG is a chain: a DAG file of the stage's name.
"""

import inspect
from pathlib import Path

from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.group import pipeline
from igneous_airflow.stages import registered_stages

chains = {path.stem for path in Path(__file__).parent.glob("*.py")}
for name, stage in registered_stages().items():
    if name not in chains:
        pipeline(name, inspect.getdoc(stage) or "", Step(stage))
