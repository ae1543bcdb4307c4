"""What users type after --env=: every name means an environment, or one line tells why not."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium
import pytest

from sfrl import envs
from sfrl.envs import names
from sfrl.run.description import describe
from tests.runs import ROOT, TIMEOUT_S, TINY, finish, training

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]  # sfrl's

ENV = """import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("{}-v0", CartPoleEnv, max_episode_steps=500)
"""

MODULES = {
    "names_good.py": ENV.format("NamesGrid"),
    "names_classes.py": "import gymnasium\n\n\nclass Grid(gymnasium.Env): ...\n\n\n"
    "class Grids(gymnasium.vector.VectorEnv): ...\n\n\n"
    "class Own:\n    def reset(self): ...\n\n    def step(self): ...\n",
    "names_owns.py": ENV.format("Owned") + "\n\nclass Own: ...\n",
    "shimmy.py": "",  # as it is without dm_control, and the one below without a package it needs
    "highway_env.py": "import a_package_that_is_not_there\n",
    "names_broken.py": "def f(:\n",
    "names_needy.py": "import a_package_that_is_not_there\n",
    "names_raising.py": "raise LookupError('no\\nlevels')\n",
    "names_exiting.py": "raise SystemExit(3)\n",
    "names_refusing.py": "import gymnasium\n\n\ndef make():\n    raise KeyError('no\\nlevel')\n\n\n"
    "gymnasium.register('Refusing-v0', make)\n",
    "names_unnamed.py": "import gymnasium\n\ngymnasium.register('Unnamed-v0', 'nowhere_at:All')\n",
    "tests/__init__.py": "raise RuntimeError('hides the other one')\n",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".names_good:NamesGrid-v0", "not as a file; did you mean names_good:NamesGrid-v0?"),
        ("names_good.py", "not as a file; did you mean names_good:Id-v0?"),
        ("names_good.py:NamesGrid-v0", "did you mean names_good:NamesGrid-v0?"),
        ("../x/names_good:NamesGrid-v0", "did you mean names_good:NamesGrid-v0?"),
        (":CartPole-v1", "did you mean CartPole-v1?"),
        (":", "':' must be an Atari game, a Gymnasium id or module:Id-v0"),
        ("", "'' is neither an Atari game nor a Gymnasium id; an environment of"),
        ("names_good:", "the environment's id is missing; did you mean names_good:NamesGrid-v0?"),
        ("names_good:NamesGrid", "registers no 'NamesGrid'; did you mean names_good:NamesGrid-v0?"),
        ("names_good:NamsGrd-v0", "did you mean names_good:NamesGrid-v0?"),
        ("names_good:X", "did you mean names_good:NamesGrid-v0?"),
        (
            "names_classes:Grid",
            'gymnasium.register("Grid-v0", Grid), and name it names_classes:Grid-v0',
        ),
        ("names_classes:Grids", 'gymnasium.register("Grids-v0", vector_entry_point=Grids), and'),
        (
            "names_classes:Own",
            "Own is a class, and must be a gymnasium.Env, a gymnasium.vector.VectorEnv, or have "
            "what VecEnv has; it is neither of the two, and has no send, recv, episode_info, state,"
            " load_state, render, close (docs/adding-an-environment.md)",
        ),
        ("names_owns:Own", "names_owns:Own is a class, and must be"),
        ("names_classes:X-v0", "classes.py registers no 'X-v0'; it must call gymnasium.register"),
        ("nowhere:X-v0", "there is no module 'nowhere' to import; it must be a file where you"),
        ("tests:X-v0", "tests is hidden by "),
        ("tests.grid:X-v0", "tests is hidden by "),
        ("LunarLander-v2", "did you mean LunarLander-v3"),
        ("Reacher-v1", "did you mean Reacher-v5"),
        ("PonkNoFrameskip-v4", "did you mean Pong"),
        ("Pong-v5", "did you mean Pong? An environment of your own is named module:Id-v0, so that"),
        ("CoinrunEasy-v0", "so that it gets registered, and one of EnvPool's envpool:Id-v0"),
    ],
)
def test_a_name_that_means_nothing_is_told_with_one_that_does(here, name, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(envs.UnknownEnvError) as refusal:
        envs.describe(name)
    assert text in str(refusal.value)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shimmy:dm_control/cheetah-run-v0", 'more than shimmy: pip install "sfrl[dm-control]"'),
        ("highway_env:highway-v0", 'a_package_that_is_not_there: pip install "sfrl[highway]"'),
    ],
)
def test_a_family_that_is_not_whole_is_told_with_its_extra(here, name, text, monkeypatch):
    module = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)  # to be as it was in the end
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(names, "_brought", {})
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])  # before one that is installed
    with pytest.raises(envs.UnknownEnvError, match=re.escape(text)):
        envs.describe(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CoinrunEasy-v0", "did you mean envpool:CoinrunEasy-v0? An"),
        ("Pong-v5", "did you mean Pong or envpool:Pong-v5? An"),
        ("LunarLander-v2", "did you mean LunarLander-v3 or "),
    ],
)
def test_a_task_of_envpools_is_named_with_its_module(name, hint):
    pytest.importorskip("envpool")
    with pytest.raises(envs.UnknownEnvError, match=re.escape(hint)):
        envs.gymnasium_id(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names_broken:X-v0", "imported: SyntaxError: invalid syntax ({}/names_broken.py, line 1)"),
        (
            "names_needy:X-v0",
            "({}/names_needy.py, line 1); install the package that has 'a_package_that_is_not_",
        ),
        ("names_raising:X-v0", "imported: LookupError: no levels ({}/names_raising.py, line 1)"),
        ("names_exiting:X-v0", "imported: SystemExit: 3 ({}/names_exiting.py, line 1)"),
        (
            "names_refusing:Refusing-v0",
            "made: KeyError: 'no\\nlevel' ({}/names_refusing.py, line 5",
        ),
        ("names_unnamed:Unnamed-v0", "made: ModuleNotFoundError: No module named 'nowhere_at'"),
    ],
)
def test_a_fault_in_the_users_module_is_told_with_its_place(here, name, text):
    with pytest.raises(ValueError, match=f"^env={name} could not be ") as refusal:
        describe(name, envs.EnvOptions(), 60)
    assert text.format(here) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gymnasium's, of ids out of date
def test_each_of_gymnasiums_own_ids_can_be_made_or_has_its_remedy_told():
    texts = {}
    for env_id, spec in gymnasium.registry.items():
        if str(spec.entry_point).startswith(("gymnasium.envs.", "<function _raise_")):
            try:
                envs.describe(env_id)
            except envs.UnsupportedEnvError as refusal:
                texts[env_id] = str(refusal)
    assert not {"CartPole-v1", "Pendulum-v1", "Taxi-v4", "Blackjack-v1"} & set(texts)
    assert len(texts) > 20
    for env_id, text in texts.items():
        assert text.startswith(env_id)
        assert "pip install" in text or "only supported on `mujoco<3`" in text, text
        for extra in EXTRAS:
            assert f"gymnasium[{extra}]" not in text, text
        assert "\n" not in text
    assert "use Ant-v5" in texts["Ant-v2"]
    assert 'needs jax: pip install "gymnasium[jax]"' in texts["phys2d/CartPole-v1"]
    for env_id, module, extra in (
        ("LunarLander-v3", "Box2D", "box2d"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
    ):
        if importlib.util.find_spec(module) is None:
            assert texts[env_id].endswith(f' is not installed: pip install "sfrl[{extra}]"')


def test_each_of_ales_ids_means_a_game():
    games = [s.id for s in gymnasium.registry.values() if s.entry_point == "ale_py.env:AtariEnv"]
    assert len(games) > 100
    assert all(envs.atari_game(env_id) for env_id in games)


@pytest.mark.slow
def test_a_module_is_found_where_the_user_stands_and_hides_none_that_is_installed(
    tmp_path, monkeypatch
):
    """In all processes of train.py, with --resume, in enjoy.py and in the benchmark."""
    monkeypatch.delenv("PYTHONPATH")
    (tmp_path / "envs").mkdir()  # not ours
    (tmp_path / "envs" / "here_env.py").write_text(ENV.format("Here"))
    for name in ("json", "psutil", "selectors", "sfrl"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('hides the other one')\n")
    flags = (*TINY[1:], "--env=envs.here_env:Here-v0", "--train-frames=500")
    with training(tmp_path / "run", *flags, cwd=tmp_path) as process:
        ended = finish(process)
    assert ended.code == 0, ended.stderr

    def told(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    wrong = "--gamma=2"  # is told alone, once the environment is found
    resumed = told(str(ROOT / "train.py"), "--resume", "--run-dir=run", wrong)
    assert resumed.stderr == "train.py: gamma=2.0 must lie between 0 and 1\n"
    played = told(str(ROOT / "enjoy.py"), "--run-dir=run", "--episodes=1")
    assert played.returncode == 0, played.stderr
    # As the command `sfrl` begins, in whose folder our package is.
    command = f"import sys; sys.path[0] = '{ROOT}'; from sfrl.__main__ import main; main()"
    benched = told("-c", command, "bench", "--env=envs.here_env:Here-v0", wrong)
    assert benched.stderr == "sfrl bench: gamma=2.0 must lie between 0 and 1\n"
