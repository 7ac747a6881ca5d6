"""What the golden record keeps of a case, and how two records are compared.

Bytes and voxels are kept as the first 16 hexadecimal digits of their SHA-256. Of the texts of plans
only the facts count: every number, size, box, key, address and name of an encoding, line by line
and kind by kind. The sentences around them are kept under `says` and shown when they change, but
are not compared: wording may change, numbers and lines may not. Numbers that a plan has as such are
compared exactly, not as its text rounds them. Likewise blocks: their boxes count, in their order,
since the receipts of a run name its tasks by number.

Of a provenance dates and persons are left out, of a source's state its fingerprint, which depends
on times of files, and names of entries of a trash, which hold the time.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from cloudvolume import CloudVolume
from golden_adapter import Facts, plan_ahead, run_step
from golden_case import Case, Chain

Entry = dict[str, Any]
SOURCES, TEMPORARY = "sources", "temporary"
SAYS = "says"
_ROOT = "ROOT"
_FORMATS = frozenset(
    {
        "raw", "jpeg", "png", "jxl", "compressed_segmentation", "compresso", "crackle",
        "gzip", "br", "zstd",
    }
)  # fmt: skip
_STATE = re.compile(r"(files?, [\d,]+ bytes, )[0-9a-f]{12}")
_TRASH_ENTRY = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")


def record_case(case: Case, root: Path, order: Random | None = None) -> Entry:
    """Run a case in an empty folder and give what is kept of it.

    With `order`, the blocks of each stage run in a random order, which must make no difference.
    """
    made = case(root)
    sources = digest_of_tree(root / SOURCES)
    entry: Entry = {"sources": sources}
    steps = made.steps if isinstance(made, Chain) else made
    if isinstance(made, Chain):
        entry["planned_ahead"] = [_plan(plan, root) for plan in plan_ahead(steps)]
    if not any(plan.get("refused") for plan in entry.get("planned_ahead", [])):
        entry["steps"] = [_step(run_step(step, order), root) for step in steps]
    if digest_of_tree(root / SOURCES) != sources:
        entry["sources"] = "changed by a stage"
    entry["made"] = look(root)
    return entry


def look(root: Path) -> Entry:
    """What is in each folder of a case, but sources and temporary files."""
    folders = sorted(path for path in root.iterdir() if path.name not in (SOURCES, TEMPORARY))
    return {folder.name: _folder(folder, root) for folder in folders}


def digest(content: bytes) -> str:
    """The first 16 digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of_tree(folder: Path) -> str:
    """One digest of all files below a folder, by their names and bytes; empty without any."""
    files = [(name, digest(path.read_bytes())) for name, path in _files(folder)]
    return digest(json.dumps(files).encode()) if files else ""


def facts_of(text: str) -> str:
    """The words of a text that hold a digit, name an address, or are encodings."""
    words = (word.strip(",.;:()'\"`") for word in text.split())
    return " ".join(
        word for word in words if re.search(rf"\d|://|{_ROOT}", word) or word in _FORMATS
    )


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = ((str(path.relative_to(folder)), path) for path in folder.rglob("*") if path.is_file())
    return sorted(found)


def _folder(folder: Path, root: Path) -> Entry:
    files = {name: digest(path.read_bytes()) for name, path in _files(folder)}
    entry: Entry = {}
    if "info" in files:
        info = json.loads((folder / "info").read_text())
        entry["info"] = json.dumps(info, sort_keys=True)
        entry["voxels"] = {
            scale["key"]: _voxels(folder, mip) for mip, scale in enumerate(info["scales"])
        }
    if files.pop("provenance", None):
        entry["provenance"] = _provenance((folder / "provenance").read_text(), root)
    return {**entry, "files": files}


def _voxels(layer: Path, mip: int) -> str:
    """Type, shape and digest of all voxels of a mip as cloud-volume decodes them; missing are 0."""
    volume = CloudVolume(f"file://{layer}", mip=mip, progress=False, parallel=1, fill_missing=True)
    voxels = np.asfortranarray(volume[:])
    shape = ",".join(map(str, voxels.shape))
    return f"{voxels.dtype.name} {shape} {digest(voxels.tobytes('F'))}"


def _provenance(text: str, root: Path) -> list[str]:
    text = _TRASH_ENTRY.sub("ENTRY", text.replace(str(root), _ROOT))
    provenance = json.loads(_STATE.sub(r"\1FINGERPRINT", text))
    for entry in provenance["processing"]:
        entry.pop("by")
        entry.pop("date")
    lines = [json.dumps(entry, sort_keys=True) for entry in provenance.pop("processing")]
    return [*lines, json.dumps(provenance, sort_keys=True)]


def _step(facts: Facts, root: Path) -> Entry:
    entry: Entry = {"stage": facts["stage"], "plan": _plan(facts["plan"], root)}
    if "blocks" in facts:
        lines = [facts_of(block) for block in facts["blocks"]]
        entry["blocks"] = f"{len(lines)} {digest(json.dumps(lines).encode())}"
        left_out = facts["work"].pop("left_out")
        names = digest(json.dumps(left_out).encode()) if left_out else ""
        entry["work"] = {**facts["work"], "left_out": names}
        entry["audit"] = facts["audit"]
    return entry


def _plan(plan: Facts, root: Path) -> Entry:
    text = json.dumps(plan).replace(str(root), _ROOT)
    numbers: Entry = json.loads(text)
    texts = {kind: lines for kind, lines in numbers.pop("texts").items() if lines}
    facts = {kind: [facts_of(line) for line in lines] for kind, lines in texts.items()}
    says = [f"{kind}: {line}" for kind, lines in texts.items() for line in lines]
    shown = {name: value for name, value in numbers.items() if value}
    return {**shown, **facts, SAYS: says}


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is not as it was; None where there is none."""

    where: str
    old: Any
    new: Any

    @property
    def is_wording(self) -> bool:
        """Whether only words differ, which are not compared."""
        return f"/{SAYS}" in self.where

    def __str__(self) -> str:
        if self.new is None:
            return f"{self.where}: is missing, was {self.old}"
        if self.old is None:
            return f"{self.where}: is new, {self.new}"
        return f"{self.where}:\n        was {self.old}\n        is  {self.new}"


def differences(old: Entry, new: Entry) -> list[Difference]:
    """Every value of two entries that differs, by its path; wording included."""
    before, after = dict(_flat(old)), dict(_flat(new))
    names = sorted(before.keys() | after.keys())
    pairs = ((name, before.get(name), after.get(name)) for name in names)
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def _flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{path}/{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _flat(part, f"{path}/{number}")
    else:
        yield path, value
