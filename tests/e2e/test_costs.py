"""What jobs cost, as users and operators see it: prices, costs, budgets, and `runstead usage`."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calls import Api
from clients import Server, eventually, make_client

# One unit a second, so that little use is much money.
PRICES = "[prices]\ncpu-basic = 60\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    config = tmp_path / "runstead.toml"
    config.write_text(PRICES)
    started = Server(tmp_path / "data", ("--config", str(config), "--stop-jobs-at-exit")).start()
    yield started
    started.stop()


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


def usage(server: Server, *words: str) -> list[dict[str, Any]]:
    return json.loads(server.run("usage", "--json", *words).stdout)


def test_prices_are_in_the_list_of_hardware(server: Server, api: Api, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in api.get("/api/jobs/hardware").json}
    assert (rows["cpu-basic"]["unitCostMicroUSD"], rows["cpu-basic"]["unitCostUSD"]) == (60_000_000, 60)
    assert rows["cpu-performance"]["unitCostMicroUSD"] == 0
    shown = make_client("2.4.0", server, tmp_path).hf("jobs", "hardware").stdout
    assert "$60.0000" in shown
    assert "free" in shown


def test_a_job_shows_its_cost_while_it_runs_and_when_it_is_over(api: Api) -> None:
    job = api.shell("sleep 1000")
    eventually(lambda: api.stage(job["id"]) == "RUNNING")
    so_far = api.job(job["id"])["cost"]["USD"]
    assert eventually(lambda: api.job(job["id"])["cost"]["USD"] > so_far)
    api.cancel(job["id"])
    over = api.ended(job["id"])
    assert over["cost"]["microUSD"] > 0
    assert api.job(job["id"])["cost"] == over["cost"]
    # Whole seconds are shown; the cost is that of the time as it was.
    assert over["durations"]["runningSecs"] <= over["cost"]["USD"] <= over["durations"]["runningSecs"] + 2
    free = api.ended(api.submit("true", flavor="cpu-performance")["id"])
    assert free["cost"] == {"microUSD": 0, "USD": 0}


def test_a_budget_is_a_hard_cap(server: Server, api: Api, tmp_path: Path) -> None:
    said = server.run("budget", "set", server.owner, "100").stdout
    assert said == f"{server.owner} may spend $100.00 a month; $100.00 is left of this one\n"
    client = make_client("2.4.0", server, tmp_path)
    refused = client.hf("jobs", "run", "--timeout", "101s", "ubuntu", "true", check=False)
    assert refused.returncode == 1
    assert "402" in refused.stderr
    assert f"'{server.owner}' may spend $100.00 in a month: $0.00 is spent" in refused.stderr
    assert "This job may cost $101.00 (cpu-basic at $60.00 a minute, a time limit of 101 s)" in refused.stderr
    assert api.jobs() == []
    client.hf("jobs", "run", "-d", "--timeout", "60s", "ubuntu", "sleep", "1000")
    [running] = api.jobs()
    again = api.post(f"/api/jobs/{server.owner}", {"command": ["true"], "dockerImage": "x", "timeoutSeconds": 60})
    assert again.status == 402
    assert "jobs that are not over may cost $60.00 more" in again.error
    api.cancel(running["id"])
    cost = api.ended(running["id"])["cost"]["USD"]
    api.ended(api.submit("true", timeoutSeconds=60)["id"])
    [budget] = json.loads(server.run("budget", "list", "--json").stdout)
    assert budget["budget"] == 100
    assert budget["reserved"] == 0
    assert budget["spent"] > cost
    assert budget["left"] == pytest.approx(100 - budget["spent"])
    api.ended(api.submit("true", flavor="cpu-performance")["id"])
    server.run("budget", "remove", server.owner)
    api.submit("true", timeoutSeconds=600)


def test_a_scheduled_run_over_budget_is_passed_over_and_says_so(server: Server, api: Api) -> None:
    server.run("budget", "set", server.owner, "1")
    body = {"jobSpec": {"command": ["true"], "dockerImage": "ubuntu"}, "schedule": "* * * * * *"}
    schedule = api.post(f"/api/scheduled-jobs/{server.owner}", body).json
    place = f"/api/scheduled-jobs/{server.owner}/{schedule['id']}"
    skipped = eventually(lambda: [one for one in api.get(f"{place}/history").json if one["kind"] == "skipped"])
    assert "may spend $1.00 in a month" in skipped[0]["message"]
    assert api.get(place).json["suspend"] is False
    assert api.post(f"{place}/run").status == 402
    assert api.jobs() == []


def test_usage_by_user_label_and_month(server: Server, api: Api) -> None:
    jobs = [
        api.ended(api.shell("true", labels={"team": "a"})["id"]),
        api.ended(api.shell("exit 1", labels={"team": "b"}, attempts=2)["id"], within=60),
        api.ended(api.submit("true", flavor="cpu-performance")["id"]),
    ]
    [month] = usage(server, "--by", "month", "--month", "all")
    assert month["attempts"] == 4
    assert month["running"] == 0
    assert month["cost"] == pytest.approx(sum(job["cost"]["USD"] for job in jobs))
    [user] = usage(server, "--by", "user")
    assert (user["user"], user["attempts"], user["cost"]) == (server.owner, 4, month["cost"])
    by_team = {row["label"]: row for row in usage(server, "--label", "team")}
    assert {team: row["attempts"] for team, row in by_team.items()} == {"a": 1, "b": 2, "": 1}
    assert by_team["b"]["cost"] == jobs[1]["cost"]["USD"]
    assert by_team[""]["cost"] == 0
    flavors = {row["flavor"]: row["attempts"] for row in usage(server)}
    assert flavors == {"cpu-basic": 3, "cpu-performance": 1}
    assert usage(server, "--month", "2020-01") == []
    assert usage(server, "--namespace", "nobody") == []
    table = server.run("usage").stdout
    assert "NAMESPACE" in table
    assert table.splitlines()[-1].split()[0] == "all"
    written = server.run("usage", "--csv", "--by", "label", "--by", "month").stdout
    rows = list(csv.DictReader(io.StringIO(written)))
    assert {row["label"] for row in rows} == {"team=a", "team=b", ""}
    assert sum(float(row["cost"]) for row in rows) == pytest.approx(month["cost"])
    wrong = server.run("usage", "--month", "November", check=False)
    assert wrong.returncode == 1
    assert "a month is written like" in wrong.stderr


def test_a_schedule_shows_what_its_runs_have_cost_so_far_and_in_all(server: Server, api: Api) -> None:
    body = {"jobSpec": {"command": ["sleep", "1000"], "dockerImage": "ubuntu"}, "schedule": "0 0 29 2 *"}
    schedule = api.post(f"/api/scheduled-jobs/{server.owner}", body).json
    place = f"/api/scheduled-jobs/{server.owner}/{schedule['id']}"
    assert schedule["cost"] == {"microUSD": 0, "USD": 0}
    run = api.post(f"{place}/run").json
    so_far = eventually(lambda: api.get(place).json["cost"]["USD"])
    assert eventually(lambda: api.get(place).json["cost"]["USD"] > so_far)
    api.cancel(run["id"])
    over = api.ended(run["id"])
    assert eventually(lambda: api.get(place).json["cost"] == over["cost"])
    assert api.get(f"/api/scheduled-jobs/{server.owner}").json[0]["cost"] == over["cost"]


def test_usage_counts_what_runs_until_now(server: Server, api: Api) -> None:
    job = api.shell("sleep 1000")
    eventually(lambda: api.stage(job["id"]) == "RUNNING")
    eventually(lambda: api.job(job["id"])["cost"]["USD"] > 1)
    [row] = usage(server, "--by", "job")
    assert (row["job"], row["attempts"], row["running"]) == (job["id"], 1, 1)
    assert row["cost"] >= 1
    api.cancel(job["id"])
