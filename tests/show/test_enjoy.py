"""enjoy.py as users call it, and the player and the screens that it is made of."""

import dataclasses
import gc
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from itertools import islice

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.commands import EXIT_FAILURE
from sfrl.commands.enjoy import _summary
from sfrl.records import checkpoint
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.n_step_q import NStepQConfig
from sfrl.settings.sac import SACConfig
from sfrl.show.evaluation import evaluate, mean_interval
from sfrl.show.player import Player, Video, VideoError, Window, make_env, real_fps
from sfrl.workers.rollout_worker import Split
from tests.runs import ROOT, TIMEOUT_S, TINY, interrupt, run_training

EXIT_USAGE = 2
PONG = ActorCriticConfig(env="Pong", model="nature_cnn")
CARTPOLE = ActorCriticConfig(env="CartPole-v1", model="mlp", frameskip=1)


def start_enjoy(cwd, *flags, **environment):
    """`enjoy.py` with these flags, and no display except for what `environment` says."""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "enjoy.py"), *flags],
        cwd=cwd,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def enjoy(cwd, *flags, **environment):
    """`enjoy.py` from start to end: the JSON object that it prints last."""
    process = start_enjoy(cwd, *flags, **environment)
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1])


def refusal(cwd, *flags, **environment):
    """What `enjoy.py` says when it refuses these flags."""
    process = start_enjoy(cwd, *flags, **environment)
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == EXIT_USAGE, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    return stderr


def fresh_weights(config, seed=0):
    torch.manual_seed(seed)
    spec = envs.describe(config.env, config.env_options)
    return make_algorithm(config, spec).make_model().state_dict()


def save_checkpoint(run_dir, config, weights):
    state = {
        "model": weights,
        "optimizer": {},
        "counters": {},
        "config": dataclasses.asdict(config),
        "rng": {},
    }
    return checkpoint.save(run_dir, state, env_frames=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in enjoy.py; on busy cores, threads that wait for each other take seconds."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `runs/cartpole`, a run of train.py."""
    folder = tmp_path_factory.mktemp("trained")
    ended = run_training(folder / "runs/cartpole", *TINY, "--train-frames=3000")
    assert ended.code == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def pong(tmp_path_factory):
    """A checkpoint of an agent that plays Pong badly."""
    return save_checkpoint(tmp_path_factory.mktemp("pong"), PONG, fresh_weights(PONG))


@contextmanager
def opened(path):
    """A reader of a video's pictures."""
    with warnings.catch_warnings():
        # imageio leaves the pipes from its ffmpeg to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with imageio.get_reader(path) as reader:
            yield reader


def play(player, index, max_steps=0):
    return list(player.episode(index, max_steps))


# --- the program ---
def test_the_newest_run_is_played_and_the_last_line_is_a_summary(trained):
    summary = enjoy(trained, "--episodes=3")
    assert summary.keys() == {
        "episodes",
        "episode_return_mean",
        "episode_return_interval",
        "episode_return_std",
        "episode_returns",
        "episode_length_mean",
        "episode_lengths",
        "video",
    }
    returns = summary["episode_returns"]
    assert summary["episodes"] == len(returns) == 3
    assert summary["episode_return_mean"] == pytest.approx(np.mean(returns))
    assert summary["episode_return_std"] == pytest.approx(np.std(returns))
    low, high = summary["episode_return_interval"]
    assert min(returns) <= low <= summary["episode_return_mean"] <= high <= max(returns)
    assert summary["episode_lengths"] == returns, "CartPole pays 1 for each decision"
    assert summary["episode_length_mean"] == pytest.approx(np.mean(returns))
    assert min(returns) >= 8  # what CartPole's poorest episodes have
    assert summary["video"] is None


def test_the_summary_of_no_episode_has_no_numbers():
    assert _summary([]) == {
        "episodes": 0,
        "episode_return_mean": None,
        "episode_return_interval": None,
        "episode_return_std": None,
        "episode_returns": [],
        "episode_length_mean": None,
        "episode_lengths": [],
    }


def test_who_reads_no_further_ends_it_and_is_told(trained):
    line = [sys.executable, "-m", "sfrl", "enjoy", "--episodes=5000"]  # more than a pipe holds
    with subprocess.Popen(
        line, cwd=trained, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("episode 1: ")
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == EXIT_FAILURE
    assert told.splitlines()[-1] == "sfrl enjoy: the scores cannot be printed: Broken pipe"
    assert "Traceback" not in told


def test_the_same_seed_gives_the_same_returns_however_flags_are_spelled(trained):
    flags = ("--episodes=4", "--seed=5", "--deterministic")
    first = enjoy(trained, "--run-dir=runs/cartpole", "--max-steps=200", *flags)
    second = enjoy(trained, "--run_dir=runs/cartpole", "--max_steps=200", *flags)
    assert first == second


def test_a_tilde_is_the_home_folder_as_in_train_py(trained, tmp_path):
    [path, *_] = (trained / "runs/cartpole/checkpoints").glob("latest-*.pt")
    flags = [f"--checkpoint=~/runs/cartpole/checkpoints/{path.name}", "--video=~/film.gif"]
    summary = enjoy(tmp_path, *flags, "--episodes=1", "--max-steps=3", HOME=str(trained))
    assert summary["video"] == f"{trained}/film.gif"
    assert not list(tmp_path.iterdir())
    message = refusal(tmp_path, "--run-dir=~/x", HOME="")
    assert "run_dir=~/x begins with ~, and there is no such home folder" in message


def test_deterministic_takes_the_likeliest_action_where_other_play_samples(tmp_path):
    weights = fresh_weights(CARTPOLE)
    weights["policy_head.weight"].zero_()
    weights["policy_head.bias"].copy_(torch.tensor([0.0, 0.1]))  # a little more often right
    path = save_checkpoint(tmp_path, CARTPOLE, weights)
    always_right = enjoy(tmp_path, f"--checkpoint={path}", "--episodes=5", "--deterministic")
    assert max(always_right["episode_returns"]) <= 11  # the cart runs away from under the pole
    sampled = enjoy(tmp_path, f"--checkpoint={path}", "--episodes=5")
    assert max(sampled["episode_returns"]) > 11


def test_a_video_shows_every_picture_of_the_game_at_full_size(tmp_path, pong):
    summary = enjoy(
        tmp_path, f"--checkpoint={pong}", "--episodes=2", "--max-steps=40", "--video=pong.mp4"
    )
    assert summary["video"] == "pong.mp4"
    with opened(tmp_path / "pong.mp4") as reader:
        metadata = reader.get_meta_data()
        pictures = np.stack(list(reader.iter_data()))
    assert metadata["codec"] == "h264"
    assert metadata["pix_fmt"].startswith("yuv420p")
    assert metadata["fps"] == 15  # 60 frames a second, a decision every fourth
    player = Player(PONG, fresh_weights(PONG), seed=0, render=True)
    expected = np.stack([m.picture for i in range(2) for m in play(player, i, max_steps=40)])
    assert pictures.shape == expected.shape == (82, 210, 160, 3)
    assert np.abs(pictures.astype(int) - expected).mean() < 3  # the codec's loss


def test_a_gif_holds_the_exact_colours_of_every_picture(tmp_path, pong):
    enjoy(tmp_path, f"--checkpoint={pong}", "--episodes=1", "--max-steps=40", "--video=pong.gif")
    with opened(tmp_path / "pong.gif") as reader:
        pictures = np.stack(list(reader.iter_data()))
        assert reader.get_meta_data()["duration"] == pytest.approx(1000 / 15, abs=10)
    player = Player(PONG, fresh_weights(PONG), seed=0, render=True)
    expected = np.stack([moment.picture for moment in play(player, 0, max_steps=40)])
    np.testing.assert_array_equal(pictures[..., :3], expected)


def test_ctrl_c_closes_the_video_and_sums_up_what_was_played(trained):
    process = start_enjoy(trained, "--episodes=1000000", "--video=cut.mp4")
    try:
        for _ in range(2):
            assert process.stdout.readline().startswith("episode ")
        interrupt(process)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    summary = json.loads(stdout.splitlines()[-1])
    assert summary["episodes"] == len(summary["episode_returns"]) >= 2
    assert summary["video"] == "cut.mp4"
    with opened(trained / "cut.mp4") as reader:
        # CartPole's return counts its decisions, and each episode shows its start as well.
        assert reader.count_frames() >= sum(summary["episode_returns"]) + summary["episodes"]


def test_ctrl_c_at_start_up_leaves_no_video(tmp_path):
    (tmp_path / "ctrl_c.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    config = dataclasses.replace(CARTPOLE, env="ctrl_c:CartPole-v1")  # imported to make the player
    path = save_checkpoint(tmp_path, config, fresh_weights(CARTPOLE))
    process = start_enjoy(
        tmp_path, f"--checkpoint={path}", "--video=game.mp4", PYTHONPATH=str(tmp_path)
    )
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, stdout) == (128 + signal.SIGINT, ""), stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "game.mp4").exists()


def test_a_window_without_a_display_is_refused_with_a_remedy(tmp_path, pong):
    message = refusal(tmp_path, f"--checkpoint={pong}", "--window", "--video=pong.mp4")
    assert "needs a display" in message
    assert "--video" in message
    assert not list(tmp_path.iterdir())


def test_a_window_shows_all_episodes_at_the_speed_asked_for(trained):
    flags = ("--window", "--fps=100", "--episodes=2", "--max-steps=5")
    assert enjoy(trained, *flags, SDL_VIDEODRIVER="dummy")["episode_returns"] == [5, 5]


def test_all_wrong_flags_are_named_at_once(tmp_path):
    message = refusal(
        tmp_path,
        "--episodes=0",
        "--num-envs=0",
        "--max-steps=-1",
        "--fps=nan",
        "--video=missing/game.avi",
    )
    for part in (
        "episodes=0 must be at least 1",
        "num_envs=0 must be at least 1",
        "max_steps=-1 must be at least 0",
        "fps=nan must be above 0",
        "must end in .mp4 or .gif",
        "cannot be written",
    ):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_without_a_run_the_remedy_is_to_train_one(tmp_path):
    assert "no run with a checkpoint in runs/; train one first" in refusal(tmp_path)
    assert "run_dir=nowhere is no folder" in refusal(tmp_path, "--run-dir=nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty/checkpoints has no checkpoint" in refusal(tmp_path, "--run-dir=empty")


def test_a_damaged_checkpoint_is_refused_and_nothing_written(tmp_path, pong):
    damaged = tmp_path / "damaged.pt"
    content = bytearray(pong.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    message = refusal(tmp_path, f"--checkpoint={damaged}", "--video=pong.mp4")
    assert "damaged.pt cannot be read (BadZipFile: Bad CRC-32" in message
    assert list(tmp_path.iterdir()) == [damaged]


# --- the player ---
@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(PONG, frameskip=3, sticky_actions=0.25, max_episode_frames=300),
        CARTPOLE,
    ],
    ids=lambda config: config.env,
)
def test_the_agent_sees_while_playing_what_it_saw_in_training(config):
    config = dataclasses.replace(config, envs_per_worker=1, num_splits=1, slots_per_split=16)
    training = Split(0, config)
    seed = int(np.random.SeedSequence([config.seed, 0]).generate_state(1)[0] >> 1)
    playing = make_env(config, seed, render=True)
    obs = playing.reset()
    np.testing.assert_equal(obs, training.obs)
    rng = np.random.default_rng(0)
    num_ended = 0
    for _ in range(250):
        actions = envs.random_actions(playing.actions, obs, rng)
        playing.send(actions)
        training.env.send(actions)
        expected, _ = training.recv()
        np.testing.assert_equal(playing.recv(), expected)
        num_ended += int(training.ended[0])
    assert num_ended >= 2
    playing.close()
    training.env.close()


def test_a_lost_life_does_not_end_the_game():
    def steps_to_the_end(env):
        obs = env.reset()
        rng = np.random.default_rng(0)
        for step in range(5000):
            env.send(envs.random_actions(env.actions, obs, rng))
            result = env.recv()
            if result.terminated[0] or result.truncated[0]:
                return step
        raise AssertionError("no end")

    config = ActorCriticConfig(env="Breakout", episodic_life=True)
    game = make_env(config, 0, render=False)
    life = envs.make_vec_env("Breakout", 1, 0, options=envs.EnvOptions(episodic_life=True))
    assert steps_to_the_end(game) > 2 * steps_to_the_end(life)


def test_an_episode_depends_on_seed_and_index_alone():
    weights = fresh_weights(CARTPOLE)
    player = Player(CARTPOLE, weights, seed=1)
    first, second = play(player, 0), play(player, 1)
    cut = play(player, 0, max_steps=4)
    assert cut == first[:5]
    assert [moment.steps for moment in cut] == [0, 1, 2, 3, 4]
    assert play(player, 1) == second
    assert len({len(play(player, index)) for index in range(5)}) > 1
    assert len({len(play(Player(CARTPOLE, weights, seed=seed), 0)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(CARTPOLE, rnn="gru", rnn_size=8),
        # Draws of numbers, whose noise is kept from step to step.
        ActorCriticConfig(env="Pendulum-v1", model="mlp", frameskip=1, noise_correlation=0.9),
        NStepQConfig(env="CartPole-v1", model="mlp", frameskip=1, epsilon_frames=0),
        SACConfig(env="Pendulum-v1", model="flat", frameskip=1),
    ],
    ids=lambda config: f"{config.system}-{config.env}",
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_an_episode_is_the_same_however_many_are_played_at_once(config, deterministic):
    player = Player(config, fresh_weights(config), seed=3, deterministic=deterministic)
    alone = []
    for index in range(7):
        last = play(player, index, max_steps=60)[-1]
        alone.append((last.score, last.steps))
    assert len(set(alone)) > 3
    for num_envs in (1, 3, 16):
        steps = list(evaluate(player, 7, num_envs, max_steps=60))
        together = [outcome for outcomes in steps for outcome in outcomes]
        np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert len(steps) == max(num_steps for _, num_steps in alone), "all began at once"


def test_who_stops_early_has_no_more_short_episodes_than_long_ones():
    """What has been told is always the first episodes, of which none is left out."""
    player = Player(CARTPOLE, fresh_weights(CARTPOLE), seed=0)
    lengths = [play(player, index)[-1].steps for index in range(6)]
    told = []
    for num_steps, outcomes in enumerate(evaluate(player, 6, 6), start=1):
        told += [outcome.steps for outcome in outcomes]
        assert told == lengths[: len(told)]
        assert all(length <= num_steps for length in told)
    assert told == lengths
    assert lengths != sorted(lengths)


def test_environments_are_closed_when_the_caller_stops(monkeypatch):
    closed = []
    player = Player(CARTPOLE, fresh_weights(CARTPOLE), seed=0)
    begin = player.begin

    def recorded(index):
        env, generator = begin(index)
        monkeypatch.setattr(env, "close", lambda: closed.append(index))
        return env, generator

    monkeypatch.setattr(player, "begin", recorded)
    steps = evaluate(player, 5, 3)
    next(steps)
    steps.close()
    assert closed == [0, 1, 2]


def test_the_interval_of_a_mean_holds_it_in_19_of_20_cases():
    rng = np.random.default_rng(1)
    means = [mean_interval(rng.normal(7.0, 2.0, 30).tolist()) for _ in range(100)]
    assert sum(low <= 7.0 <= high for low, high in means) == pytest.approx(94, abs=4)
    assert mean_interval([3.0]) is None
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0)


def test_recurrent_state_lasts_an_episode_and_no_longer(monkeypatch):
    config = dataclasses.replace(CARTPOLE, rnn="gru", rnn_size=8)
    player = Player(config, fresh_weights(config), seed=0)
    states = []
    act = player.policy.algorithm.act

    def recorded_act(model, obs, rnn_state, *others):
        acted = act(model, obs, rnn_state, *others)
        states.append((rnn_state, acted.rnn_state))
        return acted

    monkeypatch.setattr(player.policy.algorithm, "act", recorded_act)
    for index in range(2):
        states.clear()
        play(player, index)
        assert states[0][0] is None
        for (_, after), (before, _) in zip(states, islice(states, 1, None), strict=False):
            assert before is after


def test_observations_are_normalized_by_the_checkpoints_statistics():
    """As by a first layer that computes the same of what it is shown."""
    config = dataclasses.replace(CARTPOLE, normalize_obs=True)
    weights = fresh_weights(config)
    mean, deviation = torch.tensor([0.3, -0.2, 0.05, 0.5]), torch.tensor([0.5, 2.0, 0.4, 1.0])
    weights["normalizers.0.mean"].copy_(mean)
    weights["normalizers.0.variance"].copy_(deviation.square())
    weights["policy_head.weight"].mul_(100)
    plain = fresh_weights(CARTPOLE)
    unnormalized = {name: weights[name].clone() for name in plain}
    layer = unnormalized["encoder.linear1.weight"].div_(deviation)
    unnormalized["encoder.linear1.bias"].sub_(layer @ mean)

    def lengths(config, weights):
        player = Player(config, weights, seed=0)
        return [play(player, index)[-1].steps for index in range(8)]

    normalized = lengths(config, weights)
    assert normalized == lengths(CARTPOLE, unnormalized)
    assert normalized != lengths(CARTPOLE, {name: weights[name] for name in plain})


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])  # the latter of an old checkpoint
def test_noise_that_is_correlated_in_training_is_not_where_it_is_played(env):
    config = ActorCriticConfig(env=env, model="mlp", frameskip=1, rnn="gru", rnn_size=8)
    weights = fresh_weights(config)
    scores = []
    for noise_correlation in (0.0, 0.9):
        config = dataclasses.replace(config, noise_correlation=noise_correlation)
        player = Player(config, weights, seed=0)
        scores.append([moment.score for moment in play(player, 0, max_steps=20)])
    assert scores[0] == scores[1]


def test_weights_that_do_not_fit_are_refused():
    wider = dataclasses.replace(CARTPOLE, rnn="gru", rnn_size=8)
    with pytest.raises(
        ValueError, match=r"(?s)weights do not fit model=mlp for CartPole-v1.*rnn_size=0"
    ):
        Player(CARTPOLE, fresh_weights(wider), seed=0)


def test_an_environment_without_pictures_is_played_unseen():
    config = ActorCriticConfig(env="tests.tiny_envs:Catch-v0", model="mlp", frameskip=1)
    episode = play(Player(config, fresh_weights(config), seed=0), 0)
    assert [moment.steps for moment in episode] == list(range(10))
    assert {moment.picture for moment in episode} == {None}
    assert episode[-1].score in (-1, 1)


@pytest.mark.parametrize(
    ("env", "frameskip", "fps"),
    [("Pong", 4, 15), ("Pong", 1, 60), ("CartPole-v1", 1, 50), ("tests.tiny_envs:Catch-v0", 1, 30)],
)
def test_real_speed_is_60_frames_a_second_or_what_the_environment_says(env, frameskip, fps):
    assert real_fps(ActorCriticConfig(env=env, frameskip=frameskip)) == fps


def test_statistics_that_no_checkpoint_has_are_told(caplog):
    config = ActorCriticConfig(env="tests.tiny_envs:Normalized-v0", model="mlp", frameskip=1)
    Player(config, fresh_weights(config), seed=0)
    [record] = caplog.records
    assert "the statistics of NormalizeObservation are neither shared nor saved" in record.message


# --- the screens ---
@pytest.mark.parametrize(
    "kind", ["rgb", "rgba", "float", "int64", "channels_first", "list", "grey", "grows"]
)
def test_whatever_an_environment_shows_is_right_in_the_video(tmp_path, kind):
    config = ActorCriticConfig(env=f"tests.tiny_envs:Shows-{kind}-v0", model="mlp", frameskip=1)
    player = Player(config, fresh_weights(config), seed=0, render=True)
    video = Video(str(tmp_path / "game.gif"), fps=10)  # with exact colours
    for index in range(2):
        for moment in player.episode(index):
            video.show(moment.picture)
    video.close()
    with opened(tmp_path / "game.gif") as reader:
        pictures = np.stack(list(reader.iter_data()))[..., :3]
    assert pictures.shape == (12, 30, 47, 3)
    assert (pictures == ([99, 99, 99] if kind == "grey" else [255, 0, 0])).all()


def test_an_environment_that_shows_nothing_is_told_in_one_line(tmp_path):
    config = ActorCriticConfig(env="tests.tiny_envs:Shows-none-v0", model="mlp", frameskip=1)
    path = save_checkpoint(tmp_path, config, fresh_weights(config))
    process = start_enjoy(
        tmp_path, f"--checkpoint={path}", "--video=game.mp4", PYTHONPATH=str(ROOT)
    )
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert stdout == ""
    line = stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert line.startswith("enjoy.py: Shows-none-v0, env 0, step 0: render() gives None; supported")
    assert not (tmp_path / "game.mp4").exists()


def test_a_picture_of_another_size_is_fitted_between_black_bars(tmp_path):
    video = Video(str(tmp_path / "game.gif"), fps=10)
    for shape in ((20, 40, 3), (80, 80, 3), (5, 10, 3)):
        video.show(np.full(shape, 200, np.uint8))
    video.close()
    with opened(tmp_path / "game.gif") as reader:
        first, square, small = (frame[..., 0] for frame in reader.iter_data())
    assert first.shape == (20, 40)
    assert (first == 200).all()
    assert (small == 200).all()
    assert (square[:, 10:30] == 200).all()
    assert (square[:, :10] == 0).all()
    assert (square[:, 30:] == 0).all()


def show_often(video, picture):
    """More than a pipe and the queues of ffmpeg's threads hold: ten were too few beside load."""
    for _ in range(1000):
        video.show(picture)


# imageio_ffmpeg leaves the pipe to the collector where ffmpeg has ended before it looks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_video_that_ffmpeg_cannot_write_is_an_error(tmp_path, capfd):
    video = Video(str(tmp_path / "game.mp4"), fps=10)
    picture = np.zeros((10, 20_000, 3), np.uint8)
    with pytest.raises(VideoError, match=r"game\.mp4, with pictures of 20000x10, could not be"):
        show_often(video, picture)
    assert "invalid width x height" in capfd.readouterr().err
    del video
    gc.collect()


def test_a_video_that_the_disk_has_no_room_for_at_its_end_is_an_error(tmp_path):
    code = (
        "import numpy as np, resource, sys; from sfrl.show.player import Video\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "video = Video(sys.argv[1], fps=10)\n"
        "for noise in np.random.default_rng(0).integers(255, size=(9, 64, 64, 3), dtype=np.uint8):"
        "    video.show(noise)\n"
        "video.close()\n"
    )
    for name in ("film.mp4", "film.gif"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert re.search(rf"VideoError: .*{name} has [0-8] of 9 pictures", ended.stderr)


def test_a_video_of_odd_size_is_padded_to_an_even_one(tmp_path):
    path = tmp_path / "odd.mp4"
    video = Video(str(path), fps=10)
    for _ in range(3):
        video.show(np.full((35, 47, 3), 200, np.uint8))
    video.close()
    with opened(path) as reader:
        assert reader.get_meta_data()["size"] == (48, 36)
        assert reader.count_frames() == 3
        assert reader.get_data(1)[:34, :46].mean() == pytest.approx(200, abs=5)


@pytest.mark.filterwarnings("ignore:no fast renderer")  # of the dummy driver
def test_closing_the_window_is_ctrl_c(monkeypatch):
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window("test", fps=1000)
    picture = np.zeros((210, 160, 3), np.uint8)
    window.show(picture)
    pygame.quit()  # as Gymnasium's own games do when they are closed
    window.show(picture)
    pygame.event.post(pygame.Event(pygame.QUIT))
    with pytest.raises(KeyboardInterrupt):
        window.show(picture)
    window.close()
