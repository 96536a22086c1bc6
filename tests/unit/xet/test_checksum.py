from hypothesis import given
from hypothesis import strategies as st

from runstead.xet.checksum import crc64nvme


def test_check_value():
    assert crc64nvme(b"123456789") == 0xAE8B14860A799888
    assert crc64nvme(b"") == 0


def test_bodies_of_the_client(vectors):
    for name, body in vectors.bodies().items():
        assert crc64nvme(body) == int(vectors.xorbs[name]["crc64nvme"])


@given(st.binary(max_size=3000), st.integers(0, 3000))
def test_in_pieces(data, at):
    assert crc64nvme(memoryview(data)[at:], crc64nvme(bytearray(data[:at]))) == crc64nvme(data)
