"""What an attempt wrote into a bucket: one line per file as it arrives there, for whoever asks afterwards.

{"path", "size", "hash"}    the bucket has this file from us
{"path"}                    and not any more
"""

import json
import os

from runstead.node.fuse.source import Content
from runstead.xet.hashes import hash_to_text


class Written:
    """The files of one mount that are in its bucket because of it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sizes: dict[int, int] = {}  # by the hash of the path: there may be many
        for line in _lines(path):
            self._note(str(line["path"]), line.get("size"))

    @property
    def files(self) -> int:
        """How many."""
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """How large they are together."""
        return sum(self._sizes.values())

    def add(self, done: "list[tuple[str, Content | None]]") -> None:
        """The bucket has these from us, or nothing at a path."""
        lines: list[str] = []
        for path, content in done:
            if content is not None:
                digits = hash_to_text(content.file_hash)
                lines.append(json.dumps({"path": path, "size": content.size, "hash": digits}))
            elif hash(path) in self._sizes:
                lines.append(json.dumps({"path": path}))
            self._note(path, None if content is None else content.size)
        if not lines:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # the disk is full; the bucket has it all the same
        try:
            os.write(fd, "".join(line + "\n" for line in lines).encode())
        except OSError:
            pass
        finally:
            os.close(fd)

    def _note(self, path: str, size: int | None) -> None:
        if size is None:
            self._sizes.pop(hash(path), None)
        else:
            self._sizes[hash(path)] = size


def _lines(path: str) -> "list[dict[str, int]]":
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    found: list[dict[str, int]] = []
    for line in data.split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the end, or a line that was cut short
    return found
