"""`runstead serve`: the server itself."""

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from runstead.cli.lifeline import Lifeline, report_ready
from runstead.cli.options import with_setting_flags
from runstead.kit.settings import SECTIONS, EffectiveSettings, default_data_dir

if TYPE_CHECKING:
    from runstead.app.serving import Started

app = typer.Typer(add_completion=False)


@app.command()
@with_setting_flags(*SECTIONS)
def serve(
    effective: EffectiveSettings,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    lifeline_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    stop_jobs_at_exit: Annotated[bool, typer.Option("--stop-jobs-at-exit", hidden=True)] = False,
) -> None:
    """Serve jobs. Stops at Ctrl-C or SIGTERM; running jobs go on, and the next start finds them."""
    from runstead.app import serving

    settings = effective.settings
    if lifeline_fd is not None:
        Lifeline(lifeline_fd).hold()
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)

    def on_ready(started: "Started") -> None:
        if ready_fd is not None:
            report_ready(ready_fd, started)
        else:
            _greet(started, effective)

    code = serving.serve(settings, on_ready=on_ready, stop_jobs_at_exit=stop_jobs_at_exit)
    raise typer.Exit(code)


def _greet(started: "Started", effective: EffectiveSettings) -> None:
    """Say where the server is; with the token, on the one start that made it."""
    lines = [f"Runstead is ready at {started.url}"]
    if effective.file:
        lines.append(f"Settings: {effective.file}")
    lines += [f"Note: {note}" for note in started.notes]
    if started.token:
        lines += [
            "",
            f"This is its first start: the account {started.owner} was made, and a token for it, shown this once.",
            "Give both to a client:",
            "",
            f"  export HF_ENDPOINT={started.url}",
            f"  export HF_TOKEN={started.token}",
            "",
        ]
    else:
        data_dir = effective.settings.server.data_dir
        place = "" if data_dir == default_data_dir() else f" --data-dir {shlex.quote(str(data_dir))}"
        lines.append(f"A client needs HF_ENDPOINT={started.url} and a token: runstead token add {started.owner}{place}")
    print("\n".join(lines), flush=True)
    sys.stdout.flush()
