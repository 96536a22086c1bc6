"""The supervisor's part: sees to it that there is a maker while there are requests to make and remove compartments."""

import os
import select

from runstead.node.compartments.attempt import SOCKET, Attempt
from runstead.node.compartments.maker import serve
from runstead.node.inside.agent import listen


class Divider:
    """The supervisor's part: listens, until there is a maker, which does so itself."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._poll = select.poll()
        self._listener = listen(attempt.path, SOCKET)
        self._line = -1  # at its end when the maker is gone
        self._over = False

    def register(self, poll: select.poll) -> None:
        """Have requests waited for."""
        self._poll = poll
        poll.register(self._listener, select.POLLIN)

    def finish(self) -> None:
        """Do nothing any more. A maker that is there ends with the attempt, as all of its processes do."""
        self._over = True

    def handle(self, fd: int) -> bool:
        """Do what has to be done about a file descriptor that became ready; False when it is none of ours."""
        if fd not in (self._line, self._listener.fileno()):
            return False
        if self._over:  # it became ready beside what says so
            return True
        if fd == self._line:
            self._poll.unregister(fd)
            os.close(fd)
            self._line = -1
            self._poll.register(self._listener, select.POLLIN)
            return True
        line, theirs = os.pipe()
        try:
            between = os.fork()
        except OSError:
            os.close(line)
            os.close(theirs)
            self._refuse()
            return True
        if between == 0:
            self._fork_maker(theirs)
        os.close(theirs)
        os.waitpid(between, 0)
        self._line = line
        self._poll.unregister(self._listener)
        self._poll.register(line, select.POLLIN)
        return True

    def _fork_maker(self, line: int) -> None:
        """Fork a maker in a process that goes at once, for the attempt's first one to adopt it; does not return."""
        try:
            if os.fork() == 0:
                serve(self._listener, line, self._attempt)
        except OSError:
            self._refuse()
        os._exit(0)

    def _refuse(self) -> None:
        """Turn who asks away: the other side sees the end, and asks again."""
        try:
            self._listener.accept()[0].close()
        except OSError:
            pass
