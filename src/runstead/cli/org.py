"""`runstead org`: namespaces that several users share."""

from typing import Annotated

import typer

from runstead.cli.accounts import with_accounts
from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_rows
from runstead.model.accounts import OrgRole

app = typer.Typer(
    help="Add, list and remove organizations and their members.", no_args_is_help=True, add_completion=False
)
Name = Annotated[str, typer.Argument(help="The organization's name, which is also its namespace.")]
UserName = Annotated[str, typer.Argument(help="The user's name.")]
ROLES = "`read` sees jobs; `contributor`, `write` and `admin` also start and cancel them."


@app.command()
def add(
    name: Name,
    full_name: Annotated[str | None, typer.Option(help="Name for people.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Add an organization."""
    with_accounts(settings_at(config, data_dir), lambda accounts: accounts.add_org(name, full_name=full_name))
    print(f"Added organization {name}. Its first member: runstead org add-member {name} USER --role admin")


@app.command("list")
def list_orgs(as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """List all organizations."""
    orgs = with_accounts(settings_at(config, data_dir), lambda accounts: accounts.orgs())
    rows = [{"name": o.name, "full_name": o.full_name, "created_at": o.created_at} for o in orgs]
    print_rows(rows, as_json, "There are no organizations.")


@app.command()
def remove(name: Name, config: Config = None, data_dir: DataDir = None) -> None:
    """Remove an organization. Refused while it owns jobs."""
    with_accounts(settings_at(config, data_dir), lambda accounts: accounts.remove_org(name))
    print(f"Removed organization {name}")


@app.command()
def members(name: Name, as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """List the members of an organization."""
    found = with_accounts(settings_at(config, data_dir), lambda accounts: accounts.members(name))
    print_rows([{"user": user.name, "role": role.value} for user, role in found], as_json, f"{name} has no members.")


@app.command("add-member")
def add_member(
    name: Name,
    user: UserName,
    role: Annotated[OrgRole, typer.Option(help=ROLES)] = OrgRole.WRITE,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Give a user a role in an organization, or another role than they have."""
    with_accounts(settings_at(config, data_dir), lambda accounts: accounts.set_member(name, user, role))
    print(f"{user} is a member of {name} with role {role.value}")


@app.command("remove-member")
def remove_member(name: Name, user: UserName, config: Config = None, data_dir: DataDir = None) -> None:
    """Take a user out of an organization."""
    with_accounts(settings_at(config, data_dir), lambda accounts: accounts.set_member(name, user, None))
    print(f"{user} is not a member of {name} any more")
