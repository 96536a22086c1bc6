"""Where settings come from, which source wins, and what is refused."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from runstead.kit.settings import (
    SECTIONS,
    FlavorSettings,
    Settings,
    SettingsError,
    load_effective,
    load_settings,
    mask,
)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing is configured."""
    return {"HOME": str(tmp_path / "home")}


def load(tmp_path: Path, environment: dict[str, str], text: str | None = None, **flags: str) -> Settings:
    if text is not None:
        (tmp_path / "runstead.toml").write_text(text)
    said: dict[str, str | None] = {name.replace("__", "."): value for name, value in flags.items()}
    return load_settings(flags=said, environment=environment, directory=tmp_path)


def refusal(tmp_path: Path, environment: dict[str, str], text: str | None = None, **flags: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path, environment, text, **flags)
    return refused.value.message


def test_defaults(tmp_path: Path, home: dict[str, str]) -> None:
    settings = load(tmp_path, home)
    assert settings.server.host == "127.0.0.1"
    assert settings.server.data_dir == tmp_path / "home/.local/share/runstead"
    assert settings.database_url == f"sqlite:///{tmp_path}/home/.local/share/runstead/runstead.db"
    assert settings.jobs.default_timeout_seconds == 1800
    assert "HTTPS_PROXY" in settings.executor.pass_environment
    assert settings.flavors == {}


def test_data_dir_honors_xdg(tmp_path: Path, home: dict[str, str]) -> None:
    settings = load(tmp_path, {**home, "XDG_DATA_HOME": str(tmp_path / "data")})
    assert settings.server.data_dir == tmp_path / "data/runstead"


def test_later_sources_win(tmp_path: Path, home: dict[str, str]) -> None:
    file = "[server]\nport = 1001\nhost = '0.0.0.1'\nlog_level = 'debug'\n"
    variables = {**home, "RUNSTEAD_SERVER_PORT": "1002", "RUNSTEAD_SERVER_HOST": "0.0.0.2"}
    settings = load(tmp_path, variables, file, server__port="1003")
    assert (settings.server.port, settings.server.host, settings.server.log_level) == (1003, "0.0.0.2", "debug")


def test_origins(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "runstead.toml").write_text("[server]\nhost = '::1'\n")
    effective = load_effective(
        flags={"server.port": "1", "server.data_dir": None, "jobs.retention_days": "2"},
        environment={**home, "RUNSTEAD_EXECUTOR_MEMORY": "2 GB"},
        directory=tmp_path,
    )
    assert effective.origins == {
        "server.host": str(tmp_path / "runstead.toml"),
        "executor.memory": "RUNSTEAD_EXECUTOR_MEMORY",
        "server.port": "--port",
        "jobs.retention_days": "--jobs-retention-days",
    }


def test_first_file_found_is_the_only_one_read(tmp_path: Path, home: dict[str, str]) -> None:
    config_home = tmp_path / "home/.config/runstead"
    config_home.mkdir(parents=True)
    (config_home / "runstead.toml").write_text("[server]\nport = 1\nhost = '::1'\n")
    assert load(tmp_path, home).server.port == 1
    assert load(tmp_path, home, "[server]\nport = 2\n").server.host == "127.0.0.1"
    named = tmp_path / "named.toml"
    named.write_text("[server]\nport = 3\n")
    assert load(tmp_path, {**home, "RUNSTEAD_CONFIG": str(named)}).server.port == 3
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 4\n")
    assert load_settings(config=other, environment={**home, "RUNSTEAD_CONFIG": str(named)}).server.port == 4


def test_named_file_must_exist(tmp_path: Path, home: dict[str, str]) -> None:
    assert "no/such.toml" in refusal(tmp_path, {**home, "RUNSTEAD_CONFIG": "no/such.toml"})


def test_broken_toml_says_where(tmp_path: Path, home: dict[str, str]) -> None:
    message = refusal(tmp_path, home, "[server\n")
    assert str(tmp_path / "runstead.toml") in message
    assert "line 1" in message


def test_values_are_text_everywhere(tmp_path: Path, home: dict[str, str]) -> None:
    settings = load(
        tmp_path,
        {
            **home,
            "RUNSTEAD_EXECUTOR_PASS_ENVIRONMENT": "A, B,",
            "RUNSTEAD_EXECUTOR_DISK": "1 TB",
            "RUNSTEAD_SERVER_DATA_DIR": "~/x",
        },
        executor__cpus="1.5",
    )
    assert settings.executor.pass_environment == ("A", "B")
    assert settings.executor.disk == 10**12
    assert settings.executor.cpus == 1.5
    assert settings.server.data_dir.is_absolute()


def test_flavors(tmp_path: Path, home: dict[str, str]) -> None:
    settings = load(
        tmp_path, home, "[flavors.cpu-basic]\ncpu = 2\nmemory = '16 GB'\n[flavors.tiny]\ncpu = 0.5\nmemory = 1\n"
    )
    assert settings.flavors["cpu-basic"] == FlavorSettings(cpu=2, memory=16 * 10**9)
    assert settings.flavors["tiny"].memory == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RUNSTEAD_SERVER_PORT", "99999", "less than or equal to 65535"),
        ("RUNSTEAD_SERVER_PORT", "http", "valid integer"),
        ("RUNSTEAD_SERVER_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("RUNSTEAD_JOBS_ENDPOINT", "there", '"auto", "off", or a URL'),
        ("RUNSTEAD_SERVER_PUBLIC_URL", "there", "http:// or https://"),
        ("RUNSTEAD_SERVER_TRUSTED_PROXIES", "10.0.0.5, caddy", '"10.0.0.0/24"'),
        ("RUNSTEAD_EXECUTOR_MEMORY", "16 G", "GiB"),
        ("RUNSTEAD_EXECUTOR_SUBNET", "10.0.0.0/30", "/24"),
        ("RUNSTEAD_EXECUTOR_SUBNET", "10.0.0.1/16", "10.213.0.0/16"),
        ("RUNSTEAD_DATABASE_URL", "mysql://x", "postgresql:"),
        ("RUNSTEAD_JOBS_RETENTION_DAYS", "-1", "greater than or equal to 0"),
    ],
)
def test_a_bad_value_names_place_key_value_and_what_is_allowed(
    tmp_path: Path, home: dict[str, str], name: str, value: str, expected: str
) -> None:
    message = refusal(tmp_path, {**home, name: value})
    key = name.removeprefix("RUNSTEAD_").lower().replace("_", ".", 1)
    for part in (name, key, value, expected):
        assert part in message


def test_a_bad_value_of_a_file_or_a_flag(tmp_path: Path, home: dict[str, str]) -> None:
    message = refusal(tmp_path, home, "[flavors.big]\ncpu = 0\nmemory = '1 GB'\n")
    assert message.startswith(f"{tmp_path / 'runstead.toml'}: flavors.big.cpu = 0 ")
    assert refusal(tmp_path, home, "", server__port="x").startswith("--port: server.port = 'x' ")


def test_every_wrong_value_is_told(tmp_path: Path, home: dict[str, str]) -> None:
    message = refusal(tmp_path, {**home, "RUNSTEAD_SERVER_PORT": "x", "RUNSTEAD_JOBS_POLL_SECONDS": "0"})
    assert len(message.splitlines()) == 2


def test_prices(tmp_path: Path, home: dict[str, str]) -> None:
    assert load(tmp_path, home, "[prices]\ncpu-basic = 0.0004\nh200 = 5\n").prices == {"cpu-basic": 0.0004, "h200": 5}
    assert "prices.h200 = -1 is not possible" in refusal(tmp_path, home, "[prices]\nh200 = -1\n")
    assert "prices.h200 = 'much'" in refusal(tmp_path, home, "[prices]\nh200 = 'much'\n")
    assert "is not a setting" in refusal(tmp_path, home, "[prices.h200]\nminute = 1\n")


def test_a_time_zone(tmp_path: Path, home: dict[str, str]) -> None:
    zone = "[schedules]\ntime_zone = 'Europe/Berlin'\n"
    assert load(tmp_path, home, zone).schedules.time_zone == "Europe/Berlin"
    for wrong in ("Europe/Atlantis", "../../etc/passwd", "", "+02:00"):
        message = refusal(tmp_path, home, f"[schedules]\ntime_zone = '{wrong}'\n")
        assert 'should be a time zone like "UTC"' in message


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("[server]\nprot = 1\n", "server.port"),
        ("[servr]\nport = 1\n", "server.port"),
        ("port = 1\n", "server.*"),
        ("[flavors.big]\ncpu = 1\nmemory = 1\nram = 2\n", "flavors.NAME.memory"),
    ],
)
def test_unknown_key_in_a_file(tmp_path: Path, home: dict[str, str], text: str, guess: str) -> None:
    message = refusal(tmp_path, home, text)
    assert "is not a setting" in message
    assert guess in message
    assert str(tmp_path / "runstead.toml") in message


def test_a_missing_value_of_a_flavor_is_named(tmp_path: Path, home: dict[str, str]) -> None:
    assert "flavors.big.memory" in refusal(tmp_path, home, "[flavors.big]\ncpu = 1\n")
    assert "flavors" in refusal(tmp_path, home, "[flavors.'Not A Name']\ncpu = 1\nmemory = 1\n")


def test_unknown_variable(tmp_path: Path, home: dict[str, str]) -> None:
    assert "RUNSTEAD_SERVER_PROT" in refusal(tmp_path, {**home, "RUNSTEAD_SERVER_PROT": "1"})
    assert "tables in a file" in refusal(tmp_path, {**home, "RUNSTEAD_FLAVORS_BIG_CPU": "1"})


def test_variables_that_are_no_settings_are_left_alone(tmp_path: Path, home: dict[str, str]) -> None:
    others = {
        "RUNSTEAD_DEBUG": "1",
        "RUNSTEAD_TEST_POSTGRES": "required",
        "RUNSTEAD_SERVICE_HOST": "10.0.0.1",
        "RUNSTEAD_PORT": "tcp://10.0.0.1:80",
        "RUNSTEAD_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load(tmp_path, {**home, **others}) == load(tmp_path, home)


def test_contradicting_limits(tmp_path: Path, home: dict[str, str]) -> None:
    message = refusal(tmp_path, {**home, "RUNSTEAD_JOBS_MAX_TIMEOUT_SECONDS": "60"})
    assert "default_timeout_seconds (1800)" in message


def test_passwords_are_masked(tmp_path: Path, home: dict[str, str]) -> None:
    message = refusal(tmp_path, {**home, "RUNSTEAD_DATABASE_URL": "mysql://joe:hunter2@db/x"})
    assert "hunter2" not in message
    assert "mysql://joe:***@db/x" in message
    assert mask("postgresql://joe@db/x") == "postgresql://joe@db/x"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1


@pytest.mark.parametrize("model", [*SECTIONS.values(), FlavorSettings])
def test_every_setting_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert set(Settings.model_fields) == {*SECTIONS, "flavors", "prices"}
