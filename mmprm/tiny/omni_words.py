"""Name what the clips of the Omni world show and play, and the emotions that follow from both."""

from __future__ import annotations

CLIP_MOVES = ("up", "down", "left", "right")
CLIP_TONES = ("low", "middle", "high")
EMOTIONS = ("joy", "anger", "fear", "calm")
EMOTION_QUESTION = "Which emotion does the clip convey?"
MOVE, TONE = "move=", "tone="
OMNI_WORDS = (EMOTION_QUESTION, MOVE, TONE, *CLIP_MOVES, *CLIP_TONES, *EMOTIONS)
"""Words that are one token each in the tiny Omni policy's vocabulary."""
