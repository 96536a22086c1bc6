"""One bucket over the Hub's API: its files listed, changed, and where hf_xet gets its tokens."""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from runstead.model.errors import BackendFailure, Forbidden, NotFound, RunsteadError, Unavailable

_TIMEOUT_SECONDS = 60.0
_PER_PAGE = 5000
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')
# The server is on this machine or named by its operator: no proxy of the environment is to see the token.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class BucketFile:
    """A file in the listing of a bucket."""

    path: str  # in the bucket
    file_hash: str
    size: int
    mtime_ns: int


class Hub:
    """One bucket. Errors: NotFound and Forbidden as the server says, Unavailable for what may pass."""

    def __init__(self, endpoint: str, source: str, token: str) -> None:
        self._bucket = f"{endpoint}/api/buckets/{source}"
        self._headers = {"authorization": f"Bearer {token}"}
        self.source = source

    def files(self, folder: str) -> Iterator[BucketFile]:
        """Yield all files at or below a path."""
        tail = "/" + quote(folder) if folder else ""
        url: str | None = f"{self._bucket}/tree{tail}?recursive=true&limit={_PER_PAGE}"
        while url is not None:
            entries, headers = self._call("GET", url)
            for entry in entries:
                if entry["type"] == "file":
                    yield _file(entry)
            following = _NEXT.search(headers.get("Link", ""))
            # The link has the server's public address; this program asks where it was told to.
            url = None if following is None else self._bucket + "/tree" + following[1].partition("/tree")[2]

    def batch(self, operations: Sequence[dict[str, Any]]) -> None:
        """Carry out operations; those that are refused are raised as BackendFailure, after the others were done."""
        body = b"".join(json.dumps(operation).encode() + b"\n" for operation in operations)
        answer, _ = self._call("POST", f"{self._bucket}/batch", body)
        if answer["failed"]:
            first = answer["failed"][0]
            count = len(answer["failed"])
            raise BackendFailure(f"{self.source} refused {count} of {len(operations)} files: {first['error']}")

    def check(self) -> None:
        """Raise what stands in the way of working with the bucket."""
        self._call("GET", self._bucket)

    def xet(self, kind: str) -> dict[str, Any]:
        """Return what hf_xet is given to find its tokens; `kind` is "read" or "write"."""
        return {
            "token_refresh_url": f"{self._bucket}/xet-{kind}-token",
            "token_refresh_headers": dict(self._headers),
        }

    def _call(self, method: str, url: str, body: bytes | None = None) -> tuple[Any, Any]:
        headers = self._headers | ({"content-type": "application/x-ndjson"} if body is not None else {})
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
        try:
            with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            if error.code == 422:
                return json.loads(error.read()), error.headers
            raise self._refusal(error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"{self.source} cannot be reached: {error}") from error

    def _refusal(self, error: urllib.error.HTTPError) -> RunsteadError:
        said = error.headers.get("X-Error-Message") or error.reason
        text = f"{self.source}: {said} ({error.code})"
        if error.code == 404:
            return NotFound(text)
        if error.code in (401, 403):
            return Forbidden(text)
        if error.code in (408, 429) or error.code >= 500:
            return Unavailable(text)
        return BackendFailure(text)


def _file(entry: dict[str, Any]) -> BucketFile:
    mtime = datetime.fromisoformat(entry["mtime"].replace("Z", "+00:00"))
    return BucketFile(entry["path"], entry["xetHash"], entry["size"], round(mtime.timestamp() * 1000) * 1_000_000)
