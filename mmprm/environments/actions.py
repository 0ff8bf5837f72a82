"""Parse the action that a policy names in its text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmprm.errors import ConfigError

ACTION = r"<action>(.*?)</action>"
"""Default regular expression for an action, whose first group is the action's name.

Spaces are stripped from the name by the reader: matching them here would take cubic time in a text of spaces."""


class ActionReader:
    """Finds the last match of a pattern in a text, and maps the match's first group to the index of an action.

    Names are compared without case. Raises ConfigError for a pattern without a group and for names given twice.
    """

    def __init__(self, names: Sequence[str], pattern: str = ACTION) -> None:
        try:
            self._pattern = re.compile(pattern, re.IGNORECASE | re.DOTALL)
        except re.error as error:
            raise ConfigError(
                f"environment.pattern={pattern!r} is not a regular expression: {error}; correct it"
            ) from error
        if not self._pattern.groups:
            raise ConfigError(
                f"environment.pattern={pattern!r} must have a group for the action's name; add one, such as (\\w+)"
            )
        self._indices = {name.lower(): index for index, name in enumerate(names)}
        if len(self._indices) != len(names):
            raise ConfigError(f"environment.actions={list(names)} must not name an action twice; remove the repetition")
        self.names = tuple(names)

    def index(self, text: str) -> int | None:
        """Return the index of the action in a text, or None if the text names no action."""
        name = self.name(text)
        return None if name is None else self._indices.get(name.lower())

    def name(self, text: str) -> str | None:
        """Return the action in a text as written, whether or not it is one of `names`, or None if there is none."""
        matches = list(self._pattern.finditer(text))
        return (matches[-1][1] or "").strip() or None if matches else None
