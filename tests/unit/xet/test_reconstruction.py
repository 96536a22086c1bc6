import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.xet.compression import Scheme
from runstead.xet.errors import InvalidTerms, RangeNotSatisfiable
from runstead.xet.hashes import hash_from_text
from runstead.xet.reconstruction import (
    reads_of,
    reconstruct,
    span_of,
    v1_answer,
    v2_answer,
)
from runstead.xet.terms import Term, Terms, terms_of
from runstead.xet.xorb import unpack_chunks
from runstead.xet.xorb_builder import XorbBuilder


def _url(*_):
    return "URL"


def _terms(vectors, name) -> Terms:
    return terms_of(
        Term(hash_from_text(term["xorb"]), term["start"], term["end"], term["unpacked_length"])
        for term in vectors.terms(name)
    )


def _range(header: str | None) -> tuple[int, int] | None:
    if header is None:
        return None
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", header)
    assert found is not None
    return int(found[1]), int(found[2]) + 1


RECORDED = ("empty", "f32_200k", "mix", "one", "rand1m", "rand300k", "sha200k", "text300k", "zeros1m")


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_answers(vectors, name):
    record, layouts = vectors.json(f"reconstructions/{name}.json"), vectors.layouts()
    terms = _terms(vectors, name)
    assert terms.file_bytes == record["size"]
    for query in record["queries"]:
        if query["v2"].get("status") == 416:
            with pytest.raises(RangeNotSatisfiable) as refused:
                span_of(terms, _range(query["range"]))
            assert refused.value.size == record["size"]
            continue
        found = reconstruct(span_of(terms, _range(query["range"])), layouts)
        assert json.dumps(v2_answer(found, _url)) == json.dumps(query["v2"])
        if "v1" in query:
            assert json.dumps(v1_answer(found, _url)) == json.dumps(query["v1"])


@pytest.mark.parametrize("byte_range", [(10, 20), (11, 12), (5, 5), (6, 5), (-1, 5), (0, 0)])
def test_ranges_outside(byte_range):
    with pytest.raises(RangeNotSatisfiable, match="10 bytes"):
        span_of(terms_of([Term(b"x" * 32, 0, 1, 10)]), byte_range)
    with pytest.raises(RangeNotSatisfiable, match="0 bytes"):
        span_of(Terms(b""), byte_range)


def _xorb(seed: int, sizes: list[int]):
    builder = XorbBuilder()
    for index, size in enumerate(sizes):
        builder.add((bytes([seed, index]) * size)[:size], Scheme.LZ4 if index % 2 else Scheme.NONE)
    return builder.finish()


XORBS = [_xorb(1, [1, 7, 3, 20, 5, 8, 1, 1, 9, 30]), _xorb(2, [4, 4, 4]), _xorb(3, [50])]
CONTENTS = [[bytes(chunk) for chunk in unpack_chunks(xorb.body)] for xorb in XORBS]
LAYOUTS = {xorb.facts.xorb_hash: xorb.facts.layout for xorb in XORBS}
BODIES = {xorb.facts.xorb_hash: xorb.body for xorb in XORBS}


@st.composite
def _any_terms(draw):
    terms, content = [], b""
    for _ in range(draw(st.integers(1, 12))):
        which = draw(st.integers(0, 2))
        chunks = CONTENTS[which]
        start = draw(st.integers(0, len(chunks) - 1))
        end = draw(st.integers(start + 1, len(chunks)))
        part = b"".join(chunks[start:end])
        terms.append(Term(XORBS[which].facts.xorb_hash, start, end, len(part)))
        content += part
    return terms_of(terms), content


@settings(max_examples=300)
@given(_any_terms(), st.data())
def test_any_range_of_any_file_is_the_slice(file, data):
    terms, content = file
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content) + 5))
    whole = data.draw(st.booleans())
    found = reconstruct(span_of(terms, None if whole else (start, end)), LAYOUTS)
    wanted = content if whole else content[start:end]
    answer = v2_answer(found, _url, ranges_per_url=data.draw(st.integers(1, 3)))

    fetched = {}  # as a client does it: fetch the ranges, find each term inside one of them
    for name, entries in answer["xorbs"].items():
        for piece in (piece for entry in entries for piece in entry["ranges"]):
            body = BODIES[hash_from_text(name)][piece["bytes"]["start"] : piece["bytes"]["end"] + 1]
            chunks = [bytes(chunk) for chunk in unpack_chunks(body)]
            assert len(chunks) == piece["chunks"]["end"] - piece["chunks"]["start"]
            fetched.setdefault(name, []).append((piece["chunks"]["start"], piece["chunks"]["end"], chunks))
    read = b""
    for term in answer["terms"]:
        first, last = term["range"]["start"], term["range"]["end"]
        (inside,) = [entry for entry in fetched[term["hash"]] if entry[0] <= first and last <= entry[1]]
        part = b"".join(inside[2][first - inside[0] : last - inside[0]])
        assert len(part) == term["unpacked_length"]
        read += part
    assert read[answer["offset_into_first_range"] :][: found.length] == wanted

    for ranges in fetched.values():
        assert all(before[1] < after[0] for before, after in pairwise(ranges))

    direct = b""  # as a server does it for a plain read
    for step in reads_of(found, LAYOUTS):
        body = BODIES[step.xorb_hash][step.first_byte : step.last_byte + 1]
        direct += b"".join(unpack_chunks(body))[step.skip : step.skip + step.take]
    assert direct == wanted


@given(_any_terms(), st.data())
def test_no_chunk_too_many(file, data):
    terms, content = file
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    found = reconstruct(span_of(terms, (start, end)), LAYOUTS)
    first, last = found.terms[0], found.terms[-1]
    lengths = {name: layout.chunk_lengths() for name, layout in LAYOUTS.items()}
    assert found.offset_into_first_range < lengths[first.xorb_hash][first.start]
    surplus = sum(term.unpacked_bytes for term in found.terms) - found.offset_into_first_range - found.length
    assert 0 <= surplus < lengths[last.xorb_hash][last.end - 1]


def test_urls_cover_what_they_are_asked_for():
    name = XORBS[0].facts.xorb_hash
    lengths = LAYOUTS[name].chunk_lengths()
    terms = terms_of(Term(name, at, at + 1, lengths[at]) for at in (8, 0, 2, 4, 3, 4))
    asked = []

    def url_of(xorb_hash, ranges):
        asked.append((xorb_hash, [(r.start, r.end) for r in ranges]))
        return f"url {len(asked)}"

    found = reconstruct(span_of(terms, None), LAYOUTS)
    answer = v2_answer(found, url_of, ranges_per_url=2)
    assert asked == [(name, [(0, 1), (2, 5)]), (name, [(8, 9)])]
    (entries,) = answer["xorbs"].values()
    assert [entry["url"] for entry in entries] == ["url 1", "url 2"]
    asked.clear()
    (entries,) = v1_answer(found, url_of)["fetch_info"].values()
    assert [entry["url"] for entry in entries] == ["url 1", "url 2", "url 3"]
    assert asked == [(name, [(0, 1)]), (name, [(2, 5)]), (name, [(8, 9)])]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term(b"?" * 32, 0, 1, 1), "not known"),
        (Term(XORBS[0].facts.xorb_hash, 0, 11, 1), "not in xorb"),
        (Term(XORBS[0].facts.xorb_hash, 3, 3, 1), "not in xorb"),
        (Term(XORBS[0].facts.xorb_hash, 2**32 - 1, 1, 1), "not in xorb"),
        (Term(XORBS[0].facts.xorb_hash, 0, 2, 9), "have 8 bytes, not 9"),
    ],
)
def test_terms_that_do_not_fit(term, message):
    good = Term(XORBS[2].facts.xorb_hash, 0, 1, 50)
    with pytest.raises(InvalidTerms, match=f"term 1: .*{message}"):
        reconstruct(span_of(terms_of([good, term, good]), None), LAYOUTS)
