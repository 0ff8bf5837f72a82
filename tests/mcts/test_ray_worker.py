"""Test how Ray's errors for a lost actor are translated, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError

from mcts.ray_worker import RemoteWorker
from mcts.worker import WorkerDiedError


@pytest.mark.parametrize("error", [RayActorError(), NodeDiedError("gone"), OutOfMemoryError("gone")])
async def test_an_engine_that_is_gone_is_a_dead_worker(error: RayError) -> None:
    """For an actor killed by its memory monitor, Ray raises an error other than RayActorError."""

    async def gone(seconds: float) -> None:
        raise error

    actor = SimpleNamespace(collect=SimpleNamespace(remote=gone))
    with pytest.raises(WorkerDiedError):
        await RemoteWorker(actor, SimpleNamespace()).collect(0.1)
