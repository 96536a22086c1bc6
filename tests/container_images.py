"""A real root directory to run jobs from, made once from the distribution's packages and kept between runs."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runstead.images.image import Image, ImageConfig

_KEPT = Path("/var/cache/runstead-tests")


def debian_root() -> Path:
    """Return a small Debian with Python; skips where it cannot be made."""
    path = _KEPT / "debian"
    if not path.is_dir():
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            pytest.skip("needs root and debootstrap")
        script = Path(__file__).parents[1] / "scripts" / "debian-root"
        done = subprocess.run([str(script), str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"debootstrap failed:\n{done.stdout[-2000:]}")
    return path


def uv_layer() -> Path:
    """Return a layer that adds uv."""
    from uv import find_uv_bin

    path = _KEPT / "uv"
    target = path / "usr/local/bin/uv"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f"uv.{os.getpid()}")
        shutil.copy2(find_uv_bin(), fresh)
        fresh.rename(target)
    return path


class OneImage:
    """Stands for the images of a machine that has one, whatever it is called."""

    def __init__(self, config: ImageConfig | None = None, *more: Path) -> None:
        self.config = config or ImageConfig(environment=("FROM_IMAGE=1",))
        self.more = more
        self.held: dict[str, str] = {}

    async def open(self) -> None:
        debian_root()

    async def close(self) -> None:
        pass

    async def get(self, reference: str, tell: Callable[[str], None]) -> Image:
        return self.find(reference)

    def find(self, reference: str) -> Image:
        return Image(reference, "sha256:" + "0" * 64, self.config, (debian_root(), uv_layer(), *self.more))

    def hold(self, image: Image, name: str) -> None:
        self.held[name] = image.reference

    def release(self, name: str) -> None:
        self.held.pop(name, None)

    def holders(self) -> list[str]:
        return list(self.held)
