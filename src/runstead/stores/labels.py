"""How jobs are found by their labels at the same cost however many there are.

`job_labels` holds one row per job under the digest of each of its labels, and one under the digest of each pair of
its labels, both split by stage and sorted by age. A list of one or two labels is then one range of that index. For
more labels, the pairs are intersected. The pairs of a job grow with the square of its labels, so a job with more
than `WIDE` of them is kept under single labels only, once more in a part of its own that every longer search
visits too.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations, pairwise

WIDE = 6

Label = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Intersection:
    """The jobs that are under every one of these digests."""

    digests: Sequence[bytes]


def digests_of(namespace: str, labels: Mapping[str, str]) -> Sequence[bytes]:
    """Return the digests a job with these labels is kept under."""
    return _digests_of(namespace, tuple(sorted(labels.items())))


@lru_cache(maxsize=256)  # a job asks several times, and many at once often have the same
def _digests_of(namespace: str, pairs: tuple[Label, ...]) -> Sequence[bytes]:
    digests = [_digest("1", namespace, [label]) for label in pairs]
    if len(pairs) > WIDE:
        digests.extend(_digest("wide", namespace, [label]) for label in pairs)
    else:
        digests.extend(_digest("2", namespace, both) for both in combinations(pairs, 2))
    return digests


def search(namespace: str, labels: Mapping[str, str]) -> list[Intersection]:
    """Return the intersections that together hold the jobs with all these labels, none of them twice."""
    wanted = sorted(labels.items())
    if len(wanted) == 1:
        return [Intersection([_digest("1", namespace, wanted)])]
    wide = Intersection([_digest("wide", namespace, [label]) for label in wanted])
    if len(wanted) > WIDE:
        return [wide]
    return [Intersection([_digest("2", namespace, both) for both in _ring(wanted)]), wide]


def _ring(labels: Sequence[Label]) -> Iterable[tuple[Label, Label]]:
    """Pair each label with the next and the last with the first: every label is there, and there is a choice."""
    if len(labels) == 2:
        return [(labels[0], labels[1])]
    return [*pairwise(labels), (labels[0], labels[-1])]


def _digest(kind: str, namespace: str, labels: Iterable[Label]) -> bytes:
    text = json.dumps([kind, namespace, *labels], separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).digest()
