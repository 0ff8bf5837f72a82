"""Test the adapter for OpenEnv with a server of its protocol in this process."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mmprm.data.images import open_image
from mmprm.environments.episode import Action, EpisodeStart, TurnRequest, play
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.pool import EnvironmentPool
from mmprm.environments.replay import check_deterministic, replay
from mmprm.errors import ConfigError, EpisodeError
from mmprm.types import Problem, Verdict

server = pytest.importorskip("websockets.sync.server", reason="needs the extra openenv")

PROBLEM = Problem("p", "Reach 2.", "", extra={"arguments": {"start": 1}})
PIXELS = [200, 0, 0] * 6
ACTIONS = {"up": 1, "down": -1}


def act(*names: str) -> list[str]:
    return [f"<action>{name}</action>" for name in names]


class Counter:
    """Adds actions to a number until it is 2, which ends the episode. Words are repeated, and "bad" is an error."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []

    def __call__(self, socket: Any) -> None:
        number = 0
        for message in map(json.loads, socket):
            self.log.append(message)
            if message["type"] == "close":
                return
            data = message["data"]
            word = data.get("message", "")
            number = data["start"] if message["type"] == "reset" else number + data.get("by", 0)
            seen = {"number": number, "word": word, "screen": PIXELS, "screen_shape": [2, 3, 3]}
            found = {"observation": seen, "reward": None if number == 0 else float(number == 2), "done": number == 2}
            error = {"type": "error", "data": {"code": "EXECUTION_ERROR", "message": "no such word"}}
            socket.send(json.dumps(error if word == "bad" else {"type": "observation", "data": found}))


@pytest.fixture
def counter() -> Iterator[Counter]:
    session = Counter()
    with server.serve(session, "localhost", 0) as served:
        session.url = f"http://localhost:{served.socket.getsockname()[1]}"
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield session
        served.shutdown()


def config(counter: Counter, **arguments: Any) -> EnvironmentConfig:
    return EnvironmentConfig(path="openenv", arguments={"url": counter.url} | arguments, max_turns=4)


def test_actions_are_sent_as_their_values(counter: Counter) -> None:
    environment = make_environment(config(counter, action="by", actions=ACTIONS, text=["number"], image="screen"))
    found = replay(environment, PROBLEM, 7, act("down", "jump", "UP", "up"))
    environment.close()
    assert counter.log[0] == {"type": "reset", "data": {"seed": 7, "start": 1}}
    # The server may not have read the message "close" yet.
    assert [each["data"] for each in counter.log[1:] if each["type"] == "step"] == [{"by": -1}, {"by": 1}, {"by": 1}]
    assert found.start.parts[:2] == ("Reach 2.\nActions: up, down.\n", "number: 1\n")
    image = open_image(found.start.images[0])
    assert (image.size, image.getpixel((2, 1))) == ((3, 2), (200, 0, 0))
    assert [each.info["action"] for each in found.transitions] == ["down", None, "up", "up"]
    assert found.transitions[1].observation.text == "No valid action. Actions: up, down.\n"
    assert [(each.reward, each.terminated) for each in found.transitions] == [(0, False)] * 3 + [(1, True)]
    check_deterministic(make_environment(config(counter, action="by", actions=ACTIONS)), PROBLEM, 7, act("up"))


def test_texts_are_sent_as_they_are(counter: Counter) -> None:
    environment = make_environment(config(counter, text=["word"]))
    found = replay(environment, PROBLEM, 0, [*act(" Hello, you "), "hello"])
    environment.close()
    assert counter.log[1]["data"] == {"message": "Hello, you"}
    assert [each.observation.text for each in found.transitions] == ["word: Hello, you\n", "No valid action.\n"]
    assert make_environment(config(counter)).reset(PROBLEM, 0).text == (
        f"Reach 2.\nnumber: 1\nword: \nscreen: {PIXELS}\nscreen_shape: [2, 3, 3]\n"
    )


class Player:
    def __init__(self, *names: str) -> None:
        self._texts = act(*names)

    async def act(self, request: TurnRequest) -> Action:
        return Action(self._texts[len(request.actions)])


async def test_an_error_of_the_server_is_an_episode_without_an_outcome(counter: Counter) -> None:
    chosen = config(counter)
    pool = EnvironmentPool(chosen)
    found = await play(EpisodeStart(PROBLEM, 0, 0), Player("good", "bad"), pool, chosen)
    assert (len(found.turns), found.verdict) == (1, Verdict.UNKNOWN)
    reason = "environment failed: RuntimeError: the OpenEnv server answers EXECUTION_ERROR: no such word"
    assert found.reason == reason
    chosen = config(counter, action="by", actions=ACTIONS)
    pool = EnvironmentPool(chosen)
    found = await play(EpisodeStart(PROBLEM, 0, 0), Player("up"), pool, chosen)
    pool.close()
    assert (found.verdict, found.reason) == (Verdict.CORRECT, "success")


def test_what_cannot_be_reached_or_shown_is_named(counter: Counter) -> None:
    away = make_environment(EnvironmentConfig(path="openenv", arguments={"url": "http://localhost:9"}))
    with pytest.raises(EpisodeError, match=r"ws://localhost:9/ws cannot be reached .* start the OpenEnv server"):
        replay(away, PROBLEM, 0, [])
    with pytest.raises(ConfigError, match="url=localhost:8000 must be the address"):
        make_environment(EnvironmentConfig(path="openenv", arguments={"url": "localhost:8000"}))
    with pytest.raises(ConfigError, match="has no frame; name one of number, word, screen, screen_shape"):
        replay(make_environment(config(counter, image="frame")), PROBLEM, 0, [])


def test_images_may_be_encoded(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    data = replay(make_environment(config(counter, image="screen")), PROBLEM, 0, []).start.images[0].data
    for prefix in ("", "data:image/png;base64,"):
        monkeypatch.setattr(f"{__name__}.PIXELS", prefix + base64.b64encode(data).decode())
        seen = replay(make_environment(config(counter, image="screen", text=[])), PROBLEM, 0, []).start
        assert (seen.parts[0], seen.images[0].data) == ("Reach 2.\n", data)
