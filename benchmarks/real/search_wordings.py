"""Define the wordings of the problems that are annotated or trained on by RL; SFT does not use them.

A policy makes few mistakes on wordings that it was fine-tuned on, so that their search trees would contain little
information. The fields are those of scenes.py.
"""

from __future__ import annotations

SEARCH_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "distractor": {
        "distractor": (
            "The bag of {friend} weighs {n} kg.",
            "{name} lives on street number {n}.",
            "The temperature is {n} degrees.",
        )
    },
    "items": {
        "start": (
            "{name} carries {n} {unit}.",
            "To begin with, there are {n} {unit} in the room of {name}.",
            "The collection of {name} has {n} {unit}.",
        ),
        "add": (
            "{friend} hands {n} {unit} over to {name}.",
            "The number of {unit} grows by {n}.",
            "{n} {unit} are added.",
            "{name} gets {n} {unit} for a birthday.",
        ),
        "take": (
            "{name} uses up {n} {unit}.",
            "The number of {unit} falls by {n}.",
            "{n} of the {unit} disappear.",
            "A dog destroys {n} of the {unit}.",
        ),
        "add_groups": (
            "In the shop, {name} picks {k} {group} of {n} {unit}.",
            "{name} receives {n} {unit} from each of {k} people.",
            "On each of {k} days, {name} finds {n} {unit}.",
        ),
        "take_groups": (
            "On each of {k} days, {name} loses {n} {unit}.",
            "{k} children each take away {n} {unit}.",
            "{name} donates {k} {group}, and there are {n} {unit} in each.",
        ),
        "dozen": (
            "{k} dozen {unit} are added.",
            "In the shop, {name} picks {k} dozen {unit}.",
        ),
        "double": (
            "The number of {unit} doubles.",
            "{name} ends up with double the {unit}.",
        ),
        "plain": (
            "How many {unit} are left at the end of the day?",
            "Now count the {unit}. How many are there?",
            "At the end, how many {unit} belong to {name}?",
        ),
        "share": (
            "{n} people share all {unit} fairly. How many {unit} are there for each person?",
            "All {unit} go into {n} {group} of the same size. How many {unit} does each hold?",
        ),
        "price": (
            "The price of one is ${n}. How many dollars do all the {unit} cost together?",
            "{friend} buys all the {unit} from {name} and pays ${n} for each. How many dollars is that?",
        ),
    },
    "money": {
        "start": (
            "The wallet of {name} holds ${n}.",
            "{name} takes ${n} along.",
            "To begin with, {name} can spend ${n}.",
        ),
        "add": (
            "The parents of {name} add ${n}.",
            "{name} makes ${n} by selling a toy.",
            "The money grows by ${n}.",
        ),
        "take": (
            "A drink costs ${n}, and {name} buys it.",
            "{name} drops ${n} in the river.",
            "The money falls by ${n}.",
        ),
        "add_groups": (
            "{name} mows {k} lawns and gets ${n} for each.",
            "In each of {k} weeks, {name} gets ${n}.",
        ),
        "take_groups": (
            "In each of {k} weeks, {name} spends ${n}.",
            "{name} needs {k} {goods}, and each costs ${n}.",
        ),
        "double": (
            "The money of {name} doubles.",
            "{friend} doubles what {name} has.",
        ),
        "plain": (
            "How many dollars does {name} own at the end?",
            "Count the money. How many dollars are there?",
        ),
        "share": (
            "{n} friends share the dollars fairly. How many dollars are there for each friend?",
            "{name} puts the same part of the money into each of {n} jars. How many dollars are in one jar?",
        ),
    },
    "minutes": {
        "start": (
            "{name} opens a book and reads {n} minutes.",
            "Before breakfast, {name} reads for {n} minutes.",
        ),
        "add": (
            "At night, {name} reads {n} minutes longer.",
            "The reading time grows by {n} minutes.",
            "{n} minutes are added.",
        ),
        "take": (
            "{name} sleeps during {n} of these minutes.",
            "The reading time falls by {n} minutes.",
        ),
        "add_groups": (
            "In each of {k} weeks, {name} reads {n} minutes more.",
            "{name} also reads {k} letters, and each takes {n} minutes.",
        ),
        "plain": (
            "How long is the reading time in minutes at the end?",
            "Count the minutes of reading. How many are there?",
        ),
        "share": (
            "{n} people share the time fairly. How many minutes are there for each person?",
            "{name} reads equally long on each of {n} days. How many minutes does {name} read on one day?",
        ),
    },
}
"""Wordings by scene and kind of sentence."""
