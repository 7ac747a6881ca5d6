"""The layer's `provenance` file: what was done to it, by whom, when; written after success."""

import getpass
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from igneous_airflow.errors import CorruptChunk, InvalidInfo, InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.commit import commit
from igneous_airflow.storage.files import Folder, StoredFile
from igneous_airflow.storage.folder_names import TRASH
from igneous_airflow.storage.methods import same_method
from igneous_airflow.storage.partials import remove_abandoned
from igneous_airflow.storage.strict_json import shown

_NAME = "provenance"
_MOST = 1 << 26  # bytes: 64 MiB, or about 100,000 entries


def read_provenance(folder: Folder) -> dict[str, Any]:
    """Read the provenance of a layer; an absent file gives the empty form.

    Raises InvalidInfo for a file of another form, which may hold what must not be lost.
    """
    stored = folder.read(_NAME)
    empty: dict[str, Any] = {"description": "", "owners": [], "processing": [], "sources": []}
    if stored is None:
        return empty
    try:
        found = json.loads(bytes(decompress_bytes(stored, _MOST)))
        if not isinstance(found, dict):
            raise ValueError(f"it is not an object, but {shown(found)}")
        provenance = empty | found
        for key in ("processing", "sources"):
            if not isinstance(provenance[key], list):
                raise ValueError(f"{key} is not a list")
    except (CorruptChunk, ValueError, RecursionError) as error:
        raise InvalidInfo(
            f"{folder.url}/{_NAME} cannot be read: {error}. Repair its JSON, or move the file "
            "away, and a new one is begun"
        ) from error
    return provenance


def made_by(folder: Folder, written: Mapping[str, BoundingBox | None]) -> dict[str, dict[str, Any]]:
    """The method of the latest run that wrote into a box of each of these folders, by its name.

    Boxes are in voxels of the folder's scale, None for all of it. Empty for a folder of which no
    run is recorded, as when other programs wrote it, or a run that has not finished. Entries that
    do not say what they wrote, of other programs and older versions, count as having written
    everything.
    """
    makers: dict[str, dict[str, Any]] = {name: {} for name in written}
    for entry in read_provenance(folder)["processing"]:
        for name, box in written.items():
            if _wrote(entry, name, box):
                makers[name] = entry["method"]
    return makers


def count_entries(folder: Folder) -> int:
    """How many entries the provenance has; raises InvalidInfo for one that cannot be read."""
    return len(read_provenance(folder)["processing"])


def written_since(folder: Folder, name: str, box: BoundingBox, entries: int) -> bool:
    """Whether a later run than the first `entries` wrote into a box of a folder, as `made_by` says.

    Raises InvalidInfo for a provenance that cannot be read.
    """
    later = read_provenance(folder)["processing"][entries:]
    return any(_wrote(entry, name, box) for entry in later)


def _wrote(entry: Any, name: str, box: BoundingBox | None) -> bool:
    """Whether an entry with a method says that it wrote into a box, or not what it wrote."""
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), dict):
        return False
    told = entry.get("written")
    if not isinstance(told, dict):
        return True
    if name not in told:
        return False
    if box is None or told[name] is None:
        return True
    try:
        return bool(BoundingBox.parse(str(told[name])).intersection(box))
    except InvalidParameter:
        return True


def record_processing(
    folder: Folder,
    method: Mapping[str, Any],
    by: str,
    *,
    sources: Sequence[str] = (),
    written: Mapping[str, BoundingBox | None] | None = None,
) -> None:
    """Append one entry to `processing`: the method with its parameters, the author, the date.

    `sources` are the layers that the voxels come from; those not named yet are added. `written` are
    the boxes that were written, in voxels, by the keys of their scales or the folders of their
    files, None for all of it, so that a later run knows whose files it would replace.

    An entry of the same method and parameters as the last one replaces it, so that finishing a
    run twice leaves one entry. What others record meanwhile stays. Raises StorageUnavailable when
    the entry never holds.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M %Z")
    entry = json.loads(json.dumps({"method": dict(method), "by": by, "date": date}))
    if written is not None:
        entry["written"] = {
            name: None if box is None else str(box) for name, box in written.items()
        }
    copies = 0  # of the entry once ours is there; the date has no seconds, so others may be alike

    def with_entry(provenance: dict[str, Any]) -> dict[str, Any]:
        nonlocal copies
        processing, known = provenance["processing"], provenance["sources"]
        latest = processing[-1] if processing else None
        is_repeated = _has_method(latest, entry["method"])
        earlier = processing[:-1] if is_repeated else processing
        copies = copies or earlier.count(entry) + 1
        if processing.count(entry) < copies:
            processing = [*earlier, entry]
        added = [source for source in dict.fromkeys(sources) if source not in known]
        return {**provenance, "processing": processing, "sources": [*known, *added]}

    def write(provenance: dict[str, Any]) -> None:
        text = json.dumps(provenance, indent=2, sort_keys=True)
        folder.write(_NAME, StoredFile(text.encode()), content_type="application/json")

    commit(folder, _NAME, partial(read_provenance, folder), with_entry, write)
    remove_abandoned(folder.url)
    remove_abandoned(folder.url, TRASH, depth=1)


def _has_method(entry: object, method: Mapping[str, Any]) -> bool:
    found = entry.get("method") if isinstance(entry, dict) else None
    return isinstance(found, dict) and same_method(found, method)


def author() -> str:
    """Who works here: git's configured e-mail address, else the name of the user."""
    try:
        answer = subprocess.run(
            ["git", "config", "user.email"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        if answer.stdout.strip():
            return answer.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""
