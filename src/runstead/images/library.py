"""The images of this machine, for a server: finds them, pulls what is not here, keeps what is in use.

Pulling is done by a program of its own (`runstead.images.program`): the server spends neither time nor memory on it.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from runstead.images.image import Image
from runstead.images.pulling import Pulls, run_program
from runstead.images.references import Reference, parse_reference
from runstead.images.rules import rules_of
from runstead.images.store import ImageStore
from runstead.kit.settings import ImageSettings
from runstead.model.errors import ImageFailure


class ImageLibrary:
    """The images in one folder. Used from one event loop; other processes may use the folder at the same time."""

    def __init__(self, folder: Path, settings: ImageSettings) -> None:
        self.store = ImageStore(folder)
        self._settings = settings
        self._pulls = Pulls(folder, rules_of(settings))

    async def open(self) -> None:
        """Make the folder, and remove what was left half done."""
        await asyncio.to_thread(self.store.open)

    async def close(self) -> None:
        """End the pulls of this process; what they have unpacked stays."""
        await self._pulls.close()

    async def get(self, reference: str, tell: Callable[[str], None]) -> Image:
        """Return an image, pulled when it is not here or when the settings want it looked up.

        `tell` is called in the event loop with a line for people, twice a second at most. Cancelling is fine; the
        pull goes on while others wait for it. Raises ImageFailure.
        """
        wanted = parse_reference(reference)
        found = self._find(wanted)
        if found is not None and not self._is_stale(wanted):
            self.store.used(found.digest)
            return found
        if found is None and self._settings.pull == "never":
            raise ImageFailure(
                "the image is not on this machine and the server pulls none (images.pull = never); have its operator "
                f"run `runstead image pull` or `runstead image load`: {wanted.familiar}"
            )
        try:
            return await self.pull(reference, tell)
        except ImageFailure as error:
            if found is None:
                raise
            tell(f"the registry could not be asked, so the image that is here is used: {error.message}")
            return found

    async def pull(self, reference: str, tell: Callable[[str], None]) -> Image:
        """Ask the registry for an image whether it is here or not, whatever the settings say. Raises ImageFailure."""
        wanted = parse_reference(reference)
        await self._pulls.pull(wanted, tell)
        found = self._find(wanted)
        if found is None:
            raise ImageFailure(f"the image was removed while it was pulled; try again: {wanted.familiar}", again=True)
        return found

    async def load(
        self,
        path: Path | None,
        tell: Callable[[str], None],
        *,
        name: str | None = None,
        engine: str | None = None,
        engine_name: str | None = None,
    ) -> list[str]:
        """Take the images of an archive, or an image of an engine on this machine; return their digests.

        `name` is what the one image shall be called, `engine_name` what the engine calls it. Raises ImageFailure.
        """
        order = {
            "op": "load",
            "path": None if path is None else str(path),
            "name": name,
            "engine": engine,
            "engine_name": engine_name,
        }
        done = await run_program(self.store.folder, rules_of(self._settings), order, tell)
        return list(done["done"])

    def find(self, reference: str) -> Image | None:
        """Return an image that is here; None when it is not. Raises ImageFailure for what is no name."""
        return self._find(parse_reference(reference))

    def hold(self, image: Image, name: str) -> None:
        """Keep an image while the attempt `name` uses it. Durable; raises ImageFailure when it was removed just now."""
        self.store.hold(image, name)

    def release(self, name: str) -> None:
        """Give up what `hold` took. Idempotent."""
        self.store.release(name)

    def holders(self) -> list[str]:
        """Return the names that hold an image: those that are gone should be released."""
        return [name for name, _, _ in self.store.holds()]

    def _find(self, wanted: Reference) -> Image | None:
        return self.store.find(str(wanted))

    def _is_stale(self, wanted: Reference) -> bool:
        import time

        if wanted.digest is not None or self._settings.pull != "newer":
            return False
        known = self.store.reference(str(wanted))
        return known is None or time.time() - known.checked_at >= self._settings.check_hours * 3600
