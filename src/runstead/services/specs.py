"""What a job may ask for: the rules that a request must meet before it is stored."""

import re
from collections.abc import Mapping

from runstead.model.errors import Invalid, TooLarge
from runstead.model.ports import NetworkGroup

MAX_LABELS = 100
MAX_LABEL_CHARACTERS = 100
MAX_ARGUMENTS = 10_000
# One argument or variable may have MAX_ARG_STRLEN bytes on Linux, all of them a quarter of the 8 MB stack.
MAX_STRING_BYTES = 131_071
MAX_EXEC_BYTES = 1_500_000
MAX_ATTEMPTS = 100

MAX_GROUP_CHARACTERS = 46
MAX_ALIAS_CHARACTERS = 34
MAX_ALIASES = 20

_GROUP = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[^=\0]+")
# The reference grammar of OCI/Docker: [host[:port]/]path[:tag][@digest].
_IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,})?"
)
_SPACE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_command(command: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Refuse an empty command, empty or NUL-bearing words, and more than Linux passes to a program."""
    if not command:
        raise Invalid("a job needs a command of one or more words", "command")
    if len(command) + len(arguments) > MAX_ARGUMENTS:
        raise TooLarge(f"at most {MAX_ARGUMENTS:,} words, not {len(command) + len(arguments):,}", "command")
    if not command[0]:
        raise Invalid("the first word names the program and cannot be empty", "command[0]")
    for name, words in (("command", command), ("arguments", arguments)):
        for index, word in enumerate(words):
            _check_string(word, f"{name}[{index}]")


def check_environment(field: str, variables: Mapping[str, str]) -> None:
    """Refuse names and values that no Linux process can be given. The message never shows a value."""
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            raise Invalid(f"a variable's name is not empty and has no '=' and no NUL, not {name[:100]!r}", field)
        _check_string(f"{name}={value}", f"{field}.{name[:100]}")


def check_exec_size(words: tuple[str, ...], variables: Mapping[str, str]) -> None:
    """Refuse a command and environment that together are more than a program can be started with."""
    total = sum(len(w.encode()) + 9 for w in words)
    total += sum(len(n.encode()) + len(v.encode()) + 10 for n, v in variables.items())
    if total > MAX_EXEC_BYTES:
        raise TooLarge(
            f"command, environment and secrets have {total:,} bytes together and Linux starts no program with more "
            f"than {MAX_EXEC_BYTES:,}; put the data into a file or a bucket",
            "environment",
        )


def is_label(text: str) -> bool:
    """Say whether a text may stand in a label, as its key or its value."""
    return len(text) <= MAX_LABEL_CHARACTERS and _LABEL.fullmatch(text) is not None


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels outside the Hub's rules (wire-jobs §5)."""
    if len(labels) > MAX_LABELS:
        raise TooLarge(f"at most {MAX_LABELS} labels, not {len(labels):,}", "labels")
    for key, value in labels.items():
        for text, what in ((key, "key"), (value, "value")):
            if len(text) > MAX_LABEL_CHARACTERS:
                raise Invalid(
                    f"a label's {what} has at most {MAX_LABEL_CHARACTERS} characters, not {len(text):,}: "
                    f"{text[:40]!r}...",
                    f"labels.{key[:40]}",
                )
            if not is_label(text):
                raise Invalid(
                    f"a label's {what} has letters, digits, '.', '_' and '-' only, not {text!r}", f"labels.{key[:40]}"
                )
        if not key:
            raise Invalid("a label's key cannot be empty", "labels")


def check_network(network: NetworkGroup | None) -> None:
    """Refuse names of groups and aliases outside the Hub's rules (wire-jobs §15)."""
    if network is None:
        return
    if not _GROUP.fullmatch(network.name) or len(network.name) > MAX_GROUP_CHARACTERS:
        raise Invalid(
            f"a group's name has 1 to {MAX_GROUP_CHARACTERS} lower-case letters, digits and dashes, and no dash at its "
            f"ends, not {network.name[:100]!r}",
            "network.group",
        )
    if len(network.aliases) > MAX_ALIASES:
        raise TooLarge(f"at most {MAX_ALIASES} aliases, not {len(network.aliases)}", "network.aliases")
    for alias in network.aliases:
        if not _GROUP.fullmatch(alias) or len(alias) > MAX_ALIAS_CHARACTERS:
            raise Invalid(
                f"an alias has 1 to {MAX_ALIAS_CHARACTERS} lower-case letters, digits and dashes, no dash at its ends, "
                f"not {alias[:100]!r}",
                "network.aliases",
            )
    if len(set(network.aliases)) != len(network.aliases):
        raise Invalid("an alias is given twice", "network.aliases")


def check_image(docker_image: str | None, space_id: str | None) -> None:
    """Refuse a text that cannot be an image reference, and none or two of image and Space."""
    if (docker_image is None) == (space_id is None):
        raise Invalid("name either a Docker image or a Space, one of them", "dockerImage")
    if docker_image is not None and (len(docker_image) > 500 or not _IMAGE.fullmatch(docker_image)):
        raise Invalid(
            f"not an image reference like 'python:3.12' or 'ghcr.io/org/name@sha256:...': {docker_image[:100]!r}",
            "dockerImage",
        )
    if space_id is not None and (len(space_id) > 200 or not _SPACE.fullmatch(space_id)):
        raise Invalid(f"not a Space id like 'owner/name': {space_id[:100]!r}", "spaceId")


def _check_string(text: str, field: str) -> None:
    if "\0" in text:
        raise Invalid("contains a NUL character, which no program can be given", field)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Invalid("contains half of a surrogate pair, which is no text", field) from None
    if size > MAX_STRING_BYTES:
        raise TooLarge(
            f"has {size:,} bytes and Linux passes at most {MAX_STRING_BYTES:,} in one string; "
            "put the data into a file or a bucket",
            field,
        )
