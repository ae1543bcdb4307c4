"""sfrl bench: that it works and its figures fit together, not how large they are."""

import json
import math
import re
import subprocess
import sys

import pytest

from sfrl import envs
from sfrl.bench import queue
from sfrl.bench.run import Recycler
from sfrl.commands.bench import _read
from sfrl.ipc import index_queue
from sfrl.ipc.mailbox import Mailbox
from sfrl.records.timing import is_waiting
from sfrl.run.roles import make_learner, make_policy_worker
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.machine import available_cores
from sfrl.tune import children as measuring
from sfrl.tune import components as parts
from tests.actors import Actors
from tests.runs import ROOT, children, components, group, interrupt, segments, wait_for

SMALL = (
    *("--num-workers=1", "--num-splits=2", "--envs-per-worker=4", "--rollout-length=8"),
    *("--batch-size=32", "--minibatches=1", "--epochs", "1"),
)


def start_bench(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "sfrl", "bench", *args, "--tune=off"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_bench(*args: str):
    """The lines of its table, and its JSON object."""
    process = start_bench(*args)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    *table, last = stdout.splitlines()
    return table, json.loads(last)


def test_the_whole_benchmark_gives_figures_that_fit_together(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    json_path, plot_path = tmp_path / "bench.jsonl", tmp_path / "bench.png"
    table, result = run_bench(
        *("--env=CartPole-v1", "--seconds=0.2", "--json=~/bench.jsonl", "--plot=~/bench.png"),
        *SMALL,
    )
    assert result["emulator"] is None
    for part in ("simulation", "sampling", "training"):
        assert any(line.startswith(part) for line in table)
        rates = result[part]
        assert rates["frames_per_s"] == rates["decisions_per_s"]
        assert 0 < rates["frames_per_s_min"] <= rates["frames_per_s"] <= rates["frames_per_s_max"]
    for key, part in (("efficiency", "training"), ("sampling_efficiency", "sampling")):
        ratio = result[part]["frames_per_s"] / result["simulation"]["frames_per_s"]
        assert result[key] == pytest.approx(ratio, rel=1e-3)

    cores, settings = result["machine"]["cores"], result["machine"]["settings"]
    assert settings["envs_per_worker"] == 4
    for part in ("sampling", "training"):
        run, core_us = result["components"][part], result["components"]["core_us"][part]
        for shares in run["shares"].values():
            assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert core_us.keys() == {"trainer", "idle"} | {
            f"{component}/{stage}"
            for component, shares in run["shares"].items()
            for stage in shares
            if not is_waiting(stage)
        }
        rates = [result[part][f"frames_per_s_{end}"] for end in ("max", "min")]
        least_us, most_us = (cores * 1e6 / rate for rate in rates)
        assert 0.999 * least_us <= sum(core_us.values()) <= 1.001 * most_us
        # What is idle is what the others leave: more than all there is they cannot have used.
        assert core_us["idle"] > -0.05 * sum(core_us.values())
        assert all(us >= 0 for stage, us in core_us.items() if stage != "idle")
        assert core_us["rollout/env_step"] > 0
        assert core_us["policy/forward"] > 0
        assert run["precision"] == "float32"
        assert run["message_bytes"] >= 8
        # At least the two messages of a split step.
        split_steps = result[part]["frames_per_s_min"] / 2
        assert run["messages_per_s"] > 2 * split_steps
        assert run["memory_mib"] > 100
    training, sampling = (result["components"][part] for part in ("training", "sampling"))
    assert sampling["learner_us"] is None
    assert sampling["lag_mean"] is None
    assert training["learner_us"] > 0
    assert training["refresh_us"] > 0
    assert 0 <= training["lag_mean"] <= training["lag_max"]
    assert {case["precision"] for case in result["components"]["learner_alone"]} == {
        "float32",
        "bfloat16",
    }
    inferences = result["components"]["inference_alone"]
    assert [case["batch_size"] for case in inferences] == [2, 4, 2, 4]
    assert all(0 < case["host_us"] < 2 * case["batch_us"] for case in inferences), "one thread"

    assert plot_path.read_bytes().startswith(b"\x89PNG")
    run_bench("simulation", "--env=CartPole-v1", "--seconds=0.1", f"--json={json_path}", *SMALL)
    first, second = map(json.loads, json_path.read_text().splitlines())
    assert first == result
    assert second["training"] is second["efficiency"] is None


def test_of_an_atari_game_the_bare_emulator_is_measured_as_well():
    _, result = run_bench("simulation", "--env=Pong", "--seconds=0.3", *SMALL)
    for part in ("emulator", "simulation"):
        assert result[part]["frames_per_s"] == pytest.approx(
            4 * result[part]["decisions_per_s"], rel=1e-3
        )


def test_figures_that_cannot_be_written_are_told():
    line = [sys.executable, "-m", "sfrl", "bench", "simulation", "--env=CartPole-v1", *SMALL]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*line, "--seconds=0.1"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert "sfrl bench: the figures cannot be written: " in ended.stderr
    assert "Traceback" not in ended.stderr


COMPONENTS = {"learner", "policy-0", "rollout-0"}
terminate = subprocess.Popen.terminate  # it alone, where Ctrl-C is told to its children, too


@pytest.mark.parametrize(
    ("part", "end", "code", "is_measuring"),
    [
        # One on every core, and multiprocessing's resource tracker.
        ("simulation", terminate, 143, lambda pid: len(children(pid)) == 1 + available_cores()),
        ("training", interrupt, 130, lambda pid: components(pid).keys() >= COMPONENTS),
    ],
)
def test_a_signal_leaves_nothing_behind(part, end, code, is_measuring):
    process = start_bench(part, "--env=CartPole-v1", "--seconds=1", *SMALL)
    wait_for(lambda: is_measuring(process.pid) or process.poll() is not None)
    end(process)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in stderr
    wait_for(lambda: not group(process.pid), timeout_s=5)
    assert not segments(process.pid)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["trainin"], "choose from all, queue, simulation"),
        (["--num-worker=1"], "did you mean --num-workers"),
        (["--seconds=0"], "--seconds=0 must be above 0"),
        (["--plot=x.txt"], "x.txt must end in .png, .pdf, .svg"),
        (
            ["learner", "--plot=x.png"],
            "--plot draws simulation, sampling and training, not learner",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named_at_once(arguments, problem):
    process = start_bench(*arguments)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2
    assert problem in stderr


def test_without_matplotlib_a_plot_has_its_extra_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=re.escape('matplotlib: pip install "sfrl[plots]"')):
        _read([f"--plot={tmp_path / 'x.png'}"], "sfrl bench")


def test_every_kind_of_queue_is_measured_in_the_same_way(monkeypatch, capsys):
    monkeypatch.setattr(queue, "NUM_RUNS", 1)
    monkeypatch.setattr(queue, "NUM_STREAMED", {"lock-free": 50, "faster-fifo": 50})
    monkeypatch.setattr(queue, "NUM_STREAMED_BY_OTHERS", 50)
    kinds = queue.measure_all()
    assert kinds.keys() == {"lock-free", "faster-fifo (sfrl)", "faster-fifo", "multiprocessing"}
    for figures in kinds.values():
        assert all(value > 0 for value in figures.values())
        assert figures["round_trip_us"] <= figures["round_trip_p95_us"]
    assert len({tuple(figures) for figures in kinds.values()}) == 1
    assert "stream_cpu_us" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "has_other", "kinds"),
    [(None, False, ["lock-free"]), ("no compiler", True, ["faster-fifo"])],
)
def test_kinds_of_queues_are_those_that_are_installed(error, has_other, kinds, monkeypatch):
    monkeypatch.setattr(index_queue, "_extension_error", error)
    monkeypatch.setattr(index_queue, "_HAS_FASTER_FIFO", has_other)
    assert index_queue.installed_kinds() == kinds


def test_simulation_counts_no_step_that_only_resets():
    config = ActorCriticConfig(
        env="tests.tiny_envs:Catch-v0", frameskip=1, num_splits=1, envs_per_worker=8, worker_nice=0
    )
    step = parts._simulate(config, 0)
    # Catch ends after nine decisions; the tenth step resets.
    assert sum(step() for _ in range(100)) == 90 * 8


def test_sampling_goes_on_without_a_learner(make_shared):
    """The recycler hands over every slot as the learner would: --debug-buffers would tell."""
    shared = make_shared(
        env="CartPole-v1",
        frameskip=1,
        model="mlp",
        num_workers=2,
        envs_per_worker=4,
        rollout_length=4,
        batch_size=8,
        minibatches=1,
        debug_buffers=True,
    )
    make_learner(shared, Mailbox(), Mailbox(), None)  # publishes the weights
    actors, recycler = Actors(shared), Recycler(shared)
    rows = shared.config.num_slots * 4 * 2
    while shared.progress.total_env_steps < 10 * rows:
        steps = [worker.step() for worker in (*actors.policy_workers, *actors.rollout_workers)]
        assert recycler.step() or any(steps)
    assert shared.progress.learner_steps == 0


def fail(text: str) -> None:
    raise ValueError(text)


def test_a_failed_measurement_is_told_with_its_traceback(capfd):
    with pytest.raises(measuring.MeasureError, match="exited with 1"):
        measuring.in_child(fail, "the reason")
    assert "ValueError: the reason" in capfd.readouterr().err


def test_a_measurement_crosses_from_a_process_of_its_own():
    assert measuring.in_child(math.sqrt, 4.0) == 2.0


def test_only_atari_has_an_emulator_to_measure():
    with pytest.raises(ValueError, match="CartPole-v1 is no Atari game"):
        parts.emulator(ActorCriticConfig(env="CartPole-v1"), 0.1)


def test_the_python_of_a_split_step_is_measured_without_its_environments():
    config = ActorCriticConfig(env="CartPole-v1", frameskip=1, model="mlp", num_workers=1)
    rollout = measuring.in_child(parts.rollout, config, envs.describe("CartPole-v1"), 0.2)
    assert 0 < rollout.copy_us < rollout.python_us < rollout.env_us


def test_workers_are_measured_in_processes_of_their_own_or_refused():
    """With --serial nothing is published to another process, and a worker there waits for ever."""
    flags = ["--tune=off", "--env=CartPole-v1"]
    _, config, _ = _read(["inference", *flags, "--serial"], "sfrl bench")
    assert not config.serial
    for system in ("impala", "seed", "a3c"):
        with pytest.raises(ValueError, match=f"system={system} has processes of several workers"):
            _read(["all", *flags, f"--system={system}"], "sfrl bench")
    assert _read(["queue", *flags, "--system=a3c"], "sfrl bench")[1].system == "a3c"


def test_a_policy_worker_to_whom_nothing_is_published_does_not_wait(make_shared):
    sizes = {"num_workers": 1, "num_splits": 1, "envs_per_worker": 2, "rollout_length": 4}
    batch = {"batch_size": 8, "minibatches": 1, "slots_per_split": 1, "model": "mlp"}
    shared = make_shared(env="CartPole-v1", frameskip=1, serial=True, **sizes, **batch)
    with pytest.raises(AssertionError, match="would wait for ever"):
        make_policy_worker(shared, 0)
