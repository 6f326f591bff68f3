"""Records as runs of a tracker: their curves by epoch, and their metrics, through its own client.

A run is one cell. TensorBoard's files lie in ``tensorboard`` in the suite's folder, MLflow's runs
in ``mlflow.db`` there, unless ``MLFLOW_TRACKING_URI`` names a server, wandb's in ``wandb``, which
``WANDB_MODE=offline`` keeps on this machine. Records stay what is true; a tracker is a view of
them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError, reason
from .records import Record

log = logging.getLogger(__name__)
Track = Callable[[Record], None]


def tracker(name: str, suite: str, folder: Path) -> Track:
    """What hands a record on; files lie in the suite's folder. A record that cannot be handed on,
    to a server that does not answer perhaps, is said, and the run goes on.

    Raises:
        InputError: no such tracker, or its package is missing.
    """
    if name not in TRACKERS:
        raise InputError(f"--track must be one of {', '.join(TRACKERS)}, not {name!r}")
    try:
        track = TRACKERS[name](suite, folder.resolve())
    except ImportError as error:
        raise InputError(
            f"--track {name} needs its package: pip install 'backdoorbench_ext[track]'"
        ) from error

    def forgiving(record: Record) -> None:
        try:
            track(record)
        # a client may raise anything; the training must not be lost by it
        except Exception as error:
            log.warning("%s: not handed to %s: %s", _called(record), name, reason(error))

    return forgiving


def _called(record: Record) -> str:
    """The name of a run: as a path, which trackers group by."""
    cell = record["cell"]
    spec = record["spec"]
    return (
        f"{cell['dataset']}/{cell['attack']}/{cell['defense']}/"
        f"rate{spec['rate']:g}-seed{spec['seed']}"
    )


def _metrics(record: Record) -> dict[str, float]:
    """The final metrics in percent."""
    counts = record["metrics"].items()
    return {name.upper(): 100 * hits / n for name, (hits, n) in counts if n}


def _options(record: Record) -> dict[str, str | float]:
    """What was run: names, rate, seed, every option of attack and defense, device, commit."""
    spec = record["spec"]
    told: dict[str, str | float] = {**record["cell"], "rate": spec["rate"], "seed": spec["seed"]}
    for kind in ("attack", "defense"):
        told |= {
            f"{kind}.{key}": value if isinstance(value, int | float | str) else json.dumps(value)
            for key, value in spec[kind].items()
        }
    around = record["surroundings"]
    told["protocol"] = f"{spec['protocol']['name']} v{spec['protocol']['version']}"
    return told | {"device": around["device"], "commit": around["commit"] or "unknown"}


def _points(record: Record) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Epoch by epoch, from 1, the curves that are so long."""
    curves = record["curves"]
    for epoch in range(max(map(len, curves.values()), default=0)):
        yield epoch + 1, {name: own[epoch] for name, own in curves.items() if epoch < len(own)}


def _tensorboard(suite: str, folder: Path) -> Track:
    from torch.utils.tensorboard import SummaryWriter

    def track(record: Record) -> None:
        with SummaryWriter(folder / "tensorboard" / _called(record)) as writer:
            for epoch, values in _points(record):
                for name, value in values.items():
                    writer.add_scalar(name, value, epoch)
            for name, value in _metrics(record).items():
                writer.add_scalar(f"final/{name}", value, 0)
            writer.add_text("spec", f"```\n{json.dumps(_options(record), indent=1)}\n```")

    return track


def _mlflow(suite: str, folder: Path) -> Track:
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
    client = mlflow.tracking.MlflowClient(where)
    found = client.get_experiment_by_name(suite)
    experiment = found.experiment_id if found else client.create_experiment(suite)

    def track(record: Record) -> None:
        run = client.create_run(experiment, run_name=_called(record)).info.run_id
        for key, option in _options(record).items():
            client.log_param(run, key, option)
        for epoch, values in _points(record):
            for name, value in values.items():
                client.log_metric(run, _plain(name), value, step=epoch)
        for name, value in _metrics(record).items():
            client.log_metric(run, name, value)
        client.set_terminated(run)

    return track


def _plain(name: str) -> str:
    """A curve's name in the letters that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _wandb(suite: str, folder: Path) -> Track:
    import wandb

    def track(record: Record) -> None:
        run: Any = wandb.init(
            project=suite,
            name=_called(record),
            config=_options(record),
            dir=folder,
            # its copy of what is printed would break the progress bars
            settings=wandb.Settings(console="off"),
        )
        for epoch, values in _points(record):
            run.log(dict(values), step=epoch)
        run.summary.update(_metrics(record))
        run.finish()

    return track


TRACKERS: dict[str, Callable[[str, Path], Track]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
