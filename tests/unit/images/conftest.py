"""A real registry, and libraries on folders of the test."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import Archive, Built, RegistryServer, build, registry
from runstead.images.library import ImageLibrary
from runstead.kit.settings import ImageSettings

Opener = Callable[..., Awaitable[ImageLibrary]]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    if os.geteuid() != 0:
        pytest.skip("images can be unpacked only as root")
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
async def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Opener]:
    """Open libraries, by default on one folder; settings are given by name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    opened: list[ImageLibrary] = []

    async def open_one(folder: str = "images", **settings: Any) -> ImageLibrary:
        one = ImageLibrary(tmp_path / folder, ImageSettings(**settings))
        await one.open()
        opened.append(one)
        return one

    yield open_one
    for one in opened:
        await one.close()


def small(*texts: str, **facts: Any) -> Built:
    """An image with a layer for each text, each in a file of its own."""
    return build([Archive().add(f"file{n}", text.encode()).bytes() for n, text in enumerate(texts)], **facts)
