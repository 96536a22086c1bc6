"""`runstead job`: what the operator of the server's machine may do for a job."""

import asyncio
from typing import Annotated

import typer

from runstead.cli.options import Config, DataDir, settings_at
from runstead.kit.settings import Settings

app = typer.Typer(help="Help jobs whose results could not be saved.", no_args_is_help=True, add_completion=False)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]


@app.callback()
def group() -> None:
    """Keep `recover` a command of its own also while it is the only one."""


@app.command()
def recover(
    job_id: JobId,
    discard: Annotated[
        bool, typer.Option("--discard", help="Delete what is kept of the job instead of saving it.")
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Save what a job wrote to its volumes and could not be saved when it ended. The server must be running.

    It may be repeated; what is saved already is not sent again.
    """
    asyncio.run(_recover(settings_at(config, data_dir), job_id, discard))


async def _recover(settings: Settings, job_id: str, discard: bool) -> None:
    from runstead.app import open_recovery

    async with open_recovery(settings) as recovery:
        if discard:
            await recovery.discard(job_id)
            print("nothing is kept of this job any more")
            return
        async for attempt, flushed in recovery.recover(job_id):
            print(f"attempt {attempt}: {flushed.files} files, {flushed.bytes:,} bytes are in its buckets")
            for note in flushed.notes:
                print(f"  {note}")
