"""A server of its own, for the time of one command: started as a child, ready when it says so, gone afterwards."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from runstead.cli.lifeline import Ready, read_ready
from runstead.cli.reference import as_toml
from runstead.cli.signals import SignalInbox
from runstead.kit.settings import DatabaseSettings, Settings

_STOP_SECONDS = 30.0  # beyond the grace that jobs are given


def isolated(settings: Settings, folder: Path) -> Settings:
    """Return the settings for a server that shares nothing with any other: its own data, address and database."""
    own = {"host": "127.0.0.1", "port": 0, "data_dir": folder / "data", "public_url": None}
    executor = settings.executor
    if executor.kind == "auto":  # such a server has no images, and should need no registry
        executor = executor.model_copy(update={"kind": "process"})
    return settings.model_copy(
        update={
            "server": settings.server.model_copy(update=own),
            "database": DatabaseSettings(),
            "executor": executor,
        }
    )


class ThrowAwayServer:
    """One server process in `folder`, which takes its settings, log and data."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = isolated(settings, folder)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._ready: Ready | None = None
        self._reader: threading.Thread | None = None

    @property
    def ready(self) -> Ready | None:
        """What the server said when it was ready."""
        return self._ready

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, inbox: SignalInbox) -> None:
        """Start the process. `inbox` is woken when the server is ready, or ended without getting there."""
        file = self._folder / "runstead.toml"
        file.touch(mode=0o600)
        file.write_text(as_toml(self._settings))
        ready, said = os.pipe()
        held, self._lifeline = os.pipe()
        command = [sys.executable, "-P", "-m", "runstead.cli", "serve", "--config", str(file)]
        command += ["--ready-fd", str(said), "--lifeline-fd", str(held), "--stop-jobs-at-exit"]
        with (self._folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=(said, held),
                start_new_session=True,  # Ctrl-C is for the command
                preexec_fn=inbox.before_exec,
            )
        os.close(said)
        os.close(held)
        self._reader = threading.Thread(target=self._read, args=(ready, inbox), daemon=True)
        self._reader.start()

    def _read(self, descriptor: int, inbox: SignalInbox) -> None:
        self._ready = read_ready(descriptor)
        inbox.wake()

    def settle(self) -> None:
        """Wait until the reading of the server's word is over."""
        if self._reader is not None:
            self._reader.join()

    def stop(self) -> bool:
        """End the server and its jobs; False if it had to be killed, so that something may be left of a job."""
        if self._process is None:
            return True
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(self._settings.jobs.cancel_grace_seconds + _STOP_SECONDS)
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        finally:
            os.close(self._lifeline)

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of the server's log."""
        log = self._folder / "server.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else ""


def _environment() -> dict[str, str]:
    """Return our environment without settings: they are all in the file."""
    kept = ("RUNSTEAD_DEBUG", "RUNSTEAD_TEST_")
    return {k: v for k, v in os.environ.items() if not k.startswith("RUNSTEAD_") or k.startswith(kept)}
