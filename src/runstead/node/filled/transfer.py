"""Content to and from the server by hf_xet, some hundred files at a time; the callers see paths and hashes."""

import os
from collections.abc import Sequence
from typing import Any

import hf_xet as _hf_xet

from runstead.model.errors import BackendFailure, Unavailable
from runstead.node.filled.hub import Hub
from runstead.node.filled.pulse import Pulse

EMPTY = 64 * "0"  # the hash of the empty file
FILES_AT_ONCE = 500

hf_xet: Any = _hf_xet  # it says nothing about its types


# It tries again a little; when to give up is decided by who knows how much time there is. And its buffers are made
# for one transfer on a large machine, not for several beside jobs.
_CONFIG = {
    "client.retry_max_attempts": 3,
    "client.retry_base_delay": "500ms",
    "client.retry_max_duration": "20s",
    "client.read_timeout": "60s",
    "reconstruction.download_buffer_size": 256_000_000,
    "reconstruction.download_buffer_limit": 512_000_000,
    "reconstruction.download_buffer_perfile_size": 64_000_000,
    "reconstruction.min_prefetch_buffer": 128_000_000,
}


class Transfer:
    """Moves content. Errors: Unavailable, because what hf_xet reports does not tell what would pass."""

    def __init__(self, pulse: Pulse) -> None:
        self._session = hf_xet.XetSession(hf_xet.XetConfig().with_config(_CONFIG))
        self._pulse = pulse
        self._moved = -1

    def download(self, hub: Hub, wanted: Sequence[tuple[str, str, int]]) -> None:
        """Fetch (path, hash, size) each, and verify that every file has its hash. The paths must be new."""
        stored = [one for one in wanted if one[2]]
        for path, _, size in wanted:
            if not size:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        for start in range(0, len(stored), FILES_AT_ONCE):
            part = stored[start : start + FILES_AT_ONCE]
            try:
                with self._session.new_file_download_group(**hub.xet("read"), progress_callback=self._note) as group:
                    for path, file_hash, size in part:
                        group.start_download_file(hf_xet.XetFileInfo(file_hash, size), path)
            except Exception as error:
                raise Unavailable(f"{hub.source} could not be read: {_first_line(error)}") from error
            self._pulse.beat()
            for (path, file_hash, _), found in zip(part, self.hashes([one[0] for one in part]), strict=True):
                if found != file_hash:
                    raise BackendFailure(f"what was read from {hub.source} is not what was stored: {path}")

    def upload(self, hub: Hub, paths: Sequence[str]) -> list[str]:
        """Send files and return their hashes. What was sent before is not sent again."""
        try:
            with self._session.new_upload_commit(**hub.xet("write"), progress_callback=self._note) as commit:
                handles = [commit.start_upload_file(path, sha256=hf_xet.SKIP_SHA256) for path in paths]
            hashes: list[str] = [handle.result().xet_info.hash for handle in handles]
        except Exception as error:
            raise Unavailable(f"{hub.source} could not be written: {_first_line(error)}") from error
        self._pulse.beat()
        return hashes

    def hashes(self, paths: Sequence[str]) -> list[str]:
        """Return the hashes of files on the node."""
        found: list[str] = []
        with self._pulse.local_work():
            for start in range(0, len(paths), FILES_AT_ONCE):
                found += [one.hash for one in hf_xet.hash_files(list(paths[start : start + FILES_AT_ONCE]))]
        return found

    def _note(self, report: Any, *_more: object) -> None:
        """Notice progress, and only that: a report that says the same again is no sign of life."""
        moved = report.total_bytes_completed + report.total_transfer_bytes_completed
        if moved != self._moved:
            self._moved = moved
            self._pulse.beat()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:500] or type(error).__name__
