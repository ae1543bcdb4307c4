"""The command `sfrl`: what it tells of itself, and that it works where it is installed."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from sfrl.__main__ import COMMANDS
from tests.runs import ROOT, TIMEOUT_S, TINY

CHECKS_WHERE_SFRL_IS = """
import os
import pathlib
import sfrl

assert str(pathlib.Path(sfrl.__file__).parents[1]) == os.environ["SFRL_IS_IN"], sfrl.__file__
assert "PYTHONSAFEPATH" not in os.environ
"""
INTERRUPTED = """
import importlib, os, sys
from sfrl import __main__
importlib.import_module = lambda name: os.kill(os.getpid(), int(sys.argv[2]))
__main__.run(sys.argv[1], [], "sfrl")
"""
PROJECT = {
    "envs/__init__.py": CHECKS_WHERE_SFRL_IS,
    "envs/my_env.py": """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("MyEnv-v0", CartPoleEnv, max_episode_steps=500)
""",
    "envs/my_net.py": """
from torch import nn


class MyNet(nn.Sequential):
    def __init__(self, obs_shape):
        super().__init__(nn.Linear(obs_shape[0], 8), nn.Tanh())
""",
}
EXTENSIONS = """
import setuptools
from distutils.core import run_setup

print(*(extension.name for extension in run_setup("setup.py", stop_after="init").ext_modules))
"""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
FLAGS = (*TINY[1:], "--env=envs.my_env:MyEnv-v0", "--tune=off", "--train-frames=500")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_is_interrupted_before_it_begins_is_not_done(command, signum):
    """But for a training: that has ended in order."""
    line = [sys.executable, "-c", INTERRUPTED, command, str(int(signum))]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == (0 if command == "train" else 128 + signum)
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["nonsense", "--help"], 2)]
)
def test_without_a_command_all_are_told(arguments, code):
    ended = subprocess.run([sys.executable, "-m", "sfrl", *arguments], capture_output=True)
    assert ended.returncode == code
    told, silent = (ended.stderr, ended.stdout) if code else (ended.stdout, ended.stderr)
    assert silent == b""
    lines = told.decode().splitlines()
    assert [line.split()[0] for line in lines[-len(COMMANDS) :]] == list(COMMANDS)
    refusal = f"sfrl: 'nonsense' is no command; choose from {', '.join(COMMANDS)}"
    assert (refusal in lines) == ("nonsense" in arguments)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (("train.py",), "train.py"),
        (("enjoy.py",), "enjoy.py"),
        *((("-m", "sfrl", command), f"sfrl {command}") for command in COMMANDS),
    ],
)
def test_a_missing_package_is_told_in_a_line_by_every_program(program, name, tmp_path, monkeypatch):
    (tmp_path / "gymnasium.py").write_text("raise ModuleNotFoundError('No gymnasium')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, *program, "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"{name}: its packages cannot be loaded: No gymnasium; install them (")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the checkout, so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = (".*", "*.so", "*.egg-info", "__pycache__", "build", "docs")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*ignored))
    shutil.rmtree(source / "runs", ignore_errors=True)  # of who has trained here
    # What is compiled already is not compiled once more, which takes half a minute.
    build = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for name in subprocess.check_output(
        [sys.executable, "-c", EXTENSIONS], cwd=source, text=True
    ).split():
        extension = Path(*name.split(".")).with_suffix(SUFFIX)
        (build / extension).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / extension, build / extension)
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}")
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel, in which what it needs is that of this one."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip(f"--python={python}", "install", "--no-deps", "--no-index", str(wheel))
    # By their folders' names alone: what is installed there as editable, sfrl, is not found.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    Path(site, "needed.pth").write_text("\n".join(packages))
    return folder, site


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    # With the tests' PYTHONPATH pip would find the checkout's sfrl, and take it for installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_wheel_has_the_package_with_its_extensions_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    files = {name for name in names if ".dist-info" not in name.parts[0]}
    modules = {path.relative_to(ROOT) for path in (ROOT / "sfrl").glob("**/*.py")}
    modules |= {path.relative_to(ROOT) for path in (ROOT / "sfrl/envs").glob("*.py")}  # a link
    extensions = (
        "envs/_areas",
        "envs/_screen",
        "ipc/_index_queue",
        "nets/_images",
        "nets/_sparse_conv",
    )
    stubs = {Path("sfrl", name) for name in extensions}
    others = {stub.with_suffix(suffix) for stub in stubs for suffix in (".pyi", SUFFIX)}
    page = {path.relative_to(ROOT) for path in (ROOT / "sfrl/web/static").iterdir()}
    assert files == modules | others | page | {Path("sfrl/py.typed")}


@pytest.mark.slow
def test_a_user_with_an_envs_folder_trains_and_plays_by_the_command_and_the_checkout(
    installed, tmp_path, monkeypatch
):
    """Whose environment and network are in it, and not one of sfrl's processes finds another."""
    folder, site = installed
    monkeypatch.delenv("PYTHONPATH")
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(where: str, *command: str | Path) -> None:
        ended = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"SFRL_IS_IN": where},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert ended.returncode == 0, ended.stderr

    python, sfrl = folder / "bin" / "python", folder / "bin" / "sfrl"
    run(site, python, "-m", "sfrl", "train", *FLAGS, "--serial", "--run-dir=one")
    (tmp_path / "sfrl.py").write_text("raise RuntimeError('hides the other one')\n")
    run(site, sfrl, "train", *FLAGS, "--run-dir=two")
    run(site, sfrl, "enjoy", "--run-dir=two", "--episodes=1")
    run(str(ROOT), python, ROOT / "train.py", *FLAGS, "--run-dir=3", "--model=envs.my_net:MyNet")
