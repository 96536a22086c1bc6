"""Point the client's own tests at a server of this checkout: its address and tokens instead of the Hub's, no more."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from clients import Server  # noqa: E402

FILES = ("test_buckets.py", "test_buckets_cli.py", "test_buckets_hf_file_system.py", "test_copy_files.py")
PYTHON = ROOT / ".venvs" / "hub-tests" / "bin" / "python"

USERS = {"USER": ("dummy-user", "TOKEN"), "OTHER_USER": ("other-user", "OTHER_TOKEN")}
ADMIN, ORGANIZATION = "EnterpriseAdmin", "EnterpriseOrgPrivate"

REPOSITORIES = "needs repositories"
HOSTED = "needs an organization of the hosted Hub whose new buckets are private"
OLDER = "patches or imports private names that the client 2.4.0 keeps elsewhere; passes with the client of its checkout"

# Tests that are left out, by a part of their name, and why. tests/e2e/README.md shows this list.
EXCEPTIONS = {
    "test_create_bucket_enterprise_org": HOSTED,
    "test_copy_files_repo_to_": REPOSITORIES,
    "test_copy_files_bucket_to_repo_raises": REPOSITORIES,
    "test_commit_copy_file": REPOSITORIES,
    "test_cp_upload_file_to_repo": REPOSITORIES,
    "test_cp_upload_to_repo_": REPOSITORIES,
    "test_cp_download_repo_": REPOSITORIES,
    "test_cp_remote_repo_to_": REPOSITORIES,
    "test_open_if_not_found": REPOSITORIES,
    "test_bucket_add_file_content_type": OLDER,
    "test_get_file_with_kwargs": OLDER,
}


def main(checkout: Path, arguments: list[str]) -> int:
    """Run the tests of a checkout; return pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="client-tests-") as name:
        folder = Path(name)
        shutil.copytree(checkout / "tests", folder / "tests")
        server = Server(folder / "data", ("--stop-jobs-at-exit",)).start()
        try:
            _write_constants(folder / "tests" / "testing_constants.py", server)
            _write_settings(checkout, folder)
            tests = [f"tests/{file}" for file in FILES]
            selection = [] if "-k" in arguments else ["-k", " and ".join(f"not {part}" for part in EXCEPTIONS)]
            command = [PYTHON, "-m", "pytest", "-c", "pytest.ini", *selection, *(arguments or ["-q"]), *tests]
            return subprocess.run(command, cwd=folder, env=_environment(folder, server)).returncode
        finally:
            server.stop()


def _write_constants(file: Path, server: Server) -> None:
    values = {"ENDPOINT_STAGING": server.url, "ENTERPRISE_USER": ADMIN, "ENTERPRISE_ORG": ORGANIZATION}
    for constant, (user, token) in USERS.items():
        server.run("user", "add", user)
        values |= {constant: user, token: _token(server, user)}
    server.run("user", "add", ADMIN)
    server.run("org", "add", ORGANIZATION)
    server.run("org", "add-member", ORGANIZATION, ADMIN, "--role", "admin")
    values["ENTERPRISE_TOKEN"] = _token(server, ADMIN)
    text = file.read_text()
    for constant, value in values.items():
        text, found = re.subn(rf"(?m)^{constant} = .*$", f"{constant} = {value!r}", text)
        if found != 1:
            raise SystemExit(f"{file} has no constant {constant}: this script does not know these tests")
    file.write_text(text)


def _token(server: Server, user: str) -> str:
    found = re.search(r"hf_\w+", server.run("token", "add", user, "--role", "write").stdout)
    if found is None:
        raise SystemExit("no token was made")
    return found.group()


def _write_settings(checkout: Path, folder: Path) -> None:
    """Keep the markers and warnings of the checkout, without its environment, which names the Hub's own instance."""
    text = (checkout / "pyproject.toml").read_text()
    found = re.search(r"(?ms)^markers = \[\n(.*?)^\]", text)
    markers = re.findall(r'(?m)^ *"(\w+):', found.group(1)) if found else []
    lines = ["[pytest]", "addopts = -Werror::FutureWarning", "markers =", *(f"    {marker}" for marker in markers)]
    (folder / "pytest.ini").write_text("\n".join(lines) + "\n")


def _environment(folder: Path, server: Server) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "RUNSTEAD_", "PYTHON"))}
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept | own | {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_COLOR": "1"}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: scripts/client-tests CHECKOUT [ARGUMENTS OF PYTEST]")
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
