"""`runstead user`: who may sign in."""

from typing import Annotated

import typer

from runstead.cli.accounts import with_accounts
from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_rows

app = typer.Typer(help="Add, list and remove users.", no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Argument(help="The user's name, which is also their namespace.")]


@app.command()
def add(
    name: Name,
    full_name: Annotated[str | None, typer.Option(help="Name for people.")] = None,
    email: Annotated[str | None, typer.Option(help="Address that clients show.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May manage accounts on this server.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Add a user."""
    user = with_accounts(
        settings_at(config, data_dir),
        lambda accounts: accounts.add_user(name, full_name=full_name, email=email, admin=admin),
    )
    print(f"Added user {user.name}. A token for them: runstead token add {user.name}")


@app.command("list")
def list_users(as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """List all users."""
    users = with_accounts(settings_at(config, data_dir), lambda accounts: accounts.users())
    rows = [
        {"name": u.name, "full_name": u.full_name, "email": u.email, "admin": u.is_admin, "created_at": u.created_at}
        for u in users
    ]
    print_rows(rows, as_json, "There are no users; the first start of the server makes one.")


@app.command()
def remove(name: Name, config: Config = None, data_dir: DataDir = None) -> None:
    """Remove a user with their tokens. Refused while they own jobs."""
    with_accounts(settings_at(config, data_dir), lambda accounts: accounts.remove_user(name))
    print(f"Removed user {name}")
