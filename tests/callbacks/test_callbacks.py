"""Callbacks: what they are told, what they may do, and that no service holds a run up."""

import dataclasses
import importlib
import importlib.util
import json
import sqlite3
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

import sfrl
from sfrl.callbacks import BackgroundLogger, Callback, RunStart, background, make_callbacks
from sfrl.callbacks.background import id_of
from sfrl.envs.names import is_installed
from sfrl.records.start import this_start
from sfrl.settings.algorithms import load_starts
from tests.runs import metrics, wait_for

RECORDS = [{"env_frames": 100 * i, "episode_return_mean": 1.5 * i, "entropy": None} for i in (1, 2)]


class Noting(Callback):
    """Notes what it is told."""

    noted: ClassVar[list] = []

    def begin(self, run):
        self.noted.append(run)

    def report(self, record):
        self.noted.append(record)

    def end(self):
        self.noted.append("end")


class Picky(BackgroundLogger):
    """Takes two records, and nothing until it may."""

    def __init__(self):
        self.may_connect = threading.Event()
        self.taken = []

    def connect(self, run):
        self.may_connect.wait()
        self.tell(f"connected to {run.env}")

    def send(self, record):
        if len(self.taken) == 2:
            raise ConnectionError("no\nmore")
        self.taken.append(record)


def train(run_dir: Path, **settings):
    small = {"num_workers": 1, "envs_per_worker": 8, "rollout_length": 8, "batch_size": 32}
    small |= {"minibatches": 2, "report_seconds": 0.2, "serial": True}
    return sfrl.train(env="CartPole-v1", run_dir=run_dir, **small | settings)


@pytest.fixture
def run(tmp_path: Path) -> RunStart:
    return RunStart(tmp_path / "cart", "CartPole-v1", {"gamma": 0.5}, [this_start(0)])


def test_a_logger_of_the_users_gets_all_records_of_a_run(tmp_path):
    Noting.noted.clear()
    train(tmp_path, log_to="tests.callbacks.test_callbacks:Noting", train_frames=500)
    # That of the setting's module, which is this one by another name if pytest is told of a file.
    noted = importlib.import_module("tests.callbacks.test_callbacks").Noting.noted
    run, *records, end = noted
    assert end == "end"
    assert (run.run_dir, run.env) == (tmp_path, "CartPole-v1")
    assert run.settings["envs_per_worker"] == 8
    assert run.starts == load_starts(tmp_path / "config.json")
    assert records == metrics(tmp_path) != []


class Asking(Callback):
    """Cannot be named as --log-to: it is not made without arguments."""

    def __init__(self, path):
        self.path = path


class Counting(Callback):
    """Counts what it is told, and does `act` at each."""

    def __init__(self, act=lambda event: None):
        self.episodes, self.paths, self.frames, self.has_ended = [], [], [], False
        self._act = act

    def episode(self, episode_return, length, info, env_index):
        self.episodes.append((episode_return, length, dict(info), env_index))
        return self._act("episode")

    def checkpoint(self, path):
        self.paths.append(path)
        return self._act("checkpoint")

    def report(self, record):
        self.frames.append(record["env_frames"])
        return self._act("report")

    def end(self):
        self.has_ended = True


def test_callbacks_are_told_of_every_episode_checkpoint_and_report(tmp_path):
    first, second = Counting(), Counting()
    summary = train(tmp_path, callbacks=[first, second], train_frames=2000, checkpoint_seconds=0.2)
    assert len(first.episodes) == summary.episodes > 10
    assert all(score == length and info == {} for score, length, info, _ in first.episodes)
    assert {env_index for *_, env_index in first.episodes} == set(range(8))
    assert len(first.paths) == len({*first.paths}) > 1
    assert {*(tmp_path / "checkpoints").glob("latest-*.pt")} <= {*first.paths}
    assert first.frames == [record["env_frames"] for record in metrics(tmp_path)]
    assert (second.episodes, second.paths) == (first.episodes, first.paths)
    assert first.has_ended


class Tidying(Callback):
    """Keeps what it is told in a form of its own."""

    def begin(self, run):
        run.settings.clear()
        run.starts.clear()

    def report(self, record):
        record.clear()


def test_what_a_callback_does_to_what_it_is_told_nobody_else_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(Noting, "noted", [])
    train(tmp_path, callbacks=[Tidying(), Noting()], train_frames=2000)
    begun, *records, _ = Noting.noted
    assert begun.settings["env"] == "CartPole-v1"
    assert len(begun.starts) == 1
    frames = [record["env_frames"] for record in records]
    assert frames == [record["env_frames"] for record in metrics(tmp_path)]


@pytest.mark.parametrize("event", ["episode", "checkpoint", "report"])
def test_a_callback_ends_the_run_by_returning_true(tmp_path, event):
    callback = Counting(lambda told: told == event)
    summary = train(tmp_path, callbacks=[callback], checkpoint_seconds=0.2, train_seconds=20)
    assert 0 < summary.env_frames < 100_000
    assert f"stopping: Counting.{event} has returned True" in (tmp_path / "log.txt").read_text()
    assert [*(tmp_path / "checkpoints").glob("latest-*.pt")]
    assert callback.has_ended


@pytest.mark.parametrize("event", ["episode", "report"])
def test_what_a_callback_raises_ends_the_run_in_order_and_reaches_the_caller(tmp_path, event):
    def act(told):
        if told == event:
            raise LookupError("mine")

    callback, other = Counting(act), Counting()
    with pytest.raises(LookupError, match="mine"):
        train(tmp_path, callbacks=[callback, other], train_seconds=20)
    assert len(callback.episodes if event == "episode" else callback.frames) == 1
    assert other.frames == []  # nothing more is told, not even of the last report
    assert callback.has_ended
    assert other.has_ended


def test_an_iterator_of_callbacks_is_read_once(tmp_path):
    with pytest.raises(TypeError, match="callbacks has 3, and must have"):
        sfrl.train(env="CartPole-v1", callbacks=iter([Counting(), 3]))
    counting = Counting()
    train(tmp_path / "run", train_frames=200, callbacks=(each for each in [counting]))
    assert counting.has_ended


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match=r"callbacks has <class .*Counting'>, and must have"):
        sfrl.train(env="CartPole-v1", callbacks=[Counting])
    with pytest.raises(TypeError, match=r"callbacks=<.*Counting.*> must be a list"):
        sfrl.train(env="CartPole-v1", callbacks=Counting())
    with pytest.raises(sfrl.ConfigError, match="unknown setting 'callback'; use callbacks"):
        sfrl.train(env="CartPole-v1", callback=Counting())


def test_a_run_waits_for_no_logger_in_the_background_and_outlives_it(run, caplog):
    logger = Picky()
    logger.begin(run)
    for i in range(4):
        logger.report({"env_frames": i})
    assert logger.taken == []
    assert caplog.messages == []
    logger.may_connect.set()
    logger.end()
    logger.report({"env_frames": 4})
    assert [record["env_frames"] for record in logger.taken] == [0, 1]
    assert caplog.messages == [
        "Picky: connected to CartPole-v1",
        "Picky: ConnectionError: no more; the run goes on without it",
    ]


def test_the_end_of_a_run_waits_for_a_logger_so_long_and_no_longer(run, caplog, monkeypatch):
    monkeypatch.setattr(background, "END_S", 0.05)
    logger = Picky()
    logger.begin(run)
    logger.end()
    assert "Picky: has not taken all within 0.05 s of the run's end" in caplog.text
    logger.may_connect.set()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("wandbb", "log_to=wandbb must be one of trackio, wandb, or a class of your own"),
        ("no_such:Thing", "log_to=no_such:Thing: cannot import 'no_such'"),
        ("json:JSONDecoder", "JSONDecoder must be a subclass of sfrl.Callback"),
        ("json:dump, wandbb", "log_to=json:dump: dump must be a subclass"),
        ("tests.callbacks.test_callbacks:Asking", "without arguments, and cannot be .TypeError"),
    ],
)
def test_what_is_no_logger_is_told_before_anything_starts(names, text):
    with pytest.raises(ValueError, match=text):
        sfrl.train(env="CartPole-v1", log_to=names)


def test_a_service_that_is_not_installed_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match='not installed: pip install "sfrl\\[trackio\\]"'):
        make_callbacks("trackio")
    assert make_callbacks("") == []


def test_a_folder_of_a_services_name_is_not_the_service(tmp_path, monkeypatch):
    """wandb makes one where one trains."""
    (tmp_path / "a_service").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("a_service")
    (tmp_path / "a_service" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert is_installed("a_service")


def records_in(path: Path) -> Iterator[object]:
    """What wandb has written: protobufs in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left_in_block = 2**15 - at % 2**15
        if left_in_block < 7:
            at += left_in_block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_a_run_that_goes_on_is_the_same_one_and_a_later_one_in_its_folder_is_another(run):
    more = dataclasses.replace(run, starts=[*run.starts, this_start(100)])
    later = dataclasses.replace(run, starts=[{**run.starts[0], "time": "later"}])
    assert id_of(run) == id_of(more) != id_of(later)


@pytest.mark.parametrize("is_offline", [True, False], ids=["offline", "without a key"])
def test_weights_and_biases_has_the_run_offline(run, is_offline, monkeypatch, caplog, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline" if is_offline else "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run.run_dir.mkdir()
    [logger] = make_callbacks("wandb")
    logger.begin(run)
    for record in RECORDS:
        logger.report(record)
    logger.end()
    wandb.teardown()
    assert ("No API key configured" in caplog.text) == (not is_offline)
    assert ("`wandb sync` sends it from" in caplog.text) == (not is_offline)
    [path] = run.run_dir.glob("wandb/offline-run-*/*.wandb")
    written = list(records_in(path))
    begun = next(record.run for record in written if record.HasField("run"))
    assert (begun.project, begun.display_name, begun.run_group) == ("mine", "cart", "CartPole-v1")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["gamma"] == 0.5
    assert config["starts"][0]["command"] == run.starts[0]["command"]
    rows = [
        {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in written
        if record.HasField("history")
    ]
    assert [{name: row[name] for name in row if name[0] != "_"} for row in rows] == [
        {"env_frames": 100, "episode_return_mean": 1.5},
        {"env_frames": 200, "episode_return_mean": 3.0},
    ]


class _Service(BaseHTTPRequestHandler):
    """As much of their server as a run needs to begin and to send its records."""

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"] or 0))
        project = {"id": "p", "name": "sfrl", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": "x", "config": "{}", "historyLineCount": 0, "project": project}
        data = {"model": {"bucket": None}}
        if b"upsertBucket" in asked:
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif b"createRunFiles" in asked:
            data = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        self.server.paths.append(self.path)


def test_a_network_that_goes_during_the_run_ends_with_a_line(run, monkeypatch, caplog, tmp_path):
    wandb = pytest.importorskip("wandb")
    server = HTTPServer(("127.0.0.1", 0), _Service)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("sfrl.callbacks.wandb._FINISH_TIMEOUT_S", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_MODE", "online")
    run.run_dir.mkdir()
    [logger] = make_callbacks("wandb")
    logger.begin(run)
    logger.report(RECORDS[0])
    wait_for(lambda: any(path.endswith("/file_stream") for path in server.paths))
    server.shutdown()
    server.server_close()
    thread.join()
    logger.report(RECORDS[1])
    logger.end()
    wandb.teardown()
    assert "not all was sent within 1 s of the end: `wandb sync` sends it from" in caplog.text
    [path] = run.run_dir.glob("wandb/run-*/*.wandb")
    assert sum(record.HasField("history") for record in records_in(path)) == 2


def test_trackio_has_the_run_on_this_machine(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    [logger] = make_callbacks("trackio")
    logger.begin(run)
    for record in RECORDS:
        logger.report(record)
    logger.end()
    database = sqlite3.connect(tmp_path / "trackio" / "sfrl.db")
    rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    database.close()
    own = f"cart-{id_of(run)[:6]}"
    assert [(name, step, json.loads(numbers)) for name, step, numbers in rows] == [
        (own, 100, {"env_frames": 100, "episode_return_mean": 1.5}),
        (own, 200, {"env_frames": 200, "episode_return_mean": 3.0}),
    ]
