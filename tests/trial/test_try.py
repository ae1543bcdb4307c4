"""`sfrl try` as a user calls it, and what its verdicts are made of."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sfrl import envs
from sfrl.commands import EXIT_FOUND, EXIT_USAGE
from sfrl.settings.defaults import defaults_for
from sfrl.trial import verdict
from sfrl.trial.facts import facts
from sfrl.trial.look import RULES, Look, Problem
from sfrl.trial.page import MAX_LINES, WIDTH, chart, page
from sfrl.trial.training import Training
from sfrl.trial.verdict import Trial, advice, curve_of, limit_of, mean_of
from sfrl.tune.tuner import Outlook
from tests.runs import ROOT, TINY

main = importlib.import_module("sfrl.commands.try").main  # no name that `import` takes


@dataclasses.dataclass
class Tried:
    code: int
    stdout: str
    stderr: str
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def catch(tmp_path_factory) -> Tried:
    """Catch, tried to the end; one run for all that look at it."""
    folder = tmp_path_factory.mktemp("try")
    command = [sys.executable, "-W", "error", "-m", "sfrl", "try", "tests.tiny_envs:Catch-v0"]
    flags = [
        "--seconds=60",
        "--tune=off",
        "--json=~/facts.json",
        "--train-frames=10_000",
        *TINY[1:],
    ]
    places = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **places}
    done = subprocess.run(
        [*command, *flags], cwd=folder, env=environment, capture_output=True, text=True, timeout=90
    )
    found = json.loads((folder / "facts.json").read_text())
    assert [path.name for path in folder.iterdir()] == ["facts.json"]  # the run's folder is gone
    return Tried(done.returncode, done.stdout, done.stderr, found)


def test_what_can_be_trained_and_keeps_the_rules_is_told_so(catch):
    assert catch.code == 0, catch.stderr
    assert catch.facts["verdict"] == "fine"
    assert [rule["rule"] for rule in catch.facts["rules"] if rule["kept"]] == list(RULES)
    first, *_ = catch.stdout.splitlines()
    assert first == "tests.tiny_envs:Catch-v0: can be trained, and keeps the rules"


def test_the_facts_are_those_of_the_environment(catch):
    known, play = catch.facts["is"], catch.facts["random_play"]
    assert known["observation_space"] == "Box(0, 255, (10, 5), uint8)"
    [leaf] = known["leaves"]
    assert (leaf["kind"], leaf["shape"], leaf["scale"]) == ("image", [1, 10, 5], 255)
    assert known["choices"] == [3]
    assert play["length_mean"] == 9
    assert play["rewarded"] == play["episodes"]
    assert abs(play["return_mean"] + 0.6) < 0.2  # chance: one column of five
    assert 0 < play["return_interval"] < 0.2


def test_a_curve_and_minutes_come_from_the_training_run(catch):
    training = catch.facts["training"]
    assert training["frames"] >= 10_000
    assert training["curve"][-1]["score"] == training["score"]
    minutes = training["minutes_to"]["1000000"]
    assert minutes == pytest.approx(1e6 / training["frames_per_s"] / 60, rel=1e-3)
    assert training["limit"]
    assert catch.stdout.count("*") >= 3  # of the chart


def test_the_page_fits_a_terminal(catch):
    *lines, following = catch.stdout.splitlines()
    assert len(lines) < MAX_LINES
    assert [line for line in lines if len(line) > WIDTH] == []
    assert following.startswith("Next: sfrl train --env=tests.tiny_envs:Catch-v0")
    assert "--train-frames=10000" in following
    assert "--env-timeout" not in following  # what the trial has set itself


@pytest.mark.parametrize(
    ("env", "code", "text"),
    [
        ("CartPol-v1", EXIT_USAGE, "neither an Atari game nor a Gymnasium id"),
        ("tests.unruly_env:ExitsWhenMade-v0", EXIT_FOUND, "SystemExit: 0"),
        ("tests.unruly_env:CrashesWhenMade-v0", EXIT_FOUND, "was killed by SIGSEGV"),
        ("tests.unruly_env:HangsWhenMade-v0", EXIT_FOUND, "was not made within 3 s"),
        ("tests.unruly_env:NoArray-v0", EXIT_FOUND, "supported is Box, Discrete"),
        ("tests.faulty_env:Raises-v0", EXIT_FOUND, "RuntimeError: the pole broke"),
    ],
)
def test_what_cannot_be_trained_is_told_in_lines_and_by_the_exit_code(env, code, text, capfd):
    assert main([env, "--seconds=5", "--json"], "sfrl try") == code
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["verdict"] == "cannot be trained"
    assert text in found["reason"]
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "an environment is missing"),
        (("CartPole-v1", "--seconds=1"), "--seconds=1 must be at least 5"),
        (("CartPole-v1", "--train-seconds=9"), "--seconds is the time for all"),
        (("CartPole-v1", "--no-such=1"), "--no-such is unknown"),
        (("CartPole-v1", "--json=/no/such/folder/x.json"), "cannot be written"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_starts(flags, text, capfd):
    assert main(flags, "sfrl try") == EXIT_USAGE
    out, err = capfd.readouterr()
    assert out == ""
    assert text in err


def test_a_training_run_that_fails_is_told_without_its_traceback(capfd):
    flags = ["--seconds=60", "--tune=off", "--max-worker-restarts=0", *TINY[1:]]
    code = main(["tests.faulty_env:RaisesInTraining-v0", *flags], "sfrl try")
    out, err = capfd.readouterr()
    assert code == EXIT_FOUND
    assert "RuntimeError: only alone" in out
    assert "Rules: all 6 kept" in out
    assert "Traceback" not in out + err


# --- what verdicts are made of ---


def record(time_s: float, frames: int, score: float | None, steps: int) -> dict[str, Any]:
    working = {f"{kind}/working": 0.5 for kind in ("rollout", "policy", "learner")}
    waits = {"rollout/wait_slot": 0.4, "rollout/wait_actions": 0.1}
    return (
        working
        | waits
        | {
            "time_s": time_s,
            "env_frames": frames,
            "episode_return_mean": score,
            "episodes": 100,
            "learner_steps": steps,
            "worker_restarts": 0,
        }
    )


RECORDS = [record(float(t), max(0, t - 4) * 1000, 2.0 * t, max(0, t - 4)) for t in range(1, 21)]


def trial_of(env: str = "CartPole-v1", **changes: Any) -> Trial:
    """A trial in which all went well, but for the changes in what was seen."""
    seen = Look("Box", "Discrete(2)", 500, list(RULES), decisions=10_000, seconds=1.0, idle=0.0)
    seen = dataclasses.replace(
        *(seen,),
        **{"returns": [1.0, 2.0] * 50, "lengths": [10] * 100, "rewarded": 10_000, **changes},
    )
    config, spec = defaults_for(env), envs.describe(env)
    training = Training(RECORDS, None, is_machines=False)
    return Trial(env, 60.0, "", config=config, spec=spec, look=seen, training=training)


def flags_of(trial: Trial) -> list[str | None]:
    return [tip.flag for tip in advice(trial)]


def test_frames_per_s_leave_out_the_time_before_it_learned():
    curve = curve_of(RECORDS, [1.0, 2.0])
    assert curve.frames_per_s == pytest.approx(1000)
    assert verdict.minutes_to(trial_of(), 6_000_000) == pytest.approx(100)


@pytest.mark.parametrize(("score", "is_better"), [(50.0, True), (1.6, False), (-5.0, False)])
def test_training_is_better_than_random_play_by_more_than_chance(score, is_better):
    curve = curve_of([*RECORDS, record(21.0, 17_000, score, 17)], [1.0, 2.0] * 50)
    assert curve.is_better is is_better


def test_an_interval_holds_the_mean_about_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(0)
    means = [mean_of(rng.normal(3.0, 2.0, 30).tolist()) for _ in range(500)]
    hits = sum(abs(mean.mean - 3.0) < (mean.interval or 0) for mean in means)
    assert 0.90 < hits / 500 < 0.98


def test_the_last_checkpoint_limits_no_training():
    last = record(20.1, 16_050, 40.0, 16) | {"policy/working": 0.9}
    training = Training([*RECORDS, last], None, is_machines=False)
    trial = trial_of()
    assert verdict.limit_of(trial) is not None
    assert verdict.limit_of(dataclasses.replace(trial, training=training)) == verdict.limit_of(
        trial
    )
    long = training._replace(records=[*RECORDS, last | {"time_s": 21.0}])
    assert verdict.limit_of(dataclasses.replace(trial, training=long)) != verdict.limit_of(trial)


def test_in_order_there_is_nothing_to_set():
    assert advice(trial_of()) == []


def test_without_a_curve_it_is_told_when_episodes_will_end():
    trial = trial_of(lengths=[900] * 9)
    records = [each | {"episodes": 0, "episode_return_mean": None} for each in RECORDS]
    training = Training(records, None, is_machines=False, environments=40)
    told = " ".join(page(dataclasses.replace(trial, training=training)).split())
    assert "16,000 frames in 20 s, no episode has ended no curve random play's have 900" in told
    assert "40 environments need 36,000 frames to end theirs, 20 s more" in told
    assert "at this rate: --seconds=90 " in told
    young = training._replace(records=records[:1])
    assert "to end theirs; raise --seconds" in page(dataclasses.replace(trial, training=young))


@pytest.mark.parametrize(
    ("seen", "flag"),
    [
        ({"idle": 0.9, "seconds": 50.0}, "--threads-per-worker=16"),
        ({"rewarded": 0}, "--entropy-coef=0.06"),
        ({"rewarded": 10, "lengths": [500] * 20}, "--gamma=0.999"),
        ({"largest": {"obs": 500.0}}, "--normalize-obs"),
        ({"problems": [Problem("finite", "NaN", is_fatal=False)]}, "--on-nan=stop"),
        (
            {"returns": [], "max_episode_steps": None},
            """--wrappers='TimeLimit{"max_episode_steps":1000}'""",
        ),
    ],
)
def test_what_was_seen_leads_to_the_flag_that_helps(seen, flag):
    assert flags_of(trial_of(**seen)) == [flag]


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        ({"rewarded": 10}, "rewards are rare, one in 1,000 random decisions: reward progress"),
        ({"returns": [20.0] * 50}, "all 50 random episodes return 20"),
        ({"reset_seconds": 0.5, "resets": 100}, "resets take 50% of its time, 5.0 ms each"),
        ({"printed_bytes": 10_240}, "it printed 10 KiB"),
    ],
)
def test_what_no_flag_helps_is_told_with_its_figure(seen, text):
    [tip] = advice(trial_of(**seen))
    assert text in tip.text
    assert tip.flag is None


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({}, "--rnn=gru"),
        ({"system": "dqn"}, "--frame-stack=4"),  # which has no memory
        ({"system": "dqn", "frame_stack": 2}, None),
    ],
)
def test_where_nothing_is_learned_a_way_to_see_more_is_advised_if_there_is_one(given, flag):
    trial = trial_of(returns=[50.0, 60.0] * 50)
    config = dataclasses.replace(defaults_for("CartPole-v1", given), **given)
    [tip] = advice(dataclasses.replace(trial, config=config))
    assert "no better than random play after 16,000 frames" in tip.text
    assert tip.flag == flag


def test_every_flag_that_is_advised_is_one():
    from sfrl.commands.train import read_flags

    everything = trial_of(
        idle=0.9,
        seconds=50.0,
        rewarded=10,
        lengths=[500] * 20,
        largest={"obs": 500.0},
        problems=[Problem("finite", "NaN", is_fatal=False)],
    )
    assert read_flags([flag for flag in flags_of(everything) if flag])


def test_the_limit_is_the_tuners_where_it_has_measured_and_else_that_of_the_last_record():
    assert limit_of(trial_of()) == "limited by the learner"
    shares = {"environments": 0.2, "learning": 0.8}
    outlook = Outlook(5000.0, "limited by the learner", shares, {"a GPU": 4.0})
    measured = dataclasses.replace(trial_of(), outlook=outlook)
    assert limit_of(measured) == ("limited by the learner (work: 20% environments, 80% learning)")
    assert "a GPU would give up to 4.0 times the frames/s" in page(measured)


def test_a_chart_has_its_scores_at_their_places():
    lines = chart(curve_of(RECORDS, [1.0, 2.0]), 1.5)
    assert lines[0].startswith(f"{'40':>16} |") and lines[0].endswith("*")  # noqa: PT018
    assert lines[-2].startswith(f"{'random 1.5':>16} |--")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Pong", "tests.tiny_envs:Mixed-v0"])
def test_page_and_facts_of_any_space_fit(env):
    trial = trial_of(env)
    lines = page(trial).splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= WIDTH
    json.dumps(facts(trial), allow_nan=False)


def test_the_page_in_docs_has_every_rule():
    text = (ROOT / "docs" / "try.md").read_text()
    assert [rule for rule in RULES if f"| `{rule}` |" not in text] == []
