"""A start in a place that lacks something: one line that tells what, or it does not matter."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.commands import train as cli
from sfrl.envs import ACTION_MASK, ActionSpec, Leaf
from sfrl.ipc import channels, index_queue
from sfrl.ipc.topology import make_topology
from sfrl.nets.choose import MLPS, MODELS
from sfrl.parameters.model_size import model_size
from sfrl.records import run_folder
from sfrl.run import limits
from sfrl.run.roles import shared_bytes
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import load_config
from sfrl.tune import tuner
from tests.leaves import choice, image, vector
from tests.runs import ROOT, SHM_DIR, TINY, finish, has_trained, run_training, training, wait_for

PONG = (
    "--tune=off --env=Pong --num-workers=1 --num-splits=1 --envs-per-worker=2 --rollout-length=8 "
    "--batch-size=8 --minibatches=2 --epochs=1 --precision=float32 --train-seconds=0.1"
)
RUN = "--run-dir=run"
MANY = 10**30
NOBODY = "--reuid=12345 --regid=12345 --clear-groups"


class Case(NamedTuple):
    """`setup` is what bash does before; with `mounts` it may mount what only the run sees."""

    setup: str
    flags: str
    texts: list[str]  # in each line on stderr, in order
    code: int = 2
    mounts: bool = False
    become: str = ""  # setpriv's options: not root, or less than that


REFUSED = {
    "numbers": Case(
        "",
        f"{RUN} --seed={MANY} --train-frames={MANY} --train-seconds=nan --learning-rate=1e400 "
        f"--report-seconds=1e300 --frameskip={MANY} --torch-threads={MANY} --epochs={MANY} "
        f"--reward-scale=1e300 --optimizer-eps=1e-300 --gamma=nan --rnn-size={MANY}",
        [
            f"seed={MANY} must be at most 4,294,967,295",
            "train_seconds=nan must be a finite",
            f"train_frames={MANY} must be at most 2.53=",
            f"frameskip={MANY} must be at most 1,000",
            f"torch_threads={MANY} must be at most 1,024",
            f"rnn_size={MANY} must be at most 2.53=",
            f"epochs={MANY} must be at most 1,000",
            "gamma=nan must be a finite",
            r"reward_scale=1e\+300 must lie between .* in size",
            "optimizer_eps=1e-300 must lie between .* in size",
            "learning_rate=inf must be a finite",
            r"report_seconds=1e\+300 must be at most 1,000,000,000",
        ],
    ),
    "workers": Case(
        "", f"{RUN} --num-workers=1000000000", ["num_workers=1000000000 .* must be below .*; lower"]
    ),
    "environments": Case(
        "",
        f"{RUN} --envs-per-worker={10**12}",
        ["policy_batch_size=512 must be at least .*; try", f"batch_size=8 must be .*{10**12}"],
    ),
    "rows": Case(
        "",
        f"{RUN} --rollout-length={10**12}",
        [f"batch_size=8 must .*{10**12}", f"rollout_length={10**12} must be below .*; lower"],
    ),
    "model": Case(
        "",
        f"{RUN} --rnn-size={10**9}",
        [
            "a model of .* MiB need .* MiB are free; lower .*--rnn-size=1000000000",
            "MiB available; lower --rnn-size=1000000000, choose a smaller model .*--shm-size=",
        ],
    ),
    "runs-is-a-file": Case(
        "touch runs", "", ["runs/Pong-.* cannot be written: File exists .*; na"]
    ),
    "no-permission": Case(
        "mkdir full && chown 12345 full && chmod 755 full",
        "--run-dir=full/run",
        ["run_dir=.* cannot be written: Permission denied"],
        1,
        become="--bounding-set=-dac_override,-dac_read_search",
    ),
    "read-only": Case(
        "mount -t tmpfs -o ro tmpfs . && cd .", "", ["cannot be written: Read-only"], mounts=True
    ),
    "full-disk": Case(
        "mkdir full && mount -t tmpfs -o size=4k tmpfs full",
        "--run-dir=full/run",
        ["^training Pong", "run_dir=.* cannot be written: No space left .*; make room"],
        1,
        mounts=True,
    ),
    "file-size": Case("ulimit -f 100", RUN, ["file of .* bytes .* limit on files is 102400 .*rai"]),
    "missing-shm": Case(
        "mkdir dev && mount --rbind /dev dev && mount -t tmpfs tmpfs /dev && "
        "for f in null urandom; do touch /dev/$f; mount --bind dev/$f /dev/$f; done; "
        "umount -l dev; rmdir dev",
        RUN,
        ["/dev/shm, .* cannot be used: it is missing; mount it"],
        mounts=True,
    ),
    "read-only-shm": Case(
        "mount -t tmpfs -o ro tmpfs /dev/shm",
        RUN,
        ["/dev/shm, .* cannot be used: it cannot be written; mount it"],
        mounts=True,
    ),
    "small-shm": Case(
        "mount -t tmpfs -o size=8M tmpfs /dev/shm",
        f"{RUN} --model=nature_cnn",
        [
            r"trajectories 2, weights 12, queues and reports 0 MiB\) needs 14 MiB .* has 8 MiB "
            r"available; choose a smaller model than --model=.*size=14m.*--shm-size=14m"
        ],
        mounts=True,
    ),
    "addresses": Case("ulimit -v 600000", RUN, ["at least 800 MiB of addresses, .*586 MiB .*-v"]),
    "data": Case("ulimit -d 200000", RUN, ["at least 250 MiB of addresses, .*195 MiB .*-d.*raise"]),
    "processes": Case(
        "ulimit -u 5",
        "--run-dir=/dev/shm/never",
        ["needs 7 processes and threads, .* limit is 5 .* raise"],
        become=NOBODY,
    ),
    "folder-is-gone": Case(
        "mkdir x && cd x && rmdir ../x", f"--run-dir={ROOT}/never", ["is gone .*; change to one"]
    ),
    "long-name": Case("", f"--run-dir={'a' * 300}", ["cannot be .*: File name too long; name"]),
    "line-ends": Case("", "$'--run-dir=a\\nb'", [r"run_dir='a\\nb' must have no control"]),
    "no-home": Case(
        "unset HOME", "'--run-dir=~/run'", ["run_dir=~/run .* no such home"], become=NOBODY
    ),
    "empty-home": Case("export HOME=", "'--run-dir=~/run2'", ["run_dir=~/run2 .* no such home"]),
    "no-such-home": Case("", "'--run-dir=~nobody-here/run'", ["run_dir=~nobody-here/run .* name"]),
}


def start(case: Case, folder: Path) -> subprocess.CompletedProcess[bytes]:
    enter = ["unshare", "-m"] if case.mounts else []
    become = f"setpriv {case.become} {sys.executable}" if case.become else sys.executable
    for needed in ([*enter, "true"], [*become.split(), "-c", ""]):
        if subprocess.run(needed, check=False, capture_output=True).returncode:
            pytest.skip(f"{needed} is not allowed here")
    script = f"{case.setup or 'true'} && exec {become} {ROOT}/train.py {PONG} {case.flags}"
    command = [*enter, "bash", "-c", script]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=90)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in REFUSED.items()])
def test_what_a_start_lacks_is_told_in_a_line_and_nothing_is_left(case, tmp_path):
    ended = start(case, tmp_path)
    error = ended.stderr.decode(errors="replace")
    lines = error.removeprefix("train.py: ").splitlines()
    lines = [line for line in lines if "removed sfrl-" not in line]  # of runs that tests killed
    assert ended.returncode == case.code, error
    assert len(lines) == len(case.texts), error
    assert all(re.search(text, line) for text, line in zip(case.texts, lines, strict=True)), error
    left = {path.name for path in tmp_path.iterdir()} - {"runs", "full"}
    assert not left
    assert not (ROOT / "never").exists()


ODD = {
    "one-core-ascii-no-home-no-input": Case(
        "unset HOME XDG_CACHE_HOME; export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "
        "PYTHONIOENCODING=ascii TMPDIR=/nowhere; taskset -p -c 0 $$ >/dev/null; exec <&-",
        "$'--run-dir=r\\xff\\xc3\\xa9'",
        [],
    ),
    "all-closed": Case("exec <&- >&- 2>&-", RUN, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ODD))
def test_what_a_start_can_do_without_does_not_matter(name, tmp_path):
    ended = start(ODD[name], tmp_path)
    error = ended.stderr.decode(errors="replace")
    assert ended.returncode == 0, error
    assert "Traceback" not in error
    assert "Logging error" not in error
    [run] = tmp_path.iterdir()
    assert "train_seconds=0.1 have passed" in (run / "log.txt").read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["appo", "n-step-q"])
def test_what_is_counted_is_what_a_run_allocates(tmp_path, system):
    run_dir = tmp_path / "run"
    sizes = ("--num-workers=2", "--batch-size=64", "--rnn-size=8", f"--system={system}")
    with training(run_dir, *TINY, *sizes) as process:
        wait_for(lambda: has_trained(run_dir))
        [folder] = SHM_DIR.glob(f"sfrl-{process.pid}-*")
        allocated = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    config = load_config(run_dir / "config.json")
    assert sum(shared_bytes(config, envs.describe(config.env))) == allocated


@pytest.mark.parametrize("kind", ["lock-free", "faster-fifo"])
def test_queues_of_both_kinds_are_counted(kind):
    config = ActorCriticConfig(queue=kind)
    topology = make_topology(config)
    least = len(topology.roles) * index_queue.nbytes(kind, 1, 2 * config.num_slots)
    assert channels.nbytes(topology, kind) >= least


MIXED = (
    *(image(3, 50, 61, name="obs.camera"), image(1, 9, 10, name="obs.map")),
    *(vector(5, name="obs.joints"), vector(300, name="obs.ram"), choice(3, 4, name="obs.room")),
    Leaf(ACTION_MASK, "mask", (10,), "bool"),
)
NUMBERS = {"low": (-1.0, -math.inf), "high": (1.0, 0.0)}


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("a3c_cnn", (image(4, 36, 40),)),
        ("nature_cnn", (image(3, 50, 61),)),
        ("pooled_cnn", (image(3, 50, 61),)),
        ("pooled_cnn", (image(4, 84, 84),)),
        ("impala_resnet", (image(1, 9, 10),)),
        ("small_cnn", (image(1, 9, 10),)),
        ("mlp", (image(3, 8, 8),)),
        *[(name, (vector(5),)) for name in MLPS],
        *[(name, (choice(7),)) for name in MLPS],
        *[(name, MIXED) for name in MODELS],
    ],
)
@pytest.mark.parametrize("value_encoder", ["shared", "separate"])
def test_a_model_is_as_large_as_is_counted_without_torch(name, leaves, value_encoder):
    spec = envs.describe("Pong")
    actions = [
        *(ActionSpec((5,)), ActionSpec((3, 5, 2))),
        *(ActionSpec(**NUMBERS), ActionSpec((3, 7), **NUMBERS)),
    ]
    memories = [
        {},
        {"rnn": "gru", "rnn_size": 7, "normalize_returns": True},
        {"rnn": "lstm", "rnn_size": 3, "rnn_layers": 2, "normalize_obs": True},
        {"normalize_obs": True},
    ]
    for taken, memory in zip(actions, memories, strict=True):
        config = ActorCriticConfig(model=name, value_encoder=value_encoder, **memory)
        spec = dataclasses.replace(spec, leaves=leaves, actions=taken)
        weights = make_algorithm(config, spec).make_model().state_dict()
        assert model_size(config, spec) == sum(tensor.numel() for tensor in weights.values())


def test_a_container_of_docker_gets_one_slot_for_each_split(monkeypatch):
    """Two workers of Pong's in 64 MiB."""
    spec = envs.describe("Pong")
    config = ActorCriticConfig(model="nature_cnn", num_splits=1)
    free = 64 * 2**20
    monkeypatch.setattr(
        "sfrl.ipc.shared_memory.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": free, "used": 0}),
    )
    assert sum(shared_bytes(config, spec)) > free
    smaller, text = limits.fitted(config, (), spec)
    assert smaller.slots_per_split == 1
    assert sum(shared_bytes(smaller, spec)) < free
    assert "slots_per_split=1, which is slower: the run (trajectories 57, weights 13" in text
    assert limits.fitted(config, ("slots_per_split",), spec) == (config, None)


# --- a run that ends before it has learned anything ---


@pytest.mark.slow
def test_a_run_that_never_trained_leaves_its_reason_and_a_free_folder(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("precious")
    flags = [*TINY[1:], "--env=tests.faulty_env:RaisesAtStart-v0"]
    for number in (1, 2):
        ended = run_training(run_dir, *flags)
        assert ended.code == 1
        assert "already holds a run" not in ended.stderr
        assert {path.name for path in run_dir.iterdir()} == {"log.txt", "notes.txt"}
        text = (run_dir / "log.txt").read_text()
        assert text.count("the run failed: rollout-0 (pid ") == number
        assert text.count("RuntimeError: there is no \\x1b[31mpole") == number
        assert text.endswith(f" {run_folder.UNTRAINED}\n")
    assert cli.parse([*TINY, f"--run-dir={run_dir}"]).run_dir == str(run_dir)
    with (run_dir / "log.txt").open("a") as log:
        log.write("a line of somebody else's\n")
    with pytest.raises(run_folder.RunFolderError, match=r"already holds a run; .* log\.txt"):
        cli.parse([*TINY, f"--run-dir={run_dir}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "error", "learned_before"),
    [
        ("Raises", "RuntimeError: the pole broke", False),
        ("Raises", "RuntimeError: the pole broke", True),
        ("AllowsNothing", "its observation is {'obs': array([", False),
    ],
)
def test_one_failure_three_times_before_anything_is_learned_ends_the_run(
    env, error, learned_before, tmp_path
):
    """Whatever an earlier start of the run has learned."""
    run_dir = tmp_path / "run"
    slow = ("--rollout-length=64", "--batch-size=512")  # it breaks down in the 51st step
    flags = [*TINY[1:], *slow, f"--env=tests.faulty_env:{env}-v0"]
    if learned_before:
        whole = (*TINY[1:], f"--env=tests.faulty_env:{env}-v0", "--train-frames=200")
        assert run_training(run_dir, *whole).code == 0
        flags = ["--resume", *slow, "--train-frames=1000000"]
    with training(run_dir, *flags, cwd=tmp_path) as process:
        ended = finish(process)
    assert ended.code == 1
    assert ended.stderr.count("starting it again") == 2
    text = "rollout-0 failed 3 times in a row in the same way, before anything was learned:"
    for told in (ended.stderr, (run_dir / "log.txt").read_text()):
        assert told.count(text) == 1
        assert error in told


def test_one_failure_three_times_is_waited_out_once_something_is_learned(tmp_path):
    """Of a simulator that is away for some minutes, say."""
    flags = [*TINY[1:], "--env=tests.faulty_env:BreaksForGood-v0", "--max-worker-restarts=3"]
    with training(tmp_path / "run", *flags, cwd=tmp_path) as process:
        ended = finish(process)
    assert ended.code == 1
    assert ended.stderr.count("starting it again") == 3
    assert "rollout-0 failed 4 times within an hour (max_worker_restarts=3)" in ended.stderr
    assert re.search(r"RuntimeError: no answer from 0x[0-9a-f]+$", ended.stderr, re.MULTILINE)


@pytest.mark.parametrize(("home", "cache"), [("~", ""), ("", "~/cache"), ("here", "here")])
def test_without_a_home_nothing_is_cached_and_no_folder_is_named_for_it(
    home, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    if home:  # an empty one means the root folder
        assert tuner.cache_path() is None
        assert tuner.read_cache() == {}
        tuner._write_cache({})
        assert "the measurement is not kept: this user has no home" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
