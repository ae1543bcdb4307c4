"""Each algorithm has settings of its own, which others refuse; files say whose they are."""

import dataclasses
import json
from pathlib import Path

import pytest

from sfrl import envs
from sfrl.commands import train as cli
from sfrl.records import checkpoint
from sfrl.settings import defaults
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import (
    ALGORITHMS,
    _listed,
    default_config,
    load_config,
    make_config,
)
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.fields import settings_of
from sfrl.settings.n_step_q import NStepQConfig
from sfrl.settle import settle
from sfrl.systems import SYSTEMS
from tests.runs import ROOT

DATA = Path(__file__).parents[1] / "data"
OF_OTHERS = "{} is a setting of system={}; leave it out with system={}"
OF = {  # algorithm -> its systems, as they are told
    algorithm: _listed([name for name, system in SYSTEMS.items() if system.algorithm == algorithm])
    for algorithm in ALGORITHMS
}
BY_VALUE = _listed([n for n, s in SYSTEMS.items() if s.algorithm in ("n_step_q", "dqn")])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved_run(config: Config) -> None:
    (Path(config.run_dir) / "checkpoints").mkdir(parents=True)
    (Path(config.run_dir) / "checkpoints/latest-000000000001.pt").touch()
    checkpoint.save_config(config, Path(config.run_dir))


def test_the_algorithm_says_which_settings_there_are_and_what_they_are_by_default():
    config = cli.parse(["--env=CartPole-v1", "--system=n-step-q", "--run-dir=x", "--epochs=3"])
    assert type(config) is NStepQConfig
    assert (config.epsilon_frames, config.epochs, config.reward_clip) == (50_000, 3, "none")
    assert type(cli.parse(["--env=CartPole-v1", "--run-dir=x"])) is ActorCriticConfig
    assert cli.parse(["--system=n-step-q", "--target-every=2e2", "--run-dir=x"]).target_every == 200


@pytest.mark.parametrize(
    ("flags", "problems"),
    [
        (
            "--system=n-step-q --ppo-clip=0.2 --gamma=2 --no-normalize-returns",
            [
                OF_OTHERS.format("ppo_clip", OF["actor_critic"], "n-step-q"),
                OF_OTHERS.format("normalize_returns", OF["actor_critic"], "n-step-q"),
                "gamma=2.0 must lie between 0 and 1",
            ],
        ),
        (
            "--target-every=5",
            [OF_OTHERS.format("target_every", BY_VALUE, "appo")],
        ),
        (
            "--env=Pnog --target-every=5",
            [
                "did you mean Pong",
                OF_OTHERS.format("target_every", BY_VALUE, "appo"),
            ],
        ),
        ("--system=n-step-q --target-every=0", ["target_every=0 must be at least 1"]),
        ("--system=ppo", ["--system=ppo must be one of " + ", ".join(SYSTEMS)]),
        ("--algorithm=sac", ["--algorithm is unknown; use --system"]),
        (
            "--resume --run-dir=saved --rho-clip=2",
            [OF_OTHERS.format("rho_clip", OF["actor_critic"], "n-step-q")],
        ),
        ("--resume --run-dir=saved --dueling", ["dueling=True differs from the saved run's False"]),
        (
            "--resume --run-dir=saved --system=appo --rnn-size=8",
            ["system=appo differs from the saved run's n-step-q", "rnn_size=8 differs"],
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
    with pytest.raises(ConfigError, match="system=ppo must be one of appo, impala, "):
        settle({"system": "ppo", "seed": 2})
    with pytest.raises(
        ConfigError, match=f"ppo_clip is a setting of system={OF['actor_critic']}; "
    ):
        settle({"env": "CartPole-v1", "system": "n-step-q", "ppo_clip": 0.5})
    for values, text in (
        (
            {"system": "n-step-q", "ppo_clip": 0.5},
            f"ppo_clip is a setting of system={OF['actor_critic']}; ",
        ),
        ({"target_every": 5}, "target_every is a setting of system=n-step-q"),
        ({"system": "r2d2"}, "system=r2d2 must be one of"),
        ({"system": 3}, "system=3 must be of type str"),
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
    assert loaded == loaded | values | {"system": "appo"}
    assert config.rnn == ("gru" if config.rnn_size else "none")


@pytest.mark.parametrize(
    ("algorithm", "system"), [("actor_critic", "appo"), ("n_step_q", "n-step-q"), ("sac", "sac")]
)
def test_a_config_from_when_a_run_had_an_algorithm_is_of_that_system(algorithm, system):
    values = dataclasses.asdict(make_config({"system": system, "run_dir": "x"}))
    del values["system"]
    Path("config.json").write_text(json.dumps({**values, "algorithm": algorithm}))
    assert load_config(Path("config.json")).system == system


def test_help_has_the_settings_of_the_system(capsys):
    texts = {}
    for system in SYSTEMS:
        with pytest.raises(SystemExit):
            cli.read_flags(["--env=CartPole-v1", f"--system={system}", "--help-all"])
        texts[system] = " ".join(capsys.readouterr().out.split())
    choices = f"--system {{{','.join(SYSTEMS)}}} Who does what"
    assert all(choices in text for text in texts.values())
    assert "--epsilon-frames INT Emulated frames over which" in texts["n-step-q"]
    assert "Action values from trajectories (--system=n-step-q, " in texts["n-step-q"]
    assert "--ppo-clip" not in texts["n-step-q"]
    assert "--ppo-clip" in texts["appo"]
    assert "--target-every" not in texts["appo"]


@pytest.mark.parametrize("cores", [2, 16])
def test_a_system_has_its_file_its_class_and_no_others_settings(cores, monkeypatch):
    monkeypatch.setattr(defaults, "available_cores", lambda: cores)
    files = {path.stem.replace("_", "-") for path in (ROOT / "sfrl" / "systems").glob("*.py")}
    assert {*SYSTEMS} == files - {"--init--", "system", "bundles"}
    for name, system in SYSTEMS.items():
        env = "Pendulum-v1" if name == "sac" else "CartPole-v1"
        config = defaults.defaults_for(env, {"system": name})
        defaults.resolve(config, envs.describe(env))
        defaults.defaults_for("Pong", {"system": name})
        assert type(config) is ALGORITHMS[system.algorithm]
        assert {*system.defaults, *system.fixed} <= settings_of(type(config)).keys()
    with pytest.raises(ConfigError, match="system=sac must be one of appo"):
        ActorCriticConfig(system="sac", run_dir="x")


def test_the_list_of_systems_names_each_with_its_paper(capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.read_flags(["--list-systems"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    for system in SYSTEMS.values():
        assert f"--system={system.name} " in text
        assert system.purpose in text
        assert system.paper in text


@pytest.mark.parametrize(
    ("flags", "problems"),
    [
        (
            "impala --num-splits=2 --loss=appo",
            [
                "loss=appo must be vtrace with system=impala: its policy gradient",
                "num_splits=2 must be 1 with system=impala: splits share the actor's network",
            ],
        ),
        ("a2c-sync --epochs=2", ["epochs=2 must be 1 with system=a2c-sync: after one pass"]),
        (
            "a2c-sync --num-workers=2 --envs-per-worker=4 --batch-size=128",
            [
                "batch_size=128 must be 256 with system=a2c-sync: a round of all environments "
                "(num_workers * envs_per_worker * rollout_length); set batch_size=256"
            ],
        ),
        (
            "impala --worker-nice=2",
            ["worker_nice=2 is for workers without a network, and those of system=impala have one"],
        ),
        ("a3c --policy-batch-size=17", ["policy_batch_size=17 is for policies that serve several"]),
        ("impala --ppo-clip=0.9", ["ppo_clip=0.9 is for loss=appo, and it is vtrace; leave it"]),
        ("appo --loss=vtrace --ppo-clip=0.2", ["ppo_clip=0.2 is for loss=appo, and it is vtrace"]),
        ("appo --optimizer=muon --model=flat", ["optimizer=muon is for an encoder's weights, and"]),
        (
            "appo --forced-lag=50 --max-policy-lag=49",
            ["max_policy_lag=49 must be at least forced_lag=50: hardly a row would be learned"],
        ),
        ("seed --num-policy-workers=9", ["num_policy_workers=9 must be 1 with system=seed"]),
        ("a3c --batch-size=81", ["batch_size=81 must be 80 with system=a3c: a round of a process"]),
        ("sac --max-policy-lag=0", ["max_policy_lag=0 must be at least 1"]),
        (
            "dqn --rnn=lstm --gamma=7",
            ["gamma=7.0 must lie between 0 and 1", "rnn=lstm must be none: dqn learns from single"],
        ),
        ("dqn --rnn-size=64", ["rnn_size=64 must be 0: dqn learns from single decisions"]),
    ],
)
def test_what_a_system_fixes_is_refused_with_the_reason(flags, problems):
    with pytest.raises(ConfigError) as refusal:
        cli.parse(["--env=CartPole-v1", *f"--system={flags}".split()])
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(problems), lines
    assert all(line.startswith(problem) for line, problem in zip(lines, problems, strict=True))


def test_a_default_that_another_setting_makes_useless_needs_not_be_left_out():
    config = cli.parse(["--env=CartPole-v1", "--system=dqn", "--optimizer=sgd"])
    assert config.optimizer == "sgd"
    with pytest.raises(ConfigError, match=r"optimizer_eps=0.1 is for adam, .* leave it out"):
        cli.parse(["--env=CartPole-v1", "--system=dqn", "--optimizer=sgd", "--optimizer-eps=0.1"])


def test_help_tells_all_systems_of_an_algorithm():
    for cls in ALGORITHMS.values():
        told = (cls.__doc__ or "").partition("(--system=")[2].partition(")")[0].split(", ")
        assert told == [s.name for s in SYSTEMS.values() if s.algorithm == cls.ALGORITHM]


def test_a_saved_run_whose_optimizer_has_no_weights_of_its_own_goes_on():
    """It was not refused once, and is not another run now."""
    settings = {"env": "CartPole-v1", "run_dir": "saved", "frameskip": 1}
    saved_run(ActorCriticConfig(optimizer="muon", model="flat", **settings))
    config = cli.parse(["--resume", "--run-dir=saved"])
    assert (config.optimizer, config.model) == ("muon", "flat")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"system": "async-qn", "policy_devices": "\r"}, r"policy_devices='\r' must be empty with"),
        ({"loss": "appo\n"}, r"loss='appo\n' must be one of appo, vtrace"),
    ],
)
def test_a_refused_value_with_an_end_of_line_does_not_break_the_report(values, problem):
    with pytest.raises(ConfigError) as refusal:
        make_config(values)
    assert any(line.startswith(problem) for line in str(refusal.value).splitlines())


def test_a_synchronous_batch_is_a_round_whatever_the_user_makes_of_it():
    sizes = ["--num-workers=3", "--envs-per-worker=2", "--rollout-length=5"]
    config = cli.parse(["--env=CartPole-v1", "--system=a2c-sync", *sizes])
    assert (config.batch_size, config.slots_per_batch, config.num_slots) == (30, 3, 3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_error_is_told_whatever_the_system(system):
    """And nothing of settings that the user has not given."""
    config = default_config({"system": system})
    for name, value in SYSTEMS[system].defaults.items():
        assert getattr(config, name) == value, "what --help shows of an environment not there"
    with pytest.raises(ConfigError) as refusal:
        settle({"env": "NoSuch-v0", "system": system})
    [line] = str(refusal.value).splitlines()
    assert "NoSuch" in line


@pytest.mark.parametrize("system", ["a3c", "a2c-sync"])
def test_a_batch_that_is_no_round_is_refused_with_the_round(system):
    size = {"a3c": 80, "a2c-sync": 512}[system]
    with pytest.raises(ConfigError, match=f"batch_size={2 * size} must be {size} with"):
        settle({"env": "CartPole-v1", "system": system, "batch_size": 2 * size})
    with pytest.raises(ConfigError, match=r"^minibatches=2 must be 1 with .*$"):
        settle({"env": "CartPole-v1", "system": system, "minibatches": 2})
