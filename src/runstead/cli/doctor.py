"""`runstead doctor`: what this machine can do, what is missing, and how to get it."""

from collections.abc import Callable
from typing import Annotated

import typer

from runstead.cli import client_checks, machine_checks, storage_checks, tls_checks
from runstead.cli.findings import Finding, Level
from runstead.cli.options import AsJson, with_setting_flags
from runstead.cli.output import print_json
from runstead.kit.settings import SECTIONS, EffectiveSettings, Settings

app = typer.Typer(add_completion=False)

CHECKS: tuple[Callable[[Settings], list[Finding]], ...] = (
    lambda _: machine_checks.python(),
    lambda _: machine_checks.kernel(),
    storage_checks.data_dir,
    storage_checks.database,
    machine_checks.executor,
    machine_checks.port,
    machine_checks.handed_over,
    tls_checks.certificate,
    tls_checks.names,
    lambda _: machine_checks.certificates(),
    lambda _: client_checks.client(),
    client_checks.endpoint,
)
_MARKS = {Level.OK: "ok", Level.NOTE: "--", Level.MISSING: "!!", Level.FAILED: "XX"}
_COLORS = {Level.OK: "green", Level.NOTE: "cyan", Level.MISSING: "yellow", Level.FAILED: "red"}


@app.command()
@with_setting_flags(*SECTIONS)
def doctor(
    effective: EffectiveSettings,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is missing or failed.")] = False,
) -> None:
    """Examine this machine. Exit code 0 when `runstead serve` would work, 1 when not."""
    findings = [Finding(Level.NOTE, "settings", f"{effective.file or 'no file'}, {len(effective.origins)} set")]
    for check in CHECKS:
        findings += _examine(check, effective.settings)
    works = all(finding.level is not Level.FAILED for finding in findings)
    shown = [finding for finding in findings if not quiet or finding.level in (Level.MISSING, Level.FAILED)]
    if as_json:
        print_json({"works": works, "findings": shown})
    else:
        for finding in shown:
            _print(finding)
        typer.echo("`runstead serve` works here." if works else "`runstead serve` does not work here.")
    raise typer.Exit(0 if works else 1)


def _examine(check: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    try:
        return check(settings)
    except Exception as error:  # an examination that breaks must not hide the others
        return [Finding(Level.FAILED, "doctor", f"an examination broke: {type(error).__name__}: {error}")]


def _print(finding: Finding) -> None:
    mark = typer.style(_MARKS[finding.level], fg=_COLORS[finding.level])
    typer.echo(f"{mark} {finding.subject}: {finding.text}")
    if finding.remedy:
        typer.echo(f"     to do: {finding.remedy}")
