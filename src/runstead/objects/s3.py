"""Objects in S3, or in what speaks its protocol.

Credentials, region and endpoint come from the environment or the instance, as every AWS tool reads them
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, ...), unless given.
"""

import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from runstead.model.errors import BackendFailure, Invalid, NotFound, Unavailable
from runstead.objects.disk import clear
from runstead.objects.interface import ObjectStore, StoredObject, check_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig

# One upload holds at most this many parts of this size in memory.
_PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2


class S3ObjectStore(ObjectStore):
    """Keeps objects in a bucket, below a prefix; stages them in a directory of this machine."""

    def __init__(
        self, url: str, staging: Path, *, endpoint: str | None = None, region: str | None = None, retries: int = 5
    ) -> None:
        """Use `s3://bucket/prefix`. Raises Invalid for another URL. Nothing is asked of the store yet."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise Invalid(f"an S3 object store is s3://bucket or s3://bucket/prefix, not {url!r}", "storage.url")
        options: dict[str, Any] = {"virtual_hosted_style_request": endpoint is None}
        if region is not None:
            options["region"] = region
        client: ClientConfig = {"timeout": "300s", "connect_timeout": "10s"}
        if endpoint is not None:
            options["endpoint"] = endpoint
            client["allow_http"] = endpoint.startswith("http://")
        self._store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options=client,
            retry_config={"max_retries": retries},
            **options,
        )
        self._staging = staging
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)

    def new_staged(self) -> Path:
        """Return a new, empty file in the staging directory."""
        path = self._staging / secrets.token_hex(16)
        path.touch(mode=0o600, exist_ok=False)
        return path

    def clear_staged(self) -> None:
        """Remove what is in the staging directory."""
        clear(self._staging)

    def put(self, key: str, staged: Path) -> None:
        """Make a staged file an object."""
        with _translated(check_key(key)):
            small = staged.stat().st_size <= _PART_BYTES
            if small:
                self._create(key, staged)
            elif self.size(key) is None:
                obstore.put(
                    self._store,
                    key,
                    staged,
                    use_multipart=True,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )
            staged.unlink()

    def read(self, key: str, start: int, end: int) -> bytes:
        """Return these bytes of an object."""
        if start == end:
            if self.size(key) is None:
                raise NotFound(f"there is no such object: {key}")
            return b""
        with _translated(check_key(key)):
            data = bytes(obstore.get_range(self._store, key, start=start, end=end))
        if len(data) != end - start:
            raise BackendFailure(f"an object ends at byte {start + len(data)}, {end} were expected: {key}")
        return data

    def size(self, key: str) -> int | None:
        """Return the size of an object, or None."""
        with _translated(check_key(key)):
            try:
                return obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects below a prefix."""
        with _translated(prefix):
            for batch in obstore.list(self._store, check_key(prefix) if prefix else None):  # pyright: ignore[reportUnknownMemberType]
                for found in batch:
                    yield StoredObject(found["path"], found["size"], found["last_modified"])

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with _translated(check_key(key)):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def url(self, key: str, seconds: int) -> str | None:
        """Return a URL to read from, or None."""
        with _translated(check_key(key)):
            return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def _create(self, key: str, staged: Path) -> None:
        try:
            obstore.put(self._store, key, staged, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return


@contextmanager
def _translated(what: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"there is no such object: {what}") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise Unavailable(f"the object store refuses this server's credentials: {what}: {_short(error)}", 30) from error
    except (BaseError, OSError) as error:
        raise Unavailable(f"the object store did not do what was asked: {what}: {_short(error)}") from error


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
