"""`runstead bucket`: what buckets were, and how to have it again."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, TypeVar

import typer

from runstead.cli.durations import parse_duration
from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_rows
from runstead.model.errors import Invalid
from runstead.services.buckets.keeping import Keeping
from runstead.xet.hashes import hash_to_text

app = typer.Typer(
    help="Show and restore what was overwritten or deleted in buckets. Works whether the server runs or not.",
    no_args_is_help=True,
    add_completion=False,
)
Result = TypeVar("Result")

Bucket = Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The bucket.", show_default=False)]
Path = Annotated[
    str, typer.Argument(metavar="PATH", help="A file, or a folder with everything in it.", show_default=False)
]


@app.command()
def history(
    bucket: Bucket,
    path: Path = "",
    limit: Annotated[int, typer.Option(min=1, help="How many former files to show at most.")] = 1000,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show the former files of a bucket that are still kept: from when until when each was there."""
    namespace, name = _pair(bucket)

    async def rows(keeping: Keeping) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        async for kept in keeping.kept(await keeping.find(namespace, name), path.strip("/")):
            if len(found) == limit:
                break
            found.append(
                {
                    "path": kept.file.path,
                    "from": kept.file.uploaded_at,
                    "until": kept.replaced_at,
                    "size": kept.file.size,
                    "xet_hash": hash_to_text(kept.file.file_hash),
                }
            )
        return found

    print_rows(_with_keeping(config, data_dir, rows), as_json, f"{bucket} has no former files there.")


@app.command()
def restore(
    bucket: Bucket,
    path: Path = "",
    everything: Annotated[bool, typer.Option("--all", help="The whole bucket instead of a PATH.")] = False,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="As it was then: 2026-03-04T15:30 (here, unless it ends with a zone such as Z), or how long ago: 90m.",
            show_default=False,
        ),
    ] = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Bring back the bucket itself, as it was when it was deleted.")
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Make files what they were at some time. What is there now is kept too, so this can be undone."""
    namespace, name = _pair(bucket)
    if deleted:
        if path or everything or at is not None:
            raise Invalid("brings the whole bucket back and goes with nothing else", "--deleted")
        _with_keeping(config, data_dir, lambda keeping: keeping.undelete(namespace, name))
        print(f"{bucket} is back")
        return
    if bool(path) == everything:
        raise Invalid("name one PATH, or everything with --all")
    if at is None:
        raise Invalid("say of what time, as in 2026-03-04T15:30 or 90m", "--at")
    instant = _instant(at)

    async def run(keeping: Keeping) -> list[str]:
        return await keeping.restore(await keeping.find(namespace, name), instant, path.strip("/"))

    changed = _with_keeping(config, data_dir, run)
    for one in changed:
        print(one)
    there = f"{bucket}/{path}" if path else bucket
    when = instant.isoformat(timespec="seconds")
    print(f"{there}: {len(changed)} changed, as of {when}" if changed else f"{there} is as it was at {when}")


def _with_keeping(
    config: FilePath | None, data_dir: str | None, action: Callable[[Keeping], Awaitable[Result]]
) -> Result:
    from runstead.app.opening.content import open_keeping

    settings = settings_at(config, data_dir)

    async def run() -> Result:
        async with open_keeping(settings) as keeping:
            return await action(keeping)

    return asyncio.run(run())


def _pair(bucket: str) -> tuple[str, str]:
    namespace, separator, name = bucket.removeprefix("hf://buckets/").partition("/")
    if not separator or not namespace or not name or "/" in name:
        raise Invalid(f"a bucket is named NAMESPACE/NAME, not {bucket!r}")
    return namespace, name


def _instant(text: str) -> datetime:
    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid(f"a time as in 2026-03-04T15:30, or how long ago as in 90m; not {text!r}", "--at") from error
