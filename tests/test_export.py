"""`sfrl export`: a graph run by onnxruntime decides as the policy does, on real observations."""

import dataclasses
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sfrl import load, train
from sfrl.commands import EXIT_FAILURE, EXIT_USAGE, export
from sfrl.export import _Graph, to_onnx
from sfrl.policy import Policy, PolicyState
from sfrl.records import checkpoint
from tests.commands.test_diagnose import SMALL
from tests.fresh import fresh_policy, weights_of
from tests.test_spaces import settings_of

NUM_STEPS = 12
CASES: dict[str, dict[str, Any]] = {
    "pictures": {"env": "Pong", "frameskip": 4, "model": "nature_cnn", "rnn": "gru", "rnn_size": 9},
    "dict": {
        "env": "tests.tiny_envs:Mixed-v0",
        "model": "small_cnn",
        "normalize_obs": True,
        "value_encoder": "separate",
        "rnn": "lstm",
        "rnn_size": 7,
        "rnn_layers": 2,
    },
    "sac": {
        "env": "tests.tiny_envs:Pointer-v0",
        "system": "sac",
        "model": "flat",
        "normalize_obs": True,
    },
    "dqn": {
        "env": "tests.tiny_envs:MaskedCatch-v0",
        "system": "dqn",
        "model": "small_cnn",
        "dueling": True,
    },
}
# A few updates by the default algorithm, on actions of one number, whose noise is correlated.
TRAINED = {**SMALL, "env": "Pendulum-v1", "train_frames": 1000, "learning_rate": 0.01}
OUTPUTS = {
    "trained": ["action", "mean", "log_std", "value"],
    "pictures": ["action", "logits", "value", "next_state"],
    "dict": ["action", "logits", "mean", "log_std", "value", "next_state"],
    "sac": ["action", "mean", "log_std"],
    "dqn": ["action", "q_values"],
}


class Fickle(nn.Linear):
    """An encoder that does one thing or another, as the numbers are: no graph."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape[0], 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On busy cores, threads that wait for each other take seconds."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def numbers_of(policy: Policy, action: Any) -> np.ndarray:
    """An action as the graph has it: choices first, then numbers."""
    layout = policy.translation.layout
    columns: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for path, leaf in layout.leaves:
        part = action
        for key in path:
            part = part[key]
        is_box = type(leaf).__name__ == "Box"
        columns[is_box].append(np.asarray(part, np.float64).reshape(-1))
    return np.concatenate([*columns[False], *columns[True]])


def fed(observation: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What the metadata says of a graph's inputs, done to an environment's own observation."""
    arrays = {}
    for told in inputs:
        if "from" not in told:
            continue
        array = observation
        for key in told["from"]:
            array = array[key]
        array = np.asarray(array)
        array = array - told["minus"] if "minus" in told else array
        array = array.transpose(told["transpose"]) if "transpose" in told else array
        arrays[told["name"]] = array.reshape(1, *told["leaf_shape"]).astype(told["dtype"])
    return arrays


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_graph_decides_as_the_policy_does(case, tmp_path):
    if case == "trained":
        policy = load(train(**TRAINED, run_dir=tmp_path).run_dir)
        assert policy.config.noise_correlation > 0
    else:
        policy = fresh_policy(**CASES[case])
    model = to_onnx(policy, {"checkpoint": "latest-1.pt"})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [output.name for output in session.get_outputs()] == OUTPUTS[case]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["env"] == policy.config.env
    assert metadata["checkpoint"] == "latest-1.pt"
    inputs = json.loads(metadata["inputs"])
    assert [i["name"] for i in inputs] == [i.name for i in session.get_inputs()]
    assert all(i.shape[0] == "batch" for i in (*session.get_inputs(), *session.get_outputs()))
    size = policy.model.state_size
    memory, state = np.zeros((1, size), np.float32), None
    seen: list[dict[str, np.ndarray]] = []
    with closing(policy.make_env()) as env:
        obs, info = env.reset(seed=0)
        for _ in range(NUM_STEPS):
            mask = info.get("action_mask")
            last = (state or PolicyState(None, {}, None))[1:]
            given = policy.translation.see(obs, *last, None, None, mask).obs
            for name, array in fed(obs, inputs).items():
                np.testing.assert_array_equal(array, given[name])
            feed = {**given, "state": memory} if size else given
            ours = dict(zip(OUTPUTS[case], session.run(None, feed), strict=True))
            action, state = policy.act(obs, state, deterministic=True, action_mask=mask)
            assert_close(ours["action"].reshape(-1), numbers_of(policy, action))
            if size:
                memory = ours["next_state"]
                assert_close(memory, state.memory)
            seen.append(feed)
            obs, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                (obs, info), state = env.reset(), None
                memory = np.zeros_like(memory)
    batch = {name: np.concatenate([feed[name] for feed in seen]) for name in seen[0]}
    together = session.run(None, batch)
    assert np.ptp(together[1], axis=0).max() > 0.01, "the network tells observations apart"
    leaves = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.inference_mode():
        graph = _Graph(policy)
        expected = graph(leaves, leaves.pop("state", None))
    for name, array in zip(OUTPUTS[case], together, strict=True):
        assert_close(array, expected[name])


def assert_close(ours: np.ndarray, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [29, *range(1, 200, 20)])
def test_actions_are_within_the_bounds_of_any_space(case):
    """In torch as in the run: see `ActionLayout.own`."""
    policy = fresh_policy(**settings_of(case))
    spec = policy.spec.actions
    rng = np.random.default_rng(case)
    choices = [rng.integers(size, size=50) for size in spec.choices]
    numbers = [4 * rng.standard_normal(50) for _ in spec.low]
    rows = np.stack([*choices, *numbers], axis=1).astype(spec.dtype).reshape(50, *spec.shape)
    ours = _Graph(policy)._own(torch.from_numpy(rows)).numpy().reshape(50, -1)
    theirs = [numbers_of(policy, own) for own in policy.translation.layout.own(rows)]
    np.testing.assert_allclose(ours, np.stack(theirs), rtol=1e-5, atol=1e-5)


# --- the command ---
@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save(tmp_path / "runs" / "catch", **CASES["dqn"])


def save(run_dir, **settings):
    policy_config = fresh_policy(**settings).config
    state = {
        "model": weights_of(policy_config),
        "optimizer": {},
        "counters": {"env_frames": 1234},
        "config": dataclasses.asdict(policy_config),
        "rng": {},
    }
    checkpoint.save(run_dir, state, env_frames=1234)
    return run_dir


def test_the_command_writes_the_file_and_tells_of_it(run_dir, capsys):
    assert export.main([run_dir.name, "--onnx", "policy.onnx"], "sfrl export") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "onnx": "policy.onnx",
        "inputs": {"obs": "uint8[batch, 1, 10, 5]", "action_mask": "bool[batch, 3]"},
        "outputs": {"action": "int64[batch]", "q_values": "float32[batch, 3]"},
    }
    model = onnx.load("policy.onnx")
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata["checkpoint"] == "latest-000000001234.pt"
    assert metadata["env_frames"] == "1234"
    assert json.loads(metadata["action"])[0]["choices"] == [3]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--onnx=policy.pt"], "onnx=policy.pt must name a file that ends in .onnx"),
        ([], "name the file to write: --onnx=FILE.onnx"),
        (["--onnx=no/policy.onnx"], "onnx=no/policy.onnx cannot be written"),
        (["--output=x"], "--output is unknown; use --onnx=FILE.onnx"),
        (["--run-dir=run"], "name the run first: sfrl export RUN --onnx=FILE.onnx"),
        (["--onnx=policy.onnx", "--checkpoint=best"], "best.pt does not exist yet"),
    ],
)
def test_wrong_flags_are_told_and_nothing_is_written(run_dir, capsys, flags, text):
    assert export.main([str(run_dir), *flags], "sfrl export") == EXIT_USAGE
    assert text in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_a_run_that_is_not_there_is_told(run_dir, capsys):
    assert export.main(["catsh", "--onnx=policy.onnx"], "sfrl export") == EXIT_USAGE
    assert f"no run in runs/; did you mean {run_dir.name}?" in capsys.readouterr().err


def test_a_missing_package_is_told_with_the_extra_that_has_it(run_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export.main([str(run_dir), "--onnx=policy.onnx"], "sfrl export") == EXIT_FAILURE
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        'sfrl export: an export needs the package onnxscript: pip install "sfrl[export]"'
    )


def test_a_network_that_is_no_graph_is_told_in_a_line(tmp_path, capsys):
    run = save(tmp_path / "run", env="CartPole-v1", model="tests.test_export:Fickle")
    path = tmp_path / "policy.onnx"
    assert export.main([str(run), f"--onnx={path}"], "sfrl export") == EXIT_FAILURE
    message = capsys.readouterr().err.splitlines()[-1]
    assert "model=tests.test_export:Fickle cannot be exported (" in message
    assert not path.exists()
