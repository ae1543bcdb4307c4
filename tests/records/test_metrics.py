import json
import math
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from sfrl.envs.gymnasium_envs import MAX_INFO
from sfrl.records.metrics import (
    EPISODE_WINDOW,
    LEARNER_COUNTERS,
    LEARNER_MAXIMA,
    LEARNER_MEANS,
    Record,
    RunMetrics,
    metrics_problem,
)
from sfrl.records.metrics_writer import MetricsWriter
from sfrl.records.timing import COMPONENT_STAGES
from sfrl.settings.algorithms import ALGORITHMS, make_config

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Clock:
    """Stands still until it is set."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def stage_totals(seconds=1.0, processes=2):
    return {
        component: np.full((processes, len(stages)), seconds)
        for component, stages in COMPONENT_STAGES.items()
    }


def make_record(metrics: RunMetrics, env_frames: int = 400) -> Record:
    return metrics.record(
        env_frames=env_frames, env_steps=env_frames // 4, stage_totals=stage_totals()
    )


def read_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# --- the record ---


def test_rate_is_of_the_interval_and_average_is_of_the_run(clock):
    metrics = RunMetrics(clock)
    clock.now += 10
    assert make_record(metrics, 1000)["frames_per_s"] == pytest.approx(100)
    clock.now += 10
    record = make_record(metrics, 4000)
    assert record["time_s"] == 20
    assert record["frames_per_s"] == pytest.approx(300)
    assert record["frames_per_s_average"] == pytest.approx(200)


def test_a_record_at_once_after_another_has_no_rate(clock):
    metrics = RunMetrics(clock)
    assert make_record(metrics)["frames_per_s"] is None


def test_score_is_null_until_the_first_episode_ends(clock):
    metrics = RunMetrics(clock)
    assert make_record(metrics)["episode_return_mean"] is None
    metrics.add_episode(-21.0, 800)
    metrics.add_episode(np.float32(-19.0), np.int64(1000))
    record = make_record(metrics)
    assert record["episodes"] == 2
    assert record["episode_return_mean"] == -20
    assert (record["episode_return_min"], record["episode_return_max"]) == (-21, -19)
    assert record["episode_length_mean"] == 900


def test_score_is_of_the_last_100_episodes(clock):
    metrics = RunMetrics(clock)
    for episode in range(150):
        metrics.add_episode(episode, 1)
    record = make_record(metrics)
    assert record["episodes"] == 150
    assert record["episode_return_mean"] == np.mean(range(50, 150))


def test_best_score_waits_for_a_full_window_and_never_falls(clock):
    metrics = RunMetrics(clock)
    for _ in range(EPISODE_WINDOW - 1):
        metrics.add_episode(5.0, 1)
    assert make_record(metrics)["best_episode_return_mean"] is None
    metrics.add_episode(5.0, 1)
    metrics.add_episode(-100.0, 1)
    record = make_record(metrics)
    assert record["episode_return_mean"] < 5
    assert record["best_episode_return_mean"] == 5


def test_learner_means_are_averaged_and_maxima_maximized_over_the_interval(clock):
    metrics = RunMetrics(clock)
    metrics.add_learner_stats({"entropy": 1.0, "policy_lag_mean": 2.0, "policy_lag_max": 9.0})
    metrics.add_learner_stats({"entropy": 2.0, "policy_lag_mean": 4.0, "policy_lag_max": 3.0})
    record = make_record(metrics)
    assert (record["entropy"], record["policy_lag_mean"], record["policy_lag_max"]) == (1.5, 3, 9)
    assert make_record(metrics)["entropy"] is None  # nothing was reported since


def test_counters_keep_their_latest_value(clock):
    metrics = RunMetrics(clock)
    metrics.add_learner_stats({"learner_steps": 10, "skipped_steps": 0, "dropped_rows": 3})
    metrics.add_learner_stats({"learner_steps": 20, "skipped_steps": 1, "dropped_rows": 5})
    for _ in range(2):
        record = make_record(metrics)
        assert [record[name] for name in LEARNER_COUNTERS] == [20, 5, 1]


def test_a_skipped_step_does_not_hide_the_finite_losses(clock):
    metrics = RunMetrics(clock)
    metrics.add_learner_stats({"value_loss": 0.5, "grad_norm": float("inf")})
    metrics.add_learner_stats({"value_loss": float("nan")})
    record = make_record(metrics)
    assert record["value_loss"] == 0.5
    assert record["grad_norm"] is None


def test_an_unknown_learner_statistic_is_refused():
    with pytest.raises(KeyError, match=r"entropie.*docs/metrics\.md"):
        RunMetrics().add_learner_stats({"entropie": 1.0})


def test_stage_shares_are_of_the_interval(clock):
    metrics = RunMetrics(clock)
    totals = stage_totals(seconds=7.0)
    metrics.record(env_frames=0, env_steps=0, stage_totals=totals)
    # The same arrays go on growing, as the workers' do in shared memory.
    totals["rollout"][0] += [1.0, 0.0, 2.0, 1.0]
    totals["rollout"][1] += [3.0, 0.0, 1.0, 0.0]
    record = metrics.record(env_frames=0, env_steps=0, stage_totals=totals)
    assert record["rollout/wait_actions"] == 0.5
    assert record["rollout/env_step"] == 0.375
    assert record["rollout/store"] == 0.125
    assert record["rollout/working"] == record["rollout/waiting"] == 0.5
    assert record["learner/train"] is None  # no lap of the learner's ended


# --- the documentation ---


def logged_names() -> set[str]:
    names = set()
    for algorithm in ALGORITHMS.values():
        own = set(make_record(RunMetrics(statistics=algorithm.STATISTICS)))
        assert own.issuperset(algorithm.STATISTICS + LEARNER_MEANS + LEARNER_MAXIMA)
        names |= own
    assert names.issuperset(LEARNER_COUNTERS)
    return names


def documented_names() -> set[str]:
    """The names that items of its lists begin with."""
    return set(re.findall(r"^- `([^`]+)`", DOCS.read_text(), flags=re.MULTILINE))


def test_every_logged_name_is_explained():
    assert logged_names() - documented_names() == set()


def test_every_explained_name_is_logged():
    only_in_tensorboard = {"run/policy_lag"}
    of_environments = {"info/<name>"}
    assert documented_names() - logged_names() == only_in_tensorboard | of_environments


# --- the files ---


def test_a_line_is_plain_json_on_disk_as_soon_as_it_is_written(tmp_path, clock):
    metrics = RunMetrics(clock)
    clock.now += 1
    with MetricsWriter(tmp_path) as writer:
        record = make_record(metrics)
        writer.write(record)
        assert read_lines(tmp_path) == [record]


def test_nan_and_infinity_become_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write({"env_frames": 4, "entropy": float("nan"), "grad_norm": float("inf")})
    assert read_lines(tmp_path) == [{"env_frames": 4, "entropy": None, "grad_norm": None}]


def test_tensorboard_has_the_scalars_over_frames_and_the_lag_histogram(tmp_path, clock):
    metrics = RunMetrics(clock)
    metrics.add_episode(-21.0, 800)
    with MetricsWriter(tmp_path) as writer:
        writer.write(make_record(metrics, 4000), policy_lag_counts=[0, 3, 0, 5])
        writer.write(make_record(metrics, 8000), policy_lag_counts=[0, 0])
    events = EventAccumulator(str(tmp_path)).Reload()
    scores = events.Scalars("run/episode_return_mean")
    assert [(event.step, event.value) for event in scores] == [(4000, -21), (8000, -21)]
    assert events.Scalars("rollout/env_step")[0].value == pytest.approx(0.25)
    (lag,) = events.Histograms("run/policy_lag")
    histogram = lag.histogram_value
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (1, 3, 8, 18)
    assert histogram.bucket == [0, 3, 0, 5]


def compared(folder):
    """What TensorBoard's HParams page shows of each run: settings, and the last values."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    everything = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=range(4)
    )
    page = Context(TBContext(data_provider=provider))
    groups = list_session_groups.Handler(RequestContext(), page, "", everything).run()
    return {
        Path(group.sessions[0].name).name: (
            {name: getattr(v, v.WhichOneof("kind")) for name, v in group.hparams.items()},
            {metric.name.tag: metric.value for metric in group.metric_values},
        )
        for group in groups.session_groups
    }


def test_tensorboard_compares_runs_by_their_settings_and_scores(tmp_path):
    for name, seed in (("first", 1), ("second", 2)):
        config = make_config({"seed": seed, "run_dir": name, "env": "a\udc80", "gamma": 0.5})
        with MetricsWriter(tmp_path / name, settings=config.hyperparameters()) as writer:
            writer.write({"env_frames": 100, "episode_return_mean": 10.0 * seed})
    with MetricsWriter(tmp_path / "first", resume_frames=100, settings={"seed": 9}) as writer:
        writer.write({"env_frames": 200, "episode_return_mean": 20.0})
        os.truncate(max((tmp_path / "first").glob("events.*")), 10)  # then there is a third
        writer.write({"env_frames": 300, "episode_return_mean": 30.0})
    told = compared(tmp_path)
    settings, values = told["first"]
    assert (settings["gamma"], settings["serial"], settings["system"]) == (0.5, False, "appo")
    assert settings["env"] == "a?"
    assert "run_dir" not in settings
    assert values["run/episode_return_mean"] == 30
    assert told["second"][0] == settings | {"seed": 2}
    assert told["second"][1]["run/episode_return_mean"] == 20


def test_resume_continues_score_time_and_counters(clock):
    before = RunMetrics(clock)
    for episode in range(120):
        before.add_episode(episode, 10)
    before.add_learner_stats({"learner_steps": 30, "dropped_rows": 2, "skipped_steps": 1})
    clock.now += 50
    state = json.loads(json.dumps(before.state()))  # plain types only

    later = Clock(5000.0)
    after = RunMetrics(later)
    after.load_state(state, env_frames=10_000)
    later.now += 10
    after.add_episode(120, 10)
    record = make_record(after, 12_000)
    assert record["time_s"] == 60
    assert record["frames_per_s"] == pytest.approx(200)
    assert record["frames_per_s_average"] == pytest.approx(200)
    assert record["episodes"] == 121
    assert record["episode_return_mean"] == np.mean(range(21, 121))
    assert [record[name] for name in LEARNER_COUNTERS] == [30, 2, 1]


def test_resume_continues_both_curves_at_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for frames in (100, 200, 300):
            writer.write({"env_frames": frames, "entropy": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"env_frames": 4')  # killed while writing

    with MetricsWriter(tmp_path, resume_frames=200) as writer:
        writer.write({"env_frames": 250, "entropy": 2.0})

    expected = [(100, 1.0), (200, 1.0), (250, 2.0)]
    assert [(line["env_frames"], line["entropy"]) for line in read_lines(tmp_path)] == expected
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("run/entropy")] == expected


def test_without_a_checkpoint_only_a_torn_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"env_frames": 900}\n{"env_fra')
    with MetricsWriter(tmp_path) as writer:
        writer.write({"env_frames": 4})
    assert read_lines(tmp_path) == [{"env_frames": 900}, {"env_frames": 4}]


@pytest.mark.parametrize("kept", ["nothing", "a line", "a line and a half"])
def test_lines_that_others_cut_off_are_gone_and_the_next_are_whole(tmp_path, kept):
    """As `> metrics.jsonl` does, and logrotate's copytruncate."""
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path) as writer:
        for frames in (100, 200):
            writer.write({"env_frames": frames})
        size = {"nothing": 0, "a line": 0.5, "a line and a half": 0.75}[kept]
        os.truncate(path, int(path.stat().st_size * size))
        for frames in (300, 400):
            writer.write({"env_frames": frames})
    expected = [300, 400] if kept == "nothing" else [100, 300, 400]
    assert [line["env_frames"] for line in read_lines(tmp_path)] == expected
    assert b"\0" not in path.read_bytes()


def test_events_that_others_cut_off_go_on_in_a_new_file(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write({"env_frames": 100, "entropy": 1.0})
        (path,) = tmp_path.glob("events.*")
        os.truncate(path, path.stat().st_size - 5)
        for frames in (200, 300):
            writer.write({"env_frames": frames, "entropy": 2.0})
    assert len(list(tmp_path.glob("events.*"))) == 2
    path.unlink()  # what TensorBoard makes of it is its own affair
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("run/entropy")] == [200, 300]


def test_files_that_others_delete_come_back_with_what_they_held(tmp_path):
    run_dir = tmp_path / "run"
    with MetricsWriter(run_dir) as writer:
        writer.write({"env_frames": 100, "entropy": 1.0})
        for path in run_dir.iterdir():
            path.unlink()
        run_dir.rmdir()
        with pytest.raises(FileNotFoundError):
            writer.write({"env_frames": 200, "entropy": 2.0})
        run_dir.mkdir()
        writer.write({"env_frames": 300, "entropy": 3.0})
    assert [line["env_frames"] for line in read_lines(run_dir)] == [100, 200, 300]
    events = EventAccumulator(str(run_dir)).Reload()
    assert [event.step for event in events.Scalars("run/entropy")] == [100, 200, 300]


def test_lines_that_others_move_away_stay_there_and_what_they_add_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path) as writer:
        writer.write({"env_frames": 100})
        path.rename(tmp_path / "moved")
        writer.write({"env_frames": 200})
        with path.open("a") as file:
            file.write('{"env_frames": 250}\n')
        writer.write({"env_frames": 300})
    assert [line["env_frames"] for line in read_lines(tmp_path)] == [200, 250, 300]
    assert json.loads((tmp_path / "moved").read_text()) == {"env_frames": 100}


def test_the_lines_of_a_month_are_cut_without_being_held_or_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rest = json.dumps(dict.fromkeys(map(str, range(300)), 0.123456))
    with path.open("w") as file:
        for frames in range(3_000):
            file.write(f'{{"env_frames": {frames}, "rest": {rest}}}\n')
    before = path.stat()
    assert before.st_size > 12 << 20
    tracemalloc.start()
    MetricsWriter(tmp_path, resume_frames=2_990).close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20
    assert path.stat().st_ino == before.st_ino
    assert read_lines(tmp_path)[-1]["env_frames"] == 2_990


def test_numbers_of_episodes_have_means_of_their_own_and_stay_few(caplog):
    metrics = RunMetrics(start_s=0.0)
    for i in range(2 * EPISODE_WINDOW):
        info = {"is_success": float(i >= 1.5 * EPISODE_WINDOW), f"changing{i}": 1.0}
        metrics.add_episode(0.0, 1, info if i % 2 else {})
    record = metrics.record(env_frames=1, env_steps=1, stage_totals={})
    infos = {name: value for name, value in record.items() if name.startswith("info/")}
    assert len(infos) == MAX_INFO
    assert infos["info/is_success"] == 0.25
    (warning,) = caplog.messages
    assert warning.endswith(f"left out: changing{2 * MAX_INFO - 1}")
    state = metrics.state()
    assert metrics_problem(state) is None
    resumed = RunMetrics(start_s=0.0)
    resumed.load_state(state, env_frames=1)
    assert resumed.state()["episode_info"] == state["episode_info"]
    del state["episode_info"]  # as of older checkpoints
    assert metrics_problem(state) is None
    resumed.load_state(state, env_frames=1)
    for wrong in ([], {"\x1b": [1.0]}, {"a": [math.nan]}, {"a": [1.0] * 101}, {"a": 1.0}):
        assert metrics_problem({**state, "episode_info": wrong})
    many = {f"n{i}": [1.0] for i in range(MAX_INFO + 1)}
    assert metrics_problem({**state, "episode_info": many})
