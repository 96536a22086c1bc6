"""Credentials from the files and helper programs of other tools."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runstead.images.credentials import Credentials, find_credentials
from runstead.images.references import parse_reference
from runstead.model.errors import ImageFailure


def auth(name: str, password: str = "pass:word") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def found(home: Path, config: Any, image: str, **environment: str) -> Credentials | None:
    path = home / ".docker" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    return find_credentials(parse_reference(image), None, {"HOME": str(home), **environment})


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("ghcr.io", "ghcr.io/a/b"),
        ("https://ghcr.io/v1/", "ghcr.io/a/b"),
        ("https://index.docker.io/v1/", "python"),
        ("docker.io", "python"),
        ("ghcr.io/a", "ghcr.io/a/b"),
        ("ghcr.io/a/b", "ghcr.io/a/b:tag"),
        ("127.0.0.1:5000", "127.0.0.1:5000/x"),
    ],
)
def test_where_they_stand(tmp_path: Path, key: str, image: str) -> None:
    config = {"auths": {key: auth("bob"), "other.example": auth("eve")}}
    assert found(tmp_path, config, image) == Credentials("bob", "pass:word")


def test_the_closest_counts(tmp_path: Path) -> None:
    config = {"auths": {"ghcr.io": auth("bob"), "ghcr.io/team": auth("team")}}
    for image, name in (("ghcr.io/team/x", "team"), ("ghcr.io/teams/x", "bob")):
        credentials = found(tmp_path, config, image)
        assert credentials is not None
        assert credentials.username == name


def test_none_and_tokens(tmp_path: Path) -> None:
    assert found(tmp_path, {}, "python") is None
    assert found(tmp_path, {"auths": {"docker.io": {}}}, "python") is None
    assert found(tmp_path, [], "python") is None
    token = found(tmp_path, {"auths": {"ghcr.io": {"identitytoken": "geheim", **auth("bob")}}}, "ghcr.io/x")
    assert token is not None
    assert token.identity_token == "geheim"
    assert "geheim" not in repr(token)
    assert "pass:word" not in repr(token)


def test_the_order_of_files(tmp_path: Path) -> None:
    places = {
        "REGISTRY_AUTH_FILE": tmp_path / "named.json",
        "XDG_RUNTIME_DIR": tmp_path / "run/containers/auth.json",
        "": tmp_path / ".config/containers/auth.json",
        "DOCKER_CONFIG": tmp_path / "docker/config.json",
    }
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {"ghcr.io": auth(path.name + path.parent.name)}}))
    environment = {
        "HOME": str(tmp_path),
        "REGISTRY_AUTH_FILE": str(places["REGISTRY_AUTH_FILE"]),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }
    for path in places.values():
        credentials = find_credentials(parse_reference("ghcr.io/x"), None, environment)
        assert credentials is not None
        assert credentials.username == path.name + path.parent.name
        path.unlink()
    assert find_credentials(parse_reference("ghcr.io/x"), None, environment) is None


def test_helper_programs(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    helper = programs / "docker-credential-test"
    helper.write_text(
        "#!/bin/sh\nread server\n"
        'case "$server" in\n'
        'ghcr.io) echo \'{"ServerURL": "ghcr.io", "Username": "bob", "Secret": "s"}\' ;;\n'
        'https://index.docker.io/v1/) echo \'{"Username": "<token>", "Secret": "i"}\' ;;\n'
        "*) echo credentials not found in native keychain; exit 1 ;;\nesac\n"
    )
    helper.chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    monkey = pytest.MonkeyPatch()
    monkey.setenv("PATH", path["PATH"])
    try:
        assert found(tmp_path, {"credsStore": "test"}, "ghcr.io/x", **path) == Credentials("bob", "s")
        assert found(tmp_path, {"credHelpers": {"ghcr.io": "test"}}, "ghcr.io/x", **path) == Credentials("bob", "s")
        assert found(tmp_path, {"credsStore": "test"}, "python", **path) == Credentials("", "", "i")
        assert found(tmp_path, {"credsStore": "test"}, "quay.io/x", **path) is None
        with pytest.raises(ImageFailure, match="docker-credential-nowhere"):
            found(tmp_path, {"credsStore": "nowhere"}, "quay.io/x", **path)
        with pytest.raises(ImageFailure, match="named by a path"):
            found(tmp_path, {"credsStore": "../x"}, "quay.io/x", **path)
    finally:
        monkey.undo()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageFailure, match="is not there"):
        find_credentials(parse_reference("python"), tmp_path / "nothing", {})
    (tmp_path / "bad").write_text("{")
    with pytest.raises(ImageFailure, match="cannot be read"):
        find_credentials(parse_reference("python"), tmp_path / "bad", {})
