"""Test that external text cannot send control sequences to the terminal, wherever it is printed."""

from __future__ import annotations

import io
import sys

import pytest

from mmprm.cli.main import main
from mmprm.terminal import PlainStream, plain_output, plain_text, raw


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1bP1$r\x1b", "\\x1bP1$r\\x1b"),
        ("a\rb\x08c\x9b31m\0", "a\\rb\\x08c\\x9b31m\\x00"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("half \ud83d", "half \\ud83d"),
        ("tab\tline\nä 中 \U0001f600", "tab\tline\nä 中 \U0001f600"),
    ],
)
def test_control_sequences_are_removed(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_a_stream_keeps_what_progress_bars_need() -> None:
    written = io.StringIO()
    stream = PlainStream(written)
    print("50 %\r\x1b[Kdone\x1b[A", file=stream)
    assert written.getvalue() == "50 %\rdone\n"
    assert raw(stream) is written
    assert raw(written) is written
    assert stream.isatty() is False


def test_all_output_is_plain_inside_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_output():
        print("a\x1b[31mb")
        print("c\x1b]0;d\x07", file=sys.stderr)
    print("\x1b[0m")
    assert capsys.readouterr() == ("ab\n\x1b[0m\n", "c\n")


def test_an_error_that_quotes_a_name_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "x.jsonl", "--config", "no\x1b[31m\rfile.yaml"]) == 2
    errors = capsys.readouterr().err
    assert "no\\rfile.yaml" in errors
    assert "\x1b" not in errors
    assert "\r" not in errors
