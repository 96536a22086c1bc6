"""A bucket over the Hub's API: its tree, its changes, the content of its files (wire-storage §5, §8, §10, §13)."""

import errno
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote, urljoin

from runstead.node.fuse.source import EMPTY, Change, Changed, Content, Folder, Piece, Source
from runstead.node.fuse.unpacking import Unpacker
from runstead.node.fuse.web import Exchange, Refused, Transient, Web, persist
from runstead.xet.hashes import hash_from_text, hash_to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PAGE = 5000
_BATCH = 1000
_READ_BYTES = 1 << 19  # few chunks are cut in two, and all of it is in the processor's cache still when it is written
_EARLY_SECONDS = 30.0
_EVENT_PAUSE = 1.0
_EVENT_SILENCE = 75.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Hub(Source):
    """One folder of one bucket."""

    def __init__(self, web: Web, endpoint: str, bucket: str, folder: str, token: str, patience: float) -> None:
        self._web = web
        self._endpoint = endpoint.rstrip("/")
        self._api = f"{self._endpoint}/api/buckets/{quote(bucket)}"
        self._folder = folder.strip("/")
        self._patience = patience
        self._headers = {"Authorization": f"Bearer {token}"}
        self._cas: tuple[str, str, float] | None = None
        self._lists_many = True  # as far as is known

    def renew(self, token: str) -> None:
        """Use another token from now on."""
        self._headers = {"Authorization": f"Bearer {token}"}
        self._cas = None

    def check(self) -> None:
        """See that the bucket is there and may be read. Raises as everything here does."""
        persist(lambda: self._web.json("GET", self._api, self._headers), self._patience)

    def level(self, path: str, *, hurry: bool = False) -> Folder:
        """Return one level of the tree."""
        return persist(lambda: self._level(path), 0 if hurry else self._patience)

    def _level(self, path: str) -> Folder:
        prefix = self._full(path)
        cut = len(prefix) + 1 if prefix else 0
        found: dict[str, Content | None] = {}
        for entry in self._entries(prefix, recursive=False):
            name = str(entry["path"])[cut:]
            if _is_name(name):
                is_folder = entry["type"] == "directory" or found.get(name, entry) is None
                found[name] = None if is_folder else _content(entry)  # what is both is shown as a folder
        return found

    def all_below(self, path: str) -> Mapping[str, Content]:
        """Return every file below a folder."""
        return persist(lambda: self._all_below(path), self._patience)

    def _all_below(self, path: str) -> Mapping[str, Content]:
        prefix, cut = self._full(path), len(self._folder) + 1 if self._folder else 0
        return {
            str(entry["path"])[cut:]: _content(entry)
            for entry in self._entries(prefix, recursive=True)
            if entry["type"] == "file" and str(entry["path"]).startswith(prefix + "/" if prefix else "")
        }

    def _entries(self, prefix: str, *, recursive: bool) -> "list[dict[str, Any]]":
        found: list[dict[str, Any]] = []
        url = f"{self._api}/tree" + (f"/{quote(prefix, safe='')}" if prefix else "")
        url += f"?recursive={'true' if recursive else 'false'}&limit={_PAGE}"
        while url:
            page, headers = self._web.json_and_headers("GET", url, self._headers)
            found += page
            url = _next(self._endpoint, headers.get("link"))
        return found

    def fetch(self, content: Content, start: int, end: int, take: Callable[[Sequence[Piece]], None]) -> None:
        """Hand over the chunks that hold these bytes."""
        end = min(end, content.size)
        if start < end:
            persist(lambda: self._fetch(content, start, end, take), self._patience)

    def _fetch(self, content: Content, start: int, end: int, take: Callable[[Sequence[Piece]], None]) -> None:
        cas_url, token = self._cas_token()
        headers = {"Authorization": f"Bearer {token}", "Range": f"bytes={start}-{end - 1}"}
        url = f"{cas_url}/v2/reconstructions/{hash_to_text(content.file_hash)}"
        try:
            plan = self._web.json("GET", url, headers)
        except Refused as error:
            if error.status == 401:
                self._cas = None
                raise Transient("the token for content was refused") from error
            raise
        self._read(Unpacker(plan, start, take))

    def fetch_many(self, contents: Sequence[Content], take: Callable[[Content, Sequence[Piece]], None]) -> None:
        """Hand over the chunks of several small files."""
        named = {hash_to_text(content.file_hash): content for content in contents}
        plan = self._plan_many(list(named)) if self._lists_many else None
        if plan is not None:
            self._read(Unpacker.of_files(plan, lambda name, pieces: take(named[name], pieces)))
            return
        for content in contents:
            self._fetch(content, 0, content.size, partial(take, content))

    def _plan_many(self, names: "list[str]") -> "dict[str, Any] | None":
        """Ask where the files are; None for a store that tells of one at a time only."""
        cas_url, token = self._cas_token()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps([{"prefix": "default", "hash": name} for name in names]).encode()
        try:
            return self._web.json("POST", f"{cas_url}/v2/reconstructions", headers, body)
        except Refused as error:
            if error.status == 401:
                self._cas = None
            if error.status not in (404, 405, 501):
                raise
            self._lists_many = False
            return None

    def _read(self, unpacker: Unpacker) -> None:
        buffer = memoryview(bytearray(_READ_BYTES))
        for part in unpacker.parts():
            try:
                exchange = self._web.open("GET", part.url, {"Range": f"bytes={part.first}-{part.last}"})
            except Refused as error:  # a link that has expired
                raise Transient(str(error)) from error
            _stream(exchange, unpacker, buffer)

    def _cas_token(self) -> tuple[str, str]:
        known = self._cas
        if known is None or known[2] < time.time():
            said = self._web.json("GET", f"{self._api}/xet-read-token", self._headers)
            known = str(said["casUrl"]), str(said["accessToken"]), float(said["exp"]) - _EARLY_SECONDS
            self._cas = known
        return known[0], known[1]

    def upload_token(self) -> "dict[str, Any]":
        """Return what an upload needs: accessToken, exp, casUrl, and how to have it anew."""
        said: dict[str, Any] = self._web.json("GET", f"{self._api}/xet-write-token", self._headers)
        return {**said, "refresh": f"{self._api}/xet-write-token", "headers": self._headers}

    def apply(self, changes: Sequence[Change]) -> list[tuple[str, str]]:
        """Carry out changes, a thousand at a time; one attempt each. Raises Transient and Refused."""
        refused: list[tuple[str, str]] = []
        for at in range(0, len(changes), _BATCH):
            lines = [self._line(change) for change in changes[at : at + _BATCH]]
            headers = self._headers | {"Content-Type": "application/x-ndjson"}
            body = b"".join(lines)
            try:
                answer = self._web.json("POST", f"{self._api}/batch", headers, body)
            except Refused as error:
                if error.status != 422:
                    raise
                refused += [(change.path, str(error)) for change in changes[at : at + _BATCH]]
                continue
            cut = len(self._folder) + 1 if self._folder else 0
            refused += [(str(one["path"])[cut:], str(one["error"])) for one in answer.get("failed") or ()]
        return refused

    def _line(self, change: Change) -> bytes:
        line: dict[str, object] = {"type": "deleteFile", "path": self._full(change.path)}
        if change.content is not None:
            digits = hash_to_text(change.content.file_hash)
            line |= {"type": "addFile", "xetHash": digits, "mtime": change.content.mtime_ns // 1_000_000}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    def follow(self, changed: Changed, live: Callable[[bool], None], stopped: Callable[[], bool]) -> None:
        """Tell of every path that changes."""
        cursor: str | None = None
        while not stopped():
            pause = _EVENT_PAUSE
            try:
                cursor = self._follow(cursor, changed, live, stopped)
            except Refused as error:
                cursor = None
                pause *= 10 if error.status in (401, 403, 404, 501) else 1
            except (Transient, ValueError, KeyError, AttributeError):
                pass
            live(False)
            if not stopped():
                time.sleep(pause)

    def _follow(
        self, cursor: str | None, changed: Changed, live: Callable[[bool], None], stopped: Callable[[], bool]
    ) -> str | None:
        """Listen once; return from where to go on."""
        url = f"{self._api}/events" + (f"?cursor={quote(cursor, safe='')}" if cursor else "")
        exchange = self._web.open("GET", url, self._headers | {"Accept": "text/event-stream"})
        exchange.patience(_EVENT_SILENCE)
        kind = ""
        try:
            while (line := exchange.line()) and not stopped():
                if line.startswith(b"event:"):
                    kind = line[6:].strip().decode()
                if not line.startswith(b"data:"):
                    continue
                data = json.loads(line[5:])
                cursor = data.get("cursor", cursor)
                if kind == "ready":
                    changed(None, None)
                    live(True)
                elif kind == "changes":
                    for change in data["changes"]:
                        self._tell(change, changed)
                elif kind in ("reset", "reconnect"):
                    return cursor if kind == "reconnect" else None
        finally:
            exchange.close()
        return cursor

    def _tell(self, change: "Mapping[str, Any]", changed: Changed) -> None:
        path = str(change["path"])
        if self._folder:
            if not path.startswith(self._folder + "/"):
                return
            path = path[len(self._folder) + 1 :]
        digits = change.get("xetHash")
        changed(path, hash_from_text(str(digits)) if digits and change["op"] != "delete" else None)

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}" if self._folder and path else self._folder or path


def _stream(exchange: Exchange, unpacker: Unpacker, buffer: memoryview) -> None:
    try:
        while count := exchange.read_into(buffer):
            unpacker.feed(buffer[:count])
    except BaseException:
        exchange.close()
        raise
    exchange.done()
    if not unpacker.is_complete():
        raise Transient("the store sent less than it announced")


def _content(entry: "Mapping[str, Any]") -> Content:
    size = int(entry["size"])
    mtime = entry.get("mtime") or entry.get("uploadedAt")
    return Content(hash_from_text(str(entry["xetHash"])) if size else EMPTY, size, _nanoseconds(str(mtime)))


def _nanoseconds(text: str) -> int:
    try:
        passed = datetime.fromisoformat(text) - _EPOCH
    except ValueError as error:
        raise OSError(errno.EIO, f"not a time: {text[:40]!r}") from error
    return ((passed.days * 86400 + passed.seconds) * 1_000_000 + passed.microseconds) * 1000


def _is_name(name: str) -> bool:
    """Whether a program can be shown this name."""
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..") and len(name.encode()) < 256


def _next(endpoint: str, link: str | None) -> str:
    for part in (link or "").split(","):
        address, _, relation = part.partition(";")
        if 'rel="next"' in relation:
            return urljoin(endpoint + "/", address.strip()[1:-1])
    return ""
