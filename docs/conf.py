"""How Sphinx builds the documentation; `make docs`."""

import atexit
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# an Airflow of its own, which only the reference needs, and only to read DAG files
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="igneous-airflow-docs-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)

from reference import write_reference  # noqa: E402

write_reference(HERE / "reference")

project = "igneous_airflow"
version = release = metadata.version("igneous-airflow")
language = "en"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["ci", "examples", "policies"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
nitpicky = True
# places on this machine only, which nobody can look at from elsewhere
linkcheck_timeout = 10
linkcheck_ignore = [r"http://(localhost|127\.0\.0\.1)"]
