"""Whether the data directory and the database are fit for a server."""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from runstead.cli.findings import Finding, Level
from runstead.kit.settings import Settings, mask

# File systems that several machines share: locks and durability on them are not those of a disk.
_SHARED = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "ceph", "glusterfs", "afs"})
_LITTLE_BYTES = 5_000_000_000
_TOO_LITTLE_BYTES = 200_000_000
_SLOW_SECONDS = 0.05
_ROUNDS = 9


def data_dir(settings: Settings) -> list[Finding]:
    """Examine the data directory, without making it."""
    path = settings.server.data_dir
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return [Finding(Level.FAILED, "data directory", f"{place} is not writable", "choose one with --data-dir")]
    state = "" if place == path else ", made at the first start"
    found = [Finding(Level.OK, "data directory", f"{path}{state}")]
    kind = file_system(place)
    if kind in _SHARED:
        found.append(
            Finding(Level.MISSING, "file system", f"{place} is on {kind}", "choose a local one with --data-dir")
        )
    return [*found, _space(place), _durability(place, kind)]


def _space(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free"
    if free < _TOO_LITTLE_BYTES:
        return Finding(Level.FAILED, "disk space", text, "free some, or choose another place with --data-dir")
    if free < _LITTLE_BYTES:
        return Finding(Level.MISSING, "disk space", text, "logs and job directories may fill it")
    return Finding(Level.OK, "disk space", text)


def _durability(place: Path, kind: str) -> Finding:
    spent: list[float] = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(_ROUNDS):
            file.write(b"\0" * 4096)
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            spent.append(time.monotonic() - began)
    seconds = statistics.median(spent)
    text = f"{kind}, a durable write takes {seconds * 1000:.2g} ms"
    if seconds > _SLOW_SECONDS:
        return Finding(Level.MISSING, "disk speed", text, "every accepted job waits that long; an SSD does not")
    return Finding(Level.OK, "disk speed", text)


def file_system(place: Path) -> str:
    """Return the type of the file system a path is on, `unknown` where the system does not say."""
    mounts = Path("/proc/self/mountinfo")
    best, kind = "", "unknown"
    for line in mounts.read_text().splitlines() if mounts.is_file() else ():
        fields = line.split()
        point = fields[4].encode().decode("unicode_escape")
        inside = place.resolve().is_relative_to(point)
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind


def database(settings: Settings) -> list[Finding]:
    """Examine the database, changing nothing in it."""
    url = settings.database_url
    if url.startswith("sqlite:"):
        return [_sqlite(Path(url.removeprefix("sqlite:///")))]
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(_with_driver(url), connect_args={"connect_timeout": 5})
        with engine.connect() as connection:
            version = connection.execute(sqlalchemy.text("show server_version")).scalar()
    except ModuleNotFoundError:
        return [Finding(Level.FAILED, "database", "no driver for PostgreSQL", "pip install 'runstead[postgres]'")]
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        return [Finding(Level.FAILED, "database", f"{mask(url)}: {mask(reason)}", "see [database] url")]
    return [Finding(Level.OK, "database", f"PostgreSQL {version} at {mask(url)}")]


def _with_driver(url: str) -> str:
    return "postgresql+psycopg://" + url.partition("://")[2]


def _sqlite(path: Path) -> Finding:
    import sqlite3

    version = f"SQLite {sqlite3.sqlite_version}"
    if not path.exists():
        return Finding(Level.OK, "database", f"{version}, {path} is made at the first start")
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        (state,) = connection.execute("pragma quick_check(1)").fetchone()
        connection.close()
    except sqlite3.Error as error:
        return Finding(Level.FAILED, "database", f"{path}: {error}", "restore it from a backup, or move it away")
    if state != "ok":
        return Finding(Level.FAILED, "database", f"{path} is damaged: {state}", "restore it from a backup")
    return Finding(Level.OK, "database", f"{version}, {path}")
