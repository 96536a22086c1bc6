"""Buckets: mutable maps from path to file, with an event log and a history.

A path is text of up to 1024 bytes in UTF-8: components joined by `/`, none of them empty, `.` or `..`, and no NUL.
Everything else is kept exactly as it was given: blanks at either end of a component, unicode normal forms, quotes,
backslashes, line ends. Two spellings of one word are two paths. There are no folders, only paths that begin alike,
so a file may have the path of what others see as a folder.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from runstead.model.accounts import Namespace

MAX_PATH_BYTES = 1024

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_CONTENT_TYPE = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as it is stored; `size` and `total_files` are those of its files now."""

    seq: int  # its number in the database
    id: str
    namespace: Namespace
    name: str
    private: bool
    created_at: datetime
    updated_at: datetime  # of the last batch that changed a file; never earlier than any before it
    size: int = 0
    total_files: int = 0
    version: int = 0  # counts the batches that changed a file
    resource_group_id: str | None = None
    region: str | None = None
    deleted_at: datetime | None = None

    @property
    def path(self) -> str:
        """The name clients use: `namespace/name`."""
        return f"{self.namespace.name}/{self.name}"

    @property
    def scope(self) -> str:
        """What stored content knows this bucket by; it stays when the bucket is renamed."""
        return f"bucket:{self.id}"


@dataclass(frozen=True, slots=True)
class NewFile:
    """What a path shall be from now on."""

    file_hash: bytes
    size: int
    mtime: datetime
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class BucketFile:
    """A file of a bucket; `uploaded_at` is the instant from which the path is this file."""

    path: str
    file_hash: bytes
    size: int
    mtime: datetime
    uploaded_at: datetime
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Folder:
    """A beginning that several paths share; `uploaded_at` is that of the first of them in the order of paths."""

    path: str
    uploaded_at: datetime


@dataclass(frozen=True, slots=True)
class KeptFile:
    """What a path was until `replaced_at`, when it was overwritten or deleted."""

    file: BucketFile
    replaced_at: datetime
    version: int  # of the batch that did it


class Op(StrEnum):
    """What happened to a path."""

    ADD = "add"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One path's change; the file it became, or None when it was deleted."""

    path: str
    op: Op
    file: NewFile | None


@dataclass(frozen=True, slots=True)
class Batch:
    """The changes that became visible together, as the version they made of the bucket."""

    version: int
    at: datetime
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Writer:
    """The attempt of a job whose volumes a batch comes from."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a job wrote to one of its volumes, as it was when the job wrote it last."""

    bucket_seq: int
    bucket: str | None  # its name now; None when it is gone
    path: str
    file_hash: bytes
    size: int
    attempt: int


def is_bucket_name(name: str) -> bool:
    """Say whether a bucket may have this name: the rule for repositories on the Hub."""
    return _NAME.fullmatch(name) is not None and "--" not in name and ".." not in name and not name.endswith(".git")


def path_problem(path: str) -> str | None:
    """Return why no file may have this path, or None if one may."""
    if not path:
        return "a path is not empty"
    if "\0" in path:
        return "a path has no NUL character"
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        return "a path is valid Unicode"
    if length > MAX_PATH_BYTES:
        return f"a path has at most {MAX_PATH_BYTES} bytes in UTF-8, this one {length}"
    if path.startswith("/"):
        return "a path is relative: it does not begin with '/'"
    for component in path.split("/"):
        if component in ("", ".", ".."):
            return "no component of a path is empty, '.' or '..'"
    return None


def is_content_type(text: str) -> bool:
    """Say whether this may be sent as the `Content-Type` of a file: one line of ASCII, at most 255 characters."""
    return _CONTENT_TYPE.fullmatch(text) is not None


def behind(path: str) -> str:
    """Return the first place behind a path in the order of paths; there is no NUL, so nothing is in between."""
    return path + "\x01"


def behind_folder(path: str) -> str:
    """Return the first place behind everything below a path."""
    return path + chr(ord("/") + 1)


def place_behind(entry: BucketFile | Folder) -> str:
    """Return where a listing goes on behind an entry."""
    return behind_folder(entry.path) if isinstance(entry, Folder) else behind(entry.path)
