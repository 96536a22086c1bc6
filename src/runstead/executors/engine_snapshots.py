"""Snapshots in a container engine: images that it makes of running containers, of which others begin.

They are ours by their labels, whatever else the engine has, and by a name that nobody pulls:
`localhost/runstead-<instance>:<digest of the snapshot's name>`. An engine puts into such an image all variables of
the container, secrets among them; they are taken out, and that they are out is looked at before the image is used.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from runstead.executors import snapshots
from runstead.executors.engine_images import part, unreachable
from runstead.model.errors import BackendFailure, Conflict, NotRunning, Unavailable, Unsupported
from runstead.node.engine import ATTEMPT, INSTANCE, JOB, VARIABLES, Engine, EngineError

NAME = "runstead.snapshot"
_COMMIT_SECONDS = 540.0
_COMMITS = 4
_SECONDS = 30.0
# What every engine sets by itself, for each container anew where we do not.
_ITS_OWN = ("HOSTNAME",)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class EngineSnapshots:
    """The snapshots of one instance in one engine. Every method blocks; all raise Unavailable."""

    def __init__(self, path: str, instance: str) -> None:
        """`path`: the engine's socket."""
        self._socket = path
        self._engine = Engine(path)
        self._instance = instance

    def take(self, container: str, name: str) -> None:
        """Make an image of what a running container has written. Raises as Executor.snapshot."""
        snapshots.check_name(name)
        if self._find(name) is not None:
            raise Conflict(f"there is a snapshot of that name: {name}")
        seen = self._ask("GET", f"/containers/{container}/json")
        if seen is None or not part(seen, "State").get("Running"):
            raise NotRunning(f"the attempt is over: {container}")
        labels = part(seen, "Config", "Labels")
        if VARIABLES not in labels:
            raise Unsupported("a sandbox that was made before forks were possible cannot be forked: create a new one")
        variables = [*json.loads(labels[VARIABLES]), *_ITS_OWN]
        if odd := [one for one in variables if not _PLAIN.fullmatch(one)]:
            raise Unsupported(f"a sandbox with this variable cannot be forked here, its name is not plain: {odd[0]!r}")
        original: Mapping[str, Any] = self._ask("GET", f"/images/{seen['Image']}/json") or {}
        repository, tag = self._reference(name)
        query = {
            "container": container,
            "repo": repository,
            "tag": tag,
            # Nothing is frozen: should the engine die meanwhile, the sandbox would be for ever.
            "pause": "false",
            "changes": self._changes(name, variables, part(original, "Config")),
        }
        made = self._commit(query)
        if made is None:
            raise NotRunning(f"the attempt is over: {container}")
        self._see_clean(str(made["Id"]), variables)

    def _commit(self, query: Mapping[str, str | list[str]]) -> Any:
        """Have the image made; an engine may stumble over a file that goes just then, and not the next time."""
        for left in reversed(range(_COMMITS)):
            try:
                return self._ask("POST", "/commit", query=query, body={}, seconds=_COMMIT_SECONDS)
            except BackendFailure:
                if not left:
                    raise
        return None

    def find(self, name: str) -> Mapping[str, Any]:
        """Return what the engine knows of the image of a snapshot. Raises Invalid when it is gone."""
        snapshots.check_name(name)
        found = self._find(name)
        if found is None:
            raise snapshots.gone(name)
        return found

    def names(self) -> list[str]:
        """Return the names of those that are not just made."""
        latest = time.time() - snapshots.YOUNG_SECONDS
        return sorted({name for name, image in self._all() if int(image.get("Created") or 0) < latest})

    def drop(self, name: str) -> None:
        """Delete one. Idempotent. While a container is made of it, it stays and is listed again."""
        snapshots.check_name(name)
        for one, image in self._all():
            if one == name:
                self._delete(str(image["Id"]))

    def _delete(self, image: str) -> None:
        try:
            self._ask("DELETE", f"/images/{image}", query={"noprune": "true"})
        except EngineError as error:
            if error.status != 409 and any(image == one["Id"] for _, one in self._all()):
                raise BackendFailure(f"the engine does not delete a snapshot: {error}: {image}") from error

    def _changes(self, name: str, variables: Iterable[str], original: Mapping[str, Any]) -> list[str]:
        """Return what the image shall not have of the container."""
        labels = {INSTANCE: self._instance, NAME: name, JOB: "", ATTEMPT: "", VARIABLES: ""}
        return [
            *(f"ENV {one}=" for one in variables),
            *(f"LABEL {key}={value}" for key, value in labels.items()),
            f"ENTRYPOINT {json.dumps(_words(original.get('Entrypoint')))}",
            f"CMD {json.dumps(_words(original.get('Cmd')))}",
        ]

    def _see_clean(self, image: str, variables: Sequence[str]) -> None:
        """Delete an image that has the value of a variable after all, and raise Unsupported."""
        version: Mapping[str, Any] = self._ask("GET", "/version") or {}
        oldest = version.get("MinAPIVersion")  # what later versions of the API do not show any more is still there
        lines: list[str] = []
        for prefix in ("", f"/v{oldest}") if oldest else ("",):
            found: Mapping[str, Any] = self._ask("GET", f"{prefix}/images/{image}/json") or {}
            for key in ("Config", "ContainerConfig"):
                lines += part(found, key).get("Env") or []
        kept = {line.partition("=")[0] for line in lines if line.partition("=")[2]} & set(variables)
        if kept:
            self._delete(image)
            raise Unsupported(
                "this engine keeps the variables of a sandbox, its secrets too, in what it makes of it, so that it "
                f"cannot be forked: {sorted(kept)[0]}"
            )

    def _all(self) -> list[tuple[str, Mapping[str, Any]]]:
        wanted = json.dumps({"label": [f"{INSTANCE}={self._instance}"]})
        rows: list[Mapping[str, Any]] = self._ask("GET", "/images/json", query={"all": "true", "filters": wanted}) or []
        return [(str(name), row) for row in rows if (name := part(row, "Labels").get(NAME))]

    def _find(self, name: str) -> Mapping[str, Any] | None:
        return self._ask("GET", f"/images/{quote(':'.join(self._reference(name)))}/json")

    def _reference(self, name: str) -> tuple[str, str]:
        return f"localhost/runstead-{self._instance}", hashlib.sha256(name.encode()).hexdigest()[:32]

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | list[str]] | None = None,
        body: object = None,
        seconds: float = _SECONDS,
    ) -> Any:
        """Return the answer; None for what is not there."""
        try:
            return self._engine.call(method, path, query=query, body=body, seconds=seconds)
        except EngineError as error:
            if error.status == 404 or "no such container" in str(error):  # podman says both
                return None
            if method == "DELETE":
                raise
            raise BackendFailure(f"the engine refuses: {error}") from error
        except OSError as error:
            raise Unavailable(unreachable(self._socket, error)) from error


def _words(value: str | list[str] | None) -> list[str]:
    """Return the words of a command, which old images have as one text."""
    return ["/bin/sh", "-c", value] if isinstance(value, str) else value or []
