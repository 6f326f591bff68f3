"""What trackers are handed, read back by their own readers."""

import struct

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


@pytest.mark.slow
def test_wandb(tmp_path, monkeypatch):
    """Its own messages, read from the file that it writes offline."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    made = record("badnets", "none", 900, 90, 800)
    made["curves"] = {"training loss": [2.0, 1.0]}
    (tmp_path / "paper").mkdir()
    tracking.tracker("wandb", "paper", tmp_path / "paper")(made)
    (file,) = (tmp_path / "paper" / "wandb").glob("offline-*/*.wandb")
    content = file.read_bytes()
    # seven bytes of the file's head, and of each message's: checksum, length, kind
    place = 7
    told = {}
    history = []
    while place < len(content):
        (length,) = struct.unpack_from("<H", content, place + 4)
        message = Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length
        kind = message.WhichOneof("record_type")
        if kind == "run":
            told["run"] = message.run.project, message.run.display_name
            told |= {item.key: item.value_json for item in message.run.config.update}
        elif kind == "summary":
            told |= {item.key: item.value_json for item in message.summary.update}
        elif kind == "history":
            values = {"/".join(i.nested_key) or i.key: i.value_json for i in message.history.item}
            history.append((message.history.step.num, float(values["training loss"])))
    assert told["run"] == ("paper", "digits/badnets/none/rate0.1-seed0")
    assert told["defense"] == '"none"' and float(told["CA"]) == 90 and float(told["ASR"]) == 10
    assert history == [(1, 2.0), (2, 1.0)]


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    def broken(*_):
        def track(_):
            raise ConnectionError("no route to host")

        return track

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", broken)
    assert run(tmp_path, "--track", "mlflow") == 0
    assert len(list(tmp_path.rglob("rate*.json"))) == 1
    assert "none/rate0.1-seed0: not handed to mlflow: no route to host" in caplog.text


def test_what_cannot_track(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, "--track", "excel") == 2
    assert "--track must be one of tensorboard, mlflow, wandb" in capsys.readouterr().err
    assert not list(tmp_path.rglob("rate*.json"))

    def missing(*_):
        raise ImportError("wandb")

    monkeypatch.setitem(tracking.TRACKERS, "wandb", missing)
    with pytest.raises(InputError, match=r"pip install 'backdoorbench_ext\[track\]'"):
        tracking.tracker("wandb", "paper", tmp_path)
