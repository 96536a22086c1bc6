"""Deterministic inputs for the vectors. Pure integer arithmetic, standard library only."""

import struct


def splitmix64(seed: int, nbytes: int) -> bytes:
    m = (1 << 64) - 1
    s = seed & m
    out = bytearray()
    while len(out) < nbytes:
        s = (s + 0x9E3779B97F4A7C15) & m
        z = s
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & m
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & m
        z ^= z >> 31
        out += struct.pack("<Q", z)
    return bytes(out[:nbytes])


def text_lines(first: int, nbytes: int) -> bytes:
    """lines 'row <i> value <i*i mod 9973>\\n' from i = first, cut at nbytes"""
    out = bytearray()
    i = first
    while len(out) < nbytes:
        out += b"row %d value %d\n" % (i, i * i % 9973)
        i += 1
    return bytes(out[:nbytes])


def f32_noise(seed: int, n: int) -> bytes:
    """n little-endian 32-bit words 0x3F800000 | (low 15 bits of each 32-bit half of splitmix64(seed))"""
    r = splitmix64(seed, 4 * n)
    return struct.pack(f"<{n}I", *[0x3F800000 | (w & 0x7FFF) for w in struct.unpack(f"<{n}I", r)])


def decimal_lines(nbytes: int) -> bytes:
    """'0\\n1\\n2\\n...' cut at nbytes"""
    out = []
    size = 0
    i = 0
    while size < nbytes:
        b = b"%d\n" % i
        out.append(b)
        size += len(b)
        i += 1
    return b"".join(out)[:nbytes]


INPUTS = {
    "empty": lambda: b"",
    "one": lambda: b"x",
    "s100": lambda: splitmix64(100, 100),
    "text300k": lambda: text_lines(0, 300_000),
    "f32_200k": lambda: f32_noise(5, 50_000),
    "rand300k": lambda: splitmix64(1, 300_000),
    "zeros1m": lambda: bytes(1 << 20),
    "rand1m": lambda: splitmix64(2, 1_000_000),
    "mix": lambda: (
        splitmix64(2, 1_000_000)[:650_000] + text_lines(7_000_000, 100_000) + splitmix64(2, 1_000_000)[300_000:]
    ),
    "sha200k": lambda: splitmix64(3, 200_000),
    "dec12m": lambda: decimal_lines(12_000_000),
    "zeros20m": lambda: bytes(20 << 20),
    "rand4m": lambda: splitmix64(4, 4_000_000),
}
