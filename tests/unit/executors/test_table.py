"""The table of what each executor can do is held by tests: those of its lines, and what executors say of themselves."""

import ast
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_TESTS = {
    "the named image is used": "contract/test_docker.py::test_the_image_says_what_surrounds_the_command",
    "sandboxes, shells, files of a running job": (
        "contract/test_inside_programs.py::test_a_program_runs_and_its_output_and_end_are_told"
    ),
    "exposed ports": "contract/test_inside_ports.py::test_ports_are_reached_on_any_address",
    "isolated sandboxes in one job (pools)": "contract/test_inside_compartments.py",
    "forks and snapshots of sandboxes": "e2e/test_sandbox_forks.py",
    "disk space is limited": "hostile/test_resources.py::test_a_disk_filler_fills_its_own_disk",
    "running out of memory ends with class `oom`": (
        "hostile/test_resources.py::test_a_memory_hog_dies_alone_and_is_told_how_much_it_had"
    ),
    "`executor.egress`": "contract/test_egress.py::test_what_is_listed_is_reached_and_nothing_else",
    "what a single job may reach (`RUNSTEAD_EGRESS`)": (
        "contract/test_egress.py::test_one_job_may_be_kept_closer_than_the_others"
    ),
    "network groups": "e2e/test_network_groups.py",
    "root inside is nobody outside": "contract/test_containers.py::test_a_kernel_of_its_own",
    "orphans are buried": "hostile/test_resources.py::test_zombies_are_buried",
    "jobs cannot make raw packets": (
        "hostile/test_borders.py::test_raw_packets_cannot_be_made_and_addresses_not_be_taken"
    ),
    "a job cannot look into or signal its first process": (
        "hostile/test_borders.py::test_what_is_the_machines_own_is_closed"
    ),
    "a fork bomb hurts nobody else": "hostile/test_resources.py::test_a_fork_bomb_hurts_nobody_else",
    "other jobs' processes, ports and files are out of reach": (
        "hostile/test_borders.py::test_processes_of_others_are_out_of_reach"
    ),
}


def test_every_line_has_a_test() -> None:
    lines = (_ROOT / "docs" / "executors.md").read_text().splitlines()
    start = lines.index("| | `process` | `oci` | `crun`, `runc` | `runsc` | `docker` |") + 2
    rows = lines[start : lines.index("", start)]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(_TESTS)


@pytest.mark.parametrize("place", _TESTS.values())
def test_the_tests_are_there(place: str) -> None:
    file, _, name = place.partition("::")
    tree = ast.parse((_ROOT / "tests" / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert names
    assert not name or name in names
