"""The settings as text: the page `docs/configuration.md`, a commented example file, and a plain TOML file."""

import json
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from runstead.kit.settings import READS_SIZE, SECTIONS, FlavorSettings, Section, Settings, mask
from runstead.kit.sizes import SPELLING, format_size

_WIDEST_DEFAULT = 60
_INTRODUCTION = """\
# Configuration

<!-- Made by `runstead config docs` out of src/runstead/kit/settings.py; `make format` writes it. -->

Runstead runs without any configuration. What can be set, and where; later wins:

1. the defaults below;
2. one file in TOML, the first that exists: the one named by `--config`, the one named by the variable
   `RUNSTEAD_CONFIG`, `./runstead.toml`, `~/.config/runstead/runstead.toml`, `/etc/runstead/runstead.toml`;
3. environment variables: `RUNSTEAD_<SECTION>_<KEY>`, so `RUNSTEAD_SERVER_PORT` is `port` in `[server]`;
4. flags of `runstead serve`: `--port` for a key of `[server]`, `--jobs-retention-days` for one of any other section.

A key that does not exist, or a value that is not possible, stops the start with a line that says where it was
written and what is allowed. `runstead config show` prints the values in force and where each came from;
`runstead config example` prints a file to start from.

Sizes are {spelling}. In a variable or a flag, a list is written with commas: `A,B`.
"""
_EXAMPLE_FLAVORS = """\
[flavors.cpu-basic]
cpu = 2
memory = "16 GB"
pretty_name = "CPU basic"
"""


_EXAMPLE_PRICES = """\
[prices]
cpu-basic = 0.0004
h200 = 0.0833
"""


def page() -> str:
    """Return the whole of `docs/configuration.md`."""
    parts = [_INTRODUCTION.format(spelling=SPELLING)]
    for name, model in SECTIONS.items():
        parts.append(f"## [{name}]\n\n{model.__doc__}\n\n{_table(model)}")
    parts.append(
        "## [flavors.NAME]\n\nA size of job that users ask for by `NAME`, a table each. Without any, they are "
        f"derived from what the machine has.\nThese are set in the file only.\n\n{_table(FlavorSettings)}\n"
        f"```toml\n{_EXAMPLE_FLAVORS}```\n"
    )
    parts.append(
        "## [prices]\n\nWhat a minute of a flavor costs, in the site's currency; a flavor that is not there costs "
        "nothing. What a job costs, and\nbudgets: [operations](operations.md#what-jobs-cost). These are set in the "
        f"file only.\n\n```toml\n{_EXAMPLE_PRICES}```\n"
    )
    return "\n".join(parts)


def _table(model: type[Section]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {allowed(field)} | {_default_cell(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default_cell(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "see there"
    text = toml_value(written(field, field.default))
    if text is None:
        return "unset"
    return f"`{text}`" if len(text) < _WIDEST_DEFAULT else "see `runstead config example`"


def allowed(field: FieldInfo) -> str:
    """Return in a few words what values a setting takes."""
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: Sequence[Any]) -> str:
    origin = get_origin(annotation)
    if READS_SIZE in metadata:
        return "size"
    if origin is Annotated:
        return _kind(get_args(annotation)[0], get_args(annotation)[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(one, ()) for one in get_args(annotation) if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is tuple:
        return "list of names"
    return {int: "whole number", float: "number", str: "text"}.get(annotation, "path")


def written(field: FieldInfo, value: object) -> object:
    """Return a value as people write it: sizes with their unit, paths as text."""
    if isinstance(value, int) and not isinstance(value, bool) and allowed(field) == "size":
        return format_size(value)
    return value


def toml_value(value: object) -> str | None:
    """Return a value in TOML; None for None, which TOML cannot say."""
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        parts = cast("list[object]", list(value))  # pyright: ignore[reportUnknownArgumentType]
        return "[" + ", ".join(toml_value(part) or '""' for part in parts) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def example() -> str:
    """Return a file that says every setting, each commented out at its default."""
    lines = ["# Settings of Runstead, each at its default. Take the # away from what you change.", ""]
    for name, model in SECTIONS.items():
        lines += [f"# {model.__doc__}", f"[{name}]"]
        for key, field in model.model_fields.items():
            lines += ["", *_comment(field.description or ""), f"# {key} = {_example_value(field)}"]
        lines.append("")
    lines += ["# Sizes of job; derived from the machine when there are none.", *_comment(_EXAMPLE_FLAVORS), ""]
    lines += ["# What a minute of a flavor costs.", *_comment(_EXAMPLE_PRICES)]
    return "\n".join(lines) + "\n"


def _example_value(field: FieldInfo) -> str:
    text = None if field.default_factory else toml_value(written(field, field.default))
    return text or "..."


def _comment(text: str) -> list[str]:
    import textwrap

    lines = text.strip().splitlines()
    return [f"# {part}" for line in lines for part in (textwrap.wrap(line, 110) or [""])]


def as_toml(settings: Settings) -> str:
    """Return a file that says the same as `settings`, passwords included."""
    tree = settings.model_dump(mode="json")
    flavors = cast("dict[str, dict[str, object]]", tree.pop("flavors"))
    tables: dict[str, Mapping[str, object]] = {**tree, **{f"flavors.{k}": v for k, v in flavors.items()}}
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {text}" for key, value in table.items() if (text := toml_value(value)) is not None]
        lines.append("")
    return "\n".join(lines)


def shown(settings: Settings, origins: Mapping[str, str]) -> list[dict[str, object]]:
    """Return each setting in force with its origin; passwords in URLs are masked."""
    tree = settings.model_dump(mode="json")
    rows: list[dict[str, object]] = []
    for section, table in tree.items():
        for name, value in _flat(cast("Mapping[str, object]", table)):
            key = f"{section}.{name}"
            masked = mask(value) if isinstance(value, str) else value
            rows.append({"setting": key, "value": masked, "from": origins.get(key, "default")})
    return rows


def _flat(table: Mapping[str, object]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            rows += [(f"{name}.{rest}", v) for rest, v in _flat(cast("Mapping[str, object]", value))]
        else:
            rows.append((name, value))
    return rows
