"""`runstead exec`: exit codes, signals, and that nothing is left, with a server that is a few lines long."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOKEN = "hf_" + "f" * 34


class Place:
    """A temporary directory of its own, and the fake server's diary."""

    def __init__(self, folder: Path) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.diary = folder / "diary"
        (folder / "site").mkdir()
        shutil.copy(HERE / "fake_application.py", folder / "site/sitecustomize.py")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RUNSTEAD_", "HF_"))}
        self.environment = {
            **kept,
            "HOME": str(folder),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(folder / "site"),
            "FAKE_SERVER_DIARY": str(self.diary),
        }
        self.options: tuple[str, ...] = ()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "runstead.cli", "exec", *self.options, "--", *words]

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env={**self.environment, **variables}, capture_output=True, text=True, timeout=60
        )

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words),
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def noted(self) -> str:
        return self.diary.read_text() if self.diary.exists() else ""

    def server_pid(self) -> int:
        wait_until(lambda: "pid " in self.noted())
        return int(self.noted().split()[1])

    def assert_nothing_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert not is_running(self.server_pid())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    if made.diary.exists() and is_running(made.server_pid()):
        os.kill(made.server_pid(), signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@pytest.mark.parametrize(("words", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill $$", 143)])
def test_exit_code_is_the_commands(place: Place, words: str, code: int) -> None:
    assert place.run("sh", "-c", words).returncode == code
    place.assert_nothing_left()
    assert "ended by SIGTERM, stop jobs: True" in place.noted()


def test_the_command_is_pointed_at_the_server_and_away_from_the_login(place: Place) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    done = place.run(*python(show), HF_TOKEN="hf_mine", HF_TOKEN_PATH="/x", HTTP_PROXY="http://proxy", NO_PROXY="a")
    variables = json.loads(done.stdout)
    assert variables["HF_ENDPOINT"] == "http://127.0.0.1:1"
    assert variables["HF_TOKEN"] == TOKEN
    assert variables["HF_HOME"].startswith(str(place.temporary))
    assert "HF_TOKEN_PATH" not in variables
    assert variables["NO_PROXY"] == "a,127.0.0.1,localhost"


def test_hf_home_may_be_kept(place: Place) -> None:
    place.options = ("--keep-hf-home",)
    assert place.run("sh", "-c", "echo ${HF_HOME-none}").stdout == "none\n"


def test_the_server_shares_nothing_with_another(place: Place) -> None:
    place.options = ("--jobs-retention-days", "3")
    place.run("true", RUNSTEAD_SERVER_DATA_DIR="/elsewhere", RUNSTEAD_DATABASE_URL="postgresql://a:secret@b/c")
    assert "/elsewhere" not in place.noted()
    assert "postgresql" not in place.noted()
    assert " 3.0\n" in place.noted()


def test_the_token_shows_nowhere(place: Place) -> None:
    place.options = ("--keep",)
    done = place.run("sh", "-c", "ps -eo args")
    assert TOKEN not in done.stdout + done.stderr + place.noted()
    (folder,) = place.temporary.iterdir()
    assert TOKEN not in (folder / "server.log").read_text() + (folder / "runstead.toml").read_text()
    assert "a line of the server's log" in (folder / "server.log").read_text()


def test_keep_says_where(place: Place) -> None:
    place.options = ("--keep",)
    done = place.run("true")
    (folder,) = place.temporary.iterdir()
    assert str(folder) in done.stderr
    assert not is_running(place.server_pid())


def test_commands_that_cannot_be_run(place: Place, tmp_path: Path) -> None:
    done = place.run("no-such-command-here")
    assert (done.returncode, "no-such-command-here" in done.stderr) == (127, True)
    (tmp_path / "plain").write_text("")
    assert place.run(str(tmp_path / "plain")).returncode == 126
    place.assert_nothing_left()


def test_options_after_the_command_are_the_commands(place: Place) -> None:
    command = [sys.executable, "-m", "runstead.cli", "exec", "echo", "--keep", "-n", "x"]
    done = subprocess.run(command, env=place.environment, capture_output=True, text=True)
    assert done.stdout == "--keep -n x\n"


def test_a_server_that_does_not_start(place: Place) -> None:
    done = place.run("echo", "never", FAKE_SERVER="broken")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "a line of the server's log" in done.stderr
    place.assert_nothing_left()


def test_a_server_that_dies_meanwhile(place: Place) -> None:
    done = place.run("sleep", "1", FAKE_SERVER="dying")
    assert done.returncode == 1
    assert "the server stopped" in done.stderr
    assert place.run("sh", "-c", "sleep 1; exit 5", FAKE_SERVER="dying").returncode == 5
    assert list(place.temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_are_passed_on(place: Place, number: signal.Signals) -> None:
    process = place.start("sh", "-c", "echo up; exec sleep 60")
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    place.assert_nothing_left()


def test_a_command_may_answer_a_signal_itself(place: Place) -> None:
    process = place.start("bash", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
    assert process.stdout
    process.stdout.readline()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 9
    place.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_before_the_server_is_ready(place: Place, number: signal.Signals) -> None:
    process = place.start("echo", "never", FAKE_SERVER="slow")
    wait_until(lambda: "data " in place.noted())
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (128 + number, "")
    place.assert_nothing_left()


def test_the_server_ends_even_when_exec_is_killed(place: Place) -> None:
    process = place.start("sh", "-c", "echo up; exec sleep 3")
    assert process.stdout
    process.stdout.readline()
    process.kill()
    wait_until(lambda: not is_running(place.server_pid()))
    process.communicate(timeout=30)


COUNT_INTERRUPTS = """
import signal, sys, time
count = 0
def interrupted(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, interrupted)
print("up", flush=True)
end = time.monotonic() + 20
while not count and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5)
print("interrupts:", count, flush=True)
sys.exit(130)
"""


def test_ctrl_c_reaches_the_command_once_and_leaves_nothing(place: Place) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(sys.executable, place.command(*python(COUNT_INTERRUPTS)), place.environment)
    seen = b""
    pressed = False
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # how Linux says that the last process closed the terminal
            break
        if b"up" in seen and not pressed:
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"interrupts: 1" in seen
    assert os.waitstatus_to_exitcode(status) == 130
    place.assert_nothing_left()
    assert "ended by SIGTERM" in place.noted()


def test_a_closed_terminal_leaves_nothing(place: Place) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(sys.executable, place.command("sh", "-c", "echo up; exec sleep 60"), place.environment)
    seen = b""
    while b"up" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    place.assert_nothing_left()
