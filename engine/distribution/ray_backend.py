"""Run workers as actors of a Ray cluster.

Every machine of the cluster must see the run directory, the inputs and the model's files under the
same paths, on a shared file system.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from combicam.engine.distribution.executor import Ready, WorkerLost, shards_ahead
from combicam.engine.distribution.worker import ShardWorker, WorkerTask
from combicam.engine.run.config import DistributionConfig
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.errors import RunError, first_line
from combicam.requirements import require

LOCAL = "local"
_CPUS = 4
_STOP_S = 10.0


class RayBackend:
    """Starts an actor for each GPU of a cluster, or on CPUs if there are none.

    Actors that die, alone or with their machine, are replaced wherever there is room. The number
    of actors is fixed at the start.

    Args:
        task: of all actors. Its configuration names the cluster; ``local`` starts one that ends
            with the run. If the program is already connected to a cluster, that one is used.

    Raises:
        MissingExtra: Ray is not installed.
        RunError: the cluster cannot be reached, or has no room for an actor.
    """

    def __init__(self, task: WorkerTask) -> None:
        asked = task.config.distribution
        self._ray = require("ray", extra="ray", operation="run")
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._connect(asked.ray or LOCAL)
        device = task.config.compute.device
        on_gpus = device is None or torch.device(device).type == "cuda"
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        try:
            room = fitted(machines, on_gpus, asked.ray_cpus)
        except RunError:
            self._leave()
            raise
        self.slots = room.actors
        self.config = replace(task.config, workers=room.cpus, distribution=DistributionConfig())
        self._task = replace(task, config=self.config, threads=room.cpus)
        self._actor = self._ray.remote(ShardWorker).options(
            num_cpus=room.cpus,
            num_gpus=room.gpus,
            max_concurrency=shards_ahead(self.config) + 2,  # plus start and stop
        )
        self._actors: dict[int, Any] = {}
        self._answers: dict[Any, int] = {}

    def _connect(self, address: str) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if address == LOCAL:
            settings["include_dashboard"] = False
        try:
            self._ray.init(address=address, **settings)
        except ConnectionError as error:
            raise RunError(
                f"run: expected a Ray cluster at {address}, got none ({first_line(error)}); start "
                "one with 'ray start --head', or leave out the address to start one on this machine"
            ) from error

    def start(self, slot: int) -> None:
        """Create an actor, which Ray queues until there is room."""
        actor = self._actor.remote(self._task)
        self._actors[slot] = actor
        self._answers[actor.start.remote()] = slot

    def hand(self, slot: int, work: ShardWork) -> None:
        """Give an actor a shard."""
        self._answers[self._actors[slot].process_shard.remote(work)] = slot

    def events(self, timeout_s: float) -> Iterator[tuple[int, Ready | ShardReport | WorkerLost]]:
        """Results of the actors, and those that died.

        Raises:
            Exception: an actor raised it.
        """
        answered, _ = self._ray.wait(list(self._answers), timeout=timeout_s)
        for answer in answered:
            slot = self._answers.pop(answer)
            try:
                yield slot, self._ray.get(answer) or Ready()
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause or RunError(f"run: a worker failed: {first_line(error)}")
                raise cause from error
            except self._ray.exceptions.RayError as error:
                self._bury(slot)
                yield slot, WorkerLost(first_line(error))

    def _bury(self, slot: int) -> None:
        """Kill an actor, so that it cannot write its shards while another one does."""
        self._ray.kill(self._actors.pop(slot))
        self._answers = {answer: s for answer, s in self._answers.items() if s != slot}

    def stop(self) -> None:
        """Let actors clean up, then stop them, and the cluster if it was started here."""
        stopped = [actor.stop.remote() for actor in self._actors.values()]
        if stopped:
            self._ray.wait(stopped, num_returns=len(stopped), timeout=_STOP_S)
        for slot in list(self._actors):
            self._bury(slot)
        self._leave()

    def _leave(self) -> None:
        if self._is_ours:
            self._ray.shutdown()


@dataclass(frozen=True)
class Room:
    """The number of actors that a cluster has room for, and the resources of each."""

    actors: int
    cpus: int
    gpus: int


def fitted(machines: list[dict[str, float]], on_gpus: bool, cpus: int | None) -> Room:
    """Count actors: one per GPU, or one per ``cpus`` CPUs if there are no GPUs or none are wanted.

    Args:
        machines: Ray's resources of each machine.
        on_gpus: whether GPUs are wanted.
        cpus: of an actor; None for a GPU's share of the CPUs, or for at most 4.

    Raises:
        RunError: no room.
    """
    with_gpus = [m for m in machines if on_gpus and m.get("GPU", 0) >= 1 and m.get("CPU", 0) >= 1]
    gpus = 1 if with_gpus else 0
    used = with_gpus or [m for m in machines if m.get("CPU", 0) >= 1]
    if cpus is None and used:
        shares = [m["CPU"] // m["GPU"] if gpus else min(_CPUS, m["CPU"]) for m in used]
        cpus = max(1, int(min(shares)))
    actors = 0
    for machine in used:
        by_cpus = int(machine["CPU"] // (cpus or 1))
        actors += min(by_cpus, int(machine["GPU"])) if gpus else by_cpus
    if actors == 0:
        raise RunError(
            f"run: expected a Ray cluster with room for an actor of {cpus or 1} CPUs, got "
            f"{[{k: m.get(k, 0) for k in ('CPU', 'GPU')} for m in machines]}; use a smaller "
            "ray_cpus, or another cluster"
        )
    return Room(actors, cpus or 1, gpus)
