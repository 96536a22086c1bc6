"""What `runstead doctor` says of certificates and names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from authorities import Authority, Pair
from runstead.cli import tls_checks
from runstead.cli.findings import Level
from runstead.kit.settings import ProxySettings, ServerSettings, Settings


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.root))
    return made


def said(pair: Pair | None = None, proxy: Mapping[str, Any] = {}, **server: Any) -> list[tuple[Level, str, str]]:
    files = {"tls": "files", "certificate": pair.certificate, "key": pair.key} if pair else {}
    asked = {
        "server": {"public_url": "https://runstead.example.com"} | server,
        "proxy": {"domain": "jobs.example.com", **files, **proxy},
    }
    found = tls_checks.certificate(Settings.model_validate(asked))
    return [(one.level, one.text, one.remedy or "") for one in found]


def test_a_good_certificate(authority: Authority) -> None:
    [(level, text, _)] = said(authority.issue("runstead.example.com", "*.jobs.example.com"))
    assert level is Level.OK and "a certificate for runstead.example.com, *.jobs.example.com until 20" in text


def test_what_is_wrong_with_one(authority: Authority) -> None:
    pair = authority.issue("runstead.example.com", starts=-9, ends=-1)
    pair.key.chmod(0o644)
    _, expired, names, readable = said(pair)
    assert {expired[0], names[0], readable[0]} == {Level.MISSING}
    assert "ended on" in expired[1] and "not for *.jobs.example.com" in names[1] and "can read the key" in readable[1]
    assert names[2] == "have it issued for runstead.example.com, *.jobs.example.com"
    [(level, text, remedy)] = said(Pair(pair.certificate, authority.issue("x").key))
    assert level is Level.FAILED and "does not belong to the certificate" in text and "pair" in remedy


def test_https_by_others() -> None:
    assert [level for level, _, _ in said(proxy={"tls": "own"})] == [Level.OK]
    [(level, text, _)] = said()
    assert level is Level.NOTE and "not named" in text
    [(level, text, _)] = said(trusted_proxies=("10.0.0.5",))
    assert level is Level.OK and "10.0.0.5" in text
    [(level, text, _)] = said(public_url=None)
    assert level is Level.NOTE and "there is none" in text


def test_names_that_nobody_knows() -> None:
    settings = Settings(
        server=ServerSettings(public_url="https://localhost:1"), proxy=ProxySettings(domain="jobs.invalid")
    )
    [finding] = tls_checks.names(settings)
    assert finding.level is Level.MISSING and "*.jobs.invalid is not known" in finding.text
    assert "add a record for *.jobs.invalid" in (finding.remedy or "")
