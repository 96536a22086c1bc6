"""The recorded vectors, loaded once, as fixtures."""

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from runstead.xet.hashes import hash_from_text
from runstead.xet.xorb import verify_xorb, walk_xorb
from runstead.xet.xorb_layout import XorbFacts, XorbLayout

FOLDER = Path(__file__).parents[2] / "vectors" / "xet"


@cache
def _inputs() -> Any:
    spec = importlib.util.spec_from_file_location("xet_vector_inputs", FOLDER / "inputs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.INPUTS


@cache
def _input(name: str) -> bytes:
    return _inputs()[name]()


@cache
def _facts(name: str) -> XorbFacts:
    return verify_xorb((FOLDER / "xorbs" / f"{name}.xorb").read_bytes(), hash_from_text(name))


@dataclass(frozen=True)
class Vectors:
    """What was recorded."""

    data: dict[str, Any]

    @property
    def files(self) -> dict[str, Any]:
        return self.data["files"]

    @property
    def xorbs(self) -> dict[str, Any]:
        return self.data["xorbs"]

    def input(self, name: str) -> bytes:
        return _input(name)

    def terms(self, name: str) -> list[dict[str, Any]]:
        """Return the terms of a file; where the record says that all are alike, it lists only two."""
        file = self.files[name]
        terms = [term for term in file["terms"] if isinstance(term, dict)]
        return terms if len(terms) == file["n_terms"] else terms[:1] * file["n_terms"]

    def read(self, path: str) -> bytes:
        return (FOLDER / path).read_bytes()

    def json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def bodies(self) -> dict[str, bytes]:
        """Return the recorded xorb bodies by name."""
        return {path.stem: path.read_bytes() for path in sorted((FOLDER / "xorbs").glob("*.xorb"))}

    def shards(self) -> dict[str, bytes]:
        """Return every recorded shard by its path."""
        paths = sorted([*(FOLDER / "shards").glob("*.shard"), *(FOLDER / "dedup").glob("*.shard")])
        return {str(path.relative_to(FOLDER)): path.read_bytes() for path in paths}

    def facts(self, name: str) -> XorbFacts:
        """Return what verifying a recorded body gives."""
        return _facts(name)

    def layouts(self) -> dict[bytes, XorbLayout]:
        """Return the layout of each recorded body by xorb hash."""
        return {hash_from_text(name): walk_xorb(body) for name, body in self.bodies().items()}

    def chunk_list(self, name: str) -> tuple[bytes, list[int]]:
        """Return hashes and lengths of the chunks of a xorb."""
        chunks = self.xorbs[name]["chunks"]
        return b"".join(hash_from_text(text) for text, _ in chunks), [length for _, length in chunks]


@pytest.fixture(scope="session")
def vectors() -> Vectors:
    return Vectors(json.loads((FOLDER / "vectors.json").read_text()))
