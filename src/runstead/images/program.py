"""The program that brings images to this machine. It reads one order, a line of JSON, and answers with lines of JSON.

    {"op": "pull", "folder": ..., "rules": ..., "reference": ...}
    {"op": "load", "folder": ..., "rules": ..., "path": ..., "name": ..., "engine": ...,
     "engine_name": ...}
    {"tell": "pulling python:3.12 63 % 41/65 MB"}*, then {"done": ...} or {"error": ..., "again": ...}

It dies with the process that started it. After its last word it leaves behind a process that brings what was unpacked
to the disk.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runstead.images.fetching import Progress, fetch
from runstead.images.layers import Layer
from runstead.images.manifests import Resolved
from runstead.images.records import ImageRecord, ReferenceRecord
from runstead.images.references import parse_reference
from runstead.images.rules import Rules, rules_from
from runstead.images.store import ImageStore
from runstead.images.unpacking import Limits
from runstead.model.errors import ImageFailure
from runstead.node import syscalls

_TRIES = 3


def main() -> None:
    """Carry out the order on standard input."""
    if syscalls.LINUX:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(sys.stdin.readline())
    os.umask(0)
    store = ImageStore(Path(order["folder"]))
    rules = rules_from(order["rules"])
    try:
        records = [_pull(store, rules, order)] if order["op"] == "pull" else _load(store, rules, order)
    except ImageFailure as error:
        say({"error": error.message, "again": error.again})
        return
    say({"done": [record.digest for record in records]})
    if os.fork() == 0:  # nobody needs to wait for the disk
        os.setsid()
        store.settle([diff_id for record in records for diff_id in record.layers])
        os._exit(0)


def say(word: dict[str, Any]) -> None:
    """Tell whoever started this program."""
    print(json.dumps(word), flush=True)


def _pull(store: ImageStore, rules: Rules, order: dict[str, Any]) -> ImageRecord:
    # Imported here: loading an archive needs none of it.
    from runstead.images.sources import RegistrySource

    wanted = parse_reference(order["reference"])
    say({"tell": f"pulling {wanted.familiar}: asking {wanted.registry}"})
    source = RegistrySource(wanted, rules)
    resolved = source.resolve()
    name = ReferenceRecord(str(wanted), resolved.record.digest, resolved.digest, time.time())
    _bring(store, rules, resolved, [name], source.pieces, f"pulling {wanted.familiar}")
    say({"tell": f"pulled {wanted.familiar}"})
    return resolved.record


def _load(store: ImageStore, rules: Rules, order: dict[str, Any]) -> list[ImageRecord]:
    """Take images from an archive, or from an engine on this machine, which writes one."""
    from runstead.images.archives import ArchiveSource

    engine: str | None = order["engine"]
    with tempfile.TemporaryFile(dir=store.folder) as file:
        path = Path(order["path"] or f"/proc/self/fd/{file.fileno()}")
        if engine is not None:
            say({"tell": f"loading {order['engine_name']}: asking {engine}"})
            _save(engine, order["engine_name"], file.fileno())
        source = ArchiveSource(path, store.folder)
        images = source.images()
        if engine is None and order["name"] is not None and len(images) > 1:
            raise ImageFailure(f"the archive has {len(images)} images, so none can be told to be {order['name']}")
        for image in images:
            references = [str(parse_reference(name)) for name in ([order["name"]] if order["name"] else image.names)]
            if not references:
                raise ImageFailure("the image has no name in the archive; give it one with --name")
            digest = image.resolved.record.digest
            names = [ReferenceRecord(one, digest, image.resolved.digest, time.time()) for one in references]
            _bring(store, rules, image.resolved, names, source.pieces, f"loading {references[0]}")
            say({"tell": f"loaded {', '.join(references)}"})
    return [image.resolved.record for image in images]


def _save(engine: str, name: str, into: int) -> None:
    """Let an engine write an image. Raises ImageFailure with its words."""
    command = [engine, "save", "--", name]
    try:
        saved = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=into, stderr=subprocess.PIPE, check=False)
    except FileNotFoundError as error:
        raise ImageFailure(f"there is no {engine} on this machine") from error
    if saved.returncode != 0:
        said = saved.stderr.decode(errors="replace").strip().splitlines()
        raise ImageFailure(f"{engine} does not give the image: {said[-1] if said else saved.returncode}: {name}")


def _bring(
    store: ImageStore,
    rules: Rules,
    resolved: Resolved,
    names: list[ReferenceRecord],
    pieces: Any,
    what: str,
) -> None:
    """Make the layers of an image be here, then the image. Raises ImageFailure."""
    limits = Limits(rules.max_image_bytes, rules.max_image_files)
    with store.pulling(resolved.record.layers):
        for _ in range(_TRIES):
            missing: dict[str, Layer] = {
                layer.diff_id: layer for layer in resolved.layers if not store.has_layer(layer.diff_id)
            }
            if missing:
                progress = Progress(what, list(missing.values()), lambda line: say({"tell": line}))
                fetch(store, list(missing.values()), pieces, limits, rules.layers_at_once, progress)
            if store.add_image(resolved.record, names):
                return
    raise ImageFailure("layers of the image are removed as fast as they come; try again", again=True)
