"""Atari: against Gymnasium's own preprocessing, and what happens at the end of episodes."""

import itertools
from collections.abc import Iterator

import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from sfrl import envs
from sfrl.envs.areas import area_taps
from sfrl.envs.screen import HAS_EXTENSION, NumpyScreen, make_screen


class StartLikeOurs(gymnasium.Wrapper):
    """Our start of an episode: one frame of FIRE, then a random number of no-ops, given here."""

    def __init__(self, env, noops):
        super().__init__(env)
        self.noops = noops

    def reset(self, *, seed=None, options=None):
        self.env.reset(seed=seed, options=options)
        for action in [1] + [0] * self.noops:
            obs, _, _, _, info = self.env.step(action)
        return obs, info


def gymnasium_reference(game, noops):
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)
    env = AtariPreprocessing(StartLikeOurs(env, noops), noop_max=0, frame_skip=4)
    return FrameStackObservation(env, 4, padding_type="zero")


def play(env, num_steps, seed=0) -> Iterator[tuple[np.ndarray, envs.StepResult]]:
    """Random actions; yields the observation before each step, and its result."""
    rng = np.random.default_rng(seed)
    obs = env.reset()["obs"].copy()
    for _ in range(num_steps):
        env.send(rng.integers(env.actions.num_logits, size=env.num_envs))
        result = env.recv()
        yield obs, result
        obs = result.obs["obs"].copy()


@pytest.mark.parametrize("game", ["Pong", "Breakout", "SpaceInvaders"])
def test_a_whole_episode_equals_gymnasiums_preprocessing(game):
    env = envs.make_vec_env(game, 2, seed=7)
    env.reset()
    noops = [game.ale.getEpisodeFrameNumber() - 1 for game in env._games]  # the one is FIRE
    assert noops[0] != noops[1]
    for i in range(2):
        reference = gymnasium_reference(game, noops[i])
        expected, _ = reference.reset(seed=0)
        np.testing.assert_array_equal(env.reset()["obs"][i], expected)
        rng = np.random.default_rng(i)
        for _ in range(2000):
            actions = rng.integers(env.actions.num_logits, size=2)
            expected, reward, terminated, truncated, _ = reference.step(actions[i])
            env.send(actions)
            result = env.recv()
            np.testing.assert_array_equal(result.obs["obs"][i], expected)
            assert result.rewards[i] == reward
            assert (result.terminated[i], result.truncated[i]) == (terminated, truncated)
            if terminated:
                break
        assert terminated
        reference.close()


def test_pong_ends_at_21_points_and_the_next_row_only_resets():
    env = envs.make_vec_env("Pong", 2, seed=0)
    points = np.zeros((2, 2), np.int64)  # [N, ours or theirs]
    ended = np.zeros(2, np.bool_)
    num_episodes = 0
    for obs, result in play(env, 2500):
        for i in np.flatnonzero(ended):
            assert result.rewards[i] == 0
            assert not result.terminated[i]
            assert not result.truncated[i]
            assert not result.obs["obs"][i, :3].any()  # an empty stack except for its first picture
            assert result.obs["obs"][i, 3].any()
        for i in np.flatnonzero(~ended):
            np.testing.assert_array_equal(result.obs["obs"][i, :3], obs[i, 1:])
        points += np.stack([result.rewards == 1, result.rewards == -1], axis=1)
        ended = result.terminated
        for i in np.flatnonzero(ended):
            assert points[i].max() == 21
            points[i] = 0
            num_episodes += 1
    assert num_episodes >= 3


def test_an_episode_is_truncated_after_max_episode_frames_with_its_own_last_observation():
    env = envs.make_vec_env("Pong", 2, seed=0, options=envs.EnvOptions(max_episode_frames=40))
    for step, (obs, result) in enumerate(play(env, 33), start=1):
        assert not result.terminated.any()
        assert result.truncated.tolist() == [step % 11 == 10] * 2  # 40 / 4 steps, 1 reset
        if step % 11 == 0:
            assert not result.obs["obs"][:, :3].any()
        else:
            np.testing.assert_array_equal(result.obs["obs"][:, :3], obs[:, 1:])


def test_a_lost_life_terminates_and_the_game_goes_on():
    env = envs.make_vec_env("Breakout", 2, seed=0, options=envs.EnvOptions(episodic_life=True))
    plain = envs.make_vec_env("Breakout", 2, seed=0)
    no_op, fire = 0, 1
    np.testing.assert_array_equal(env.reset()["obs"], plain.reset()["obs"])
    ended = np.zeros(2, np.bool_)
    lives_lost = np.zeros(2, np.int64)
    games_over = np.zeros(2, np.int64)
    for _ in range(600):
        env.send(np.full(2, fire))
        plain.send(np.where(ended, no_op, fire))  # the row that only plays on
        result, game = env.recv(), plain.recv()
        np.testing.assert_array_equal(result.obs["obs"], game.obs["obs"])
        np.testing.assert_array_equal(result.rewards, game.rewards)
        np.testing.assert_array_equal(result.scored, game.scored)
        assert not result.terminated[ended].any()
        ended = result.terminated
        assert ended[game.terminated].all()
        lives_lost += result.terminated
        games_over += game.terminated
        assert (lives_lost[game.terminated] == 5 * games_over[game.terminated]).all()
    assert (games_over >= 2).all()


@pytest.mark.parametrize("game", ["Qbert", "SpaceInvaders"])
def test_the_row_after_a_lost_life_only_plays_on(game):
    """Qbert shows 0 lives for a while before it is over: that is one end, not two."""
    env = envs.make_vec_env(game, 2, seed=0, options=envs.EnvOptions(episodic_life=True))
    ended = np.zeros(2, np.bool_)
    lengths, num_ends = np.zeros(2, np.int64), 0
    for _, result in play(env, 1500):
        assert not result.terminated[ended].any()
        assert not result.rewards[ended].any()
        lengths += ~ended
        ended = result.terminated
        assert (lengths[ended] > 5).all()
        num_ends += ended.sum()
        lengths[ended] = 0
    assert num_ends >= 6


def test_a_game_that_is_cut_off_in_the_row_after_a_lost_life_is_over_there():
    def rows(**settings):
        options = envs.EnvOptions(episodic_life=True, **settings)
        env = envs.make_vec_env("Breakout", 1, seed=0, options=options)
        first = env.reset()["obs"].copy()
        for _ in range(200):
            env.send(np.ones(1, np.int64))
            yield first, env.recv()

    lost = next(step for step, (_, row) in enumerate(rows(), start=1) if row.terminated[0])
    cut = list(itertools.islice(rows(max_episode_frames=4 * (lost + 1)), lost + 1))
    assert [row.ended[0] for _, row in cut[-2:]] == [True, False]
    assert [row.scored[0] for _, row in cut[-2:]] == [False, True]
    assert not cut[-1][1].obs["obs"][0, :3].any()  # of the next game


def test_sticky_actions_and_frameskip_change_the_game():
    def last_obs(**settings):
        *_, (_, result) = play(
            envs.make_vec_env("Pong", 1, seed=0, options=envs.EnvOptions(**settings)), 100
        )
        return result.obs["obs"]

    np.testing.assert_array_equal(last_obs(), last_obs(sticky_actions=0.0, frameskip=4))
    assert (last_obs() != last_obs(sticky_actions=0.25)).any()
    assert (last_obs() != last_obs(frameskip=2)).any()


def test_a_seed_decides_everything():
    def obs(seed):
        env = envs.make_vec_env(
            "Breakout", 3, seed=seed, options=envs.EnvOptions(sticky_actions=0.25)
        )
        return np.stack([result.obs["obs"].copy() for _, result in play(env, 60)])

    first = obs(seed=5)
    np.testing.assert_array_equal(first, obs(seed=5))
    assert (first != obs(seed=6)).any()
    assert (first[:, 0] != first[:, 1]).any()


def test_reset_starts_again_from_the_same_seeds():
    env = envs.make_vec_env("Pong", 2, seed=1)
    first = [result.obs["obs"].copy() for _, result in play(env, 20)]
    np.testing.assert_array_equal(first, [result.obs["obs"].copy() for _, result in play(env, 20)])


def test_the_rendered_picture_is_of_the_agents_game():
    env = envs.make_vec_env("Breakout", 1, seed=3, render=True)
    not_rendered = envs.make_vec_env("Breakout", 1, seed=3)
    for (_, result), (_, expected) in zip(play(env, 200), play(not_rendered, 200), strict=True):
        np.testing.assert_array_equal(result.obs["obs"], expected.obs["obs"])
        picture = env.render()
        assert picture.shape == (210, 160, 3)
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(gray, (84, 84), interpolation=cv2.INTER_AREA).astype(np.int64)
        # Not exact: the agent's picture pools grey frames, this one pools each color.
        assert np.abs(small - result.obs["obs"][0, -1]).mean() < 0.5


def test_the_rendered_picture_keeps_the_colors_and_the_height_of_the_screen():
    env = envs.make_vec_env("Carnival", 1, seed=0, render=True)
    env.reset()
    noops = env._games[0].ale.getEpisodeFrameNumber() - 1
    expected, _ = StartLikeOurs(
        gymnasium.make("ALE/Carnival-v5", frameskip=1, repeat_action_probability=0.0), noops
    ).reset()
    np.testing.assert_array_equal(env.render(), expected)
    assert expected.shape == (214, 160, 3)  # most games have 210 rows


def test_rendering_must_be_asked_for_when_the_environment_is_made():
    env = envs.make_vec_env("Pong", 1, seed=0)
    env.reset()
    with pytest.raises(RuntimeError, match="render=True"):
        env.render()


@pytest.mark.parametrize("action", [-1, 6])
def test_an_action_out_of_range_is_an_error_not_a_hang(action):
    env = envs.make_vec_env("Pong", 2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"0\.\.5"):
        env.send(np.array([0, action]))


def test_closing_twice_is_allowed():
    env = envs.make_vec_env("Pong", 1, seed=0)
    env.reset()
    env.close()
    env.close()


@pytest.mark.parametrize(("height", "width"), [(210, 160), (250, 160), (84, 84), (100, 300)])
@pytest.mark.parametrize("make", [NumpyScreen, make_screen])
def test_a_screen_is_resized_as_by_opencv(make, height, width):
    """Pictures follow each other: what is kept of one must not show in the next."""
    rng = np.random.default_rng(0)
    if make is NumpyScreen:
        screen = NumpyScreen(*area_taps(width, 84), *area_taps(height, 84), height, width)
    else:
        assert HAS_EXTENSION
        screen = make_screen(height, width)
    grey_of = rng.permutation(256).astype(np.uint8)
    frames = rng.integers(256, size=(2, height, width), dtype=np.uint8)
    picture = np.empty((84, 84), np.uint8)
    for which in range(2):
        assert not screen.set_frame(which, frames[which])  # colors never seen
    screen.learn_colors(frames[0], grey_of[frames[0]])
    for _ in range(20):
        rows = rng.integers(height, size=5)  # only these change
        frames[rng.integers(2), rows] = rng.integers(256, size=(5, width))
        for which in range(2):
            assert screen.set_frame(which, frames[which])
        screen.draw(picture)
        pooled = grey_of[frames].max(axis=0)
        expected = cv2.resize(pooled, (84, 84), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(picture, expected)


def test_a_frame_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="210x160"):
        make_screen(210, 160).set_frame(0, np.zeros((210, 161), np.uint8))


@pytest.mark.parametrize(
    "setting",
    [
        {"options": envs.EnvOptions(frameskip=0)},
        {"options": envs.EnvOptions(sticky_actions=1.5)},
        {"options": envs.EnvOptions(max_episode_frames=0)},
        {"num_envs": 0},
        {"num_envs": 2, "render": True},
    ],
)
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(ValueError, match=r"^\w+=\S+ (must be|is a probability|shows one)"):
        envs.make_vec_env("Pong", **{"num_envs": 1, "seed": 0, **setting})


@pytest.mark.parametrize("game", ["Pong", "Breakout", "Seaquest"])
def test_a_saved_state_goes_on_as_if_nothing_had_been(game):
    """Saved every few steps, within episodes and at their borders, sticky actions included."""
    settings = {"sticky_actions": 0.25, "max_episode_frames": 400, "episodic_life": True}
    env = envs.make_vec_env(game, 2, seed=1, options=envs.EnvOptions(**settings))
    env.reset()
    rng = np.random.default_rng(0)
    for part in range(6):
        num_steps, is_there = 0, False
        while not is_there:
            env.send(rng.integers(env.actions.num_logits, size=2))
            ended = env.recv().ended.any()
            num_steps += 1
            is_there = num_steps >= 37 and (part % 2 == 0 or ended)
        env.send(rng.integers(env.actions.num_logits, size=2))  # in flight
        other = envs.make_vec_env(game, 2, seed=99, options=envs.EnvOptions(**settings))
        other.load_state(env.state())
        for _ in range(110):
            result, expected = other.recv(), env.recv()
            np.testing.assert_array_equal(result.obs["obs"], expected.obs["obs"])
            for got, wanted in zip(result[1:], expected[1:], strict=True):
                np.testing.assert_array_equal(got, wanted)
            actions = rng.integers(env.actions.num_logits, size=2)
            env.send(actions)
            other.send(actions)
        env.recv()


def test_saved_games_are_not_played_again_with_other_sticky_actions():
    env, other, shorter = (
        envs.make_vec_env("Breakout", 1, seed=0, options=envs.EnvOptions(**settings))
        for settings in ({}, {"sticky_actions": 0.25}, {"max_episode_frames": 40})
    )
    env.reset()
    for _ in range(20):
        env.send(np.ones(1, np.int64))
        env.recv()
    env.send(np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"had sticky_actions=0.0; with 0.25 they would not be"):
        other.load_state(env.state())
    shorter.load_state(env.state())
    assert shorter.recv().truncated.all()
