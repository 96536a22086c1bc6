"""The examples, run as a user runs them: data up, `hf jobs uv run`, results back."""

import json
import re
import subprocess
from pathlib import Path

from clients import ROOT, Client

DATA = """
# /// script
# dependencies = ["pandas", "pyarrow"]
# ///
import sys
from pathlib import Path
import numpy as np
import pandas as pd

dice = np.random.default_rng(1)
for part in range(4):
    folder = Path(sys.argv[1]) / f"day={part}"
    folder.mkdir(parents=True)
    table = pd.DataFrame(dice.normal(size=(5000, 8)), columns=[f"x{i}" for i in range(8)])
    table["label"] = (table["x0"] + 2 * table["x1"] - table["x2"] > 0).astype(int)
    table.to_parquet(folder / "part.parquet")
"""


def uv_run(client: Client, work: Path, *words: str) -> str:
    done = subprocess.run(
        [str(client.bin / "hf"), "jobs", "uv", "run", *words],
        env=client.environment,
        cwd=work,
        text=True,
        capture_output=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_a_model_is_trained_on_a_bucket_and_its_results_come_back(newest: Client, tmp_path: Path) -> None:
    client, server, work = newest, newest.server, tmp_path / "work"
    (work / "results").mkdir(parents=True)
    (work / "make_data.py").write_text(DATA)
    (work / "train.py").write_bytes((ROOT / "examples" / "train.py").read_bytes())
    bucket = f"hf://buckets/{server.owner}/measurements"
    client.hf("buckets", "create", "measurements")
    uv_run(client, work, "-v", f"{bucket}:/out", "make_data.py", "/out")
    volumes = ("-v", f"{bucket}:/measurements:ro", "-v", "./results:/results:rw")
    said = uv_run(client, work, *volumes, "train.py", "/measurements", "/results")
    accuracies = [float(found) for found in re.findall(r"epoch \d: accuracy ([\d.]+)", said)]
    assert len(accuracies) == 5
    pull = re.search(r"hf buckets sync (\S+) ", said)
    assert pull, said
    client.hf("buckets", "sync", pull[1], str(work / "back"))
    back = work / "back"
    metrics = json.loads((back / "metrics.json").read_text())
    assert metrics["rows"] == 20_000
    assert metrics["accuracy"] > 0.95
    assert [round(score, 3) for score in metrics["scores"]] == accuracies
    assert (back / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    kept = {path.name for path in (back / "checkpoints").iterdir()}
    assert kept == {f"epoch-{epoch}.joblib" for epoch in range(1, 6)} | {"last.joblib"}
    job_id = re.findall(r"\b[0-9a-f]{24}\b", said)[0]
    written = server.run("job", "outputs", job_id).stdout
    assert written.splitlines()[-1].startswith("8 files")
    # A second run finds the checkpoints of the first.
    again = uv_run(
        client,
        work,
        "-v",
        f"{bucket}:/measurements:ro",
        "-v",
        f"{pull[1]}:/results",
        "train.py",
        "/measurements",
        "/results",
    )
    assert "going on after epoch 5" in again
