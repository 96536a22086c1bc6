"""Renews the leases of all environments of this process, from one thread. A killed trainer renews nothing."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from huggingface_hub.utils import get_session

from runstead.openenv.journal import write

_AT_ONCE = 8


@dataclass(slots=True)
class _Lease:
    job_id: str
    url: str
    headers: Callable[[], Mapping[str, str]]
    every_seconds: float
    due: float


class Leases:
    """The leases of one process."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, in the child of a fork: the leases, and whoever held the lock, are its parent's."""
        self._leases: dict[str, _Lease] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, job_id: str, url: str, headers: Callable[[], Mapping[str, str]], seconds: float) -> None:
        """Renew a lease from now on, several times within its `seconds`."""
        with self._changed:
            self._leases[job_id] = _Lease(job_id, url, headers, seconds / 4, time.monotonic())
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="openenv-leases", daemon=True)
                self._thread.start()
            self._changed.notify()

    def drop(self, job_id: str) -> None:
        """Renew no more. Idempotent."""
        with self._changed:
            self._leases.pop(job_id, None)
            self._changed.notify()

    def _run(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="openenv-lease") as pool:
            while True:
                with self._changed:
                    now = time.monotonic()
                    due = [lease for lease in self._leases.values() if lease.due <= now]
                    for lease in due:
                        lease.due = now + lease.every_seconds
                    nearest = min((lease.due for lease in self._leases.values()), default=None)
                for lease in due:
                    pool.submit(_renew, lease)
                with self._changed:
                    if not self._leases:
                        self._thread = None
                        return
                    self._changed.wait(None if nearest is None else max(nearest - time.monotonic(), 0.01))


def _renew(lease: _Lease) -> None:
    try:
        get_session().get(lease.url, headers=dict(lease.headers()), timeout=lease.every_seconds)
    except Exception as error:
        text = f"the lease of job {lease.job_id} was not renewed this time: {error}"
        write(logging.DEBUG, text, job_id=lease.job_id, cause=type(error).__name__)


LEASES = Leases()
os.register_at_fork(after_in_child=LEASES.forget)
