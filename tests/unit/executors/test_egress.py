"""The list of what jobs may reach: how it is read, and what its names mean over time."""

from ipaddress import IPv4Network

import pytest

from runstead.executors.egress import Egress, Opening
from runstead.kit.targets import Target, parse_target


@pytest.mark.parametrize(
    ("text", "where", "port"),
    [
        ("10.0.0.0/8", IPv4Network("10.0.0.0/8"), None),
        ("10.1.2.3", IPv4Network("10.1.2.3/32"), None),
        ("10.1.2.3:443", IPv4Network("10.1.2.3/32"), 443),
        ("10.0.0.0/8:22", IPv4Network("10.0.0.0/8"), 22),
        ("pypi.org", "pypi.org", None),
        ("pypi.org.:443", "pypi.org", 443),
        ("registry", "registry", None),
    ],
)
def test_what_people_write(text: str, where: object, port: int | None) -> None:
    assert parse_target(text) == Target(where, port)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", ":443", "a b", "10.0.0.0/33", "10.0.0.1/8", "1.2.3", "x:0", "x:65536", "x:y", "http://x", "::1", "-x"]
)
def test_what_is_none_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="should"):
        parse_target(text)


def test_names_mean_all_that_they_meant_lately() -> None:
    answers = {"a.example": ["192.0.2.1"], "b.example": []}
    egress = Egress(["a.example:443", "b.example", "10.0.0.0/8"], lambda name: answers[name])
    assert egress.has_names
    assert egress.refresh(now=0) == ["b.example"]
    ten = Opening(IPv4Network("10.0.0.0/8"), None)
    assert egress.openings() == [Opening(IPv4Network("192.0.2.1/32"), 443), ten]
    assert egress.hosts() == [["192.0.2.1", "a.example"]]
    answers["a.example"] = ["192.0.2.2"]
    answers["b.example"] = ["192.0.2.9"]
    assert egress.refresh(now=60) == []
    assert {str(one.network) for one in egress.openings()} == {
        "192.0.2.1/32",
        "192.0.2.2/32",
        "192.0.2.9/32",
        "10.0.0.0/8",
    }
    assert egress.hosts() == [["192.0.2.2", "a.example"], ["192.0.2.9", "b.example"]]
    egress.refresh(now=3601)
    assert "192.0.2.1/32" not in {str(one.network) for one in egress.openings()}
    answers["b.example"] = []
    assert egress.refresh(now=3700) == []  # for a while what was known holds
    assert egress.refresh(now=9000) == ["b.example"]
    assert ["192.0.2.9", "b.example"] not in egress.hosts()


def test_a_list_of_addresses_needs_no_looking_up() -> None:
    egress = Egress(["10.0.0.0/8"], lambda name: pytest.fail(name))
    assert not egress.has_names
    assert egress.refresh() == []
