"""The audit log of a runs folder."""

from pathlib import Path

from igneous_airflow.audit_log import AuditEntry, read_entries, write_entry

AT = "2026-01-02T03:04:05+00:00"


def test_entries_of_one_second_are_all_kept_and_one_that_is_written_twice_is_one(
    tmp_path: Path,
) -> None:
    runs = f"file://{tmp_path}"
    entries = [
        AuditEntry(at=AT, action="restored", by="ada", what=layer, why=why)
        for layer in ("/data/a-b", "/data/a_b", f"/{'x' * 70}/a")
        for why in ("the entry 1", "the entry 2")
    ]
    for entry in [*entries, *entries]:
        write_entry(runs, entry)
    assert sorted(read_entries(runs), key=str) == sorted(entries, key=str)
