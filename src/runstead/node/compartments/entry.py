"""What is known of a compartment from the name of its socket."""

import os

_HEX = frozenset("0123456789abcdef")
_ID_LENGTH = 16
_NO_ADDRESS = "none"
_CONFINED, _OPEN = "confined", "open"


def is_id(text: str) -> bool:
    """Say whether this can be the id of a compartment."""
    return len(text) == _ID_LENGTH and _HEX.issuperset(text)


class Entry:
    """A compartment: `<id>-<user id>-<address>-<open or confined>` is the name of its socket."""

    __slots__ = ("address", "confined", "id", "uid")

    def __init__(self, compartment: str, uid: int, address: str | None, *, confined: bool) -> None:
        self.id = compartment
        self.uid = uid
        self.address = address  # of it in a network of its own
        self.confined = confined  # what it may reach is limited by rules of its own

    @property
    def name(self) -> str:
        """The name of its socket."""
        return f"{self.id}-{self.uid}-{self.address or _NO_ADDRESS}-{_CONFINED if self.confined else _OPEN}"


def parse(name: str) -> Entry | None:
    """Return what a name says; None for that of something else."""
    words = name.split("-")
    if len(words) != 4 or not is_id(words[0]) or not words[1].isdigit():
        return None
    address = None if words[2] == _NO_ADDRESS else words[2]
    return Entry(words[0], int(words[1]), address, confined=words[3] == _CONFINED)


def list_in(folder: str) -> dict[str, Entry]:
    """Return those in a directory by their ids, oldest first; none where there is no directory."""
    found: list[tuple[int, int, Entry]] = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                entry = parse(file.name)
                if entry is not None:
                    found.append((file.stat(follow_symlinks=False).st_mtime_ns, entry.uid, entry))
    except FileNotFoundError:
        pass
    found.sort(key=lambda one: one[:2])
    return {entry.id: entry for _, _, entry in found}
