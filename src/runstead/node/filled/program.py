"""The program beside a job that fills its volumes before it starts, and saves them after it has ended.

It reads one line of JSON, works, and writes one line: {"ok": true, "files", "bytes", "notes"} or {"ok": false, "kind",
"message"}, where kind is the name of an error of `runstead.model.errors`. It ends when whoever started it does: its
standard input is closed then. Whatever it had done is found again by the next one, on the node's disk.
"""

import errno
import json
import os
import shutil
import sys
import threading
import time
from typing import Any

from runstead.model.errors import BackendFailure, NotFound, RunsteadError, Unavailable
from runstead.node import removal
from runstead.node.filled.cache import ContentCache
from runstead.node.filled.filling import Filling, Task
from runstead.node.filled.folder import Folder
from runstead.node.filled.hub import Hub
from runstead.node.filled.pulse import Pulse
from runstead.node.filled.saving import Saving
from runstead.node.filled.transfer import Transfer

_LONGEST_PAUSE_SECONDS = 15.0


def main() -> None:
    """Do what standard input says."""
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pulse = Pulse(order.get("within"), lambda reason: _end(_failure(Unavailable(reason))))
    pulse.start()
    folder = Folder(order["folder"])
    os.environ["HF_HOME"] = os.environ["HF_XET_CACHE"] = folder.xet_path
    try:
        with pulse.local_work():
            lock = folder.lock()
        answer = {"prepare": _prepare, "flush": _flush}[order["op"]](order, folder, pulse)
        shutil.rmtree(folder.xet_path, ignore_errors=True)
        os.close(lock)
    except Exception as error:
        answer = _failure(error)
    _end(answer)


def _prepare(order: dict[str, Any], folder: Folder, pulse: Pulse) -> dict[str, Any]:
    if folder.prepared() is None:
        cache = ContentCache(order["cache"], order["cache_bytes"])
        filling = Filling(folder, cache, Transfer(pulse), order["owner"])
        notes: list[str] = []
        for one in order["volumes"]:
            task = _task(one)
            removal.delete_tree(folder.files_path(task.index))
            notes += filling.fill(task, _hub(one))
        cache.trim()
        if not all(one["read_only"] for one in order["volumes"]):
            folder.set_room_aside()
        volumes = [{name: one[name] for name in ("index", "target", "read_only")} for one in order["volumes"]]
        folder.set_prepared(volumes, notes)
    return {"ok": True, "files": 0, "bytes": 0, "notes": []}


def _flush(order: dict[str, Any], folder: Folder, pulse: Pulse) -> dict[str, Any]:
    saved = folder.saved()
    if saved is not None:
        return {"ok": True, **saved}
    if folder.prepared() is None:
        raise NotFound("its volumes are not on this node")
    folder.use_room()
    counted = folder.counted()

    def count(files: int, size: int) -> None:
        counted["files"] += files
        counted["bytes"] += size
        folder.set_counted(counted)
        pulse.beat()

    saving = Saving(folder, Transfer(pulse), count)
    notes = folder.prepared_notes()
    for one in order["volumes"]:
        if not one["read_only"]:
            notes += _patiently(lambda one=one: saving.save(one["index"], one["path"], _hub(one)), pulse)
    result = {**counted, "notes": notes}
    folder.set_saved(result)
    return {"ok": True, **result}


def _patiently(work: Any, pulse: Pulse) -> list[str]:
    """Try until it works, for as long as there is time and it may help."""
    pause = 0.5
    while True:
        try:
            return work()
        except Unavailable as error:
            if pulse.seconds_left <= pause:
                raise
            print(f"trying again: {error.message}", file=sys.stderr, flush=True)
            with pulse.local_work():
                time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _task(one: dict[str, Any]) -> Task:
    return Task(one["index"], one["path"], one["read_only"])


def _hub(one: dict[str, Any]) -> Hub:
    return Hub(one["endpoint"], one["source"], one["token"])


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE)
        error = (Unavailable if full else BackendFailure)(f"{error.strerror or error}: {error.filename or 'disk'}")
    if isinstance(error, RunsteadError):
        return {"ok": False, "kind": type(error).__name__, "message": error.message}
    sys.excepthook(type(error), error, error.__traceback__)
    return {"ok": False, "kind": BackendFailure.__name__, "message": f"a defect: {error!r}"}


def _end(answer: dict[str, Any]) -> None:
    """Say the last word, once, and be gone at once: threads of a transfer may hang."""
    os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
