"""Opens the images of this machine."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runstead.app.data_directory import make_private
from runstead.images.library import ImageLibrary
from runstead.kit.settings import Settings


@asynccontextmanager
async def open_images(settings: Settings) -> AsyncGenerator[ImageLibrary]:
    """Open the images of this machine, whether the server runs or not."""
    make_private(settings.server.data_dir)
    library = ImageLibrary(settings.server.data_dir / "images", settings.images)
    await library.open()
    try:
        yield library
    finally:
        await library.close()
