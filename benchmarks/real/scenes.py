"""Define the wordings of the generated problems and solutions: names, scenes, distractors and step sentences.

Each scene has its own wordings for the same kinds of events: some for training, and some that only held-out problems
use. {n} and {k} are the event's numbers; the other fields come from the story.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = ("Mia", "Omar", "Lena", "Ravi", "Sofia", "Jonas", "Aiko", "Clara", "Diego", "Nora", "Felix", "Zoe")
GOODS = (
    ("pens", "boxes"),
    ("apples", "bags"),
    ("eggs", "baskets"),
    ("stickers", "packs"),
    ("coins", "jars"),
    ("books", "shelves"),
    ("cards", "packs"),
    ("flowers", "vases"),
)
"""Pairs (unit, container) of countable goods."""


@dataclass(frozen=True)
class Wordings:
    """Contains the wordings of one kind of sentence, for training and for held-out problems."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Contains the wordings for the events of one kind of story. `unit` is None if the goods are the unit."""

    unit: str | None
    events: dict[str, Wordings]
    endings: dict[str, Wordings]


DISTRACTORS = Wordings(
    (
        "{name} is {n} years old.",
        "{friend} has {n} brothers and cousins.",
        "It is {n} degrees outside.",
        "The nearest town is {n} km away.",
        "The room has the number {n}.",
        "{friend} weighs {n} kg.",
    ),
    ("{friend} lives in house number {n}.", "The bus line has the number {n}."),
)

ITEMS = Scene(
    None,
    {
        "start": Wordings(
            (
                "{name} has {n} {unit}.",
                "There are {n} {unit} on the table of {name}.",
                "{name} starts with {n} {unit}.",
                "In the morning, {name} counts {n} {unit}.",
                "{name} keeps {n} {unit} in a drawer.",
                "A bag of {name} contains {n} {unit}.",
            ),
            ("At first, {name} owns {n} {unit}.", "{n} {unit} belong to {name}."),
        ),
        "add": Wordings(
            (
                "{name} buys {n} more {unit}.",
                "{friend} gives {name} {n} {unit}.",
                "Then {name} finds {n} {unit}.",
                "{n} new {unit} come from {friend}.",
                "On the way home, {name} collects {n} {unit}.",
                "{name} receives {n} extra {unit}.",
            ),
            ("Later, {name} picks up another {n} {unit}.", "{name} wins {n} {unit}."),
        ),
        "take": Wordings(
            (
                "{name} gives {n} {unit} to {friend}.",
                "{name} loses {n} {unit}.",
                "Then {n} of the {unit} break.",
                "{n} {unit} go to {friend}.",
                "{friend} borrows {n} {unit} and keeps them.",
                "After that, {n} {unit} are missing.",
            ),
            ("{name} throws away {n} {unit}.", "{friend} takes {n} of the {unit} home."),
        ),
        "add_groups": Wordings(
            (
                "{name} buys {k} {group} of {n} {unit}.",
                "Then {name} gets {k} {group} with {n} {unit} in each.",
                "{friend} brings {name} {k} {group}, each with {n} {unit}.",
                "There are {k} {group} more, with {n} {unit} in every one.",
                "Each of {k} friends hands {name} {n} {unit}.",
            ),
            ("{k} {group} arrive for {name}, and each holds {n} {unit}.",),
        ),
        "take_groups": Wordings(
            (
                "{name} sells {k} {group} of {n} {unit}.",
                "{name} gives {n} {unit} to each of {k} friends.",
                "Then {name} fills {k} {group} with {n} {unit} each and gives them away.",
                "Each of {k} visitors gets {n} {unit} from {name}.",
                "{k} {group} with {n} {unit} in each are sent away.",
            ),
            ("{k} neighbors take {n} {unit} each.",),
        ),
        "dozen": Wordings(
            (
                "{name} buys {k} dozen {unit}.",
                "{friend} gives {name} {k} dozen {unit}.",
                "{k} dozen new {unit} come by mail.",
                "Then {name} finds {k} dozen {unit}.",
            ),
            ("{name} orders {k} dozen more {unit}.",),
        ),
        "double": Wordings(
            (
                "Then {name} doubles the number of {unit}.",
                "Then {name} gets twice as many {unit} as before.",
                "Soon the number of {unit} is twice as large.",
                "After a while, there are twice as many {unit}.",
            ),
            ("A week later, {name} has two times that many {unit}.",),
        ),
    },
    {
        "plain": Wordings(
            (
                "How many {unit} does {name} have now?",
                "How many {unit} are there in the end?",
                "How many {unit} remain?",
                "What is the final number of {unit}?",
            ),
            ("What number of {unit} does {name} end up with?",),
        ),
        "share": Wordings(
            (
                "{name} shares the {unit} equally among {n} friends. How many {unit} does each friend get?",
                "{name} puts all {unit} into {n} equal {group}. How many {unit} are in each?",
                "The {unit} are given in equal parts to {n} neighbors. How many {unit} does each of them receive?",
                "{n} cousins get the same number of {unit}, and none are left. How many {unit} is that for one cousin?",
            ),
            ("{n} children divide the {unit} evenly. How many {unit} does one child receive?",),
        ),
        "price": Wordings(
            (
                "{name} sells all the {unit} for ${n} each. How many dollars does {name} get?",
                "Each of the {unit} is worth ${n}. How many dollars are they worth in total?",
                "A shop pays ${n} for each of the {unit}. How many dollars is that for all?",
            ),
            ("All {unit} are sold at ${n} apiece. How much money, in dollars, does {name} earn?",),
        ),
    },
)

MONEY = Scene(
    "dollars",
    {
        "start": Wordings(
            (
                "{name} has ${n}.",
                "{name} saved ${n}.",
                "There are ${n} in the purse of {name}.",
                "In the morning, {name} counts ${n}.",
                "{name} owns ${n} at first.",
            ),
            ("{name} begins the week with ${n}.",),
        ),
        "add": Wordings(
            (
                "{name} earns ${n}.",
                "{friend} gives {name} ${n}.",
                "Then {name} gets ${n} as a gift.",
                "An aunt sends {name} ${n}.",
                "{name} finds ${n} on the street.",
            ),
            ("{name} is paid ${n} for a small job.",),
        ),
        "take": Wordings(
            (
                "{name} spends ${n}.",
                "{name} pays ${n} for a ticket.",
                "{name} gives {friend} ${n}.",
                "${n} go to {friend}.",
                "A book for ${n} is bought by {name}.",
            ),
            ("A lunch costs {name} ${n}.",),
        ),
        "add_groups": Wordings(
            (
                "{name} works {k} hours for ${n} an hour.",
                "{name} sells {k} {goods} for ${n} each.",
                "{k} friends give {name} ${n} each.",
                "On each of {k} days, {name} earns ${n}.",
            ),
            ("For each of {k} hours of work, {name} receives ${n}.",),
        ),
        "take_groups": Wordings(
            (
                "{name} buys {k} {goods} for ${n} each.",
                "{name} pays ${n} on each of {k} days.",
                "{k} {goods} cost {name} ${n} each.",
                "{name} gives ${n} to each of {k} friends.",
            ),
            ("{name} orders {k} {goods} at a price of ${n} apiece.",),
        ),
        "double": Wordings(
            (
                "Then {name} doubles the money.",
                "Soon {name} has twice as much money.",
                "After a while, there is twice as much money.",
            ),
            ("In the end, the money grows to two times as much.",),
        ),
    },
    {
        "plain": Wordings(
            (
                "How many dollars does {name} have now?",
                "How much money, in dollars, is left?",
                "How many dollars remain?",
                "What is the final number of dollars?",
            ),
            ("What amount of dollars remains?",),
        ),
        "share": Wordings(
            (
                "{name} splits the money equally among {n} people. How many dollars does each get?",
                "The money is given in equal parts to {n} neighbors. How many dollars does each of them receive?",
            ),
            ("{n} people share the money evenly. How many dollars go to one person?",),
        ),
    },
)

MINUTES = Scene(
    "minutes",
    {
        "start": Wordings(
            (
                "{name} reads for {n} minutes.",
                "On Monday, {name} reads for {n} minutes.",
                "In the morning, the reading of {name} takes {n} minutes.",
                "{name} has a book and reads in it for {n} minutes.",
            ),
            ("{name} spends {n} minutes reading.",),
        ),
        "add": Wordings(
            (
                "Then {name} reads for {n} more minutes.",
                "After lunch, {name} reads for {n} minutes.",
                "There are {n} more minutes of reading later.",
                "{friend} joins, and they read for {n} extra minutes.",
            ),
            ("In the evening, another {n} minutes of reading follow.",),
        ),
        "take": Wordings(
            (
                "{n} of these minutes are a break.",
                "{name} talks for {n} of these minutes instead.",
                "But {n} of the minutes are spent without a book.",
                "{name} loses {n} of the minutes to a phone call.",
            ),
            ("Of this time, {n} minutes are a pause.",),
        ),
        "add_groups": Wordings(
            (
                "{name} reads {n} minutes on each of {k} days.",
                "{name} also reads {k} stories of {n} minutes each.",
                "Then there are {k} parts of {n} minutes each.",
                "On each of {k} evenings, {name} reads for {n} minutes.",
            ),
            ("On {k} more days, the reading takes {n} minutes each.",),
        ),
    },
    {
        "plain": Wordings(
            (
                "How many minutes is that?",
                "How many minutes of reading is that in the end?",
                "How many minutes does {name} read in total?",
                "What is the final number of minutes?",
            ),
            ("What is the reading time in minutes?",),
        ),
        "share": Wordings(
            (
                "The time is spread evenly over {n} days. How many minutes is that per day?",
                "{name} cuts the time into {n} equal blocks. How many minutes does each block take?",
            ),
            ("It is split into {n} equal parts. How many minutes long is one part?",),
        ),
    },
)
SCENES = {"items": ITEMS, "money": MONEY, "minutes": MINUTES}

STEPS = {
    "+": (
        "{a} + {b} = {c} {unit}.",
        "Now there are {a} + {b} = {c} {unit}.",
        "Adding {b} gives {a} + {b} = {c}.",
        "With {b} more, {a} + {b} = {c} {unit}.",
    ),
    "-": (
        "{a} - {b} = {c} {unit}.",
        "Taking away {b} leaves {a} - {b} = {c} {unit}.",
        "Now {a} - {b} = {c} {unit} are left.",
        "Without {b}, there are {a} - {b} = {c}.",
    ),
    "*": (
        "{a} * {b} = {c} {unit}.",
        "That is {a} * {b} = {c} {unit}.",
        "{a} times {b} is {c}.",
        "This makes {a} * {b} = {c} {unit}.",
    ),
    "/": (
        "{a} / {b} = {c} {unit}.",
        "Each part is {a} / {b} = {c} {unit}.",
        "{a} divided by {b} is {c}.",
    ),
}
"""Step sentences keyed by operation."""
