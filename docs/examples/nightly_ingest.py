"""Each night, make a layer of every folder of sections that has arrived.

A folder is taken when nothing in it has changed for an hour. None is taken twice.
"""

from igneous_airflow.operators.watch import WatchedFolder, ingest_arrivals

sections = WatchedFolder(
    folder="/data/arriving",
    layers="/data/layers",
    parameters={"resolution": "4,4,40", "num_mips": 5},
)
dag = ingest_arrivals("nightly_ingest", __doc__, sections, schedule="0 2 * * *")
