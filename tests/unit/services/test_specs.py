"""The rules a job must meet, and that each refusal names the field and never a value of the environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.model.errors import Invalid, TooLarge
from runstead.services import specs


@pytest.mark.parametrize(
    "image",
    [
        "python:3.12",
        "ubuntu",
        "ghcr.io/astral-sh/uv:python3.12-bookworm",
        "localhost:5000/a/b__c:tag",
        "registry.example.org/x@sha256:" + "0" * 64,
        "[::1]:5000/x",
        "127.0.0.1:5000/x-y.z:1",
    ],
)
def test_image_references(image: str) -> None:
    specs.check_image(image, None)


@pytest.mark.parametrize("image", ["", "--ssh", "UPPER", "a b", "a:", "../x", "a//b", "x" * 501, "a\n", "a@sha256:0"])
def test_what_cannot_be_an_image(image: str) -> None:
    with pytest.raises(Invalid, match="dockerImage"):
        specs.check_image(image, None)


def test_an_image_or_a_space_but_not_both_or_neither() -> None:
    specs.check_image(None, "owner/name")
    for pair in ((None, None), ("python", "owner/name")):
        with pytest.raises(Invalid):
            specs.check_image(*pair)
    with pytest.raises(Invalid, match="spaceId"):
        specs.check_image(None, "owner/../name")


def test_labels() -> None:
    specs.check_labels({"name": "python-3-12-ede2a725", "flag": ""})
    for labels in ({"a b": "x"}, {"a": "é"}, {"": "x"}, {"a": "x" * 101}, {"x" * 1_000_000: ""}, {"a": "x\n"}):
        with pytest.raises(Invalid, match="labels") as caught:
            specs.check_labels(labels)
        assert len(str(caught.value)) < 1000


def test_commands() -> None:
    specs.check_command(("python", "-c", ""), ())
    for command in ((), ("",), ("a\0b",), ("\ud800",)):
        with pytest.raises(Invalid, match="command"):
            specs.check_command(command, ())


def test_a_value_that_linux_cannot_pass_is_refused_without_being_shown() -> None:
    secret = "s3cr3t" * 30_000
    with pytest.raises(TooLarge, match=r"secrets\.KEY") as caught:
        specs.check_environment("secrets", {"KEY": secret})
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(Invalid, match="environment"):
        specs.check_environment("environment", {"A=B": "x"})
    with pytest.raises(TooLarge):
        specs.check_exec_size(("a",), {f"V{i}": "x" * 100_000 for i in range(20)})


@given(st.text(max_size=120))
def test_any_text_is_an_image_or_refused_quickly(text: str) -> None:
    try:
        specs.check_image(text, None)
    except Invalid:
        return
    assert " " not in text
