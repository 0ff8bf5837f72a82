"""Define the request, response and error schemas of `mmprm serve`, and convert requests to solutions."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from mmprm.errors import DataError
from mmprm.prm.info import AggregatorEvidence
from mmprm.problems import image_pixels
from mmprm.scoring.http.limits import MIB, ServiceLimits
from mmprm.scoring.http.refused import Refused
from mmprm.types import ImageRef, Problem, Solution


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ImageIn(_Message):
    """Image given as either `data` or `path`."""

    data: str | None = None
    """Encoded image (PNG, JPEG, WebP, GIF, BMP, TIFF) in base64."""
    path: str | None = None
    """A file below the service's `image_root`; accepted only if `image_root` is set."""


class PartIn(ImageIn):
    """A text, or an image given as either `data` or `path`."""

    text: str | None = None
    """Text that the policy saw."""


class SolutionIn(_Message):
    """A solution to score."""

    id: str = Field("", max_length=1000)
    """Identifier of the solution in error messages."""
    question: str
    """The problem's question."""
    steps: Annotated[list[str], FailFast()]
    """Steps of the complete or partial solution, as plain text."""
    images: Annotated[list[ImageIn], FailFast()] = []
    """The problem's images, in order."""
    observations: Annotated[list[list[PartIn]], FailFast()] = []
    """For an episode, whose steps are its turns: what the policy saw before each turn, and optionally after the
    last one. It replaces the question and `images`, and only models of the format mm-prm read it."""


class BatchIn(_Message):
    """Several solutions to score in one request."""

    solutions: list[Any] = Field(json_schema_extra={"items": {"$ref": "#/components/schemas/SolutionIn"}})
    """Solutions to score. Each is validated separately, so an invalid one does not affect the others."""


class ErrorDetail(_Message):
    """Reason why a request or one of its solutions was rejected."""

    type: str
    """Type of the error: invalid_request, too_large, too_slow, unscorable, unknown, unauthorized, not_found, busy,
    loading, closing or internal. unknown: the verdicts of a thinking judge could not be read."""
    message: str
    """Explanation of the error: what is wrong, what is allowed, and how to fix it."""
    field: str | None
    """Path of the invalid field in the request, such as steps[3]."""
    tokens: int | None = None
    """Number of tokens that a thinking judge generated, if the type is unknown."""


class ErrorOut(_Message):
    """The body of an error response, or the result for a solution that could not be scored."""

    error: ErrorDetail


class ScoresOut(_Message):
    """The scores of one solution."""

    scores: list[float]
    """P(no error so far) for each step."""
    aggregate: float
    """The step scores aggregated into one number."""
    tokens: int | None = None
    """Number of tokens that a thinking judge generated for the scores; absent for a process reward model."""


class ScoreOut(ScoresOut):
    """The response to a request with one solution."""

    aggregator: str
    model: str
    fingerprint: str = ""
    """Fingerprint of the model; see GET /v1/model."""


class BatchOut(_Message):
    """The response to a request with several solutions."""

    results: list[ScoresOut | ErrorOut]
    """One result per solution, in order."""
    aggregator: str
    model: str
    fingerprint: str = ""
    """Fingerprint of the model; see GET /v1/model."""


class ModelOut(_Message):
    """The served model and the limits of the service."""

    model: str
    fingerprint: str = ""
    """Hash of the configuration and of samples of the weight files, which distinguishes models with the same name."""
    format: str
    """Prompt format, identified by the PRM family that uses it."""
    backend: str
    dtype: str
    aggregator: str
    aggregator_evidence: AggregatorEvidence | None
    """Best-of-N accuracy on which the choice of the aggregator is based; null if the aggregator was set manually."""
    threshold: float | None
    """Score below which a step counts as an error; null if no threshold was chosen."""
    limits: dict[str, int | float]


class Reader:
    """Converts the solutions of one request to the scorer's input types and enforces the request limits.

    `pixels` and `bytes` are the totals over all images so far; `max_characters` is the maximum length of a solution
    that can fit the model's context.
    """

    def __init__(self, limits: ServiceLimits, image_root: Path | None, max_characters: int) -> None:
        self._limits, self._root = limits, image_root
        self._max_characters = min(max_characters, limits.characters)
        self.pixels = self.bytes = 0

    def read(self, value: Any, location: str) -> Solution:
        """Validate a solution from JSON and load its images; raise Refused if the solution is invalid."""
        try:
            item = SolutionIn.model_validate(value)
        except ValidationError as error:
            raise invalid(error.errors(include_url=False)) from error
        self._check_counts(item)
        _check_texts(item, self._limits.steps)
        before = self.pixels

        def read(image: ImageIn, field: str) -> ImageRef:
            found = self._image(image, field)
            self.bytes += len(found.data or b"")
            _check_total(self.pixels - before, self._limits.solution_pixels, "a solution", "pixels", field)
            _check_total(self.pixels, self._limits.request_pixels, "the request", "pixels", field)
            _check_total(self.bytes, self._limits.body_mib * MIB, "the request", "bytes", field)
            return found

        images = tuple(read(image, f"images[{number}]") for number, image in enumerate(item.images))
        observations = tuple(
            tuple(
                read(part, f"observations[{turn}][{number}]") if part.text is None else part.text
                for number, part in enumerate(parts)
            )
            for turn, parts in enumerate(item.observations)
        )
        problem = Problem(item.id or location, item.question, answer="", images=images)
        return Solution(problem, tuple(item.steps), observations)

    def _check_counts(self, item: SolutionIn) -> None:
        parts = [part for each in item.observations for part in each]
        texts = (item.question, *item.steps, *(part.text or "" for part in parts))
        characters = sum(map(len, texts))
        images = len(item.images) + sum(part.text is None for part in parts)
        for field, count, most in (
            ("steps", len(item.steps), self._limits.steps),
            ("images", images, self._limits.images),
            ("characters", characters, self._limits.characters),
        ):
            if count > most:
                text = f"a solution has {count:,} {field}, but at most {most:,} are accepted; shorten it"
                raise Refused(422, "too_large", text, None if field == "characters" else field)
        if characters > self._max_characters:
            text = (
                f"a solution has {characters:,} characters, which exceeds the model's context (at most "
                f"{self._max_characters:,} are tokenized); shorten it"
            )
            raise Refused(422, "unscorable", text)

    def _image(self, image: ImageIn, field: str) -> ImageRef:
        if (image.data is None) == (image.path is None):
            raise Refused(
                422, "invalid_request", "an image must have either data (base64) or path; send exactly one", field
            )
        most = self._limits.image_mib * MIB
        if image.data is not None:
            data = _decoded(image.data, field) if len(image.data) <= most * 4 // 3 + 4 else b"\0" * (most + 1)
        else:
            data = _read(image.path or "", field, self._root, most)
        if len(data) > most:
            text = f"the encoded image is larger than {self._limits.image_mib} MiB; scale it down"
            raise Refused(422, "too_large", text, field)
        ref = ImageRef(data=data)
        try:
            self.pixels += image_pixels(ref, self._limits.pixels)
        except DataError as error:
            raise Refused(422, "invalid_request", str(error), field) from error
        return ref


def _check_total(count: int, most: int, whose: str, unit: str, field: str) -> None:
    if count > most:
        text = (
            f"the images of {whose} have {count:,} {unit} or more, but at most {most:,} are accepted; scale them down"
        )
        raise Refused(422, "too_large", text, field)


def _check_texts(item: SolutionIn, max_steps: int) -> None:
    texts = {"id": item.id, "question": item.question}
    texts |= {f"steps[{number}]": step for number, step in enumerate(item.steps[:max_steps])}
    for turn, parts in enumerate(item.observations[: max_steps + 1]):
        texts |= {f"observations[{turn}][{number}]": part.text for number, part in enumerate(parts) if part.text}
    for field, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = f"{field} holds half of a surrogate pair, which is not valid text; remove it"
            raise Refused(422, "invalid_request", text, field) from None
    _check_observations(item)
    if not item.question.strip() and not item.observations:
        raise Refused(422, "invalid_request", "question is empty; send the question of the problem", "question")
    if not item.steps:
        raise Refused(422, "invalid_request", "a solution must have at least one step; send its steps", "steps")


def _check_observations(item: SolutionIn) -> None:
    if not item.observations:
        return
    if len(item.observations) - len(item.steps) not in (0, 1):
        text = (
            f"{len(item.observations)} observations for {len(item.steps)} steps; send one observation per step, and "
            "optionally one after the last step"
        )
        raise Refused(422, "invalid_request", text, "observations")
    if item.images:
        raise Refused(422, "invalid_request", "the images of an episode are in its observations; move them", "images")
    for turn, parts in enumerate(item.observations):
        for number, part in enumerate(parts):
            if part.text is not None and (part.data is not None or part.path is not None):
                text = "a part has a text and an image; split it into two parts"
                raise Refused(422, "invalid_request", text, f"observations[{turn}][{number}]")


def invalid(errors: list[Any]) -> Refused:
    """Convert the first pydantic error to a 422 response that does not repeat the client's input."""
    first = errors[0]
    parts = [part for part in first["loc"] if part != "body"]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    field = ascii(field)[1:-1][:200]
    if first["type"] == "json_invalid":
        return Refused(422, "invalid_request", f"the body is not JSON: {first['ctx']['error']}; correct it")
    return Refused(422, "invalid_request", f"{field or 'body'}: {first['msg']}", field or None)


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            422, "invalid_request", f"data is not base64 ({error}); encode the image file in base64", field
        ) from error


def _read(path: str, field: str, root: Path | None, most: int) -> bytes:
    """Read at most `most` + 1 bytes of a regular file below the root folder; the extra byte shows that the file is
    larger.

    For a path outside the root, the error does not reveal whether it exists.
    """
    if root is None:
        raise Refused(422, "invalid_request", "paths are not accepted, because image_root is not set; send data", field)
    try:
        root = root.resolve()
        target = (root / path).resolve()
        if not target.is_relative_to(root):
            raise Refused(
                422, "invalid_request", "path leads out of image_root; give a file below it, or send data", field
            )
        with open(target, "rb", opener=_no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused(422, "invalid_request", "path is not a regular file; name one, or send data", field)
            return file.read(most + 1)
    except (OSError, ValueError, RuntimeError) as error:  # a missing file, a null byte, or a loop of links
        reason = getattr(error, "strerror", None) or "not a path"
        raise Refused(
            422, "invalid_request", f"path cannot be read ({reason}); check it, or send data", field
        ) from error


def _no_link(path: str, flags: int) -> int:
    """Open a file without following symbolic links and without blocking.

    It may have become a link since it was resolved, or may be a pipe without a writer.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
