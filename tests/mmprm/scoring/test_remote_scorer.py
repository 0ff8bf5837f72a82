from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from served import StepScorer, make_service, running

from mmprm.cli.main import main
from mmprm.config import load
from mmprm.errors import ConfigError, DataError, EngineStoppedError
from mmprm.scoring.config import ScorerConfig, ServerConfig
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.scoring.http.remote import REQUEST_SOLUTIONS, RemoteScorer
from mmprm.scoring.http.service import Service
from mmprm.scoring.http.wire import ServiceLimits
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.types import ImageRef, Problem, Solution, StepScores


def remote(*urls: str, **values: object) -> RemoteScorer:
    return RemoteScorer(ServerConfig(urls=urls, **{"backoff_seconds": 0.02, "attempts": 4} | values))


def solution(*steps: str, name: str = "p", image: ImageRef | None = None) -> Solution:
    return Solution(Problem(name, "q", "", () if image is None else (image,)), steps)


def many(count: int) -> list[Solution]:
    return [solution(str(number / 256), "1", name=f"p{number}") for number in range(count)]


def expected(count: int) -> list[StepScores]:
    return [StepScores((number / 256, 1.0)) for number in range(count)]


def image(folder: Path, color: str) -> Path:
    Image.new("RGB", (8, 8), color).save(folder / f"{color}.png")
    return folder / f"{color}.png"


def test_scores_come_in_order_in_requests_of_a_bounded_size() -> None:
    scorer = StepScorer()
    with running(make_service(lambda: scorer)) as url:
        asked = remote(url)
        assert asked.score(many(200)) == expected(200)
        assert asked.score([]) == []
        assert (asked.model.model, asked.model.aggregator) == ("tiny", "min")
        asked.close()
    assert sorted(len(indices) for indices in asked._requests(many(200))) == [8] + [REQUEST_SOLUTIONS] * 6


def test_images_are_sent_and_requests_stay_below_the_size_limit(tmp_path: Path) -> None:
    """Sixteen solutions take 300 KiB each in base64; two fit into a request of 1 MiB."""
    data = image(tmp_path, "red").read_bytes() + bytes(225 * 1024)
    (tmp_path / "large.png").write_bytes(data)
    scorer = StepScorer()
    with running(make_service(lambda: scorer, ServiceLimits(body_mib=1))) as url:
        asked = remote(url)
        kinds = (ImageRef(path=str(tmp_path / "large.png")), ImageRef(data=data))
        solutions = [solution("0.5", name=str(number), image=kinds[number % 2]) for number in range(16)]
        assert [len(indices) for indices in asked._requests(solutions)] == [3] * 5 + [1]
        assert asked.score(solutions) == [StepScores((0.5,))] * 16
        asked.close()
    arrived = [each for batch in scorer.batches for each in batch]
    assert {each.problem.images for each in arrived} == {(ImageRef(data=data),)}


def test_paths_are_sent_where_the_server_sees_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = image(tmp_path, "blue")
    monkeypatch.chdir(tmp_path)
    scorer = StepScorer()
    with running(make_service(lambda: scorer, image_root=tmp_path)) as url:
        asked = remote(url, send_paths=True)
        sent = asked._body([solution("0.5", image=ImageRef(path="blue.png"))])
        assert sent["solutions"][0]["images"] == [{"path": str(file)}]
        assert asked.score([solution("0.5", image=ImageRef(path="blue.png"))]) == [StepScores((0.5,))]
        asked.close()
    assert scorer.batches[0][0].problem.images == (ImageRef(data=file.read_bytes()),)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (solution("refuse", name="f.jsonl:7"), "problem f.jsonl:7: it is refused"),
        (solution(name="x"), "problem x: a solution must have at least one step"),
        (solution(*["1"] * 1001, name="x"), "problem x: a solution has 1,001 steps, but at most 1,000"),
        (solution("1", name="x", image=ImageRef(data=b"no")), r"problem x: images\[0\]: image of 2 bytes: cannot"),
        (solution("1", name="x", image=ImageRef(path="no.png")), "no.png: cannot be read as an image"),
        (solution("crash", name="x"), r"problem x: the model failed on it \(ValueError\)"),
        (solution("1", "é" * 200_000, name="x"), "problem x: .*the body is larger than 1 MiB"),
    ],
)
def test_a_solution_that_is_refused_is_named(bad: Solution, message: str) -> None:
    with running(make_service(StepScorer, ServiceLimits(body_mib=1))) as url:
        asked = remote(url)
        with pytest.raises(DataError, match=message):
            asked.score([*many(3), bad])
        assert asked.score(many(3)) == expected(3)
        asked.close()


async def test_with_a_queue_only_the_invalid_solution_fails() -> None:
    with running(make_service(StepScorer)) as url:
        asked = remote(url)
        queue = ScoreQueue(asked)
        answers = await queue.judge([*many(5), solution("refuse", name="bad"), *many(2)])
        queue.close()
        asked.close()
    assert [*answers[:5], *answers[6:]] == [*expected(5), *expected(2)]
    assert str(answers[5]) == "problem bad: it is refused"


def test_a_busy_server_is_asked_again() -> None:
    """The server accepts one solution at a time, and four are sent."""

    class Slow(StepScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            time.sleep(0.1)
            return super().score(solutions)

    service = make_service(Slow, ServiceLimits(solutions=1, in_flight=1))
    with running(service) as url:
        asked = remote(url, concurrency=4, attempts=20)
        assert asked.score(many(4)) == expected(4)
        asked.close()
    errors = service.metrics.text().decode()
    assert 'mmprm_errors_total{type="busy"}' in errors


def test_a_loading_server_is_waited_for() -> None:
    loaded = threading.Event()

    def load() -> StepScorer:
        assert loaded.wait(20)
        return StepScorer()

    with running(make_service(load), wait=False) as url:
        asked = remote(url)
        threading.Timer(0.3, loaded.set).start()
        assert asked.score(many(2)) == expected(2)
        asked.close()


def test_dropped_connections_are_reestablished() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def drop() -> None:
        for _ in range(2):
            listener.accept()[0].close()

    dropping = threading.Thread(target=drop)
    dropping.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    opened: list[RemoteScorer] = []
    opening = threading.Thread(target=lambda: opened.append(remote(url)))
    opening.start()
    dropping.join(60)
    with running(make_service(StepScorer), listener):
        opening.join(60)
        assert opened[0].score(many(2)) == expected(2)
        opened[0].close()


def test_the_next_url_takes_over() -> None:
    service = make_service(StepScorer)
    with running(service) as first, running(make_service(StepScorer)) as second:
        asked = remote(first, second)
        assert asked.score(many(100)) == expected(100)
        service.closing = True
        assert asked.score(many(100)) == expected(100)
        asked.close()


def test_an_unreachable_server_blames_no_solution() -> None:
    with pytest.raises(EngineStoppedError, match=r"http://127\.0\.0\.1:9: no connection"):
        remote("http://127.0.0.1:9", attempts=1)
    scorer = StepScorer()
    with running(make_service(lambda: scorer)) as url:
        asked = remote(url, attempts=1)
        scorer.dead = True
        with pytest.raises(EngineStoppedError):
            asked.score(many(1))
    with pytest.raises(EngineStoppedError, match="no connection"):
        asked.score(many(1))
    asked.close()


def test_the_key_is_needed_and_stays_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with running(make_service(StepScorer, key="sk-secret")) as url:
        asked = remote(url, api_key_env="MY_KEY")
        assert asked.score(many(1)) == expected(1)
        asked.close()
        with pytest.raises(EngineStoppedError, match=r"status 401: send the API key.*set api_key_env") as caught:
            remote(url)
        assert "sk-secret" not in str(caught.value)
    threads = threading.active_count()
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY"):
        remote(url, api_key_env="MY_KEY")
    assert threading.active_count() == threads


def test_the_configuration_names_a_folder_or_a_server() -> None:
    server = ["backend=server", "server.urls=[http://localhost:8100]"]
    assert load(ScorerConfig, sets=server).server == ServerConfig(urls=("http://localhost:8100",))
    for sets in (["backend=server"], server[1:], [*server, "prm=p"], []):
        with pytest.raises(ConfigError, match=r"server\.urls|set prm to the folder"):
            load(ScorerConfig, sets=sets)


def test_commands_ask_a_server(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "steps": ["0.5", "0.25"]}))
    with running(make_service(StepScorer)) as url:
        config = ScorerConfig(backend="server", server=ServerConfig(urls=(url,)))
        assert (scorer_info(config).aggregator, scorer_info(config).threshold) == ("min", 0.25)
        asked = open_scorer(config)
        assert asked.score(many(1)) == expected(1)
        asked.close()
        sets = ["--set", "scorer.backend=server", "--set", f"scorer.server.urls=[{url}]"]
        assert main(["score", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), *sets]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["scores"], row["aggregator"], row["aggregate"]) == ([0.5, 0.25], "min", 0.25)


def named(name: str, aggregator: str = "min", fingerprint: str = "") -> Service:
    """Return a service with this model name that accepts one solution per request."""
    limits = ServiceLimits(solutions=1)
    service = make_service(StepScorer, limits)
    values = {"model": name, "aggregator": aggregator, "fingerprint": fingerprint}
    return Service(service._facts.model_copy(update=values), StepScorer, limits=limits)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("other",), "another other with aggregator min"),
        (("tiny", "mean"), "another tiny with aggregator mean"),
        (("tiny", "min", "beef"), "another tiny with aggregator min, weights beef"),
    ],
)
def test_servers_of_different_models_are_not_mixed(other: tuple[str, ...], said: str) -> None:
    with running(named("tiny")) as first, running(named(*other)) as second:
        asked = remote(first, second)
        # Which server answers first depends on the ports.
        asked.model = asked.model.model_copy(update={"model": "tiny", "aggregator": "min", "fingerprint": ""})
        with pytest.raises(ConfigError, match=rf"one serves tiny with aggregator min, {said}; scores of different"):
            asked.score(many(40))
        asked.close()


def test_the_same_model_on_two_servers_is_one() -> None:
    with running(named("tiny", "min", "feed")) as first, running(named("tiny", "min", "feed")) as second:
        asked = remote(first, second)
        assert asked.score(many(100)) == expected(100)
        asked.close()


@pytest.mark.parametrize("limits", [{}, {"steps": 10}, {"solutions": 3.0}])
def test_limits_that_a_server_does_not_name_are_assumed(limits: dict[str, float]) -> None:
    service = make_service(StepScorer)
    service._facts = service._facts.model_copy(update={"limits": limits})
    with running(service) as url:
        asked = remote(url)
        assert asked.score(many(40)) == expected(40)
        asked.close()


@pytest.mark.parametrize("limits", [{"solutions": 0}, {"body_mib": -1}, {"steps": -5}])
def test_limits_that_no_server_has_are_refused(limits: dict[str, float]) -> None:
    service = make_service(StepScorer)
    service._facts = service._facts.model_copy(update={"limits": limits})
    with running(service) as url, pytest.raises(EngineStoppedError, match=r"not from mmprm serve: limits\."):
        remote(url, attempts=1)


def test_requests_stay_below_the_pixel_limit(tmp_path: Path) -> None:
    """Images have 64 pixels and a request may have 150, so two are sent at a time."""
    limits = ServiceLimits(pixels=64, solution_pixels=64, request_pixels=150)
    data = image(tmp_path, "red").read_bytes()
    with running(make_service(StepScorer, limits)) as url:
        asked = remote(url)
        solutions = [solution("0.5", name=str(number), image=ImageRef(data=data)) for number in range(5)]
        assert [len(indices) for indices in asked._requests(solutions)] == [2, 2, 1]
        assert asked.score(solutions) == [StepScores((0.5,))] * 5
        asked.close()


def test_a_refusal_does_not_repeat_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Echo(StepScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            if any("echo" in each.steps for each in solutions):
                raise DataError("it came with \x1b[31msk-secret-key")
            return super().score(solutions)

    monkeypatch.setenv("MY_KEY", "sk-secret-key")
    with running(make_service(Echo, key="sk-secret-key")) as url:
        asked = remote(url, api_key_env="MY_KEY")
        with pytest.raises(DataError, match="problem p: it came with …"):
            asked.score([solution("echo")])
        asked.close()
