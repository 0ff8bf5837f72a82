"""A run that meets bad numbers, a SIGTERM or a crash: what it skips, where it stops, what it goes on from."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmprm.backbone.load import new_model_folder
from mmprm.config import load
from mmprm.errors import CheckpointError, ConfigError, DataError, TrainingError
from mmprm.training import checkpoints
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.loop import fit
from mmprm.training.ranks import Ranks, check_shared, join_ranks
from mmprm.training.sharding import deepspeed_config
from mmprm.training.stop_request import StopRequest

ALONE = Ranks(0, 1, torch.device("cpu"))


class ScriptedEngine:
    """Counts its steps; those in `bad` are skipped, and after `ask_at` of them this process gets a SIGTERM."""

    learning_rate = 0.1
    ask_with = signal.SIGTERM

    def __init__(self, bad: Sequence[int] = (), ask_at: int = 0) -> None:
        self.ranks, self.deepspeed, self.skipped = ALONE, self, False
        self._bad, self._ask_at, self.steps = bad, ask_at, 0

    def step(self, losses: Any, denominator: float) -> tuple[float, float | None]:
        list(losses)
        self.steps += 1
        self.skipped = self.steps in self._bad
        if self.steps == self._ask_at:
            os.kill(os.getpid(), self.ask_with)
        return (float("nan") if self.skipped else 1.0 / self.steps), None

    def save_checkpoint(self, folder: str, tag: str, **options: Any) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "weights.pt").write_bytes(b"w" * self.steps)

    def load_checkpoint(self, folder: str, tag: str, **options: Any) -> None:
        self.steps = (Path(folder) / tag / "weights.pt").stat().st_size


class NoTask:
    lengths, terms = [1] * 8, [1] * 8

    def collate(self, samples: Sequence[int]) -> Sequence[int]:
        return samples

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        return torch.zeros(())

    def evaluate(self, engine: Engine) -> dict[str, float]:
        return {"loss": 0.5}


def run(folder: Path, engine: ScriptedEngine, **training: Any) -> dict[str, float]:
    """8 steps of one sample."""
    return fit(NoTask(), engine, TrainingConfig(batch_size=1, log_every=100, **training), folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def test_bad_steps_are_counted_and_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    run(tmp_path / "few", ScriptedEngine(bad=(2, 3, 5, 6, 8)), max_bad_steps=3)
    assert [row["skipped"] for row in rows(tmp_path / "few")] == [0, 1, 1, 0, 1, 1, 0, 1]
    assert [row["loss"] for row in rows(tmp_path / "few")][:3] == [1.0, None, None]
    kept = tmp_path / "many/checkpoints/step-00000004"
    with pytest.raises(
        TrainingError, match=rf"step 7: .* training.max_bad_steps=3 consecutive steps; .* {kept}\. Raise"
    ):
        run(tmp_path / "many", ScriptedEngine(bad=(2, 5, 6, 7)), max_bad_steps=3, save_every=4)
    assert len(rows(tmp_path / "many")) == 7
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        run(tmp_path / "none", ScriptedEngine(bad=(1,)), max_bad_steps=1)
    run(tmp_path / "many", ScriptedEngine(bad=(5, 6, 7)), max_bad_steps=4, save_every=4)


def test_sigterm_saves_after_the_step_at_hand_and_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, ScriptedEngine(ask_at=3))
    assert stopped.value.code == 0
    assert "saved after step 3 of 8. Run the same command to resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert run(tmp_path, ScriptedEngine()) == {"loss": 0.5}
    assert [row["loss"] for row in rows(tmp_path)] == [1.0 / step for step in range(1, 9)]


def test_an_evaluation_that_fails_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> dict[str, float]:
        raise DataError("a held-out image is gone")

    with monkeypatch.context() as patched:
        patched.setattr(NoTask, "evaluate", fails)
        with pytest.raises(DataError, match="held-out"):
            run(tmp_path, ScriptedEngine(), save_every=4, eval_every=4)
    for _ in range(2):
        assert run(tmp_path, ScriptedEngine(), save_every=4, eval_every=8) == {"loss": 0.5}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in lines] == [*(("train", step) for step in range(1, 9)), ("eval", 8)]


def test_an_evaluation_interrupted_after_its_checkpoint_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NoTask, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, ScriptedEngine(), save_every=4, eval_every=4)
    run(tmp_path, ScriptedEngine(), save_every=4, eval_every=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["kind"] == "eval"] == [4, 8]


def test_without_held_out_data_the_last_line_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoTask, "evaluate", lambda *_: {})
    assert run(tmp_path, ScriptedEngine()) == {}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum('"eval"' in line for line in lines) == 1


def test_a_request_at_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    assert run(tmp_path, ScriptedEngine(ask_at=8)) == {"loss": 0.5}
    assert not (tmp_path / "checkpoints").exists()


def test_only_a_main_thread_listens() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def listen() -> None:
        with StopRequest(ALONE) as stop:
            seen.append((stop.came(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def spoil_size(path: Path) -> None:
    with (path / "deepspeed/weights.pt").open("ab") as file:
        file.truncate(1)


def lose_file(path: Path) -> None:
    (path / "random-0.pt").unlink()


def cut_state(path: Path) -> None:
    (path / "state.json").write_text('{"step": ')


def lose_state(path: Path) -> None:
    (path / "state.json").unlink()


def flip_bytes(path: Path) -> None:
    file = path / "deepspeed/weights.pt"
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))


def step_as_text(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"step": "8"}))


def another_step(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"step": 7}))


FAULTS = {flip_bytes: "deepspeed/weights.pt is damaged", another_step: "state.json is damaged"}


@pytest.mark.parametrize(
    "spoil", [spoil_size, lose_file, cut_state, lose_state, flip_bytes, step_as_text, another_step]
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, ScriptedEngine(), save_every=2, keep_checkpoints=3)
    saved = tmp_path / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == [f"step-0000000{step}" for step in (4, 6, 8)]
    spoil(saved / "step-00000008")
    (saved / ".step-00000009.tmp").mkdir()
    (saved / ".step-00000002.old").mkdir()
    assert checkpoints.newest(saved) == saved / "step-00000006"
    engine = ScriptedEngine()
    run(tmp_path, engine, save_every=2, keep_checkpoints=3)
    assert engine.steps == 8
    fault = FAULTS.get(spoil, "is incomplete")
    assert f"{saved / 'step-00000008'}: {fault}; skipping it" in capsys.readouterr().out
    assert checkpoints.newest(saved) == saved / "step-00000008"
    assert sorted(path.name for path in saved.iterdir()) == [f"step-0000000{step}" for step in (4, 6, 8)]
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))


def test_an_older_checkpoint_is_resumed(tmp_path: Path) -> None:
    """It has no checksums, and does not record the decay of the learning rate, which was always a cosine."""
    run(tmp_path, ScriptedEngine(), save_every=4)
    for file in tmp_path.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        assert state["identity"].pop("learning_rate_decay") == "cosine"
        file.write_text(json.dumps({key: state[key] for key in ("step", "identity", "files")}))
    assert checkpoints.steps_done(tmp_path / "checkpoints") == 8
    run(tmp_path, engine := ScriptedEngine(), save_every=4)
    assert engine.steps == 8
    with pytest.raises(CheckpointError, match=r"learning_rate_decay \(stored 'cosine', asked 'linear'"):
        run(tmp_path, ScriptedEngine(), save_every=4, learning_rate_decay="linear")


class TwoRanks:
    rank, count, is_main = 0, 2, True

    def gather(self, value: Any) -> list[Any]:
        return [value] * 2


def test_a_checkpoint_of_one_rank_is_refused_on_two(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    checkpoints.save(engine, tmp_path, 1, {}, keep=1)
    engine.ranks = TwoRanks()
    with pytest.raises(CheckpointError, match="was written by 1 rank, but this run has 2; start 1"):
        checkpoints.resume(engine, tmp_path, {})


def test_a_garbage_line_of_the_log_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, ScriptedEngine(ask_at=3))
    log = tmp_path / "metrics.jsonl"
    log.write_text("garbage\n" + log.read_text() + '{"kind": "train"')
    run(tmp_path, ScriptedEngine())
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))


def test_ctrl_c_saves_after_the_step_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine(ask_at=3)
    engine.ask_with = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, engine)
    assert "Ctrl-C; saved after step 3 of 8. Run the same command to resume" in capsys.readouterr().out
    run(tmp_path, ScriptedEngine())
    assert [row["loss"] for row in rows(tmp_path)] == [1.0 / step for step in range(1, 9)]


def test_a_second_ctrl_c_stops_at_once() -> None:
    with StopRequest(ALONE) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.came()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint before is still there, and the half of the new one is never taken for whole."""

    def full(folder: str, tag: str, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    engine = ScriptedEngine()
    checkpoints.save(engine, tmp_path, 1, {}, keep=1)
    monkeypatch.setattr(engine, "save_checkpoint", full)
    with pytest.raises(
        CheckpointError, match=r"step-00000002: cannot be written .*No space left.*free some disk space"
    ):
        checkpoints.save(engine, tmp_path, 2, {}, keep=1)
    assert checkpoints.newest(tmp_path) == tmp_path / "step-00000001"


def test_state_of_the_caller_is_a_file_of_its_own(tmp_path: Path) -> None:
    """It may be tens of megabytes, which nobody reads to tell whether a checkpoint is whole."""
    extra = {"carried": [{"token_ids": list(range(20_000))}]}
    checkpoints.save(ScriptedEngine(), tmp_path, 1, {"seed": 0}, keep=2, extra=extra)
    path = tmp_path / "step-00000001"
    assert (path / "state.json").stat().st_size < 1000
    assert "\n" not in (path / "extra.json").read_text()
    assert checkpoints.read_extra(tmp_path) == extra
    checkpoints.save(ScriptedEngine(), tmp_path, 2, {"seed": 0}, keep=2)
    assert checkpoints.read_extra(tmp_path) is None
    with (path / "extra.json").open("r+b") as file:
        file.truncate(100)
    (tmp_path / "step-00000002/state.json").unlink()
    assert checkpoints.newest(tmp_path) is None


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What is written beyond fails in the system call, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_torch_and_safetensors_raise_on_a_full_disk(tmp_path: Path) -> None:
    """RuntimeError and SafetensorError, not OSError. What was there before stays, nothing half is left beside it."""
    engine, tensors = ScriptedEngine(), {"weight": torch.zeros(100_000)}
    checkpoints.save(engine, tmp_path, 1, {}, keep=1)
    engine.save_checkpoint = lambda folder, **options: torch.save(tensors, Path(folder) / "weights.pt")
    with files_of_at_most(50_000), pytest.raises(CheckpointError, match=r"step-00000002: cannot be written .*free"):
        checkpoints.save(engine, tmp_path, 2, {}, keep=1)
    (tmp_path / "prm").mkdir()

    def save_model() -> None:
        with new_model_folder(tmp_path / "prm") as folder:
            folder.mkdir()
            save_file(tensors, folder / "model.safetensors")

    message = r"prm: cannot be written .*File too large.*free some disk space or choose"
    with files_of_at_most(50_000), pytest.raises(CheckpointError, match=message):
        save_model()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prm", "step-00000001"]
    with pytest.raises(RuntimeError, match="of another kind"), new_model_folder(tmp_path / "prm"):
        raise RuntimeError("of another kind")


class ThreadRanks(Ranks):
    """Ranks that are threads of one process; each may see a disk of its own."""

    def gather(self, value: Any) -> list[Any]:
        gathered[self.rank] = value
        meeting.wait(10)
        values = list(gathered)
        meeting.wait(10)
        return values


gathered: list[Any] = [None, None]
meeting = threading.Barrier(2)


def test_all_ranks_must_see_the_output(tmp_path: Path) -> None:
    def errors(*folders: Path) -> list[str]:
        def one(rank: int) -> str:
            try:
                check_shared(ThreadRanks(rank, 2, torch.device("cpu")), folders[rank], "output")
            except ConfigError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    assert errors(tmp_path / "run", tmp_path / "run") == ["", ""]
    assert list((tmp_path / "run").iterdir()) == []
    for message in errors(tmp_path / "run", tmp_path / "of another machine"):
        assert "rank 1 does not see what rank 0 writes there; choose a folder on shared storage" in message
        assert message.startswith("output=")
    (tmp_path / "file").touch()
    assert all("cannot be written" in message for message in errors(tmp_path / "file", tmp_path / "file"))


def test_offload_without_the_sharding_that_it_needs() -> None:
    for stage, offload, least in ((0, "optimizer", 1), (0, "all", 3), (2, "all", 3)):
        with pytest.raises(ConfigError, match=f"offload='{offload}': needs zero_stage of at least {least}"):
            load(TrainingConfig, None, [f"zero_stage={stage}", f"offload={offload}"])
    load(TrainingConfig, None, ["zero_stage=1", "offload=optimizer"])
    load(TrainingConfig, None, ["zero_stage=3", "offload=all"])


# From here on the real engine, on one rank.

GOOD, NAN_LOSS, CONSTANT_NAN, STEEP = range(4)


def loss_of(kind: int, seed: int) -> Callable[[nn.Module], Tensor]:
    x_BH = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))

    def loss_sum(model: nn.Module) -> Tensor:
        y = model(x_BH.to(next(model.parameters()).dtype)).float().square().sum()
        return {
            GOOD: y,
            NAN_LOSS: y * float("nan"),
            CONSTANT_NAN: y + float("inf"),  # the gradient alone would not tell
            STEEP: (y - y.detach()).sqrt(),  # the loss alone would not: 0, with an infinite gradient
        }[kind]

    return loss_sum


def train(config: TrainingConfig, kinds: Sequence[int]) -> tuple[dict[str, Tensor], float, list[bool]]:
    """Each step has two micro-batches, a good one and one of its kind; data by number of good steps before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1))
    engine = Engine(model, config, 6, join_ranks())
    skipped: list[bool] = []
    for kind in kinds:
        good = skipped.count(False)
        loss, norm = engine.step([loss_of(GOOD, 2 * good), loss_of(kind, 2 * good + 1)], 6)
        skipped.append(engine.skipped)
        finite = torch.tensor([loss, 0.0 if norm is None else norm]).isfinite().all()
        assert bool(finite) != engine.skipped
    return engine.weights(), engine.learning_rate, skipped


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("stage", "offload"),
    [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "all")],
)
def test_a_bad_step_leaves_no_trace(stage: int, offload: str, precision: str) -> None:
    """Weights after it are, bit for bit, those of a run without it: so were gradients, moments and schedule."""
    config = TrainingConfig(
        zero_stage=stage, offload=offload, precision=precision, learning_rate=0.05, warmup=0.5, gradient_clipping=0.5
    )
    weights, rate, skipped = train(config, [GOOD, NAN_LOSS, GOOD, CONSTANT_NAN, STEEP, GOOD])
    assert skipped == [False, True, False, True, True, False]
    expected, expected_rate, _ = train(config, [GOOD, GOOD, GOOD])
    start, _, _ = train(config, [])
    assert rate == expected_rate
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
        assert not torch.equal(tensor, start[name]), name


@pytest.mark.integration
@pytest.mark.parametrize("stage", [0, 3])
def test_matrices_decay_and_vectors_do_not(stage: int) -> None:
    """w − rate · decay · w where the gradient is 0. Under ZeRO-3 as it is loaded: in parts, each weight of no shape."""
    import deepspeed

    config = TrainingConfig(zero_stage=stage, precision="fp32", learning_rate=0.5, warmup=0, weight_decay=0.2)
    ranks = join_ranks()
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(config), enabled=stage == 3):
        model = nn.Linear(4, 8)
    engine = Engine(model, config, 6, ranks)
    before = engine.weights()
    engine.step([lambda model: model(torch.ones(1, 4)).sum() * 0], 1.0)
    after = engine.weights()
    torch.testing.assert_close(after["weight"], 0.9 * before["weight"])
    torch.testing.assert_close(after["bias"], before["bias"])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("stage", "offload"),
    [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "all")],
)
def test_many_small_gradients_of_bf16_add_up(stage: int, offload: str) -> None:
    """512 micro-batches, each of gradient 1 for four weights: norm 512 · 2. In bf16 256 + 1 = 256."""
    config = TrainingConfig(zero_stage=stage, offload=offload, precision="bf16")
    model = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    engine = Engine(model, config, 6, join_ranks())
    ones = torch.ones(1, 2, dtype=torch.bfloat16)
    for _ in range(2):  # the second step begins at nothing
        _, norm = engine.step([lambda model: model(ones).float().sum()] * 512, 1.0)
        assert norm == pytest.approx(1024)


def test_a_process_alone_leaves_no_rank_to_its_children() -> None:
    assert join_ranks() == join_ranks()
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & set(os.environ)
