"""The commands that documents show: each has flags that exist and values that they take, and each
is run, in the order of its page and in a folder of the page's own.

The lessons (start and tutorials) are run in every suite, all others by `pytest -m commands`. A run
is made shorter, by the length alone: see `shortened`. What is not run says why in `NOT_RUN`.
"""

import ctypes.util
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import tyro

from sfrl.__main__ import COMMANDS
from sfrl.commands import EXIT_FOUND, enjoy, export, train
from sfrl.settings import synonyms
from sfrl.settings.flags import parse_flags
from tests.runs import ROOT

DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
LESSONS = [DOCS / "start.md", *sorted((DOCS / "tutorials").glob("*.md"))]
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SCRIPTS = [*EXAMPLES.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]  # docstrings have commands
TIMEOUT_S = 900.0  # what takes half a minute on an idle machine
FEW_FRAMES = 3000  # more than all slots hold, so that something is learned, and saved
FRAMES = 20_000  # the same of Atari, too, where a decision is four
SHORTER = {  # what a test adds to a command: of several flags of a name the last one counts
    "own_environment": f"--frames={FEW_FRAMES}",
    "own_network": f"--frames={FEW_FRAMES}",
    "several_seeds": f"--seeds=2 --train-frames={FEW_FRAMES}",
    "sweep": f"--frames={FEW_FRAMES} --rates 1e-3 3e-3 --seeds 1",
    "train": "--train-seconds=30",  # for slow environments, which have fewer frames by then
    "demo": "--train-seconds=60",
    "bench": "--seconds=1",
    "enjoy": "--max-steps=200",
    "benchmarks.emulators": "--steps=2 --windows=1",
    "benchmarks.grid": "--seconds=60 --rounds=1 --workers 1 --splits 1 --envs 16",
    "benchmarks.lag": f"--seeds=1 --lags=5 --reuses=1 --frames={FEW_FRAMES}",
    "benchmarks.layouts": "--seconds=4 --windows=1 --rounds=1",
    "benchmarks.learning": f"--seeds=1 --frames={FEW_FRAMES}",
    "benchmarks.side_by_side": "--pairs=1 --seconds=60",
    "benchmarks.viewer": "--pairs=1 --seconds=60 --skipped=30",
}
NOT_RUN = {  # beginnings of commands; the flags of ours are checked nevertheless
    "git clone": "needs a network",
    "cd sfrl": "the clone, where all commands begin",
    "pip install": "needs a network; tests/test_main.py installs a wheel",
    "python -m venv": "what one has done before there are tests",
    "source ": "the same",
    "make pong": "installs first, which needs a network; then it is python train.py --env=Pong",
    "make demo": "the same with sfrl demo, which demo.md runs",
    "make test": "runs this",
    "tensorboard": "serves until it is ended",
    "sfrl web": "the same; tests/web opens the page in a browser",
    "python enjoy.py --window": "needs a display",
    'python -m benchmarks.layouts --flags="--device=cuda"': "needs a GPU",
    "python -m benchmarks.side_by_side --find-best": "installs Sample Factory: a network, minutes",
    "python -m benchmarks.side_by_side --pairs=2 --seconds=80 --peer=sample-factory": "the same",
    "python -m benchmarks.sample_factory": "the same",
    'python -m benchmarks.learning "now=" "spo=': "what it compares was tried, and not kept",
    'python -m benchmarks.learning "now=" "narrow=': "the same",
}
LATER = (  # of the lessons, too: another command there does nearly as much, or it needs a run
    "python enjoy.py",
    "python train.py --env=CartPole-v1 --resume",
    "python train.py --env=CartPole-v1 --train-seconds=30 --",
    "python several_seeds.py --seeds=3",
    *(f"sfrl {name}" for name in ("bench", "compare", "diagnose", "plot", "status", "train")),
)
OURS = re.compile(
    r"(?:python (?:train|enjoy)\.py|sfrl [a-z]+|python -m (?:sfrl [a-z]+|benchmarks\.\w+)"
    rf"|python (?:{'|'.join(path.name for path in EXAMPLES.glob('*.py'))}))(?= |$)"
)
PROGRAM = re.compile(
    r"(?:python train\.py|sfrl (?:train|enjoy|export|bench|demo|try|web|rm)"
    r"|python -m [\w.]+(?: try)?)$"
)
PLACEHOLDER = re.compile(
    r"\.\.\.|=[A-Z]+\b|=['\"]\.\.|<| \[|--name=value|\b(?:DIR|ENV|FILE|FOLDER|RUN)\b"
)
EXAMPLE_RUN = "CartPole-v1-20260101-120000"
STAND_IN = """import gymnasium

gymnasium.register("MyEnv-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=99)
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The commands of its bash blocks; one that goes on in the next line is one."""
    lines = re.sub(r" *\\\n *", " ", "".join(blocks(page, "bash"))).splitlines()
    return [part for line in lines for part in line.split(" && ") if part.strip()]


def our_commands(page: Path) -> list[str]:
    """sfrl's commands as they come, in any block, indented or `so` in the text, each once.

    Left out are those with placeholders, and names of programs in the text, such as `sfrl train`.
    """
    text, found = re.sub(r" *\\\n *", " ", page.read_text()), []
    for part in re.split(r"^(```.*?^```)", text, flags=re.M | re.S):
        if part.startswith("```"):
            lines = [line.strip() for line in part.splitlines()]
            found += [command for line in lines for command in line.split(" && ")]
            found += [match.group() for line in lines if (match := re.search("python .*", line))]
        else:
            for indented, inline in re.findall(r"^    (.*)|`([^`]+)`", part, re.M):
                words = " ".join(inline.split())
                found += [indented, "" if PROGRAM.match(words) else words]
    return [c for c in dict.fromkeys(found) if OURS.match(c) and not PLACEHOLDER.search(c)]


def flat(code: str) -> str:
    """Without indentation and empty lines: `ruff format` moves a method that stands alone."""
    return "".join(f"{line.strip()}\n" for line in code.splitlines() if line.strip())


def why_not_run(command: str) -> str:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")


def taken_apart(command: str) -> tuple[list[str], str, list[str]]:
    """The words that start the program; its name, "train" or "benchmarks.lag"; its arguments."""
    words = shlex.split(command, comments=True)
    size = 2 if words[1] == "-m" else 1
    size += words[size] == "sfrl"
    return words[: size + 1], words[size].removesuffix(".py"), words[size + 1 :]


def shortened(command: str) -> list[str]:
    """The arguments of a process that does what the command says, for a moment."""
    start, name, args = taken_apart(command)
    start = ["-m", *start] if start[0] == "sfrl" else start[1:]
    if name in ("train", "try", "demo", "bench") and "--tune" not in command:
        args.append("--tune=off")
    if name in ("train", "try"):
        args.append(f"--train-frames={FRAMES * 2 if '--resume' in args else FRAMES}")
    return [sys.executable, *start, *args, *SHORTER.get(name, "").split()]


def what_is_missing(command: str) -> str:
    """Of the packages of environments, which not everyone has; "" if nothing is."""
    [name] = re.findall(r"--env=([\w.:/-]+)|sfrl try ([\w.:/-]+)", command)[:1] or [("", "")]
    module, _, env = (name[0] or name[1]).rpartition(":")
    if not module and env in gymnasium.registry:
        module = str(gymnasium.spec(env).entry_point).split(":")[0]
        parts = {"box2d": "Box2D", "mujoco": "mujoco"}
        module = next((parts[part] for part in parts if f".{part}." in module), "")
    if module == "envpool" and "Coinrun" in env and not ctypes.util.find_library("Qt5Gui"):
        return "Qt 5, from the system"
    top = module.split(".")[0]
    is_there = not top or top.startswith(("my_", "own_")) or importlib.util.find_spec(top)
    return "" if is_there else top


def start(line: list[str], folder: Path) -> None:
    ended = subprocess.run(
        line,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    found = "diagnose" in line or "try" in line
    codes = (0, EXIT_FOUND) if found else (0,)
    assert ended.returncode in codes, f"{shlex.join(line)}\n{ended.stdout}\n{ended.stderr}"


@pytest.fixture(scope="module")
def example_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / EXAMPLE_RUN
    flags = ["--env=CartPole-v1", "--serial", f"--train-frames={FRAMES}", f"--run-dir={folder}"]
    start([sys.executable, "-m", "sfrl", "train", *flags], ROOT)
    return folder


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """What the reader of a page has, but for what running it leaves behind."""
    made: dict[Path, Path] = {}

    def clone(page: Path) -> Path:
        if page in made:
            return made[page]
        folder = made[page] = tmp_path_factory.mktemp("clone")
        for name in ("train.py", "enjoy.py", "tests", "docs/curves"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(ROOT / name)
        (folder / "docs" / "img").mkdir()
        shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "my_module.py").write_text(STAND_IN)
        for block in blocks(page, "python"):
            if (named := re.match(r"# (\w+\.py)", block)) and " ...\n" not in block:
                (folder / named[1]).write_text(block)
        return folder

    return clone


def put_runs(command: str, folder: Path, run: Path) -> None:
    """What the command takes for granted: runs that it names, or one that may go on."""
    runs = {EXAMPLE_RUN, *re.findall(r"\bruns/([\w/?-]+)", command)}
    places = [folder / "runs" / name.replace("?", "1") for name in runs]
    places += [folder / name / run.name for name in re.findall(r" ([\w-]+)/(?= |$)", command)]
    for place in places:
        if not place.exists():
            shutil.copytree(run, place)
    if "--resume" in command and (env := re.search(r"--env=\S+", command)):
        start(shortened(f"python train.py {env[0]}"), folder)


def to_run() -> Iterator[Any]:
    """The commands as parameters, in the order of their pages."""
    for page in PAGES:
        where = "."
        for command in dict.fromkeys([*commands(page), *our_commands(page)]):
            if command.startswith("cd ") and not why_not_run(command):
                where = command.removeprefix("cd ")
            elif not why_not_run(command):
                is_now = page in LESSONS and not command.startswith(LATER)
                marks = [] if is_now else [pytest.mark.commands]
                name = f"{page.stem}: {command[:70]}"
                yield pytest.param(page, where, command, is_now, marks=marks, id=name)


@pytest.mark.parametrize(("page", "where", "command", "is_now"), [*to_run()])
def test_a_command_does_what_its_page_says(page, where, command, is_now, clones, request):
    if missing := what_is_missing(command):
        pytest.skip(f"{missing} is not installed")
    folder, line = clones(page) / where, shortened(command)
    if not is_now:
        put_runs(command, folder, request.getfixturevalue("example_run"))
        if "--checkpoint=best" in command:  # which takes 100 episodes
            line.append(f"--run-dir=runs/{EXAMPLE_RUN}")
    elif command.startswith("python train.py"):
        line += ["--serial", f"--train-frames={FEW_FRAMES}"]
    start(line, folder)
    for film in re.findall(r"--video=(\S+)", command):
        assert (folder / film).stat().st_size


def test_every_example_is_run_and_told_of():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    run = {param.values[2].split()[1] for param in to_run() if param.values[3]}
    assert scripts == {name for name in run if name in scripts}
    table = re.findall(r"^\| `(\w+\.py)` \|", (DOCS / "start.md").read_text(), re.M)
    assert scripts == {*table}


def test_what_is_not_run_is_still_there():
    shown = [line for page in PAGES for line in [*commands(page), *our_commands(page)]]
    for beginning in (*NOT_RUN, *LATER):
        assert any(line.startswith(beginning) for line in shown), beginning


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_the_code_of_a_lesson_is_that_of_an_example(page):
    examples = [flat(path.read_text()) for path in EXAMPLES.glob("*.py")]
    shown = [flat(block) for block in blocks(page, "python")]
    assert [block for block in shown if not any(block in example for example in examples)] == []


def check(name: str, argv: list[str]) -> None:
    """Raises, or exits, if the program of that name refuses these arguments."""
    if name.startswith("benchmarks."):
        main = importlib.import_module(name).main
        [args, *_] = typing.get_type_hints(main).values()
        tyro.cli(args, args=argv)
    elif {"--help", "--help-all", "--list-systems"} & {*argv}:
        pass
    elif name in ("train", "demo", "bench", "try"):
        own = ("--seconds", "--json", "--plot", "--file")
        flags = [flag for flag in argv if flag.startswith("--") and not flag.startswith(own)]
        train.read_flags(argv if name == "train" else flags)
    elif name in ("enjoy", "export"):
        module = {"enjoy": enjoy, "export": export}[name]
        names = {"enjoy": synonyms.OF_ENJOY, "export": synonyms.OF_EXPORT}[name]
        flags = argv[1:] if name == "export" and not argv[0].startswith("-") else argv
        parse_flags(flags, module.Args(), names, name, "").check()
    elif name in COMMANDS:
        args = importlib.import_module(f"sfrl.commands.{name}").Args()
        parse_flags(argv, args, {}, name, "", names="runs")
    else:
        assert (EXAMPLES / f"{name}.py").exists(), name


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: page.stem)
def test_the_flags_of_every_command_exist_and_take_such_values(page):
    for command in our_commands(page):
        _, name, argv = taken_apart(command)
        check(name, argv)


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


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--seed=3", "each run has a seed of its own; --seeds=5 says how many"),
        ("--run-dir=x", "each run has a folder of its own; leave --run-dir out"),
    ],
)
def test_what_seeds_cannot_share_is_refused_before_the_first(flag, problem):
    command = [sys.executable, str(EXAMPLES / "several_seeds.py"), flag]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert problem in ended.stderr
