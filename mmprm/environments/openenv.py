"""Adapt environments that an OpenEnv server offers, over its WebSocket.

A connection is a session with an environment of its own. Messages are {"type": "reset" or "step", "data": …}, and the
answers {"type": "observation", "data": {"observation": {…}, "reward": …, "done": …}} or {"type": "error", "data": …}.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from mmprm.environments.actions import ACTION, ActionReader
from mmprm.environments.gymnasium_adapter import frame_image
from mmprm.environments.interface import Observation, Transition
from mmprm.errors import ConfigError, SetupError
from mmprm.types import ImageRef, Problem

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class OpenEnvEnvironment:
    """Plays in a session of the OpenEnv server at `url`; see `Environment`.

    Requires the extra `openenv`. The action that the text names is sent as the field `action` of the server's action:
    as text or, with `actions`, as the value of its name. A turn without a valid action is not sent, and has reward 0.
    An observation shows the fields `text`, by default all, and the field `image`: pixels or an encoded file in base64.
    `problem.extra["arguments"]` is passed on to the reset, together with the seed.
    """

    def __init__(
        self,
        url: str,
        action: str = "message",
        actions: Mapping[str, Any] | None = None,
        text: Sequence[str] | None = None,
        image: str | None = None,
        pattern: str = ACTION,
    ) -> None:
        self._url = _websocket_url(url)
        self._action, self._actions = action, None if actions is None else {**actions}
        self._text, self._image = text, image
        self._reader = ActionReader(tuple(self._actions or ()), pattern)
        self._socket: Any = None
        _connector()

    def reset(self, problem: Problem, seed: int) -> Observation:
        if self._socket is None:
            self._socket = self._connected()
        answer = self._ask("reset", {"seed": seed} | dict(problem.extra.get("arguments") or {}))
        names = f"Actions: {', '.join(self._actions)}.\n" if self._actions else ""
        return Observation((f"{problem.question}\n{names}", *self._seen(answer)))

    def step(self, text: str) -> Transition:
        name = self._name_of(text)
        if name is None:
            hint = f" Actions: {', '.join(self._actions)}." if self._actions else ""
            return Transition(Observation((f"No valid action.{hint}\n",)), 0.0, False, info={"action": None})
        answer = self._ask("step", {self._action: self._actions[name] if self._actions else name})
        truncated = bool(answer.get("truncated", False))
        terminated = bool(answer.get("terminated", answer.get("done", False))) and not truncated
        seen = Observation(tuple(self._seen(answer)))
        return Transition(seen, answer.get("reward") or 0.0, terminated, truncated, {"action": name})

    def close(self) -> None:
        if self._socket is not None:
            with suppress(Exception):  # the server may be gone
                self._socket.send(json.dumps({"type": "close"}))
                self._socket.close()
            self._socket = None

    def _name_of(self, text: str) -> str | None:
        if self._actions is None:
            return self._reader.name(text)
        index = self._reader.index(text)
        return None if index is None else self._reader.names[index]

    def _connected(self) -> Any:
        local = urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1")
        try:
            return _connector()(self._url, max_size=None, **({"proxy": None} if local else {}))
        except Exception as error:
            raise ConnectionError(
                f"{self._url} cannot be reached ({type(error).__name__}: {error}); start the OpenEnv server, or "
                "correct environment.arguments.url"
            ) from error

    def _ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        self._socket.send(json.dumps({"type": kind, "data": data}))
        answer = json.loads(self._socket.recv())
        found = answer.get("data") or {}
        if answer.get("type") == "error":
            raise RuntimeError(f"the OpenEnv server answers {found.get('code', 'an error')}: {found.get('message')}")
        return found

    def _seen(self, answer: Mapping[str, Any]) -> list[str | ImageRef]:
        observation = answer.get("observation") or {}
        hidden = (self._image, f"{self._image}_shape")
        names = [name for name in observation if name not in hidden] if self._text is None else self._text
        for name in (*names, *([] if self._image is None else [self._image])):
            if name not in observation:
                raise ConfigError(
                    f"environment.arguments: the server's observation has no {name}; name one of "
                    f"{', '.join(observation) or 'its fields, of which it has none'}"
                )
        text = "".join(f"{name}: {_plain(observation[name])}\n" for name in names)
        parts: list[str | ImageRef] = [text] if text else []
        if self._image is not None and observation[self._image] is not None:
            parts.append(_as_image(observation[self._image], observation.get(f"{self._image}_shape")))
        return parts


def _websocket_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise ConfigError(
            f"environment.arguments.url={url} must be the address of an OpenEnv server; write it like "
            "http://localhost:8000"
        )
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, f"{parts.path.rstrip('/')}/ws", parts.query, ""))


def _connector() -> Any:
    try:
        from websockets.sync.client import connect
    except ImportError as error:
        raise SetupError("environment.path=openenv needs websockets; install mmprm[openenv]") from error
    return connect


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_image(value: Any, shape: Sequence[int] | None) -> ImageRef:
    """Read an image from base64 (with or without the beginning of a data URL), or from pixels that may be flattened."""
    if isinstance(value, str):
        return ImageRef(data=base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value))
    pixels = np.asarray(value, dtype=np.uint8)
    return frame_image(pixels if shape is None else pixels.reshape(shape))
