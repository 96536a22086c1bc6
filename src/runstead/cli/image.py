"""`runstead image`: the images on this machine."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_json, print_rows
from runstead.images.collecting import Removed, prune, remove
from runstead.images.library import ImageLibrary
from runstead.images.references import parse_reference
from runstead.kit.sizes import parse_size
from runstead.model.errors import Invalid

app = typer.Typer(
    help="Show, fetch and remove the images of this machine. Works whether the server runs or not.",
    no_args_is_help=True,
    add_completion=False,
)
Result = TypeVar("Result")
_DAY_SECONDS = 86_400.0
_STANDARD_INPUT = "-"

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names of images.", show_default=False)]


@app.command("list")
def list_images(as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """Show the images, those that were used last first. Sizes are unpacked; images may share layers."""

    async def rows(library: ImageLibrary) -> list[dict[str, object]]:
        return [
            {
                "image": [parse_reference(name).familiar for name in one.references],
                "digest": one.record.digest if as_json else one.record.digest[:19],
                "size": one.bytes if as_json else _readable(one.bytes),
                "used_at": datetime.fromtimestamp(one.used_at, UTC),
                "used_by": list(one.holders) if as_json else len(one.holders),
            }
            for one in await asyncio.to_thread(library.store.images)
        ]

    print_rows(_with_library(config, data_dir, rows), as_json, "There are no images on this machine.")


@app.command()
def pull(images: Images, config: Config = None, data_dir: DataDir = None) -> None:
    """Fetch images, or what their names mean by now, so that jobs need not wait for them."""

    async def run(library: ImageLibrary) -> None:
        for image in images:
            show = _Progress()
            found = await library.pull(image, show.tell)
            show.end()
            print(f"{found.reference}@{found.digest}")

    _with_library(config, data_dir, run)


@app.command("rm")
def remove_images(images: Images, config: Config = None, data_dir: DataDir = None) -> None:
    """Remove images by name or by digest. What a job uses stays until it has ended."""

    async def run(library: ImageLibrary) -> int:
        freed = 0
        for image in images:
            removed = await asyncio.to_thread(remove, library.store, image)
            freed += removed.bytes
            print("\n".join(removed.images))
        return freed

    print(f"Freed {_readable(_with_library(config, data_dir, run))}.")


@app.command("prune")
def prune_images(
    everything: Annotated[bool, typer.Option("--all", help="Remove every image that no job uses right now.")] = False,
    days: Annotated[
        float | None,
        typer.Option(min=0, help="Remove images not used for so many days instead of images.unused_days."),
    ] = None,
    down_to: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Room that images may take, instead of images.store_bytes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Remove images that no job uses and nobody used for long, as the server does by itself from time to time."""
    settings = settings_at(config, data_dir).images
    unused = 0.0 if everything else (days if days is not None else settings.unused_days or None)
    room = settings.store_bytes
    if down_to is not None:
        try:
            room = parse_size(down_to)
        except ValueError as error:
            raise Invalid(str(error), "--down-to") from error

    async def run(library: ImageLibrary) -> Removed:
        seconds = None if unused is None else unused * _DAY_SECONDS
        return await asyncio.to_thread(lambda: prune(library.store, seconds, room, dry_run=dry_run))

    removed = _with_library(config, data_dir, run)
    if as_json:
        print_json(removed)
        return
    for name in removed.images:
        print(name)
    print(f"{'Would free' if dry_run else 'Freed'} {_readable(removed.bytes)}.")


@app.command()
def load(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file of `docker save` or `podman save`, an OCI layout (tar or directory), - for standard input; "
            "with --from the name of an image.",
            show_default=False,
        ),
    ],
    engine: Annotated[
        str | None,
        typer.Option("--from", metavar="ENGINE", help="Take it from docker or podman on this machine."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="What the image shall be called here.", show_default=False)
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Take images from an archive or from another engine: no registry is needed for them."""
    if engine not in (None, "docker", "podman"):
        raise Invalid(f"docker or podman, not {engine!r}", "--from")
    if name is not None:
        parse_reference(name)

    path = Path(source).absolute()

    async def run(library: ImageLibrary) -> None:
        show = _Progress()
        if engine is not None:
            await library.load(None, show.tell, engine=engine, engine_name=source, name=name or source)
        elif source == _STANDARD_INPUT:
            with tempfile.NamedTemporaryFile(dir=library.store.folder) as file:
                await asyncio.to_thread(shutil.copyfileobj, sys.stdin.buffer, file)
                file.flush()
                await library.load(Path(file.name), show.tell, name=name)
        else:
            await library.load(path, show.tell, name=name)
        show.end()

    _with_library(config, data_dir, run)


class _Progress:
    """Shows lines of progress: each over the last on a terminal, else one after the other."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def tell(self, line: str) -> None:
        print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print(file=sys.stderr)


def _with_library(
    config: Path | None, data_dir: str | None, action: Callable[[ImageLibrary], Awaitable[Result]]
) -> Result:
    from runstead.app.opening.images import open_images

    settings = settings_at(config, data_dir)

    async def run() -> Result:
        async with open_images(settings) as library:
            return await action(library)

    return asyncio.run(run())


def _readable(count: int) -> str:
    for unit, factor in (("GB", 1000**3), ("MB", 1000**2), ("kB", 1000)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
