"""Lets what serves a job have its turn at once, also among hundreds of processes of that job that want all of it.

Only within the job's own control group: others do not notice.
"""

import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")

_HIGHEST = -20
_RESET = getattr(os, "SCHED_RESET_ON_FORK", 0)


def raise_for(pid: int) -> None:
    """Give a process the highest priority, if we may; what it forks has it too."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, _HIGHEST)
    except OSError:
        pass


def keep_to_myself() -> None:
    """See to it that what this thread starts from here on has the usual priority."""
    if _RESET:
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER | _RESET, os.sched_param(0))
        except OSError:
            pass


def start_as_usual(start: "Callable[[], Result]") -> "Result":
    """Return what `start` does, whose child has the usual priority although what we fork later keeps ours."""
    if not _RESET or os.getpriority(os.PRIO_PROCESS, 0) >= 0:
        return start()
    found: list[Result] = []
    failed: list[BaseException] = []
    done = _thread.allocate_lock()

    def run() -> None:  # in a thread, because there is no way back
        try:
            keep_to_myself()
            found.append(start())
        except BaseException as error:
            failed.append(error)
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(run, ())
    done.acquire()
    if failed:
        raise failed[0]
    return found[0]


def give_up() -> None:
    """Have the usual priority again."""
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
