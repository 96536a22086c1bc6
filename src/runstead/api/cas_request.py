"""What every route of the content store works with."""

from dataclasses import dataclass

from runstead.api.exchange import Exchange
from runstead.model.accounts import Permission
from runstead.services.content.service import StoredContent
from runstead.services.content.tokens import CasCaller


@dataclass(frozen=True, slots=True)
class CasRequest:
    """A request below `/xet/{store_id}`; `parts` are those of its path that its row in the table leaves open."""

    exchange: Exchange
    content: StoredContent
    cas_url: str
    store_id: str
    parts: tuple[str, ...]

    def caller(self, permission: Permission = Permission.READ) -> CasCaller:
        """Return whom the token speaks for. Raises Unauthenticated or Forbidden."""
        caller = self.content.tokens.recognize(self.exchange.bearer_token)
        if permission is Permission.WRITE:
            caller.require_write()
        return caller
