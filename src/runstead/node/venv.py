"""The job's own Python: a virtual environment made by hand in a few file operations.

`python -m venv` takes a second, most of it for pip; here pip comes from a directory that all jobs share, by
way of a .pth file, and everything a job installs goes into its own site-packages.
"""

import os
import zlib

_PIP = '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n'


def make(path: str, python: str, version: str, extra_paths: list[str], owner: int | None = None) -> None:
    """Make an environment at `path` over the interpreter `python` ("3.11.7"). One that is there already stays.

    Nothing in it says where it lies, so it may be moved. With an `owner` it is made for that user, where no other
    user can interfere.
    """
    if os.path.isdir(path):
        return
    short = ".".join(version.split(".")[:2])
    programs = os.path.join(path, "bin")
    packages = os.path.join(path, "lib", f"python{short}", "site-packages")
    os.makedirs(programs, 0o755)
    os.makedirs(packages, 0o755)
    os.symlink(python, os.path.join(programs, "python"))
    os.symlink("python", os.path.join(programs, "python3"))
    os.symlink("python", os.path.join(programs, f"python{short}"))
    _write(
        os.path.join(path, "pyvenv.cfg"),
        f"home = {os.path.dirname(python)}\ninclude-system-site-packages = false\nversion = {version}\n",
        0o644,
    )
    if extra_paths:
        _write(os.path.join(packages, "_shared.pth"), "\n".join(extra_paths) + "\n", 0o644)
        _write(os.path.join(programs, "pip"), _PIP, 0o755)
        os.symlink("pip", os.path.join(programs, "pip3"))
    if owner is not None:
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files, ""):
                os.chown(os.path.join(folder, name), owner, owner, follow_symlinks=False)


def _write(path: str, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.write(fd, text.encode())
    os.close(fd)


def kind(python: str, version: str, extra_paths: list[str]) -> str:
    """Return a short name of what is the same in all environments that `make` makes of this."""
    return f"{zlib.crc32(chr(0).join([_PIP, python, version, *extra_paths]).encode()):08x}"
