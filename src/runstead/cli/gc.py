"""`runstead gc`: remove stored content that nobody refers to."""

import asyncio
from typing import Annotated

import typer

from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_json
from runstead.kit.sizes import format_size
from runstead.model.content import Collected

app = typer.Typer(add_completion=False)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Remove stored content that nobody refers to. Works whether the server runs or not.

    Clients remember for three weeks what is stored, so content stays for `storage.grace_days` after a client was
    last told of it; what buckets keep as history stays as well.
    """
    from runstead.app.opening.content import open_storage

    settings = settings_at(config, data_dir)

    async def run() -> Collected:
        async with open_storage(settings) as storage:
            return await storage.collecting.collect(dry_run)

    found = asyncio.run(run())
    if as_json:
        print_json(found)
        return
    done = "Would remove" if dry_run else "Removed"
    print(
        f"{done} {found.files:,} files, {found.xorbs:,} xorbs and {found.objects:,} objects left by crashes: "
        f"{format_size(found.bytes)}."
    )
