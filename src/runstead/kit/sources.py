"""Where settings come from: one TOML file, environment variables, flags. This module knows no setting by name.

Each source yields `Given` values: a dotted key, what was written there, and where. What a key means, and
whether it exists, is decided by whoever has the list of settings.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

PREFIX = "RUNSTEAD_"
# Variables with our prefix that are no settings: the file to read, and switches for people and tests.
RESERVED = re.compile(r"RUNSTEAD_(CONFIG|DEBUG|TEST_\w+)")
# What Kubernetes sets in every pod of a namespace that has a service named `runstead`.
SERVICE_LINK = re.compile(r"RUNSTEAD_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")
FILE_NAME = "runstead.toml"


class SettingsError(Exception):
    """A source of settings that cannot be used. `message` names the place, the key, the value and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Given:
    """One value as somebody wrote it."""

    key: str  # "server.port"
    value: Any
    origin: str  # for people: the file's path, the variable's or the flag's name


def places(environment: Mapping[str, str], directory: Path) -> list[Path]:
    """Return where a configuration file is looked for when none was named, in order."""
    home = Path(environment.get("HOME") or Path.home())
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return [directory / FILE_NAME, config_home / "runstead" / FILE_NAME, Path("/etc/runstead") / FILE_NAME]


def find_file(named: Path | None, environment: Mapping[str, str], directory: Path) -> Path | None:
    """Return the one file to read: the one named by flag or variable, which must exist, else the first found."""
    if named is None and environment.get("RUNSTEAD_CONFIG"):
        named = Path(environment["RUNSTEAD_CONFIG"])
    if named is not None:
        if not named.expanduser().is_file():
            raise SettingsError(f"There is no configuration file {named}")
        return named.expanduser()
    return next((place for place in places(environment, directory) if place.is_file()), None)


def from_file(path: Path) -> list[Given]:
    """Return what the TOML file says."""
    try:
        with path.open("rb") as stream:
            tree = tomllib.load(stream)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    return [Given(key, value, str(path)) for key, value in _leaves(tree, "")]


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def variable(key: str) -> str:
    """Return the environment variable of a key: `server.port` is RUNSTEAD_SERVER_PORT."""
    return PREFIX + key.replace(".", "_").upper()


def flag(key: str) -> str:
    """Return the flag of a key: `server.port` is --port, `jobs.retention_days` is --jobs-retention-days."""
    return "--" + key.removeprefix("server.").replace(".", "-").replace("_", "-")


def from_environment(environment: Mapping[str, str], keys: Mapping[str, str]) -> list[Given]:
    """Return what the variables with our prefix say; `keys` maps each known variable to its key.

    An unknown one is given the key it would have had, `section.rest`, so that it is refused by that name.
    """
    given: list[Given] = []
    for name in sorted(environment):
        if not name.startswith(PREFIX) or RESERVED.fullmatch(name):
            continue
        if name in keys:
            given.append(Given(keys[name], environment[name], name))
        elif not SERVICE_LINK.fullmatch(name):
            section, _, rest = name.removeprefix(PREFIX).lower().partition("_")
            given.append(Given(f"{section}.{rest}", environment[name], name))
    return given


def from_flags(flags: Mapping[str, str | None]) -> list[Given]:
    """Return what was said on the command line: key to value, None where the flag was not used."""
    return [Given(key, value, flag(key)) for key, value in flags.items() if value is not None]
