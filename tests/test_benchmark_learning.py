"""benchmarks.learning: areas, intervals, and runs that are made once."""

import json
import math
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning
from benchmarks.learning import Args, Curve, Job, Spent, Task
from benchmarks.runs import Point


def curve(frames: list[float], scores: list[float]) -> Curve:
    return Curve({axis: np.array(frames) for axis in learning.AXES}, np.array(scores))


def test_an_area_is_the_mean_score_over_the_budget_and_0_before_the_first_one():
    run = curve([100.0, 200.0, 400.0], [0.5, 1.0, 2.0])
    assert run.area("frames", 400) == pytest.approx((0.5 * 100 + 1.0 * 200) / 400)
    assert run.area("frames", 300) == pytest.approx((0.5 * 100 + 1.0 * 100) / 300)
    assert run.area("frames", 800) == pytest.approx((0.5 * 100 + 1.0 * 200 + 2.0 * 400) / 800)
    assert run.area("frames", 50) == 0


def test_a_curve_is_in_the_tasks_unit_and_has_the_time_of_a_core_beside_that_of_the_clock():
    points = [Point(2.0, 100, None), Point(4.0, 200, 10.0), Point(5.0, 300, 40.0)]
    spent = [Spent(0.0, 0.0), Spent(2.0, 1.0), Spent(6.0, 5.0)]
    made = learning.make_curve(points, spent, Task("any", 300, random=-20.0, good=40.0))
    assert made.score.tolist() == [0.0, 0.5, 1.0]
    assert made.x["core-seconds"].tolist() == [1.0, 3.0, 4.0]
    assert made.x["minutes"].tolist() == [2 / 60, 4 / 60, 5 / 60]
    assert made.x["frames"].tolist() == [100, 200, 300]


def test_variants_are_compared_over_what_all_their_runs_have_spent():
    areas = learning.areas_of(
        {
            "a": [curve([0.0, 100.0], [1.0, 1.0])],
            "b": [curve([0.0, 50.0, 200.0], [0.0, 1.0, 9.0])],
        },
        "minutes",
    )
    assert areas["a"].tolist() == [1.0]
    assert areas["b"].tolist() == [0.5]


def test_the_seeds_that_a_difference_needs_are_those_of_the_textbook():
    """Two groups half a deviation apart: 63 of each, with power 80% at a level of 5%."""
    group = np.array([-1.0, 1.0]) / math.sqrt(2)  # its deviation is 1
    assert learning.compare([(group, group + 0.5)]).seeds == 63
    assert learning.compare([(group, group + 50.0)]).seeds == 2
    same = learning.compare([(group, group)])
    assert same.seeds is None
    assert same.in_words() == "95%: -1.414 to +1.414, no difference"


def test_an_interval_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(3)
    verdicts = [
        learning.compare([(rng.normal(0.0, 1.0, 30), rng.normal(1.0, 1.0, 30))]) for _ in range(200)
    ]
    covered = np.mean([low <= 1.0 <= high for _, (low, high), _ in verdicts])
    assert 0.89 <= covered <= 0.99


def test_tasks_are_averaged_with_each_tasks_own_seeds():
    before, after = np.array([0.0, 0.2]), np.array([1.0, 1.2])
    verdict = learning.compare([(before, after), (before, before)])
    assert verdict.difference == pytest.approx(0.5)
    low, high = verdict.interval
    assert low < 0.5 < high
    assert learning.compare([(before[:1], after[:1])]) == (1.0, None, None)


def test_with_one_seed_the_table_says_so_and_its_values_are_json():
    runs = {"now": [curve([0.0, 100.0], [0.0, 1.0])], "new": [curve([0.0, 50.0], [0.0, 1.0])]}
    lines, values = learning.table({"Catch": runs})
    assert "new against now" in lines[3]
    assert "one seed, no interval" in lines[3]
    assert "nan" not in "".join(lines)
    verdict = json.loads(json.dumps(values[2], allow_nan=False))
    assert verdict["interval"] is verdict["seeds"] is None


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        ([], "no variant is given"),
        (["--epochs=2"], None),
        (["=--epochs=2"], "must be NAME=FLAGS"),
        (["a/b="], "must be NAME=FLAGS"),
        (["a=", "a=--epochs=2"], "a names two variants"),
    ],
)
def test_variants_have_names_of_their_own(variants, problem):
    if problem is None:
        assert learning.parse_variants(variants) == {"--epochs": ("2",)}
        return
    with pytest.raises(ValueError, match=problem):
        learning.parse_variants(variants)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"tasks=Pongg must be among .*Pong, Breakout"):
        learning.make_jobs(Args(variants=("a=",), tasks="Pong,Pongg"))


@pytest.mark.parametrize("task", learning.TASKS.values())
def test_a_good_score_is_above_a_random_one(task):
    assert task.good > task.random


def test_runs_are_made_once_and_their_verdict_is_told(tmp_path, capsys):
    flags = "--num-workers=1 --envs-per-worker=16 --rollout-length=16 --batch-size=128"
    args = Args(
        variants=(f"now={flags}", f"0.5 epochs={flags} --epochs=1", f"0.6={flags} --epochs=3"),
        tasks="Catch",
        seeds=1,
        frames=3000,
        out=tmp_path,
    )
    learning.main(args)
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    told = {(v["axis"], v["variant"]) for v in result["results"] if "areas" in v}
    assert told == {(axis, name) for axis in learning.AXES for name in ("now", "0.5 epochs", "0.6")}
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("Catch/*/metrics.jsonl")}
    assert len(made) == 3

    learning.main(args)  # as after it was stopped
    assert lines[-1] == capsys.readouterr().out.splitlines()[-1]
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())

    assert result["made_by"] == [f"{result['commit']} on {result['cpu']}"]
    [kept] = tmp_path.glob("Catch/now-1.json")
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"commit": "another"}))
    learning.main(args)
    assert "these runs are of 2 commits or machines: " in capsys.readouterr().out

    other = Args(variants=("now=--epochs=1",), tasks="Catch", seeds=1, frames=3000, out=tmp_path)
    with pytest.raises(ValueError, match=r"now-1.json is a run of .*give the variant another name"):
        learning.main(other)


def test_a_run_that_fails_is_told_with_what_it_said_and_is_not_kept(tmp_path):
    args = Args(variants=("bad=--epochs=0",), tasks="Catch", seeds=1, out=tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)ended after 0 of 60000 frames.*epochs=0 must be"):
        learning.main(args)
    assert not list(tmp_path.glob("**/*.json"))


def test_a_run_that_was_cut_off_is_made_again(tmp_path):
    command = ("--env=tests.tiny_envs:Catch-v0", *learning.FLAGS, "--seed=1")
    job = Job("Catch", "a", 1, command, 2000)
    folder: Path = job.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("left over\n")
    learning.train(job, tmp_path, core=min(os.sched_getaffinity(0)))
    kept = json.loads(folder.with_suffix(".json").read_text())
    assert shlex.join(kept["command"]) == shlex.join(command)
    assert learning.read_curve(job, tmp_path).x["frames"][-1] >= 2000
