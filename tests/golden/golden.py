"""Run every case of the golden record and say what is not as it was: `make golden`.

With `--update` the record is written again; the commit that does so says what differs on purpose.
`golden_record.py` says what is compared, `golden_adapter.py` is what follows the library's names.
The record holds the bytes that encoders make, so it is meant for the packages that
`requirements.lock` pins: the versions in it are not compared, but shown where others are installed.
Lossy encoders calculate with floats, which other processors may round in another way.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random

import golden_files
import golden_meshes
import golden_mips
import golden_transfers
from golden_case import Case
from golden_record import TEMPORARY, Entry, differences, record_case

RECORD = Path(__file__).with_name("record.json")
CASES: dict[str, Case] = {
    case.__name__: case
    for module in (golden_mips, golden_transfers, golden_files, golden_meshes)
    for case in module.CASES
}
_PACKAGES = (
    "brotli", "cloud-volume", "compresso", "crackle-codec", "deflate", "imagecodecs", "isal",
    "meshoptimizer", "numpy", "pillow", "pyspng-seunglab", "simplejpeg", "tensorstore", "tinybrain",
    "zmesh", "zstandard",
)  # fmt: skip
_SHOWN = 12


def main(arguments: list[str] | None = None) -> int:
    """Compare, or write with `--update`; returns how many cases are not as they were, or failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    made = _run_all(options.cases or list(CASES), options.folder, options.shuffle)
    record = _read(options.record)
    if not options.update:
        if not options.cases:
            made |= {name: {} for name in record["cases"].keys() - CASES.keys()}
        return _compare_all(record, made)
    if failed := {name: entry["error"] for name, entry in made.items() if "error" in entry}:
        _show("nothing is written, since these cases fail", map(": ".join, failed.items()))
        return len(failed)
    kept = record["cases"] if options.cases else {}
    _write(options.record, {**kept, **made})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare what stages make with the golden record.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--update", action="store_true", help="write the record")
    parser.add_argument("--record", type=Path, default=RECORD, help="the record to use")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="run cases and blocks in a random order"
    )
    return parser


def _run_all(names: list[str], folder: Path | None, seed: int | None) -> dict[str, Entry]:
    """Run cases, each in a folder of its own; with a seed, cases and blocks in a random order."""
    order = None if seed is None else Random(seed)
    if order is not None:
        names = order.sample(names, len(names))
    return {name: _run(CASES[name], folder, order) for name in names}


def _run(case: Case, folder: Path | None, order: Random | None) -> Entry:
    with tempfile.TemporaryDirectory(prefix="golden-", dir=folder) as path:
        root = Path(path)
        (root / TEMPORARY).mkdir()
        tempfile.tempdir = str(root / TEMPORARY)  # where stages unpack files
        try:
            return record_case(case, root, order)
        except Exception as error:  # noqa: BLE001 - the other cases are compared all the same
            return {"error": f"{type(error).__name__}: {error}".replace(path, "ROOT")}
        finally:
            tempfile.tempdir = None


def _compare_all(record: Entry, made: Mapping[str, Entry]) -> int:
    for name, installed in _versions().items():
        if (recorded := record["made_with"].get(name)) != installed:
            print(f"note: the record was made with {name} {recorded}, here is {installed}")
    changed = [name for name, new in made.items() if _compare(name, record["cases"], new)]
    print(f"{len(made) - len(changed)} of {len(made)} cases are as the record has them")
    return len(changed)


def _compare(name: str, record: Mapping[str, Entry], new: Entry) -> bool:
    """Print how a case differs; whether more than wording does."""
    found = differences(record.get(name, {}), new)
    wording = [difference for difference in found if difference.is_wording]
    changed = [one for one in found if not one.is_wording]
    if changed:
        _show(f"{name}: {_counted(changed, 'value differs', 'values differ')}", changed)
    if wording:
        one = "sentence differs, which is not compared"
        many = "sentences differ, which are not compared"
        _show(f"{name}: {_counted(wording, one, many)}", wording)
    return bool(changed)


def _counted(found: Sequence[object], one: str, many: str) -> str:
    return f"{len(found)} {one if len(found) == 1 else many}"


def _show(title: str, lines: Iterable[object]) -> None:
    print(title)
    shown = list(lines)
    for line in shown[:_SHOWN]:
        print(f"    {line}")
    if len(shown) > _SHOWN:
        print(f"    and {len(shown) - _SHOWN} more")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def _read(path: Path) -> Entry:
    empty: Entry = {"made_with": {}, "cases": {}}
    return json.loads(path.read_text()) if path.exists() else empty


def _write(path: Path, cases: Mapping[str, Entry]) -> None:
    ordered = {name: cases[name] for name in CASES if name in cases}
    record = {"made_with": _versions(), "cases": ordered}
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(min(main(), 1))
