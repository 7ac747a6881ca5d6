"""What two runs of the same stages on twin layers must have in common."""

import json
from pathlib import Path
from typing import Any

from attempts import Step

from igneous_airflow.testing.stages import snapshot


def left(root: Path, *places: Path | str) -> dict[str, Any]:
    """Every file of the layers with its bytes; of some records what twins have in common.

    What a process left half written stays until its folder is listed again, and is left out.
    `places` are the folders that a provenance may name as the one of its layer.
    """
    files: dict[str, Any] = {}
    for name, content in snapshot(root).items():
        if not name.startswith(("runs/", "queues/")) and not name.endswith(".partial"):
            files[name] = content
            if name.endswith("provenance"):
                files[name] = _common(content, *places)
            elif name.endswith("entry.json"):
                files[name] = json.loads(content) | {"launch": ""}
    return files


def _common(content: bytes, *places: Path | str) -> dict[str, Any]:
    """A provenance without places and dates."""
    text = content.decode()
    for place in places:
        text = text.replace(f"file://{place}/", "HERE/").replace(f"{place}/", "HERE/")
    provenance: dict[str, Any] = json.loads(text)
    for entry in provenance["processing"]:
        del entry["date"]
    return provenance


def placed(steps: list[Step], twin: Path, there: Path | str) -> list[Step]:
    """The same steps on the layers of another folder."""
    moved: list[Step] = json.loads(json.dumps(steps).replace(str(twin), str(there)))
    return [(name, parameters) for name, parameters in moved]
