"""`runstead user`, `org` and `token` on a data directory, as somebody at a terminal uses them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from runstead.cli.main import app, main


class Terminal:
    """Runs commands on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.place = ("--data-dir", str(data_dir))

    def run(self, *words: str, stdin: str | None = None, **variables: str) -> Result:
        return CliRunner().invoke(app, [*words, *self.place], input=stdin, env=variables, catch_exceptions=False)

    def ok(self, *words: str, stdin: str | None = None, **variables: str) -> str:
        done = self.run(*words, stdin=stdin, **variables)
        assert done.exit_code == 0, done.output
        return done.stdout

    def rows(self, *words: str) -> list[dict[str, object]]:
        return json.loads(self.ok(*words, "--json"))


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Terminal(tmp_path / "data")


def fails(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run through `main`, which is what turns errors into a line; return standard error."""
    monkeypatch.setattr("sys.argv", ["runstead", *words, *terminal.place])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Error: ")
    assert "Traceback" not in shown
    return shown


def test_users(terminal: Terminal) -> None:
    assert terminal.rows("user", "list") == []
    terminal.ok("user", "add", "alice", "--full-name", "Alice A.", "--email", "a@example.org", "--admin")
    terminal.ok("user", "add", "bob")
    alice, bob = terminal.rows("user", "list")
    assert (alice["name"], alice["full_name"], alice["email"], alice["admin"]) == (
        "alice",
        "Alice A.",
        "a@example.org",
        True,
    )
    assert (bob["name"], bob["admin"]) == ("bob", False)
    terminal.ok("user", "remove", "bob")
    assert "bob" not in terminal.ok("user", "list")


def test_organizations(terminal: Terminal) -> None:
    terminal.ok("user", "add", "alice")
    terminal.ok("org", "add", "team", "--full-name", "The Team")
    assert terminal.rows("org", "members", "team") == []
    terminal.ok("org", "add-member", "team", "alice")
    assert terminal.rows("org", "members", "team") == [{"user": "alice", "role": "write"}]
    for role in ("read", "contributor", "write", "admin"):
        terminal.ok("org", "add-member", "team", "alice", "--role", role)
        assert terminal.rows("org", "members", "team") == [{"user": "alice", "role": role}]
    terminal.ok("org", "remove-member", "team", "alice")
    assert terminal.rows("org", "members", "team") == []
    assert [org["name"] for org in terminal.rows("org", "list")] == ["team"]
    terminal.ok("org", "remove", "team")
    assert terminal.rows("org", "list") == []
    assert terminal.run("org", "add-member", "team", "alice", "--role", "owner").exit_code == 2


def test_a_new_token_is_shown_once_on_stdout_alone(terminal: Terminal) -> None:
    terminal.ok("user", "add", "alice")
    done = terminal.run("token", "add", "alice", "--name", "ci", "--role", "read", "--expires", "30d")
    value = done.stdout.strip()
    assert value.startswith("hf_")
    assert len(value) >= 37
    assert value[3:].isalnum()
    assert done.stderr.count(value) == 0
    assert done.stdout.count(value) == 1
    listed = terminal.ok("token", "list")
    assert value not in listed
    (row,) = terminal.rows("token", "list", "alice")
    assert (row["user"], row["name"], row["role"], row["value"]) == ("alice", "ci", "read", f"...{value[-4:]}")
    assert row["expires_at"]


def test_a_fine_grained_token(terminal: Terminal) -> None:
    terminal.ok("user", "add", "alice")
    terminal.ok("org", "add", "team")
    terminal.ok("token", "add", "alice", "--scope", "alice:read", "--scope", "team:write")
    (row,) = terminal.rows("token", "list")
    assert (row["role"], row["scopes"]) == ("fineGrained", ["alice:read", "team:write"])


def test_a_token_made_elsewhere_is_brought_along_and_not_repeated(terminal: Terminal, tmp_path: Path) -> None:
    terminal.ok("user", "add", "alice")
    values = ["hf_" + letter * 34 for letter in "abc"]
    (tmp_path / "token").write_text(values[0] + "\n")
    shown = [
        terminal.run("token", "add", "alice", "--name", "file", "--value-file", str(tmp_path / "token")),
        terminal.run("token", "add", "alice", "--name", "stdin", "--value", "-", stdin=values[1] + "\n"),
        terminal.run("token", "add", "alice", "--name", "variable", "--value-env", "MINE", MINE=values[2]),
    ]
    for done, value in zip(shown, values, strict=True):
        assert done.exit_code == 0
        assert value not in done.output
    hints = {row["name"]: row["value"] for row in terminal.rows("token", "list")}
    assert hints == {"file": "...aaaa", "stdin": "...bbbb", "variable": "...cccc"}


def test_revoking(terminal: Terminal) -> None:
    terminal.ok("user", "add", "alice")
    for name in ("one", "two"):
        terminal.ok("token", "add", "alice", "--name", name)
    terminal.ok("token", "revoke", "one")
    (row,) = terminal.rows("token", "list")
    terminal.ok("token", "revoke", str(row["id"]))
    assert terminal.rows("token", "list") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["user", "add", "no/slash"], "no/slash"),
        (["user", "remove", "nobody"], "nobody"),
        (["org", "members", "nobody"], "nobody"),
        (["token", "add", "nobody"], "nobody"),
        (["token", "add", "alice", "--scope", "alice"], "NAMESPACE:read"),
        (["token", "add", "alice", "--scope", "alice:admin"], "NAMESPACE:read"),
        (["token", "add", "alice", "--expires", "soon"], "30d"),
        (["token", "add", "alice", "--value-env", "NOT_SET_HERE"], "NOT_SET_HERE"),
        (["token", "add", "alice", "--value-file", "no-such-file"], "no-such-file"),
        (["token", "revoke", "nothing"], "nothing"),
    ],
)
def test_errors_are_one_line(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    terminal.ok("user", "add", "alice")
    assert expected in fails(terminal, monkeypatch, capsys, *words)


def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = fails(terminal, monkeypatch, capsys, "token", "add", "alice", "--value", "hf_onthecommandline")
    assert "hf_onthecommandline" not in shown


def test_a_bad_setting_is_one_line_too(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNSTEAD_SERVER_PORT", "x")
    assert "RUNSTEAD_SERVER_PORT" in fails(terminal, monkeypatch, capsys, "user", "list")


def test_debug_shows_the_traceback(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNSTEAD_DEBUG", "1")
    monkeypatch.setattr("sys.argv", ["runstead", "user", "remove", "nobody", *terminal.place])
    with pytest.raises(Exception, match="nobody"):
        main()
