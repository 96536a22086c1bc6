"""Work in a process of its own, which may enter what it cannot leave."""

import os

from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def in_child(work: "Any") -> None:
    """Do something in a process of its own, that enters what it cannot leave. Raises Refusal with its reason."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(writer, f"{error}".encode("utf-8", "replace")[:4000] or b"?")
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 4096)
    os.close(reader)
    os.waitpid(child, 0)
    if said:
        raise Refusal(UNAVAILABLE, said.decode("utf-8", "replace"))
