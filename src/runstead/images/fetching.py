"""Brings the layers of an image here, several at a time: a process for each, so that they share no interpreter."""

import contextlib
import gc
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from runstead.images.layers import Layer, unpack_layer
from runstead.images.records import LayerRecord
from runstead.images.store import ImageStore, boot_id
from runstead.images.unpacking import Limits, Unpacked
from runstead.model.errors import ImageFailure
from runstead.node import syscalls

_TELL_SECONDS = 0.25


class Progress:
    """How far the layers of an image are, in words."""

    def __init__(self, what: str, layers: Sequence[Layer], tell: Callable[[str], None]) -> None:
        self._what = what
        self._total = sum(layer.size or 0 for layer in layers)
        self._fetched: dict[str, int] = {}
        self._tell = tell
        self._told_at = 0.0

    def start(self) -> None:
        """Say what is about to come."""
        self._say()

    def fetched(self, diff_id: str, count: int) -> None:
        """Note how much of one layer has come."""
        self._fetched[diff_id] = count
        if time.monotonic() - self._told_at >= 2 * _TELL_SECONDS:
            self._say()

    def _say(self) -> None:
        self._told_at = time.monotonic()
        done = sum(self._fetched.values())
        percent = min(100, done * 100 // self._total) if self._total else 100
        self._tell(f"{self._what} {percent} % {_megabytes(done)}/{_megabytes(self._total)} MB")


def fetch(
    store: ImageStore,
    layers: Sequence[Layer],
    pieces: Callable[[Layer], Iterator[bytes]],
    limits: Limits,
    at_once: int,
    progress: Progress,
) -> None:
    """Unpack layers that are not here. Raises ImageFailure for the first that cannot be had; whole ones stay."""
    waiting = sorted(layers, key=lambda layer: -(layer.size or 0))
    progress.start()
    gc.collect()
    gc.freeze()
    children: dict[int, tuple[int, Layer]] = {}  # reading end to process
    unpacked: dict[str, tuple[int, int]] = {}
    selector = selectors.DefaultSelector()
    try:
        while waiting or children:
            while waiting and len(children) < at_once:
                layer = waiting.pop(0)
                reader, pid = _fork(store, layer, pieces, limits)
                children[reader] = (pid, layer)
                selector.register(reader, selectors.EVENT_READ, _Lines())
            for key, _ in selector.select():
                _, layer = children[key.fd]
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                    pid, _ = children.pop(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    if code != 0:
                        store.discard_unpacked(layer.diff_id, pid)
                        raise _died(code, layer)
                    continue
                for line in key.data.take(data):
                    word = json.loads(line)
                    if "error" in word:
                        raise ImageFailure(word["error"], again=word["again"])
                    progress.fetched(layer.diff_id, word["fetched"])
                    unpacked[layer.diff_id] = (word["bytes"], word["entries"])
                    _check_sum(unpacked, limits)
    finally:
        selector.close()
        for reader, (pid, layer) in children.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.close(reader)
            os.waitpid(pid, 0)
            store.discard_unpacked(layer.diff_id, pid)


class _Lines:
    """Cuts what a pipe yields into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        return whole


def _fork(
    store: ImageStore, layer: Layer, pieces: Callable[[Layer], Iterator[bytes]], limits: Limits
) -> tuple[int, int]:
    reader, writer = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, pid
    code = 1
    try:
        os.close(reader)
        if syscalls.LINUX:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        try:
            _one(store, layer, pieces, limits, writer)
            code = 0
        except ImageFailure as error:
            _write(writer, {"error": error.message, "again": error.again})
            code = 0
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        # Threads may still wait for the network.
        os._exit(code)


def _one(
    store: ImageStore, layer: Layer, pieces: Callable[[Layer], Iterator[bytes]], limits: Limits, writer: int
) -> None:
    count = 0
    told_at = 0.0

    def fetched(total: int) -> None:
        nonlocal count
        count = total

    def look(done: Unpacked, *, last: bool = False) -> None:
        nonlocal told_at
        now = time.monotonic()
        if last or now - told_at >= _TELL_SECONDS:
            told_at = now
            _write(writer, {"fetched": count, "bytes": done.bytes, "entries": done.entries})

    with store.unpacking(layer.diff_id) as path:
        if path is None:  # somebody else had it in work, and it is whole now
            return
        done = unpack_layer(layer, pieces(layer), str(path), limits, fetched, look)
        look(done, last=True)
        store.add_layer(path, LayerRecord(layer.diff_id, done.entries, done.bytes, boot_id()))


def _write(writer: int, word: dict[str, object]) -> None:
    os.write(writer, json.dumps(word).encode() + b"\n")


def _check_sum(unpacked: dict[str, tuple[int, int]], limits: Limits) -> None:
    if sum(size for size, _ in unpacked.values()) > limits.bytes:
        raise ImageFailure(
            f"the image is refused: it is larger than {limits.bytes:,} bytes; the server's operator may allow it with "
            "images.max_image_bytes"
        )
    if sum(entries for _, entries in unpacked.values()) > limits.entries:
        raise ImageFailure(
            f"the image is refused: it has more than {limits.entries:,} files; the server's operator may allow it "
            "with images.max_image_files"
        )


def _died(code: int, layer: Layer) -> ImageFailure:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    memory = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    return ImageFailure(f"the program that unpacks a layer died ({how}{memory}): {layer.digest}", again=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f}" if count >= 1_000_000 or not count else f"{count / 1e6:.1f}"
