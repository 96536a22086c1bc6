"""Set up this checkout: find or fetch uv, make the virtual environments, install exactly what requirements/ pins.

    scripts/python scripts/bootstrap.py run       what `make run` needs: the server and one client
    scripts/python scripts/bootstrap.py test      what `make test` needs: the tools, and a client of each supported line
    scripts/python scripts/bootstrap.py hub-tests what scripts/client-tests needs
    scripts/python scripts/bootstrap.py uv        only uv; prints where it is

Needs Python 3.11 and nothing else: no uv, pip, venv or compiler. Everything it makes is in .cache, .venv and
.venvs of the checkout. A second call finds its stamps and does nothing.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from fetch_uv import CACHE, OWN_BUNDLE, REQUIREMENTS, ROOT, VENV, SetupError, certificates, find_uv, runs, say

DEMO_CLIENT = "client-2.4.0"


def environment(folder: Path, pins: str, *, package: bool) -> None:
    """Make `folder` hold what requirements/`pins`.txt names, and this package in place if wanted."""
    inputs = [REQUIREMENTS / f"{pins}.txt", *([ROOT / "pyproject.toml"] if package else [])]
    stamp = folder / f".setup-{pins}"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    if _stamped(stamp, digest):
        return
    uv = find_uv()
    python = folder / "bin" / "python"
    if not runs(python):
        say(f"making {folder.relative_to(ROOT)} with Python {platform.python_version()}")
        _uv([uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, folder])
    say(f"installing requirements/{pins}.txt into {folder.relative_to(ROOT)}")
    install = [uv, "pip", "install", "--python", python]
    _uv([*install, "--quiet", "--compile-bytecode", "--require-hashes", "-r", inputs[0]])
    if package:
        _uv([*install, "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT])
        _uv([uv, "pip", "check", "--quiet", "--python", python])
    stamp.write_text(digest)


def _stamped(stamp: Path, digest: str) -> bool:
    return (stamp.parent / "bin" / "python").exists() and stamp.is_file() and stamp.read_text() == digest


def _uv(command: list[str | Path]) -> None:
    # The machine's own certificates: behind a company's proxy or mirror uv's built-in ones do not reach.
    variables = {"UV_SYSTEM_CERTS": "true", **os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if certificates() == str(OWN_BUNDLE):
        variables["SSL_CERT_FILE"] = str(OWN_BUNDLE)
    if not os.access(Path.home(), os.W_OK):
        variables.setdefault("UV_CACHE_DIR", str(CACHE / "uv"))
    variables.pop("VIRTUAL_ENV", None)
    if subprocess.run(command, env=variables, cwd=ROOT).returncode != 0:
        shown = " ".join(str(word) for word in command)
        raise SetupError(f"this did not work: {shown}\nIf pyproject.toml changed, run scripts/pin first.")


def main(goal: str) -> None:
    """Carry out one goal of the module's docstring."""
    if goal == "uv":
        print(find_uv())
    elif goal == "run":
        if not (VENV / ".setup-dev").is_file():
            environment(VENV, "run", package=True)
        else:
            environment(VENV, "dev", package=True)
        environment(ROOT / ".venvs" / DEMO_CLIENT, DEMO_CLIENT, package=False)
    elif goal == "hub-tests":
        environment(VENV, "dev", package=True)
        environment(ROOT / ".venvs" / goal, goal, package=False)
    elif goal == "test":
        environment(VENV, "dev", package=True)
        for name in ("dataframes", "openenv"):
            environment(ROOT / ".venvs" / name, name, package=False)
        for pins in sorted(REQUIREMENTS.glob("client-*.txt")):
            environment(ROOT / ".venvs" / pins.stem, pins.stem, package=False)
    else:
        raise SetupError(f"unknown goal {goal}; there are uv, run, test and hub-tests")


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Let one setup of this checkout run at a time."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        with alone():
            main(sys.argv[1] if len(sys.argv) > 1 else "run")
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
