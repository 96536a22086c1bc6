"""The conditions of a GET: not if unchanged, and a range only of what the client has a part of (RFC 9110 §13)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime


def http_date(at: datetime) -> str:
    """Return an instant as HTTP writes it, in whole seconds."""
    return format_datetime(at.astimezone(UTC), usegmt=True)


def is_unchanged(headers: Mapping[str, str], etag: str, modified_at: datetime) -> bool:
    """Say whether the client has this already: 304."""
    wanted = headers.get("if-none-match")
    if wanted is not None:
        return wanted.strip() == "*" or any(_bare(one) == _bare(etag) for one in wanted.split(","))
    since = _date(headers.get("if-modified-since"))
    return since is not None and modified_at.replace(microsecond=0) <= since


def range_counts(headers: Mapping[str, str], etag: str, modified_at: datetime) -> bool:
    """Say whether a range may be answered: the client has no part of another version."""
    condition = headers.get("if-range")
    if condition is None:
        return True
    if condition.lstrip().startswith(('"', "W/")):
        return condition.strip() == etag  # a weak one never counts
    return _date(condition) == modified_at.replace(microsecond=0)


def _bare(etag: str) -> str:
    return etag.strip().removeprefix("W/")


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = parsedate_to_datetime(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, TypeError):
        return None
