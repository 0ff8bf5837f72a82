"""Test hacking metrics, alarms, and the samples logged for inspection."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprm.config import build
from mmprm.data.media import open_audio, open_video
from mmprm.errors import ConfigError, TrainingError
from mmprm.report.rollouts import logged_media, read_samples, turns_data
from mmprm.tiny.omni_clip import encode_clip
from mmprm.types import AudioRef, Grading, ImageRef, Problem, Verdict, VideoRef
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards
from policy_rl.monitor.alarms import Alarms, MonitorConfig, agreement, alarm_error, hacking_metrics, repeated
from policy_rl.monitor.samples import Sample, SampleLog, chosen, credit_of_steps, sample_of, trained_sample
from policy_rl.types import PlayedTurn, PlayedTurns, Response, Reward, TrainingSample


def graded(
    text: str,
    scores: Sequence[float] | None,
    verdict: Verdict = Verdict.CORRECT,
    tokens: Sequence[int] | None = None,
    taking: bool = True,
) -> GradedResponse:
    """Return a graded response; `tokens` gives the tokens per step, two by default."""
    step_of_token = [step for step, count in enumerate(tokens or [2] * len(scores or ())) for _ in range(count)]
    count = max(1, len(step_of_token))
    accuracy = None if verdict is Verdict.UNKNOWN else float(verdict is Verdict.CORRECT)
    return GradedResponse(
        Response(text, (0,) * count, (0.0,) * count, "stop"),
        Grading(verdict, "4", ""),
        Reward(accuracy if taking else None, {"accuracy": accuracy}),
        None if scores is None else StepRewards(tuple(scores), tuple(step_of_token)),
    )


def png(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (28, 28), color).save(stream, "PNG")
    return stream.getvalue()


def group(*responses: GradedResponse, name: str = "p1") -> GradedGroup:
    return GradedGroup(Problem(name, "how many?\nreally", "4"), 5, 0, responses)


WRONG, UNKNOWN = Verdict.INCORRECT, Verdict.UNKNOWN


class TestHackingMetrics:
    def test_by_hand(self) -> None:
        groups = [
            group(
                graded("a\n\nb\n\nA ", [0.9, 0.4, 0.8], tokens=[2, 6, 1]),
                graded("c\n\nd", [0.5, 0.3], WRONG, tokens=[3, 3]),
            ),
            group(graded("e", [0.6], WRONG, tokens=[7]), graded("f\n\ng", None, WRONG), graded(" ", None, WRONG)),
        ]
        found = hacking_metrics(groups, "blank_lines")
        assert found["steps"] == pytest.approx((3 + 2 + 1 + 2) / 4)
        assert found["step_tokens"] == pytest.approx(22 / 6)
        assert found["longest_step"] == pytest.approx((6 + 3 + 7) / 3)
        assert found["repeated_steps"] == pytest.approx(1 / 8)
        assert found["unsplit"] == pytest.approx(1 / 5)
        assert found["refused"] == pytest.approx(1 / 5)
        # The correct response's lowest score, .4, is above .3 and below .6.
        assert found["prm_auc"] == pytest.approx(0.5)
        unknown = replace(graded("e", [0.35], WRONG), reward=Reward(1.0, {"accuracy": None}))
        assert hacking_metrics([*groups, group(unknown)], "blank_lines")["prm_auc"] == pytest.approx(0.5), (
            "is not incorrect"
        )
        assert found["prm_score"] == pytest.approx(3.5 / 6)
        assert found["prm_lowest"] == pytest.approx((0.4 + 0.3 + 0.6) / 3)
        assert found["prm_step_1"] == pytest.approx((0.9 + 0.5 + 0.6) / 3)
        assert found["prm_step_2"] == pytest.approx((0.4 + 0.3) / 2)
        assert found["prm_step_3"] == pytest.approx(0.8)
        assert math.isnan(found["prm_step_4"])
        assert math.isnan(found["prm_step_later"])

    def test_late_steps_share_a_name(self) -> None:
        text = "\n\n".join("abcdefg")
        found = hacking_metrics([group(graded(text, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8]))], "blank_lines")
        assert found["prm_step_5"] == 0.5
        assert found["prm_step_later"] == pytest.approx(0.7)

    def test_dropped_responses_are_excluded(self) -> None:
        part = graded("a\n\nb", [0.9, 0.7])
        dropped = graded("<step>", None, UNKNOWN, taking=False)
        assert (
            hacking_metrics([group(part, dropped)], "tags")["unsplit"]
            == hacking_metrics([group(part)], "tags")["unsplit"]
        )
        expected = hacking_metrics([group(part)], "blank_lines")
        for name, value in hacking_metrics([group(part, dropped)], "blank_lines").items():
            assert value == pytest.approx(expected[name], nan_ok=True)

    def test_order_changes_nothing(self) -> None:
        first = group(graded("a\n\nb", [0.9, 0.7]), graded("a", [0.2], WRONG))
        second = group(graded("a\n\na", [0.5, 0.6]), name="p2")
        expected = hacking_metrics([first, second], "blank_lines")
        turned = group(*first.responses[::-1])
        for name, value in hacking_metrics([second, turned], "blank_lines").items():
            assert value == pytest.approx(expected[name], nan_ok=True), name

    def test_without_a_prm_steps_are_still_counted(self) -> None:
        found = hacking_metrics([group(graded("a\n\nb", None))], "blank_lines")
        assert found["steps"] == 2
        assert all(math.isnan(value) for name, value in found.items() if name.startswith("prm_"))
        assert math.isnan(found["refused"])

    def test_an_empty_batch(self) -> None:
        assert all(math.isnan(value) for value in hacking_metrics([], "tags").values())

    def test_prefill_counts(self) -> None:
        only = group(graded("a</step>", None))
        assert hacking_metrics([only], "tags")["unsplit"] == 1
        assert hacking_metrics([only], "tags", "<step>")["unsplit"] == 0


def test_agreement() -> None:
    correct = [True, False, True]
    assert agreement([0.9, 0.1, 0.8], correct) == 1.0
    assert agreement([0.1, 0.9, 0.0], correct) == 0.0
    assert agreement([0.5, 0.5, 0.5], correct) == 0.5
    assert math.isnan(agreement([0.5, 0.1], [True, True]))


def test_repeated_steps_ignore_case_and_white_space() -> None:
    assert repeated(["a b", "c", "A  B\n", "c d", "ab"]) == [False, False, True, False, True]


class TestAlarms:
    def alarms(self, patience: int = 2, **bounds: dict) -> Alarms:
        return Alarms(build(MonitorConfig, {"alarms": bounds, "patience": patience}))

    def test_only_consecutive_steps_count(self) -> None:
        alarms = self.alarms(prm_auc={"min": 0.6})
        values = [0.5, 0.7, 0.5, 0.6, 0.5]
        assert [alarms.see({"prm_auc": value}) for value in values] == [None] * 5
        assert alarms.see({"prm_auc": 0.4}) == "prm_auc=0.4 is below min=0.6 (monitor.alarms) for 2 steps"

    def test_both_sides_and_several(self) -> None:
        alarms = self.alarms(1, steps={"min": 2, "max": 10}, unsplit={"max": 0.5})
        assert alarms.see({"steps": 10.0, "unsplit": 0.5}) is None
        found = alarms.see({"steps": math.inf, "unsplit": 0.51})
        assert "steps=inf is above max=10" in found
        assert "unsplit=0.51 is above max=0.5" in found

    def test_nan_neither_counts_nor_clears(self) -> None:
        alarms = self.alarms(prm_auc={"min": 0.6})
        assert [alarms.see({"prm_auc": value}) for value in (0.5, math.nan, math.nan)] == [None] * 3
        assert alarms.see({"prm_auc": 0.5}) is not None

    def test_counts_are_the_state(self) -> None:
        first, second = (self.alarms(prm_auc={"min": 0.6}) for _ in range(2))
        first.see({"prm_auc": 0.5})
        second.counts |= json.loads(json.dumps(first.counts))
        assert second.see({"prm_auc": 0.5}) is not None

    def test_a_metric_that_is_not_measured(self) -> None:
        alarms = self.alarms(prm_acu={"min": 0.6})
        with pytest.raises(ConfigError, match=r"monitor\.alarms\.prm_acu: .* not log this metric; use one of prm_auc"):
            alarms.see({"prm_auc": 0.5})

    def test_the_error_names_metric_value_threshold_and_checkpoint(self) -> None:
        crossed = self.alarms(1, entropy={"min": 0.1}).see({"entropy": 0.01})
        error = alarm_error(7, crossed, Path("run/checkpoints/step-7"))
        assert isinstance(error, TrainingError)
        for part in ("step 7", "entropy=0.01", "min=0.1", "run/checkpoints/step-7", "samples.md"):
            assert part in str(error)
        assert "there is no checkpoint" in str(alarm_error(7, crossed, None))

    @pytest.mark.parametrize("bounds", [{}, {"min": 2, "max": 1}, {"minimum": 1}])
    def test_invalid_bounds_are_rejected(self, bounds: dict) -> None:
        with pytest.raises(ConfigError, match=r"alarms\.steps"):
            self.alarms(steps=bounds)


class TestSamples:
    def test_where_prm_and_outcome_differ_come_first(self) -> None:
        groups = [
            group(graded("a", [0.9]), graded("b", [0.2], WRONG)),
            group(graded("c", [0.8]), graded("x", [0.95], WRONG), graded("y", [0.05])),
            group(graded("d", None, UNKNOWN, taking=False)),
        ]
        picked = [each for _, each in chosen(groups, 4)]
        assert [each.response.text for each in picked] == ["x", "y", "a", "c"]
        assert [each.response.text for _, each in chosen(groups, 1)] == ["x"]
        # With rewards.accuracy_weight=0, a response with an unknown verdict has scores; it contradicts nothing.
        unknown = replace(graded("u", [0.99], UNKNOWN), reward=Reward(0.0, {"accuracy": None}))
        assert [each.response.text for _, each in chosen([*groups, group(unknown)], 1)] == ["x"]
        assert chosen(groups, 0) == []
        assert chosen([], 4) == []

    def test_the_text_of_a_sample(self) -> None:
        only = graded("<step>a\nb</step><answer>4</answer>", [0.9], tokens=[3])
        text = sample_of(3, group(only), only, "tags").markdown()
        assert "## Step 3, problem p1" in text
        assert "> how many?\n> really" in text
        assert "correct · answer '4', gold '4' · reward 1 · accuracy 1 · 3 tokens · ended by stop" in text
        assert "1. **0.90** a b\n2. **not scored** <answer>4</answer>\n" in text

    def test_without_steps_the_text_is_shown_with_the_reason(self) -> None:
        only = graded("<step>a\nb", None, WRONG)
        text = sample_of(3, group(only), only, "tags").markdown()
        assert "No steps: unclosed step.\n\n> <step>a\n> b" in text

    def test_credit_of_a_step_is_the_mean_advantage_of_its_tokens(self) -> None:
        """The second step has no token, and the last token, which is outside all steps, was not trained on."""
        advantages_T, step_of_token = np.array([1.0, 2.0, -4.0, 9.0]), np.array([0, 0, 2, -1])
        assert credit_of_steps(advantages_T, step_of_token, 3) == (1.5, None, -4.0)
        only = graded("a\n\nb", [0.9, 0.4], tokens=[1, 2])
        mask = np.array([True, True, False])
        ids, advantages = only.response.token_ids, np.array([1.0, -2.0, -4.0])
        trained = TrainingSample(Problem("p1", "", "4"), 1, 5, ids, advantages=advantages, mask=mask)
        assert trained_sample([replace(trained, group=0), trained], 1, only) is trained
        assert trained_sample([trained], 0, only) is None
        found = sample_of(3, group(only), only, "blank_lines", "", trained, only.process.step_of_token)
        assert (found.advantage, found.credits, found.group) == (-0.5, (1.0, -3.0), (1, 1))
        assert "advantage -0.5 · 3 tokens" in found.markdown()

    def test_images_of_samples_are_found_after_a_resume(self, tmp_path: Path) -> None:
        """Bytes are written to the run folder once. Files are referenced, by their absolute path."""
        image = png("blue")
        images = (ImageRef(data=image), ImageRef(path="elsewhere.png"), ImageRef(data=b"no image"))
        only = graded("a", [0.9])
        one = GradedGroup(Problem("p1", "how many?", "4", images), 5, 0, (only,))
        log = SampleLog(tmp_path / "run", 0)
        log.write([sample_of(step, one, only, "blank_lines") for step in (1, 2)])
        log.close()
        SampleLog(tmp_path / "run", 1).close()
        (line,) = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
        stored, referenced = json.loads(line)["images"]
        assert (tmp_path / "run" / stored).read_bytes() == image
        assert referenced == str(Path("elsewhere.png").absolute())
        assert len(list((tmp_path / "run" / "images").iterdir())) == 1

    def test_clips_of_samples_are_found_after_a_resume(self, tmp_path: Path) -> None:
        clip = encode_clip(np.zeros((2, 28, 28, 3), np.uint8), np.zeros(16_000, np.float32))
        videos = (VideoRef(data=clip, frames=2), VideoRef(path="elsewhere.mp4"))
        problem = Problem("p1", "which?", "joy", videos=videos, audios=(AudioRef(data=clip), AudioRef(data=b"none")))
        only = graded("a", [0.9])
        log = SampleLog(tmp_path, 0)
        log.write([sample_of(1, GradedGroup(problem, 5, 0, (only,)), only, "blank_lines")])
        log.close()
        SampleLog(tmp_path, 1).close()
        (row,) = read_samples(tmp_path)
        assert row["videos"][1] == [str(Path("elsewhere.mp4").absolute()), 8]
        assert row["videos"][0][0] == row["audios"][0]
        assert len(row["audios"]) == 1
        stored, _, audio = logged_media(row, tmp_path)
        assert len(open_video(stored)) == 2
        assert len(open_audio(audio)) == 16_000

    def test_observations_of_episodes_are_found_after_a_resume(self, tmp_path: Path) -> None:
        image = png("blue")
        turns = (PlayedTurn(("how many?\nreally", ImageRef(data=image)), "a", -0.1), PlayedTurn((), "b", 1.0))
        only = graded("ab", [0.9])
        played = PlayedTurns(turns, [0, 1], (), only.grading)
        only = replace(only, response=replace(only.response, played=played))
        log = SampleLog(tmp_path / "run", 0)
        log.write([sample_of(1, group(only), only, "blank_lines", truths=("lost", "solved"))])
        log.close()
        SampleLog(tmp_path / "run", 1).close()
        (row,) = read_samples(tmp_path / "run")
        assert [step for step, _ in row["steps"]] == ["a", "b"]
        first, second = row["turns"]
        assert second == {"text": "", "images": [], "reward": 1.0, "truth": "solved"}
        assert (first["text"], first["reward"]) == ("how many?\nreally", -0.1)
        assert (tmp_path / "run" / first["images"][0]).read_bytes() == image
        shown = turns_data(row, tmp_path / "run")
        assert (shown[0]["text"], shown[0]["images"][0]["small"], shown[1]["images"]) == ("", True, [])

    def test_files_and_resume(self, tmp_path: Path) -> None:
        only = graded("a\ud800\n\nb", [0.9, 0.4])
        log = SampleLog(tmp_path, 0)
        for step in (1, 2, 3):
            log.write([sample_of(step, group(only), only, "blank_lines")])
        log.close()
        whole = (tmp_path / "samples.jsonl").read_text()
        assert [json.loads(line)["steps"][1] for line in whole.splitlines()] == [["b", 0.4]] * 3
        (tmp_path / "samples.jsonl").write_text(whole + '{"step": 2, "cut o')
        log = SampleLog(tmp_path, 2)
        log.close()
        assert (tmp_path / "samples.jsonl").read_text() == "".join(whole.splitlines(keepends=True)[:2])
        shown = (tmp_path / "samples.md").read_text()
        assert shown.count("## Step 1,") == shown.count("## Step 2,") == 1
        assert "## Step 3," not in shown

    def test_a_run_killed_while_it_resumes_keeps_its_samples(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(sample: Sample) -> str:
            raise KeyboardInterrupt

        only = graded("a", [0.9])
        log = SampleLog(tmp_path, 0)
        log.write([sample_of(1, group(only), only, "blank_lines")])
        log.close()
        before = (tmp_path / "samples.jsonl").read_text(), (tmp_path / "samples.md").read_text()
        monkeypatch.setattr(Sample, "markdown", killed)
        with pytest.raises(KeyboardInterrupt):
            SampleLog(tmp_path, 1)
        assert ((tmp_path / "samples.jsonl").read_text(), (tmp_path / "samples.md").read_text()) == before
