# /// script
# requires-python = ">=3.10"
# dependencies = ["scikit-learn", "pandas", "pyarrow", "matplotlib"]
# [tool.hf-jobs]
# timeout = "30m"
# ///
"""Train a small classifier on Parquet files of a bucket; leave checkpoints, metrics and a plot in another folder.

    hf buckets create measurements && hf buckets sync ./measurements hf://buckets/me/measurements
    hf jobs uv run -v hf://buckets/me/measurements:/measurements:ro -v ./results:/results:rw \\
        examples/train.py /measurements /results

Every Parquet file has columns of numbers and one named `label`. A run that finds a checkpoint goes on from it.
"""

import json
import os
import sys
from pathlib import Path

import joblib
import matplotlib
import numpy as np
import pandas as pd
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

matplotlib.use("agg")
import matplotlib.pyplot as plt

EPOCHS = 5


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read all Parquet files of a folder, each column only once it is needed."""
    parts = [pd.read_parquet(path) for path in sorted(folder.glob("**/*.parquet"))]
    table = pd.concat(parts, ignore_index=True)
    return table.drop(columns="label").to_numpy(), table["label"].to_numpy()


def save(state: dict, path: Path) -> None:
    """Write a checkpoint that is there whole or not at all."""
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as file:
        joblib.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def main(data: Path, results: Path) -> None:
    """Train, or go on training."""
    features, labels = load(data)
    train, test, train_labels, test_labels = train_test_split(features, labels, test_size=0.25, random_state=0)
    checkpoints = results / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    last = checkpoints / "last.joblib"
    if last.exists():
        state = joblib.load(last)
        print(f"going on after epoch {state['epoch']}")
    else:
        scaler = StandardScaler().fit(train)
        state = {"epoch": 0, "model": SGDClassifier(loss="log_loss", random_state=0), "scaler": scaler, "scores": []}
    model, scaler = state["model"], state["scaler"]
    for epoch in range(state["epoch"] + 1, EPOCHS + 1):
        model.partial_fit(scaler.transform(train), train_labels, classes=np.unique(labels))
        state["epoch"] = epoch
        state["scores"].append(float(model.score(scaler.transform(test), test_labels)))
        save(state, checkpoints / f"epoch-{epoch}.joblib")
        save(state, last)
        print(f"epoch {epoch}: accuracy {state['scores'][-1]:.3f}", flush=True)
    (results / "metrics.json").write_text(
        json.dumps({"rows": len(labels), "accuracy": state["scores"][-1], "scores": state["scores"]}, indent=2)
    )
    plt.plot(range(1, len(state["scores"]) + 1), state["scores"], marker="o")
    plt.xlabel("epoch")
    plt.ylabel("accuracy")
    plt.savefig(results / "accuracy.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
