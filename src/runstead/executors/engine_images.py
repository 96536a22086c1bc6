"""Images as a container engine of the machine has them: found by name, or pulled by the engine, with progress."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runstead.images.credentials import find_credentials
from runstead.images.references import Reference, parse_reference
from runstead.model.errors import ImageFailure, Unavailable
from runstead.node.engine import Engine, EngineError

_TELL_SECONDS = 0.5
_SECONDS = 30.0


class EngineImages:
    """The images of one engine. An image that is there is used as it is, without asking its registry."""

    def __init__(self, path: str, registries: tuple[str, ...], auth_file: Path | None, stall_seconds: float) -> None:
        """`path`: the engine's socket; `registries`: the only ones that may be named, () for all."""
        self._socket = path
        self._engine = Engine(path)
        self._registries = registries
        self._auth_file = auth_file
        self._stall_seconds = stall_seconds

    async def get(self, name: str, tell: Callable[[str], None]) -> Mapping[str, Any]:
        """Return what the engine knows of an image, having it pulled where it is not there.

        Raises ImageFailure with the engine's own reason, Unavailable.
        """
        reference = parse_reference(name)
        allowed = self._registries
        if allowed and reference.registry not in allowed:
            raise ImageFailure(f"images of {reference.registry} may not be used here (images.registries): {name}")
        loop = asyncio.get_running_loop()

        def say(line: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is interested any more
                loop.call_soon_threadsafe(tell, line)

        cancelled: list[bool] = []
        try:
            return await asyncio.to_thread(self._bring, name, reference, say, cancelled)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    def _bring(
        self, name: str, reference: Reference, say: Callable[[str], None], cancelled: list[bool]
    ) -> Mapping[str, Any]:
        try:
            found = self._find(name) or self._find(str(reference))
            if found is not None:
                return found
            say(f"pulling {reference.familiar}")
            progress = _Progress(reference.familiar)
            login = _login(reference, self._auth_file)
            for report in self._engine.pull(str(reference), login, self._stall_seconds):
                if cancelled:
                    return {}
                if (line := progress.take(report)) is not None:
                    say(line)
            found = self._find(str(reference))
        except EngineError as error:
            raise ImageFailure(f"{reference.familiar}: {error}", again=error.status in (429, 503)) from error
        except OSError as error:
            raise Unavailable(unreachable(self._socket, error)) from error
        if found is None:
            raise ImageFailure(f"{reference.familiar}: the engine has pulled it, and does not have it")
        say(f"pulled {reference.familiar}")
        return found

    def _find(self, name: str) -> Mapping[str, Any] | None:
        try:
            return self._engine.call("GET", f"/images/{quote(name)}/json", seconds=_SECONDS)
        except EngineError as error:
            if error.status == 404:
                return None
            raise


class _Progress:
    """Makes lines for people of the engine's reports about layers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._layers: dict[str, tuple[int, int]] = {}  # bytes that are here, and of all
        self._told_at = 0.0

    def take(self, report: Mapping[str, Any]) -> str | None:
        detail: Mapping[str, Any] = report.get("progressDetail") or {}
        layer = str(report.get("id"))
        if report.get("status") == "Downloading" and detail.get("total"):
            self._layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        elif report.get("status") == "Download complete" and layer in self._layers:
            whole = self._layers[layer][1]
            self._layers[layer] = (whole, whole)
        now = time.monotonic()
        whole = sum(total for _, total in self._layers.values())
        if not whole or now < self._told_at + _TELL_SECONDS:
            return None
        self._told_at = now
        here = sum(done for done, _ in self._layers.values())
        return f"pulling {self._name} {100 * here // whole} % {here // 10**6}/{whole // 10**6} MB"


def unreachable(path: str, error: Exception) -> str:
    """Return what to say of an engine that cannot be asked."""
    return f"the container engine does not answer: {error}: {path}"


def _login(reference: Reference, auth_file: Path | None) -> str | None:
    """Return the credentials for an image as engines expect them."""
    found = find_credentials(reference, auth_file)
    if found is None:
        return None
    given = {"username": found.username, "password": found.password, "serveraddress": reference.registry}
    if found.identity_token:
        given = {"identitytoken": found.identity_token, "serveraddress": reference.registry}
    return base64.urlsafe_b64encode(json.dumps(given).encode()).decode()


def part(value: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return an object inside of an answer; engines leave out, or make null, what they do not know."""
    for name in names:
        value = value.get(name) or {}
    return value
