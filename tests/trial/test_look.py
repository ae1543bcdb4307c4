"""Random play in a process of its own: each rule is found broken where it is, and no other one."""

import dataclasses
import re

import pytest

from sfrl.settings.defaults import defaults_for
from sfrl.trial.look import RULES, Look, look
from sfrl.trial.verdict import step_us
from tests.faulty_env import NUM_GOOD_STEPS


def seen_of(env: str, seconds: float = 0.3, limit_s: float = 1.0) -> Look:
    return look(defaults_for(env), seconds, limit_s)


def test_cartpole_is_seen_as_it_is():
    seen = seen_of("CartPole-v1", seconds=1.0)
    assert seen.problems == []
    assert set(seen.checked) == set(RULES)
    assert (seen.action_space, seen.max_episode_steps) == ("Discrete(2)", 500)
    assert 15 < sum(seen.returns) / len(seen.returns) < 30  # random play: about 22
    assert [int(score) for score in seen.returns] == seen.lengths
    assert (seen.terminated, seen.truncated) == (len(seen.returns), 0)
    assert seen.rewarded == seen.decisions >= sum(seen.lengths)
    assert (seen.reward_low, seen.reward_high) == (1, 1)
    assert 0.5 < seen.seconds < 1.5
    assert 1 < step_us(seen) < 10_000


def test_a_step_that_waits_is_told_from_one_that_computes():
    assert seen_of("Latency", seconds=1.0).idle > 0.4  # 0.9 where nothing else wants the cores
    assert seen_of("CartPole-v1").idle < 0.4


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # of its spaces
def test_a_pool_of_envpools_is_a_vector_although_it_is_an_env():
    pytest.importorskip("envpool")
    seen = seen_of("envpool:CartPole-v1", limit_s=10.0)
    assert seen.problems == []
    assert seen.observation_space is None
    assert seen.returns


def test_whoever_refuses_illegal_actions_breaks_no_rule():
    seen = seen_of("tests.tiny_envs:MaskedCatch-v0")
    assert seen.problems == []
    assert {*seen.checked} == {*RULES} - {"gymnasium"}


def test_an_atari_game_has_no_space_of_gymnasiums_and_no_checker():
    seen = seen_of("Pong", seconds=1.0, limit_s=10.0)
    assert seen.problems == []
    assert seen.observation_space is None
    assert {"returns", "types", "finite", "bounds"} <= {*seen.checked} <= {*RULES} - {"gymnasium"}


def test_a_game_of_several_lives_is_counted_once():
    seen = seen_of("Breakout", seconds=2.0, limit_s=10.0)
    assert seen.problems == []
    assert len(seen.returns) >= 2
    assert (seen.terminated, seen.truncated) == (len(seen.returns), 0)
    assert min(seen.lengths) > 100  # random play: about 40 decisions to a life, and five of these


def test_games_of_several_lives_that_are_cut_off_are_counted_so():
    config = dataclasses.replace(defaults_for("Breakout"), max_episode_frames=388)
    assert config.episodic_life
    seen = look(config, 2.0, 10.0)
    assert (seen.terminated, seen.truncated) == (0, len(seen.returns))
    assert seen.returns


@pytest.mark.parametrize(
    ("name", "rule", "text"),
    [
        ("IgnoresSeeds", "seeds", "the same seed gives another first observation"),
        ("StraysLate", "seeds", "step 3 gives another observation"),
        ("LeavesItsSpace", "bounds", "outside its observation_space"),
        ("GivesNaN", "finite", "NaN or infinity"),
    ],
)
def test_a_rule_that_does_not_keep_it_from_training_is_found(name, rule, text):
    seen = seen_of(f"tests.faulty_env:{name}-v0", seconds=1.0)
    problems = {problem.rule: problem for problem in seen.problems}
    assert text in problems[rule].text
    assert not seen.is_fatal
    assert problems.keys() <= {rule, "gymnasium"}  # whose checker may find the same


@pytest.mark.parametrize(
    ("name", "rule", "text"),
    [
        ("Raises", "returns", f"RuntimeError: the pole broke .* in step {NUM_GOOD_STEPS + 1} of"),
        ("RaisesAtStart", "returns", "in the reset of RaisesAtStart-v0"),
        ("Hangs", "returns", "did not return within 1 s, after .* decisions of random play"),
        ("WrongShape", "types", r"its observation is float32\[5\]|float64\[5\]"),
        ("AllowsNothing", "types", "its action mask allows none"),
    ],
)
def test_a_rule_without_which_there_is_no_training_ends_the_play(name, rule, text):
    seen = seen_of(f"tests.faulty_env:{name}-v0")
    [fatal] = [problem for problem in seen.problems if problem.is_fatal]
    assert fatal.rule == rule
    assert re.search(text, fatal.text)


def test_what_an_environment_prints_is_counted_and_not_shown(capfd):
    assert seen_of("tests.guest_env:Prints-v0").printed_bytes > 2000
    assert capfd.readouterr() == ("", "")
