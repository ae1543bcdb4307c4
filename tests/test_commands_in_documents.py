"""The commands that documents show. Start and tutorials: each is run, as a reader would. All pages:
each has flags that exist and values that they take.

A run is made shorter, by the length alone: see `shortened`. What is not run says why in `NOT_RUN`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfrl.commands import bench, enjoy, train
from sfrl.settings import synonyms
from sfrl.settings.flags import parse_flags
from tests.runs import ROOT, TIMEOUT_S

DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
LESSONS = [DOCS / "start.md", *sorted((DOCS / "tutorials").glob("*.md"))]
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FRAMES = 3000  # more than all slots hold, so that something is learned, and saved
SHORTER = {  # what a test adds to a script's arguments
    "own_environment.py": [f"--frames={FRAMES}"],
    "own_network.py": [f"--frames={FRAMES}"],
    "several_seeds.py": ["--seeds=2"],
    "sweep.py": [f"--frames={FRAMES}", "--rates", "1e-3", "3e-3", "--seeds", "1"],
    "read_metrics.py": [],
}
NOT_RUN = {  # of the lessons; the flags of sfrl's commands are checked nevertheless
    "git clone": "needs a network",
    "pip install": "needs a network; tests/test_main.py installs a wheel",
    "python -m venv": "what one has done before there are tests",
    "source ": "the same",
    "tensorboard": "serves until it is ended",
    "python enjoy.py": "own-environment.md films as well, by sfrl enjoy",
    "python train.py --env=CartPole-v1 --resume": "tests/test_end_to_end.py goes on",
    "sfrl bench": "takes minutes; tests/bench runs it",
    "sfrl train": "repeats the page's script, of which it shows the flags",
    "python train.py --env=CartPole-v1 --train-seconds=30 --": "train.py with a flag more",
    "python several_seeds.py --seeds=3": "several-seeds.md runs it",
}
OURS = re.compile(r"(?:python (?:train|enjoy)\.py|sfrl (?:train|enjoy|bench))(?: |$)")
PLACEHOLDER = re.compile(r"\.\.\.|=[A-Z]+\b|=['\"]\.\.|<|--name=value")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The lines of its bash blocks; one that goes on in the next line is one."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def our_commands(page: Path) -> set[str]:
    """sfrl's commands in any block, indented lines and `...` of the text, without placeholders."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if not line.startswith("|")]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    inline = [" ".join(part.split()) for part in re.findall(r"`([^`]+)`", prose)]
    return {line for line in lines + inline if OURS.match(line) and not PLACEHOLDER.search(line)}


def flat(code: str) -> str:
    """Without indentation and empty lines: `ruff format` moves a method that stands alone."""
    return "".join(f"{line.strip()}\n" for line in code.splitlines() if line.strip())


def why_not_run(command: str) -> str:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")


def shortened(command: str) -> list[str]:
    """The arguments of a process that does what the command says, for a moment."""
    length = rf"--train-frames={FRAMES}"
    program, *args = shlex.split(re.sub(r"--train-(seconds|frames)=\S+", length, command), True)
    if program == "sfrl":
        return [sys.executable, "-m", "sfrl", *args]
    assert program == "python", command
    if args[0] == "train.py":
        args += ["--tune=off", "--serial"]
    return [sys.executable, *args, *SHORTER.get(args[0], [])]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has, but for what running it leaves behind."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "enjoy.py", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def lines_to_run() -> Iterator[tuple[Path, list[str]]]:
    for page in LESSONS:
        if lines := [line for line in commands(page) if not why_not_run(line)]:
            yield page, lines


@pytest.mark.parametrize(
    ("page", "lines"), [pytest.param(page, lines, id=page.stem) for page, lines in lines_to_run()]
)
def test_the_commands_of_a_lesson_do_what_it_says_one_after_the_other(page, lines, clone):
    shutil.rmtree(clone / "examples" / "runs", ignore_errors=True)
    folder, search_path = clone, f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    for line in lines:
        if line.startswith("cd "):
            folder = folder / line.removeprefix("cd ")
            continue
        ended = subprocess.run(
            shortened(line),
            cwd=folder,
            env=os.environ | {"PYTHONPATH": search_path},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
        for film in re.findall(r"--video=(\S+)", line):
            assert (folder / film).stat().st_size


def test_every_example_is_run_and_told_of():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    run = " ".join(line for _, lines in lines_to_run() for line in lines)
    assert scripts == {name for name in scripts if f"python {name}" in run}
    table = re.findall(r"^\| `(\w+\.py)` \|", (DOCS / "start.md").read_text(), re.M)
    assert scripts == {*table} == {*SHORTER}


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_the_code_of_a_lesson_is_that_of_an_example(page):
    examples = [flat(path.read_text()) for path in EXAMPLES.glob("*.py")]
    shown = [flat(block) for block in blocks(page, "python")]
    assert [block for block in shown if not any(block in example for example in examples)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_flags_of_every_command_exist_and_take_such_values(page):
    for command in our_commands(page):
        words = shlex.split(command, comments=True)
        program, *argv = words[1:] if words[0] in ("python", "sfrl") else words
        if {"--help", "--help-all"} & {*argv}:
            continue
        if program.startswith("enjoy"):
            parse_flags(argv, enjoy.Args(), synonyms.OF_ENJOY, "enjoy", "").check()
        elif program == "bench":
            options = ("--seconds", "--json", "--plot")
            flags = [arg for arg in argv if not arg.startswith(options) and arg not in bench.STEPS]
            train.read_flags(flags)
        elif "--list-systems" not in argv:
            train.read_flags(argv)


def test_the_makefile_has_the_targets_that_documents_name():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    named = {name for page in PAGES for name in re.findall(r"`make (\w+)`", page.read_text())}
    named |= {line.split()[1] for page in PAGES for line in commands(page) if line[:5] == "make "}
    assert named
    assert named <= {*targets}


def test_the_extras_that_documents_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name for page in PAGES for name in re.findall(r'"sfrl\[([\w-]+)\]"', page.read_text())}
    assert named <= {*extras["optional-dependencies"]}
