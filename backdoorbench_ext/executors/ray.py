"""A Ray cluster: every group is a task, on whichever node has room.

``--executor ray`` starts a cluster on this machine, ``'ray[address=auto]'`` joins the one that runs
here, ``'ray[address=HOST:PORT]'`` another. Nodes need this package and the images, at the place
that ``--data`` names; images never go through Ray.

Where nodes see the folder of the results, they write into it, and a group whose node has died goes
on from its saved state elsewhere. Where they do not, records come back to the driver, and such a
group begins anew.
"""

from __future__ import annotations

import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backdoorbench_ext.api import option
from backdoorbench_ext.errors import InputError, told
from backdoorbench_ext.executors import Executor
from backdoorbench_ext.files import write_whole
from backdoorbench_ext.suite import Cell
from backdoorbench_ext.work import Outcome, Tell, Work

# how often a group is begun again after a node or its process has died
RETRIES = 3
# seconds between two looks at what has ended
LOOK = 0.5
# seconds between two words of a task on its progress
WORD = 1.0


@dataclass(frozen=True)
class Ray(Executor):
    """One task a group; Ray's own scheduler places them."""

    address: str = option("", "auto or HOST:PORT of a cluster; if not given, one is started here")
    gpus_per_task: float | None = option(
        None, "1, 0.5, 0.25, ... of a GPU; if not set, 1 where there are GPUs", low=0.0
    )
    cpus_per_task: int = option(1, "CPU cores of a task", low=1)
    shared: str = option(
        "auto", "whether nodes see the folder of the results", choices=("auto", "no")
    )

    def run(
        self, groups: Sequence[Sequence[Cell]], work: Work, tell: Tell
    ) -> Iterator[list[Outcome]]:
        ray = _ray()
        _start(ray, self.address)
        token = work.folder / f".ray-{secrets.token_hex(4)}"
        try:
            needs = self._needs(ray, work)
            write_whole(token, b"")
            plugins = {file.name: file.read_bytes() for file in work.options.plugins}
            task = ray.remote(_run).options(max_retries=RETRIES, **needs)
            # on the driver's node: another may be lost
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            words = ray.remote(Words).options(num_cpus=0, scheduling_strategy=here).remote()
            seen = str(token.resolve()) if self.shared == "auto" else ""
            kept = replace(work, folder=work.folder.resolve())
            waiting = {
                task.remote(list(group), kept, seen, plugins, words, self.cpus_per_task): list(
                    group
                )
                for group in groups
            }
            while waiting:
                ended, _ = ray.wait(list(waiting), timeout=LOOK)
                for news in ray.get(words.take.remote()):
                    tell(*news)
                for ref in ended:
                    yield _received(ray, ref, waiting.pop(ref), work)
        finally:
            token.unlink(missing_ok=True)
            # what has not ended is cancelled with the connection
            ray.shutdown()

    def _needs(self, ray: Any, work: Work) -> dict[str, float]:
        """The resources of a task.

        Raises:
            InputError: no node has them, or a fraction that Ray would never place.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
        gpus = self.gpus_per_task
        if gpus is None:
            gpus = 1.0 if most and not work.options.device.startswith("cpu") else 0.0
        whole = gpus if gpus >= 1 or not gpus else 1 / gpus
        if abs(whole - round(whole)) > 1e-6:
            raise InputError(
                f"ray: gpus_per_task must be 1/k or a whole number, not {gpus:g}: Ray would wait "
                "for ever"
            )
        cores = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        if gpus > most or self.cpus_per_task > cores:
            raise InputError(
                f"ray: no node has {gpus:g} GPUs and {self.cpus_per_task} cores; the largest have "
                f"{most:g} and {cores:g}"
            )
        return {"num_gpus": gpus, "num_cpus": self.cpus_per_task}


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise InputError(
            "--executor ray needs Ray: pip install 'backdoorbench_ext[ray]'"
        ) from error
    return ray


def _start(ray: Any, address: str) -> None:
    """Raises: InputError: no cluster at that address."""
    more: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon:
            # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(log_to_driver=False, logging_level="error", **more)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"ray: no cluster at {address or 'this machine'} ({told(error)})"
        ) from error


class Words:
    """An actor that keeps what tasks tell of their progress until the driver asks."""

    def __init__(self) -> None:
        self.news: dict[str, tuple[Any, ...]] = {}

    def say(self, *news: Any) -> None:
        """The newest word on a cell."""
        self.news[str(news[0])] = news

    def take(self) -> list[tuple[Any, ...]]:
        """What was said since."""
        news, self.news = list(self.news.values()), {}
        return news


def _run(
    group: list[Cell],
    work: Work,
    token: str,
    plugins: dict[str, bytes],
    words: Any,
    threads: int,
) -> tuple[list[Outcome], dict[str, bytes]]:
    """On a node: the outcomes of a group, and its files where the driver does not see them."""
    here = Path(tempfile.gettempdir()) / f"bbx-ray-{work.folder.name}"
    files_of_plugins = tuple(here / "plugins" / name for name in plugins)
    for file in files_of_plugins:
        write_whole(file, plugins[file.name])
    work = replace(work, options=replace(work.options, plugins=files_of_plugins))
    work.ready(threads)
    shared = bool(token) and Path(token).exists()
    if not shared:
        # victims that groups on this node share stay there
        options = replace(work.options, out=here)
        work = replace(work, folder=here / work.folder.name, options=options)
    last = 0.0

    def tell(*news: Any) -> None:
        nonlocal last
        if time.monotonic() - last > WORD:
            last = time.monotonic()
            words.say.remote(*news)

    outcomes = work.run(group, tell)
    files: dict[str, bytes] = {}
    if not shared:
        for outcome in outcomes:
            files |= _taken(work.folder, work.folder / outcome.cell.path)
    return outcomes, files


def _taken(folder: Path, path: Path) -> dict[str, bytes]:
    """A cell's files by their place in the folder, the record last; they are gone there."""
    beside = sorted(path.parent.glob(f"{path.stem}.*"), key=lambda file: file == path)
    taken = {str(file.relative_to(folder)): file.read_bytes() for file in beside}
    for file in beside:
        file.unlink()
    picture = path.parent.with_name("examples.png")
    if picture.exists():
        taken = {str(picture.relative_to(folder)): picture.read_bytes()} | taken
    return taken


def _received(ray: Any, ref: Any, group: list[Cell], work: Work) -> list[Outcome]:
    """The outcomes of a task that has ended, however that was; its files are written."""
    try:
        outcomes, files = ray.get(ref)
    except ray.exceptions.RayError as error:
        why = f"its task ended: {told(error)}"
        return [work.finished(cell) or work.failed(cell, why, why) for cell in group]
    for place, data in files.items():
        write_whole(work.folder / place, data)
    result: list[Outcome] = outcomes
    return result
