"""What an attempt wrote and no bucket has, as seen from the disk."""

import os

from runstead.node.fuse.journal import is_empty

_STATE = ".state"


def has_unsaved(folder: str) -> bool:
    """Say whether some change of an attempt that has ended is in no bucket."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name, "journal")
        if name.endswith(_STATE) and not is_empty(path):
            return True
    return False
