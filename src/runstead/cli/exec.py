"""`runstead exec -- CMD`: run a command against a server that exists for it alone."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from runstead.cli.lifeline import Ready
from runstead.cli.options import with_setting_flags
from runstead.cli.signals import ENDING, SignalInbox
from runstead.cli.throwaway import ThrowAwayServer
from runstead.kit.settings import EffectiveSettings, Settings

app = typer.Typer(add_completion=False)
_FAILED = 1
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # as a shell says it


@app.command(context_settings={"allow_interspersed_args": False})
@with_setting_flags("jobs", "executor")
def run(
    effective: EffectiveSettings,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD [ARG]...", help="What to run.")],
    keep: Annotated[bool, typer.Option("--keep", help="Keep the server's data directory and say where.")] = False,
    keep_hf_home: Annotated[
        bool, typer.Option("--keep-hf-home", help="Leave HF_HOME as it is: the command sees your login and cache.")
    ] = False,
) -> None:
    """Run a command against a throw-away server.

    CMD gets HF_ENDPOINT, HF_TOKEN and an empty HF_HOME. The exit code is CMD's. When CMD ends, however it ends,
    jobs that still run are cancelled, the server stops, and its data is deleted.
    """
    folder = Path(tempfile.mkdtemp(prefix="runstead-exec-"))
    with SignalInbox() as inbox:
        session = _Session(effective.settings, folder, inbox)
        try:
            code = session.run(command, keep_hf_home)
        finally:
            clean = session.close()
            if keep or not clean:
                print(f"runstead exec: the server's data is kept in {folder}", file=sys.stderr)
            else:
                _delete(folder)
    raise typer.Exit(code)


class _Session:
    """The server, the command, and the signals for them."""

    def __init__(self, settings: Settings, folder: Path, inbox: SignalInbox) -> None:
        self._server = ThrowAwayServer(settings, folder)
        self._folder = folder
        self._inbox = inbox

    def run(self, command: list[str], keep_hf_home: bool) -> int:
        """Start the server, then the command; return its exit code, or another when it never ran."""
        self._server.start(self._inbox)
        while (arrived := self._inbox.take()).number != signal.SIGUSR1:
            if arrived.number in ENDING:
                return 128 + arrived.number
        self._server.settle()
        if self._server.ready is None:
            return self._complain("the server did not start")
        return self._command(command, environment(self._server.ready, None if keep_hf_home else self._folder))

    def _command(self, command: list[str], variables: dict[str, str]) -> int:
        try:
            process = subprocess.Popen(command, env=variables, preexec_fn=self._inbox.before_exec)
        except FileNotFoundError:
            print(f"runstead exec: there is no command {command[0]}", file=sys.stderr)
            return _NOT_FOUND
        except OSError as error:
            print(f"runstead exec: {command[0]} cannot be executed: {error.strerror}", file=sys.stderr)
            return _NOT_EXECUTABLE
        served = True
        while process.poll() is None:
            arrived = self._inbox.take()
            if arrived.number in ENDING and not arrived.from_terminal:
                process.send_signal(arrived.number)
            elif arrived.number == signal.SIGCHLD and served and not self._server.alive:
                served = False
                self._complain("the server stopped while the command ran")
        code = process.returncode
        if code < 0:
            return 128 - code
        return code if served else code or _FAILED

    def close(self) -> bool:
        """Stop what was started; False if the server had to be killed."""
        return self._server.stop()

    def _complain(self, what: str) -> int:
        print(f"runstead exec: {what}; the end of its log:\n{self._server.log_tail()}", file=sys.stderr)
        return _FAILED


def environment(ready: Ready, folder: Path | None) -> dict[str, str]:
    """Return the command's environment: ours, pointed at the server; with `folder`, away from the user's login."""
    variables = dict(os.environ)
    variables["HF_ENDPOINT"] = ready.url
    variables["HF_TOKEN"] = ready.token or ""
    variables.pop("HF_HUB_OFFLINE", None)
    if folder is not None:
        variables["HF_HOME"] = str(folder / "hf-home")
        for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
            variables.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):  # the server is on this machine: no proxy can reach it
        if any(variables.get(proxy) for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
            variables[name] = ",".join(filter(None, (variables.get(name), "127.0.0.1", "localhost")))
    return variables


def _delete(folder: Path) -> None:
    def make_writable(delete: Callable[[str], object], name: str, _: Any) -> None:
        Path(name).parent.chmod(stat.S_IRWXU)
        if Path(name).is_dir() and not Path(name).is_symlink():
            Path(name).chmod(stat.S_IRWXU)
            shutil.rmtree(name, ignore_errors=True)
        else:
            delete(name)

    try:
        shutil.rmtree(folder, onerror=make_writable)
    except OSError as error:
        print(f"runstead exec: {folder} could not be deleted: {error}", file=sys.stderr)
