"""`sfrl status` and `sfrl list`, and what all that ask about a run have in common."""

import dataclasses
import fcntl
import functools
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfrl import commands, train
from sfrl.__main__ import COMMANDS
from sfrl.commands import EXIT_FAILURE, EXIT_USAGE, compare, diagnose, plot, rm, status, video
from sfrl.commands import list as list_command
from sfrl.records import run_folder
from sfrl.runs import comparison, reader
from sfrl.runs.comparison import mean_of
from sfrl.runs.plot import draw
from tests.commands.test_diagnose import SMALL
from tests.runs import ROOT, TIMEOUT_S

ASKING = ("status", "diagnose", "compare", "plot", "video", "list", "rm")
RUNS = ("first", "second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `runs/first` and `runs/second`, two runs that have ended."""
    folder = tmp_path_factory.mktemp("asked")
    for seed, name in enumerate(RUNS, start=1):
        settings = {**SMALL, "env": "CartPole-v1", "train_frames": 1200, "seed": seed}
        train(**settings, run_dir=folder / "runs" / name)
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def told(command, *argv, capsys):
    assert command.main([*argv, "--json"], "sfrl") == 0
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.usefixtures("in_folder")
def test_status_tells_what_the_newest_record_has(folder, capsys):
    facts = told(status, "first", capsys=capsys)
    last = json.loads((folder / "runs/first/metrics.jsonl").read_text().splitlines()[-1])
    for name in ("time_s", "env_frames", "episodes", "episode_return_mean"):
        assert facts[name] == last[name] is not None
    assert (facts["env"], facts["seed"], facts["state"]) == ("CartPole-v1", 1, "ended")
    assert facts["checkpoint"].startswith(str(folder / "runs/first/checkpoints/latest-"))
    assert status.main(["first"], "sfrl") == 0
    text = capsys.readouterr().out
    assert f"{last['env_frames']:,}" in text
    assert "working     rollout " in text
    assert re.search(r"^limit       limited by ", text, re.M)


@pytest.mark.usefixtures("in_folder")
def test_a_run_is_named_by_folder_or_name_and_is_the_newest_otherwise(folder, capsys):
    for argv in (["second"], ["runs/second"], [str(folder / "runs/second")], []):
        assert told(status, *argv, capsys=capsys)["folder"] == str(folder / "runs/second")


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["secnd"], "secnd is no folder, and no run in runs/; did you mean second?"),
        (["."], ". is not a run's folder, for nothing of a run is in it"),
        (["first", "second"], "first second are 2 names; name one"),
        (["--run-dir=first"], "--run-dir is unknown; name the run without a flag"),
    ],
)
def test_what_is_no_run_is_told_in_a_line(argv, text, capsys):
    assert status.main(argv, "sfrl status") == EXIT_USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sfrl status: {text}")


@pytest.mark.parametrize("command", [status, compare])
def test_where_nothing_was_trained_is_told_so(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([], "sfrl") == EXIT_USAGE
    assert capsys.readouterr().err.startswith("sfrl: no run in runs/; train one first")


@pytest.mark.usefixtures("in_folder")
def test_list_has_all_runs_of_a_folder(folder, capsys):
    listed = told(list_command, capsys=capsys)
    assert [run["name"] for run in listed["runs"]] == ["first", "second"]
    assert listed["folder"] == told(list_command, "runs", capsys=capsys)["folder"]
    assert list_command.main([str(folder)], "sfrl list") == 0
    assert "no runs in " in capsys.readouterr().out


def test_who_only_looks_hinders_no_trainer(tmp_path):
    """It shares its lock, and a trainer that comes in this moment waits until it lets go."""
    assert not run_folder.is_locked(tmp_path)
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    started_s = time.monotonic()
    if (child := os.fork()) == 0:  # it has the descriptor, and with it the lock, for a while
        time.sleep(0.2)
        os._exit(0)
    os.close(looking)
    lock = run_folder.lock(tmp_path)
    assert time.monotonic() - started_s > 0.1
    assert run_folder.is_locked(tmp_path)
    with pytest.raises(run_folder.RunFolderError, match="is in use by a run that still goes on"):
        run_folder.lock(tmp_path)
    run_folder.unlock(lock)
    assert not run_folder.is_locked(tmp_path)
    os.waitpid(child, 0)


# --- several runs ---
@pytest.mark.usefixtures("in_folder")
def test_runs_that_differ_in_their_seeds_are_one_line_with_an_interval(folder, capsys):
    second = json.loads((folder / "runs/second/config.json").read_text())
    # How the settings have come about does not count.
    from_file = {"config": "runs/second/config.json", "tune": "now", "env_kwargs": " {}"}
    of_before = second | from_file
    del of_before["forced_lag"]  # which there was not when it began
    (folder / "runs/second/config.json").write_text(json.dumps(of_before))
    third = second | {"gamma": 0.5, "seed": 3}
    other = folder / "other/third"
    shutil.copytree(folder / "runs/second", other)
    (other / "config.json").write_text(json.dumps(third))
    scores = [told(status, name, capsys=capsys)["episode_return_mean"] for name in RUNS]
    both, alone = told(compare, "runs", "other", capsys=capsys)["groups"]
    assert [run["seed"] for run in both["runs"]] == [1, 2]
    assert (both["settings"], alone["settings"]) == ({"gamma": 0.995}, {"gamma": 0.5})
    assert both["score"]["mean"] == pytest.approx(sum(scores) / 2)
    assert both["score"]["low"] == min(scores) < max(scores) == both["score"]["high"]
    assert alone["score"] == {"mean": scores[1], "low": None, "high": None}
    assert compare.main(["runs", "other"], "sfrl compare") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["CartPole-v1", "gamma=0.995", "2"],
        ["CartPole-v1", "gamma=0.5", "1"],
    ]
    [group] = told(compare, "runs", capsys=capsys)["groups"]
    assert group["settings"] == {}


def test_the_bootstrap_interval_narrows_with_seeds_and_is_the_means():
    rng = np.random.default_rng(1)
    for seeds in (10, 1000):
        mean, low, high = mean_of(rng.normal(5, 2, seeds).tolist())
        half = 1.96 * 2 / seeds**0.5
        assert mean == pytest.approx(5, abs=2 * half)
        assert (high - low) / 2 == pytest.approx(half, rel=0.5)
    assert mean_of([1.0, None]) is None
    assert mean_of([]) is None


@pytest.mark.usefixtures("in_folder")
def test_plot_draws_all_runs_against_minutes_frames_and_decisions(folder, capsys):
    path = folder / "curves.svg"
    drawn = told(plot, "first", "second", f"--file={path}", capsys=capsys)
    assert drawn == {"file": str(path), "runs": [str(folder / "runs" / name) for name in RUNS]}
    picture = path.read_text()
    for axis in ("minutes", "million frames", "million decisions"):
        assert f"<!-- {axis} -->" in picture
    assert plot.main(["first"], "sfrl plot") == 0
    assert capsys.readouterr().out == f"{folder}/runs/first/score.png\n"
    with Image.open(folder / "runs/first/score.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert plot.main(["first", "--file=curves.txt"], "sfrl plot") == EXIT_USAGE
    assert plot.main(["first", "--file=nowhere/curves.png"], "sfrl plot") == EXIT_FAILURE


@pytest.mark.usefixtures("in_folder")
def test_plot_leaves_out_who_has_no_score_yet(folder, capsys):
    young = folder / "runs/young"
    shutil.copytree(folder / "runs/first", young)
    (young / "metrics.jsonl").write_text("")
    settings = json.loads((young / "config.json").read_text())
    (young / "config.json").write_text(json.dumps(settings | {"gamma": 0.5}))
    try:
        assert plot.main(["first", "young", "--file=two.png"], "sfrl plot") == 0
        out, err = capsys.readouterr()
        assert out == "two.png\n"
        assert err == f"{young} is left out: it has no score yet\n"
        assert plot.main(["first", "--file=one.png"], "sfrl plot") == 0
        assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
        assert plot.main(["young"], "sfrl plot") == EXIT_USAGE
    finally:
        shutil.rmtree(young)


@pytest.mark.usefixtures("in_folder")
def test_a_picture_of_many_groups_has_room_for_their_names(folder):
    run = reader.read(folder / "runs/first")
    settings = [{**run.settings, "gamma": 0.5 + i / 100} for i in range(40)]
    groups = comparison.compare([dataclasses.replace(run, settings=each) for each in settings])
    draw(groups, folder / "many.png")  # matplotlib warns where it finds none
    with Image.open(folder / "many.png") as many:
        assert many.height > many.width / 2


def test_the_score_at_so_many_frames_is_that_of_a_long_run_too(tmp_path):
    """Of which the other answers read some records alone."""
    path = tmp_path / "metrics.jsonl"
    rest = {"time_s": 1.0, "filler": 0.123456789}
    scores = [None if i == 0 or 10_000 <= i < 10_700 else i for i in range(20_000)]
    lines = [
        json.dumps({"env_frames": 1000 * i, "episode_return_mean": score, **rest})
        for i, score in enumerate(scores)
    ]
    path.write_text("no record\n".join(f"{line}\n" for line in lines))
    at = functools.partial(reader.value_at, path, "episode_return_mean")
    for frames, score in ((500_900, 500), (1_000, 1), (19_999_000, 19_999), (10**9, 19_999)):
        assert at(frames) == score
    assert at(10_699_000) == 9_999  # the run was resumed, and no episode has ended again
    assert at(999) is at(-1) is None
    assert reader.value_at(tmp_path / "none", "episode_return_mean", 5) is None


# --- one run's film, and its end ---
@pytest.mark.usefixtures("in_folder")
def test_video_films_the_newest_checkpoint_into_the_runs_folder(folder, capsys):
    told_of = told(video, "first", capsys=capsys)
    assert told_of["video"] == str(folder / "runs/first/video.mp4")
    assert told_of["episodes"] == 1
    assert b"ftyp" in (folder / "runs/first/video.mp4").read_bytes()[:12]
    assert video.main(["first", "--file=film.avi"], "sfrl video") == EXIT_USAGE
    assert "video=film.avi must end in .mp4 or .gif" in capsys.readouterr().err


@pytest.fixture
def doomed(folder, tmp_path, monkeypatch):
    """A run in `runs/` that may be deleted."""
    shutil.copytree(folder / "runs/first", tmp_path / "runs/doomed")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/doomed"


def test_rm_deletes_all_of_a_run(doomed, capsys):
    (doomed / "checkpoints/latest-000000000001.pt.left").touch()
    (doomed / "videos").mkdir()
    for name in ("000000000640-latest.mp4", "unfinished-3.mp4"):
        (doomed / "videos" / name).touch()
    assert told(rm, "doomed", "--yes", capsys=capsys) == {"removed": [str(doomed)], "left": []}
    assert not doomed.exists()
    assert doomed.parent.is_dir()


def test_rm_without_a_stdin_asks_nobody(doomed):
    command = [sys.executable, "-m", "sfrl", "rm", "doomed"]
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert ended.returncode == EXIT_USAGE
    assert "nobody can be asked here whether to delete; add --yes" in ended.stderr


def test_rm_leaves_what_is_not_the_runs(doomed, capsys):
    (doomed / "videos").mkdir()
    (doomed / "wandb").mkdir()
    names = ("checkpoints/latest-1 (copy).pt", "notes.txt", "videos/holiday.mp4", "wandb/x.wandb")
    for name in names:
        (doomed / name).write_text("precious")
    assert rm.main(["doomed", "--yes"], "sfrl rm") == 0
    text = capsys.readouterr().out
    assert f"deleted {doomed}; left, for sfrl has not written it: {doomed}/checkpoints" in text
    assert "`wandb sync` sends what is not sent yet" in text
    left = [str(path.relative_to(doomed)) for path in doomed.rglob("*") if path.is_file()]
    assert sorted(left) == [*names]


def test_rm_refuses_what_it_must_not_delete_and_then_deletes_nothing(doomed, capsys):
    (doomed.parent / "link").symlink_to(doomed)
    (doomed.parent / "other").mkdir()
    (doomed.parent / "other/notes.txt").touch()
    (doomed / "checkpoints/best.pt").touch()
    lock = run_folder.lock(doomed)
    files = sorted(doomed.parent.rglob("*"))
    for argv, text in {
        ("--yes",): "name the runs to be deleted",
        ("doomed",): "doomed is a live run; stop it first",
        ("link", "--yes"): "link is a link; name the folder itself",
        ("other", "--yes"): "other is not a run's folder",
        ("doomed/checkpoints", "--yes"): "doomed/checkpoints is not a run's folder",
        ("nowhere", "--yes"): "nowhere is no folder, and no run in runs/",
    }.items():
        assert rm.main(argv, "sfrl rm") == EXIT_USAGE
        assert text in capsys.readouterr().err
    run_folder.unlock(lock)
    assert rm.main(["doomed", "other", "--yes"], "sfrl rm") == EXIT_USAGE
    assert rm.main(["doomed"], "sfrl rm") == EXIT_USAGE
    assert "nobody can be asked here whether to delete; add --yes" in capsys.readouterr().err
    assert sorted(doomed.parent.rglob("*")) == files


@pytest.mark.usefixtures("doomed")
def test_files_of_other_programs_are_no_run(capsys):
    others = {
        "config.json": '{"env": "Pong", "rollout_length": 1}',
        "log.txt": "2026-01-01 00:00:00,000 training started\n",
        "metrics.jsonl": '{"loss": 1}\n',
        "checkpoints/best.pt": "precious",
        "checkpoints/latest-12.pt": "precious",
        "events.out.tfevents.1": "precious",
    }
    for name, text in others.items():
        for path in (Path("runs/other", name), Path("runs", name)):  # a writer's own folder, too
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert rm.main(["other", "--yes"], "sfrl rm") == EXIT_USAGE
    assert "other is not a run's folder" in capsys.readouterr().err
    assert Path("runs/other/checkpoints/best.pt").exists()
    assert [run["name"] for run in told(list_command, capsys=capsys)["runs"]] == ["doomed"]
    assert len(told(compare, "runs", capsys=capsys)["groups"]) == 1
    assert status.main([], "sfrl status") == 0
    with pytest.raises(run_folder.RunFolderError, match="already holds a run"):
        run_folder.check_new(Path("runs/other"))  # whose files it would write over


def test_a_folder_with_a_checkpoint_alone_is_a_run_and_not_deleted(doomed, capsys):
    for path in doomed.rglob("*"):
        if path.is_file() and path.parent == doomed:
            path.unlink()
    assert run_folder.holds_a_run(doomed)
    assert rm.main(["doomed", "--yes"], "sfrl rm") == EXIT_USAGE
    assert "doomed has checkpoints alone" in capsys.readouterr().err
    assert list((doomed / "checkpoints").iterdir())


@pytest.mark.parametrize("left", ["config.json", "log.txt", "metrics.jsonl"])
def test_any_file_of_a_run_tells_that_it_is_one(left, doomed):
    for path in doomed.rglob("*"):
        if path.is_file() and str(path.relative_to(doomed)) != left:
            path.unlink()
    assert run_folder.holds_a_run(doomed)
    assert run_folder.has_records(doomed)
    (doomed / left).unlink()
    assert not run_folder.holds_a_run(doomed)


@pytest.mark.parametrize(("reply", "is_left"), [("y\n", False), ("\n", True), ("", True)])
def test_rm_asks_in_a_terminal(reply, is_left, doomed):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "sfrl", "rm", "doomed"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        os.write(ours, reply.encode() or b"\x04")  # the end of a terminal's input
        text, _ = process.communicate(timeout=TIMEOUT_S)
    os.close(ours)
    assert "CartPole-v1, 1,2" in text
    assert "delete it? [y/N]" in text
    assert process.returncode == (EXIT_FAILURE if is_left else 0)
    assert doomed.exists() == is_left


def test_every_exit_code_of_the_table_is_returned(doomed):
    table = re.findall(r"^\| (\d+) \| ", (ROOT / "docs/runs.md").read_text(), re.M)
    codes = {name: code for name, code in vars(commands).items() if name.startswith("EXIT_")}
    assert [int(code) for code in table] == [0, *codes.values()]
    (doomed / "log.txt").write_text("2026-01-01 00:00:00,000 the run failed: no luck\n")
    assert status.main(["doomed"], "sfrl status") == 0
    assert plot.main(["doomed", "--file=nowhere/x.png"], "sfrl plot") == commands.EXIT_FAILURE
    assert status.main(["nowhere"], "sfrl status") == commands.EXIT_USAGE
    assert diagnose.main(["doomed"], "sfrl diagnose") == commands.EXIT_FOUND
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "sfrl", "rm", "doomed"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE) as process:
        while b"[y/N]" not in process.stdout.readline():  # it asks in a line of its own
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == commands.EXIT_INTERRUPTED
    os.close(ours)
    os.close(theirs)
    assert doomed.exists()


# --- the reader ---
def test_what_others_have_done_to_the_records_is_left_out(folder, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(folder / "runs/first", run_dir)
    records = reader.read(run_dir).records
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('[]\nnull\n{"time_s": 1}\n{"time_s": "x", "env_frames": 1}\n')
        file.write('{"time_s": NaN, "env_frames": 1}\n{"time_s": 1e999, "env_frames": 1}\n')
        file.write(f"{'[' * 100_000}\n\n\x00\xff\n")
        file.write('{"time_s": 9, "env_frames": 9')  # half a line
    assert reader.read(run_dir).records == records
    (run_dir / "config.json").write_text('{"env": ["x"], "seed": 3, "gamma": NaN}')
    run = reader.read(run_dir)
    assert (run.env, run.settings["seed"], run.system) == ("?", 3, "appo")
    (run_dir / "config.json").write_text("[" * 100_000)
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "log.txt").unlink()
    empty = reader.read(run_dir)
    assert (empty.settings, empty.records, empty.log) == ({}, [], "")
    os.mkfifo(run_dir / "metrics.jsonl")
    with pytest.raises(run_folder.RunFolderError, match="is neither a file nor a folder"):
        reader.read(run_dir)


def test_a_hundred_long_runs_are_read_in_two_seconds(folder, tmp_path):
    """Links to one file, which the machine has to read as often. The best of three counts: other
    programs slow the core down."""
    line = (folder / "runs/first/metrics.jsonl").read_text().splitlines()[-1]
    record = json.loads(line)
    long = tmp_path / "metrics.jsonl"
    with long.open("w") as file:
        for index in range(10_000):
            file.write(json.dumps({**record, "time_s": float(index), "env_frames": index}) + "\n")
        file.write(line[:-10])
    for index in range(100):
        run_dir = tmp_path / "runs" / str(index)
        run_dir.mkdir(parents=True)
        shutil.copy(folder / "runs/first/config.json", run_dir)
        shutil.copy(folder / "runs/first/log.txt", run_dir)
        os.link(long, run_dir / "metrics.jsonl")
    took_s = []
    for _ in range(3):
        started_s = time.process_time()
        runs = reader.read_all(tmp_path / "runs")
        took_s.append(time.process_time() - started_s)
    assert min(took_s) < 2
    assert len(runs) == 100
    times = [record["time_s"] for record in runs[0].records]
    assert (times[0], times[-1]) == (0, 9999)
    assert 290 < len(times) == len(set(times)) < 310
    assert times == sorted(times)
    assert max(b - a for a, b in itertools.pairwise(times)) < 40


@pytest.mark.parametrize("name", ["bench", "demo", "try"])
def test_a_command_that_trains_as_well_has_help_like_the_others(name, capsys):
    module = importlib.import_module(f"sfrl.commands.{name}")
    with pytest.raises(SystemExit) as leaving:
        module._read(["--help"], f"sfrl {name}")
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert re.match(rf"usage: sfrl {name} .*\[--name=value \| --switch \.\.\.\]\n", text)
    assert re.search(r"^The (measurement|page|trial):\n  --\S+ (FLOAT|STR) ", text, re.M)
    assert "Takes the flags of sfrl train as well." in " ".join(text.split())
    assert "help-all" not in text  # which would tell no more


def test_every_command_has_help_and_says_json(capsys):
    for name in ASKING:
        assert name in COMMANDS
        with pytest.raises(SystemExit) as leaving:
            importlib.import_module(f"sfrl.commands.{name}").main(["--help"], f"sfrl {name}")
        assert leaving.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: sfrl {name} " in text
        assert "--json" in text
