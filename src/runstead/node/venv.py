"""The job's own Python: a virtual environment made by hand in a few file operations.

`python -m venv` takes a second, most of it for pip; here pip comes from a directory that all jobs share, by
way of a .pth file, and everything a job installs goes into its own site-packages.
"""

import os


def make(path: str, python: str, version: str, extra_paths: list[str]) -> None:
    """Make an environment at `path`, which must not exist, over the interpreter `python` ("3.11.7")."""
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
        _write(os.path.join(programs, "pip"), f"#!/bin/sh\nexec '{programs}/python' -m pip \"$@\"\n", 0o755)
        os.symlink("pip", os.path.join(programs, "pip3"))


def _write(path: str, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.write(fd, text.encode())
    os.close(fd)
