"""Write graded solutions to samples.jsonl problem by problem, so that an interrupted run can resume from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from mmprm.config import differing_keys, with_current_names
from mmprm.errors import DataError
from mmprm.files import parse_json, whole_file
from mmprm.selection.candidates import candidate_lines, read_groups
from mmprm.selection.groups import CandidateGroup
from mmprm.types import Problem

_HEAD = "sampled_with"


class SampleFile(AbstractContextManager["SampleFile"]):
    """Stores one group of `samples` candidates per problem, sampled with the settings `resume_key`.

    A file with other settings is replaced. `add` must be called inside the context.
    """

    def __init__(self, path: Path, resume_key: dict[str, Any], problems: Mapping[str, Problem], samples: int) -> None:
        self.path, self._resume_key, self._problems, self._samples = path, resume_key, problems, samples
        self.groups = self._read() if path.exists() else {}
        self._file: TextIO | None = None

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._write()  # rewrite in problem order

    def add(self, group: CandidateGroup) -> None:
        """Append a problem's group of candidates and flush the file. The first call removes truncated, damaged or
        unrelated lines."""
        if self._file is None:
            self._write()
            try:
                self._file = self.path.open("a", encoding="utf-8")
            except OSError as error:
                raise DataError(
                    f"{self.path}: cannot be written ({error.strerror}); choose another output folder"
                ) from error
        self.groups[group.problem.id] = group
        self._file.writelines(map(_line, candidate_lines([group], None)))
        self._file.flush()

    def _write(self) -> None:
        groups = [self.groups[name] for name in self._problems if name in self.groups]
        with whole_file(self.path) as file:
            file.write(_line({_HEAD: self._resume_key}))
            file.writelines(map(_line, candidate_lines(groups, None)))

    def _read(self) -> dict[str, CandidateGroup]:
        rows = self._rows()
        _, head = next(rows, ("", {}))
        there = head.get(_HEAD)
        differing = differing_keys(with_current_names(there if isinstance(there, dict) else {}), self._resume_key)
        if differing:
            shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
            print(f"{self.path}: was sampled with other settings and will be replaced: {shown}", file=sys.stderr)
            return {}
        lines: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for location, row in rows:
            lines.setdefault(str(row.get("problem_id")), []).append((location, row))
        groups = {}
        for name, own in lines.items():
            if name in self._problems and len(own) == self._samples:  # otherwise the group was truncated or damaged
                try:
                    (groups[name],) = read_groups(own, self._problems)
                except DataError as error:
                    print(f"{error}; sampling problem {name!r} again", file=sys.stderr)
        return groups

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a (location, object) pair per line of the file. A truncated last line is skipped silently, damaged
        lines with a warning."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); choose another output folder") from error
        for number, line in enumerate(lines, start=1):
            location = f"{self.path}:{number}"
            try:
                row = parse_json(line, location)
            except DataError as error:
                row = None
                if line.endswith(b"\n"):
                    print(f"{error}; sampling its problem again", file=sys.stderr)
            if isinstance(row, dict):
                yield location, row


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"  # ASCII only, because a policy's bytes may decode to lone surrogates
