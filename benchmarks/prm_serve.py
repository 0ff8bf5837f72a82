"""Load-test `mmprm serve` with concurrent clients, and check that its scores equal those of the offline scorer."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Solution

TOLERANCE = 1e-3
"""Maximum difference between float32 scores of vLLM and transformers."""
START_SECONDS = 300
BAD_EVERY = 16
"""Number of valid requests per invalid request, which the server must answer with status 422."""


def serve_load(
    prm: str, clients: int = 64, requests: int = 2048, backend: str = "vllm", seed: int = 0
) -> dict[str, int | float | bool]:
    """Send `requests` different solutions with their images, one per request, from `clients` concurrent clients.

    Each client sends its next request when the previous one is answered. Invalid requests are mixed in and do not
    count. `equal`: every score is within TOLERANCE of the offline transformers scorer. `errors`: valid requests
    answered without their scores, and invalid ones answered with a status other than 422. Latencies are in seconds and
    cover valid requests only.
    """
    rng = random.Random(seed)
    solutions = [
        Solution(tiny.problem, tuple(solve(tiny, rng, Mistakes(0.3, 0.3))))
        for tiny in make_problems(requests, seed, "train")
    ]
    offline = open_scorer(ScorerConfig(prm=prm))
    expected = [item.scores for item in offline.score(solutions)]
    offline.close()
    sets = [f"scorer.prm={prm}", f"scorer.backend={backend}", "port=0", "scorer.kv_cache_gib=0.25"]
    command = [sys.executable, "-m", "mmprm", "serve", *(part for item in sets for part in ("--set", item))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "stdout must be a pipe"
        url = process.stdout.readline().split()[2]
        metrics = asyncio.run(_load(url, clients, solutions, expected))
        process.send_signal(signal.SIGTERM)
        metrics["exit"] = process.wait(60)
    finally:
        process.kill()
        process.wait()
    return metrics


async def _load(
    url: str, clients: int, solutions: Sequence[Solution], expected: Sequence[tuple[float, ...]]
) -> dict[str, int | float | bool]:
    # All clients take from one iterator, so that each solution is sent once.
    numbers = iter(range(len(solutions)))
    seconds: list[float] = []
    errors = refused = 0
    largest = 0.0

    async def call() -> None:
        nonlocal errors, refused, largest
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            for number in numbers:
                if number % BAD_EVERY == 0:
                    answer = await _post(http, {"question": "q", "steps": ["<prm>"]})
                    refused += 1
                    errors += answer is None or answer.status_code != 422
                begun = time.perf_counter()
                answer = await _post(http, _request(solutions[number]))
                seconds.append(time.perf_counter() - begun)
                scores = answer.json()["scores"] if answer is not None and answer.status_code == 200 else []
                if len(scores) != len(expected[number]):
                    errors += 1
                    continue
                largest = max(largest, float(np.abs(np.subtract(scores, expected[number])).max()))

    async with httpx.AsyncClient(base_url=url) as http:
        end = time.monotonic() + START_SECONDS
        while (await http.get("/health")).status_code != 200:
            assert time.monotonic() < end, "the service did not start"
            await asyncio.sleep(0.2)
        begun = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(clients)))
        total = time.perf_counter() - begun
        text = (await http.get("/metrics")).text
    count = next(line for line in text.splitlines() if line.startswith("mmprm_batch_solutions_count"))
    return {
        "clients": clients,
        "requests": len(seconds),
        "errors": errors,
        "equal": errors == 0 and largest <= TOLERANCE,
        "largest_difference": largest,
        "refused": refused,
        "seconds": total,
        "requests_per_second": len(seconds) / total,
        "solutions_per_batch": len(seconds) / float(count.split()[1]),
        "latency_median": float(np.median(seconds)),
        "latency_99": float(np.quantile(seconds, 0.99)),
    }


async def _post(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response | None:
    try:
        return await http.post("/v1/score", json=body)
    except httpx.TransportError:
        return None


def _request(solution: Solution) -> dict[str, Any]:
    contents = [
        image.data if image.data is not None else Path(image.path or "").read_bytes()
        for image in solution.problem.images
    ]
    images = [{"data": base64.b64encode(data).decode()} for data in contents]
    return {"question": solution.problem.question, "steps": solution.steps, "images": images}


if __name__ == "__main__":
    print(json.dumps(serve_load(*sys.argv[1:2]), indent=2))
