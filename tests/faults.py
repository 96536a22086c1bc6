"""Runs `runstead serve` so that it dies at a chosen commit of its database.

    python tests/faults.py PLAN serve --data-dir DIR ...

PLAN is a file that tests write at any time: `before 3` or `after 3` means that the process is killed, as by a power
cut, right before or right after the third commit from now on. No file, no fault. As a library, `QuickServer` is a
server, and `run_quickly` a command, whose start costs a fork of a warm process instead of an interpreter with all
imports.
"""

import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from clients import Server, eventually

_WARM = ["runstead.app.serving", "runstead.cli.main", "runstead.cli.serve", "runstead.cli.accounts", "uvloop"]


class Plan:
    """Counts commits and kills the process at the one that the file names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._left = 0

    def due(self, moment: str, *, count: bool) -> bool:
        """Say whether this is the moment. A plan that was written anew begins anew."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            text = ""
        if text != self._text:
            self._text = text
            self._left = int(text.split()[1]) if text else 0
        if not text:
            return False
        if count:
            self._left -= 1
        return self._left == 0 and text.split()[0] == moment

    def apply(self) -> None:
        """Make every connection that is opened from now on follow the plan."""
        plan = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql != "COMMIT":
                    return super().execute(sql, *parameters)
                if plan.due("before", count=True):
                    os.kill(os.getpid(), signal.SIGKILL)
                done = super().execute(sql, *parameters)
                if plan.due("after", count=False):
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

        connect = sqlite3.connect
        sqlite3.connect = lambda *words, **options: connect(*words, **{"factory": Connection} | options)


def main(plan: str, *words: str) -> None:
    """Run a `runstead` command with a plan."""
    Plan(Path(plan)).apply()
    from runstead.cli.main import main as run

    sys.argv = ["runstead", *words]
    run()


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def run_quickly(server: Server, *words: str, check: bool = True) -> Done:
    """Run a `runstead` command on a server's data directory, as `Server.run` does."""
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = context.Process(
            target=_command, args=(str(out), str(err), [*words, "--data-dir", str(server.data_dir)])
        )
        process.start()
        process.join(60)
        assert process.exitcode is not None, f"runstead {' '.join(words)} does not end"
        done = Done(process.exitcode, out.read_text(), err.read_text())
    assert not check or done.returncode == 0, done
    return done


def _command(out: str, err: str, words: list[str]) -> None:
    for number, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    main("/nonexistent", *words)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_WARM)
    return context


def serve(plan: str, log: str, ready: str, words: list[str]) -> None:
    """Be a server, in a process that was forked for it."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for name in [name for name in os.environ if name.startswith(("RUNSTEAD_", "HF_"))]:
        del os.environ[name]
    os.environ["RUNSTEAD_EXECUTOR_KIND"] = "process"
    fd = os.open(ready + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.rename(ready + ".new", ready)
    main(plan, "serve", *words, "--ready-fd", str(fd))


@dataclass
class QuickServer(Server):
    """A server that may be made to die at a commit, and starts fast."""

    worker: BaseProcess | None = field(default=None, repr=False)

    @property
    def plan(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".plan")

    def start(self) -> "QuickServer":
        assert self.begin(), f"the server did not start:\n{self.log.read_text()[-4000:]}"
        return self

    def begin(self) -> bool:
        """Start the server; False when it died on the way."""
        ready = self.data_dir.with_name(self.data_dir.name + ".ready")
        ready.unlink(missing_ok=True)
        words = ["--port", str(self.port), "--data-dir", str(self.data_dir), *self.flags]
        # A daemon: one that nobody stops ends with the tests, which would wait for it otherwise.
        self.worker = _context().Process(
            target=serve, args=(str(self.plan), str(self.log), str(ready), words), daemon=True
        )
        self.worker.start()

        def said() -> str:
            return ready.read_text() if ready.exists() else ""

        eventually(lambda: "}" in said() or not self.alive, 120)
        if "}" not in said():
            self.worker.join(20)
            return False
        self._heard(said())
        return True

    def _heard(self, text: str) -> None:
        found = json.loads(text)
        self.url, self.owner = found["url"], found["owner"]
        self.token = found["token"] or self.token
        self.port = int(self.url.rpartition(":")[2])

    @property
    def alive(self) -> bool:
        return self.worker is not None and self.worker.is_alive()

    def kill(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.worker.join(20)

    def terminate(self) -> int:
        assert self.worker is not None
        self.worker.terminate()
        self.worker.join(30)
        assert self.worker.exitcode is not None
        return self.worker.exitcode

    def stop(self) -> None:
        """Stop the server and everything it runs."""
        self.plan.unlink(missing_ok=True)
        if self.alive and "--stop-jobs-at-exit" not in self.flags:
            self.kill()
        self.flags = (*self.flags, "--stop-jobs-at-exit")
        if self.alive or self.begin():
            self.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
