"""What trackers are handed, read back by their own readers."""

import pytest
from conftest import here
from test_tables import record

from backdoorbench_ext import tracking
from backdoorbench_ext.errors import InputError

GRID = "--dataset digits[train=200,test=50] --attacks badnets --defenses none --model bbx_test"
NAME = "digits[train=200,test=50]/badnets/none/rate0.1-seed0"


def run(out, *more):
    return here("run", *GRID.split(), "--epochs", "2", "--out", out, "--jobs", "1", *more)


def test_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(tmp_path, "--audit", "--track", "tensorboard") == 0
    (folder,) = tmp_path.glob("own*")
    events = reader.EventAccumulator(str(folder / "tensorboard" / NAME))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {"final/CA", "final/ASR", "final/ARR", "train loss", "train, CA"} <= set(names)
    assert [point.step for point in events.Scalars("train loss")] == [1, 2]
    (file,) = folder.rglob("rate*.json")
    assert "spec/text_summary" in events.Tags()["tensors"] and file.exists()


# of SQLAlchemy, in how MLflow calls it
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = record("badnets", "none", 900, 90, 800)
    made["curves"] = {"training loss": [2.0, 1.0], "f_B, CA": [10.0]}
    track = tracking.tracker("mlflow", "paper", tmp_path / "paper")
    track(made)
    # a second run of the grid adds to the same experiment
    tracking.tracker("mlflow", "paper", tmp_path / "paper")(made)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/paper/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "paper")
    first, _ = client.search_runs([experiment.experiment_id])
    assert first.info.run_name == "digits/badnets/none/rate0.1-seed0"
    assert first.data.metrics["CA"] == 90 and first.data.metrics["ASR"] == 10
    history = client.get_metric_history(first.info.run_id, "training loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert first.data.params["defense"] == "none" and first.info.status == "FINISHED"


def test_what_cannot_track(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, "--track", "excel") == 2
    assert "--track must be one of tensorboard, mlflow, wandb" in capsys.readouterr().err
    assert not list(tmp_path.rglob("rate*.json"))

    def missing(*_):
        raise ImportError("wandb")

    monkeypatch.setitem(tracking.TRACKERS, "wandb", missing)
    with pytest.raises(InputError, match=r"pip install 'backdoorbench_ext\[track\]' wandb"):
        tracking.tracker("wandb", "paper", tmp_path)
