"""What config.json keeps of each start of a run, beside the settings."""

import json
import sys
from datetime import datetime

import pytest

from sfrl import __version__
from sfrl.records import checkpoint, start
from sfrl.records.start import this_start, with_start
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import MAX_CONFIG_BYTES, load_config, load_starts
from sfrl.settings.config import ConfigError
from sfrl.settings.machine import machine


def test_a_start_has_what_made_it(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", '--env-kwargs={"a": 1}'])
    told, where = this_start(5), machine()
    assert told["command"] == """python train.py '--env-kwargs={"a": 1}'"""
    assert (told["env_frames"], told["version"]) == (5, __version__)
    assert told["commit"] == where["commit"]
    assert told["machine"]["cpu"] == where["cpu"]
    assert told["machine"]["versions"] == where["versions"]
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(told["time"])).seconds) < 60


def test_settings_are_read_without_the_starts_and_the_starts_without_them(tmp_path):
    config, starts = ActorCriticConfig(seed=3), [this_start(0), this_start(100)]
    checkpoint.save_config(config, tmp_path, starts)
    assert load_config(tmp_path / "config.json") == config
    assert load_starts(tmp_path / "config.json") == starts


def test_a_file_of_before_has_no_starts(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    assert load_starts(tmp_path / "config.json") == []


@pytest.mark.parametrize("starts", ["1", '{"version": "1"}', "[1]", "[[]]"])
def test_starts_that_are_none_are_refused(tmp_path, starts):
    path = tmp_path / "config.json"
    path.write_text(f'{{"starts": {starts}}}')
    for load in (load_config, load_starts):
        with pytest.raises(ConfigError, match="must be a list of objects, one for each start"):
            load(path)


def test_a_file_of_another_version_is_told_as_such_where_it_does_not_fit(tmp_path):
    path = tmp_path / "config.json"
    starts = [{"version": __version__}, {"version": "0.0.7"}]
    path.write_text(json.dumps({"learning_rat": 1e-3, "starts": starts}))
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert f"{path} (of sfrl 0.0.7, and this is {__version__}): unknown setting" in str(
        refusal.value
    )
    assert "did you mean learning_rate" in str(refusal.value)


def test_a_run_of_many_starts_and_long_commands_can_still_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "\x1b\ud800" * 100_000])
    own: start.Start = {**this_start(0), "machine": {"cpu": "x" * 1000}}
    starts: list[start.Start] = []
    for frames in range(300):
        starts = with_start(starts, {**own, "env_frames": frames})
    assert len(starts) == 100
    assert [starts[i]["env_frames"] for i in (0, 1, -1)] == [0, 201, 299]
    checkpoint.save_config(ActorCriticConfig(), tmp_path, starts)
    assert (tmp_path / "config.json").stat().st_size < MAX_CONFIG_BYTES
    assert load_starts(tmp_path / "config.json") == starts
