import numpy as np
import pytest

from runstead.xet.dedup import dedup_answer, eligible_chunks
from runstead.xet.errors import InvalidShard
from runstead.xet.hashes import ZERO_HASH, hash_from_text, hash_to_text, keyed_hashes
from runstead.xet.shard import ShardFooter, read_shard
from runstead.xet.xorb_layout import XorbFacts

NAME = "f1376370d2dff8ec59b0dc3349190cff18d4174a13e0fa87c0c0a37c08bbbadb"


def test_the_recorded_answer(vectors):
    data = vectors.read("dedup/response.shard")
    record = vectors.json("dedup/dedup.json")
    key = bytes.fromhex(record["hmac_key"])
    shard, footer_at = read_shard(data), len(data) - 200
    assert shard.footer is not None and shard.footer.hmac_key == key == data[footer_at + 72 : footer_at + 104]
    assert shard.files == ()
    facts = vectors.facts(NAME)
    assert shard.xorbs[0].chunk_hashes() == keyed_hashes(key, facts.chunk_hashes)
    assert facts.chunk_hashes.startswith(hash_from_text(record["hit"]))
    written = dedup_answer(
        [facts], hmac_key=key, created_at=shard.footer.created_at, key_expires_at=shard.footer.key_expires_at
    )
    assert written == data


def test_what_the_client_sent_after_it(vectors):
    shard = read_shard(vectors.read("dedup/resulting_upload.shard"))
    assert shard.xorbs == () and len(shard.files) == 1
    assert hash_to_text(shard.files[0].file_hash) == vectors.files["rand1m"]["xet_hash"]
    assert shard.files[0].terms.xorb_hashes() == [hash_from_text(NAME)]


def test_plain_answer_about_several_xorbs(vectors):
    facts = [vectors.facts(name) for name in vectors.bodies()]
    data = dedup_answer(reversed(facts), hmac_key=ZERO_HASH, created_at=1, key_expires_at=2, lookups=False)
    shard = read_shard(data)
    assert shard.footer == ShardFooter(ZERO_HASH, 1, 2, lookups=False)
    assert [hash_to_text(block.xorb_hash) for block in shard.xorbs] == sorted(vectors.bodies())
    for block in shard.xorbs:
        known = vectors.facts(hash_to_text(block.xorb_hash))
        assert block.chunk_hashes() == known.chunk_hashes
        assert block.chunk_lengths().tolist() == known.layout.chunk_lengths()
    assert len(data) == 48 + 48 + sum(48 * (1 + f.layout.chunk_count) for f in facts) + 48 + 200


def test_unknown_hashes(vectors):
    facts = vectors.facts(NAME)
    with pytest.raises(InvalidShard, match=NAME):
        dedup_answer(
            [XorbFacts(facts.xorb_hash, facts.layout, None)], hmac_key=ZERO_HASH, created_at=0, key_expires_at=0
        )


def test_eligible_chunks():
    hashes = np.zeros((6, 4), "<u8")
    hashes[:, 3] = [0, 1, 1024, 1025, 2**64 - 1024, 512]
    assert eligible_chunks(hashes.tobytes()) == [0, 2, 4]
    assert eligible_chunks(b"") == []
