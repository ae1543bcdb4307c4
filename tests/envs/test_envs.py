"""Names of environments."""

import subprocess
import sys

import pytest

from sfrl import envs


@pytest.mark.parametrize(
    "name", ["MsPacman", "mspacman", "ms_pacman", "ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4"]
)
def test_every_spelling_of_a_game_means_the_game_with_our_settings(name):
    leaf = envs.Leaf("obs", "image", (4, 84, 84), "uint8", 255.0, frames=4)
    assert envs.describe(name) == envs.EnvSpec("atari", (leaf,), envs.ActionSpec((9,)), 4)


@pytest.mark.parametrize("name", ["Pong", "CartPole-v1", "Taxi-v4", "tests.tiny_envs:Mixed-v0"])
def test_the_description_fits_the_environment(name):
    spec = envs.describe(name)
    env = envs.make_vec_env(name, 1, seed=0)
    obs = env.reset()
    assert list(obs) == [leaf.name for leaf in spec.leaves]
    for leaf in spec.leaves:
        assert (obs[leaf.name].shape, obs[leaf.name].dtype) == ((1, *leaf.shape), leaf.dtype)
    assert env.leaves == spec.leaves
    assert env.actions == spec.actions
    assert env.frameskip == spec.frameskip
    assert env.num_envs == 1


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("Pomg", "Pong"),
        ("ALE/Brekout-v5", "Breakout"),
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("Acrobot-v7", "Acrobot-v1"),
        ("gymnasium:Acrobat-v1", "Acrobot-v1"),
    ],
)
def test_a_typo_names_the_nearest_environments(typo, nearest):
    with pytest.raises(envs.UnknownEnvError, match=f"did you mean .*{nearest}"):
        envs.describe(typo)
    with pytest.raises(envs.UnknownEnvError, match=typo):
        envs.make_vec_env(typo, 1, seed=0)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(envs.UnknownEnvError, match=r"no module 'nowhere\.at_all'"):
        envs.describe("nowhere.at_all:MyEnv-v0")


def test_a_broken_import_inside_the_named_module_is_shown_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_package_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
        envs.describe("broken_module:MyEnv-v0")


def test_the_named_module_registers_its_environment(tmp_path, monkeypatch):
    (tmp_path / "registering_module.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MyCartPole-v0',\n"
        "    entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.describe("registering_module:MyCartPole-v0").leaves[0].shape == (4,)
    assert envs.make_vec_env("registering_module:MyCartPole-v0", 2, seed=0).reset()[
        "obs"
    ].shape == (2, 4)


def test_torch_is_not_imported():
    code = "import sys, envs; envs.make_vec_env('Pong', 1, seed=0); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
