"""--prometheus=PORT: a run's newest record over HTTP, and nothing of it without the flag."""

import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sfrl import ConfigError, train
from sfrl.callbacks.prometheus import check
from sfrl.commands import EXIT_USAGE
from sfrl.commands import train as train_command
from tests.commands.test_diagnose import SMALL
from tests.runs import metrics, wait_for


@pytest.fixture
def port():
    """One that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(port):
    """Name -> sample, of what the run serves; {} before it does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return {}
    families = text_string_to_metric_families(text)
    return {sample.name: sample for family in families for sample in family.samples}


def test_a_run_serves_its_newest_record_on_this_machine_until_it_ends(port, tmp_path):
    settings = {**SMALL, "env": "CartPole-v1", "train_frames": 4000, "report_seconds": 0.1}
    run = threading.Thread(
        target=train, kwargs={**settings, "run_dir": tmp_path / "run", "prometheus": port}
    )
    run.start()
    wait_for(lambda: "sfrl_rollout_env_step" in fetch(port))
    served = fetch(port)
    sockets = psutil.Process().net_connections("tcp")
    listening = [s.laddr for s in sockets if s.status == "LISTEN" and s.laddr.port == port]
    run.join()
    assert listening == [("127.0.0.1", port)]
    assert served["sfrl_run_info"].labels["env"] == "CartPole-v1"
    records = {record["time_s"]: record for record in metrics(tmp_path / "run")}
    record = records[served["sfrl_time_s"].value]
    numbers = {name: value for name, value in record.items() if value is not None}
    assert {f"sfrl_{name.replace('/', '_')}" for name in numbers} == served.keys() - {
        "sfrl_run_info"
    }
    assert served["sfrl_env_frames"].value == record["env_frames"]
    assert fetch(port) == {}
    check(port)  # it can be opened again


def test_a_port_that_is_taken_or_a_missing_package_is_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        flags = ["--env=CartPole-v1", f"--prometheus={port}"]
        assert train_command.main(flags, "train.py") == EXIT_USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.py: prometheus={port} cannot be opened on 127.0.0.1: Address a")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r'pip install "sfrl\[prometheus\]"'):
        check(port)
    with pytest.raises(ConfigError, match="must lie between 0 and 65535"):
        train(env="CartPole-v1", prometheus=70_000)


def test_without_the_flag_nothing_of_it_is_imported(tmp_path):
    program = f"""
import json, sys
import sfrl
sfrl.train(**{dict(SMALL, env="CartPole-v1", train_frames=200)!r}, run_dir={str(tmp_path / "x")!r})
print(json.dumps([name for name in sys.modules if "prometheus" in name or "http.server" in name]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == []
