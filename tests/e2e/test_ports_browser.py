"""Exposed ports in a real browser: signing in, and what a page of a job can and cannot do to those who look at it."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from clients import Client, Server, eventually, make_client

APP = Path(__file__).parents[1] / "ports_app.py"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("RUNSTEAD_TEST_BROWSER") == "required":
            pytest.fail("there is no Chromium on this machine, and RUNSTEAD_TEST_BROWSER=required")
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--no-proxy-server"], headless=True
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("browser") / "data"
    started = Server(data_dir, ("--stop-jobs-at-exit",), {"RUNSTEAD_EXECUTOR_KIND": "process"}).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def jobs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    hub: Client = make_client("2.4.0", server, tmp_path_factory.mktemp("hub"))
    words = ["--expose", "8000", "python:3.12", sys.executable, str(APP), "8000", "8001"]
    return [
        re.findall(r"^ *id: ([0-9a-f]{24})", hub.hf("jobs", "run", "-d", *words).stdout, re.MULTILINE)[0]
        for _ in range(2)
    ]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context()
    yield made
    made.close()


def sign_in(page: Page, server: Server) -> None:
    page.wait_for_url("**/login?*")
    page.get_by_label("Token").fill(server.token)
    page.get_by_role("button", name="Sign in").click()


def shown(page: Page, title: str) -> None:
    assert eventually(lambda: page.title() == title, within=15), (page.url, page.title(), page.content()[:500])


def by_path(server: Server, job: str) -> str:
    return f"{server.url}/jobs-proxy/{job}--8000.port"


def by_host(server: Server, job: str) -> str:
    return f"http://{job}--8000.localhost:{server.port}"


def test_signing_in_leads_to_the_page(server: Server, jobs: list[str], context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{by_path(server, jobs[0])}/folder/page?a=b")
    sign_in(page, server)
    shown(page, "/folder/x")  # its script came, and what that asked for
    assert page.url.endswith("/folder/page?a=b")
    assert server.token not in page.url
    # The address alone is enough now, and only for this port.
    page.goto(f"{by_path(server, jobs[0])}/page")
    shown(page, "/x")
    other = page.url.replace(jobs[0], jobs[1])
    answer = page.request.get(other, headers={"Accept": "*/*"})
    assert answer.status == 401


def test_the_address_without_a_slash_gets_one(server: Server, jobs: list[str], context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(by_path(server, jobs[0]))
    sign_in(page, server)
    page.wait_for_url(re.compile(r"/jobs-proxy/[^/]+/$"))


def test_a_page_on_the_servers_origin_can_do_nothing_with_the_login(
    server: Server, jobs: list[str], context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(f"{by_path(server, jobs[0])}/page")
    sign_in(page, server)
    shown(page, "/x")
    attempts = {
        "document.cookie": "document.cookie",
        "localStorage": "localStorage.length",
        "the pages of the server": f"fetch('/jobs/{server.owner}', {{credentials: 'include'}}).then(a => a.text())",
        "another job": f"fetch('{by_path(server, jobs[1])}/x', {{credentials: 'include'}}).then(a => a.text())",
        "a window": f"(() => {{ const w = window.open('/jobs/{server.owner}'); return w.document.title }})()",
    }
    for what, code in attempts.items():
        found = page.evaluate(f"async () => {{ try {{ return 'got ' + await {code} }} catch (e) {{ return e.name }} }}")
        assert found in ("SecurityError", "TypeError"), (what, found)
    # A request that needs no permission to be sent brings no login with it.
    with context.expect_event("request", lambda one: one.url.endswith("/forged")) as sent:
        page.evaluate(f"fetch('{server.url}/jobs/{server.owner}/forged', {{method: 'POST', mode: 'no-cors'}})")
    assert "cookie" not in sent.value.all_headers()


def test_a_host_of_its_own(server: Server, jobs: list[str], context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{by_host(server, jobs[0])}/page?a=b")
    sign_in(page, server)
    shown(page, "/x")
    assert page.url == f"{by_host(server, jobs[0])}/page?a=b"
    page.evaluate("localStorage.setItem('a', 'b')")
    page.reload()
    shown(page, "/x")
    assert page.evaluate("localStorage.getItem('a')") == "b"
    assert page.evaluate("document.cookie") == ""
    seen = page.evaluate("fetch('/y').then(a => a.text())")
    assert "runstead" not in seen  # neither cookie nor pass came to the job


def test_hosts_are_strangers_to_each_other(server: Server, jobs: list[str], context: BrowserContext) -> None:
    page = context.new_page()
    for job in jobs:
        page.goto(f"{by_host(server, job)}/page")
        if "/login" in page.url:
            sign_in(page, server)
        shown(page, "/x")
    for target in (by_host(server, jobs[0]), f"http://localhost:{server.port}"):
        code = f"fetch('{target}/x', {{credentials: 'include'}}).then(a => a.text())"
        found = page.evaluate(f"async () => {{ try {{ return await {code} }} catch (e) {{ return e.name }} }}")
        assert found == "TypeError"
    page.goto(f"{by_host(server, jobs[0])}/page")
    assert "/x" in page.evaluate("fetch('/x').then(a => a.text())")


def test_the_page_of_the_job_has_a_link(server: Server, jobs: list[str], context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{server.url}/jobs/{server.owner}/{jobs[0]}")
    sign_in(page, server)
    page.get_by_role("link", name="8000").click()
    page.wait_for_url(re.compile(r"/jobs-proxy/[^/]+/$"))
