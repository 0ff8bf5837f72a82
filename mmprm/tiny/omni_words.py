"""Name what the clips of the Omni world show and play, and the emotions that follow from both."""

from __future__ import annotations

MOVES = ("up", "down", "left", "right")
TONES = ("low", "middle", "high")
EMOTIONS = ("joy", "anger", "fear", "calm")
QUESTION = "Which emotion does the clip convey?"
MOVE, TONE = "move=", "tone="
OMNI_WORDS = (QUESTION, MOVE, TONE, *MOVES, *TONES, *EMOTIONS)
"""Words that are one token each in the tiny Omni policy's vocabulary."""
