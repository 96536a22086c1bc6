"""Names of images as people write them, and what they mean in full."""

import re
from dataclasses import dataclass
from functools import lru_cache

from runstead.model.errors import ImageFailure

DOCKER_HUB = "docker.io"
_HUB_NAMES = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_SPACE = re.compile(r"(?:hf\.co|huggingface\.co)/spaces/([^/]+)/([^/:@]+)")
_LONGEST = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """The full name of an image: a tag, or a digest, which then decides alone."""

    registry: str  # host or host:port
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        """Return the name in full; two names of the same image by the same means are equal."""
        name = f"{self.registry}/{self.repository}"
        return f"{name}@{self.digest}" if self.digest else f"{name}:{self.tag}"

    @property
    def familiar(self) -> str:
        """The name as people write it: without what everybody leaves out."""
        return str(self).removeprefix(f"{DOCKER_HUB}/").removeprefix("library/")

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag or "latest"


@lru_cache(maxsize=256)  # of each job that starts, several times
def parse_reference(text: str) -> Reference:
    """Return what a name of an image means. Raises ImageFailure that says how images are named.

    `python:3.12` is docker.io/library/python:3.12, as for every tool; hf.co/spaces/owner/name is the image that
    the Hub has built of that Space.
    """
    name = text.strip().removeprefix("docker://")
    space = _SPACE.fullmatch(name)
    if space:
        slug = re.sub(r"[^a-z0-9]+", "-", f"{space[1]}-{space[2]}".lower()).strip("-")
        return Reference("registry.hf.space", slug, "latest", None)
    name, _, digest = name.partition("@")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.startswith("[")):
        registry, path = first, rest
    else:
        registry, path = DOCKER_HUB, name
    path, colon, tag = path.partition(":")
    if registry in _HUB_NAMES:
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    problem = _problem(registry, path, tag if colon else None, digest if "@" in text else None)
    if problem is not None:
        raise ImageFailure(f"{problem}; images are named like python:3.12 or ghcr.io/owner/name:tag: {text[:300]!r}")
    return Reference(registry, path, None if digest else tag or "latest", digest or None)


def _problem(registry: str, path: str, tag: str | None, digest: str | None) -> str | None:
    if not _HOST.fullmatch(registry):
        return "the registry is no host name"
    if not _REPOSITORY.fullmatch(path):
        upper = "; its name must be in lower case" if _REPOSITORY.fullmatch(path.lower()) else ""
        return f"this is no name of an image{upper}"
    if len(registry) + len(path) > _LONGEST:
        return f"the name is longer than {_LONGEST} characters"
    if tag is not None and not _TAG.fullmatch(tag):
        return "the tag has characters that no tag can have"
    if digest is not None and not _DIGEST.fullmatch(digest):
        return "the digest is none: it should be sha256: and 64 hexadecimal digits"
    return None
