"""Stored xorbs behind signed URLs: who has one reads the ranges it names, and nothing else."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from runstead.model.errors import Forbidden
from runstead.services.content.links import ByteRange, Links, allows
from runstead.services.content.reconstructions import link_name
from runstead.services.content.xorbs import Xorbs
from runstead.stores.interface import StoredXorb


@dataclass(frozen=True, slots=True)
class Opened:
    """A xorb that may be read in part."""

    size: int
    _xorbs: Xorbs
    _xorb: StoredXorb
    _ranges: Sequence[ByteRange]

    def pieces(self, first: int, last: int) -> AsyncGenerator[memoryview]:
        """Yield these bytes, both ends included, each piece checked before. Raises Forbidden at once.

        Raises ContentDamaged, when iterated, where they are damaged.
        """
        if not allows(self._ranges, (first, last)):
            raise Forbidden(f"this URL is not for bytes {first} to {last}")
        return self._xorbs.pieces(self._xorb, first, last)


class Serving:
    """Opens xorbs."""

    def __init__(self, xorbs: Xorbs, links: Links) -> None:
        self._xorbs = xorbs
        self._links = links

    async def open(self, xorb_hash: bytes, name: str, query: Mapping[str, str]) -> Opened:
        """Return the xorb behind a link. Raises NotFound; Forbidden if the link is wrong, over, or for an older object.

        Clients take Forbidden as the sign to ask for the reconstruction again.
        """
        ranges = self._links.readable(name, query)
        xorb = await self._xorbs.get(xorb_hash)
        if link_name(xorb) != name:
            raise Forbidden("this xorb was stored anew since; ask for the reconstruction again")
        return Opened(xorb.facts.layout.stored_bytes, self._xorbs, xorb, ranges)
