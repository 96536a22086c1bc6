"""Addresses: nobody is led to another site, and no other site can send a form."""

import pytest
from starlette.requests import Request

from runstead.model.errors import Forbidden
from runstead.web.addresses import check_same_origin, is_secure, safe_next


def request(scheme: str = "http", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "scheme": scheme, "path": "/", "headers": raw, "server": ("x", 80)})


@pytest.mark.parametrize(
    "path",
    ["/", "/jobs", "/jobs/me/68a1b2c3d4e5f60718293a4b", "/jobs/a?stage=RUNNING&label=a%3Db", "/buckets/a/b/tree/x"],
)
def test_a_path_of_this_site_is_kept(path: str) -> None:
    assert safe_next(path) == path


@pytest.mark.parametrize(
    "trick",
    [
        None,
        "",
        "jobs",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/jobs\\..\\..//evil.example",
        "https://evil.example",
        "https:evil.example",
        "https:/evil.example",
        "HTTPS://evil.example/jobs",
        "javascript:alert(1)",
        "data:text/html,x",
        "/\t/evil.example",
        "/\n/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/jobs\r\nSet-Cookie: a=b",
        "/jobs\0",
        "/\u2028/evil.example",
        "/é",
        "//[evil",
        "/" + "x" * 3000,
        "/login",
        "/login?next=/login",
        "/logout",
        "@evil.example",
        ".evil.example",
    ],
)
def test_everything_else_leads_to_the_start(trick: str | None) -> None:
    assert safe_next(trick) == "/"


@pytest.mark.parametrize(
    "sent",
    [
        request(host="a:1", origin="http://a:1"),
        request(host="a:1", origin="http://a:1", sec_fetch_site="same-origin"),
        request(host="a:1", sec_fetch_site="same-origin"),
        request(host="a", origin="https://a"),  # a proxy took the TLS off
        request(host="internal:1", origin="https://pub.example"),
        request("https", host="a", origin="https://a"),
    ],
)
def test_our_own_forms_are_taken(sent: Request) -> None:
    check_same_origin(sent, "https://pub.example")


@pytest.mark.parametrize(
    "sent",
    [
        request(host="a:1"),
        request(host="a:1", origin="null"),
        request(host="a:1", origin=""),
        request(host="a:1", origin="http://a:2"),
        request(host="a:1", origin="http://a"),
        request(host="a:1", origin="http://evil.example"),
        request(host="a:1", origin="http://a:1.evil.example"),
        request(host="a:1", origin="http://a:1", sec_fetch_site="same-site"),
        request(host="a:1", origin="http://a:1", sec_fetch_site="cross-site"),
        request(host="a:1", origin="http://a:1", sec_fetch_site="none"),
        request("https", host="a", origin="http://a"),
        request(host="a:1", origin="http://pub.example"),
    ],
)
def test_forms_of_others_are_not(sent: Request) -> None:
    with pytest.raises(Forbidden):
        check_same_origin(sent, "https://pub.example")


def test_https_is_known_also_behind_a_proxy() -> None:
    assert is_secure(request("https", host="a"), None)
    assert is_secure(request(host="pub.example"), "https://pub.example")
    assert not is_secure(request(host="10.0.0.1:5627"), "https://pub.example")
    assert not is_secure(request(host="a"), None)
