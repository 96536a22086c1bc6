"""Who a program inside of an attempt runs as, when a request names somebody."""

import os

from runstead.node import syscalls, users
from runstead.node.inside.refusal import INVALID, UNSUPPORTED, Refusal
from runstead.node.users import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.inside.ground import Ground


class Identity:
    """The ids of a program, and what of its environment follows from them."""

    def __init__(self, user: User | None, environment: dict[str, str]) -> None:
        self._user = user
        self.environment = environment

    @property
    def changes(self) -> bool:
        """Whether it is anybody else than this process is."""
        return self._user is not None

    def own(self, fd: int) -> None:
        """Make something that was just made its own."""
        if self._user is not None:
            os.fchown(fd, self._user.uid, -1)

    def become(self) -> None:
        """Take the ids; there is no way back."""
        assert self._user is not None
        os.setgroups(self._user.groups)
        os.setresgid(self._user.gid, self._user.gid, self._user.gid)
        os.setresuid(self._user.uid, self._user.uid, self._user.uid)
        if syscalls.LINUX:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def find(wanted: str | None, ground: "Ground") -> Identity:
    """Return who `name`, `name:group` or the same in numbers is. Raises Refusal for nobody."""
    if wanted is None:
        return Identity(ground.user, {})
    try:
        user = users.find(wanted)
    except OSError as error:
        raise Refusal(INVALID, f"{error.strerror}: {error.filename}") from error
    name = wanted.partition(":")[0]
    environment = {"HOME": user.home, "USER": name, "LOGNAME": name}
    itself = (user.uid, user.gid) == (os.geteuid(), os.getegid()) and not user.groups
    if itself and ground.user is None:
        return Identity(None, environment)
    if not ground.own_ids:
        raise Refusal(UNSUPPORTED, f"programs cannot be run as another user here: {wanted}")
    return Identity(user, environment)
