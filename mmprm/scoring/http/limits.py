"""What `mmprm serve` takes, and how long it waits: the one place for all bounds that can be set."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.problems import MAX_PIXELS

MIB = 2**20
MAX_HEADER = 64 * 1024
"""Bytes of a request's line and header."""


class Limits(Config):
    """More is refused; the service goes on."""

    body_mib: int = Field(64, ge=1)
    """Size of a request."""
    in_flight_mib: int = Field(1024, ge=1)
    """Size of all requests that are not answered yet, together, as far as they have arrived; further ones get 429."""
    in_flight: int = Field(8192, ge=1)
    """Solutions that are not answered yet, together; further ones get 429."""
    address_share: float = Field(0.5, gt=0, le=1)
    """Share of in_flight and in_flight_mib that one address may take, and at least one full request; 1 where all
    callers come through one proxy."""
    solutions: int = Field(256, ge=1)
    """Solutions of one request."""
    steps: int = Field(1000, ge=1)
    """Steps of one solution."""
    characters: int = Field(400_000, ge=1)
    """Characters of one solution, its question among them."""
    characters_per_token: float = Field(16.0, gt=0)
    """A solution of more characters than this for each token that the model reads is refused before it is tokenized;
    what is shorter is counted in tokens."""
    images: int = Field(16, ge=0)
    """Images of one solution."""
    image_mib: int = Field(16, ge=1)
    """Size of one encoded image."""
    pixels: int = Field(16_777_216, ge=1, le=MAX_PIXELS)
    """Pixels of one image, by its header, before anything is decoded."""
    solution_pixels: int = Field(33_554_432, ge=1)
    """Pixels of all images of one solution, which are decoded together."""
    request_pixels: int = Field(268_435_456, ge=1)
    """Pixels of all images of one request."""
    batch_characters: int = Field(65_536, ge=1)
    """Characters that are given to the model at once, so that a newcomer does not wait for all that came before; a
    longer solution is scored alone."""
    batch_pixels: int = Field(16_777_216, ge=1)
    """Pixels that are decoded at once; a solution with more is scored alone."""
    batch_seconds: float = Field(0.25, gt=0)
    """Time that the model works at once: less is given to it where that took longer."""
    header_seconds: float = Field(10.0, gt=0)
    """Time for the header of a request to arrive, from the connection or from its first byte on."""
    body_seconds: float = Field(60.0, gt=0)
    """Time for a request to arrive as a whole, so that a slow sender does not hold its place for ever."""
    answer_seconds: float = Field(60.0, gt=0)
    """Time for a caller to read its answer."""
    connections: int = Field(4096, ge=8)
    """Open connections, together, as far as `ulimit -n` allows; the oldest without a whole request makes way."""
    connections_per_address: int = Field(1024, ge=4)
    """Open connections of one address, and at most half of all."""

    @model_validator(mode="after")
    def _a_full_request_fits(self) -> Limits:
        for single, together in (
            ("solutions", "in_flight"),
            ("body_mib", "in_flight_mib"),
            ("pixels", "solution_pixels"),
            ("solution_pixels", "request_pixels"),
        ):
            if getattr(self, together) < getattr(self, single):
                raise ValueError(f"{together} must be at least {single}, or a full request is always refused")
        return self

    @property
    def max_values(self) -> int:
        """JSON values and the commas between them that a body may hold: more than the largest request has, so that most
        of what is too large is told which limit it exceeds."""
        return max(2**18, 2 * self.solutions * (self.steps + 2 * self.images + 8))

    def per_address(self, together: int, single: int) -> int:
        """What one address may have of a total, in which a single request of this size must fit."""
        return max(single, int(self.address_share * together))
