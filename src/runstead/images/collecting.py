"""Removes images: by name, and those that nobody used for long or that there is no room for."""

import time
from dataclasses import dataclass

from runstead.images.references import parse_reference
from runstead.images.store import ImageStore, StoredImage
from runstead.model.errors import Conflict, ImageFailure, NotFound

# Between finding an image and holding it nobody takes longer; who wants all to go need not wait as long.
_GRACE_SECONDS = 120.0
_SHORT_GRACE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed."""

    images: tuple[str, ...]  # names, else digests
    bytes: int


def remove(store: ImageStore, name: str) -> Removed:
    """Remove a name, and the image with it when that was its last; by digest, the image with all its names.

    Raises NotFound, and Conflict when a job uses the image.
    """
    with store.removing():
        image, reference = _named(store, name)
        if image.holders and (reference is None or image.references == (reference,)):
            raise Conflict(f"jobs use this image; cancel them first ({', '.join(image.holders[:5])}): {name}")
        if reference is None or image.references == (reference,):
            store.forget_image(image.record.digest)
        else:
            store.forget_reference(reference)
        freed = store.discard_garbage()
    store.empty_trash()
    return Removed((reference or image.record.digest,), freed)


def prune(
    store: ImageStore, unused_seconds: float | None, store_bytes: int | None, *, dry_run: bool = False
) -> Removed:
    """Remove images that no job holds: those not used for so long, then the oldest until the rest has room.

    None sets no bound. Layers that no image has go as well.
    """
    now = time.time()
    gone: list[StoredImage] = []
    with store.removing():
        images = store.images()
        for image in reversed(images):
            age = now - image.used_at
            if image.holders or age < (_SHORT_GRACE_SECONDS if unused_seconds == 0 else _GRACE_SECONDS):
                continue
            too_old = unused_seconds is not None and age >= unused_seconds
            rest = [one for one in images if one not in gone]
            if too_old or (store_bytes is not None and _bytes(store, rest) > store_bytes):
                gone.append(image)
        if dry_run:
            freed = _bytes(store, images) - _bytes(store, [one for one in images if one not in gone])
        else:
            for image in gone:
                store.forget_image(image.record.digest)
            freed = store.discard_garbage()
    if not dry_run:
        store.discard_halves()
        store.empty_trash()
    return Removed(tuple(name for one in gone for name in one.references or (one.record.digest,)), freed)


def _bytes(store: ImageStore, images: list[StoredImage]) -> int:
    return sum(store.size(diff_id) for diff_id in {layer for image in images for layer in image.record.layers})


def _named(store: ImageStore, name: str) -> tuple[StoredImage, str | None]:
    """Return an image with the name by which it was meant; None for the digest. Raises NotFound."""
    images = store.images()
    hexadecimal = name.removeprefix("sha256:")
    if len(hexadecimal) >= 6 and set(hexadecimal) <= set("0123456789abcdef"):
        found = _only([image for image in images if image.record.digest.startswith(f"sha256:{hexadecimal}")], name)
        if found is not None:
            return found, None
    try:
        reference = str(parse_reference(name))
    except ImageFailure as error:
        raise NotFound(error.message) from error
    for image in images:
        if reference in image.references:
            return image, reference
    raise NotFound(f"there is no such image on this machine; `runstead image list` shows what is: {name}")


def _only(found: list[StoredImage], name: str) -> StoredImage | None:
    if len(found) > 1:
        raise NotFound(f"several images have a digest that begins so; give more of it: {name}")
    return found[0] if found else None
