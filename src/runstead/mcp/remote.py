"""Any endpoint that speaks the Hub's API, over HTTP, through `huggingface_hub` like any other client."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_async_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]

from runstead.mcp.hub import Hub, HubError, Reply, Stream

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
# A follower of a log hears something at least every 30 s, also on the hosted Hub.
_SILENCE_SECONDS = 120.0
_MOST_SCRIPT_BYTES = 10_000_000


class RemoteHub(Hub):
    """One endpoint with one token; `open` first."""

    quiet_seconds = 2.0

    def __init__(self, endpoint: str, token: str, library_version: str) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.closing = asyncio.Event()
        self._headers = build_hf_headers(token=token, library_name="runstead-mcp", library_version=library_version)
        self._client = get_async_session()
        self._api = HfApi(endpoint=self.endpoint, token=token)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send a request."""
        sent = {**self._headers, **headers}
        if body is not None:
            sent["content-type"] = "application/json"
        try:
            answer = await self._client.request(
                method,
                self.endpoint + path,
                content=body,
                headers=sent,
                timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            )
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        return Reply(answer.status_code, dict(answer.headers), answer.content)

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncGenerator[Stream]:
        """Send a GET and yield its answer as it comes."""
        timeout = httpx2.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        try:
            async with self._client.stream(
                "GET", self.endpoint + path, headers=self._headers, timeout=timeout
            ) as answer:
                yield Stream(answer.status_code, dict(answer.headers), answer.aiter_bytes())
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    async def store(self, bucket: str, path: str, data: bytes) -> None:
        """Upload through Xet."""
        await asyncio.to_thread(self._store, bucket, path, data)

    def _store(self, bucket: str, path: str, data: bytes) -> None:
        try:
            self._api.create_bucket(bucket, private=True, exist_ok=True)
            if not self._api.bucket_info(bucket).private:
                raise HubError(403, f"the bucket {bucket} is public, and a script may be meant for few")
            self._api.batch_bucket_files(bucket, add=[(data, path)])
        except HfHubHTTPError as error:
            raise HubError(error.response.status_code, error.server_message or str(error)) from error
        except HubError:
            raise
        except Exception as error:  # the library of Xet has no class of its own for its errors
            raise HubError(0, f"the upload to {bucket} failed: {error}") from error

    def local_script(self, path: str) -> bytes | None:
        """Read a Python file of this machine."""
        file = Path(path).expanduser()
        if file.suffix != ".py" or not file.is_file() or file.stat().st_size > _MOST_SCRIPT_BYTES:
            return None
        return file.read_bytes()

    def _unreachable(self, error: Exception) -> HubError:
        return HubError(0, f"{self.endpoint} does not answer: {type(error).__name__} {error}".rstrip())
