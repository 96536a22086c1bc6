"""`runstead config`: what can be set, and what is in force."""

from pathlib import Path
from typing import Annotated

import typer

from runstead.cli import reference
from runstead.cli.options import AsJson, with_setting_flags
from runstead.cli.output import print_rows
from runstead.kit.settings import SECTIONS, EffectiveSettings

app = typer.Typer(help="Show, explain and check settings.", no_args_is_help=True, add_completion=False)


@app.command()
@with_setting_flags(*SECTIONS)
def show(effective: EffectiveSettings, as_json: AsJson = False) -> None:
    """Print the settings in force and where each was written. Fails where `serve` would."""
    print_rows(reference.shown(effective.settings, effective.origins), as_json, "There are no settings.")


@app.command()
def docs(
    check: Annotated[Path | None, typer.Option(metavar="FILE", help="Only say whether FILE is up to date.")] = None,
) -> None:
    """Print the page that explains every setting."""
    page = reference.page()
    if check is None:
        print(page, end="")
    elif not check.is_file() or check.read_text() != page:
        raise SystemExit(f"{check} is out of date: run `make format`")


@app.command()
def example() -> None:
    """Print a configuration file with every setting, commented out."""
    print(reference.example(), end="")
