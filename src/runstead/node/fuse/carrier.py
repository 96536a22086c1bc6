"""The daemon's side of the process that uploads: started when there is something to upload, gone when there is not."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from runstead.node.fuse.web import Transient
from runstead.xet.hashes import hash_from_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_IDLE_SECONDS = 30.0
_LARGEST_ANSWER = 1 << 22


class Carrier:
    """Uploads the bytes of files; one request at a time."""

    def __init__(self, directory: str, most_seconds: float) -> None:
        self._directory = directory  # for what the library keeps
        self._most_seconds = most_seconds  # without an answer
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._used_at = 0.0

    def upload(self, token: "dict[str, Any]", paths: Sequence[str]) -> "list[tuple[bytes, int]]":
        """Return hash and size of each file, all of them in the store. Raises Transient."""
        request = {
            "cas_url": token["casUrl"],
            "token": token["accessToken"],
            "expires": token["exp"],
            "refresh": token["refresh"],
            "headers": token["headers"],
            "paths": list(paths),
        }
        with self._lock:
            try:
                answer = self._ask(json.dumps(request).encode() + b"\n")
            except (OSError, ValueError) as error:
                self.stop()
                raise Transient(f"the upload was interrupted: {error}") from error
            self._used_at = time.monotonic()
        if "error" in answer:
            raise Transient(str(answer["error"]))
        return [(hash_from_text(digits), size) for digits, size in answer["files"]]

    def warm(self) -> None:
        """There will be something to upload: have the process ready by then. Does not wait."""
        if self._process is None and self._lock.acquire(False):
            try:
                self._process = self._process or self._start()
                self._used_at = time.monotonic()
            except OSError:
                pass  # whoever uploads tries again, and tells
            finally:
                self._lock.release()

    def rest(self) -> None:
        """End the process if it was not needed for a while: it holds memory."""
        if self._process is not None and time.monotonic() - self._used_at > _IDLE_SECONDS and self._lock.acquire(False):
            try:
                self.stop()
            finally:
                self._lock.release()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _ask(self, line: bytes) -> "dict[str, Any]":
        process = self._process
        if process is None or process.poll() is not None:
            self.stop()
            process = self._process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        until = time.monotonic() + self._most_seconds
        answer = b""
        poll = select.poll()  # `select` refuses what is opened after a thousand files
        poll.register(process.stdout, select.POLLIN)
        while not answer.endswith(b"\n"):
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise OSError(5, f"no answer within {self._most_seconds:.0f} s")
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part or len(answer) > _LARGEST_ANSWER:
                raise OSError(5, "the uploading process died")
            answer += part
        return json.loads(answer)

    def _start(self) -> "subprocess.Popen[bytes]":
        os.makedirs(self._directory, 0o700, exist_ok=True)
        source = __file__
        for _ in range(4):
            source = os.path.dirname(source)
        code = f"import sys; sys.path.insert(0, {source!r}); from runstead.node.fuse.transfer import main; main()"
        return subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={
                "PATH": os.defpath,
                "LANG": "C.UTF-8",
                "HOME": self._directory,
                "HF_HOME": self._directory,
                "HF_XET_CACHE": os.path.join(self._directory, "xet"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
            },
        )
