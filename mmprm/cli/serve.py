"""Serve a process reward model over HTTP: POST steps, get P(no error so far) for each.

Listens on this machine only, unless `host` is set; other interfaces require an API key. GET /docs lists the routes.
After SIGTERM or Ctrl-C, the server finishes accepted requests and answers new ones with 503.

Examples:
  mmprm serve --set scorer.prm=runs/demo/train/prm
  mmprm serve --set scorer.prm=runs/prm-8b --set host=0.0.0.0 --set api_key_env=MMPRM_KEY --set scorer.dtype=bfloat16
  curl localhost:8100/v1/score -H 'Content-Type: application/json' \\
    -d '{"question": "What is 1 + 2?", "steps": ["1+2=3", "<answer>3</answer>"]}'
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import logging
import math
import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import Config, PathText
from mmprm.errors import ConfigError, MmprmError, SetupError
from mmprm.hardware import HardwareConfig
from mmprm.scoring.aggregate import chosen_aggregator
from mmprm.scoring.config import LocalScorerConfig
from mmprm.scoring.dtype import scorer_dtype
from mmprm.scoring.http.limits import ServiceLimits
from mmprm.scoring.http.server import BACKLOG, Server
from mmprm.scoring.http.service import Service
from mmprm.scoring.http.wire import ModelOut
from mmprm.scoring.judge_scorer import judge_identity
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.weights import fingerprint


class ServedScorerConfig(LocalScorerConfig):
    """Configures the scorer that the server runs."""

    backend: Literal["vllm", "transformers", "judge"] = "vllm"
    """Inference backend: vllm (vLLM's pooling runner), or transformers, which starts faster. Their scores agree within
    1e-3 in float32. judge: a thinking judge in place of a process reward model."""


class ServeConfig(Config):
    """Configures `mmprm serve`."""

    scorer: ServedScorerConfig
    """Process reward model or thinking judge, and the settings for running it."""
    aggregator: str | None = None
    """Aggregator of step scores; by default the one in the PRM's prm.json. Choices: min, last, mean, max, product,
    sum_log, sum_log_odds or mean_odds."""
    name: str | None = None
    """Model name in responses; by default the name of the model folder."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all interfaces."""
    port: int = Field(8100, ge=0, le=65535)
    """Port to listen on; 0 picks a free one, which the first line of the output shows."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. The key itself is never stored or shown."""
    api_key_file: PathText | None = None
    """File that holds the API key, as an alternative to api_key_env."""
    without_key: bool = False
    """Allow listening beyond localhost without an API key, for example behind an authenticating proxy."""
    image_root: PathText | None = None
    """Folder from which requests may load images by path; by default they must send the image data."""
    limits: ServiceLimits = ServiceLimits()
    """Limits on the size and number of requests, and timeouts."""
    shutdown_seconds: float = Field(60.0, ge=0)
    """Maximum time in seconds to finish accepted requests after SIGTERM. A model load or batch that takes ten seconds
    longer is aborted."""
    hardware: HardwareConfig = Field(HardwareConfig(), exclude=True)
    """Hardware that `mmprm plan` assumes; `mmprm serve` ignores these keys."""

    @model_validator(mode="after")
    def _guarded(self) -> ServeConfig:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both set; remove one of them")
        if not (_is_loopback(self.host) or self.has_key or self.without_key):
            raise ValueError(
                f"host={self.host} listens to other machines without an API key; set api_key_env or api_key_file, or "
                "without_key=true"
            )
        return self

    @property
    def has_key(self) -> bool:
        """Return whether an API key is configured."""
        return self.api_key_env is not None or self.api_key_file is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, ServeConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm serve`."""
    logging.basicConfig(format="mmprm serve: %(message)s")
    logging.getLogger("mmprm").setLevel(logging.INFO)
    config = load_config(arguments, ServeConfig)
    service = make_service(config)
    with _listening(config) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{config.scorer.described} on http://{shown}:{port} ({config.scorer.backend})", flush=True)
        Server(service, config.shutdown_seconds).run(sockets=[listener])
    if service.failure is not None:
        if isinstance(service.failure, MmprmError):
            raise service.failure
        raise SetupError(
            f"the model failed: {service.failure}; see the traceback, and try scorer.backend=transformers"
        ) from service.failure


def make_service(config: ServeConfig) -> Service:
    """Create the service from its configuration without loading the model."""
    import torch

    info = scorer_info(config.scorer)
    root = Path(config.image_root) if config.image_root is not None else None
    if root is not None and not root.is_dir():
        raise ConfigError(f"image_root={root}: is not a folder; give an existing one, or leave it out")
    name = chosen_aggregator(config.aggregator, info.aggregator)
    judge = config.scorer.judge
    limits = config.limits
    if judge is None:
        own = {
            "fingerprint": fingerprint(config.scorer.prm),
            "format": info.format,
            "dtype": scorer_dtype(config.scorer, torch.cuda.is_available()),
        }
    else:
        identity = hashlib.sha256(judge_identity(judge).encode()).hexdigest()[:16]
        own = {"fingerprint": identity, "format": judge.verdict_format, "dtype": judge.engine.dtype}
        # A chain takes as long alone as beside others, so smaller batches would only be slower.
        limits = limits.model_copy(update={"batch_seconds": math.inf})
    facts = ModelOut(
        model=config.name or Path(config.scorer.described).resolve().name,
        **own,
        backend=config.scorer.backend,
        aggregator=name,
        aggregator_evidence=info.aggregator_evidence if name == info.aggregator else None,
        threshold=info.threshold,
        limits=config.limits.model_dump(),
    )
    return Service(
        facts,
        lambda: open_scorer(config.scorer),
        limits=limits,
        key=_api_key(config),
        local_only=_is_loopback(config.host) and not config.has_key,
        image_root=root,
    )


def _listening(config: ServeConfig) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"host={config.host}, port={config.port}: cannot be bound ({error.strerror}); set another port"
        ) from error


def _api_key(config: ServeConfig) -> str | None:
    if not config.has_key:
        return None
    if config.api_key_env is not None:
        location, key = f"api_key_env={config.api_key_env}", os.environ.get(config.api_key_env, "")
    else:
        location = f"api_key_file={config.api_key_file}"
        try:
            key = Path(config.api_key_file or "").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{location}: cannot be read ({type(error).__name__}); give a readable text file"
            ) from error
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"{location}: must hold a key in printable ASCII; store one there")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
