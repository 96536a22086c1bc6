"""Removes compartments, with all that runs in them and their homes."""

import os
import time

from runstead.node import removal
from runstead.node.compartments.attempt import FACTS
from runstead.node.compartments.workshop import Workshop
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

_EMPTY_SECONDS = 10.0


def remove_all(ids: list[str], shop: Workshop, *, unfinished: bool = False) -> int:
    """Remove them; return how many were there. Raises Refusal, OSError."""
    attempt = shop.attempt
    there = [one for one in ids if unfinished or os.path.exists(os.path.join(attempt.place(one), FACTS))]
    if not there:
        return 0
    groups = {one: attempt.group.below(one) for one in there}
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
        removal.delete_tree(attempt.place(one))
    return len(there)
