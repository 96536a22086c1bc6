"""Writes a job's output to its log: stamps lines, splits long ones, bounds the size, survives a full disk."""

import os
import time

from runstead.node.logformat import LINE_LIMIT, encode

READ_BYTES = LINE_LIMIT  # so that only the first line of a block can be too long


class LogWriter:
    """Appends to one log file. Never raises for what the disk does: the job's end must still be told."""

    def __init__(self, path: str, not_before: int, limit_bytes: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._last = not_before  # microseconds
        self._left = limit_bytes
        self._limit = limit_bytes
        self._tail = b""  # the beginning of a line whose end has not come yet
        self._second = -1
        self._second_text = ""
        self._closed = False  # the limit was reached
        self._error: str | None = None  # why the last write failed
        self.lost_bytes = 0
        self.lost_because: str | None = None
        self.grown = False  # since whoever is interested set it to False

    def feed(self, block: bytes) -> None:
        """Take what the job wrote, at most READ_BYTES of it."""
        if self._tail:
            block = self._tail + block
        cut = block.rfind(b"\n") + 1
        whole, self._tail = block[:cut], block[cut:]
        if len(whole) > LINE_LIMIT:
            first = whole.find(b"\n")
            if first > LINE_LIMIT:
                whole = _split(whole[:first]) + whole[first:]
        if whole:
            self._append(whole)
        if len(self._tail) >= LINE_LIMIT:
            self._append(self._tail[:LINE_LIMIT] + b"\n")
            self._tail = self._tail[LINE_LIMIT:]

    def say(self, text: str) -> None:
        """Write lines of our own."""
        data = text.encode("utf-8", "replace")
        self._append(b"".join(_split(line) + b"\n" for line in data.split(b"\n")))

    def finish(self) -> None:
        """Write what came without a line end."""
        if self._tail:
            self._append(self._tail + b"\n")
            self._tail = b""

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _append(self, lines: bytes) -> None:
        if self._closed:
            self.lost_bytes += len(lines)
            return
        if self._error is not None and not self._report_loss():
            self.lost_bytes += len(lines)
            return
        data = encode(lines, self._prefix())
        if len(data) > self._left:
            cut = data.rfind(b"\n", 0, max(self._left, 0)) + 1
            self.lost_bytes += len(lines) * (len(data) - cut) // len(data)
            self._write(data[:cut])
            self._closed = True
            self.lost_because = f"the log limit of {self._limit} bytes was reached"
            self._write(
                encode(
                    f"===== Log limit of {self._limit} bytes reached: further output is dropped\n".encode(),
                    self._prefix(),
                )
            )
            return
        self._write(data)

    def _report_loss(self) -> bool:
        """Try to go on after a failed write; say in the log what is missing there."""
        self._error = None
        note = f"===== {self.lost_bytes} bytes of output are missing here: {self.lost_because}\n"
        return self._write(encode(note.encode(), self._prefix()))

    def _write(self, data: bytes) -> bool:
        done = 0
        while done < len(data):
            try:
                done += os.write(self._fd, data[done:] if done else data)
            except OSError as error:
                kept = data.rfind(b"\n", 0, done) + 1
                if kept < done:  # half a line must not stand in the log
                    try:
                        os.ftruncate(self._fd, os.fstat(self._fd).st_size - (done - kept))
                    except OSError:
                        pass
                self._left -= kept
                self.lost_bytes += len(data) - kept
                self._error = self.lost_because = f"the log could not be written: {error.strerror}"
                self.grown = self.grown or kept > 0
                return False
        self._left -= len(data)
        self.grown = True
        return True

    def _prefix(self) -> bytes:
        now = time.time_ns() // 1000
        if now < self._last:
            now = self._last
        self._last = now
        second, micros = divmod(now, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{micros:06d}Z ".encode("ascii")


def _split(line: bytes) -> bytes:
    """Break a line that is too long."""
    if len(line) <= LINE_LIMIT:
        return line
    return b"\n".join(line[at : at + LINE_LIMIT] for at in range(0, len(line), LINE_LIMIT))
