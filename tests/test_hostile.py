"""Files and flags from strangers end in one clear error, or are taken; never in anything else."""

import collections
import copy
import dataclasses
import gc
import io
import json
import math
import os
import random
import resource
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfrl import envs
from sfrl.commands import enjoy
from sfrl.commands import train as cli
from sfrl.envs.logs import own_logger
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.shared_memory import SHM_DIR, sweep_stale_segments, unlink_segments
from sfrl.records import checkpoint
from sfrl.records.checkpoint import CheckpointError
from sfrl.records.metrics import RunMetrics, metrics_problem
from sfrl.records.metrics_writer import MetricsWriter
from sfrl.records.run_folder import RunFolderError, open_to_append
from sfrl.run.roles import make_learner
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import ALGORITHMS, all_settings, config_from, load_config
from sfrl.settings.config import ConfigError
from sfrl.settings.fields import settings_of
from tests.records.test_checkpoint import make_state
from tests.runs import TINY, run_training

NUM_CASES = 10_000
GIB = 2**30


@pytest.fixture
def no_gigabytes():
    """Fails what would take more than a GiB beyond what is in use."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + GIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, overwritten, repeated, or padded, at random places."""
    data = bytearray(content)
    kind = rng.randrange(6)
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if kind == 0:
        return bytes(data[:start])
    if kind == 1:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[start : start + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, rng.randbytes(8)])
    elif kind == 3:
        del data[start:end]
    elif kind == 4:
        data[start:start] = data[start:end]
    else:
        data += rng.randbytes(rng.randrange(1, 3000))
    return bytes(data)


def wrong(value: object, rng: random.Random) -> object:
    """Something else in the place of any part of a checkpoint's state."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: wrong(value[key], rng)}
    return rng.choice(
        [None, -1, 2**63, math.nan, "../../etc/passwd", [], {}, torch.zeros(3), torch.zeros(0, 9)]
    )


def test_no_damaged_file_does_more_than_fail_to_load(tmp_path, no_gigabytes):
    content = io.BytesIO()
    torch.save(make_state() | {"version": checkpoint.FORMAT_VERSION}, content)
    rng = random.Random(1)
    path = tmp_path / "x.pt"
    num_loaded, refused = 0, []
    for _ in range(NUM_CASES):
        path.write_bytes(damaged(content.getvalue(), rng))
        try:
            state = checkpoint.load(path)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            assert state["counters"]["learner_steps"] == 7
            num_loaded += 1
    assert len(refused) > NUM_CASES / 2
    assert num_loaded + len(refused) == NUM_CASES
    assert all(str(path) in text for text in refused)


def rewritten(content: bytes, change) -> bytes:
    """The archive with `change` made to its pickle, and right checksums."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, change(data) if "data.pkl" in member.filename else data)
    return target.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of what it reads
def test_no_damaged_pickle_does_more_than_fail_to_load(tmp_path, no_gigabytes):
    """Here the checksums are right: what is wrong gets as far as torch's unpickler."""
    content = io.BytesIO()
    torch.save(make_state() | {"version": checkpoint.FORMAT_VERSION}, content)
    rng = random.Random(4)
    path = tmp_path / "x.pt"
    refused = []
    for _ in range(3000):
        path.write_bytes(rewritten(content.getvalue(), lambda data: damaged(data, rng)))
        try:
            state = checkpoint.load(path)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            copy.deepcopy(state)  # reads every tensor
    assert len(refused) > 1500
    assert all(str(path) in text for text in refused)


def test_a_storage_larger_than_its_record_is_refused(tmp_path):
    """torch believes the pickle's size, and would read beyond the record."""
    path = tmp_path / "x.pt"
    state = make_state() | {"version": checkpoint.FORMAT_VERSION, "more": torch.zeros(201)}
    torch.save(state, path)
    smaller, larger = b"K\xc9", b"K\xfa"  # pickle's way to write 201 and 250
    assert smaller in zipfile.ZipFile(path).read("x/data.pkl")
    content = rewritten(path.read_bytes(), lambda data: data.replace(smaller, larger))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        checkpoint.load(path)


def test_a_small_file_that_says_it_is_large_is_refused(tmp_path, no_gigabytes):
    """A tensor of 4 TB on paper, over a storage of a few bytes."""
    path = tmp_path / "x.pt"
    big = torch.zeros(1).expand(2**40)
    torch.save(make_state() | {"version": checkpoint.FORMAT_VERSION, "more": big}, path)
    with pytest.raises(CheckpointError, match="a tensor of 1099511627776 elements has less in"):
        checkpoint.load(path)


SETTINGS = all_settings()


def values_of(name: str) -> st.SearchStrategy[object]:
    """Values of the setting's type: those near the limits, those far beyond, and any."""
    hint = SETTINGS[name].type
    if SETTINGS[name].choices:
        return st.sampled_from([*SETTINGS[name].choices, "nonsense"])
    if hint is bool:
        return st.booleans()
    if hint is int:
        near = st.sampled_from([-1, 0, 1, 2, 3, 7, 8, 16, 32, 64, 256, 2**20, 2**63])
        return near | st.integers(-(2**70), 2**70)
    if hint is float:
        return st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 0.5, 1.0])
    devices = ["auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1", "cpu,", "cuda:-1", "cuda:123"]
    return st.text(max_size=20) | st.sampled_from(devices)


def some_of(names: Iterable[str]) -> st.SearchStrategy[dict[str, object]]:
    """Up to six of these settings."""
    return st.lists(st.sampled_from(sorted(names)), max_size=6, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: values_of(name) for name in chosen})
    )


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_settings_are_consistent_or_refused_by_name_value_and_rule(algorithm, data):
    cls = ALGORITHMS[algorithm]
    chosen = data.draw(some_of(settings_of(cls)))
    try:
        config = cls(**chosen)
    except ConfigError as error:
        problems = str(error).splitlines()
        assert problems
        for problem in problems:
            name, _, rest = problem.partition("=")
            assert name in {*SETTINGS, "num_slots"}, problem
            shown = str(getattr(cls, name, "")) if name not in chosen else str(chosen[name])
            assert name == "num_slots" or rest.startswith((shown, repr(shown))), problem
            assert any(word in problem for word in ("must", "wait for ever", "sets no end"))
        return
    assert config.envs_per_split * config.num_splits == config.envs_per_worker
    trajectories = config.batch_size * config.minibatches // config.rollout_length
    if config.replay is None:  # or else minibatches are drawn from a memory
        assert config.batch_size % config.rollout_length == 0
        assert trajectories == config.slots_per_batch * config.envs_per_split
    assert 1 <= config.slots_per_batch <= config.num_slots < 2**20
    assert config.policy_batch_size >= config.envs_per_split
    assert config.num_policy_workers <= config.splits


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), ANY_JSON, max_size=5) | ANY_JSON)
def test_any_config_json_is_a_config_or_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    try:
        config = load_config(path)
    except ConfigError as error:
        text = str(error)
        assert str(path) in text  # either outcome is right
    else:
        assert dataclasses.replace(config) == config


def test_no_damaged_config_json_does_more_than_fail_to_load(tmp_path):
    path = tmp_path / "config.json"
    checkpoint.save_config(ActorCriticConfig(run_dir="x"), tmp_path)
    content = path.read_bytes()
    rng = random.Random(2)
    refused = []
    for _ in range(2000):
        path.write_bytes(damaged(content, rng))
        try:
            load_config(path)
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) > 1000
    assert all(str(path) in text for text in refused)


def test_run_folders_of_strangers_are_entered_no_further_than_their_checkpoints(tmp_path):
    """Names that lead elsewhere are not followed."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "latest-000000000009.pt").write_bytes(b"outside")
    for name in ("latest-x.pt", "latest-1.pt.tmp", "..", "latest-..%2f.pt", "latest--1.pt"):
        if name != "..":
            (folder / name).write_bytes(b"")
    assert checkpoint.latest_paths(tmp_path / "run") == []
    with pytest.raises(CheckpointError, match="has no checkpoint that can be read"):
        checkpoint.load_latest(tmp_path / "run")


def test_wrong_content_never_reaches_a_run(tmp_path, make_shared, no_gigabytes):
    """Any part of a real checkpoint in another form: taken whole, or refused."""
    shared = make_shared(env="CartPole-v1", frameskip=1, model="mlp", precision="float32")
    learner = make_learner(shared, Mailbox(), Mailbox(), None)
    metrics = RunMetrics()
    state = learner.state() | {"version": checkpoint.FORMAT_VERSION, "metrics": metrics.state()}
    rng = random.Random(3)
    path = tmp_path / "x.pt"
    refusals = collections.Counter()
    for _ in range(1000):
        torch.save(wrong(state, rng), path)
        try:
            loaded = checkpoint.load(path)
            config_from(loaded["config"], str(path))
            if "metrics" in loaded:
                metrics.load_state(loaded["metrics"], env_frames=0)
            learner.load_state(loaded)
        except (CheckpointError, ConfigError) as error:
            refusals[str(error).partition(" (")[0].replace(str(path), "x.pt")] += 1
    assert refusals.total() > 500
    assert any("does not fit this run" in text for text in refusals)
    assert any("is not a checkpoint of ours" in text for text in refusals)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path, no_gigabytes):
    path, packed = tmp_path / "x.pt", tmp_path / "packed.pt"
    state = make_state() | {"version": checkpoint.FORMAT_VERSION, "more": torch.zeros(2**24)}
    torch.save(state, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            target.writestr(member.filename, content, compress_type=zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < path.stat().st_size / 100
    with pytest.raises(CheckpointError, match="would unpack to more than its size"):
        checkpoint.load(packed)


@pytest.mark.parametrize(
    "place",
    [
        *("config.json", "config.json.tmp", "log.txt", "metrics.jsonl", "events.out.tfevents.1"),
        *("checkpoints", "checkpoints/latest-1.pt", "checkpoints/best.pt.tmp"),
    ],
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_in_a_run_are_refused(tmp_path, place, kind):
    """A link would have another file written over, and a pipe be waited for without end."""
    run_dir, target = tmp_path / "run", tmp_path / "target"
    target.write_text("{}")
    path = run_dir / place
    path.parent.mkdir(parents=True)
    path.symlink_to(target) if kind == "link" else os.mkfifo(path)
    for more in (["--resume"], ["--env=CartPole-v1"]):
        with pytest.raises(RunFolderError, match="is neither a file nor a folder"):
            cli.parse([f"--run-dir={run_dir}", *more])
    assert enjoy.main([f"--run-dir={run_dir}"], "enjoy.py") == 2
    assert target.read_text() == "{}"


@pytest.mark.parametrize(
    "place", ["config.json", "log.txt", "metrics.jsonl.tmp", "checkpoints/best.pt", "checkpoints"]
)
def test_a_folder_for_a_file_and_a_file_for_a_folder_are_refused(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.touch() if place == "checkpoints" else path.mkdir()
    for more in (["--resume"], ["--env=CartPole-v1"]):
        with pytest.raises(RunFolderError, match=f"{path} is a .*, and must be a .*; move it away"):
            cli.parse([f"--run-dir={tmp_path}", *more])


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_put_there_after_the_check_is_not_written_through_either(tmp_path, kind):
    target, path = tmp_path / "target", tmp_path / "metrics.jsonl"
    target.write_text("precious")
    path.symlink_to(target) if kind == "link" else os.mkfifo(path)
    with pytest.raises(OSError, match=r"Too many levels of symbolic links|Not a regular file"):
        open_to_append(path)
    assert target.read_text() == "precious"


def test_what_is_written_replaces_a_link_and_not_its_target(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "config.json.tmp").symlink_to(target)
    checkpoint.save_config(ActorCriticConfig(), tmp_path)
    assert target.read_text() == "precious"
    assert load_config(tmp_path / "config.json") == ActorCriticConfig()
    assert not (tmp_path / "config.json").is_symlink()


@pytest.mark.slow
def test_a_run_that_goes_on_changes_no_file_of_a_copy_by_hard_links(tmp_path):
    """As `cp -al` makes one: a backup."""
    run_dir, backup = tmp_path / "run", tmp_path / "backup"
    assert run_training(run_dir, *TINY, "--serial", "--train-frames=1000").code == 0
    with (run_dir / "metrics.jsonl").open("a") as lines:
        lines.write('{"env_fra')  # cut short by a kill: it goes first of all
    shutil.copytree(run_dir, backup, copy_function=os.link)
    before = {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()}
    assert run_training(run_dir, "--resume", "--train-frames=2000").code == 0
    assert before == {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()}
    for name in ("log.txt", "metrics.jsonl"):
        kept = before[backup / name].removesuffix(b'{"env_fra')
        assert (run_dir / name).read_bytes().startswith(kept), name
        assert (run_dir / name).stat().st_nlink == 1
    assert not list(run_dir.rglob("*.tmp"))


def test_a_deep_or_large_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    for text in ("[" * 100_000, " " * (1 << 21)):
        path.write_text(text)
        with pytest.raises(ConfigError, match="cannot be read as a config"):
            load_config(path)


def test_curves_with_rubbish_in_them_are_cut_and_go_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"env_frames": 5}\n'
    path.write_bytes(good + b"\xff\xfe\n" + b"[" * 100_000 + b"\n" + good)
    with MetricsWriter(tmp_path, resume_frames=10):
        pass
    assert path.read_bytes() == good * 2
    state = RunMetrics(start_s=0.0).state()
    assert metrics_problem(state) is None
    assert metrics_problem({**state, "episodes": 10**400})
    assert metrics_problem({**state, "counters": {"learner_steps": 10**400}})
    assert metrics_problem({**state, "time_s": 10**400})
    assert metrics_problem({**state, "episode_returns": [0.0] * 1_000_000})
    assert metrics_problem({**state, "counters": {"learner_steps": -1}})


def test_a_counter_with_a_name_of_20_mb_is_refused_in_a_line(tmp_path):
    """It would not fit into the request for the next checkpoint."""
    state = RunMetrics().state()
    state["counters"]["n" * 20_000_000] = 1
    path = tmp_path / "x.pt"
    torch.save(make_state() | {"version": checkpoint.FORMAT_VERSION, "metrics": state}, path)
    with pytest.raises(CheckpointError, match="its pickle has more than") as refusal:
        checkpoint.load(path)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("size", [128 << 10, 1 << 20, 20 << 20])
def test_a_message_that_is_too_large_is_dropped_and_counted_and_the_next_arrives(size):
    mailbox = Mailbox()
    assert not mailbox.put("n" * size)
    assert mailbox.put("small")
    assert mailbox.put("n" * (100 << 10))
    assert mailbox.get_all() == ["small", "n" * (100 << 10)]
    assert mailbox.dropped == 1
    unlink_segments()


def test_long_texts_in_settings_do_not_fill_the_screen():
    for values in (
        {"n" * 2_000_000: 1},
        {7: 1},
        {"env": "n" * 2_000_000},
        {"seed": "n" * 2_000_000},
    ):
        with pytest.raises(ConfigError) as refusal:
            config_from(values, "x")
        assert len(str(refusal.value)) < 300


def with_more(path: Path, **more: object) -> Path:
    torch.save(make_state() | {"version": checkpoint.FORMAT_VERSION, **more}, path)
    return path


def nested(times: int, depth: int) -> list:
    """10^30 lists to whoever walks it, and 30 in memory."""
    tree: list = []
    for _ in range(depth):
        tree = [tree] * times
    return tree


@contextmanager
def at_once() -> Iterator[None]:
    """A few seconds of processor time at most: others may use the machine."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (nested(10, 25), "parts, or is nested more than"),
        (nested(1, 100), "parts, or is nested more than"),
        ([0] * 400_000, "parts, or is nested more than"),
        ({(1, 2): 3}, "keys that are neither texts nor whole numbers"),
        ({1.5: 3}, "keys that are neither texts nor whole numbers"),
        ([10**700], "cannot be read"),
        (bytearray(10), "bytearray, which is neither tensor nor plain type"),
        ({1, 2}, "cannot be read"),
        ("n" * 5_000_000, "its pickle has more than"),
        (torch.zeros(3).to_sparse(), "is neither tensor nor plain type"),
        (torch.nn.Parameter(torch.zeros(3)), "is neither tensor nor plain type"),
        (torch.zeros(3, dtype=torch.complex64), "ComplexFloatStorage"),
        (torch.zeros(4, device="meta"), "is neither tensor nor plain type"),
        ([torch.zeros(1).expand(2) for _ in range(2)], "a tensor of 2 elements has less in"),
    ],
)
def test_what_would_cost_its_readers_hours_or_gigabytes_is_refused(
    tmp_path, no_gigabytes, more, message
):
    path = with_more(tmp_path / "x.pt", more=more)
    with at_once(), pytest.raises(CheckpointError, match=message) as refusal:
        checkpoint.load(path)
    assert len(str(refusal.value)) < 1000


CALL = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R."  # of 64 GiB


@pytest.mark.parametrize(
    "pickled",
    [
        CALL,
        CALL.replace(b"builtins\nbytearray", b"torch\nFloatTensor"),
        CALL.replace(b"builtins\nbytearray", b"torch._utils\n_rebuild_tensor_v2"),
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"\x80\x02" + b"]q\0" + b"h\0a" * 100 + b".",  # within itself
        b"\x80\x02ccollections\nOrderedDict\nq\0)R}\x85b.",
        b"\x80\x02ccollections\nOrderedDict\n}}b.",
        b"\x80\x02" + b"(" * 4_000_000 + b".",
        b"\x80\x02" + b"]" * 4_000_000 + b".",
    ],
)
def test_a_pickle_that_asks_for_memory_gets_none(tmp_path, no_gigabytes, pickled):
    path = with_more(tmp_path / "x.pt")
    path.write_bytes(rewritten(path.read_bytes(), lambda _: pickled))
    with at_once(), pytest.raises(CheckpointError, match=r"x\.pt"):
        checkpoint.load(path)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("size", "strides", "offset"),
    [
        ((2, 3), (3, 2**40), 0),
        ((2, 3), (-3, 1), 3),
        ((-2, -3), (3, 1), 0),
        ((2**40, 0), (2**62, 1), 0),
        ((6,), (1,), 1),
        ((6,), (1,), -1),
        ((1,) * 70, (1,) * 70, 0),
        ((7,), (0,), 0),
        ((2, 3), (1,), 0),
        ((2.0, 3), (3, 1), 0),
        (("2", 3), (3, 1), 0),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, no_gigabytes, size, strides, offset):
    class Liar(torch.Tensor):
        pass

    def reduce(self, protocol):
        storage = torch.storage.TypedStorage(
            wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True
        )
        args = (storage, offset, size, strides, False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, args

    values = torch.arange(6.0)
    liar = torch.zeros(1).as_subclass(Liar)
    Liar.__reduce_ex__ = reduce
    path = with_more(tmp_path / "x.pt", more=liar)
    with at_once(), pytest.raises(CheckpointError, match=r"a tensor|cannot be read"):
        checkpoint.load(path)


def test_an_archive_has_one_table_of_contents(tmp_path, no_gigabytes):
    """Other readers of zips may take the other one, and unpack what nobody has checked."""
    path = with_more(tmp_path / "x.pt")
    good = path.read_bytes()
    other = with_more(tmp_path / "other.pt", more=torch.zeros(9)).read_bytes()
    loaded = []
    for content in (good + other, other + good, good + other[-98:], good + b"\0" * 30, good[:-98]):
        path.write_bytes(content)
        with suppress(CheckpointError):
            loaded.append(set(checkpoint.load(path)))
    assert len(loaded) <= 2  # of the last archive in the file, and all of it from there
    for name in ("x/data.pkl", "x/data/0", "y/data.pkl"):
        path.write_bytes(good)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(name, b"")
        with pytest.raises(CheckpointError, match=r"same name|did not write it"):
            checkpoint.load(path)


def test_an_archive_with_a_million_records_is_refused_before_they_are_read(tmp_path, no_gigabytes):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.filelist *= 100_000
    with at_once(), pytest.raises(CheckpointError, match="its table of contents has more than"):
        checkpoint.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_weights_that_are_no_numbers_are_neither_played_nor_resumed(tmp_path, part, value):
    state = make_state() | {"version": checkpoint.FORMAT_VERSION}
    tensor = state["model"]["weight"] if part == "model" else state["optimizer"]["state"][0]["step"]
    tensor.fill_(value)
    path = tmp_path / "checkpoints" / "latest-1.pt"
    path.parent.mkdir()
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"its {part} has NaN or infinity"):
        checkpoint.load_latest(tmp_path)


def test_weights_that_do_not_fit_are_told_in_one_line(tmp_path, make_shared, capsys):
    shared = make_shared(env="CartPole-v1", frameskip=1, model="mlp")
    state = make_learner(shared, Mailbox(), Mailbox(), None).state()
    state["model"]["\x1b[31mkey\nline2"] = torch.zeros(1)
    run_dir = tmp_path / "run"
    path = checkpoint.save(run_dir, state | {"metrics": RunMetrics().state()}, 1)
    config = config_from(state["config"], "x")
    checkpoint.save_config(dataclasses.replace(config, run_dir=str(run_dir)), run_dir)
    assert enjoy.main([f"--checkpoint={path}"], "enjoy.py") == 2
    assert "do not fit model=mlp" in capsys.readouterr().err.splitlines()[-1]
    ended = run_training(run_dir, "--resume")
    assert ended.code == 1
    text = ended.stderr[ended.stderr.index("train.py: learner") :]
    assert "the checkpoint does not fit this run" in text
    assert (text.count("\n"), "Traceback" in text) == (2, False), text


def test_a_model_is_made_only_as_large_as_its_weights(tmp_path, no_gigabytes, make_shared, capsys):
    """Its GRU would take 43 GB, which nobody has to allocate to see that the file has none."""
    shared = make_shared(env="CartPole-v1", frameskip=1, model="mlp", rnn="gru", rnn_size=4)
    state = make_learner(shared, Mailbox(), Mailbox(), None).state()
    state["config"]["rnn_size"] = 60_000
    run_dir = tmp_path / "run"
    path = checkpoint.save(run_dir, state | {"metrics": RunMetrics().state()}, 1)
    config = config_from(state["config"], "x")
    checkpoint.save_config(dataclasses.replace(config, run_dir=str(run_dir)), run_dir)
    with at_once():
        assert enjoy.main([f"--checkpoint={path}"], "enjoy.py") == 2
        assert cli.main([f"--run-dir={run_dir}", "--resume"], "train.py") == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum("rnn_size=60000 is not that of its weights, 4" in line for line in lines) == 2


def saved_atari() -> tuple[envs.VecEnv, dict]:
    env = envs.make_vec_env("Pong", 1, seed=1)
    env.reset()
    for _ in range(5):
        env.send(np.zeros(1, np.int64))
        env.recv()
    state = env.state()
    assert state is not None
    return envs.make_vec_env("Pong", 1, seed=1), state


@pytest.mark.parametrize(
    "damage",
    [
        lambda start: start[: len(start) // 2],
        lambda start: np.zeros(0, np.uint8),
        lambda start: np.full_like(start, 255),
        lambda start: np.concatenate([start[:50], start[58:]]),
    ],
)
def test_a_damaged_emulator_state_is_refused(damage):
    """ALE raises errors of many kinds, or none: it never comes back."""
    env, state = saved_atari()
    [game] = state["games"]
    game["start"] = damage(game["start"])
    with pytest.raises(ValueError, match="a saved emulator's state is damaged"):
        env.load_state(state)


@pytest.mark.parametrize(
    ("buttons", "message"),
    [
        (np.zeros(100_000_000, np.uint8), "of 100000000 frames cannot be played again"),
        (np.zeros(0, np.uint8), "of 0 frames cannot be played again"),
        (np.full(9, 200, np.uint8), "buttons that the game has not"),
    ],
)
def test_a_saved_episode_is_no_longer_than_one_can_be(buttons, message):
    env, state = saved_atari()
    state["games"][0]["buttons"] = buttons
    with at_once(), pytest.raises(ValueError, match=message):
        env.load_state(state)


def test_what_strangers_have_in_shared_memory_stops_nobody():
    """Whoever may use the machine may put there what they like."""
    prefix = SHM_DIR / f"sfrl-{os.getpid()}-stranger"
    link, folder, fifo, file, theirs = (Path(f"{prefix}{i}") for i in range(5))
    target = Path(f"{prefix}x").with_name("target-of-a-test")
    try:
        link.symlink_to(link)
        target.mkdir()
        (target / "precious").touch()
        folder.symlink_to(target)
        os.mkfifo(fifo)
        file.touch()
        theirs.mkdir()
        os.chown(theirs, 12345, 12345)
        assert sweep_stale_segments(os.getpid()) == []
        assert (target / "precious").exists()
        assert theirs.exists()
    finally:
        for path in (link, folder, fifo, file):
            path.unlink(missing_ok=True)
        shutil.rmtree(theirs, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)


ORDER = "\x1b]0;owned\x07\x9b2J\r"  # a terminal's new title, and an empty screen


def test_no_text_of_a_stranger_gives_orders_to_the_terminal(tmp_path, capfd, caplog):
    run_dir = tmp_path / f"run{ORDER}"
    path = run_dir / "checkpoints" / "latest-1.pt"
    path.parent.mkdir(parents=True)
    state = make_state() | {"version": checkpoint.FORMAT_VERSION}
    config = dataclasses.asdict(ActorCriticConfig(env=ORDER, run_dir="x"))
    (run_dir / "config.json").write_text(json.dumps(config))
    torch.save(state | {"config": config}, path)
    assert cli.main([f"--run-dir={run_dir}", "--resume"], "train.py") == 2
    assert enjoy.main([f"--run-dir={run_dir}"], "enjoy.py") == 2
    torch.save(state | {"config": {ORDER: 1}, "version": ORDER}, path)
    assert enjoy.main([f"--run-dir={run_dir}"], "enjoy.py") == 2
    torch.save(state | {"model": {ORDER: 1}}, path)
    assert enjoy.main([f"--run-dir={run_dir}"], "enjoy.py") == 2
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{ORDER}/data.pkl", b"")
    assert enjoy.main([f"--run-dir={run_dir}"], "enjoy.py") == 2
    own_logger("sfrl.x").warning("%s", ORDER)
    assert caplog.messages[-1] == r"\x1b]0;owned\x07\x9b2J\r"
    shown = "".join([*capfd.readouterr(), *caplog.messages])
    assert shown.count("enjoy.py: ") == 4
    assert "\\x1b]0;owned\\x07" in shown
    assert not set("\x1b\x07\x9b\r") & set(shown)


@pytest.mark.parametrize(
    "content",
    [
        '{"env": "Pong", "env": "Breakout"}',
        '{"learning_rate": 1' + "0" * 400 + "}",
        '{"seed": 1' + "0" * 400 + "}",
        '{"gamma": NaN}',
        '{"env": "\\u001b[2J"}',
    ],
)
def test_settings_that_would_be_misread_are_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(path)
