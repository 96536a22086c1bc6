"""Folders that were removed or renamed here while the store still has, or may yet be given, files in them."""

from collections.abc import Iterator


class Hidden:
    """A set of paths that is asked by folder."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def __contains__(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self._names.get(folder, ())

    def __iter__(self) -> Iterator[str]:
        for folder, names in self._names.items():
            for name in names:
                yield f"{folder}/{name}" if folder else name

    def add(self, path: str) -> None:
        """Hide a folder."""
        folder, _, name = path.rpartition("/")
        self._names.setdefault(folder, set()).add(name)

    def discard(self, path: str) -> bool:
        """Show a folder; False if it was not hidden."""
        folder, _, name = path.rpartition("/")
        names = self._names.get(folder)
        if names is None or name not in names:
            return False
        names.remove(name)
        if not names:
            del self._names[folder]
        return True

    def inside(self, folder: str) -> "list[str]":
        """Return the names of what is hidden directly in a folder."""
        return list(self._names.get(folder, ()))

    def below(self, folder: str) -> "list[str]":
        """Return the paths of all that is hidden below a folder."""
        prefix = folder + "/"
        return [path for path in self if path.startswith(prefix)]
