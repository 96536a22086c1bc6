"""Signals taken one at a time, when asked for, instead of interrupting: nothing happens between two lines of code.

A Ctrl-C reaches every process of the terminal's foreground group by itself; a signal sent with `kill` reaches
one. Who passes signals on must know which it was, so as to pass on only the latter.
"""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from types import FrameType, TracebackType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Those a key press sends to the whole foreground group. A hang-up goes to the session's leader alone.
_KEYS = (signal.SIGINT, signal.SIGQUIT)
_FROM_KERNEL = 128  # SI_KERNEL: the terminal's doing


def _taken_elsewhere(_number: int, _frame: FrameType | None) -> None:
    """Stand as a handler: only so that the signal is kept until `take`."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One signal that came."""

    number: signal.Signals
    from_terminal: bool  # by a key: the processes beside us got it too


class SignalInbox:
    """Holds back the signals that end a program, SIGCHLD, and a private one, until they are taken.

    To be entered before any thread or child is started: threads inherit it, children are given `before_exec`.
    """

    _watched = frozenset({*ENDING, signal.SIGCHLD, signal.SIGUSR1})

    def __enter__(self) -> "SignalInbox":
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        # The default of SIGCHLD is to be thrown away, also while it is held back.
        self._child_handler = signal.signal(signal.SIGCHLD, _taken_elsewhere)
        self._own_handler = signal.signal(signal.SIGUSR1, _taken_elsewhere)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while pending := signal.sigpending() & self._watched:
            signal.sigwait(pending)
        signal.signal(signal.SIGCHLD, self._child_handler)
        signal.signal(signal.SIGUSR1, self._own_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def before_exec(self) -> None:
        """Give a forked child the signal mask of before; for `Popen(preexec_fn=)`."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wake(self) -> None:
        """Make `take` return with SIGUSR1; may be called from any thread."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def take(self) -> Arrival:
        """Wait for the next signal and return it."""
        if sys.platform == "darwin":
            number = signal.sigwait(self._watched)
            return Arrival(signal.Signals(number), number in _KEYS and os.isatty(0))
        info = signal.sigwaitinfo(self._watched)
        return Arrival(signal.Signals(info.si_signo), info.si_signo in _KEYS and info.si_code == _FROM_KERNEL)
