"""Each algorithm has settings of its own, which others refuse; files say whose they are."""

import dataclasses
import json
from pathlib import Path

import pytest

from sfrl.commands import train as cli
from sfrl.records import checkpoint
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import ALGORITHMS, load_config
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.n_step_q import NStepQConfig
from sfrl.settle import settle

DATA = Path(__file__).parents[1] / "data"
OF_OTHERS = "{} is a setting of algorithm={}; leave it out with algorithm={}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved_run(config: Config) -> None:
    (Path(config.run_dir) / "checkpoints").mkdir(parents=True)
    (Path(config.run_dir) / "checkpoints/latest-000000000001.pt").touch()
    checkpoint.save_config(config, Path(config.run_dir))


def test_the_algorithm_says_which_settings_there_are_and_what_they_are_by_default():
    config = cli.parse(["--env=CartPole-v1", "--algorithm=n_step_q", "--run-dir=x", "--epochs=3"])
    assert type(config) is NStepQConfig
    assert (config.epsilon_frames, config.epochs, config.reward_clip) == (50_000, 3, "none")
    assert type(cli.parse(["--env=CartPole-v1", "--run-dir=x"])) is ActorCriticConfig
    assert (
        cli.parse(["--algorithm=n_step_q", "--target-every=2e2", "--run-dir=x"]).target_every == 200
    )


@pytest.mark.parametrize(
    ("flags", "problems"),
    [
        (
            "--algorithm=n_step_q --ppo-clip=0.2 --gamma=2 --no-normalize-returns",
            [
                OF_OTHERS.format("ppo_clip", "actor_critic", "n_step_q"),
                OF_OTHERS.format("normalize_returns", "actor_critic", "n_step_q"),
                "gamma=2.0 must lie between 0 and 1",
            ],
        ),
        (
            "--target-every=5",
            [OF_OTHERS.format("target_every", "n_step_q and dqn", "actor_critic")],
        ),
        (
            "--env=Pnog --target-every=5",
            [
                "did you mean Pong",
                OF_OTHERS.format("target_every", "n_step_q and dqn", "actor_critic"),
            ],
        ),
        ("--algorithm=n_step_q --target-every=0", ["target_every=0 must be at least 1"]),
        ("--algorithm=ppo", ["--algorithm=ppo must be one of actor_critic, n_step_q"]),
        (
            "--resume --run-dir=saved --rho-clip=2",
            [OF_OTHERS.format("rho_clip", "actor_critic", "n_step_q")],
        ),
        (
            "--resume --run-dir=saved --algorithm=actor_critic --rnn-size=8",
            ["algorithm=actor_critic differs from the saved run's n_step_q", "rnn_size=8 differs"],
        ),
    ],
)
def test_another_algorithms_settings_are_refused_in_a_line_that_says_whose_they_are(
    flags, problems
):
    saved_run(NStepQConfig(env="CartPole-v1", run_dir="saved", frameskip=1))
    with pytest.raises(ConfigError) as refusal:
        cli.parse(["--env=CartPole-v1", *flags.split()])
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(problems), lines
    assert all(problem in line for problem, line in zip(problems, lines, strict=True)), lines


def test_from_python_and_from_a_file_they_are_refused_as_well():
    with pytest.raises(ConfigError, match="algorithm=ppo must be one of actor_critic, n_step_q"):
        settle({"algorithm": "ppo", "seed": 2})
    with pytest.raises(ConfigError, match="ppo_clip is a setting of algorithm=actor_critic"):
        settle({"env": "CartPole-v1", "algorithm": "n_step_q", "ppo_clip": 0.5})
    for values, text in (
        ({"algorithm": "n_step_q", "ppo_clip": 0.5}, "ppo_clip is a setting of algorithm=actor_"),
        ({"target_every": 5}, "target_every is a setting of algorithm=n_step_q"),
        ({"algorithm": "r2d2"}, "algorithm=r2d2 must be one of"),
        ({"algorithm": 3}, "algorithm=3 must be of type str"),
    ):
        Path("config.json").write_text(json.dumps(values))
        with pytest.raises(ConfigError, match=f"^config.json: {text}"):
            load_config(Path("config.json"))


@pytest.mark.parametrize("cls", ALGORITHMS.values())
def test_a_saved_config_is_read_as_its_algorithms(cls):
    config = cls(run_dir="x", seed=7, tuned="as measured")
    checkpoint.save_config(config, Path())
    assert load_config(Path("config.json")) == config


@pytest.mark.parametrize("path", sorted(DATA.glob("config-*.json")), ids=lambda path: path.stem)
def test_a_config_from_when_there_was_one_algorithm_is_actor_critics(path):
    values = json.loads(path.read_text())
    assert values.pop("algorithm", "actor_critic") == "actor_critic"
    values.pop("threads_per_worker", None)  # which is gone
    config = load_config(path)
    assert type(config) is ActorCriticConfig
    loaded = dataclasses.asdict(config)
    assert loaded == loaded | values | {"algorithm": "actor_critic"}
    assert config.rnn == ("gru" if config.rnn_size else "none")


def test_help_has_the_settings_of_the_algorithm(capsys):
    texts = {}
    for algorithm in ALGORITHMS:
        with pytest.raises(SystemExit):
            cli.read_flags(["--env=CartPole-v1", f"--algorithm={algorithm}", "--help"])
        texts[algorithm] = " ".join(capsys.readouterr().out.split())
    choices = "--algorithm {actor_critic,n_step_q,dqn,sac} What learns"
    assert all(choices in text for text in texts.values())
    assert "--epsilon-frames INT Emulated frames over which" in texts["n_step_q"]
    assert "n-step Q-learning (--algorithm=n_step_q):" in texts["n_step_q"]
    assert "--ppo-clip" not in texts["n_step_q"]
    assert "--ppo-clip" in texts["actor_critic"]
    assert "--target-every" not in texts["actor_critic"]


def test_the_tuners_note_is_kept_in_files_and_set_by_nobody():
    with pytest.raises(ConfigError, match="--tuned is unknown; did you mean --tune"):
        cli.read_flags(["--tuned=x"])
    with pytest.raises(ConfigError, match="unknown setting 'tuned'; did you mean tune"):
        settle({"tuned": "x"})
