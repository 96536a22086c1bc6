"""The programs beside a job stay small: no module that costs a megabyte slips in."""

import subprocess
import sys
from pathlib import Path

import runstead

_HEAVY = ("typing", "dataclasses", "pathlib", "contextlib", "inspect", "asyncio", "logging", "threading", "tempfile")


def test_the_launcher_imports_nothing_heavy() -> None:
    source = str(Path(runstead.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {source!r}); import runstead.node.launcher; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    found = set(run.stdout.split())
    assert "runstead.node.supervise" in found
    assert found.isdisjoint(_HEAVY)
    assert not any(name.startswith("runstead.model") for name in found)
