"""The loop of one mount: takes requests from the kernel, has the file system act, answers.

One thread reads. What it can answer from memory it answers at once; what has to wait for a store or a disk raises
`Slow` before it changed anything, and is done again by a thread of the pool, where it may wait. A process that
was killed does not wait for its request: the kernel tells, and the answer is given without its result.
"""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from runstead.node.fuse import protocol
from runstead.node.fuse.device import Device

Answer = "bytes | memoryview"
Operation = Callable[["Request"], "bytes | memoryview | None"]
Quick = Callable[[int, bytearray], "bytes | None"]  # of a node and the whole request; None: it is an Operation's


class Spare(Protocol):
    """What may be done, a little at a time, while no request waits; true if there is something."""

    def __bool__(self) -> bool: ...

    def do(self) -> None:
        """Do a little."""


class Slow(Exception):
    """This cannot be had at once: ask again from a thread that may wait."""


class Request:
    """One request of the kernel."""

    __slots__ = ("began", "body", "gid", "may_wait", "node", "opcode", "pid", "resent", "uid", "undo", "unique")

    def __init__(self, data: bytes) -> None:
        _, self.opcode, unique, self.node, self.uid, self.gid, self.pid, _ = protocol.HEADER.unpack_from(data)
        self.unique: int = unique
        self.began = time.monotonic()
        self.resent = bool(unique & protocol.RESENT)
        self.body = data[protocol.HEADER.size :]
        self.may_wait = False
        self.undo: Callable[[], None] | None = None  # takes back what was done, should nobody want the answer

    @property
    def number(self) -> int:
        """Which request it is, be it resent or not."""
        return self.unique & ~protocol.RESENT

    def wait_here(self) -> None:
        """Go on only where waiting is allowed. Raises Slow."""
        if not self.may_wait:
            raise Slow


class Session:
    """Serves one mount until it is gone."""

    def __init__(
        self,
        device: Device,
        operations: dict[int, Operation],
        quick: dict[int, Quick],
        spare: Spare,
        submit: Callable[[Callable[[], None]], None],
        ready: Callable[[Device], None],
    ) -> None:
        self._device = device
        self._operations = operations
        self._quick = quick
        self._spare = spare
        self._submit = submit
        self._ready = ready
        self._lock = threading.Lock()
        self._waiting: dict[int, Request] = {}  # requests in the pool, by their number

    def run(self) -> None:
        """Serve; returns when the mount is gone."""
        buffer = bytearray(protocol.READ_BYTES)
        view = memoryview(buffer)
        device = self._device
        while True:
            while self._spare and not device.has_request():
                try:
                    self._spare.do()
                except Exception as error:  # nobody waits for it
                    sys.excepthook(type(error), error, error.__traceback__)
            count = device.read(buffer)
            if count == 0:
                return
            _, opcode, unique, node = protocol.HEADER_HEAD.unpack_from(buffer)
            quick = self._quick.get(opcode)
            if quick is not None and not unique & protocol.RESENT:
                answer = quick(node, buffer)
                if answer is not None:
                    device.answer(unique, answer)
                    continue
            request = Request(bytes(view[:count]))
            opcode = request.opcode
            if opcode == protocol.INIT:
                self._init(request)
            elif opcode == protocol.INTERRUPT:
                self._interrupt(protocol.U64.unpack_from(request.body)[0])
            elif opcode == protocol.DESTROY:
                device.answer(request.unique)
            else:
                self._serve(request)

    def _serve(self, request: Request) -> None:
        operation = self._operations.get(request.opcode)
        if operation is None:
            self._device.refuse(request.unique, errno.ENOSYS)
            return
        try:
            answer = operation(request)
        except Slow:
            with self._lock:
                self._waiting[request.unique] = request
            self._submit(lambda: self._serve_slowly(operation, request))
            return
        except Exception as error:
            self._device.refuse(request.unique, error_number(error))
            return
        if answer is not None:
            self._device.answer(request.unique, answer)

    def _serve_slowly(self, operation: Operation, request: Request) -> None:
        request.may_wait = True
        number, answer = 0, b""
        try:
            answer = operation(request)
        except Exception as error:
            number = error_number(error)
        with self._lock:
            wanted = self._waiting.pop(request.unique, None) is not None
        if wanted and number:
            self._device.refuse(request.unique, number)
            return
        answered = wanted and (answer is None or self._device.answer(request.unique, answer))
        if not answered and not number and request.undo is not None:
            request.undo()

    def _interrupt(self, unique: int) -> None:
        """A signal came for who waits. Only one that kills is reason to give up: programs do not expect others to."""
        with self._lock:
            request = self._waiting.get(unique)
            if request is None or not _is_being_killed(request.pid):
                return
            del self._waiting[unique]
        self._device.refuse(unique, errno.EINTR)

    def _init(self, request: Request) -> None:
        major, minor, readahead, flags = protocol.INIT_IN.unpack_from(request.body)
        if major != protocol.MAJOR or minor < protocol.OLDEST_MINOR:
            self._device.refuse(request.unique, errno.EPROTO)
            return
        if flags & protocol.INIT_EXT:
            flags |= int.from_bytes(request.body[16:20], sys.byteorder) << 32
        wanted = (
            protocol.ASYNC_READ
            | protocol.ATOMIC_O_TRUNC
            | protocol.BIG_WRITES
            | protocol.AUTO_INVAL_DATA
            | protocol.DO_READDIRPLUS
            | protocol.READDIRPLUS_AUTO
            | protocol.PARALLEL_DIROPS
            | protocol.MAX_PAGES
            | protocol.INIT_EXT
            | protocol.HAS_RESEND
        )
        if self._device.passthrough:
            wanted |= protocol.PASSTHROUGH
        agreed = flags & wanted
        self._device.passthrough = bool(agreed & protocol.PASSTHROUGH)
        self._ready(self._device)
        answer = protocol.INIT_OUT.pack(
            protocol.MAJOR,
            min(minor, protocol.MINOR),
            min(readahead, protocol.READAHEAD) if readahead else protocol.READAHEAD,
            agreed & 0xFFFFFFFF,
            64,
            48,
            protocol.MAX_WRITE,
            1,
            protocol.MAX_WRITE // 4096,
            0,
            agreed >> 32,
            1 if self._device.passthrough else 0,
        )
        self._device.answer(request.unique, answer)


def error_number(error: Exception) -> int:
    """Return what the program is told of an error; a defect of ours is told to the log as well."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    sys.excepthook(type(error), error, error.__traceback__)
    return errno.EIO


def _is_being_killed(pid: int) -> bool:
    try:
        fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True  # it is gone already
    try:
        text = os.read(fd, 8192)
    except OSError:
        return True
    finally:
        os.close(fd)
    for line in text.split(b"\n"):
        if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & 1 << 8:
            return True
    return False
