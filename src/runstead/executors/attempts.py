"""Reads what the programs beside jobs leave in the data directory: who is there, who lives, how it ended, its use."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from runstead.executors.machine import gpu_usage
from runstead.model.launches import AttemptState, ExitReason, ExitRecord, Observation, Usage
from runstead.node import cgroups, processes, rundir

PROBE_ID = "0" * 24  # of attempts that only find out what is possible


class Attempts:
    """The directories of the attempts of one data directory. Keeps nothing.

    Paths are texts here: each start looks at several, and to make a `Path` costs more than to look.
    """

    def __init__(self, node: Path) -> None:
        self._folder = node / "attempts"
        self._prefix = f"{self._folder}/"

    def names(self) -> list[str]:
        """Return the names of all that are there, probes excepted."""
        names = [entry.name for entry in self._folder.iterdir()]
        return sorted(name for name in names if rundir.parse_name(name) and not name.startswith(PROBE_ID))

    def path(self, name: str) -> Path:
        """Return where one is, or would be."""
        return self._folder / name

    def exists(self, name: str) -> bool:
        """Say whether there is one, running or ended."""
        return os.path.isdir(self._prefix + name)  # noqa: PTH112 (a string)

    def alive(self, name: str) -> bool:
        """Say whether its supervisor, or the first process of its job, lives."""
        return rundir.is_alive(self._prefix + name)

    def runs(self, name: str) -> bool:
        """Say whether one runs, which is less to find out than what `observe` tells."""
        return self._exit(name) is None and self.alive(name)

    def facts(self, name: str) -> dict[str, Any]:
        """Return what it holds on this machine; empty when it is gone."""
        return rundir.read_json(f"{self._prefix}{name}/{rundir.ATTEMPT}") or {}

    def observe(self, name: str | None) -> Observation:
        """Look at one; None stands for one that is not ours."""
        if name is None:
            return Observation(AttemptState.LOST, message="no attempt of this executor")
        record = self._exit(name)
        if record is None:
            if self.alive(name):
                started = rundir.read_json(f"{self._prefix}{name}/{rundir.STARTED}")
                return Observation(AttemptState.RUNNING, started_at=_instant(started and started.get("started_at")))
            record = self._exit(name)  # it may have ended between the two looks
        if record is None:
            gone = "its supervisor died" if self.exists(name) else "nothing is left of it"
            return Observation(AttemptState.LOST, message=f"the attempt ended without a record: {gone}")
        return Observation(AttemptState.EXITED, started_at=record.started_at, exit=record)

    def measure(self, name: str, traffic: Callable[[str], tuple[int, int]]) -> Usage | None:
        """Return what a running one uses; `traffic` tells the bytes (received, sent) of an address."""
        facts = self.facts(name)
        if not facts or (self.path(name) / rundir.EXIT).exists() or not self.alive(name):
            return None
        group = cgroups.Group(facts["cgroups"], facts["group"])
        address = facts.get("address")
        cpu_seconds, memory_bytes = group.cpu_seconds(), group.memory_bytes()
        if cpu_seconds is None or memory_bytes is None:
            found = processes.usage(int(facts["supervisor"]))
            cpu_seconds = found[0] if cpu_seconds is None else cpu_seconds
            memory_bytes = found[1] if memory_bytes is None else memory_bytes
        received, sent = traffic(address) if address else (0, 0)
        return Usage(
            at=datetime.fromtimestamp(time.time(), UTC),
            cpu_seconds=cpu_seconds,
            memory_used_bytes=memory_bytes,
            rx_bytes=received,
            tx_bytes=sent,
            gpus=gpu_usage(tuple(cast("list[str]", facts.get("gpu_ids", [])))),
        )

    def _exit(self, name: str) -> ExitRecord | None:
        record = rundir.read_json(f"{self._prefix}{name}/{rundir.EXIT}")
        if record is None:
            return None
        return ExitRecord(
            reason=ExitReason(record["reason"]),
            exit_code=record["exit_code"],
            signal=record["signal"],
            started_at=_instant(record["started_at"]),
            finished_at=_instant(record["finished_at"]) or datetime.now(UTC),
            message=record["message"],
        )


def _instant(seconds: object) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) else None
