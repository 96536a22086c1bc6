"""What a job tried to make in a mount and no bucket can hold: refused at once, and named when the job is over."""

import json

_MOST_NAMED = 20


class Refusals:
    """Those of one mount, kept on the disk for the daemon that comes after this one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._named: dict[str, str] = {}
        try:
            with open(path, encoding="utf-8") as file:
                self._named = dict(json.loads(line) for line in file if line.endswith("\n"))
        except FileNotFoundError:
            pass
        except ValueError:
            pass  # half a line, after a loss of power: what was before it is lost with it, and only a note

    def add(self, path: str, kind: str) -> None:
        """Note that something of a kind was not made at a path; no more than some are noted."""
        if path in self._named or len(self._named) >= _MOST_NAMED:
            return
        self._named[path] = kind
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps([path, kind]) + "\n")
        except OSError:
            pass  # the disk is full

    def notes(self) -> "list[str]":
        """Return a line for each, for the log of the job."""
        found = [f"{path!r} is not saved: it is a {kind}, which a bucket cannot hold" for path, kind in self._items()]
        return [*found, "and perhaps more like these"] if len(found) == _MOST_NAMED else found

    def _items(self) -> "list[tuple[str, str]]":
        return sorted(self._named.items())
