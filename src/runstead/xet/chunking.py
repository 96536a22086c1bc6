"""Content-defined chunking, for content the server itself produces (wire-storage §1).

The rolling hash shifts one bit per byte, so it depends on the last 64 bytes alone, and no cut is considered before a
chunk has 8192: whether a position may be a cut is therefore independent of where the chunk began. All candidates
of a block are found at once with numpy, by doubling the window six times, and the cuts are picked from them.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from runstead.xet.hashes import Buffer
from runstead.xet.xorb_layout import MAX_CHUNK_BYTES

MIN_CHUNK_BYTES = 8192

_WINDOW = 64
_BLOCK_BYTES = 1 << 16
"""Positions worked on at once; the intermediate numbers should stay in the processor's cache."""
_CUT_BELOW = np.uint64(1 << 48)

GEAR_TABLE: NDArray[np.uint64] = np.frombuffer(
    bytes.fromhex(
        # The constants of the format: 256 numbers of eight bytes, little endian.
        "59f540e8a9d388b0d620ed39f7c75256ab7289896989b24577c78eb6d5890a6bb7317a8b3e578f364bd936e9dc36c61d"
        "b6d554554e4c7a20cb9a232846b374a412b9a31c3ea8063bf7ba022f6c8de7908a9a0d15f72dc9e1add386103a05958e"
        "22073ab8f1f42e5aae7f809f94ac0fa581d6d880eb03730e0fad7015dc7eb0997630fd55b52f9d6868a49e1182500000"
        "28cc8fa80683b0c4fd4a37f68a67b03e3674ad86ab879ff136c76bbebf9f12f2eda4985c57491148c57b479506010000"
        "ccea9c1a8037ba1f6d9ba463d66ff03b4b87e382977e6899e3d850aa7306a17920f411629ecface4719057871fe72025"
        "9b8a1a78fdd3d52b73c811ddcd4dde002f39875a1c31a9eaff40bc17b68e74db6fbf20f68d9a57afb1c2091bdae5a686"
        "2ea122c30ac32fcc6742f7c1fe2a5e357ba421c0f4c8992dc3cf04944a4bdeba697d701d7218b5f7202cf37b58b68632"
        "0c27af8688b6000079908adbe4d615a199e1b2979c7e4f4801e31357b77bcacc60f1b02ba68425bfc8bc5d6213e8e7ad"
        "5a95870d947000006f629e130891e68aa238de2fd76a77bdcfc0fcc21f006bfb27c47be6b874a4c7585deb1016f1f6ba"
        "d170e76d5b1fcb09474c7d97e619b2b04aada76e38bccc00013f97df0a9d84cc70f76a017defa373febdbd86d3d207c8"
        "3017796c96c92a7fda04c5c66ba837d09d60aa1e667cf1f387e6aa4db026a6ac075b4a4f37995a75deae2c5be67e8390"
        "850756fd93ade86ed8ed5310e1d90000d7db1cd2b23b069eb2d2012af177ab07441b64e6550255ecc6149c44a894fb78"
        "f5f5c0c61b0e51c7e3cae4360b3200002d1a8b2c26337c824441ea480b5f6714ebec8d49a6d37b265e03f582f96f91f1"
        "88fb34f47f1b2286d8496f38e7cebe9d4a8f0fc8caf858ead864fc9286198d00369abfba4f70386d4cbee7d107cb32e0"
        "900845adf6218d22a58925c0bfb15c6371cea29c73a1204658fbe5aae3dfe7a7eb0d3c2b93ca100c7bedaf84e8fe2727"
        "1fabe2f96d1cdfa223f57407acd1cd4d4ee233adff700000167897c57be8aca2496028b45a2792985989f1dd811186c2"
        "193e4842a07299bb7830516637cd70ef6498fcab130500008340c95818b658c0dee025978550e809947d3ef83bfb9791"
        "ce4bb6126d621e7ed1577b7f50540c521624e2747179e1be8755e92232acd96f3ebfdf9a7c95230015be4b237e7d1ca0"
        "bb8ca3b858c7a2ab302b3eeccea01f0d91b9607e8ba5b60b3566a29f5bdd3343a3c101407d3bfdc227117354248041fb"
        "cb180da58561a5654fb58487bd027af66350e667dd116f69ab14a8fc2220000052d8b92d91bed68c578aaee9b6895169"
        "280cda0ab55394ee5e84781aa95efcd867a74a1a19bf86abe51564c8b5c600002ea2088e1710732625ca8b071b102ded"
        "fba826b284ed413b06dc280f1222e613266d70fbebf515a3ceba01334ec31688aefd71bb9c5b39e94816722e20e92c00"
        "1cc9b32b1ddb8342a5a6b1d21a467dd76b86eb6ee417ece27cc4fb3940bee0b8049d29d5c460a1de34368cd2c886ec7e"
        "99a3989f12ad1921ef83a2616bf4cca617c658f6dece522c83ddac691187b42de9cb9ef3d6f0000089942f8dc9d8d53d"
        "84f5012ba272188af23c7b0ec4a482f296a11bcb2cec208013e3599ee0b69366eb837ccc19ce00003b9c47f63557cb20"
        "5b5ad75937bf2e767539693d82fe7b20d5d99c3312c17dd7037d62844283a79be9515fe913c57d2116785efc291a7bb2"
        "2d66bb3198cdd5004c73756d809be371231afb06f02a577e851fe96a2f4f73a2f2dd2c02b5c682bfdea06107c6ea3b5c"
        "98694147bb93c8cd017e185c6185106d5d7c27ac30aef877912c2a12816b7c916769d1ad99b6755b9b069ae76acf0000"
        "0411de60fa0ac4f3c36791a57a1263204d89d16922e61d6226472be61dac88d13c674b15e23670101d3a55285fb80000"
        "3d6f23184c4eeff202f6b91166ded6d91c9147fb5579fca1bd8d292f03fd85ebe1fabeb32f5027be1e66cdc4514203e3"
        "36180754d36413443e98f2756cb38200f066fa16039145b1f7ca47989c061c0221524b5ac7df1029b5a8571c3e355b73"
        "6cd98ee92c3144ce65fabd06452e94bc1b945712a78650f0adce51d315b2c3fe024214e05510ae0054e4426f84404bf5"
        "c8bcbcc8d97f0000fe9bde17f39ebdbf124e85f22f3004a8d4d8e5a55749ce3984ba3756a4e2b9ff8b81a09e1dadb955"
        "8a1719f3cb8a000038fbfbd0c8bfe248e8b548e84198e38b8ba096061612270e2a24444be89610d53ae1926717ba0111"
        "9d6831450f772ec26cc5bb72f2ef8916ec50567f192aa9004e78a1bd905976bcaeb8fc92e34114c6a0e431ed2c3ae107"
        "4d9d4e2384e9cb92c58a7dbb72f54f8fd03b960bc070960b01eb031a585a9562540200eae5835f6499f288cd16e5fc41"
        "cf987ada4897dabbfa4548feb2aa00005565f59b061b761956adb643835e8f8bd9214814fd1c5d3e8fcdb0a22c1e5cec"
        "7fb5fba7fee0f7fa1b9612bad30000008eb1018417903fdaeb5f3ae36d90ff70e77069c0a7d52705e9137c6073e7d822"
        "ac3b3c64df70abc9e312be8adcc6a4ed8ae73300411fefeccb72ac74b2c22400b400a94f950d740604633d329b297a1d"
        "d5eacb98b27cc3b39b737861c7e386c98af5464b36eaab9f56cc85afc514a26d848fa3b7d83ea417ebdb9a1d51eccc6e"
        "fb5a331309b3caf9d2ee15f4c5605e4ab47236506769000087bb5414121da59d16c8bbb9131e32848ddd2fabb66f3dfb"
        "8d0a168eed5e3060e86c94e9144bbfcbc3101b38634f0000104ecc6f81b7d50755816a6a7236a5e5dd7fa04734b2af57"
        "94d3c9abf746f3183dd31ad655c66d63f6f3f73949ab8bcc7b18ddc106a9c763"
    ),
    "<u8",
).astype(np.uint64)
"""What each value of a byte adds to the rolling hash."""


def chunks(pieces: Iterable[Buffer]) -> Iterator[bytes]:
    """Yield the chunks of the content that `pieces` make up, in order; their sizes do not matter.

    Every chunk has 8192 to 131072 bytes, the last one of the content 1 to 131072. Holds at most one chunk and
    one piece.
    """
    pending = bytearray()
    for piece in pieces:
        candidates = _candidates(memoryview(bytes(pending[-_WINDOW:])), piece) + len(pending)
        pending += piece
        start = 0
        for end in _cuts(candidates, len(pending)):
            yield bytes(pending[start:end])
            start = end
        del pending[:start]
    if pending:
        yield bytes(pending)


def chunk_ends(data: Buffer) -> list[int]:
    """Return the end offset of each chunk of this content; the last one is its length, none if it is empty."""
    ends = list(_cuts(_candidates(memoryview(b""), data), len(data)))
    if len(data) > (ends[-1] if ends else 0):
        ends.append(len(data))
    return ends


def _cuts(candidates: NDArray[np.int64], length: int) -> Iterator[int]:
    """Yield the ends of the chunks that surely end within `length` bytes from the start of a chunk."""
    start = 0
    while True:
        index = int(np.searchsorted(candidates, start + MIN_CHUNK_BYTES))
        longest = start + MAX_CHUNK_BYTES
        end = min(int(candidates[index]), longest) if index < len(candidates) else longest
        if end > length:
            return
        yield end
        start = end


def _candidates(before: memoryview, data: Buffer) -> NDArray[np.int64]:
    """Return the ends, counted from the start of `data`, after which the rolling hash allows a cut.

    `before` is what precedes `data`, as much of a window as there is; positions without a full window before them
    come out wrong, but lie below the smallest chunk.
    """
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    with memoryview(data) as view:
        for start in range(0, len(view), _BLOCK_BYTES):
            end = min(start + _BLOCK_BYTES, len(view))
            lead = view[max(0, start - _WINDOW) : start] if start else before
            block = np.frombuffer(b"".join((lead, view[start:end])), np.uint8)
            hits = np.flatnonzero(_rolling_hashes(block)[len(lead) :] < _CUT_BELOW)
            found.append(hits + (start + 1))
    return np.concatenate(found)


def _rolling_hashes(block: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hash after each byte, over the up to 64 bytes that end with it."""
    hashes = np.take(GEAR_TABLE, block, out=np.empty(len(block), np.uint64), mode="clip")
    shifted = np.empty_like(hashes)
    width = 1
    while width < _WINDOW:
        earlier = np.left_shift(hashes[:-width], np.uint64(width), out=shifted[:-width])
        hashes[width:] += earlier
        width *= 2
    return hashes
