"""`runstead fsck`: hash everything that is stored anew."""

import asyncio
import sys
from typing import Annotated

import typer

from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_json
from runstead.kit.sizes import format_size
from runstead.model.content import Damage

app = typer.Typer(add_completion=False)


@app.command()
def fsck(
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Change nothing: do not take out of use what is damaged.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Read and hash everything that is stored, and say what is damaged. Works whether the server runs or not.

    What is damaged is never given out. It is also taken out of use, so that the next upload of the same content
    puts it right. The exit code is 1 if anything is wrong.
    """
    from runstead.app.opening.content import open_storage

    settings = settings_at(config, data_dir)
    found: list[Damage] = []

    async def run() -> int:
        read = 0
        async with open_storage(settings) as storage:
            async for one in storage.checking.check(quarantine=not report_only):
                if isinstance(one, int):
                    read = one
                    continue
                found.append(one)
                if not as_json:
                    print(f"{one.what} {one.name}: {one.problem}")
        return read

    read = asyncio.run(run())
    if as_json:
        print_json({"bytes": read, "damages": found})
    else:
        print(f"Read {format_size(read)}: {f'{len(found):,} things are wrong' if found else 'all is well'}.")
    sys.exit(1 if found else 0)
