"""The folder of images on this machine. Any number of processes use it at once, and any may be killed at any instant.

    layers/<diff id>/          an unpacked layer; there as a whole or not at all
    records/<diff id>.json     what is known of it
    images/<digest>.json       an image of which every layer is here; its time is that of the last use
    references/<hash>.json     what a name means
    holds/<digest>.of          what those hold who use this image
    holds/<attempt>.held       the same file: a link to it is made in a fifth of the time that a file takes
    holds/<hash>.json          the same with the holder's name, where it has none for files or there can be no link
    pulls/<name>               these layers are being fetched, for as long as the file is locked
    unpacking/<diff id>.*      half a layer; locks/<diff id> is held by whoever works on it
    trash/                     on its way out

A layer that no image and nobody else names is garbage. Whoever begins to count on a layer does so under the shared
`lock`, whoever removes one under the exclusive.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runstead.images import locks, records
from runstead.images.image import Image
from runstead.images.records import ImageRecord, LayerRecord, ReferenceRecord
from runstead.model.errors import ImageFailure

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_FOLDERS = ("layers", "records", "images", "references", "holds", "pulls", "unpacking", "locks", "trash")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image with what it costs."""

    record: ImageRecord
    references: tuple[str, ...]
    bytes: int  # of all its layers; other images may share them
    used_at: float  # seconds since the epoch
    holders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name meant at the last look, and what must still be there for that to be so."""

    stamp: tuple[int, int]
    image: Image
    needed: tuple[str, ...]


class ImageStore:
    """Finds, adds and keeps images. All methods do file work and none of them waits for a network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = str(folder)
        self._lock = folder / "lock"
        self._found: dict[str, _Found] = {}

    def open(self) -> None:
        """Make the folder and remove what was left half done; what others work on right now stays."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in _FOLDERS:
            (self.folder / name).mkdir(exist_ok=True, mode=0o700)
        self.discard_halves()
        with locks.locked(self._lock):
            for path in (self.folder / "layers").iterdir():
                if not self._counts(path.name):
                    self._discard_layer(path.name)
            for path in (self.folder / "holds").glob("*.of"):  # half of one may have been left by a power cut
                path.unlink()
        self.empty_trash()

    def discard_halves(self) -> None:
        """Remove layers that are half unpacked and that nobody works on any more."""
        for path in (self.folder / "unpacking").iterdir():
            lock = self.folder / "locks" / path.name.partition(".")[0]
            held = locks.take(lock, wait=False)
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                locks.give_back(lock, held)

    def has_layer(self, diff_id: str) -> bool:
        """Whether a layer is here."""
        return (self.folder / "layers" / diff_id).is_dir()

    def layer(self, diff_id: str) -> LayerRecord | None:
        """Return what is known of a layer that is here."""
        return records.layer_from(self.folder / "records" / f"{diff_id}.json") if self.has_layer(diff_id) else None

    @contextlib.contextmanager
    def pulling(self, diff_ids: Sequence[str]) -> Generator[None]:
        """Keep layers, those that are here and those that come, until the image they are for is added."""
        path = self.folder / "pulls" / f"{os.getpid()}-{time.monotonic_ns()}"
        with locks.locked(self._lock, shared=True):
            held = locks.take(path, wait=True)
            path.write_text("\n".join(diff_ids))
        try:
            yield
        finally:
            if held is not None:
                locks.give_back(path, held)

    @contextlib.contextmanager
    def unpacking(self, diff_id: str) -> Generator[Path | None]:
        """Give an empty directory to unpack a layer into, or None when it is here by now; others wait meanwhile."""
        lock = self.folder / "locks" / diff_id
        held = locks.take(lock, wait=True)
        try:
            if self.has_layer(diff_id):
                yield None
                return
            for left in (self.folder / "unpacking").glob(f"{diff_id}.*"):
                shutil.rmtree(left)
            path = self.folder / "unpacking" / f"{diff_id}.{os.getpid()}"
            path.mkdir(mode=0o755)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            if held is not None:
                locks.give_back(lock, held)

    def discard_unpacked(self, diff_id: str, pid: int) -> None:
        """Remove what a process that is gone has unpacked of a layer."""
        shutil.rmtree(self.folder / "unpacking" / f"{diff_id}.{pid}", ignore_errors=True)

    def add_layer(self, unpacked: Path, record: LayerRecord) -> None:
        """Make an unpacked directory the layer; by whoever is `unpacking` it."""
        records.write_json(self.folder / "records" / f"{record.diff_id}.json", records.layer_to(record))
        unpacked.rename(self.folder / "layers" / record.diff_id)

    def settle(self, diff_ids: Sequence[str]) -> None:
        """Bring layers to the disk, so that they count after a power cut as well."""
        loose = [one for diff_id in diff_ids if (one := self.layer(diff_id)) is not None and one.boot is not None]
        if not loose:
            return
        sync_file_system(self.folder)
        for one in loose:
            if self.has_layer(one.diff_id):
                durable = LayerRecord(one.diff_id, one.entries, one.bytes, None)
                records.write_json(self.folder / "records" / f"{one.diff_id}.json", records.layer_to(durable))

    def add_image(self, record: ImageRecord, references: Sequence[ReferenceRecord]) -> bool:
        """Remember an image; False when one of its layers is not here, which is then to be fetched."""
        with locks.locked(self._lock, shared=True):
            if not all(self.has_layer(diff_id) for diff_id in record.layers):
                return False
            records.write_json(self._image_path(record.digest), records.image_to(record))
            for reference in references:
                self._write_reference(reference)
        return True

    def checked(self, reference: str, at: float) -> None:
        """Remember that the registry was asked, and the name means what it meant."""
        with locks.locked(self._lock, shared=True):
            now = self.reference(reference)
            if now is not None:
                self._write_reference(ReferenceRecord(now.reference, now.image, now.digest, at))

    def reference(self, reference: str) -> ReferenceRecord | None:
        """Return what a full name means here."""
        return records.reference_from(self._reference_path(reference))

    def image(self, digest: str) -> ImageRecord | None:
        """Return the image of a manifest's digest."""
        return records.image_from(self._image_path(digest))

    def find(self, reference: str) -> Image | None:
        """Return the image that a full name means, if it is here."""
        try:
            status = os.stat(self._place("references", f"{records.file_name(reference)}.json"))  # noqa: PTH116 (a string)
        except OSError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns)
        known = self._found.get(reference)
        if known is None or known.stamp != stamp:
            means = self.reference(reference)
            record = means and self.image(means.image)
            if record is None:
                return None
            image = Image(reference, record.digest, record.config, self._lowest_first(record))
            needed = (str(self._image_path(image.digest)), *map(str, image.layers))
            known = self._found[reference] = _Found(stamp, image, needed)
        if not all(map(os.path.exists, known.needed)):
            del self._found[reference]
            return None
        return known.image

    def used(self, digest: str) -> None:
        """Note that an image was used just now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._place("images", f"{records.digest_name(digest)}.json"))

    def hold(self, image: Image, name: str) -> None:
        """Keep an image's layers until `release`. Raises ImageFailure when they are not there any more."""
        with locks.locked(self._lock, shared=True):
            if not all(map(os.path.exists, image.layers)):
                raise ImageFailure(f"the image was removed just now; try again: {image.reference}", again=True)
            if not (_PLAIN.fullmatch(name) and self._link_hold(image, name)):
                held = {"name": name, "digest": image.digest, "layers": [layer.name for layer in image.layers]}
                records.write_json(self.folder / "holds" / f"{records.file_name(name)}.json", held)
            self.used(image.digest)

    def release(self, name: str) -> None:
        """Give up a hold. Idempotent."""
        for file in (f"{name}.held", f"{records.file_name(name)}.json"):
            if "/" not in file:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._place("holds", file))  # noqa: PTH108 (a string)

    def holds(self) -> list[tuple[str, str, list[str]]]:
        """Return each holder's name with the digest and the layers that it holds."""
        found = [(path, records.read_json(path)) for path in (self.folder / "holds").iterdir() if path.suffix != ".of"]
        return [(one.get("name", path.stem), one["digest"], one["layers"]) for path, one in found if one is not None]

    def images(self) -> list[StoredImage]:
        """Return all images, those that were used last first."""
        names: dict[str, list[str]] = {}
        for one in self.references():
            names.setdefault(one.image, []).append(one.reference)
        holders: dict[str, list[str]] = {}
        for name, digest, _ in self.holds():
            holders.setdefault(digest, []).append(name)
        found: list[StoredImage] = []
        for path in (self.folder / "images").glob("*.json"):
            record = records.image_from(path)
            if record is None:
                continue
            size = sum(self.size(diff_id) for diff_id in set(record.layers))
            with contextlib.suppress(FileNotFoundError):
                used_at = path.stat().st_mtime
                held_by = tuple(sorted(holders.get(record.digest, ())))
                known_as = tuple(sorted(names.get(record.digest, ())))
                found.append(StoredImage(record, known_as, size, used_at, held_by))
        return sorted(found, key=lambda one: one.used_at, reverse=True)

    def references(self) -> list[ReferenceRecord]:
        """Return all names."""
        found = [records.reference_from(path) for path in (self.folder / "references").glob("*.json")]
        return [one for one in found if one is not None]

    def layers(self) -> list[str]:
        """Return the diff ids of all layers."""
        return [path.name for path in (self.folder / "layers").iterdir()]

    def size(self, diff_id: str) -> int:
        """Return the bytes of a layer; 0 when it is not here."""
        record = self.layer(diff_id)
        return record.bytes if record is not None else 0

    @contextlib.contextmanager
    def removing(self) -> Generator[None]:
        """Keep everybody from counting on anything, while things are removed."""
        with locks.locked(self._lock):
            yield

    def forget_reference(self, reference: str) -> None:
        """Remove a name; while `removing`."""
        self._reference_path(reference).unlink(missing_ok=True)

    def forget_image(self, digest: str) -> None:
        """Remove an image with its names, but not its layers; while `removing`."""
        for one in self.references():
            if one.image == digest:
                self.forget_reference(one.reference)
        self._image_path(digest).unlink(missing_ok=True)
        (self.folder / "holds" / f"{records.digest_name(digest)}.of").unlink(missing_ok=True)

    def discard_garbage(self) -> int:
        """Move layers that nobody names to the trash, and return their bytes; while `removing`."""
        named = {diff_id for _, _, layers in self.holds() for diff_id in layers} | self._being_pulled()
        for path in (self.folder / "images").glob("*.json"):
            record = records.image_from(path)
            named.update(record.layers if record is not None else ())
        freed = 0
        for diff_id in self.layers():
            if diff_id not in named:
                freed += self.size(diff_id)
                self._discard_layer(diff_id)
        return freed

    def empty_trash(self) -> None:
        """Delete what was discarded; takes as long as it takes."""
        for path in (self.folder / "trash").iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def _link_hold(self, image: Image, name: str) -> bool:
        """Make a name a holder by a link; False where that is not possible."""
        common = self._place("holds", f"{records.digest_name(image.digest)}.of")
        mine = self._place("holds", f"{name}.held")
        for _ in range(3):
            try:
                os.link(common, mine)
            except FileExistsError:  # what it held before; nobody removes anything meanwhile
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(mine)  # noqa: PTH108 (a string)
            except FileNotFoundError:
                held = {"digest": image.digest, "layers": [layer.name for layer in image.layers]}
                records.write_json(Path(common), held)
            except OSError:  # a file system without links, or as many of them as it allows
                return False
            else:
                return True
        return False

    def _being_pulled(self) -> set[str]:
        named: set[str] = set()
        for path in (self.folder / "pulls").iterdir():
            held = locks.take(path, wait=False)
            if held is None:
                named.update(path.read_text().split())
            else:
                locks.give_back(path, held)
        return named

    def _counts(self, diff_id: str) -> bool:
        record = records.layer_from(self.folder / "records" / f"{diff_id}.json")
        return record is not None and record.boot in (None, boot_id())

    def _discard_layer(self, diff_id: str) -> None:
        path = self.folder / "layers" / diff_id
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.folder / "trash" / f"{diff_id}.{time.monotonic_ns()}")
        (self.folder / "records" / f"{diff_id}.json").unlink(missing_ok=True)

    def _lowest_first(self, record: ImageRecord) -> tuple[Path, ...]:
        # What is there twice counts where it is uppermost: it hides there all that it held below.
        upper_first = dict.fromkeys(reversed(record.layers))
        return tuple(self.folder / "layers" / diff_id for diff_id in reversed(upper_first))

    def _write_reference(self, record: ReferenceRecord) -> None:
        records.write_json(self._reference_path(record.reference), records.reference_to(record))

    def _place(self, folder: str, name: str) -> str:
        return f"{self._prefix}/{folder}/{name}"

    def _image_path(self, digest: str) -> Path:
        return self.folder / "images" / f"{records.digest_name(digest)}.json"

    def _reference_path(self, reference: str) -> Path:
        return self.folder / "references" / f"{records.file_name(reference)}.json"


def boot_id() -> str:
    """Return what is another after every start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def sync_file_system(folder: Path) -> None:
    """Bring everything on the file system of a folder to the disk."""
    import ctypes

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(fd)
