"""What an attempt wrote and no bucket has, as seen from the disk."""

import os

from runstead.node.fuse import journal

_STATE = ".state"


def has_unsaved(folder: str) -> bool:
    """Say whether some change of an attempt that has ended is in no bucket."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name, "journal")
        if name.endswith(_STATE) and journal.read(path):
            return True
    return False


def lay_out(folder: str) -> None:
    """Show what is in no bucket under its own names, for who wants to look at it or copy it by hand.

    The names are links to the staged files, which are what counts: `<index>/<path>` for `<index>.state/staged/<n>`.
    """
    for name in os.listdir(folder):
        if name.endswith(_STATE):
            state = os.path.join(folder, name)
            for intent in journal.read(os.path.join(state, "journal")):
                if intent.stage is not None:
                    target = os.path.join(folder, name.removesuffix(_STATE), intent.path)
                    _link(os.path.join(state, "staged", intent.stage), target)


def _link(source: str, target: str) -> None:
    try:
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        os.link(source, target)
    except OSError:
        pass  # it is there already, or the disk is full; the staged file is there in any case
