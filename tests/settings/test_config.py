"""Config refuses what cannot work, with a remedy that does, and survives the way to disk."""

import dataclasses
import itertools
import json
import random
import re

import numpy as np
import pytest

from sfrl import envs
from sfrl.envs import ActionSpec, EnvSpec
from sfrl.records import checkpoint
from sfrl.settings import defaults
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import load_config
from sfrl.settings.config import Config, ConfigError
from sfrl.systems import SYSTEMS
from tests.leaves import choice, image, vector


def problems_of(**settings: object) -> list[str]:
    """What Config says of these settings, line by line; [] if it accepts them."""
    try:
        ActorCriticConfig(**settings)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def remedies(problems: list[str]) -> dict[str, object]:
    """The values that the texts propose: {"batch_size": 128}."""
    proposed = re.findall(r"try (\w+)=([\w.]+)", "\n".join(problems))
    return {name: type(getattr(ActorCriticConfig, name))(value) for name, value in proposed}


# The settings, and what the text must name of value, rule and remedy.
IMPOSSIBLE = [
    ({"num_workers": 0}, "num_workers=0 must be at least 1"),
    ({"seed": -1}, "seed=-1 must be at least 0"),
    ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
    ({"learning_rate": float("nan")}, "learning_rate=nan must be a finite number"),
    ({"train_seconds": float("inf")}, "train_seconds=inf must be a finite number"),
    ({"gamma": 1.5}, "gamma=1.5 must lie between 0 and 1"),
    ({"worker_nice": 20}, "worker_nice=20 must lie between 0 and 19"),
    ({"loss": "ppo"}, "loss=ppo must be one of appo, vtrace"),
    (
        {"envs_per_worker": 15},
        "envs_per_worker=15 must be a multiple of num_splits=2, .* try envs_per_worker=16",
    ),
    (
        {"batch_size": 500},
        "batch_size=500 must be a multiple of 64, .* rollout_length=32.* try batch_size=512",
    ),
    (
        {"slots_per_split": 1, "minibatches": 8},
        r"slots_per_split=1 makes 4 slots .* takes 8 .* wait for ever; try slots_per_split=2",
    ),
    (
        {"num_policy_workers": 5},
        "num_policy_workers=5 must not exceed the 4 splits .* try num_policy_workers=4",
    ),
    (
        {"policy_batch_size": 4},
        "policy_batch_size=4 must be at least the 8 environments .* try policy_batch_size=8",
    ),
    ({"epochs": 10**15}, "epochs=1000000000000000 must be at most 1,000"),
    ({"c_clip": 2.0}, r"c_clip=2.0 must not exceed rho_clip=1.0 .* try c_clip=1.0"),
    (
        {"train_frames": 0},
        "train_frames=0 .* lr_schedule=linear needs .* try lr_schedule=constant",
    ),
]


@pytest.mark.parametrize(("settings", "text"), IMPOSSIBLE, ids=lambda case: str(case)[:30])
def test_a_problem_is_named_by_value_and_rule_and_its_remedy_works(settings, text):
    (problem,) = problems_of(**settings)
    assert re.match(text, problem)
    remedy = remedies([problem])
    assert bool(remedy) == ("try" in text)
    if remedy:
        ActorCriticConfig(**{**settings, **remedy})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"correction": "impact", "loss": "vtrace"},
            "correction=impact must be with loss=appo, .* try correction=vtrace",
        ),
        (
            {"correction": "decoupled", "rnn": "gru", "rnn_size": 8},
            "correction=decoupled must be with rnn=none, .* try correction=vtrace",
        ),
    ],
)
def test_a_policy_between_is_for_ppos_clip_without_a_memory(settings, text):
    (problem,) = problems_of(**settings)
    assert re.match(text, problem)
    assert not problems_of(**{**settings, "correction": "vtrace"})


def test_all_problems_are_reported_at_once():
    # The first one stands alone: without workers there is no arithmetic of slots.
    settings = {name: value for case, _ in IMPOSSIBLE[1:] for name, value in case.items()}
    named = [problem.split("=")[0] for problem in problems_of(**settings)]
    assert sorted([*named, "minibatches"]) == sorted(settings)


def test_the_remedies_of_any_impossible_sizes_together_work():
    rng = random.Random(0)
    num_impossible = 0
    for _ in range(2000):
        settings = {
            "num_workers": rng.randint(1, 6),
            "envs_per_worker": rng.randint(1, 40),
            "num_splits": rng.randint(1, 5),
            "rollout_length": rng.randint(1, 64),
            "batch_size": rng.randint(1, 2000),
            "minibatches": rng.randint(1, 9),
            "slots_per_split": rng.randint(1, 4),
            "num_policy_workers": rng.randint(1, 4),
            "policy_batch_size": rng.randint(1, 64),
        }
        problems = problems_of(**settings)
        num_impossible += bool(problems)
        config = ActorCriticConfig(**{**settings, **remedies(problems)})
        trajectories_per_batch = config.slots_per_batch * config.envs_per_split
        assert (
            trajectories_per_batch * config.rollout_length == config.batch_size * config.minibatches
        ), "a training batch is made of whole slots"
        assert config.batch_size % config.rollout_length == 0, "minibatches of whole trajectories"
        assert 1 <= config.slots_per_batch <= config.num_slots, "the learner never gets a batch"
    assert 0 < num_impossible < 2000


def test_a_training_batch_may_take_all_slots_but_not_one_more():
    # 1 worker * 2 splits * 2 slots = 4, of 8 environments * 32 decisions = 256 each.
    fits = ActorCriticConfig(num_workers=1, batch_size=256, minibatches=4)
    assert (fits.num_slots, fits.slots_per_batch) == (4, 4)
    (problem,) = problems_of(num_workers=1, batch_size=320, minibatches=4)
    assert problem.startswith("slots_per_split=2 makes 4 slots")


def test_derived_sizes_count_environments_splits_and_slots():
    config = ActorCriticConfig(num_workers=3, envs_per_worker=8, num_splits=2, slots_per_split=4)
    assert (config.envs_per_split, config.splits, config.num_slots) == (4, 6, 24)
    assert dataclasses.replace(config, rnn="gru", rnn_size=5).state_size == 5
    assert (
        dataclasses.replace(
            config, rnn="lstm", rnn_size=5, rnn_layers=2, value_encoder="separate"
        ).state_size
        == 40
    )


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ActorCriticConfig().gamma = 0.5


def test_saving_and_loading_gives_an_equal_config(tmp_path):
    config = ActorCriticConfig(
        env="CartPole-v1", gamma=1, rnn="gru", rnn_size=8, serial=True, reward_clip="none"
    )
    checkpoint.save_config(config, tmp_path)
    assert load_config(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text()) == {
        **dataclasses.asdict(config),
        "starts": [],
    }


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('{"evn": "Pong"}', ["unknown setting 'evn'"]),
        ('{"seed": "1", "gamma": true}', ["seed='1' must be of type int", "gamma=True .* float"]),
        ('{"serial": 1, "seed": 1.0}', ["serial=1 must be of type bool", "seed=1.0 .* int"]),
        ('{"loss": "ppo"}', ["loss=ppo must be one of appo, vtrace"]),
        ("[1]", ["must hold an object of settings"]),
        ('{"seed": 1', ["cannot be read as a config"]),
    ],
)
def test_loading_names_the_file_and_all_that_is_wrong_in_it(tmp_path, text, problems):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert all(re.search(problem, str(error.value)) for problem in problems)


@pytest.mark.parametrize("env", ["Pong", "CartPole-v1", "tests.tiny_envs:Catch-v0"])
def test_the_defaults_are_possible_on_a_machine_of_any_size(env, monkeypatch):
    for cores, loss in itertools.product((1, 2, 3, 4, 5, 16, 61, 256), ("appo", "vtrace")):
        monkeypatch.setattr(defaults, "available_cores", lambda cores=cores: cores)
        config = defaults.defaults_for(env, {"loss": loss})
        resolved = defaults.resolve(config, envs.describe(env, config.env_options))
        assert resolved.model in defaults.MODELS
        assert (resolved.env, resolved.loss) == (env, loss)
        assert resolved.num_splits == (1 if cores <= 4 else 2)
        for num_envs, num_splits in ((16, 4), (6, 2), (3, 1)):
            given = {"threads_per_worker": 2, "envs_per_worker": num_envs}
            waiting = defaults.defaults_for("CartPole-v1", given)
            assert waiting.num_splits == num_splits
        for system, num_envs in itertools.product(("appo", "dqn"), (1, 15)):
            given = {"system": system, "envs_per_worker": num_envs, "num_workers": 1}
            assert defaults.defaults_for("CartPole-v1", given).num_splits == 1


@pytest.mark.parametrize(
    ("env", "batches"),
    [
        ("Pong", {1: (256, 2), 2: (256, 4), 3: (256, 4), 15: (256, 4)}),
        ("CartPole-v1", {1: (256, 2), 2: (256, 4), 15: (256, 4)}),
        ("Pendulum-v1", {1: (256, 2), 2: (256, 4), 15: (256, 4)}),
    ],
)
def test_a_training_batch_is_the_same_for_any_number_of_workers(env, batches, monkeypatch):
    """docs/experiments.md, "The same curve on any number of cores"."""
    for cores, num_splits in ((2, 1), (16, 2)):
        monkeypatch.setattr(defaults, "available_cores", lambda cores=cores: cores)
        for num_workers, batch in batches.items():
            config = defaults.defaults_for(env, {"num_workers": num_workers})
            assert (config.num_workers, config.num_splits) == (num_workers, num_splits)
            assert (config.batch_size, config.minibatches) == batch
            num_envs = config.slots_per_batch * config.envs_per_split
            assert num_envs == min(32, num_workers * config.envs_per_worker)
            assert config.slots_per_split == 2
            assert config.num_workers * config.envs_per_worker <= 64


@pytest.mark.parametrize(
    ("given", "batch"),
    [
        ({"minibatches": 8}, (128, 8)),  # of the same training batch
        ({"minibatches": 3}, (512, 3)),  # the nearest that whole slots make up
        ({"batch_size": 128}, (128, 8)),
        ({"batch_size": 512}, (512, 2)),
        ({"batch_size": 4096}, (4096, 1)),
        ({"envs_per_worker": 64}, (256, 8)),  # a slot is no smaller
        ({"envs_per_worker": 8, "num_workers": 3}, (256, 3)),
        ({"rollout_length": 8}, (256, 1)),
        ({"rollout_length": 2}, (256, 1)),  # several slots of each split
    ],
)
def test_the_rest_of_a_training_batch_follows_from_what_is_given(given, batch):
    given = {"num_workers": 2, "num_splits": 1, **given}
    config = dataclasses.replace(defaults.defaults_for("Pong", given), **given)
    assert (config.batch_size, config.minibatches) == batch
    assert config.num_slots >= 2 * config.slots_per_batch


def test_a_policy_is_too_old_after_as_many_rounds_on_any_machine():
    limits = {}
    for num_workers in (1, 2, 15):
        config = defaults.defaults_for("Pong", {"num_workers": num_workers})
        limits[num_workers] = config.lag_limit
    assert limits == {1: 25 * 2, 2: 25 * 4, 15: 25 * 8}  # 16, 32 and 60 environments
    assert dataclasses.replace(config, max_policy_lag=7).lag_limit == 7


@pytest.mark.parametrize(
    ("num_workers", "num_envs"), [(1, 16), (2, 16), (4, 16), (7, 8), (15, 4), (31, 2), (255, 2)]
)
def test_of_more_workers_each_has_fewer_environments(num_workers, num_envs):
    given = {"num_workers": num_workers}
    assert defaults.defaults_for("Pong", given).envs_per_worker == num_envs
    waiting = defaults.defaults_for("CartPole-v1", {**given, "threads_per_worker": 8})
    assert (waiting.envs_per_worker, waiting.num_splits) == (num_envs, min(num_envs, 4))
    for system in ("a2c-sync", "impala"):  # a round of all; an actor acts for its own alone
        config = defaults.defaults_for("Pong", {**given, "system": system})
        assert config.envs_per_worker == 16


@pytest.mark.parametrize(
    "given",
    [
        {"envs_per_worker": 2},
        {"rollout_length": 8},
        {"envs_per_worker": 4, "rollout_length": 4, "num_workers": 3},
        {"batch_size": 1024, "minibatches": 4},
    ],
)
def test_slots_have_room_for_two_training_batches_of_whatever_size_is_given(given):
    config = dataclasses.replace(defaults.defaults_for("CartPole-v1", given), **given)
    slot = config.rollout_length * config.envs_per_worker // config.num_splits
    assert config.num_slots * slot >= 2 * config.batch_size * config.minibatches


@pytest.mark.parametrize(
    ("shape", "value_encoder"),
    [(None, "separate"), ((3, 35, 35), "separate"), ((3, 36, 36), "shared")],
)
def test_policy_and_value_share_an_encoder_of_large_images_alone(shape, value_encoder):
    spec = envs.describe("CartPole-v1")
    if shape is not None:
        spec = dataclasses.replace(spec, kind="image", leaves=(image(*shape),))
    assert defaults.defaults_for("CartPole-v1", spec=spec).value_encoder == value_encoder


@pytest.mark.parametrize(
    ("env", "given", "values"),
    [
        ("Pong", {}, ("muon", "root", 2e-3, 1)),
        ("Pong", {"model": "nature_cnn"}, ("muon", "root", 2e-3, 1)),
        ("Pong", {"model": "pooled_cnn"}, ("muon", "root", 2e-3, 1)),
        ("Pong", {"model": "nature_cnn", "rnn": "gru"}, ("adam", "linear", 1e-3, 2)),
        ("Pong", {"epochs": 1}, ("muon", "root", 2e-3, 1)),
        ("Pong", {"epochs": 2}, ("muon", "root", 1e-3, 2)),
        ("Pong", {"optimizer": "adam"}, ("adam", "linear", 1e-3, 2)),
        ("Pong", {"preset": "classic"}, ("adam", "linear", 1e-3, 2)),
        ("Pong", {"preset": "classic", "optimizer": "muon"}, ("muon", "root", 2e-3, 1)),
        ("Pong", {"model": "impala_resnet"}, ("adam", "linear", 1e-3, 2)),
        ("Pong", {"model": "impala_resnet", "optimizer": "muon"}, ("muon", "root", 2e-3, 1)),
        ("Pong", {"loss": "vtrace"}, ("adam", "linear", 3e-4, 2)),
        ("Pong", {"system": "impala"}, ("adam", "linear", 3e-4, 2)),
        ("Pong", {"system": "a3c"}, ("rmsprop", "linear", 3e-4, 1)),
        ("CartPole-v1", {}, ("adam", "linear", 1e-3, 4)),
    ],
)
def test_muon_is_the_default_where_it_was_tried(env, given, values):
    config = defaults.defaults_for(env, given)
    # What is given is laid over the defaults, which depend on it.
    settings = dataclasses.asdict(config) | given
    names = ("optimizer", "lr_schedule", "learning_rate", "epochs")
    assert tuple(settings[name] for name in names) == values


@pytest.mark.parametrize(
    ("env", "given", "model"),
    [
        ("Pong", {}, "pooled_cnn"),
        ("Pong", {"epochs": 2}, "pooled_cnn"),
        ("Pong", {"optimizer": "adam"}, "nature_cnn"),
        ("Pong", {"preset": "classic"}, "nature_cnn"),
        ("Pong", {"rnn": "gru"}, "nature_cnn"),
        ("Pong", {"system": "impala"}, "nature_cnn"),
        ("Pong", {"system": "a3c"}, "nature_cnn"),
        ("Pong", {"system": "dqn"}, "nature_cnn"),
        ("CartPole-v1", {"optimizer": "muon"}, "norm_mlp"),
    ],
)
def test_atari_has_the_model_that_was_tried_with_its_optimizer(env, given, model):
    config = defaults.defaults_for(env, given)
    assert defaults.resolve(config, envs.describe(env)).model == model


@pytest.mark.parametrize(
    ("env", "preset", "expected"),
    [("Breakout", "none", True), ("Breakout", "classic", False), ("CartPole-v1", "none", False)],
)
def test_a_lost_life_ends_the_episode_in_atari_games(env, preset, expected):
    assert defaults.defaults_for(env, {"preset": preset}).episodic_life is expected


@pytest.mark.parametrize(
    ("numbers", "kind", "values"),
    [
        (0, "vector", (False, 0.0, 1e-3, 2, 4, 256, 0.02, 0.995)),
        (1, "vector", (True, 0.9, 1e-3, 2, 4, 256, 0.01, 0.99)),
        (2, "vector", (True, 0.0, 5e-4, 16, 8, 128, 3e-3, 0.99)),
        (2, "image", (True, 0.0, 3e-4, 2, 4, 256, 0.01, 0.99)),
    ],
)
def test_defaults_depend_on_how_many_numbers_an_action_has(numbers, kind, values):
    actions = ActionSpec((), (-1.0,) * numbers, (1.0,) * numbers)
    spec = envs.describe("CartPole-v1")
    if numbers:
        spec = dataclasses.replace(spec, kind=kind, actions=actions)
    config = defaults.defaults_for("CartPole-v1", spec=spec)
    assert values == (
        *(config.normalize_obs, config.noise_correlation, config.learning_rate),
        *(config.minibatches, config.epochs, config.batch_size, config.entropy_coef),
        config.gamma,
    )


@pytest.mark.parametrize(
    ("env", "settings", "problems"),
    [
        (
            "CartPole-v1",
            {"model": "impala_resnet"},
            ["model=impala_resnet needs images.* use norm_mlp"],
        ),
        ("CartPole-v1", {"model": "nature_cnn"}, ["model=nature_cnn .* use norm_mlp"]),
        ("CartPole-v1", {"model": "small_cnn"}, ["model=small_cnn needs images of at least 5x5.*"]),
        ("Taxi-v4", {"model": "small_cnn"}, ["model=small_cnn needs images .* use norm_mlp"]),
        ("tests.tiny_envs:Catch-v0", {"model": "nature_cnn"}, [r"36x36.* \(1, 10, 5\).* norm_mlp"]),
        ("Pong", {"model": "natur_cnn"}, ["model=natur_cnn is unknown; did you mean nature_cnn?"]),
        (
            "CartPole-v1",
            {"frameskip": 4, "sticky_actions": 0.25, "model": "mpl"},
            ["frameskip=4 is for Atari", "sticky_actions=0.25 is for Atari", "did you mean mlp?"],
        ),
        (
            "CartPole-v1",
            {"action_bounds": "tanh", "image_size": 64, "noise_correlation": 0.9},
            [
                "^action_bounds=tanh is for a Box of actions with bounds, and CartPole-v1 has none",
                "^image_size=64 is for images, and CartPole-v1 shows none; leave it out$",
                "^noise_correlation=0.9 is for a Box of actions, and CartPole-v1 has none;",
            ],
        ),
        (
            "tests.tiny_envs:Catch-v0",
            {"normalize_obs": True},
            ["^normalize_obs=True is for vectors, and tests.tiny_envs:Catch-v0 shows none; leave"],
        ),
        ("Taxi-v4", {"normalize_obs": True}, ["normalize_obs=True is for vectors"]),
        (
            "CartPole-v1",
            {"value_encoder": "shared", "value_lr_factor": 1.0},
            ["^value_lr_factor=1.0 is for value_encoder=separate, and it is shared; leave it out$"],
        ),
        ("CartPole-v1", {"image_size": 0}, []),
        ("Taxi-v4", {"normalize_obs": True, "observe_last": True}, []),
    ],
)
def test_settings_that_do_not_fit_the_environment_are_refused_together(env, settings, problems):
    config = dataclasses.replace(defaults.defaults_for(env), **settings)
    found = unfit(config, envs.describe(env, config.env_options))
    assert len(found) == len(problems)
    assert all(re.search(text, line) for text, line in zip(problems, found, strict=True))


def unfit(config: Config, spec: envs.EnvSpec) -> list[str]:
    """What `resolve` says of them, line by line."""
    try:
        defaults.resolve(config, spec)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("leaves", [(image(3, 8, 8),), (choice(7),), (image(1, 4, 4), vector(2))])
@pytest.mark.parametrize(
    "actions",
    [
        *(ActionSpec((3,)), ActionSpec((3, 2), (-1.0,), (1.0,))),
        *(ActionSpec((), (-np.inf,), (np.inf,)), ActionSpec((), (0.0,) * 3, (np.inf,) * 3)),
    ],
)
def test_no_default_does_nothing(system, leaves, actions):
    kind = "image" if leaves[0].kind == "image" else "vector"
    spec = EnvSpec(kind, leaves, actions, frameskip=1)
    config = defaults.defaults_for("of-none", {"system": system}, spec)
    assert [line for line in unfit(config, spec) if not line.startswith("system=")] == []
    assert dataclasses.asdict(config.without_unused(spec)) == dataclasses.asdict(config)


def test_tanh_without_any_bound_is_refused_and_sac_without_both():
    unbounded = ActionSpec((), (-np.inf,) * 2, (np.inf,) * 2)
    spec = dataclasses.replace(envs.describe("CartPole-v1"), actions=unbounded)
    given = {"action_bounds": "tanh"}
    config = dataclasses.replace(defaults.defaults_for("CartPole-v1", spec=spec), **given)
    assert [line.partition(" ")[0] for line in unfit(config, spec)] == ["action_bounds=tanh"]
    one_bound = dataclasses.replace(spec, actions=ActionSpec((), (0.0, -np.inf), (np.inf,) * 2))
    assert unfit(config, one_bound) == []
    one_missing = dataclasses.replace(spec, actions=ActionSpec((), (0.0, -1.0), (np.inf, 1.0)))
    for lacking in (spec, one_bound, one_missing):
        config = defaults.defaults_for("CartPole-v1", {"system": "sac"}, lacking)
        [line] = unfit(config, lacking)
        assert line.startswith("system=sac must have a low and a high bound of each number")
    two_bounds = dataclasses.replace(spec, actions=ActionSpec((), (0.0, -1.0), (2.0, 1.0)))
    assert unfit(dataclasses.replace(config, env="CartPole-v1"), two_bounds) == []


@pytest.mark.parametrize(
    ("shapes", "model"),
    [
        ([(4, 84, 84), (3, 7, 7)], "nature_cnn"),
        ([(3, 7, 7), (4, 84, 84)], "nature_cnn"),
        ([(3, 7, 7), (1, 4, 9)], "small_cnn"),
        ([(1, 4, 9)], "norm_mlp"),
        ([], "norm_mlp"),
    ],
)
def test_the_usual_model_is_that_of_the_largest_image(shapes, model):
    leaves = tuple(image(*shape, name=f"obs.{i}") for i, shape in enumerate(shapes))
    cartpole = envs.describe("CartPole-v1")
    spec = dataclasses.replace(cartpole, kind="image", leaves=(*cartpole.leaves, *leaves))
    assert defaults.resolve(defaults.defaults_for("CartPole-v1"), spec).model == model


@pytest.mark.parametrize(
    ("given", "memory"),
    [
        ({}, None),
        ({"rnn": "lstm"}, ("lstm", 128, 1)),
        ({"rnn_size": 64}, ("gru", 64, 1)),
        ({"rnn": "lstm", "rnn_size": 5, "rnn_layers": 2}, ("lstm", 5, 2)),
    ],
)
def test_a_memory_is_asked_for_by_kind_or_size(given, memory):
    config = dataclasses.replace(defaults.defaults_for("CartPole-v1", given), **given)
    assert config.memory == memory


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rnn": "none", "rnn_size": 8}, "rnn_size=8 must be 0 with rnn=none, .* try rnn=gru"),
        ({"rnn_layers": 2}, "rnn_layers=2 must be 1 with rnn=none, .* try rnn=gru"),
        ({"rnn": "gru", "rnn_size": 0}, "rnn_size=0 must be at least 1 with rnn=gru; try .*128"),
    ],
)
def test_a_memory_without_size_or_kind_is_refused(given, text):
    (problem,) = problems_of(**given)
    assert re.match(text, problem)


@pytest.mark.parametrize(
    ("actions", "space"),
    [
        (ActionSpec((), (0.0,) * 2, (1.0,) * 2), "a Box of 2"),
        (ActionSpec((3, 2)), "2 choices (MultiDiscrete, MultiBinary, or a Dict or Tuple)"),
        (ActionSpec((3, 2), (0.0,), (1.0,)), "a Dict or Tuple of a Box of 1 and 2 choices"),
    ],
)
def test_n_step_q_refuses_what_is_no_single_choice(actions, space):
    config = defaults.defaults_for("CartPole-v1", {"system": "n-step-q"})
    spec = dataclasses.replace(envs.describe("CartPole-v1"), actions=actions)
    assert defaults.resolve(config, envs.describe("CartPole-v1"))
    with pytest.raises(ConfigError) as error:
        defaults.resolve(config, spec)
    (line,) = str(error.value).splitlines()
    assert line == (
        "system=n-step-q must have one Discrete to choose from, and an action of CartPole-v1 is "
        f"{space}; use system=appo"
    )
