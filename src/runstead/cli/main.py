"""The `runstead` command: what it can do, and how errors are shown.

A command's file is imported when the command is used, so that each starts as fast as what it needs.
"""

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from runstead import __version__

# Command to the file that has it; the order is that of `runstead --help`.
COMMANDS = {
    "serve": "runstead.cli.serve",
    "exec": "runstead.cli.exec",
    "user": "runstead.cli.user",
    "org": "runstead.cli.org",
    "token": "runstead.cli.token",
    "bucket": "runstead.cli.bucket",
    "job": "runstead.cli.job",
    "sandbox": "runstead.cli.sandbox",
    "tls": "runstead.cli.tls",
    "image": "runstead.cli.image",
    "usage": "runstead.cli.usage",
    "budget": "runstead.cli.budget",
    "gc": "runstead.cli.gc",
    "fsck": "runstead.cli.fsck",
    "config": "runstead.cli.config",
    "doctor": "runstead.cli.doctor",
    "mcp": "runstead.cli.mcp",
}


class _Commands(TyperGroup):
    """The commands by name, each imported when it is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = get_command(importlib.import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, no_args_is_help=True, add_completion=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"runstead {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="RUNSTEAD_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Hugging Face Jobs on your own machines."""
    del version
    if debug:
        os.environ["RUNSTEAD_DEBUG"] = "1"


def main() -> None:
    """Run the command line; expected errors become one line and exit code 1."""
    if sys.argv[1:] == ["--version"]:
        print(f"runstead {__version__}")
        return
    try:
        app()
    except Exception as error:
        message = _expected(error)
        if message is None or os.environ.get("RUNSTEAD_DEBUG") == "1":
            raise
        for line in message.splitlines():
            print(f"Error: {line}", file=sys.stderr)
        sys.exit(1)


def _expected(error: Exception) -> str | None:
    """Return what to tell about an error that is the user's or the machine's, None for one of our own."""
    from runstead.kit.sources import SettingsError
    from runstead.model.errors import RunsteadError

    if isinstance(error, RunsteadError | SettingsError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return None
