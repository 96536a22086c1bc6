"""What a server must survive: every wrong request is refused in the Hub's form, by the name of what is wrong."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from calls import Answer, Api
from clients import Server, eventually
from faults import run_quickly

GOOD: dict[str, Any] = {"command": ["true"], "dockerImage": "python:3.12"}
NO_JOB = "0" * 24
LIMIT = 16_000_000


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


@pytest.fixture
def path(server: Server) -> str:
    return f"/api/jobs/{server.owner}"


@pytest.fixture(autouse=True)
def nothing_is_stored(request: pytest.FixtureRequest, server: Server) -> Iterator[None]:
    """After a refusal there are as many jobs as before, the server answers, and it has no failure of its own."""
    api = Api(server)
    before = api.count()
    yield
    assert api.get("/healthz").status == 200
    if request.function not in STORING:
        assert api.count() == before
    assert "a request failed unexpectedly" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def refused(answer: Answer, *words: str, status: int | tuple[int, ...] = 400) -> None:
    """Check for a refusal in the Hub's form whose reason has all these words."""
    assert answer.status in (status if isinstance(status, tuple) else (status,)), answer
    for word in words:
        assert word in answer.error, answer
        assert word in answer.headers["x-error-message"], answer


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"nonsense", "not valid JSON"),
        (b'{"command": ["true"],}', "not valid JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'"text"', "JSON object"),
        (b"null", "JSON object"),
        (b'{"command": ["\xff"], "dockerImage": "a"}', "UTF-8"),
        (b'{"command": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"command": ["true"], "dockerImage": "a", "timeoutSeconds": ' + b"9" * 5000 + b"}", "digits"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_a_body_that_is_no_json_object_is_refused(api: Api, path: str, body: bytes, reason: str) -> None:
    refused(api.post(path, body), reason)
    refused(api.put(f"{path}/{NO_JOB}/labels", body), reason)


WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "command": (None, True, 7, "true", {}, [1], [None], [["true"]]),
    "arguments": (None, True, 7, "x", {}, [1], [[]]),
    "environment": (None, True, 7, "A=1", ["A=1"], {"A": []}, {"A": {"B": 1}}),
    "secrets": (None, True, 7, "A=1", ["A=1"], {"A": []}, {"A": {"B": 1}}),
    "flavor": (None, True, 7, [], {}),
    "dockerImage": (True, 7, [], {}),
    "timeoutSeconds": (True, "60", "soon", 1.5, [], {}, 0, -1, 10**18),
    "attempts": (True, "2", 1.5, [], {}, 0, -1, 10**18),
    "labels": (None, True, 7, "a=b", ["a=b"], {"a": 1}, {"a": None}, {"a": []}),
    "volumes": (True, 7, "x", {}, [1], ["x"]),
    "expose": (True, 7, "8000", [8000], {"ports": "8000"}, {"ports": ["8000"]}, {"ports": [True]}),
    "ssh": (7, "yes", [], {"enabled": "perhaps"}),
    "network": (True, 7, "x", [], {"group": 7}, {"group": "a", "aliases": "b"}),
    "resourceGroupId": (True, 7, [], {}),
    "arch": (True, 7, [], "sparc"),
    "tags": (None, True, "x", [1]),
}


@pytest.mark.parametrize("field", WRONG_TYPES)
def test_a_wrong_type_is_refused_by_the_name_of_the_field(api: Api, path: str, field: str) -> None:
    for value in WRONG_TYPES[field]:
        refused(api.post(path, {**GOOD, field: value}), field)


@pytest.mark.parametrize("field", ["command", "dockerImage"])
def test_a_missing_field_is_refused_by_its_name(api: Api, path: str, field: str) -> None:
    refused(api.post(path, {name: value for name, value in GOOD.items() if name != field}), field)


HALF_A_PAIR = "\ud800"
WRONG_VALUES: list[tuple[dict[str, Any], str, int]] = [
    ({"flavor": "no-such-flavor"}, "flavor", 400),
    ({"flavor": ""}, "flavor", 400),
    ({"flavor": "x" * 1_000_000}, "flavor", 400),
    ({"command": []}, "command", 400),
    ({"command": [""]}, "command[0]", 400),
    ({"command": ["a\0b"]}, "command[0]", 400),
    ({"command": [HALF_A_PAIR]}, "command[0]", 400),
    ({"command": ["x" * 200_000]}, "command[0]", 413),
    ({"command": ["x"] * 10_001}, "command", 413),
    ({"arguments": ["a\0b"]}, "arguments[0]", 400),
    ({"environment": {"": "x"}}, "environment", 400),
    ({"environment": {"A=B": "x"}}, "environment", 400),
    ({"environment": {"A\0": "x"}}, "environment", 400),
    ({"environment": {"A\x01\r\nX-Fake: yes": "\0"}}, "environment", 400),
    ({"environment": {"A": "\0"}}, "environment.A", 400),
    ({"environment": {"A": HALF_A_PAIR}}, "environment.A", 400),
    ({"environment": {HALF_A_PAIR: "x"}}, "environment", 400),
    ({"environment": {HALF_A_PAIR: []}}, "environment", 400),
    ({"environment": {"A": "x" * 200_000}}, "environment.A", 413),
    ({"environment": {f"A{i}": "x" * 100_000 for i in range(100)}}, "environment", 413),
    ({"secrets": {"": "x"}}, "secrets", 400),
    ({"secrets": {HALF_A_PAIR: "\0"}}, "secrets", 400),
    ({"secrets": {"S": "top-secret\0"}}, "secrets.S", 400),
    ({"secrets": {"S": "x" * 200_000}}, "secrets.S", 413),
    ({"labels": {"": "x"}}, "labels", 400),
    ({"labels": {"a b": "x"}}, "labels", 400),
    ({"labels": {"a\0b": "x"}}, "labels", 400),
    ({"labels": {HALF_A_PAIR: "x"}}, "labels", 400),
    ({"labels": {"a": "b c"}}, "labels.a", 400),
    ({"labels": {"a": "ü"}}, "labels.a", 400),
    ({"labels": {"a": "b\n"}}, "labels.a", 400),
    ({"labels": {"a": "x" * 101}}, "labels.a", 400),
    ({"labels": {"a": "x" * 1_000_000}}, "labels.a", 400),
    ({"labels": {"x" * 1_000_000: "a"}}, "labels", 400),
    ({"labels": {f"l{i}": "" for i in range(1000)}}, "labels", 413),
    ({"dockerImage": ""}, "dockerImage", 400),
    ({"dockerImage": "--ssh"}, "dockerImage", 400),
    ({"dockerImage": "Upper/Case"}, "dockerImage", 400),
    ({"dockerImage": "../../etc/passwd"}, "dockerImage", 400),
    ({"dockerImage": "python:3.12\n"}, "dockerImage", 400),
    ({"dockerImage": "a" * 1_000_000}, "dockerImage", 400),
    ({"dockerImage": None}, "dockerImage", 400),
    ({"spaceId": "a/b"}, "dockerImage", 400),
    ({"dockerImage": None, "spaceId": "no-owner"}, "spaceId", 400),
    ({"dockerImage": None, "spaceId": "../b"}, "spaceId", 400),
    ({"resourceGroupId": "a\0b"}, "resourceGroupId", 400),
    ({"resourceGroupId": "x" * 1_000_000}, "resourceGroupId", 400),
    ({"tags": ["\x1b[31m"]}, "tags", 400),
    ({"volumes": [{"type": "model", "source": "a/b", "mountPath": "/mnt"}]}, "volumes[0].type", 501),
    ({"volumes": [{"type": "bucket", "source": "a/b", "mountPath": "/mnt"}]}, "volumes[0].source", 404),
    ({"volumes": [{"type": "bucket", "source": "a", "mountPath": "/mnt"}]}, "volumes[0].source", 400),
    ({"volumes": [{"type": "bucket", "source": "a/b", "mountPath": "/etc/x"}]}, "volumes[0].mountPath", 400),
    ({"expose": {"ports": [0], "portsPublic": []}}, "expose.ports", 400),
    ({"expose": {"ports": [], "portsPublic": [65536]}}, "expose.ports", 400),
    ({"expose": {"ports": list(range(1, 22))}}, "expose.ports", 413),
    ({"ssh": {"enabled": True}}, "ssh", 501),
    ({"network": {"group": ""}}, "network.group", 400),
    ({"network": {"group": "a b"}}, "network.group", 400),
    ({"network": {"group": "a\n"}}, "network.group", 400),
    ({"network": {"aliases": ["a"]}}, "network.group", 400),
    ({"network": {"group": "a", "aliases": ["-"]}}, "network.aliases", 400),
]


@pytest.mark.parametrize(
    ("wrong", "field", "status"), WRONG_VALUES, ids=lambda v: ascii(v)[:60] if isinstance(v, dict) else str(v)
)
def test_a_wrong_value_is_refused_by_the_name_of_the_field(
    api: Api, path: str, wrong: dict[str, Any], field: str, status: int
) -> None:
    answer = api.post(path, {**GOOD, **wrong})
    refused(answer, field, status=status)
    assert len(answer.body) < 2000
    assert b"top-secret" not in answer.body
    assert "x-fake" not in answer.headers


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_what_is_no_number_of_json_is_refused(api: Api, path: str, number: bytes) -> None:
    for field in ("timeoutSeconds", "attempts"):
        refused(api.post(path, b'{"command":["true"],"dockerImage":"a","%s":%s}' % (field.encode(), number)), field)
    body = b'{"command":["true"],"dockerImage":"a","environment":{"A":%s}}' % number
    refused(api.post(path, body), "environment.A")


def test_of_a_key_given_twice_the_last_counts(api: Api, path: str) -> None:
    answer = api.post(path, b'{"command":["false"],"command":["true"],"dockerImage":"a"}')
    assert answer.status == 200
    assert answer.json["command"] == ["true"]


def test_unknown_fields_are_dropped(api: Api, path: str) -> None:
    answer = api.post(path, {**GOOD, "id": "mine", "status": {"stage": "COMPLETED"}, "nonsense": [{"deep": [1]}]})
    assert answer.status == 200
    assert answer.json["id"] != "mine"
    assert "nonsense" not in answer.json


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "image/png", "/"]
)
def test_a_body_of_another_type_is_refused(api: Api, path: str, kind: str) -> None:
    refused(api.post(path, json.dumps(GOOD).encode(), headers={"Content-Type": kind}), "application/json")


def test_a_body_beyond_the_limit_is_refused(api: Api, path: str) -> None:
    whole = b'{"a": "' + b"x" * (LIMIT + 1) + b'"}'
    refused(api.post(path, whole), "server.max_body_bytes", status=413)
    pieces = (whole[at : at + 1_000_000] for at in range(0, len(whole), 1_000_000))
    refused(api.post(path, pieces, headers={"Transfer-Encoding": "chunked"}), "server.max_body_bytes", status=413)


def test_a_body_in_chunks_within_the_limit_is_taken(api: Api, path: str) -> None:
    text = json.dumps(GOOD).encode()
    pieces = (text[at : at + 7] for at in range(0, len(text), 7))
    assert api.post(path, pieces, headers={"Transfer-Encoding": "chunked"}).status == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stage=NOPE", "stage"),
        ("stage=UNKNOWN", "stage"),
        ("stage=", "stage"),
        ("stage=%00", "stage"),
        ("stage=RUNNING&stage=x", "stage"),
        ("&".join(["stage=RUNNING"] * 100), "stage"),
        ("label=x", "label"),
        ("label=", "label"),
        ("label==x", "label"),
        ("label=a=b=c", "label"),
        ("label=a+b=c", "label"),
        ("label=a=%00", "label"),
        ("label=a=%ed%a0%80", "label"),
        ("label=a=1&label=a=2", "label"),
        ("label=" + "a" * 10_000 + "=b", "label"),
        ("cursor=", "cursor"),
        ("cursor=x", "cursor"),
        ("cursor=%ff", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "A" * 28, "cursor"),
        ("cursor=" + "A" * 10_000, "cursor"),
    ],
    ids=lambda value: value[:30],
)
def test_a_wrong_filter_is_refused(api: Api, path: str, query: str, field: str) -> None:
    refused(api.get(f"{path}?{query}"), field)


@pytest.mark.parametrize("tail", ["-1", "x", "1.5", "", "9" * 30, "%00"])
def test_a_wrong_tail_is_refused(api: Api, path: str, tail: str) -> None:
    refused(api.get(f"{path}/{NO_JOB}/logs?tail={tail}"), "tail")


TRICKS = ["%2e%2e", "..%2f..%2fetc%2fpasswd", "%2Fetc", "%00", "a%00b", "%0d%0aX-Fake:%20yes", "%ff", "%ed%a0%80"]


@pytest.mark.parametrize("trick", [*TRICKS, "x" * 5000, "%C3%A9", "*", "'%20OR%201=1--"])
def test_tricks_in_a_path_find_nothing(api: Api, path: str, trick: str) -> None:
    nowhere = (400, 403, 404)
    for method, address in (
        ("GET", f"/api/jobs/{trick}"),
        ("GET", f"/api/jobs/{trick}/count"),
        ("POST", f"/api/jobs/{trick}"),
        ("GET", f"/api/jobs/{trick}/{NO_JOB}"),
        ("GET", f"{path}/{trick}"),
        ("GET", f"{path}/{trick}/logs"),
        ("GET", f"{path}/{trick}/metrics"),
        ("GET", f"{path}/{trick}/history"),
        ("POST", f"{path}/{trick}/cancel"),
        ("POST", f"{path}/{trick}/duplicate"),
        ("PUT", f"{path}/{trick}/labels"),
        ("DELETE", f"{path}/{trick}"),
        ("POST", f"{path}/auth-check/{trick}"),
    ):
        body = GOOD | {"labels": {}} if method in ("POST", "PUT") else None
        answer = api.call(method, address, body)
        refused(answer, status=nowhere)
        assert "x-fake" not in answer.headers


@pytest.mark.parametrize("job_id", ["0" * 23, "0" * 25, NO_JOB, "G" * 24, "0" * 23 + "A", "hardware", "count2"])
def test_an_id_that_is_none_is_not_found(api: Api, path: str, job_id: str) -> None:
    refused(api.get(f"{path}/{job_id}"), job_id, status=404)


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer hf_wrong", "Basic cm9vdDo=", "hf_wrong", "Bearer \xff", "Bearer " + "x" * 10_000],
    ids=lambda value: ascii(value)[:20],
)
def test_without_a_good_token_everything_is_refused(server: Server, path: str, value: str) -> None:
    stranger = Api(server, token="", headers={"Authorization": value})
    for method, address in (
        ("GET", "/api/whoami-v2"),
        ("POST", path),
        ("GET", path),
        ("GET", f"{path}/count"),
        ("GET", f"{path}/{NO_JOB}"),
        ("GET", f"{path}/{NO_JOB}/logs"),
        ("GET", f"{path}/{NO_JOB}/metrics"),
        ("POST", f"{path}/{NO_JOB}/cancel"),
        ("POST", f"{path}/{NO_JOB}/duplicate"),
        ("PUT", f"{path}/{NO_JOB}/labels"),
        ("PUT", f"{path}/{NO_JOB}/expose"),
        ("POST", f"{path}/auth-check/read"),
        ("GET", "/api/scheduled-jobs/x"),
    ):
        answer = stranger.call(method, address, GOOD | {"labels": {}} if method in ("POST", "PUT") else None)
        refused(answer, status=401)
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_an_expired_token_is_refused(server: Server, path: str) -> None:
    token = run_quickly(server, "token", "add", server.owner, "--expires", "1s").stdout.strip()
    assert eventually(lambda: Api(server, token).get(path).status == 401)
    refused(Api(server, token).get(path), "expired", status=401)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"])
def test_a_wrong_method_is_refused(api: Api, path: str, method: str) -> None:
    answer = api.call(method, path)
    if method == "NONSENSE" and answer.status == 400:
        return  # refused where requests are parsed, before there is an address
    refused(answer, status=405)
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/api/settings/webhooks"),
        ("POST", "/api/settings/webhooks"),
        ("POST", f"/api/settings/webhooks/{NO_JOB}/disable"),
    ],
)
def test_what_is_not_built_answers_501_with_the_reason(api: Api, method: str, address: str) -> None:
    refused(api.call(method, address, {} if method != "GET" else None), "does not have", status=501)


@pytest.mark.parametrize("address", ["/nope", "/api", "/api/jobs", "//api/jobs/root", "/api/jobs/root/", "/%00%0a"])
def test_an_unknown_address_is_refused(api: Api, address: str) -> None:
    refused(api.get(address), status=404)


@pytest.mark.parametrize("host", ["[", "[::1", "a b", 'x"y', "a:b:c", "ex\xe4mple", "a/b", "a>; rel=x, <b"])
def test_an_odd_host_header_does_no_harm(api: Api, path: str, host: str) -> None:
    assert api.get(path, headers={"Host": host}).status in (200, 400)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /api/jobs/\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-\x00: b\r\n\r\n",
        b"POST /api/jobs/root HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/jobs/root HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /api/jobs/root HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /api/jobs/root HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"\r\n\r\nnonsense\r\n\r\n",
    ],
    ids=lambda value: ascii(value[:40]),
)
def test_what_is_no_http_is_refused(api: Api, request_line: bytes) -> None:
    answer = api.raw(request_line, timeout=3)
    assert answer == b"" or answer.split(b" ")[1].startswith(b"4"), answer[:200]


def test_a_cursor_is_good_for_its_own_list_only(server: Server, api: Api, path: str) -> None:
    for _ in range(101 - min(api.count(), 101)):
        api.submit("true")
    following = api.get(path).headers["link"]
    cursor = following.partition("cursor=")[2].partition(">")[0]
    assert api.get(f"{path}?cursor={cursor}").status == 200
    run_quickly(server, "org", "add", "elsewhere")
    run_quickly(server, "org", "add-member", "elsewhere", server.owner, "--role", "admin")
    refused(api.get(f"/api/jobs/elsewhere?cursor={cursor}"), "cursor")
    changed = ("B" if cursor[0] != "B" else "C") + cursor[1:]
    refused(api.get(f"{path}?cursor={changed}"), "cursor")
    refused(api.get(f"{path}?cursor={cursor[:-4]}"), "cursor")


STORING = (
    test_of_a_key_given_twice_the_last_counts,
    test_unknown_fields_are_dropped,
    test_a_body_in_chunks_within_the_limit_is_taken,
    test_a_cursor_is_good_for_its_own_list_only,
)
