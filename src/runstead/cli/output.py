"""How lists are printed: a table for people, JSON for programs."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

_UNBOUNDED = 1000


def print_json(value: object) -> None:
    """Print a value of dataclasses, mappings and lists as JSON; instants become ISO 8601."""
    print(json.dumps(value, indent=2, default=_plain))


def print_rows(rows: Sequence[Mapping[str, object]], as_json: bool, none: str) -> None:
    """Print rows of the same keys as JSON or as a table; `none` is what people read when there are no rows."""
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        print(none, file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.upper().replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console()
    # For a program each row is one line; the width that a single print may have is at most the console's.
    (console if console.is_terminal else Console(width=_UNBOUNDED)).print(table)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return "" if value is None else str(value)


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    raise TypeError(f"no JSON for {type(value).__name__}")
