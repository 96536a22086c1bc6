"""Removes compartments, with all that runs in them and their homes."""

import os
import time

from runstead.node.compartments.plan import unfinished
from runstead.node.compartments.workshop import Workshop
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

_EMPTY_SECONDS = 10.0


def remove_all(ids: list[str], shop: Workshop, *, half_made: bool = False) -> int:
    """Remove them; return how many were there. Raises Refusal, OSError."""
    there = [one for one in ids if half_made or one in shop.entries]
    if not there:
        return 0
    groups = {one: shop.attempt.group.below(one) for one in there}
    for one, group in groups.items():
        if not shop.kill(one):
            group.kill()
    until = time.monotonic() + _EMPTY_SECONDS
    for one, group in groups.items():
        shop.bury(one, until)
        while not group.remove():
            group.kill()
            if time.monotonic() > until:
                raise Refusal(UNAVAILABLE, f"what runs in a part of the job does not end: {one}")
            time.sleep(0.001)
    for one in there:
        shop.base().delete(one)
        entry = shop.entries.get(one)
        try:
            os.unlink(os.path.join(shop.attempt.folder, unfinished(one) if entry is None else entry.name))
        except FileNotFoundError:
            pass
        shop.entries.pop(one, None)
    return len(there)
