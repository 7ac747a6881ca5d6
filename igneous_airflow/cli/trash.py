"""Commands on the trash of a layer: `trash list`, `trash restore` and `trash empty`."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from igneous_airflow.audit_log import Action, AuditEntry, now, write_entry
from igneous_airflow.cli.addresses import folder_url, program, quoted, shown
from igneous_airflow.cli.runs import runs_option
from igneous_airflow.errors import IgneousError, PlanRefused
from igneous_airflow.stage import human_bytes
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.storage.provenance import author
from igneous_airflow.storage.restoring import require_disk, restore, was_restored
from igneous_airflow.storage.trash import Trash, entries_of, time_of
from igneous_airflow.wording import counted

_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE = re.compile(r"([0-9]{1,6})([hdw])")


@click.group
def trash() -> None:
    """Look into the trash of a layer, bring back what is there, or empty it."""


def _age(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta:
    if value is None:
        return timedelta()
    match = _AGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(
            f"{value!r}: write a number of hours, days or weeks, as 12h or 30d"
        )
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def _open(layer: str) -> Folder:
    folder = open_folder(folder_url(layer))
    require_disk(folder)
    return folder


@trash.command("list")
@click.argument("layer")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")
def list_entries(layer: str, as_json: bool) -> None:
    """Show what is in the trash of LAYER: when it went, what it is, files and bytes."""
    folder = _open(layer)
    rows = [_row(entry) for entry in entries_of(folder)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"The trash of {shown(folder.url)} is empty.")
    for row in rows:
        click.echo("\n".join(_lines(row)))
    if rows:
        total = human_bytes(sum(row["bytes"] for row in rows))
        click.echo(
            f"{total} in all. Bring one back: {program()} trash restore {quoted(layer)} ENTRY"
        )


def _row(entry: Trash) -> dict[str, Any]:
    """What there is to say of an entry."""
    sizes = [size for _, size in entry.files()]
    row: dict[str, Any] = {
        "entry": entry.name,
        "when": time_of(entry.name).isoformat(),
        "files": len(sizes),
        "bytes": sum(sizes),
    }
    try:
        told = entry.read()
    except IgneousError as error:
        return {**row, "damaged": str(error)}
    if told is None:
        return {**row, "damaged": "it does not say what it is"}
    return {**row, **told.model_dump(include={"what", "stage", "run", "by", "complete"})}


def _lines(row: dict[str, Any]) -> Iterator[str]:
    when = datetime.fromisoformat(row["when"]).strftime("%Y-%m-%d %H:%M UTC")
    files = f"{counted(row['files'], 'file')}, {human_bytes(row['bytes'])}"
    yield f"{row['entry']}  {when}  {files}"
    if "damaged" in row:
        yield f"    damaged: {row['damaged']}"
        return
    run = f" run {row['run']}" if row["run"] else ""
    by = f" by {row['by']}" if row["by"] else ""
    state = "" if row["complete"] else "; the run is not finished"
    yield f"    {row['what']} ({row['stage']}{run}{by}{state})"


@trash.command("restore")
@click.argument("layer")
@click.argument("entry")
@click.option(
    "--yes", is_flag=True, help="Replace what was written there since; that goes to the trash."
)
@click.option(
    "--unfinished",
    is_flag=True,
    help="Restore what is there of an entry to which a run may still move files, or of one that "
    "does not say what it is. End the run first.",
)
def restore_entry(layer: str, entry: str, yes: bool, unfinished: bool, runs: str) -> None:
    """Bring ENTRY of LAYER's trash back: its files, and what the info said of them.

    One that was stopped goes on when it is started again.
    """
    folder = _open(layer)
    time_of(entry)
    if was_restored(folder, entry) and Trash(folder, entry).read() is None:
        click.echo(f"{entry} was restored before.")
        return
    restored = restore(folder, entry, author(), replace=yes, unfinished=unfinished)
    _log(runs, "restored", folder, entry)
    files = counted(restored.files, "file is", "files are")
    click.echo(f"{files} back in {shown(folder.url)}.")
    if restored.unrecorded:
        click.echo(f"The provenance does not tell of it: {restored.unrecorded}", err=True)
    if restored.left:
        click.echo(
            f"{counted(restored.left, 'file was', 'files were')} moved to the trash meanwhile, by "
            "a run that is still at work: end it, and restore the entry again.",
            err=True,
        )


@trash.command
@click.argument("layer")
@click.option(
    "--older", metavar="AGE", callback=_age, help="Only what went longer ago, as 12h, 30d or 4w."
)
@click.option("--yes", is_flag=True, help="Confirm that it may go for good.")
@click.option(
    "--unfinished",
    is_flag=True,
    help="Also entries to which a run may still move files, and those that do not say what they "
    "are. End the runs first.",
)
def empty(layer: str, older: timedelta, yes: bool, unfinished: bool, runs: str) -> None:
    """Delete what is in the trash of LAYER for good."""
    folder = _open(layer)
    before = datetime.now(UTC) - older
    old = [entry for entry in entries_of(folder) if time_of(entry.name) <= before]
    going = old if unfinished else [entry for entry in old if _is_complete(entry)]
    for entry in old:
        if entry not in going:
            click.echo(
                f"{entry.name} stays: a run may still move files there, or it does not say what it "
                "is. --unfinished takes it as well."
            )
    sizes = [size for entry in going for _, size in entry.files()]
    entries, files = counted(len(going), "entry", "entries"), counted(len(sizes), "file")
    words = f"{entries} of the trash, {files}, {human_bytes(sum(sizes))}"
    if not going:
        click.echo(f"There is nothing to delete in the trash of {shown(folder.url)}.")
        return
    if not yes:
        raise PlanRefused(
            "trash empty", [f"{words}, would be deleted for good: set --yes to start"]
        )
    left = [entry.name for entry in going if not entry.remove()]
    _log(runs, "emptied", folder, words)
    click.echo(f"Deleted {words}.")
    if left:
        click.echo(f"A run has moved more files to {', '.join(left)} meanwhile.", err=True)


def _is_complete(trash: Trash) -> bool:
    """Whether an entry says that nothing more is to come."""
    with suppress(IgneousError):
        entry = trash.read()
        return entry is not None and entry.complete
    return False


def _log(runs: str, action: Action, folder: Folder, what: str) -> None:
    """Say in the audit log of the runs folder who did it."""
    entry = AuditEntry(at=now(), action=action, by=author(), what=folder.url, why=what)
    write_entry(runs, entry)


for _command in (restore_entry, empty):
    _command.params.append(runs_option())
