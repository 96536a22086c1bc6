"""`runstead job`: what the operator of the server's machine may do for a job, and see of it."""

import asyncio
import json
from typing import Annotated

import typer

from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.kit.settings import Settings

app = typer.Typer(
    help="What jobs wrote, whether they listen, and help for those whose results could not be saved.",
    no_args_is_help=True,
    add_completion=False,
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]


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


@app.command()
def outputs(job_id: JobId, as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """List what a job wrote to its volumes: paths, sizes, hashes. Also while it runs, and long after.

    Each file is as the job left it; what became of it since then does not show here.
    """
    asyncio.run(_outputs(settings_at(config, data_dir), job_id, as_json))


@app.command()
def wait(
    job_id: JobId,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The exposed port.")],
    timeout: Annotated[str, typer.Option(help="How long to wait, as in 90s or 10m.")] = "10m",
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Wait until something listens on an exposed port of a job, and print its URL. For scripts.

    It asks the server at HF_ENDPOINT, else that of this machine, with the token of HF_TOKEN or `hf auth login`. It
    fails as soon as the job is over, and says why it ended.
    """
    from runstead.cli.durations import parse_duration
    from runstead.cli.waiting import Waiting

    try:
        seconds = parse_duration(timeout).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    waiting = Waiting(settings_at(config, data_dir).server.data_dir)
    print(waiting.for_port(job_id, port, seconds))


async def _outputs(settings: Settings, job_id: str, as_json: bool) -> None:
    from runstead.app.opening.content import open_outputs
    from runstead.xet.hashes import hash_to_text

    files, size = 0, 0
    async with open_outputs(settings) as found:
        async for output in found.all(job_id):
            files, size = files + 1, size + output.size
            digits, bucket = hash_to_text(output.file_hash), output.bucket or "(deleted)"
            if as_json:
                said = {"bucket": output.bucket, "path": output.path, "size": output.size, "xetHash": digits}
                print(json.dumps(said | {"attempt": output.attempt}))
            else:
                print(f"{digits}  {output.size:>14,}  {bucket}/{output.path}")
    if not as_json:
        print("1 file" if files == 1 else f"{files} files", f"{size:,} bytes", sep=", ")


async def _recover(settings: Settings, job_id: str, discard: bool) -> None:
    from runstead.app.opening.recovery import open_recovery

    async with open_recovery(settings) as recovery:
        if discard:
            await recovery.discard(job_id)
            print("nothing is kept of this job any more")
            return
        async for attempt, flushed in recovery.recover(job_id):
            print(f"attempt {attempt}: {flushed.files} files, {flushed.bytes:,} bytes are in its buckets")
            for note in flushed.notes:
                print(f"  {note}")
