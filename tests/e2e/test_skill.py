"""Every example of the skill is carried out, in its order: tool calls by an agent, commands by a shell.

A block says behind its language what it is to come to: `fails` is a job that ends badly, `refused` a call that is not
carried out, `detached` a job that goes on. JOB_ID and SCHEDULED_JOB_ID stand for those of the block before, OWNER for
the user's name.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agents import Agent, connected, text_of
from clients import ROOT, Client, Server

SKILL = ROOT / "skills" / "runstead-jobs"
PAGES = [SKILL / "SKILL.md", *sorted((SKILL / "references").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Reader:
    """An agent that does what a page says."""

    def __init__(self, agent: Agent, client: Client, folder: Path) -> None:
        self.agent = agent
        self.client = client
        self.folder = folder
        self.words = {"OWNER": client.server.owner}

    async def do(self, language: str, expected: str, text: str) -> None:
        for word, value in self.words.items():
            text = re.sub(rf"\b{word}\b", value, text)
        if language == "bash":
            self.shell(text)
        elif language == "json":
            await self.call(json.loads(text), expected)
        else:
            raise AssertionError(f"nobody knows how to try a block of {language}")

    def shell(self, text: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            env=self.client.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (text, done.stdout, done.stderr)

    async def call(self, arguments: dict[str, Any], expected: str) -> None:
        found = await self.agent.call("hf_whoami" if expected == "whoami" else "hf_jobs", arguments)
        assert found.is_error == (expected == "refused"), (arguments, text_of(found))
        outcome = found.structured_content.get("outcome", {})
        if "job" in outcome:
            self.words["JOB_ID"] = outcome["job"]["id"]
        if "scheduled_job" in outcome:
            self.words["SCHEDULED_JOB_ID"] = outcome["scheduled_job"]["id"]
        if outcome.get("kind") == "job" and arguments.get("operation") in ("run", "uv", "rerun", "wait"):
            stage = {"fails": ("ERROR",), "detached": ("SCHEDULING", "RUNNING")}.get(expected, ("COMPLETED",))
            assert outcome["job"]["status"]["stage"] in stage, (arguments, text_of(found))
        if expected in ("fails", "refused"):
            assert found.structured_content["next_steps"], (arguments, text_of(found))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
async def test_every_example_of_the_skill_works(page: Path, server: Server, newest: Client, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    async with connected("http", server, tmp_path) as agent:
        reader = Reader(agent, newest, tmp_path)
        for block in blocks:
            await reader.do(*block)


def test_the_skill_is_whole() -> None:
    head = re.match(r"---\n(.*?)\n---\n", PAGES[0].read_text(), re.DOTALL)
    assert head
    fields = dict(line.split(": ", 1) for line in head[1].splitlines())
    assert fields["name"] == SKILL.name
    assert 1 <= len(fields["description"]) <= 1024
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), (page, target)
