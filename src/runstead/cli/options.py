"""Options that several commands have, and the flags that are made from the settings."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from runstead.kit import sources
from runstead.kit.settings import SECTIONS, Settings, load_effective

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read settings from this TOML file and no other.")
]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", metavar="DIR", help="The server's data directory.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

SHORTER = {"executor.kind": ["--executor"]}


def settings_at(config: Path | None, data_dir: str | None) -> Settings:
    """Return the settings in force for a command that works on a server's data. Raises SettingsError."""
    return load_effective(config=config, flags={"server.data_dir": data_dir}).settings


def with_setting_flags(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each setting of the sections, and `--config`.

    The command is called with `effective: EffectiveSettings`, read from all sources, and with its own options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags = {key.replace(".", "__"): key for section in sections for key in _keys(section)}

        def run(config: Path | None = None, **options: Any) -> None:
            said: dict[str, str | None] = {key: options.pop(name) for name, key in flags.items()}
            command(effective=load_effective(config=config, flags=said), **options)

        own = [p for name, p in inspect.signature(command).parameters.items() if name != "effective"]
        made = [
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config),
            *(_flag(name, key) for name, key in flags.items()),
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _keys(section: str) -> list[str]:
    return [f"{section}.{name}" for name in SECTIONS[section].model_fields]


def _flag(name: str, key: str) -> inspect.Parameter:
    section, _, field = key.partition(".")
    description = SECTIONS[section].model_fields[field].description or ""
    option = typer.Option(
        sources.flag(key),
        *SHORTER.get(key, []),
        metavar=field.rpartition("_")[2].upper(),
        help=description,
        show_default=False,
        rich_help_panel=f"Settings: {section}",
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
