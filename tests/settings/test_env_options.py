"""Settings that decide how environments are made: flags, files, arguments, who asks for them."""

import dataclasses
import json
from pathlib import Path

import pytest

from sfrl import envs, train
from sfrl.commands import train as cli
from sfrl.envs import EnvOptions
from sfrl.ipc.shared_memory import unlink_segments
from sfrl.records import checkpoint
from sfrl.run.description import describe
from sfrl.run.trainer import Trainer
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import config_from, load_config
from sfrl.settings.config import ConfigError

CARTPOLE = ["--env=CartPole-v1", "--serial"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_config_has_all_options():
    config = ActorCriticConfig(
        env="CartPole-v1",
        frameskip=1,
        max_episode_frames=7,
        action_bounds="tanh",
        on_nan="stop",
        env_kwargs='{"sutton_barto_reward": true}',
        wrappers="FlattenObservation",
        frame_stack=2,
        observe_last=True,
        threads_per_worker=3,
    )
    assert config.env_options == EnvOptions(
        frameskip=1,
        max_episode_frames=7,
        bounds="tanh",
        on_nan="stop",
        kwargs={"sutton_barto_reward": True},
        wrappers="FlattenObservation",
        frame_stack=2,
        observe_last=True,
        threads=3,
    )


def test_the_process_that_describes_an_environment_has_its_options():
    options = EnvOptions(
        kwargs={"sutton_barto_reward": True}, wrappers="FlattenObservation", frame_stack=3
    )
    spec = describe("CartPole-v1", options, 60)
    assert spec == envs.describe("CartPole-v1", options)
    assert spec.leaves[0].shape == (12,)
    with pytest.raises(ValueError, match="the wrapper GrayscaleObservation failed"):
        describe("CartPole-v1", EnvOptions(wrappers="GrayscaleObservation"), 60)


def test_what_is_given_decides_what_is_described():
    config = cli.parse([*CARTPOLE, "--frame-stack=2", "--observe-last", "--run-dir=x"])
    spec = envs.describe(config.env, config.env_options)
    assert [leaf.shape for leaf in spec.leaves] == [(8,), (2,), (1,)]


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["--env-kwargs=[1]"], ["env_kwargs=[1] must be a JSON object, such as"]),
        (["--env-kwargs={", "--rnn=gru"], ["env_kwargs={ must be a JSON object"]),
        (["--env-kwargs={", "--wrappers=A B"], ["env_kwargs={ must be", "wrappers=A B must have"]),
        (["--frame-stack=0"], ["frame_stack=0 must be at least 1"]),
        (["--frame-stack=65"], ["frame_stack=65 must be at most 64"]),
        (["--image-size=-1"], ["image_size=-1 must be at least 0"]),
        (["--threads-per-worker=0"], ["threads_per_worker=0 must be at least 1"]),
        (["--env-kwargs={", "--gamma=2"], ["env_kwargs={ must be", "gamma=2.0 must lie"]),
        (['--env-kwargs={"masses": 2}'], ['CartPole-v1 cannot be made with env_kwargs={"masses"']),
        (["--wrappers=Flatten"], ["wrapper 'Flatten' must be a name of gymnasium.wrappers"]),
        (["--env=Pong", "--frame-stack=4"], ["frame_stack=4 is not for Atari games"]),
        (["--env=Pong", "--image-size=64"], ["image_size=64 is not for Atari games"]),
        (["--env=Pong", "--threads-per-worker=2"], ["threads_per_worker=2 is not for Atari"]),
    ],
)
def test_options_that_cannot_work_exit_with_2_before_anything_starts(flags, texts, capsys):
    assert cli.main([*CARTPOLE, *flags], "train.py") == cli.EXIT_USAGE
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert output.out == ""
    assert len(lines) == len(texts)
    for text in texts:
        assert any(text in line for line in lines)
    assert not list(Path().iterdir())


def saved(run_dir, *flags):
    config = cli.parse([*CARTPOLE, *flags, f"--run-dir={run_dir}"])
    Path(run_dir).mkdir()
    checkpoint.save_config(config, Path(run_dir))
    return config


def test_what_changes_observations_is_fixed_on_resume():
    config = saved("x", "--frame-stack=3")
    again = cli.parse(["--resume", "--run-dir=x", "--threads-per-worker=2"])
    assert again == dataclasses.replace(config, resume=True, threads_per_worker=2)
    with pytest.raises(ConfigError, match=r"^frame_stack=2 differs from the saved run's 3"):
        cli.parse(["--resume", "--run-dir=x", "--frame-stack=2"])
    fixed = {"env_kwargs", "wrappers", "image_size", "frame_stack", "observe_last", "action_bounds"}
    assert fixed <= set(config.FIXED_ON_RESUME)


def test_texts_that_mean_the_same_do_not_keep_a_run_from_going_on():
    limit = 'TimeLimit{"max_episode_steps": 50}'
    saved("x", '--env-kwargs={"sutton_barto_reward":true}', f"--wrappers={limit}")
    same = ['--env-kwargs={ "sutton_barto_reward": true}', f"--wrappers= {limit.replace(' ', '')}"]
    cli.parse(["--resume", "--run-dir=x", *same])
    for other in ("--env-kwargs={}", '--wrappers=TimeLimit{"max_episode_steps": 51}'):
        with pytest.raises(ConfigError, match=r"differs from the saved run's"):
            cli.parse(["--resume", "--run-dir=x", other])


# What was taken, and did nothing, before it was refused.
UNUSED = {
    "action_bounds": "tanh",
    "noise_correlation": 0.9,
    "image_size": 64,
    "value_lr_factor": 1.0,
}


def test_a_run_whose_settings_did_nothing_goes_on_without_them():
    config = saved("x", "--value-encoder=shared")
    checkpoint.save_config(dataclasses.replace(config, **UNUSED), Path("x"))
    assert cli.parse(["--resume", "--run-dir=x"]) == dataclasses.replace(config, resume=True)
    for flag in ("--action-bounds=tanh", "--noise-correlation=0.5"):
        name = flag.partition("=")[0].removeprefix("--").replace("-", "_")
        with pytest.raises(ConfigError, match=rf"^{name}=\S+ is for .*; leave it out$"):
            cli.parse(["--resume", "--run-dir=x", flag])


def test_a_checkpoint_with_settings_that_did_nothing_is_trained_on():
    """Really: --serial, from its weights and its random numbers."""
    flags = ["--rollout-length=4", "--train-frames=512", "--tune=off"]
    config = cli.parse([*CARTPOLE, *flags, "--value-encoder=shared", "--run-dir=x"])
    old = dataclasses.replace(config, **UNUSED)
    first = Trainer(old, spec=envs.describe("CartPole-v1")).run()
    unlink_segments()
    again = train(resume=True, run_dir="x", train_frames=1024)
    assert 512 <= first.env_frames < 1024 <= again.env_frames


@pytest.mark.parametrize("env", ["Pong", "CartPole-v1"])
def test_images_of_files_from_when_there_was_no_size_stay_as_they_were(env):
    values = dataclasses.asdict(ActorCriticConfig(env=env))
    assert config_from(values, "a file").image_size == 96
    del values["image_size"]
    config = config_from(values, "a file")
    assert config.image_size == 0
    envs.describe(env, config.env_options)  # it can be made


def test_threads_of_files_from_when_they_did_nothing_are_1():
    values = dataclasses.asdict(ActorCriticConfig(threads_per_worker=4))
    assert config_from(values, "a file").threads_per_worker == 4
    assert values["threads_per_worker"] == 4
    del values["env_kwargs"]
    assert config_from(values, "a file").threads_per_worker == 1
    path = Path("config.json")
    path.write_text(json.dumps(values))
    assert load_config(path).threads_per_worker == 1


def test_arguments_may_be_a_dict_in_a_program():
    from sfrl.api import _plain
    from sfrl.settings.algorithms import all_settings

    setting = all_settings()["env_kwargs"]
    assert json.loads(str(_plain({"a": 1}, setting))) == {"a": 1}
    assert _plain({"a": 1}, all_settings()["wrappers"]) == {"a": 1}  # which is refused
