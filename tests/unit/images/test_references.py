"""Names of images."""

import pytest

from runstead.images.references import parse_reference
from runstead.model.errors import ImageFailure

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("python:3.12", "docker.io/library/python:3.12", "python:3.12"),
        ("python", "docker.io/library/python:latest", "python:latest"),
        (" ubuntu ", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("huggingface/trl", "docker.io/huggingface/trl:latest", "huggingface/trl:latest"),
        ("index.docker.io/a/b:1", "docker.io/a/b:1", "a/b:1"),
        ("docker.io/python", "docker.io/library/python:latest", "python:latest"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        (f"python:3.12@{DIGEST}", f"docker.io/library/python@{DIGEST}", f"python@{DIGEST}"),
        ("docker://python:3.12", "docker.io/library/python:3.12", "python:3.12"),
        ("pytorch/pytorch:2.6.0-cuda12.4-cudnn9-devel", "docker.io/pytorch/pytorch:2.6.0-cuda12.4-cudnn9-devel", None),
        ("hf.co/spaces/lhoestq/duck_DB", "registry.hf.space/lhoestq-duck-db:latest", None),
    ],
)
def test_what_names_mean(text: str, full: str, familiar: str | None) -> None:
    found = parse_reference(text)
    assert str(found) == full
    assert familiar is None or found.familiar == familiar
    assert str(parse_reference(full)) == full
    assert str(parse_reference(found.familiar)) == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Python",
        "a b",
        "a:",
        "a:b:c",
        "a@sha256:12",
        "a@",
        "../../etc/passwd",
        "ghcr.io/",
        "ghcr.io/../x",
        "http://ghcr.io/a",
        "a/b?x=1",
        "ghcr.io/a%2fb",
        "user@host/x",
        "x" * 300,
        "a:" + "t" * 129,
        "a\nb",
        "-x",
        "--output=/etc/passwd",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ImageFailure, match="images are named like") as caught:
        parse_reference(text)
    assert not caught.value.again
