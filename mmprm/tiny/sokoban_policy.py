"""Train a tiny policy from random weights to play Sokoban turn by turn, by imitating a solver that makes mistakes.

1. vision: the vision tower alone learns what each cell contains, its row and its column, with linear heads on each
   image token. A model of this size hardly learns to see through the language model's loss. It is frozen afterwards.
2. moves: the language model learns single moves, each as the first turn of an episode. With one image in the text, it
   need not yet learn which of several images shows the current state.
3. play: the language model learns whole episodes, with the tokens that they have in mmprm annotate and mmprm rl, but
   almost without mistakes.
4. mistakes: it learns to make mistakes at the rate of the configuration. This stage is short, so that reinforcement
   learning can reverse it.

In the last three stages, the target is SolverPlayer's probability of each of the four moves rather than a sampled move,
which has the same expected gradient but less noise. Linear heads on the token that predicts the move name the cells of
the player, the boxes, and the goals, so that attention finds them early.

A move is one token, so all episodes have the same tokens except for their moves.

Shapes: B episode or level, T token, N predicted token, M move, V vocabulary, H hidden, C cell.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mmprm.environments.episode import Action
from mmprm.environments.interface import Observation
from mmprm.prompts import PromptConfig
from mmprm.sampling.conversation import EpisodeEncoder
from mmprm.tiny.config import SokobanTrainConfig
from mmprm.tiny.model import build_model
from mmprm.tiny.pretrain import optimizer_steps
from mmprm.tiny.sokoban import MOVES, SIGNS, SokobanState, level_text, move, moves_to_solve
from mmprm.tiny.sokoban_image import draw_sign, draw_state
from mmprm.tiny.sokoban_player import SolverMove, action_text, move_probabilities, solver_moves
from mmprm.tiny.sokoban_problems import QUESTION, make_split_level
from mmprm.tiny.tokenizer import END, build_processor

GOOD_MISTAKE_RATE = 0.1
"""Largest mistake rate of the targets in the stages `moves` and `play`. With that of the episodes, which is higher by
default, good and bad moves differ less, and the model needs more steps to tell them apart."""
PLACES_WEIGHT = 0.5
"""Weight of the loss on the cells of the player, the boxes and the goals."""


def build_sokoban_processor() -> Qwen2_5_VLProcessor:
    """Build the processor of the policy, in whose vocabulary the question and each move are one token."""
    return build_processor((QUESTION, *map(action_text, MOVES)))


def solver_episode(rng: random.Random, config: SokobanTrainConfig) -> list[SolverMove]:
    """Play a level of the train split until it is solved, cannot be solved any more, or the turns are used up."""
    start = make_split_level(rng, "train", config.size, config.boxes)
    return list(solver_moves(start, rng, config.mistake_rate, config.max_turns))


class EpisodeCollator:
    """Collates episodes for the policy. All episodes share the template tokens, in which only the moves differ."""

    def __init__(self, model: nn.Module, processor: Qwen2_5_VLProcessor, size: int, max_turns: int) -> None:
        tokenizer = processor.tokenizer
        self._pad = tokenizer.pad_token_id
        self.end_id = tokenizer.convert_tokens_to_ids(END)
        self.move_ids = torch.tensor(tokenizer.convert_tokens_to_ids([action_text(name) for name in MOVES]))
        self._grid = torch.tensor([[1, 2 * size, 2 * size]])  # time, height and width in patches, 2 × 2 per cell
        self._cells = [(row, column) for row in range(size) for column in range(size)]
        drawn = [(sign, *cell) for sign in SIGNS for cell in self._cells]
        images = [Image.fromarray(draw_sign(*each)) for each in drawn]
        patches = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        self._patches = dict(zip(drawn, patches.reshape(len(drawn), -1, patches.shape[-1]), strict=True))
        self.ids_T = self._template(processor, size, max_turns)
        self.move_at = (self.ids_T == self.move_ids[0]).nonzero()[:, 0].tolist()
        """Index of each turn's move among the tokens."""
        assert len(self.move_at) == max_turns, "a move is one token"
        image_1T = (self.ids_T == processor.image_token_id).int()[None]
        grids = self._grid.repeat(max_turns, 1)
        self.positions_3T = model.model.get_rope_index(
            input_ids=self.ids_T[None], image_grid_thw=grids, mm_token_type_ids=image_1T
        )[0][:, 0]

    def _template(self, processor: Qwen2_5_VLProcessor, size: int, max_turns: int) -> Tensor:
        move_token = int(self.move_ids[0])
        image = draw_state(make_split_level(random.Random(0), "train", size, 1))
        observations = [Observation((QUESTION, image)), *[Observation((image,))] * (max_turns - 1)]
        actions = [Action("", (move_token, self.end_id))] * max_turns
        (row,) = EpisodeEncoder(processor, PromptConfig(preset="plain")).rows(observations, actions)
        expanded = [[token] * (size**2 if token == processor.image_token_id else 1) for token in row.ids]
        return torch.tensor([token for tokens in expanded for token in tokens])

    def pixels(self, states: Sequence[SokobanState]) -> dict[str, Tensor]:
        """Return the image inputs of the states, in which a cell is one merged patch."""
        texts = (level_text(state).replace("\n", "") for state in states)
        drawn = ((sign, *cell) for text in texts for sign, cell in zip(text, self._cells, strict=True))
        patches = torch.stack([self._patches[each] for each in drawn]).flatten(0, 1)
        return {"pixel_values": patches, "image_grid_thw": self._grid.repeat(len(states), 1)}

    def __call__(self, episodes: Sequence[Sequence[SolverMove]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the model inputs, the mask predicting_BT of the tokens before a move or its end, and the probabilities
        probabilities_NV of the tokens that follow them."""
        lengths = [self.move_at[len(episode) - 1] + 2 for episode in episodes]
        ids_BT = self.ids_T[: max(lengths)].repeat(len(episodes), 1)
        present_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids_BT[~present_BT] = self._pad
        predicting_BT = torch.zeros_like(present_BT)
        probabilities_NV = []
        names = list(MOVES)
        vocabulary = 1 + max(self.end_id, int(self.move_ids.max()))
        for row, episode in enumerate(episodes):
            for at, played in zip(self.move_at, episode, strict=False):
                ids_BT[row, at] = self.move_ids[names.index(played.name)]
                predicting_BT[row, at - 1 : at + 1] = True
                probabilities_V = torch.zeros(vocabulary)
                probabilities_V[self.move_ids] = torch.tensor(played.probabilities)
                probabilities_NV += [probabilities_V, one_hot(torch.tensor(self.end_id), vocabulary).float()]
        inputs = {
            "input_ids": ids_BT,
            "attention_mask": present_BT.long(),
            "position_ids": self.positions_3T[:, None, : max(lengths)].expand(-1, len(episodes), -1),
            **self.pixels([played.state for episode in episodes for played in episode]),
        }
        return inputs, predicting_BT, torch.stack(probabilities_NV)


def train_sokoban(config: SokobanTrainConfig, out: Path, say: Callable[[str], None] = print) -> dict[str, float | None]:
    """Train the policy, write its checkpoint and metrics (sokoban.json) to `out`, and return the metrics."""
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processor = build_sokoban_processor()
    model = build_model(processor.tokenizer)
    collator = EpisodeCollator(model, processor, config.size, config.max_turns)
    _train_vision(model, collator, config, say)
    model.model.visual.requires_grad_(False)
    _train_language("moves", config.move_steps, partial(single_moves, config), model, collator, config, say)
    _train_language("play", config.play_steps, partial(_good_episodes, config), model, collator, config, say)
    _train_language("mistakes", config.mistake_steps, partial(_episodes, config), model, collator, config, say)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    metrics = evaluate_sokoban(model, collator, config)
    metrics["train_seconds"] = round(time.monotonic() - started)
    text = json.dumps(metrics | {"config": config.model_dump()}, indent=2)
    (out / "sokoban.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    collator: EpisodeCollator,
    config: SokobanTrainConfig,
    say: Callable[[str], None],
) -> None:
    rng, signs, tower = random.Random(f"{config.seed}/vision"), list(SIGNS), model.model.visual
    sizes = (len(signs), config.size, config.size)
    heads = nn.Linear(tower.config.out_hidden_size, sum(sizes))
    parameters = [*tower.parameters(), *heads.parameters()]
    for step, update in optimizer_steps(parameters, config.vision_steps, config.learning_rate, config.weight_decay):
        states = [played.state for (played,) in single_moves(config, rng)]
        pixels = collator.pixels(states)
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        lines = [line for state in states for line in level_text(state).split("\n")]
        cells = torch.tensor([signs.index(sign) for line in lines for sign in line])
        rows = torch.arange(config.size).repeat_interleave(config.size).repeat(len(states))
        columns = torch.arange(config.size).repeat(config.size * len(states))
        logits = heads(features).split(sizes, dim=-1)
        targets = (cells, rows, columns)
        loss = sum(cross_entropy(each, target) for each, target in zip(logits, targets, strict=True))
        loss.backward()
        update()
        if step % 50 == 0 or step == config.vision_steps - 1:
            hits = [
                (each.argmax(dim=-1) == target).float().mean() for each, target in zip(logits, targets, strict=True)
            ]
            say(
                "vision {}/{} loss {:.4f} cells {:.3f} rows {:.3f} columns {:.3f}".format(
                    step, config.vision_steps, loss.item(), *hits
                )
            )


def single_moves(config: SokobanTrainConfig, rng: random.Random) -> list[list[SolverMove]]:
    """Return single moves, each from a random state of another episode."""
    return _with_good_targets([[rng.choice(solver_episode(rng, config))] for _ in range(config.move_batch)], config)


def _good_episodes(config: SokobanTrainConfig, rng: random.Random) -> list[list[SolverMove]]:
    return _with_good_targets(_episodes(config, rng), config)


def _with_good_targets(episodes: list[list[SolverMove]], config: SokobanTrainConfig) -> list[list[SolverMove]]:
    """Return the episodes with the move probabilities of a player that makes few mistakes."""
    rate = min(GOOD_MISTAKE_RATE, config.mistake_rate)
    return [
        [replace(each, probabilities=tuple(move_probabilities(each.state, rate))) for each in episode]
        for episode in episodes
    ]


def _episodes(config: SokobanTrainConfig, rng: random.Random) -> list[list[SolverMove]]:
    return [solver_episode(rng, config) for _ in range(config.batch)]


def _train_language(
    stage: str,
    steps: int,
    draw: Callable[[random.Random], list[list[SolverMove]]],
    model: Qwen2_5_VLForConditionalGeneration,
    collator: EpisodeCollator,
    config: SokobanTrainConfig,
    say: Callable[[str], None],
) -> None:
    """Train the language model on the episodes of `draw`."""
    started, rng = time.monotonic(), random.Random(f"{config.seed}/{stage}")
    heads = nn.Linear(model.config.text_config.hidden_size, 3 * config.size**2)
    parameters = [each for each in (*model.parameters(), *heads.parameters()) if each.requires_grad]
    for step, update in optimizer_steps(parameters, steps, config.learning_rate, config.weight_decay):
        episodes = draw(rng)
        inputs, predicting_BT, probabilities_NV = collator(episodes)
        hidden_NH = model.model(**inputs, use_cache=False).last_hidden_state[predicting_BT]
        logits_NV = model.lm_head(hidden_NH)
        unused = logits_NV.shape[1] - probabilities_NV.shape[1]  # spare embeddings
        targets_NV = nn.functional.pad(probabilities_NV, (0, unused))
        places_M3C = torch.stack([cell_targets(played.state) for episode in episodes for played in episode])
        named_M3C = heads(hidden_NH[::2]).view(places_M3C.shape)  # every second token ends a turn
        loss = cross_entropy(logits_NV, targets_NV)
        total = loss + PLACES_WEIGHT * cross_entropy(named_M3C.flatten(0, 1), places_M3C.flatten(0, 1))
        total.backward()
        update()
        if step % 50 == 0 or step == steps - 1:
            hit = _best_share(logits_NV[::2], targets_NV[::2])
            seconds = time.monotonic() - started
            say(f"{stage} {step}/{steps} loss {loss.item():.4f} best moves {hit:.3f} after {seconds:.0f} s")


def cell_targets(state: SokobanState) -> Tensor:
    """Return the distributions of the player, the boxes and the goals over the cells (3, C)."""
    layout = state.layout
    places_3C = torch.zeros(3, layout.height * layout.width)
    for row, cells in enumerate(([state.player], state.boxes, layout.goals)):
        for down, right in cells:
            places_3C[row, down * layout.width + right] = 1 / len(cells)
    return places_3C


def _best_share(logits: Tensor, probabilities: Tensor) -> float:
    """Return how often the most likely entry is one with the highest probability."""
    chosen = probabilities.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
    return (chosen == probabilities.max(dim=1).values).float().mean().item()


@torch.inference_mode()
def evaluate_sokoban(
    model: Qwen2_5_VLForConditionalGeneration, collator: EpisodeCollator, config: SokobanTrainConfig
) -> dict[str, float | None]:
    """Sample one episode at temperature 1 for each of `config.held_out` levels of the test split.

    `solve_rate` is the share of solved levels, `lost_rate` the share that ended in a state that cannot be solved, and
    `moves_over_optimum` the mean number of moves of solved levels beyond a shortest solution, None if there are none.
    """
    rng = random.Random(f"{config.seed}/test")
    starts = [make_split_level(rng, "test", config.size, config.boxes) for _ in range(config.held_out)]
    states, used = list(starts), [0] * len(starts)
    torch.manual_seed(config.seed)
    model.eval()
    cache, begin, names = DynamicCache(), 0, list(MOVES)
    ids_BT = collator.ids_T.repeat(len(starts), 1)
    for at in collator.move_at:
        # Solved levels are played on, without being counted, so that all conversations have equal lengths.
        logits_BTV = model(
            input_ids=ids_BT[:, begin:at],
            position_ids=collator.positions_3T[:, None, begin:at].expand(-1, len(starts), -1),
            past_key_values=cache,
            **collator.pixels(states),
        ).logits
        ids_BT[:, at] = logits_BTV[:, -1].softmax(dim=-1).multinomial(1)[:, 0]
        for row, state in enumerate(states):
            if not state.solved:
                used[row] += 1
                chosen = (collator.move_ids == ids_BT[row, at]).nonzero()
                states[row] = move(state, names[int(chosen)]) if len(chosen) else state
        begin = at
    solved = [row for row, state in enumerate(states) if state.solved]
    over = [used[row] - (moves_to_solve(starts[row]) or 0) for row in solved]
    return {
        "solve_rate": len(solved) / len(starts),
        "lost_rate": sum(moves_to_solve(state) is None for state in states) / len(starts),
        "moves_over_optimum": sum(over) / len(over) if over else None,
    }
