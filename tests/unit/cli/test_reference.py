"""The settings as text: the committed page is the generated one, and what is generated can be read back."""

import tomllib
from pathlib import Path

from runstead.cli import reference
from runstead.kit.settings import SECTIONS, DatabaseSettings, FlavorSettings, ServerSettings, Settings, load_settings

ROOT = Path(__file__).parents[3]


def test_the_committed_page_is_the_generated_one() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference.page(), "run `make format`"


def test_the_page_names_every_setting_and_no_machine() -> None:
    page = reference.page()
    for model in (*SECTIONS.values(), FlavorSettings):
        for name in model.model_fields:
            assert f"| `{name}` |" in page
    assert str(Path.home()) not in page


def test_the_example_is_toml_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "runstead.toml"
    file.write_text(reference.example())
    environment = {"HOME": str(tmp_path)}
    assert load_settings(config=file, environment=environment) == load_settings(
        environment=environment, directory=tmp_path
    )


def test_every_line_of_the_example_may_be_uncommented(tmp_path: Path) -> None:
    lines = reference.example().partition("# Sizes of job;")[0].splitlines()
    keys = [line.removeprefix("# ") if " = " in line and not line.endswith("...") else line for line in lines]
    settings = [line for line in keys if line.startswith("[") or (" = " in line and not line.startswith("#"))]
    tree = tomllib.loads("\n".join(settings))
    assert Settings.model_validate({**tree, "server": {**tree["server"], "data_dir": tmp_path}})


def test_a_dump_says_the_same(tmp_path: Path) -> None:
    settings = Settings(
        server=ServerSettings(data_dir=tmp_path / 'a "b" ü', public_url="https://x"),
        database=DatabaseSettings(url="postgresql://joe:hunter2@db/x"),
        flavors={"tiny": FlavorSettings(cpu=0.5, memory=2**30, pretty_name="Ünïcode")},
        prices={"tiny": 0.25},
    )
    file = tmp_path / "runstead.toml"
    file.write_text(reference.as_toml(settings))
    assert load_settings(config=file, environment={}) == settings


def test_shown_values_hide_passwords() -> None:
    settings = Settings(database=DatabaseSettings(url="postgresql://joe:hunter2@db/x"))
    rows = {row["setting"]: row for row in reference.shown(settings, {"database.url": "RUNSTEAD_DATABASE_URL"})}
    assert rows["database.url"]["value"] == "postgresql://joe:***@db/x"
    assert rows["database.url"]["from"] == "RUNSTEAD_DATABASE_URL"
    assert rows["server.port"]["from"] == "default"
