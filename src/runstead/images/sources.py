"""Where images come from over the network: a registry, and the mirrors that are asked before it."""

from collections.abc import Iterator

from runstead.images.credentials import find_credentials
from runstead.images.layers import Layer
from runstead.images.manifests import Resolved, check_digest, resolve
from runstead.images.references import Reference
from runstead.images.registry import Registry
from runstead.images.rules import Rules
from runstead.model.errors import ImageFailure

_LARGEST_CONFIGURATION = 16 << 20


class RegistrySource:
    """One image in a registry."""

    def __init__(self, wanted: Reference, rules: Rules) -> None:
        self._wanted = wanted
        if rules.registries and wanted.registry not in rules.registries:
            raise ImageFailure(
                f"this server takes images from {', '.join(rules.registries)} alone (images.registries), not from "
                f"{wanted.registry}: {wanted.familiar}"
            )
        mirrors = [one.partition("=")[2] for one in rules.mirrors if one.partition("=")[0] == wanted.registry]
        self._registries = [
            Registry(
                wanted,
                host,
                find_credentials(Reference(host, wanted.repository, wanted.tag, wanted.digest), rules.auth_file),
                insecure=host in rules.insecure,
                stall_seconds=rules.stall_seconds,
            )
            for host in [*mirrors, wanted.registry]
        ]

    def resolve(self) -> Resolved:
        """Find what is to be fetched. Raises ImageFailure."""
        return resolve(self._wanted.wanted, self._manifest, self._blob)

    def pieces(self, layer: Layer) -> Iterator[bytes]:
        """Yield a layer's bytes as the registry keeps them."""
        assert layer.digest is not None
        registry = self._registries[0]
        return registry.blob(layer.digest, layer.size)

    def _manifest(self, wanted: str) -> tuple[bytes, str]:
        while True:
            try:
                found = self._registries[0].manifest(wanted)
                if ":" in wanted:
                    check_digest(wanted, found.body, "manifest")
            except ImageFailure:
                if len(self._registries) == 1:
                    raise
                self._registries.pop(0)  # what a mirror cannot give comes from the next
                continue
            return found.body, found.media_type

    def _blob(self, digest: str, size: int | None) -> bytes:
        body = b""
        for piece in self._registries[0].blob(digest, size):
            body += piece
            if len(body) > _LARGEST_CONFIGURATION:
                raise ImageFailure(f"the image's configuration is larger than {_LARGEST_CONFIGURATION:,} bytes")
        check_digest(digest, body, "configuration")
        return body
