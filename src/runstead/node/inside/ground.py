"""What a worker has to know about the attempt that it works in."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.cgroups import Group
    from runstead.node.inside.entrance import Entrance
    from runstead.node.users import User


class Ground:
    """What all that is done inside of one attempt has in common."""

    __slots__ = ("entrance", "environment", "folder", "limits", "own_ids", "own_network", "processes", "rooted", "user")

    def __init__(
        self,
        *,
        environment: dict[str, str],
        folder: str,
        own_network: bool,
        own_ids: bool,
        user: "User | None" = None,
        limits: "Group | None" = None,
        rooted: bool = False,
        entrance: "Entrance | None" = None,
        processes: int | None = None,
    ) -> None:
        self.environment = environment  # of every program, before what its request says
        self.folder = folder  # where programs and relative paths begin
        self.own_network = own_network  # nobody but the attempt listens there
        self.own_ids = own_ids  # programs may be run as other users
        self.user = user  # who programs are run as and files belong to; None: this process's own
        self.limits = limits  # the control groups to enter; None: workers begin in them
        self.entrance = entrance  # where workers go in first; None: they begin inside
        self.processes = processes  # how many a program's user may have, where that user is nobody else's; None: any
        self.rooted = rooted  # paths of files begin at `folder`, and no link is followed
