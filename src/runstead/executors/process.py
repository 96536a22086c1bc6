"""The `process` executor: a job is a Linux process in namespaces of its own over this machine's own system.

It needs no daemon and no image.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runstead.executors.interface import Capabilities
from runstead.executors.machine import gpu_devices, shared_gpu_devices
from runstead.executors.native import NativeExecutor, NativeSettings, Root
from runstead.executors.snapshots import overlay_problem
from runstead.executors.view import Programs, find_programs, isolated_view, plain_view, prepare_tools
from runstead.model.errors import Invalid, Unavailable, Unsupported
from runstead.model.launches import Handle, Launch
from runstead.node import syscalls
from runstead.node.request import View

_NOTE = "the process executor runs commands on this machine's own system; the image is not used"
_COPYING = {"UV_LINK_MODE": "copy"}  # a fork's Python is on another mount than the cache: no hard links
_PLAIN_NOTE = "jobs run without isolation: they see this machine's files and processes as the server's user does"
_NO_FORKS = (
    "jobs run without namespaces here, so a fork could not have its files in the same places; `runstead doctor` says "
    "what is missing"
)
_NO_UV = "uv is not installed: jobs cannot `uv run`"


class ProcessExecutor(NativeExecutor):
    """Runs attempts on this machine's own system."""

    KIND = "process"

    def __init__(self, data_dir: Path, settings: NativeSettings, wake: Callable[[str, str], None]) -> None:
        """See NativeExecutor."""
        super().__init__(data_dir, settings, wake)
        self._programs: Programs | None = None
        self._view: View | None = None
        self._no_snapshots: str | None = _NO_FORKS  # why there are none

    async def _find_isolation(self) -> list[str]:
        self._programs = await asyncio.to_thread(self._prepare_programs)
        missing: list[str] = []
        if self._settings.isolation != "none" and syscalls.LINUX:
            self._view = await asyncio.to_thread(self._find_view, self._programs)
            for way in ("root", "user") if os.geteuid() == 0 else ("user",):
                self._isolation = way
                failure = await self._try(self._view)
                if failure is None:
                    return missing
                missing.append(f"no namespaces as {way}: {failure}")
        if self._settings.isolation == "full":
            raise Unavailable(f"isolation = full is not possible here: {'; '.join(missing)}")
        self._isolation = "none"
        self._view = plain_view(self._node, self._programs, self._passed_environment())
        failure = await self._try(self._view)
        if failure is not None:
            missing.append(f"even a plain process does not start: {failure}")
        return missing

    async def _furnish(self) -> None:
        if self._network is not None and self._programs is not None:
            self._view = await asyncio.to_thread(self._find_view, self._programs)
        if self._isolation == "root" and (lacking := await asyncio.to_thread(overlay_problem, self._node)):
            self._no_snapshots = f"no overlay can be mounted over the data directory: {lacking}"
        elif self._isolation != "none":
            self._no_snapshots = None

    async def snapshot(self, handle: Handle, name: str) -> None:
        """See Executor."""
        if self._no_snapshots is not None:
            raise Unsupported(self._no_snapshots)
        await super().snapshot(handle, name)

    async def _root(self, launch: Launch) -> Root:
        plain = self._isolation == "none"
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpu_ids)} if plain else {}
        devices = [node for gpu_id in launch.gpu_ids for node in gpu_devices(gpu_id)]
        if launch.snapshots:
            environment |= _COPYING
        return Root(
            view=self._view_over(launch.snapshots),
            devices=(*devices, *shared_gpu_devices()) if devices else (),
            environment=environment,
        )

    def _view_over(self, snapshots: Sequence[str]) -> View | None:
        """Return the view of a job that begins with these."""
        if self._view is None or not snapshots:
            return self._view
        if self._no_snapshots is not None:
            raise Invalid(f"the sandbox cannot begin with another's files: {self._no_snapshots}")
        shown: dict[str, Any] = {name: getattr(self._view, name) for name in View.__slots__}
        shown["snapshots"] = [str(self._snapshots.find(name)) for name in snapshots]
        return View(**shown)

    def _describe(self, found: Capabilities) -> Capabilities:
        lacking = () if self._programs and self._programs.uv else (_NO_UV,)
        notes = (_NOTE,) if self._isolation != "none" else (_NOTE, _PLAIN_NOTE)
        forks = {"snapshots": True} if self._no_snapshots is None else {"without_snapshots": self._no_snapshots}
        return replace(found, notes=notes, missing=(*found.missing, *lacking), **forks)

    def _prepare_programs(self) -> Programs:
        programs = find_programs()
        prepare_tools(self._node, programs)
        return programs

    def _find_view(self, programs: Programs) -> View:
        return isolated_view(
            self._data_dir,
            programs,
            self._passed_environment(),
            private_network=self._network is not None,
            gpus=bool(self._machine and self._machine.gpus),
        )

    async def _try(self, view: View) -> str | None:
        """Run something trivial; return why it failed."""
        ended, words = await self._probe(Root(view=view), "python", "-c", "pass")
        if ended is not None and ended.exit_code == 0:
            return None
        return words if ended is None else ended.message or words
