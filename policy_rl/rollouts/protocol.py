"""Define the interface of the pool of rollout engines that the RL loop uses."""

from __future__ import annotations

from typing import Any, Protocol

from mmprm.errors import EngineStoppedError
from mmprm.types import Problem
from policy_rl.types import Group, ResponsePrefix


class Pool(Protocol):
    """Protocol for the pool of rollout engines that the RL loop uses. RolloutPool implements it."""

    version: int
    probe_token_ids: tuple[int, ...]

    async def sample(
        self,
        problem: Problem,
        n: int,
        seed: int,
        version: int | None,
        max_tokens: int | None = None,
        prefix: ResponsePrefix | None = None,
    ) -> Group:
        """Sample `n` responses to a problem from policy version `version`.

        Without a version, whichever version the engines have samples them; new weights interrupt the responses, which
        then continue with the new weights. With a prefix, they begin with its tokens, and `max_tokens` limits the
        tokens after it.
        """
        ...

    async def load_weights(self, published: Any) -> float:
        """Load published weights into all engines; return the largest log-probability deviation from the trainer.

        The deviation of an engine is the mean absolute difference over the probe tokens, in nats.
        """
        ...

    async def sleep(self) -> None:
        """Free GPU memory for the trainer by discarding the engines' weights and KV caches."""
        ...

    async def wake(self) -> None:
        """Reallocate memory for the weights before they are sent. `load_weights` reallocates the KV caches."""
        ...

    async def until_lost(self) -> EngineStoppedError:
        """Wait until an engine that receives weights directly from the trainer dies, and return the reason."""
        ...
