"""Put on PYTHONPATH as `sitecustomize`: replaces `runstead.app.serving` in the server that `runstead exec` starts.

FAKE_SERVER says how it behaves: `good`, `broken` (never starts), `slow` (is not ready yet),
`dying` (ends soon after it was ready).
What happens to it is written to FAKE_SERVER_DIARY.
"""

import os
import signal
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

TOKEN = "hf_" + "f" * 34


@dataclass(frozen=True)
class Started:
    url: str
    owner: str
    token: str | None
    notes: tuple[str, ...] = ()


def note(line: str) -> None:
    with Path(os.environ["FAKE_SERVER_DIARY"]).open("a") as diary:
        diary.write(line + "\n")


def serve(settings, *, on_ready=None, stop_jobs_at_exit=False):
    manner = os.environ.get("FAKE_SERVER", "good")
    wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    note(f"pid {os.getpid()}")
    note(f"argv {sys.orig_argv}")
    note(f"data {settings.server.data_dir} {settings.database_url} {settings.jobs.retention_days}")
    print("a line of the server's log", flush=True)
    if manner == "broken":
        raise SystemExit(3)
    if manner != "slow":
        on_ready(Started("http://127.0.0.1:1", "alice", TOKEN))
    if manner == "dying":
        time.sleep(0.2)
        raise SystemExit(3)
    note(f"ended by {signal.Signals(signal.sigwait(wanted)).name}, stop jobs: {stop_jobs_at_exit}")
    return 0


if sys.orig_argv[1:4] == ["-P", "-m", "runstead.cli"]:
    application = types.ModuleType("runstead.app.serving")
    application.serve = serve  # type: ignore[attr-defined]
    application.Started = Started  # type: ignore[attr-defined]
    sys.modules["runstead.app.serving"] = application
