"""What holds for every test."""

import signal
from collections.abc import Iterator

import hypothesis
import pytest

import engines

# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("runstead", deadline=None)
hypothesis.settings.load_profile("runstead")


def pytest_configure() -> None:
    """Hear the signals again that whoever started this made it deaf to: nohup, a shell's background job.

    Programs inherit deafness, and what they do at a signal is what some tests are about.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def engine() -> Iterator[engines.RunningEngine]:
    """A container engine that has the images which launches in suites of executors name."""
    with engines.podman() as running:
        running.load_debian("python:3.12")
        running.podman("tag", "python:3.12", "anything")
        with engines.named(running):
            yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what CI gave a second chance: it passed then, but it is not forgotten."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed at first: {report.nodeid}", sep="_")
        terminalreporter.line(report.longreprtext)
