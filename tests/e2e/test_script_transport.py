"""`hf jobs uv run` with a local script: every way that released clients send it, on real input, results out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Client, Server, make_client, volumes_server

SCRIPT = """
# /// script
# dependencies = ["six"]
# ///
import json, pathlib, sys
import six

config = json.load(open(sys.argv[1]))
print("six", six.PY3, "config", config["a"], "argument", sys.argv[2])
out = pathlib.Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
(out / "result.json").write_text(json.dumps({"sum": config["a"] + 1}))
"""


@pytest.fixture(scope="module", params=["fill", "mount"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose volumes are filled, then one whose volumes are mounted."""
    started = volumes_server(request.param, tmp_path_factory.mktemp("server") / "data", "--stop-jobs-at-exit").start()
    yield started
    started.stop()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "config.json").write_text('{"a": 41}')
    (folder / "inputs").mkdir()
    (folder / "inputs" / "data.csv").write_text("x\n1\n")
    return folder


def run(client: Client, work: Path, *words: str) -> str:
    import subprocess

    done = subprocess.run(
        [str(client.bin / "hf"), "jobs", "uv", "run", *words],
        env=client.environment,
        cwd=work,
        text=True,
        capture_output=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def bucket(newest: Client, name: str = "jobs-artifacts") -> dict[str, int]:
    code = f"from huggingface_hub import HfApi\nid = {newest.server.owner + '/' + name!r}\n"
    return newest.python(
        code + "out({f.path: f.size for f in HfApi().list_bucket_tree(id, recursive=True) if hasattr(f, 'size')})"
    )


@pytest.mark.parametrize("version", ["2.4.0", "1.28.0"])
def test_a_script_with_its_files_goes_up_and_its_results_come_back(
    server: Server, newest: Client, tmp_path: Path, work: Path, version: str
) -> None:
    client = make_client(version, server, tmp_path)
    said = run(client, work, "train.py", "config.json", "word", "/data/out")
    assert "six True config 41 argument word" in said
    assert "completed" in said.lower() or version != "2.4.0"
    results = [path for path in bucket(newest) if path.endswith("/out/result.json")]
    assert results
    assert all(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{6}/out/result.json", path) for path in results)


def test_a_local_folder_goes_up_is_written_to_and_is_synced_back(newest: Client, work: Path) -> None:
    said = run(
        newest, work, "-v", "./inputs:/data2:rw", "--with", "attrs", "train.py", "config.json", "word", "/data2/out"
    )
    assert "six True" in said
    pull = re.search(r"hf buckets sync (\S+) ", said)
    assert pull, said
    newest.hf("buckets", "sync", pull[1], str(work / "back"))
    assert json.loads((work / "back" / "out" / "result.json").read_text()) == {"sum": 42}
    assert (work / "back" / "data.csv").read_text() == "x\n1\n"


def test_a_local_folder_is_read_only_unless_said_otherwise(newest: Client, work: Path) -> None:
    (work / "try.py").write_text(
        "import pathlib\n"
        "print(pathlib.Path('/data2/data.csv').read_text())\n"
        "try:\n    open('/data2/new', 'w')\nexcept OSError as error:\n    print('refused:', error.strerror)\n"
    )
    said = run(newest, work, "-v", "./inputs:/data2", "try.py")
    assert "refused: Read-only file system" in said


def test_the_python_that_is_asked_for(newest: Client, work: Path) -> None:
    (work / "version.py").write_text("import sys; print('python', sys.version_info[:2])")
    import sys

    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"python ({wanted.replace('.', ', ')})" in run(newest, work, "--python", wanted, "version.py")


def test_headers_for_jobs_in_the_script_work(newest: Client, work: Path) -> None:
    (work / "headed.py").write_text(
        "# /// script\n# dependencies = ['six']\n# [tool.hf-jobs]\n# timeout = '123s'\n# env = {GREETING = 'hello'}\n"
        "# ///\nimport os, six; print(os.environ['GREETING'], six.PY3)"
    )
    said = run(newest, work, "headed.py")
    assert "hello True" in said
    job_id = re.search(r"\b[0-9a-f]{24}\b", said)
    assert job_id
    shown = json.loads(newest.hf("jobs", "inspect", job_id[0], "--format", "json").stdout)
    shown = shown[0] if isinstance(shown, list) else shown
    assert shown["environment"] == {"GREETING": "hello"}


def test_the_script_in_the_environment_of_1_9(server: Server, tmp_path: Path, work: Path, newest: Client) -> None:
    client = make_client("1.9.0", server, tmp_path)
    newest.hf("buckets", "create", "old-outputs", "--exist-ok")
    volume = f"hf://buckets/{server.owner}/old-outputs:/outputs"
    said = run(client, work, "-v", volume, "train.py", "config.json", "word", "/outputs/nineteen")
    assert "six True config 41 argument word" in said
    assert bucket(newest, "old-outputs") == {"nineteen/result.json": 11}


def test_a_bucket_mounted_whole_with_the_script_in_it(newest: Client, work: Path) -> None:
    """What clients did while this transport was made: the bucket at /artifacts, the script under _scripts."""
    done = newest.python(
        f"""
from huggingface_hub import HfApi, Volume
api = HfApi(); id = {newest.server.owner + "/whole"!r}
api.create_bucket(id, private=True, exist_ok=True)
scripts = "_scripts/0123abcd"
files = [(f"{work}/{{name}}", f"{{scripts}}/{{name}}") for name in ("train.py", "config.json")]
api.batch_bucket_files(id, add=files)
at = f"/artifacts/{{scripts}}"
job = api.run_job(
    image="ghcr.io/astral-sh/uv:python3.12-bookworm",
    command=["uv", "run", f"{{at}}/train.py", f"{{at}}/config.json", "word", "/artifacts/results"],
    volumes=[Volume(type="bucket", source=id, mount_path="/artifacts")],
)
api.wait_for_job(job_id=job.id) if hasattr(api, "wait_for_job") else None
job = api.inspect_job(job_id=job.id)
out([job.status.stage, job.status.message])
""",
        timeout=110,
    )
    assert done == ["COMPLETED", f"saved 1 file (11 bytes) to {newest.server.owner}/whole"]
    assert bucket(newest, "whole")["results/result.json"] == 11
