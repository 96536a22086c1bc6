import os

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from runstead.xet.errors import InvalidHash
from runstead.xet.hashes import (
    ZERO_HASH,
    chunk_hash,
    file_hash,
    file_hash_of_root,
    hash_from_text,
    hash_to_text,
    keyed_hashes,
    range_hash,
)
from runstead.xet.merkle import MerkleTree, merkle_root


def test_text_form(vectors):
    for case in vectors.data["hash_string"]:
        assert hash_to_text(bytes.fromhex(case["bytes_hex"])) == case["string"]
        assert hash_from_text(case["string"]).hex() == case["bytes_hex"]


@given(st.binary(min_size=32, max_size=32))
def test_text_form_and_back(value):
    assert hash_from_text(hash_to_text(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 63,
        "0" * 65,
        "0" * 62 + "\n0",
        "0" * 64 + "\n",
        "A" * 64,
        "g" * 64,
        "０" * 64,
        " " * 64,
        "0x" + "0" * 62,
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(InvalidHash):
        hash_from_text(text)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_lengths_are_refused(length):
    with pytest.raises(InvalidHash, match=str(length)):
        hash_to_text(bytes(length))


def test_order_of_text_is_order_of_numbers():
    values = [os.urandom(32) for _ in range(200)]
    numbers = [tuple(int.from_bytes(value[at : at + 8], "little") for at in range(0, 32, 8)) for value in values]
    by_number = [value for _, value in sorted(zip(numbers, values, strict=True))]
    assert sorted(values, key=hash_to_text) == by_number


def test_root_of_the_chunks_is_the_xorb(vectors):
    for name in vectors.xorbs:
        hashes, lengths = vectors.chunk_list(name)
        assert hash_to_text(merkle_root(hashes, lengths)) == name


def test_file_and_range_hashes(vectors):
    for name, file in vectors.files.items():
        hashes, lengths = b"", []
        for term in vectors.terms(name):
            xorb_hashes, xorb_lengths = vectors.chunk_list(term["xorb"])
            part = xorb_hashes[32 * term["start"] : 32 * term["end"]]
            assert hash_to_text(range_hash(part)) == term["range_hash"]
            hashes += part
            lengths += xorb_lengths[term["start"] : term["end"]]
        assert hash_to_text(file_hash(hashes, lengths)) == file["xet_hash"]
        assert len(lengths) == file["n_chunks"]


def test_a_single_chunk_is_its_own_root():
    name = chunk_hash(b"x")
    assert merkle_root(name, [1]) == name
    assert file_hash(name, [1]) == file_hash_of_root(name) == blake3(name, key=ZERO_HASH).digest()


def test_an_empty_file_has_the_zero_hash():
    assert file_hash(b"", []) == ZERO_HASH
    assert MerkleTree().root() is None


def _plain_root(nodes: list[tuple[bytes, int]]) -> bytes:
    """The definition, word by word and slow."""
    while len(nodes) > 1:
        parents = []
        while nodes:
            left = len(nodes)
            size = min(9, left)
            if left > 2:
                for k in range(2, min(9, left)):
                    if int.from_bytes(nodes[k][0][24:], "little") % 4 == 0:
                        size = k + 1
                        break
            text = "".join(f"{hash_to_text(name)} : {length}\n" for name, length in nodes[:size])
            key = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
            parents.append((blake3(text.encode(), key=key).digest(), sum(length for _, length in nodes[:size])))
            nodes = nodes[size:]
        nodes = parents
    return nodes[0][0]


@given(
    count=st.integers(1, 400),
    seed=st.integers(0, 2**32),
    divisible=st.sampled_from(["some", "all", "none"]),
    pieces=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_roots_agree_with_the_definition(count, seed, divisible, pieces):
    hashes = bytearray(blake3(seed.to_bytes(8, "little")).digest(32 * count))
    if divisible != "some":
        for at in range(24, len(hashes), 32):
            hashes[at] = hashes[at] & 0xFC if divisible == "all" else hashes[at] | 1
    hashes = bytes(hashes)
    lengths = [1 + (seed + index) % 131072 for index in range(count)]
    nodes = [(hashes[32 * index : 32 * index + 32], length) for index, length in enumerate(lengths)]
    wanted = _plain_root(nodes)
    assert merkle_root(hashes, lengths) == wanted
    tree, at, turn = MerkleTree(), 0, 0
    while at < count:
        size = pieces[turn % len(pieces)]
        tree.add(hashes[32 * at : 32 * (at + size)], lengths[at : at + size])
        at, turn = at + size, turn + 1
    assert tree.root() == wanted


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 4095, 4096, 4097, 8192, 20000])
@pytest.mark.parametrize("batch", [1, 7, 4096, 100000])
def test_a_tree_that_grows_equals_the_root_of_the_list(count, batch):
    hashes = blake3(b"tree").digest(32 * count)
    lengths = [1 + index % 9999 for index in range(count)]
    tree = MerkleTree()
    for at in range(0, count, batch):
        tree.add(hashes[32 * at : 32 * (at + batch)], lengths[at : at + batch])
    assert tree.root() == merkle_root(hashes, lengths)


def test_hmacs(vectors):
    key = bytes.fromhex(vectors.json("dedup/dedup.json")["hmac_key"])
    hashes = os.urandom(96)
    assert keyed_hashes(key, hashes) == b"".join(
        blake3(hashes[at : at + 32], key=key).digest() for at in range(0, 96, 32)
    )
    assert keyed_hashes(ZERO_HASH, hashes) == hashes
