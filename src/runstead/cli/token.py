"""`runstead token`: what clients sign in with. A value is shown once, when it is made, and never taken from argv."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from runstead.cli.accounts import with_accounts
from runstead.cli.durations import parse_duration
from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_rows
from runstead.model.accounts import Permission, Token, TokenRole, User
from runstead.model.errors import Invalid
from runstead.services.accounts import Accounts

app = typer.Typer(help="Make, list and revoke tokens.", no_args_is_help=True, add_completion=False)


@app.command()
def add(
    user: Annotated[str, typer.Argument(help="Whose token it is.")],
    name: Annotated[str | None, typer.Option(help="Name to tell it from others.  [default: the day]")] = None,
    role: Annotated[
        TokenRole | None, typer.Option(help="How far it reaches.  [default: write, or fineGrained with --scope]")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMESPACE:read|write", help="What a fine-grained token may do; may be repeated."),
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="SPAN", help="Valid for so long: 30d, 12h.")] = None,
    value: Annotated[
        str | None, typer.Option(metavar="-", help="Bring along a token made elsewhere: `-` reads it from stdin.")
    ] = None,
    value_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Bring it along from a file.")] = None,
    value_env: Annotated[str | None, typer.Option(metavar="NAME", help="Bring it along from a variable.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token. Its value goes to stdout, once; one that was brought along is not repeated."""
    now = datetime.now(UTC)
    scopes = [_scope(text) for text in scope or ()]
    kind = role or (TokenRole.FINE_GRAINED if scopes else TokenRole.WRITE)
    brought = _brought(value, value_file, value_env)
    expires_at = now + _span(expires) if expires else None
    token, fresh = with_accounts(
        settings_at(config, data_dir),
        lambda accounts: accounts.add_token(
            user, name or f"{now:%Y-%m-%d}", kind, scopes=scopes, expires_at=expires_at, value=brought
        ),
    )
    until = f", until {token.expires_at.astimezone():%Y-%m-%d %H:%M}" if token.expires_at else ""
    print(f"Token {token.name!r} of {user} ({token.role.value}{until}), id {token.id}", file=sys.stderr)
    if brought is None:
        print("Its value is shown this once:", file=sys.stderr, flush=True)
        print(fresh)


@app.command("list")
def list_tokens(
    user: Annotated[str | None, typer.Argument(help="Only this user's.")] = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """List tokens; of each value, the last four characters."""

    async def find(accounts: Accounts) -> tuple[list[Token], list[User]]:
        return await accounts.tokens(user), await accounts.users()

    tokens, users = with_accounts(settings_at(config, data_dir), find)
    names = {one.id: one.name for one in users}
    rows = [
        {
            "id": token.id,
            "user": names.get(token.user_id, token.user_id),
            "name": token.name,
            "role": token.role.value,
            "scopes": [f"{namespace}:{permission.value}" for namespace, permission in token.scopes],
            "value": f"...{token.hint}",
            "created_at": token.created_at,
            "expires_at": token.expires_at,
        }
        for token in tokens
    ]
    print_rows(rows, as_json, "There are no tokens.")


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(help="The token's id or name.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a token: from now on it is unknown."""
    token = with_accounts(settings_at(config, data_dir), lambda accounts: accounts.revoke_token(which))
    print(f"Revoked token {token.name!r} (...{token.hint})")


def _scope(text: str) -> tuple[str, Permission]:
    namespace, _, permission = text.rpartition(":")
    if not namespace or permission not in list(Permission):
        raise Invalid(f"should be NAMESPACE:read or NAMESPACE:write, not {text!r}", "--scope")
    return namespace, Permission(permission)


def _span(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise Invalid(str(error), "--expires") from error


def _brought(value: str | None, file: Path | None, variable: str | None) -> str | None:
    """Return the value to bring along, from the one place that was named."""
    if sum(source is not None for source in (value, file, variable)) > 1:
        raise Invalid("--value, --value-file and --value-env exclude each other")
    if value is not None:
        if value != "-":
            raise Invalid(
                "takes only -, for stdin: whatever stands in a command line can be seen by everyone on the machine. "
                "Consider that value known to others now",
                "--value",
            )
        return sys.stdin.readline().strip()
    if file is not None:
        return file.read_text().strip()
    if variable is not None:
        if not os.environ.get(variable):
            raise Invalid(f"the variable {variable} is not set", "--value-env")
        return os.environ[variable].strip()
    return None
