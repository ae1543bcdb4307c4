"""The panel in which a run's agent plays: its process, what it tells, and the page."""

import base64
import dataclasses
import http.client
import io
import json
import math
import os
import shutil
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
from PIL import Image

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.records import checkpoint
from sfrl.settings.algorithms import make_config
from sfrl.web import playing
from tests.runs import TIMEOUT_S, hasten, wait_for
from tests.web.test_web import get, overflow, page_of, served

DRAWN = "document.querySelector('canvas[aria-label]').toDataURL()"


def players():
    """The processes that play."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() == "sfrl play":
                found.append(process)
    return found


def gives_way(process):
    own_share = Path(f"/proc/{process.pid}/autogroup")
    return (
        process.nice() == 19
        and os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        and (not own_share.exists() or own_share.read_text().endswith("nice 19\n"))
    )


@contextmanager
def watching(url, run):
    """What is told, one after the other."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=TIMEOUT_S)
    with closing(connection):
        connection.request("GET", f"/api/play?run={run}")
        response = connection.getresponse()
        lines = (line.decode() for line in response)
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.strip())


def picture_of(frame):
    return Image.open(io.BytesIO(base64.b64decode(frame["picture"])))


def test_an_agent_plays_while_somebody_watches_in_one_process_that_gives_way(
    browser, folder, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(folder / "first", run)
    (run / "checkpoints").rename(tmp_path / "later")
    with ExitStack() as last, served(tmp_path) as url, page_of(browser, 360, "dark") as page:
        page.goto(f"{url}#/run?run=run")
        page.locator("#watch").wait_for()
        page.focus("#watch")
        assert players() == []
        page.keyboard.press("Enter")
        wait_for(players)
        [player] = players()
        wait_for(lambda: gives_way(player))
        hasten(player.pid)
        page.get_by_text("The run has no checkpoint yet.").wait_for()
        (tmp_path / "later").rename(run / "checkpoints")
        page.locator("canvas[aria-label]").wait_for()
        before = page.evaluate(DRAWN)
        wait_for(lambda: page.evaluate(DRAWN) != before)
        with watching(url, "run") as told:
            frames = [next(told), next(told)]
            assert players() == [player]  # for both who watch
        assert frames[0]["steps"] < frames[1]["steps"] or frames[0]["episode"] < 2
        assert picture_of(frames[0]).size == (600, 400)
        assert page.locator(".bars li").count() == 2
        shares = page.locator(".bars .number").all_text_contents()
        assert sum(int(share.removesuffix("%")) for share in shares) in (99, 100, 101)
        assert overflow(page) <= 0
        assert "watch=1" in page.url
        state = checkpoint.load_latest(run).state
        state["counters"]["env_frames"] = 98765
        checkpoint.save(run, state, 98765)
        page.get_by_text("The checkpoint of 98,765 frames plays.").wait_for()

        player.kill()
        page.get_by_text("The process that plays was killed by SIGKILL").wait_for()
        assert page.text_content("#watch") == "Watch"
        page.keyboard.press("Enter")
        wait_for(players)
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        wait_for(lambda: not players())
        assert get(url, "/api/play?run=none")[0] == 404
        assert get(url, "/api/play?run=run", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        last.enter_context(watching(url, "run"))  # Ctrl-C finds somebody who watches
        wait_for(players)
    assert players() == []


def untrained(run_dir, env, **settings):
    """The agent of a run that has learned nothing."""
    given = {"env": env, "model": "flat", "frameskip": 1, "run_dir": str(run_dir), **settings}
    config = make_config(given)
    model = make_algorithm(config, envs.describe(config.env, config.env_options)).make_model()
    state = {"model": model.state_dict(), "optimizer": {}, "rng": {}}
    state |= {"config": dataclasses.asdict(config), "counters": {"env_frames": 640}}
    checkpoint.save(run_dir, state, 640)
    return playing._Agent(run_dir)


def frames_of(agent, most=5):
    """Of an episode's start, as the page gets them."""
    moments = agent.player.episode(0, most)
    return [json.loads(json.dumps(agent.frame(1, m, [])._asdict())) for m in moments]


def test_an_environment_without_pictures_is_told_with_its_values(tmp_path):
    agent = untrained(tmp_path, "tests.tiny_envs:Catch-v0")
    first = frames_of(agent)[0]
    assert first["picture"] is None
    assert "rgb_array" in first["no_picture"]
    assert isinstance(first["value"], float)
    [choice] = first["choices"]
    assert [name for name, _ in choice["bars"]] == ["0", "1", "2"]
    assert sum(share for _, share in choice["bars"]) == pytest.approx(1)
    assert choice["taken"] in ("0", "1", "2")


@pytest.mark.parametrize(("settings", "has_value"), [({}, True), ({"system": "sac"}, False)])
def test_numbers_are_told_within_their_bounds(settings, has_value, tmp_path):
    first, *_, last = frames_of(untrained(tmp_path, "Pendulum-v1", **settings))
    assert (first["value"] is not None) == has_value
    [number] = first["numbers"]
    assert (number["low"], number["high"]) == (-2, 2)
    assert -2 <= number["below"] < number["mean"] < number["above"] <= 2
    assert -2 <= number["taken"] <= 2
    assert picture_of(first).format in ("PNG", "JPEG")
    assert (last["steps"], last["choices"], last["numbers"]) == (5, [], [])
    assert last["picture"] is not None  # the end is seen


def test_values_of_actions_are_told_where_these_are_learned(tmp_path):
    first = frames_of(untrained(tmp_path, "CartPole-v1", system="dqn"))[0]
    assert first["are_values"]
    assert first["value"] is None
    [choice] = first["choices"]
    assert all(math.isfinite(value) for _, value in choice["bars"])


def test_each_part_of_an_action_is_told_by_its_name(tmp_path):
    agent = untrained(tmp_path, "tests.tiny_envs:Mixed-v0", model="mlp")
    first = frames_of(agent)[0]
    choices = {choice["name"]: choice for choice in first["choices"]}
    assert list(choices) == ["parts 0", "parts 1 0", "parts 1 1", "side"]
    assert [name for name, _ in choices["parts 0"]["bars"]] == ["-1", "0", "1"]
    assert [share for _, share in choices["parts 1 0"]["bars"]] == [0, 1, 0]  # by its mask
    assert [number["name"] for number in first["numbers"]] == ["push 0", "push 1"]


def test_of_many_actions_the_likeliest_are_told_and_the_others_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(playing, "_MOST_BARS", 2)
    [choice] = frames_of(untrained(tmp_path, "tests.tiny_envs:Catch-v0"))[0]["choices"]
    assert len(choice["bars"]) == 2
    assert sum(share for _, share in choice["bars"]) + choice["rest"] == pytest.approx(1)
    assert choice["rest"] <= min(share for _, share in choice["bars"])


def test_a_damaged_checkpoint_is_a_sentence(tmp_path):
    untrained(tmp_path, "CartPole-v1")
    [path] = checkpoint.latest_paths(tmp_path)
    path.write_bytes(b"no checkpoint")
    receiver, sender = Pipe(duplex=False)
    with receiver, sender:
        playing.play_on(sender, tmp_path)
        told = json.loads(receiver.recv())
    assert "has no checkpoint that can be read" in told["problem"]
    assert "\n" not in told["problem"]


def test_actions_have_the_names_that_the_game_gives_them(tmp_path):
    agent = untrained(tmp_path, "Pong", model="nature_cnn", frameskip=4)
    first = frames_of(agent)[0]
    names = [name for name, _ in first["choices"][0]["bars"]]
    assert names == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert picture_of(first).size == (160, 210)
    assert first["picture_type"] == "image/png"
