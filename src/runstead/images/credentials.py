"""Credentials for registries, from the files and helper programs that Docker, podman and their kin use.

Formats: docker's `config.json`, and containers-auth.json(5), whose keys may name a part of a registry as well.
"""

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from runstead.images.references import DOCKER_HUB, Reference
from runstead.model.errors import ImageFailure

_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_HELPER_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to show to a registry. It holds a secret: never print it."""

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)


def find_credentials(
    wanted: Reference, auth_file: Path | None, environment: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Return the credentials for an image, of the first file that has some. Raises ImageFailure for a bad file."""
    for path in [auth_file] if auth_file else _usual_files(environment):
        config = _read(path, must_be_there=path == auth_file)
        if config is not None and (found := _in_config(config, wanted, environment)) is not None:
            return found
    return None


def _usual_files(environment: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environment.get("HOME") or "/root")
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json"
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _read(path: Path, *, must_be_there: bool) -> Mapping[str, Any] | None:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        if must_be_there:
            raise ImageFailure(f"the file that images.auth_file names is not there: {path}") from None
        return None
    except (PermissionError, NotADirectoryError):
        if must_be_there:
            raise ImageFailure(f"the file that images.auth_file names cannot be read: {path}") from None
        return None
    except (OSError, ValueError) as error:
        raise ImageFailure(f"the file with credentials of registries cannot be read ({error}): {path}") from error
    return cast("Mapping[str, Any]", config) if isinstance(config, dict) else None


def _in_config(config: Mapping[str, Any], wanted: Reference, environment: Mapping[str, str]) -> Credentials | None:
    helpers = _mapping(config.get("credHelpers"))
    auths = {_key(name): value for name, value in _mapping(config.get("auths")).items()}
    for key in _keys(wanted):
        if isinstance(helper := helpers.get(key), str):
            return _ask(helper, key, environment)
        entry = _mapping(auths.get(_key(key)))
        if found := _in_entry(entry):
            return found
    store = config.get("credsStore")
    if isinstance(store, str) and store:
        server = _HUB_KEYS[0] if wanted.registry == DOCKER_HUB else wanted.registry
        return _ask(store, server, environment)
    return None


def _keys(wanted: Reference) -> list[str]:
    """Return under which names credentials for an image may stand, the closest first."""
    parts = wanted.repository.split("/")
    paths = ["/".join([wanted.registry, *parts[:n]]) for n in range(len(parts), -1, -1)]
    return [*paths, *(_HUB_KEYS if wanted.registry == DOCKER_HUB else ())]


def _key(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").removesuffix("/").removesuffix("/v1")


def _in_entry(entry: Mapping[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken")
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        password = password.rstrip("\0")
    if isinstance(token, str) and token:
        return Credentials(username, password, token)
    return Credentials(username, password) if username else None


def _ask(helper: str, server: str, environment: Mapping[str, str]) -> Credentials | None:
    """Ask a helper program. One that has none is no failure; one that is not there is."""
    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise ImageFailure(f"a helper for credentials of registries is named by a path: {helper}")
    try:
        answer = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            env=dict(environment),
            check=False,
        )
    except FileNotFoundError as error:
        raise ImageFailure(
            f"the credentials for {server} are with a helper program that is not on the server's path: {program}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ImageFailure(f"the helper program for credentials does not answer: {program}", again=True) from error
    if answer.returncode != 0:
        return None
    try:
        found = _mapping(json.loads(answer.stdout))
    except ValueError:
        return None
    username, secret = str(found.get("Username") or ""), str(found.get("Secret") or "")
    if username == "<token>":
        return Credentials("", "", secret)
    return Credentials(username, secret) if username else None


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
