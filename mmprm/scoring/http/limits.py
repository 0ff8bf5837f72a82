"""Define the configurable limits and timeouts of `mmprm serve`."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.problems import MAX_PIXELS

MIB = 2**20
MAX_HEADER = 64 * 1024
"""Maximum size of a request line and its headers, in bytes."""


class ServiceLimits(Config):
    """Configures the limits of the service. A request that exceeds one is rejected, and the service keeps running."""

    body_mib: int = Field(64, ge=1)
    """Maximum size of a request body, in MiB."""
    in_flight_mib: int = Field(1024, ge=1)
    """Maximum total size in MiB of all unanswered requests; further requests are rejected with HTTP 429."""
    in_flight: int = Field(8192, ge=1)
    """Maximum total number of unanswered solutions; further requests are rejected with HTTP 429."""
    address_share: float = Field(0.5, gt=0, le=1)
    """Fraction of in_flight and in_flight_mib that one IP address may use, although one full request is always allowed.
    Set it to 1 if all clients connect through one proxy."""
    solutions: int = Field(256, ge=1)
    """Maximum number of solutions per request."""
    steps: int = Field(1000, ge=1)
    """Maximum number of steps per solution."""
    characters: int = Field(400_000, ge=1)
    """Maximum number of characters per solution, including its question."""
    characters_per_token: float = Field(16.0, gt=0)
    """Maximum ratio of a solution's characters to the model's context length in tokens; longer solutions are rejected
    without being tokenized. A shorter solution is tokenized to check its length."""
    images: int = Field(32, ge=0)
    """Maximum number of images per solution."""
    image_mib: int = Field(16, ge=1)
    """Maximum size of one encoded image, in MiB."""
    pixels: int = Field(16_777_216, ge=1, le=MAX_PIXELS)
    """Maximum number of pixels per image, checked in the image's header before it is decoded."""
    solution_pixels: int = Field(33_554_432, ge=1)
    """Maximum number of pixels in all images of one solution, which are decoded together."""
    request_pixels: int = Field(268_435_456, ge=1)
    """Maximum number of pixels in all images of one request."""
    batch_characters: int = Field(65_536, ge=1)
    """Maximum number of characters per batch, so that a new request need not wait for all earlier ones. A longer
    solution is scored alone."""
    batch_pixels: int = Field(16_777_216, ge=1)
    """Maximum number of pixels per batch; a solution with more is scored alone."""
    batch_seconds: float = Field(0.25, gt=0)
    """Target duration of a batch in seconds; batches become smaller if one takes longer."""
    header_seconds: float = Field(10.0, gt=0)
    """Timeout in seconds for a request's headers to arrive, counted from the opening of the connection or, for later
    requests, from the first byte."""
    body_seconds: float = Field(60.0, gt=0)
    """Timeout in seconds for a complete request body to arrive, so that a slow client cannot occupy a slot forever."""
    answer_seconds: float = Field(60.0, gt=0)
    """Timeout in seconds for a client to read its response."""
    connections: int = Field(4096, ge=8)
    """Maximum number of open connections, also limited by `ulimit -n`; above it, the oldest one without a complete
    request is closed."""
    connections_per_address: int = Field(1024, ge=4)
    """Maximum number of open connections per IP address, capped at half of `connections`."""

    @model_validator(mode="after")
    def _a_full_request_fits(self) -> ServiceLimits:
        for single, together in (
            ("solutions", "in_flight"),
            ("body_mib", "in_flight_mib"),
            ("pixels", "solution_pixels"),
            ("solution_pixels", "request_pixels"),
        ):
            if getattr(self, together) < getattr(self, single):
                raise ValueError(
                    f"{together} must be at least {single}, or a full request would always be rejected; raise "
                    f"{together}"
                )
        return self

    @property
    def max_values(self) -> int:
        """Return the maximum number of JSON values and separators in a request body.

        It exceeds what the largest valid request needs, so that the error for most oversized requests can name the
        exceeded limit.
        """
        return max(2**18, 2 * self.solutions * (self.steps + 2 * self.images + 8))

    def per_address(self, together: int, single: int) -> int:
        """Return the part of the limit `together` that one IP address may use: `address_share` times `together`, but at
        least `single`, the limit per request."""
        return max(single, int(self.address_share * together))
