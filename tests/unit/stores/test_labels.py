"""The digests a job is kept under are those a search asks for, and no others."""

from hypothesis import given
from hypothesis import strategies as st

from runstead.stores.labels import WIDE, digests_of, search

NAMES = st.sampled_from([f"n{n}" for n in range(WIDE + 3)])
LABELS = st.dictionaries(NAMES, st.sampled_from(["", "a", "b"]), max_size=WIDE + 3)


@given(LABELS, LABELS.filter(bool))
def test_a_search_finds_a_job_once_exactly_if_it_has_all_labels(has: dict[str, str], wanted: dict[str, str]) -> None:
    kept = set(digests_of("alice", has))
    found = [part for part in search("alice", wanted) if kept.issuperset(part.digests)]
    assert len(found) == (wanted.items() <= has.items())


@given(LABELS)
def test_no_digest_is_kept_twice(has: dict[str, str]) -> None:
    digests = digests_of("alice", has)
    assert len(set(digests)) == len(digests)
    assert len(digests) <= WIDE * (WIDE + 1) // 2 or len(has) > WIDE


def test_namespaces_do_not_meet() -> None:
    labels = {"a": "1", "b": "2"}
    assert not set(digests_of("alice", labels)) & set(digests_of("bob", labels))
    assert not set(digests_of("a", {"b": "c"})) & set(digests_of("a", {"bc": ""}))
