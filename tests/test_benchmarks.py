"""benchmarks/: the arithmetic of the comparisons, and that the small parts run."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    emulators,
    gpu,
    grid,
    layouts,
    live_features,
    plain_ppo,
    plot_curves,
    sample_factory,
    sample_factory_faults,
    side_by_side,
)
from benchmarks.runs import Point, read_metrics, throughput
from sfrl.commands import train as cli
from sfrl.nets.encoders import A3CCNN, NatureCNN

# Of a real run of 2.1.1, with the numbers of frames and the scores of a later stage.
SAMPLE_FACTORY_LOG = """\
[2026-11-21 00:52:33,288][05448] Saving configuration to /tmp/run/config.json...
[2026-11-21 00:52:33,407][05448] Starting all processes...
[2026-11-21 00:52:37,973][05448] Fps is (10 sec: nan, 60 sec: nan, 300 sec: nan). \
Total num frames: 0. Throughput: 0: nan. \
Samples: 0. Policy #0 lag: (min: -1.0, avg: -1.0, max: -1.0)
[2026-11-21 00:53:01,382][05448] Fps is (10 sec: 0.0, 60 sec: 0.0, 300 sec: 0.0). \
Total num frames: 0. Throughput: 0: 0.0. \
Samples: 0. Policy #0 lag: (min: -1.0, avg: -1.0, max: -1.0)
[2026-11-21 00:53:02,397][05459] Signal inference workers to resume experience collection...
[2026-11-21 00:53:06,382][05448] Fps is (10 sec: 1228.9, 60 sec: 432.5, 300 sec: 432.5). \
Total num frames: 12288. Throughput: 0: 156.0. \
Samples: 4432. Policy #0 lag: (min: 1.0, avg: 2.2, max: 5.0)
[2026-11-21 00:53:06,382][05448] Avg episode reward: [(0, '-20.857')]
[2026-11-21 00:53:08,664][05468] Updated weights for policy 0, policy_version 11 (0.0076)
[2026-11-21 00:53:11,382][05448] Fps is (10 sec: 3276.8, 60 sec: 900.0, 300 sec: 900.0). \
Total num frames: 32768. Throughput: 0: 300.1. \
Samples: 9000. Policy #0 lag: (min: 1.0, avg: 2.2, max: 5.0)
[2026-11-21 00:53:11,383][05448] Avg episode reward: [(0, '3.500')]
[2026-11-21 00:53:16,382][05448] Fps is (10 sec: 3276.8, 60 sec: 900.0, 300 sec: 900.0). \
Total num frames: 45056. Throughput: 0: 300.1. \
Samples: 12000. Policy #0 lag: (min: 1.0, avg: 2.2, max: 5.0)
"""


def write_metrics(run_dir: Path, rows: list[tuple[float, int, int, float]]) -> Path:
    """A run's metrics.jsonl of (time_s, env_frames, episodes, episode_return_mean)."""
    names = ("time_s", "env_frames", "episodes", "episode_return_mean")
    run_dir.mkdir(parents=True)
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    return run_dir


def test_sample_factory_log_gives_frames_scores_and_time_since_its_first_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / sample_factory.LOG_NAME
    path.write_text(SAMPLE_FACTORY_LOG)
    points = sample_factory.read_log(path)
    assert [p.frames for p in points] == [0, 0, 12288, 32768, 45056]
    assert [p.score for p in points] == [None, None, -20.857, 3.5, None]
    assert [p.time_s for p in points] == pytest.approx([4.685, 28.094, 33.094, 38.094, 43.094])
    assert throughput(points) == pytest.approx((45056 - 12288) / 10)


def test_sample_factorys_odd_lines_are_told_without_colors_and_the_regular_ones_not() -> None:
    stamp = "[2026-11-21 17:13:23,683][06877] "
    odd = "No heartbeat for components: RolloutWorker_w0 (336 seconds)"
    regular = "Fps is (10 sec: nan, 60 sec: nan, 300 sec: nan). Total num frames: 0."
    for line, is_odd in ((odd, True), (regular, False)):
        plain = sample_factory_faults.STAMP.sub("", f"\x1b[36m{stamp}{line}\x1b[0m")
        assert plain == line
        assert bool(sample_factory_faults.ODD.search(plain)) == is_odd
    points = [Point(10.0, 1000, None), Point(15.0, 3000, None), Point(20.0, 7000, None)]
    assert sample_factory_faults.rate(points) == "600"
    assert sample_factory_faults.rate(points[:1]) == "no"


def test_the_grid_has_every_arrangement_that_makes_up_the_training_batch() -> None:
    config = cli.parse(["--env=CartPole-v1", "--run-dir=x", "--num-workers=1"])  # 2 x 256 decisions
    args = grid.Args(env="CartPole-v1", workers=(1, 2), splits=(1, 2), envs=(4, 8, 16))
    found = {a[:3] for a in grid.grid(args, config)}  # workers, splits, environments
    # Fewer environments than 8 do not fill a batch with the slots they have.
    assert found == {(w, s, n) for w in (1, 2) for s in (1, 2) for n in (4, 8, 16) if w * n >= 8}
    few = dataclasses.replace(args, max_envs=8)
    assert {a[:3] for a in grid.grid(few, config)} == {(w, s, n) for w, s, n in found if w * n <= 8}


def test_every_run_of_the_grid_is_trained_as_the_tuners_choice_is() -> None:
    sizes = ["--env=CartPole-v1", "--run-dir=x", "--num-workers=2", "--torch-threads=2"]
    config = cli.parse(sizes)
    args = grid.Args(env="CartPole-v1", workers=(1, 3), splits=(1, 2), envs=(8, 16))
    for arrangement in [grid.arrangement_of(config), *grid.grid(args, config)]:
        trained = cli.parse(["--run-dir=x", *grid.flags_of(args, config, arrangement)])
        assert grid.arrangement_of(trained) == arrangement
        for name in ("batch_size", "minibatches", "epochs", "torch_threads", "precision"):
            assert getattr(trained, name) == getattr(config, name), name


def test_sample_factory_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_factory, "ready_python", lambda: Path(sys.executable))
    with pytest.raises(RuntimeError, match=r"failed:\n.*No module named 'sf_examples'"):
        sample_factory.train("Pong", [], seconds=60, run_dir=tmp_path / "run")


def test_building_sample_factory_deletes_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEER_VENV", str(tmp_path))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no virtual environment"):
        sample_factory.ready_python()
    assert (tmp_path / "thesis.tex").exists()


def test_sample_factory_settings_are_per_core() -> None:
    flags = sample_factory.setting_flags("32x256", cores=4)
    assert {"--num_workers=4", "--num_envs_per_worker=32", "--batch_size=1024"} <= set(flags)
    assert sample_factory.setting_flags("atari-defaults", cores=4) == []


def test_throughput_leaves_out_the_time_before_the_first_frames() -> None:
    points = [Point(5, 0, None), Point(10, 100, None), Point(12, 900, None), Point(14, 2100, None)]
    assert throughput(points) == 500


def test_throughput_of_too_few_reports_is_refused() -> None:
    points = [Point(5, 0, None), Point(10, 100, None), Point(12, 900, None)]
    with pytest.raises(ValueError, match="2 reports with frames are too few"):
        throughput(points)


def test_score_needs_100_episodes(tmp_path: Path) -> None:
    run_dir = write_metrics(tmp_path / "run", [(60, 1000, 99, 21.0), (120, 2000, 100, 20.0)])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"time_s": 12')  # the run was killed here
    points = read_metrics(run_dir / "metrics.jsonl")
    assert points == [Point(60, 1000, None), Point(120, 2000, 20.0)]
    assert plot_curves.first_reaching(points, 18) == Point(120, 2000, 20.0)


def test_curves_are_drawn_and_the_table_tells_when_the_score_was_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = write_metrics(
        tmp_path / "seed1",
        [(60, 500_000, 50, 19.0), (120, 1_000_000, 100, 17.9), (180, 1_500_000, 200, 18.5)],
    )
    rising = write_metrics(
        tmp_path / "seed2",
        [(60, 500_000, 100, -20.0), (120, 1_000_000, 200, 0.0), (180, 1_500_000, 300, 10.0)],
    )
    flat = tmp_path / "peer"
    flat.mkdir()
    (flat / sample_factory.LOG_NAME).write_text(SAMPLE_FACTORY_LOG)
    out = tmp_path / "curves.png"

    curves = (f"ours={reached},{rising}", f"peer={flat}")
    kept = tmp_path / "kept"
    plot_curves.main(plot_curves.Args(curves=curves, out=out, score=18, keep=str(kept)))
    assert plot_curves.read_run(kept / "seed1") == plot_curves.read_run(reached)

    _, row1, row2, row3 = capsys.readouterr().out.splitlines()
    assert row1.split() == ["ours", "seed1", "3.0", "1.50", "M"]
    # The second half of seed2 rises 10 a minute and per 0.5 M frames; 18 is 8 above its end.
    assert row2.split()[:5] == ["ours", "seed2", "~3.8", "~1.90", "M"]
    assert "not reached in 3.0 min, best 10.0; extrapolated" in row2
    assert "not reached in 0.7 min, best 3.5" in row3
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_long_curve_is_kept_in_a_hundred_points_and_its_last(tmp_path: Path) -> None:
    points = [Point(float(i), 10 * i, None if i < 300 else 0.0) for i in range(1000)]
    plot_curves.keep(points, tmp_path)
    kept = plot_curves.read_run(tmp_path)
    assert kept == [*points[::10], points[-1]]


def test_falling_curve_is_not_extrapolated() -> None:
    points = [Point(60.0 * i, 1000 * i, -float(i)) for i in range(1, 9)]
    assert plot_curves.extrapolate(points, 18) is None


def test_the_runs_of_a_curve_can_be_a_pattern(tmp_path: Path) -> None:
    runs = [write_metrics(tmp_path / f"pong-{i}", [(60, 1000, 100, i)]) for i in (2, 1, 10)]
    [curve] = plot_curves.read_curves([f"ours={tmp_path}/pong-?,{runs[2]}"]).values()
    assert [*curve] == [runs[1], runs[0], runs[2]]
    with pytest.raises(ValueError, match=r"pong-3\* holds none"):
        plot_curves.read_curves([f"ours={tmp_path}/pong-3*"])


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds none of metrics\.jsonl, sf_log\.txt"):
        plot_curves.read_curves([f"ours={tmp_path}"])
    with pytest.raises(ValueError, match=r"must be NAME=RUN_DIR"):
        plot_curves.read_curves(["runs/pong"])
    (tmp_path / "young").mkdir()
    (tmp_path / "young/metrics.jsonl").touch()
    with pytest.raises(ValueError, match="young has no record yet; leave it out"):
        plot_curves.read_curves([f"ours={tmp_path}/young"])


def test_two_curves_of_one_name_are_not_kept_over_each_other(tmp_path: Path) -> None:
    for name in "ab":
        write_metrics(tmp_path / name / "1", [(60, 1000, 100, 2.0)])
    curves, keep = tuple(f"{n}={tmp_path}/{n}/1" for n in "ab"), str(tmp_path / "kept")
    with pytest.raises(ValueError, match="has room for one run named 1"):
        plot_curves.main(plot_curves.Args(curves=curves, out=tmp_path / "x.png", keep=keep))
    assert not (tmp_path / "kept").exists()


def test_advantages_do_not_cross_the_end_of_an_episode() -> None:
    rewards = torch.tensor([[1.0], [2.0], [0.0], [4.0]])
    values = torch.tensor([[0.5], [0.25], [9.0], [0.5], [1.0]])
    ended = torch.tensor([[False], [False], [True], [False], [False]])  # row 2 only resets
    gamma, trace = plain_ppo.GAMMA, plain_ppo.GAMMA * plain_ppo.GAE_LAMBDA
    last = 4 + gamma * 1 - 0.5
    before_end = 2 - 0.25
    first = 1 + gamma * 0.25 - 0.5 + trace * before_end
    advantages = plain_ppo.estimate_advantages(rewards, values, ended)[:, 0]
    np.testing.assert_allclose(advantages[[0, 1, 3]], [first, before_end, last], rtol=1e-6)


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Several threads wait for each other by spinning, for ever on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_torch_thread")
def test_plain_ppo_trains_and_does_not_count_rows_that_only_reset() -> None:
    # Random play in Breakout loses all lives within 400 decisions, and not in 100.
    settings = plain_ppo.Settings(
        env="Breakout", num_envs=1, num_steps=400, epochs=1, minibatches=2
    )
    first, second = itertools.islice(plain_ppo.train(settings), 2)
    assert 0 < first.time_s < second.time_s
    for decisions in (first.frames / 4, (second.frames - first.frames) / 4):
        assert 396 <= decisions < 400


def test_plain_ppo_says_what_to_do_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(SystemExit, match="pip install envpool"):
        plain_ppo.start_envs(plain_ppo.Settings(envs="envpool"))


def test_side_by_side_alternates_and_reports_the_ratio_of_each_pair(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tape = []
    ours, peers = iter([900.0, 1000.0, 1600.0]), iter([300.0, 250.0, 400.0])

    def measure_ours(args: side_by_side.Args) -> float:
        tape.append("ours")
        return next(ours)

    def measure_peer(args: side_by_side.Args, peer: str) -> float:
        tape.append(peer)
        return next(peers)

    monkeypatch.setattr(side_by_side, "measure_ours", measure_ours)
    monkeypatch.setattr(side_by_side, "measure_peer", measure_peer)
    side_by_side.main(side_by_side.Args(peer="plain-ppo", pairs=3))

    assert tape == ["ours", "plain-ppo"] * 3
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["frames_per_s"] == [[900, 300], [1000, 250], [1600, 400]]
    assert result["ratios"] == [3, 4, 4]
    assert result["median_ratio"] == 4
    assert {"cpu", "cores", "commit", "ours", "peer", "seconds"} <= result.keys()


def test_find_best_takes_the_fastest_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"sample-factory:16x128": 3.0, "sample-factory:32x512": 2.0}
    monkeypatch.setattr(side_by_side, "measure_peer", lambda args, peer: rates.get(peer, 1.0))
    assert side_by_side.best_setting(side_by_side.Args()) == "sample-factory:16x128"


def test_unknown_peer_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="peer='sample-factory:1x1' is unknown; choose one of"):
        side_by_side.main(side_by_side.Args(peer="sample-factory:1x1"))


@pytest.mark.slow
def test_side_by_side_measures_both_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    # On busy cores, threads that wait for each other take seconds.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = side_by_side.Args(
        ours="--tune=off --report-seconds=0.5 --train-frames=16000 --epochs=1",  # ends by frames
        peer="plain-ppo",
        peer_flags="--num-envs=2 --num-steps=16 --epochs=1 --seconds=7",
        seconds=120,
    )
    assert side_by_side.measure_ours(args) > 0
    assert side_by_side.measure_peer(args, args.peer) > 0


# --- small measurements ---


def test_emulators_are_stepped_in_turn_and_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    emulators.main(emulators.Args(game="Breakout", envs=2, steps=2, windows=1))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"sfrl", "ale_py.AtariVectorEnv"} <= result["us_per_decision"].keys()
    assert all(us > 10 for us in result["us_per_decision"].values())


def test_features_that_are_0_on_all_observations_are_not_alive() -> None:
    torch.manual_seed(0)
    encoder = NatureCNN((4, 84, 84))
    encoder.center_weights()  # else some features see nothing in noise
    obs = torch.randint(0, 256, (20, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        for layer, dead in ((encoder.conv1, 1), (encoder.conv3, 5), (encoder.linear, 20)):
            layer.bias[:dead] = -1000.0
    alive = live_features.live_features(encoder, obs)
    assert alive["conv1"] == (31, 32)
    assert alive["conv2"] == (64, 64)
    assert alive["conv3"] == (59, 64)
    assert alive["linear"] == (492, 512)
    assert list(live_features.live_features(A3CCNN((4, 84, 84)), obs)) == [
        "conv1",
        "conv2",
        "linear",
    ]


@pytest.mark.parametrize("layout", ["threads", "turns"])  # measure_run has tests of its own
def test_both_networks_work_in_one_process(layout: str) -> None:
    flags = "--env=CartPole-v1 --num-workers=1 --envs-per-worker=8 --batch-size=128"
    assert layouts.frames_per_s(layouts.read_config(flags), layout, 0.5, 1) > 100


def test_layouts_have_one_policy_worker() -> None:
    with pytest.raises(ValueError, match="num_policy_workers=2 must be 1"):
        layouts.read_config("--env=CartPole-v1 --num-policy-workers=2 --num-splits=2")


def test_gpu_comparison_tells_the_networks_cores_and_the_hosts_time_of_a_batch() -> None:
    core_us = {"rollout/env_step": 300.0, "policy/forward": 6.0, "policy/scatter": 1.0}
    core_us |= {"learner/train": 3.0, "trainer": 5.0, "idle": 60.0}
    parts = {"training": core_us, "sampling": {"policy/forward": 99.0}}
    result = {"components": {"core_us": parts}, "training": {"decisions_per_s": 40_000.0}}
    assert gpu.network_cores(result) == pytest.approx(0.4)
    cases = [(16, 90.0, 80.0), (240, 200.0, 120.0), (240, 400.0, 110.0), (480, 300.0, 150.0)]
    names = ("batch_size", "batch_us", "host_us")
    alone = [dict(zip(names, case, strict=True)) for case in cases]
    result = {"components": {"inference_alone": alone}}
    assert gpu.inference_host_us(result) == (240, 120.0), "of the faster precision"


@pytest.mark.slow
def test_gpu_comparison_runs_until_the_score_or_the_end_of_its_time() -> None:
    args = gpu.Args(flags="--env=CartPole-v1", score=20.0)
    minutes, best = gpu.minutes_to_score(args, ["--tune=off"], seconds=60)
    assert minutes is not None
    assert best is not None
    assert 0 < minutes < 1
    assert best >= 20
    never = dataclasses.replace(args, score=501.0)
    minutes, best = gpu.minutes_to_score(never, ["--tune=off"], seconds=8)
    assert minutes is None
    assert best is None or best < 501


def test_gpu_comparison_goes_on_with_the_settings_that_were_found() -> None:
    sizes = ["--num-workers=3", "--batch-size=256", "--minibatches=2", "--torch-threads=2"]
    config = cli.parse(["--env=Pong", "--tune=off", "--run-dir=x", *sizes])
    flags = gpu.settings_found({"machine": {"settings": dataclasses.asdict(config)}})
    again = cli.parse(["--env=Pong", *flags, "--run-dir=x"])
    assert again == config
    one_epoch = cli.parse(["--env=Pong", *flags, *gpu.ONE_EPOCH, "--run-dir=x"])
    assert (one_epoch.loss, one_epoch.epochs, one_epoch.model) == ("vtrace", 1, "nature_cnn")
