"""Certificates that are given as files: what is wrong with them, and that they are renewed while connections begin."""

import os
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509

from authorities import Authority, Pair
from runstead.kit.clock import SystemClock
from runstead.model.errors import Unavailable
from runstead.proxy.certificate_files import load, read, shortcomings
from runstead.proxy.tls import ServerTls

NAMES = ("runstead.example.com", "*.jobs.example.com")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> Pair:
    made = Pair(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    made.put(authority.issue(*NAMES))
    return made


class TurnedClock(SystemClock):
    """Time that passes when it is told to."""

    days = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self.days)


def shown(context: ssl.SSLContext, authority: Authority) -> int:
    """The serial number of what a client that trusts the authority is shown."""
    trust = ssl.create_default_context(cafile=authority.root)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = threading.Thread(target=lambda: context.wrap_socket(ours, server_side=True).close())
        server.start()
        with trust.wrap_socket(theirs, server_hostname="x--1.jobs.example.com") as client:
            found = client.getpeercert(binary_form=True)
        server.join(20)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes()).serial_number


def texts(pair: Pair, *names: str) -> list[str]:
    found = shortcomings(pair.certificate, read(pair.certificate, pair.key), names or NAMES, datetime.now(UTC))
    return [one.text for one in found if one.certain]


def test_a_good_pair_lacks_nothing(pair: Pair, authority: Authority) -> None:
    assert texts(pair) == []
    assert shown(load(pair.certificate, pair.key)[0], authority) == serial(pair)


def test_what_clients_will_refuse_is_said(authority: Authority) -> None:
    [said] = texts(authority.issue(*NAMES, starts=-9, ends=-1))
    assert "ended on" in said and "clients refuse it" in said
    [said] = texts(authority.issue(*NAMES, starts=1))
    assert "begins on" in said
    [said] = texts(authority.issue(*NAMES, starts=-20, ends=1))
    assert "was not renewed" in said
    [said] = texts(authority.issue("runstead.example.com", "jobs.example.com"))
    assert "and not for *.jobs.example.com: clients refuse the hosts of ports" in said
    [said] = texts(authority.issue("*.jobs.example.com"))
    assert said.endswith("is for *.jobs.example.com, and not for runstead.example.com")
    assert texts(authority.issue("*.example.com", "*.jobs.example.com")) == []
    assert texts(authority.issue("*.example.com"), "*.example.com", "a.b.example.com") != []


def test_a_chain_that_leads_nowhere_is_said(authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(certificate: Path) -> list[str]:
        found = shortcomings(certificate, read(certificate, pair.key), NAMES, datetime.now(UTC))
        return [one.text for one in found]

    [text] = said(pair.certificate)
    assert "Example Trust Root" in text and "do not know" in text
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    assert said(pair.certificate) == []
    alone = pair.certificate.with_name("cert.pem")
    alone.write_bytes(b"".join(pair.certificate.read_bytes().partition(b"-----END CERTIFICATE-----\n")[:2]))
    [text] = said(alone)
    assert "Example Trust R3" in text
    alone.write_bytes(alone.read_bytes() + authority.root.read_bytes())
    [text] = said(alone)
    assert "is no chain" in text


def test_pairs_that_cannot_be_used(pair: Pair, authority: Authority, tmp_path: Path) -> None:
    other = authority.issue(*NAMES)
    junk, chain = tmp_path / "junk", tmp_path / "chain"
    junk.write_text("junk")
    parts = pair.certificate.read_bytes().split(b"-----BEGIN")
    chain.write_bytes(b"-----BEGIN".join([parts[0], parts[2], parts[1]]))
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(pair.key), "-aes128", "-passout", "pass:word", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    for certificate, key, word in (
        (pair.certificate, other.key, "does not belong to"),
        (pair.certificate, tmp_path / "none", "No such file"),
        (pair.certificate, junk, "no private key"),
        (pair.certificate, locked, "password"),
        (junk, pair.key, "no certificate"),
        (chain, pair.key, "comes first"),
    ):
        with pytest.raises(Unavailable, match=word):
            ServerTls(certificate, key, SystemClock())


def test_a_renewed_pair_is_taken_as_a_whole(pair: Pair, authority: Authority) -> None:
    tls = ServerTls(pair.certificate, pair.key, SystemClock(), NAMES)
    first, before = serial(pair), tls.current()
    fresh = authority.issue(*NAMES)
    with structlog.testing.capture_logs() as said:
        pair.certificate.write_bytes(fresh.certificate.read_bytes())  # half of it
        tls.refresh()
        assert shown(tls.current(), authority) == first and said == []
        tls.refresh()
        tls.refresh()
        assert shown(tls.current(), authority) == first
        assert [one["log_level"] for one in said] == ["error"] and "does not belong" in said[0]["error"]
        pair.put(fresh)
        tls.refresh()
        assert shown(tls.current(), authority) == serial(fresh) != first
        tls.refresh()
    assert shown(before, authority) == first  # what had begun goes on
    assert [one["event"] for one in said[1:]] == ["the certificate was read again"]
    assert said[1]["names"] == list(NAMES)


def test_files_that_go_away_leave_the_last_pair_in_use(pair: Pair, authority: Authority) -> None:
    tls = ServerTls(pair.certificate, pair.key, SystemClock(), NAMES)
    first = serial(pair)
    pair.key.unlink()
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            tls.refresh()
    assert ["No such file" in one["error"] for one in said] == [True]
    assert shown(tls.current(), authority) == first


def test_a_link_that_leads_elsewhere_is_a_renewal(pair: Pair, authority: Authority, tmp_path: Path) -> None:
    """As certbot does it, and with times that say nothing."""
    fresh = authority.issue(*NAMES)
    live = Pair(tmp_path / "live.pem", tmp_path / "live.key")
    for link, old, new in ((live.certificate, pair.certificate, fresh.certificate), (live.key, pair.key, fresh.key)):
        os.utime(old, ns=(10**18, 10**18))
        os.utime(new, ns=(10**18, 10**18))
        link.symlink_to(old)
    tls = ServerTls(live.certificate, live.key, SystemClock(), NAMES)
    for link, new in ((live.certificate, fresh.certificate), (live.key, fresh.key)):
        link.unlink()
        link.symlink_to(new)
    tls.refresh()
    assert shown(tls.current(), authority) == serial(fresh)


def test_one_that_is_not_renewed_is_said_every_day(pair: Pair, authority: Authority) -> None:
    clock = TurnedClock()
    tls = ServerTls(pair.certificate, pair.key, clock, NAMES)
    with structlog.testing.capture_logs() as said:
        for clock.days in (0.5, 19.9, 19.95, 21.0, 21.5):
            tls.refresh()
    assert [" ended on " in one["because"] for one in said] == [False, True]
