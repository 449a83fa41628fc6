"""The records of a figure: one JSON line per run, with a digest that shows an edit by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any

from wgangp.files import read_file

__all__ = ["read_records", "stamp"]


def stamp(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as JSON holds it, with the digest of its content. A digest that it already has is replaced.

    The digest shows mistakes. It does not protect against somebody who writes a new digest, too.
    """
    content = json.loads(json.dumps({key: value for key, value in record.items() if key != "digest"}))
    return content | {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of records.jsonl in a folder; none if there is no file.

    A last line without a line break was cut off by a crash, and is left out.

    Raises:
        ValueError: a line is not as scripts/reproduce.py wrote it: it was changed, added or copied by hand.
    """
    path, records = folder / "records.jsonl", []
    text = read_file(path).decode(errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                records.append(_read_record(line, records))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {error}. Restore the line as it was, or delete it, to measure it again"
                ) from error
    return records


def _read_record(line: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record in a line. ValueError if it does not have its digest, or is equal to one of the records."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict) or "digest" not in record:
        raise ValueError(
            "the record has no digest: it was written by hand or by an early version. If you trust the record, write"
            " wgangp.figures.digest.stamp(record) in its place"
        )
    if record["digest"] != stamp(record)["digest"]:
        raise ValueError("the record was changed after its run: its digest is not that of its content")
    digests = [other["digest"] for other in records]
    if record["digest"] in digests:
        raise ValueError(f"the record is that of line {digests.index(record['digest']) + 1} again")
    return record
