"""The pages: signing in, what is refused and how, and a real browser on real jobs.

The browser is the machine's Chromium. Where there is none its tests are skipped, unless RUNSTEAD_TEST_BROWSER is
"required".
"""

import html
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from calls import Answer, Api
from clients import Client, Server, eventually, make_client

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@dataclass
class Visitor:
    """A browser as far as HTTP goes: it keeps one cookie and says where its forms come from."""

    server: Server
    cookie: str = ""

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        given = {"Cookie": self.cookie} if self.cookie else {}
        return Api(self.server, token="").call(method, path, body, headers={**HTML, **given, **(headers or {})})

    def get(self, path: str, **headers: str) -> Answer:
        return self.call(
            "GET", path, headers={name.replace("_", "-").title(): value for name, value in headers.items()}
        )

    def post(self, path: str, fields: dict[str, str], headers: dict[str, str] | None = None) -> Answer:
        sent = {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.server.url}
        return self.call("POST", path, urlencode(fields).encode(), {**sent, **(headers or {})})

    def sign_in(self, token: str, target: str = "/") -> Answer:
        answer = self.post("/login", {"token": token, "next": target})
        self.cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        return answer

    def form_token(self) -> str:
        found = re.search(rb'name="form_token" value="(\w+)"', self.get("/logout").body)
        assert found is not None
        return found[1].decode()


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


@pytest.fixture
def stranger(server: Server) -> Visitor:
    return Visitor(server)


@pytest.fixture
def visitor(server: Server) -> Visitor:
    signed_in = Visitor(server)
    assert signed_in.sign_in(server.token).status == 303
    return signed_in


def text_of(answer: Answer) -> str:
    return html.unescape(answer.body.decode())


# Signing in


def test_who_is_not_signed_in_does_that_first_and_comes_back(server: Server, stranger: Visitor) -> None:
    for path in ("/", "/jobs", f"/jobs/{server.owner}?stage=RUNNING", "/buckets/a/b/tree/c%20d", "/jobs/a/b/log"):
        answer = stranger.get(path)
        assert answer.status == 303
        where = urlsplit(answer.headers["location"])
        assert (where.scheme, where.netloc, where.path) == ("", "", "/login")
        assert parse_qs(where.query)["next"] == [path]
    page = stranger.get("/login?next=" + quote(f"/jobs/{server.owner}", safe=""))
    assert f'value="/jobs/{server.owner}"' in text_of(page)
    answer = stranger.sign_in(server.token, f"/jobs/{server.owner}")
    assert (answer.status, answer.headers["location"]) == (303, f"/jobs/{server.owner}")
    assert stranger.get(f"/jobs/{server.owner}").status == 200


def test_the_cookie_is_kept_from_scripts_and_other_sites(server: Server, stranger: Visitor) -> None:
    answer = stranger.sign_in(server.token)
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # this is http
    assert server.token not in cookie
    assert server.token not in str(answer.headers)
    # What anybody may write is not believed; with a trusted proxy: test_several_machines.py.
    forged = stranger.post("/login", {"token": server.token}, {"X-Forwarded-Proto": "https"})
    assert "Secure" not in forged.headers["set-cookie"]


@pytest.mark.parametrize("token", ["", " ", "hf_wrong", "x" * 10_000, "\0", "é"])
def test_a_wrong_token_opens_nothing(stranger: Visitor, token: str) -> None:
    answer = stranger.sign_in(token)
    assert answer.status == 401
    assert "set-cookie" not in answer.headers
    assert "not known here" in text_of(answer)
    assert not token.strip() or token not in text_of(answer)


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "javascript:alert(1)"]
)
def test_signing_in_leads_to_no_other_site(server: Server, stranger: Visitor, target: str) -> None:
    page = stranger.get("/login?next=" + quote(target, safe=""))
    assert "evil" not in text_of(page)
    assert "alert" not in text_of(page)
    assert stranger.sign_in(server.token, target).headers["location"] == "/"


def test_a_login_form_of_another_site_is_refused(server: Server, stranger: Visitor) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = stranger.post("/login", {"token": server.token}, headers)
        assert answer.status == 403
        assert "set-cookie" not in answer.headers


def test_a_session_ends_with_its_token(server: Server, stranger: Visitor) -> None:
    token = server.run("token", "add", server.owner, "--name", "for-a-browser").stdout
    value = re.search(r"hf_\w+", token)
    assert value is not None
    stranger.sign_in(value.group())
    assert stranger.get(f"/jobs/{server.owner}").status == 200
    server.run("token", "revoke", "for-a-browser")
    assert stranger.get(f"/jobs/{server.owner}").status == 303
    assert stranger.get(f"/jobs/{server.owner}/{'0' * 24}/log/lines").status == 401


def test_what_a_session_has_open_ends_with_its_token(server: Server, api: Api, stranger: Visitor) -> None:
    found = re.search(r"hf_\w+", server.run("token", "add", server.owner, "--name", "watching").stdout)
    assert found is not None
    stranger.sign_in(found.group())
    job = api.submit("sleep", "100")["id"]
    path = f"/jobs/{server.owner}/{job}/metrics/events"
    connection = api.connect()
    connection.request("GET", path, headers={"Cookie": stranger.cookie})
    response = connection.getresponse()
    assert response.status == 200
    server.run("token", "revoke", "watching")
    began = time.monotonic()
    assert b"event: end" not in response.read()
    assert time.monotonic() - began < 20
    connection.close()
    assert api.cancel(job)


def test_a_changed_cookie_is_no_session(visitor: Visitor) -> None:
    good = visitor.cookie
    for changed in (good[:-8], good[:-6] + "AAAAAA", good.replace("=", "=A", 1), good.partition("=")[0] + "="):
        visitor.cookie = changed
        assert visitor.get("/jobs").status == 303


def test_the_api_takes_no_cookie_and_the_pages_no_token(server: Server, visitor: Visitor) -> None:
    assert visitor.get("/api/whoami-v2").status == 401
    assert visitor.get(f"/api/jobs/{server.owner}").status == 401
    assert visitor.get(f"/api/jobs/{server.owner}", accept="*/*").error
    assert Api(server).get(f"/jobs/{server.owner}").status == 303


def test_signing_out_forgets_the_cookie(visitor: Visitor) -> None:
    answer = visitor.post("/logout", {"form_token": visitor.form_token()})
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert visitor.get("/logout").status == 200  # a link alone does nothing


# Forms


def test_only_a_form_of_ours_cancels_a_job(server: Server, api: Api, visitor: Visitor) -> None:
    job = api.submit("sleep", "100")["id"]
    path = f"/jobs/{server.owner}/{job}/cancel"
    token = visitor.form_token()
    other = Visitor(server)
    other.sign_in(server.token)
    refused = [
        visitor.post(path, {}),
        visitor.post(path, {"form_token": "x"}),
        visitor.post(path, {"form_token": other.form_token()}),
        visitor.post(path, {"form_token": token}, {"Origin": "https://evil.example"}),
        visitor.post(path, {"form_token": token}, {"Origin": "null"}),
        visitor.post(path, {"form_token": token}, {"Sec-Fetch-Site": "cross-site"}),
        visitor.post(path, {"form_token": token}, {"Sec-Fetch-Site": "same-site"}),
    ]
    assert [answer.status for answer in refused] == [403] * len(refused)
    assert visitor.post(path, {"form_token": token}, {"Content-Type": "text/plain"}).status == 400
    assert visitor.get(path).status == 405
    assert Visitor(server).post(path, {"form_token": token}).headers["location"] == "/login"
    assert api.stage(job) in ("SCHEDULING", "RUNNING")
    assert visitor.post(path, {"form_token": token}).headers["location"] == f"/jobs/{server.owner}/{job}"
    assert api.ended(job)["status"]["stage"] == "CANCELED"


def test_what_a_token_may_not_do_its_session_may_not(server: Server, api: Api, stranger: Visitor) -> None:
    found = re.search(r"hf_\w+", server.run("token", "add", server.owner, "--role", "read").stdout)
    assert found is not None
    stranger.sign_in(found.group())
    job = api.submit("sleep", "100")["id"]
    page = text_of(stranger.get(f"/jobs/{server.owner}/{job}"))
    assert "sleep 100" in page
    assert "/cancel" not in page
    for what in ("cancel", "rerun"):
        answer = stranger.post(f"/jobs/{server.owner}/{job}/{what}", {"form_token": stranger.form_token()})
        assert answer.status == 403
    api.cancel(job)


def test_strangers_see_nothing_of_others(server: Server, api: Api) -> None:
    server.run("user", "add", "passer-by")
    found = re.search(r"hf_\w+", server.run("token", "add", "passer-by").stdout)
    assert found is not None
    passer_by = Visitor(server)
    passer_by.sign_in(found.group())
    job = api.submit("echo", "private-words")["id"]
    api.ended(job)
    base = f"/jobs/{server.owner}"
    for path in ("", f"/{job}", f"/{job}/log", f"/{job}/log/lines", f"/{job}/log/events", f"/{job}/metrics/events"):
        answer = passer_by.get(base + path)
        assert answer.status == 403, path
        assert "private-words" not in text_of(answer)
    assert passer_by.get(f"/jobs/passer-by/{job}").status == 404
    assert "passer-by" in text_of(passer_by.get("/jobs/passer-by"))


# Headers and errors


def test_every_answer_has_the_headers_that_protect_it(server: Server, api: Api, visitor: Visitor) -> None:
    job = api.submit("echo", "x")["id"]
    api.ended(job)
    at = f"/jobs/{server.owner}/{job}"
    for path in (
        "/login",
        "/",
        f"/jobs/{server.owner}",
        at,
        f"{at}/log",
        f"{at}/log/lines",
        "/no-such-page",
        "/avatar.svg",
    ):
        found = visitor.get(path).headers
        policy = found["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy
        assert found["x-content-type-options"] == "nosniff"
        assert found["x-frame-options"] == "DENY"
        assert "sandbox" in policy or "frame-ancestors 'none'" in policy
        assert found["referrer-policy"] == "same-origin"
        if path != "/avatar.svg":
            assert "private" in found["cache-control"]


def test_errors_are_pages_for_browsers_and_json_for_programs(server: Server, api: Api, visitor: Visitor) -> None:
    for path, status in (
        (f"/jobs/{server.owner}/{'0' * 24}", 404),
        ("/no/such/page", 404),
        ("/buckets/a/b", 404),
    ):
        page = visitor.get(path)
        assert (page.status, page.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
        assert "<h1>" in text_of(page)
    assert "Sign in" in text_of(Visitor(server).get("/no/such/page"))
    assert "Sign out" in text_of(visitor.get("/no/such/page"))
    assert api.get("/no/such/page").error
    assert api.get("/no/such/page", headers=HTML).error
    assert Visitor(server).get("/api/jobs/x").error
    assert Visitor(server).get("/no/such/page", accept="*/*").error


@pytest.mark.parametrize(
    "trick", ["<script>alert(1)</script>", "%22%3E%3Cb%3E", "%00", "%ff", "..%2f..%2fetc", "x" * 3000]
)
def test_tricks_in_addresses_are_only_text(visitor: Visitor, trick: str) -> None:
    trick = quote(trick, safe="%")
    for path in (
        f"/{trick}",
        f"/jobs/{trick}",
        f"/jobs/a/{trick}",
        f"/static/x/{trick}",
        f"/jobs/me?label={trick}",
        f"/buckets/{trick}/b",
    ):
        answer = visitor.get(path)
        assert 400 <= answer.status < 500, (path, answer.status)
        assert b"<script>alert" not in answer.body
        assert b'"><b>' not in answer.body


# The log


def test_a_log_is_had_from_its_end_in_parts_and_whole(server: Server, api: Api, visitor: Visitor) -> None:
    job = api.submit("sh", "-c", "seq 2500")["id"]
    api.ended(job)
    at = f"/jobs/{server.owner}/{job}/log"
    parts: list[list[str]] = []
    before = ""
    while (part := visitor.get(f"{at}/lines{before}").json)["lines"]:
        parts.insert(0, [line["data"] for line in part["lines"]])
        before = f"?before={part['start']}"
    assert [len(part) for part in parts][-2:] == [1000, 1000]
    lines = [line for part in parts for line in part]
    assert lines[-2500:] == [str(i) for i in range(1, 2501)]
    assert lines == api.lines(job)
    whole = visitor.get(at)
    assert whole.body.decode().splitlines() == lines
    assert "attachment" in whole.headers["content-disposition"]
    for wrong in ("x", "1", "1:x", "0:0", "1:-1", "9" * 40 + ":1"):
        assert visitor.get(f"{at}/lines?before={wrong}").status == 400
        assert visitor.get(f"{at}/lines?before=1:99999999999").status == 200


def test_an_interrupted_stream_goes_on_where_it_was(server: Server, api: Api, visitor: Visitor) -> None:
    job = api.submit("sh", "-c", "seq 20000")["id"]
    api.ended(job)
    path = f"/jobs/{server.owner}/{job}/log/events"
    whole = _events(visitor.get(path, accept="text/event-stream").body)
    assert whole[-1][0] == "end"
    blocks = [(place, json.loads(data)) for name, data, place in whole if name == "lines"]
    assert len(blocks) > 1
    assert [line["data"] for _, block in blocks for line in block["lines"]] == api.lines(job)
    rest = _events(visitor.get(path, accept="text/event-stream", Last_Event_ID=blocks[0][0]).body)
    assert json.loads(rest[0][1])["lines"] == blocks[1][1]["lines"]


def _events(body: bytes) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields["data"], fields.get("id", "")))
    return found


def test_pages_of_a_long_list_follow_each_other(server: Server, api: Api, visitor: Visitor) -> None:
    for _ in range(53):
        api.submit("true", labels={"kind": "many"})
    path: str | None = f"/jobs/{server.owner}?label=kind%3Dmany"
    seen: list[str] = []
    while path:
        page = text_of(visitor.get(path))
        seen += re.findall(r'class="title" href="/jobs/[^/]+/([0-9a-f]{24})"', page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = following[1] if following else None
    assert len(seen) == len(set(seen)) == 53
    assert seen == sorted(seen, key=lambda job: api.job(job)["createdAt"], reverse=True)


# Buckets


@pytest.fixture(scope="module")
def library(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make_client("2.4.0", server, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def bucket(server: Server, library: Client) -> str:
    library.python(f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_bucket("{server.owner}/shown", private=True)
api.batch_bucket_files("{server.owner}/shown", add=[
    (b"0123456789" * 100, "data/numbers.txt"),
    (b"<script>alert(1)</script>", "<b>bold.html"),
    (b"x", "data/deep/caf\\u00e9 & more.bin"),
])
""")
    return f"/buckets/{server.owner}/shown"


def test_a_bucket_is_browsed_and_its_files_kept(server: Server, visitor: Visitor, bucket: str) -> None:
    assert 'href="' + bucket + '"' in text_of(visitor.get(f"/buckets/{server.owner}"))
    top = visitor.get(bucket)
    assert b"<b>bold" not in top.body
    assert "<b>bold.html" in text_of(top)
    assert "numbers.txt" in text_of(visitor.get(f"{bucket}/tree/data"))
    deep = visitor.get(f"{bucket}/tree/data/deep")
    link = re.search(rb'href="([^"]+/download/[^"]+)"', deep.body)
    assert link is not None
    assert visitor.get(html.unescape(link[1].decode())).body == b"x"
    page = visitor.get(f"{bucket}/download/%3Cb%3Ebold.html")
    assert page.body == b"<script>alert(1)</script>"
    assert page.headers["content-type"] == "application/octet-stream"
    assert page.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in page.headers["content-security-policy"]


def test_a_link_for_programs_leads_people_to_the_same_file(server: Server, visitor: Visitor, bucket: str) -> None:
    for one in (visitor, Visitor(server)):
        answer = one.get(f"{bucket}/resolve/data/deep/caf%C3%A9%20%26%20more.bin?download=true")
        assert answer.status == 303
        assert answer.headers["location"] == f"{bucket}/download/data/deep/caf%C3%A9%20%26%20more.bin"
    assert visitor.get(answer.headers["location"]).body == b"x"
    assert Visitor(server).get(f"{bucket}/resolve/data/numbers.txt", accept="*/*").status == 401


def test_an_interrupted_download_goes_on(visitor: Visitor, bucket: str) -> None:
    path = f"{bucket}/download/data/numbers.txt"
    whole = visitor.get(path)
    assert whole.body == b"0123456789" * 100
    rest = visitor.get(path, Range="bytes=995-", If_Range=whole.headers["etag"])
    assert (rest.status, rest.body, rest.headers["content-range"]) == (206, b"56789", "bytes 995-999/1000")
    assert visitor.get(path, Range="bytes=995-", If_Range='"other"').status == 200


def test_a_private_bucket_is_not_for_strangers(server: Server, bucket: str) -> None:
    server.run("user", "add", "looker")
    found = re.search(r"hf_\w+", server.run("token", "add", "looker").stdout)
    assert found is not None
    looker = Visitor(server)
    looker.sign_in(found.group())
    for path in (bucket, f"{bucket}/tree/data", f"{bucket}/download/data/numbers.txt"):
        assert looker.get(path).status == 404
    assert "shown" not in text_of(looker.get(f"/buckets/{server.owner}")).split("<table", 1)[-1].split("</table>")[0]


# A real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("RUNSTEAD_TEST_BROWSER") == "required":
            pytest.fail("there is no Chromium on this machine, and RUNSTEAD_TEST_BROWSER=required")
        pytest.skip("there is no Chromium on this machine")
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=arguments, headless=True)
        yield started
        started.close()


@dataclass
class Watched:
    """A tab, and all that it asked for and complained of."""

    page: Page
    hosts: set[str]
    complaints: list[str]


def open_tab(browser: Browser, server: Server, **options: Any) -> Iterator[Watched]:
    context: BrowserContext = browser.new_context(base_url=server.url, **options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    watched = Watched(page, set(), [])
    context.on("request", lambda request: watched.hosts.add(urlsplit(request.url).netloc))
    page.on("console", lambda said: watched.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.goto("/login")
    page.fill("#token", server.token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**/jobs/{server.owner}")
    yield watched
    context.close()
    assert watched.complaints == []
    assert watched.hosts == {urlsplit(server.url).netloc}


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Watched]:
    yield from open_tab(browser, server, viewport={"width": 1280, "height": 1200})


@pytest.fixture(params=["light", "dark"])
def phone(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Watched]:
    options: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": request.param}
    yield from open_tab(browser, server, **options)


def test_the_link_a_client_prints_leads_to_the_job(browser: Browser, server: Server, api: Api) -> None:
    job = api.submit("echo", "words of the job")["id"]
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server.url}/jobs/{server.owner}/{job}")
    page.fill("#token", server.token)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{server.owner}/{job}")
    expect(page.locator(".log-line", has_text="words of the job")).to_be_visible()
    assert context.cookies()[0].get("httpOnly")
    assert page.evaluate("document.cookie") == ""
    context.close()


def test_a_running_job_is_seen_live_to_its_end(server: Server, api: Api, tab: Watched) -> None:
    job = api.shell("echo first; sleep 3; echo second; exit 3", environment={"COLOR": "<red>"}, secrets={"KEY": "hush"})
    page = tab.page
    page.goto(f"/jobs/{server.owner}/{job['id']}")
    expect(page.locator(".log-line", has_text="first")).to_be_visible()
    expect(page.locator(".status .stage")).to_have_text("Running")
    expect(page.locator(".metric")).to_have_count(3)
    expect(page.locator(".log-line", has_text="second")).to_be_visible()
    expect(page.locator(".status .stage")).to_have_text("Failed")
    expect(page.locator(".status")).to_contain_text("exited with code 3")
    expect(page.locator(".facts")).to_contain_text("user")
    expect(page.locator("form[action$='/cancel']")).to_have_count(0)
    expect(page.locator(".pairs")).to_contain_text("<red>")
    expect(page.locator(".pairs")).to_contain_text("KEY")
    assert "hush" not in page.content()
    expect(page.locator(".history li").first).to_contain_text("Failed")


NASTY = r"""
print('<img src=x onerror="document.title=1"><script>document.title=2</script>')
print('\x1b[31mred\x1b[0m plain \x1b[38;2;1;2;3mexact\x1b[0m')
print('\x1b]0;title\x07after \x1b[2J\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x07 \x01 end')
print(' 1%\r 50%\r100%|done')
"""


def test_what_a_job_writes_is_only_text(server: Server, api: Api, tab: Watched) -> None:
    job = api.submit(
        "python3", "-c", NASTY, labels={"name": "nasty"}, environment={"A": "<script>document.title=3</script>"}
    )
    api.ended(job["id"])
    page = tab.page
    page.goto(f"/jobs/{server.owner}/{job['id']}")
    line = page.locator(".log-line")
    expect(line.filter(has_text="onerror")).to_have_text(
        '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    )
    expect(line.filter(has_text="plain").locator(".f-1")).to_have_text("red")
    expect(line.filter(has_text="plain").locator("span").last).to_have_css("color", "rgb(1, 2, 3)")
    expect(line.filter(has_text="after")).to_have_text("after link ^A end")
    expect(line.filter(has_text="100%")).to_have_text("100%|done")
    assert page.locator(".log-view img, .log-view script, .log-view a").count() == 0
    assert "nasty" in page.title()


def test_a_job_is_cancelled_and_run_again(server: Server, api: Api, tab: Watched) -> None:
    job = api.submit("sleep", "100", labels={"name": "sleeper"})["id"]
    page = tab.page
    page.goto(f"/jobs/{server.owner}/{job}")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel").click()
    assert api.stage(job) in ("SCHEDULING", "RUNNING")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".status .stage")).to_have_text("Canceled")
    page.get_by_role("button", name="Run again").click()
    page.wait_for_url(lambda url: not url.endswith(job))
    again = page.url.rpartition("/")[2]
    assert api.job(again)["initiator"] == {"type": "duplicated-job", "id": job}
    api.cancel(again)


def test_a_long_log_shows_its_end_first_and_the_rest_on_demand(server: Server, api: Api, tab: Watched) -> None:
    job = api.submit("sh", "-c", "seq -f 'line %.0f of many' 200000")["id"]
    api.ended(job, within=60)
    page = tab.page
    page.goto(f"/jobs/{server.owner}/{job}")
    lines = page.locator(".log-line")
    expect(lines.last).to_have_text("line 200000 of many")
    expect(lines.last).to_be_in_viewport()
    assert lines.count() <= 2000
    earlier = page.get_by_role("button", name="Earlier lines")
    earlier.click()
    expect(lines.filter(has_text=re.compile(r"^line 198500 of many$"))).to_have_count(1)
    expect(page.locator('[data-toggle="follow"]')).to_have_attribute("aria-pressed", "false")
    page.fill("[data-search]", "LINE 199123 ")
    expect(page.locator("[data-found]")).to_have_text("1/1")
    expect(page.locator(".log-line.at")).to_be_in_viewport()
    page.fill("[data-search]", "")
    for _ in range(20):
        earlier.click()
        expect(earlier).to_be_enabled()
    assert lines.count() <= 21_000
    page.get_by_role("button", name="Back to the latest lines").click()
    expect(lines.last).to_have_text("line 200000 of many")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_text().endswith("line 200000 of many\n")
    assert download.value.suggested_filename == f"{job}.log"


def test_a_flood_of_lines_does_not_freeze_the_page(server: Server, api: Api, tab: Watched) -> None:
    job = api.shell("sleep 1; seq -f 'flood %.0f' 500000; echo dry; sleep 2")["id"]
    page = tab.page
    page.goto(f"/jobs/{server.owner}/{job}")
    worst = page.evaluate("""() => new Promise((done) => {
        let last = performance.now(), worst = 0;
        const end = last + 6000;
        const frame = () => {
            const now = performance.now();
            worst = Math.max(worst, now - last);
            last = now;
            if (now < end) requestAnimationFrame(frame); else done(worst);
        };
        requestAnimationFrame(frame);
    })""")
    expect(page.locator(".log-line").last).to_have_text("dry", timeout=60_000)
    assert page.locator(".log-line").count() <= 21_000
    assert worst < 3000  # ms; a fraction of this on a machine with nothing else to do


def test_the_list_follows_what_happens(server: Server, api: Api, tab: Watched) -> None:
    page = tab.page
    page.goto(f"/jobs/{server.owner}?label=kind%3Dlive")
    expect(page.locator(".empty")).to_be_visible()
    job = api.submit("sleep", "100", labels={"kind": "live", "name": "newcomer"})["id"]
    expect(page.locator(".jobs .title")).to_have_text("newcomer")
    expect(page.locator(".jobs .stage")).to_have_text("Running")
    api.cancel(job)
    expect(page.locator(".jobs .stage")).to_have_text("Canceled")
    page.get_by_role("link", name="Failed").click()
    expect(page.locator(".empty")).to_be_visible()
    page.get_by_role("link", name="Canceled").click()
    page.get_by_role("link", name="newcomer").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("newcomer")


def test_a_page_outlives_a_restart_of_the_server(browser: Browser, own_server: Server) -> None:
    api = Api(own_server)
    job = api.shell("echo before; sleep 6; echo after; sleep 1")["id"]
    context = browser.new_context(base_url=own_server.url)
    page = context.new_page()
    page.goto(f"/jobs/{own_server.owner}/{job}")
    page.fill("#token", own_server.token)
    page.keyboard.press("Enter")
    expect(page.locator(".log-line", has_text="before")).to_be_visible()
    own_server.kill()
    own_server.start()
    expect(page.locator(".log-line", has_text="after")).to_be_visible(timeout=30_000)
    expect(page.locator(".log-line", has_text="before")).to_have_count(1)
    expect(page.locator(".status .stage")).to_have_text("Completed", timeout=30_000)
    context.close()


def test_pages_fit_a_phone(server: Server, api: Api, phone: Watched, bucket: str) -> None:
    job = api.submit("sh", "-c", "echo " + "word" * 200, environment={"LONG_NAME_" * 8: "value" * 50})["id"]
    api.ended(job)
    page = phone.page
    for path in (
        schedule(api),
        f"/schedules/{server.owner}",
        f"/jobs/{server.owner}",
        f"/jobs/{server.owner}/{job}",
        f"/buckets/{server.owner}",
        f"{bucket}/tree/data",
        "/logout",
    ):
        page.goto(path)
        page.wait_for_load_state("load")
        if path.endswith(job):
            expect(page.locator(".log-line").last).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


def test_signing_out_in_one_tab_ends_the_others(server: Server, tab: Watched) -> None:
    page = tab.page
    other = page.context.new_page()
    other.goto(f"/jobs/{server.owner}")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    assert eventually(lambda: other.wait_for_timeout(200) or "/login" in other.url)
    page.go_back()
    page.wait_for_url("**/login*")


# Schedules


def schedule(api: Api, **fields: Any) -> str:
    spec = {"command": ["sh", "-c", "echo <b>"], "dockerImage": "ubuntu", "labels": {"name": "nightly", "team": "a"}}
    body = {"jobSpec": spec | {"secrets": {"KEY": "for nobody"}}, "schedule": "0 0 29 2 *", **fields}
    answer = api.post(f"/api/scheduled-jobs/{api.server.owner}", body)
    assert answer.status == 200, answer
    return f"/schedules/{api.server.owner}/{answer.json['id']}"


def test_a_schedule_is_listed_and_shown(server: Server, api: Api, visitor: Visitor) -> None:
    place = schedule(api)
    assert visitor.get("/schedules").headers["location"] == f"/schedules/{server.owner}"
    listed = text_of(visitor.get(f"/schedules/{server.owner}"))
    assert place in listed
    assert "2028-02-29 00:00:00 UTC" in listed
    shown = visitor.get(place)
    assert "sh -c 'echo <b>'" in text_of(shown)
    assert b"echo <b>" not in shown.body
    assert "Created" in text_of(shown)
    assert "for nobody" not in text_of(shown)
    assert f"hf jobs scheduled trigger {place.rpartition('/')[2]}" in text_of(shown)
    api.call("DELETE", place.replace("/schedules", "/api/scheduled-jobs"))


def test_what_can_be_done_to_a_schedule(server: Server, api: Api, visitor: Visitor) -> None:
    place = schedule(api)
    wire = place.replace("/schedules", "/api/scheduled-jobs")
    fields = {"form_token": visitor.form_token()}
    assert visitor.post(f"{place}/suspend", fields).headers["location"] == place
    assert api.get(wire).json["suspend"] is True
    assert "suspended" in text_of(visitor.get(place))
    ran = visitor.post(f"{place}/run", fields)
    job = ran.headers["location"]
    assert job.startswith(f"/jobs/{server.owner}/")
    assert place in text_of(visitor.get(job))
    api.ended(job.rpartition("/")[2])
    assert visitor.post(f"{place}/resume", fields).headers["location"] == place
    assert api.get(wire).json["suspend"] is False
    history = text_of(visitor.get(place))
    assert all(word in history for word in ("Suspended", "Triggered", "Resumed"))
    assert visitor.post(f"{place}/delete", {"form_token": "wrong"}).status == 403
    assert visitor.post(f"{place}/delete", fields).headers["location"] == f"/schedules/{server.owner}"
    assert visitor.get(place).status == 404


def test_pages_of_schedules_are_for_who_is_signed_in(server: Server, api: Api, stranger: Visitor) -> None:
    place = schedule(api)
    for path in ("/schedules", f"/schedules/{server.owner}", place):
        assert stranger.get(path).headers["location"].startswith("/login?next=")
    assert stranger.post(f"{place}/delete", {}).headers["location"] == "/login"
    assert api.call("DELETE", place.replace("/schedules", "/api/scheduled-jobs")).status == 200
