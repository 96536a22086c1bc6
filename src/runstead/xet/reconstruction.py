"""From a file's terms and a byte range to what must be fetched, and the answers that say so (wire-storage §8).

In two steps, because the second needs the layouts of the xorbs that the first names: `span_of` drops the terms
outside the range, `reconstruct` trims the rest to whole chunks and joins what overlaps. Every trimmed term lies
inside one fetch range of its xorb, which is what clients insist on. `v2_answer` and `v1_answer` give the JSON
values of the two routes, `reads_of` the plan for a server that puts the bytes together itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runstead.xet.errors import InvalidTerms, RangeNotSatisfiable
from runstead.xet.hashes import hash_to_text
from runstead.xet.terms import RECORD_BYTES, Term, Terms
from runstead.xet.xorb_layout import XorbLayout

RANGES_PER_URL = 64
"""How many ranges a URL of the v2 answer covers unless told otherwise; URLs should not become too long."""


@dataclass(frozen=True, slots=True)
class Span:
    """The terms of a file that touch a byte range: `length` bytes, beginning `skip` bytes into the first term."""

    terms: Terms
    skip: int
    length: int


@dataclass(frozen=True, slots=True)
class FetchRange:
    """The chunks from `start` up to `end` (exclusive) of a xorb, stored from `first_byte` to `last_byte` inclusive."""

    start: int
    end: int
    first_byte: int
    last_byte: int


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How to get `length` bytes: fetch `fetches`, unpack, string `terms` together, drop the first bytes.

    `offset_into_first_range` says how many those are. `fetches` has, per xorb in order of first use, ranges that
    neither overlap nor touch, in ascending order.
    """

    offset_into_first_range: int
    length: int
    terms: tuple[Term, ...]
    fetches: Mapping[bytes, tuple[FetchRange, ...]]


@dataclass(frozen=True, slots=True)
class Read:
    """One stored range to read and unpack, then `take` bytes of its content after the first `skip`."""

    xorb_hash: bytes
    first_byte: int
    last_byte: int
    skip: int
    take: int


SignUrl = Callable[[bytes, Sequence[FetchRange]], str]
"""Gives the URL under which these ranges of the xorb with this hash can be fetched."""


def span_of(terms: Terms, byte_range: tuple[int, int] | None) -> Span:
    """Return the part of a file from the first number up to the second (exclusive), or all of it for None.

    A range that ends after the file is cut. Raises RangeNotSatisfiable if it starts at or after the end of the
    file or is empty.
    """
    ends = np.cumsum(terms.unpacked_bytes(), dtype=np.int64)
    size = int(ends[-1]) if len(ends) else 0
    if byte_range is None:
        return Span(terms, 0, size)
    start, end = byte_range[0], min(byte_range[1], size)
    if not 0 <= start < end:
        raise RangeNotSatisfiable(
            f"bytes {byte_range[0]} to {byte_range[1]} (exclusive) are not in a file of {size} bytes", size
        )
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, end, side="left"))
    before = int(ends[first - 1]) if first else 0
    records = terms.records[RECORD_BYTES * first : RECORD_BYTES * (last + 1)]
    return Span(Terms(records), start - before, end - start)


def reconstruct(span: Span, layouts: Mapping[bytes, XorbLayout]) -> Reconstruction:
    """Trim the terms of a span to the chunks that hold it and find what to fetch from each xorb.

    `layouts` has every xorb of `span.terms.xorb_hashes()`. Raises InvalidTerms if one is missing or a term does
    not fit its xorb.
    """
    terms = [_fitting(index, term, layouts) for index, term in enumerate(span.terms)]
    offset = 0
    if terms:
        terms[-1] = _without_end(terms[-1], layouts, sum(t.unpacked_bytes for t in terms) - span.skip - span.length)
        terms[0], offset = _without_start(terms[0], layouts, span.skip)
    wanted: dict[bytes, list[tuple[int, int]]] = {}
    for term in terms:
        wanted.setdefault(term.xorb_hash, []).append((term.start, term.end))
    fetches = {
        xorb_hash: tuple(_fetch_range(layouts[xorb_hash], start, end) for start, end in _joined(ranges))
        for xorb_hash, ranges in wanted.items()
    }
    return Reconstruction(offset, span.length, tuple(terms), fetches)


def reconstruct_whole(
    files: Mapping[bytes, Terms], layouts: Mapping[bytes, XorbLayout], slack_bytes: int
) -> tuple[dict[bytes, tuple[Term, ...]], dict[bytes, tuple[FetchRange, ...]]]:
    """Return the terms of several whole files, and what to fetch from each xorb for all of them together.

    Ranges of a xorb with no more than `slack_bytes` of stored bytes between them are fetched as one. Raises
    InvalidTerms as `reconstruct` does.
    """
    found: dict[bytes, tuple[Term, ...]] = {}
    wanted: dict[bytes, list[tuple[int, int]]] = {}
    for name, terms in files.items():
        found[name] = tuple(_fitting(index, term, layouts) for index, term in enumerate(terms))
        for term in found[name]:
            wanted.setdefault(term.xorb_hash, []).append((term.start, term.end))
    fetches: dict[bytes, tuple[FetchRange, ...]] = {}
    for xorb_hash, ranges in wanted.items():
        near: list[FetchRange] = []
        for one in (_fetch_range(layouts[xorb_hash], start, end) for start, end in _joined(ranges)):
            if near and one.first_byte - near[-1].last_byte <= slack_bytes:
                one = FetchRange(near[-1].start, one.end, near.pop().first_byte, one.last_byte)
            near.append(one)
        fetches[xorb_hash] = tuple(near)
    return found, fetches


def many_answer(
    files: Mapping[bytes, Sequence[Term]], fetches: Mapping[bytes, tuple[FetchRange, ...]], url_of: SignUrl
) -> dict[str, object]:
    """Return the JSON value for several files: the terms of each, and `xorbs` as in the v2 answer."""
    names = {xorb_hash: hash_to_text(xorb_hash) for xorb_hash in fetches}
    return {
        "files": {hash_to_text(name): _terms(terms, names) for name, terms in files.items()},
        "xorbs": _xorbs(fetches, url_of, RANGES_PER_URL),
    }


def v2_answer(
    reconstruction: Reconstruction, url_of: SignUrl, ranges_per_url: int = RANGES_PER_URL
) -> dict[str, object]:
    """Return the JSON value of a v2 reconstruction; `url_of` is asked once for each group of ranges of a xorb."""
    return {**_offset_and_terms(reconstruction), "xorbs": _xorbs(reconstruction.fetches, url_of, ranges_per_url)}


def _xorbs(fetches: Mapping[bytes, tuple[FetchRange, ...]], url_of: SignUrl, ranges_per_url: int) -> dict[str, object]:
    xorbs: dict[str, object] = {}
    for xorb_hash, ranges in fetches.items():
        groups = [ranges[start : start + ranges_per_url] for start in range(0, len(ranges), ranges_per_url)]
        xorbs[hash_to_text(xorb_hash)] = [
            {
                "url": url_of(xorb_hash, group),
                "ranges": [{"chunks": _pair(r.start, r.end), "bytes": _pair(r.first_byte, r.last_byte)} for r in group],
            }
            for group in groups
        ]
    return xorbs


def v1_answer(reconstruction: Reconstruction, url_of: SignUrl) -> dict[str, object]:
    """Return the JSON value of a v1 reconstruction; `url_of` is asked once for each range."""
    fetch_info = {
        hash_to_text(xorb_hash): [
            {
                "range": _pair(r.start, r.end),
                "url": url_of(xorb_hash, (r,)),
                "url_range": _pair(r.first_byte, r.last_byte),
            }
            for r in ranges
        ]
        for xorb_hash, ranges in reconstruction.fetches.items()
    }
    return {**_offset_and_terms(reconstruction), "fetch_info": fetch_info}


def reads_of(reconstruction: Reconstruction, layouts: Mapping[bytes, XorbLayout]) -> Iterator[Read]:
    """Yield, term by term, what a server reads to give out the bytes itself; `take` adds up to `length`."""
    skip, left = reconstruction.offset_into_first_range, reconstruction.length
    for term in reconstruction.terms:
        take = min(term.unpacked_bytes - skip, left)
        start, end = layouts[term.xorb_hash].stored_range(term.start, term.end)
        yield Read(term.xorb_hash, start, end - 1, skip, take)
        skip, left = 0, left - take


def _fitting(index: int, term: Term, layouts: Mapping[bytes, XorbLayout]) -> Term:
    layout = layouts.get(term.xorb_hash)
    if layout is None:
        raise InvalidTerms(f"term {index}: the layout of xorb {hash_to_text(term.xorb_hash)} is not known")
    if not term.start < term.end <= layout.chunk_count:
        raise InvalidTerms(
            f"term {index}: chunks {term.start} to {term.end} (exclusive) are not in xorb "
            f"{hash_to_text(term.xorb_hash)} of {layout.chunk_count}"
        )
    if term.unpacked_bytes != _content_bytes(layout, term.start, term.end):
        raise InvalidTerms(
            f"term {index}: chunks {term.start} to {term.end} (exclusive) of xorb {hash_to_text(term.xorb_hash)} "
            f"have {_content_bytes(layout, term.start, term.end)} bytes, not {term.unpacked_bytes}"
        )
    return term


def _without_start(term: Term, layouts: Mapping[bytes, XorbLayout], skip: int) -> tuple[Term, int]:
    """Drop the whole chunks within the first `skip` bytes; return the rest and how much of `skip` remains."""
    layout = layouts[term.xorb_hash]
    position = int(layout.unpacked_offsets[term.start]) + skip
    start = int(np.searchsorted(layout.unpacked_offsets, position, side="right")) - 1
    rest = Term(term.xorb_hash, start, term.end, _content_bytes(layout, start, term.end))
    return rest, position - int(layout.unpacked_offsets[start])


def _without_end(term: Term, layouts: Mapping[bytes, XorbLayout], surplus: int) -> Term:
    """Drop the whole chunks within the last `surplus` bytes."""
    layout = layouts[term.xorb_hash]
    position = int(layout.unpacked_offsets[term.end]) - surplus
    end = int(np.searchsorted(layout.unpacked_offsets, position, side="left"))
    return Term(term.xorb_hash, term.start, end, _content_bytes(layout, term.start, end))


def _content_bytes(layout: XorbLayout, start: int, end: int) -> int:
    return int(layout.unpacked_offsets[end]) - int(layout.unpacked_offsets[start])


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return half-open ranges that cover the same numbers, ascending, with a gap between any two."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(set(ranges)):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _fetch_range(layout: XorbLayout, start: int, end: int) -> FetchRange:
    first, behind = layout.stored_range(start, end)
    return FetchRange(start, end, first, behind - 1)


def _offset_and_terms(reconstruction: Reconstruction) -> dict[str, object]:
    names = {xorb_hash: hash_to_text(xorb_hash) for xorb_hash in reconstruction.fetches}
    return {
        "offset_into_first_range": reconstruction.offset_into_first_range,
        "terms": _terms(reconstruction.terms, names),
    }


def _terms(terms: Sequence[Term], names: Mapping[bytes, str]) -> list[dict[str, object]]:
    return [
        {
            "hash": names[term.xorb_hash],
            "unpacked_length": term.unpacked_bytes,
            "range": _pair(term.start, term.end),
        }
        for term in terms
    ]


def _pair(start: int, end: int) -> dict[str, int]:
    return {"start": start, "end": end}
