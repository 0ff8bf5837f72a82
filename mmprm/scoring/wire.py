"""What goes over the wire of `mmprm serve`: requests, answers, refusals, and how a request becomes a solution."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmprm.config import Config
from mmprm.errors import DataError
from mmprm.prm.info import AggregatorEvidence
from mmprm.problems import MAX_PIXELS, picture_pixels
from mmprm.types import Picture, Problem, Solution

MIB = 2**20


class Limits(Config):
    """More is refused; the service goes on."""

    body_mib: int = Field(64, ge=1)
    """Size of a request."""
    in_flight_mib: int = Field(1024, ge=1)
    """Size of all requests that are not answered yet, together; further ones get 429."""
    in_flight: int = Field(8192, ge=1)
    """Solutions that are not answered yet, together; further ones get 429."""
    solutions: int = Field(256, ge=1)
    """Solutions of one request."""
    steps: int = Field(1000, ge=1)
    """Steps of one solution."""
    characters: int = Field(400_000, ge=1)
    """Characters of one solution, its question among them. What the model reads is counted in tokens besides."""
    images: int = Field(16, ge=0)
    """Pictures of one solution."""
    image_mib: int = Field(16, ge=1)
    """Size of one encoded picture."""
    pixels: int = Field(16_777_216, ge=1, le=MAX_PIXELS)
    """Pixels of one picture, by its header, before anything is decoded."""
    body_seconds: float = Field(60.0, gt=0)
    """Time for a request to arrive as a whole, so that a slow sender does not hold its place for ever."""

    @model_validator(mode="after")
    def _a_full_request_fits(self) -> Limits:
        for single, together in (("solutions", "in_flight"), ("body_mib", "in_flight_mib")):
            if getattr(self, together) < getattr(self, single):
                raise ValueError(f"{together} must be at least {single}, or a full request is always refused")
        return self


class Refused(Exception):  # noqa: N818 - an answer, not a mishap
    """A request, or one of its solutions, that gets an error for an answer."""

    def __init__(self, status: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.field = status, kind, field

    def body(self) -> dict[str, Any]:
        return {"error": {"type": self.kind, "message": str(self), "field": self.field}}


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ImageIn(_Message):
    """Exactly one of both."""

    data: str | None = None
    """The encoded picture (PNG, JPEG, WebP, GIF, BMP, TIFF) in base64."""
    path: str | None = None
    """A file below the service's `image_root`, where one is set."""


class SolutionIn(_Message):
    id: str = Field("", max_length=1000)
    """Names the solution in error messages."""
    question: str
    """The problem."""
    steps: list[str]
    """The steps of the solution, or of its beginning, as plain texts."""
    images: list[ImageIn] = []
    """Pictures of the problem, in order."""


class BatchIn(_Message):
    solutions: list[Any] = Field(json_schema_extra={"items": {"$ref": "#/components/schemas/SolutionIn"}})
    """Each is checked for itself, so that a bad one does not spoil the others."""


class ErrorDetail(_Message):
    type: str
    """invalid_request, too_large, unscorable, unauthorized, not_found, busy, loading, closing or internal."""
    message: str
    """What was found, the rule, and a way out."""
    field: str | None
    """Place in the request, such as steps[3]."""


class ErrorOut(_Message):
    error: ErrorDetail


class Judged(_Message):
    scores: list[float]
    """P(step is right), one for each step."""
    aggregate: float
    """All of them in one number, by the aggregator."""


class ScoreOut(Judged):
    aggregator: str
    model: str


class BatchOut(_Message):
    results: list[Judged | ErrorOut]
    """In the order of the solutions."""
    aggregator: str
    model: str


class ModelOut(_Message):
    model: str
    format: str
    """The family whose rendering the model was trained with."""
    backend: str
    dtype: str
    aggregator: str
    aggregator_evidence: AggregatorEvidence | None
    """What chose it; null where it was set by hand."""
    threshold: float | None
    """A step scored below it counts as the first error; null where none was chosen."""
    limits: dict[str, int | float]


def read_solution(value: Any, place: str, limits: Limits, image_root: Path | None) -> tuple[Solution, int]:
    """The solution with its pictures as bytes, and their pixels. Raises Refused."""
    try:
        item = SolutionIn.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)) from error
    texts = {"id": item.id, "question": item.question}
    texts |= {f"steps[{number}]": step for number, step in enumerate(item.steps[: limits.steps])}
    for field, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = f"{field} holds half of a surrogate pair, which is no text"
            raise Refused(422, "invalid_request", text, field) from None
    if not item.question.strip():
        raise Refused(422, "invalid_request", "question is empty", "question")
    if not item.steps:
        raise Refused(422, "invalid_request", "a solution must have at least one step", "steps")
    characters = len(item.question) + sum(map(len, item.steps))
    for field, count, most in (
        ("steps", len(item.steps), limits.steps),
        ("images", len(item.images), limits.images),
        ("characters", characters, limits.characters),
    ):
        if count > most:
            text = f"a solution has {count:,} {field}, at most {most:,} are taken; shorten it"
            raise Refused(422, "too_large", text, None if field == "characters" else field)
    pictures, pixels = [], 0
    for number, image in enumerate(item.images):
        picture, size = _picture(image, f"images[{number}]", limits, image_root)
        pictures.append(picture)
        pixels += size
    problem = Problem(item.id or place, item.question, answer="", pictures=tuple(pictures))
    return Solution(problem, tuple(item.steps)), pixels


def invalid(errors: list[Any]) -> Refused:
    """The first of pydantic's errors; what was sent is not repeated."""
    first = errors[0]
    parts = [part for part in first["loc"] if part != "body"]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    field = field.encode("ascii", "backslashreplace").decode()[:200]
    if first["type"] == "json_invalid":
        return Refused(422, "invalid_request", f"the body is not JSON: {first['ctx']['error']}")
    return Refused(422, "invalid_request", f"{field or 'body'}: {first['msg']}", field or None)


def _picture(image: ImageIn, field: str, limits: Limits, image_root: Path | None) -> tuple[Picture, int]:
    if (image.data is None) == (image.path is None):
        raise Refused(422, "invalid_request", "an image has either data (base64) or path", field)
    most = limits.image_mib * MIB
    if image.data is not None:
        data = _decoded(image.data, field) if len(image.data) <= most * 4 // 3 + 4 else b"\0" * (most + 1)
    else:
        data = _read(image.path or "", field, image_root, most)
    if len(data) > most:
        text = f"the encoded picture is larger than {limits.image_mib} MiB; scale it down"
        raise Refused(422, "too_large", text, field)
    picture = Picture(data=data)
    try:
        return picture, picture_pixels(picture, limits.pixels)
    except DataError as error:
        raise Refused(422, "invalid_request", str(error), field) from error


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "invalid_request", f"data is not base64 ({error})", field) from error


def _read(path: str, field: str, root: Path | None, most: int) -> bytes:
    """At most `most` + 1 bytes of a regular file below the root. What lies outside is not told apart from nothing."""
    if root is None:
        raise Refused(422, "invalid_request", "paths are not taken here (image_root is not set); send data", field)
    try:
        root = root.resolve()
        target = (root / path).resolve()
        if not target.is_relative_to(root):
            raise Refused(422, "invalid_request", "path leads out of image_root", field)
        with open(target, "rb", opener=_no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused(422, "invalid_request", "path is no file", field)
            return file.read(most + 1)
    except (OSError, ValueError, RuntimeError) as error:  # no such file, a null byte, a loop of links
        reason = getattr(error, "strerror", None) or "not a path"
        raise Refused(422, "invalid_request", f"path cannot be read ({reason})", field) from error


def _no_link(path: str, flags: int) -> int:
    """The file may have become a link since it was resolved, and may be a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
