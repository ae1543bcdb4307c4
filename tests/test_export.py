"""`sfrl export`: a graph run by onnxruntime decides as the policy does, on real observations."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from torch import Tensor, nn

from sfrl import load, train
from sfrl.commands import EXIT_FAILURE, EXIT_USAGE, export
from sfrl.envs.atari_env import AtariEnv
from sfrl.envs.observe_last import flat_actions
from sfrl.envs.options import EnvOptions
from sfrl.envs.spaces import ActionLayout
from sfrl.export import ExportError, _check, _metadata, to_onnx
from sfrl.graph import Graph, Input, _Own
from sfrl.policy import Policy, PolicyState
from sfrl.records import checkpoint, run_folder
from tests.commands.test_diagnose import SMALL
from tests.fresh import fresh_policy, weights_of
from tests.runs import ROOT
from tests.test_spaces import settings_of

NUM_STEPS = 12
CASES: dict[str, dict[str, Any]] = {
    "atari": {"env": "Pong", "frameskip": 4, "model": "nature_cnn", "rnn": "gru", "rnn_size": 9},
    "pooled": {"env": "Pong", "frameskip": 4, "model": "pooled_cnn"},
    "screens": {
        "env": "tests.test_export:Screens-v0",
        "image_size": 50,
        "frame_stack": 2,
        "model": "nature_cnn",
    },
    "dict": {
        "env": "tests.tiny_envs:Mixed-v0",
        "frame_stack": 2,
        "observe_last": True,
        "model": "small_cnn",
        "normalize_obs": True,
        "value_encoder": "shared",
        "rnn": "lstm",
        "rnn_size": 7,
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
        "frame_stack": 3,
        "model": "small_cnn",
        "dueling": True,
    },
}
# A few updates by the default algorithm, on actions of one number, whose noise is correlated.
TRAINED = {**SMALL, "env": "Pendulum-v1", "train_frames": 1000, "learning_rate": 0.01}
OUTPUTS = {
    "trained": ["action", "mean", "log_std", "value"],
    "atari": ["action", "logits", "value", "next_state"],
    "screens": ["action", "logits", "value", "next_state"],
    "dict": ["action", "logits", "mean", "log_std", "value", "next_state"],
    "sac": ["action", "mean", "log_std"],
    "dqn": ["action", "q_values", "next_state"],
}
Feed = dict[str, np.ndarray]  # of a graph, or what it gives


class Screens(gymnasium.Env[Any, Any]):
    """Pong's own screen, and choices that begin elsewhere than at 0. Five steps long.

    Its masks are in the observation, a part of it for each part of the action.
    """

    def __init__(self) -> None:
        self.game = AtariEnv("pong", EnvOptions(), render_mode="rgb_array")
        seen = Tuple(
            (
                Box(0, 255, (210, 160, 3), np.uint8),
                MultiDiscrete([[2, 3], [4, 2]], start=[[0, -1], [5, 0]]),
                Box(-9.0, 9.0, (2, 1), np.float64),
            )
        )
        masks = Dict(key=MultiBinary((1, 3)), button=MultiBinary(6))
        self.observation_space = Dict(seen=seen, action_mask=masks)
        self.action_space = Dict(key=Discrete(3, start=2), button=Discrete(6))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.game.reset(seed=seed)
        self.num_steps = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *_, is_over, _, _ = self.game.step(action["button"])
        self.num_steps += 1
        return self._show(), float(action["key"]), is_over, self.num_steps == 5, {}

    def _show(self) -> Any:
        obs = self.observation_space.sample()
        obs["seen"] = (self.game.render(), *obs["seen"][1:])
        for mask in obs["action_mask"].values():
            mask[..., 0] = 1
        return obs


gymnasium.register("Screens-v0", Screens)


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


def fed(inputs: list[dict[str, Any]], observation: Any, others: dict[str, Any]) -> Feed:
    """What a graph is given of one observation, by what its metadata says alone."""
    feed = {}
    for told in inputs:
        name = told["name"]
        array = others[name] if "from" not in told else observation
        for key in told.get("from", ()):
            array = array[key]
        array = np.asarray(array)
        if "from" in told:
            assert array.dtype == told["dtype"], "as the environment gives it"
        assert array.shape == tuple(told["shape"])
        feed[name] = array.astype(told["dtype"])[np.newaxis]
    return feed


def played(
    policy: Policy, decide: Callable[[Feed], Feed], inputs: list[dict[str, Any]]
) -> tuple[list[Feed], list[Feed]]:
    """What `decide` is given at each step, and what the policy says, which it says as well."""
    sizes = {told["name"]: told["shape"] for told in inputs}
    begin = np.zeros(sizes.get("state", ()), np.float32)
    feeds, all_expected = [], []
    remembered, state, reward = begin, None, 9.0
    with closing(policy.make_env()) as env:
        obs, info = env.reset(seed=0)
        for _ in range(NUM_STEPS):
            mask = info.get("action_mask")
            others = {"state": remembered, "reward": reward, "action_mask": mask}
            feeds.append(fed(inputs, obs, others))
            ours = decide(feeds[-1])
            memory, frames, actions = state or (None, None, None)
            seen = policy.translation.see(obs, frames, actions, None, reward, mask).obs
            action, state = policy.act(
                obs, state, deterministic=True, reward=reward, action_mask=mask
            )
            expected = {n: x.numpy() for n, x in policy.outputs(seen, memory).items()}
            expected["action"] = numbers_of(policy, action).reshape(ours["action"].shape)
            if "state" in sizes:
                expected["next_state"] = remembered_by(policy, state)
            assert {*ours} == {*expected}
            for name, array in ours.items():
                assert_close(array, expected[name])
            all_expected.append(expected)
            remembered = ours["next_state"][0] if "state" in sizes else begin
            obs, reward, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                (obs, info), state, remembered = env.reset(), None, begin
    return feeds, all_expected


def remembered_by(policy: Policy, state: PolicyState) -> np.ndarray:
    """[1, S], as a graph has it: begun, older frames, memory, last action."""
    config = policy.config
    parts = [np.ones((1, 1))] if config.frame_stack > 1 or config.observe_last else []
    parts += [frames[:, 1:].reshape(1, -1) for frames in state.frames.values()]
    if size := policy.model.state_size:
        parts.append(state.memory.numpy()[:, :size])
    if config.observe_last:
        parts.append(flat_actions(policy.spec.actions, state.actions))
    return np.concatenate(parts, axis=1)


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
    shapes = {told["name"]: ["batch", *told["shape"]] for told in inputs}
    assert shapes == {given.name: given.shape for given in session.get_inputs()}
    assert all(output.shape[0] == "batch" for output in session.get_outputs())

    def decide(feed: Feed) -> Feed:
        return dict(zip(OUTPUTS[case], session.run(None, feed), strict=True))

    feeds, expected = played(policy, decide, inputs)
    together = decide({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    for name, array in together.items():
        assert_close(array, np.concatenate([one[name] for one in expected]))
    assert np.ptp(together[OUTPUTS[case][1]], axis=0).max() > 0.01, "it tells observations apart"


@pytest.mark.parametrize("case", range(3, 200, 12))
def test_any_space_is_read_as_the_policy_reads_it(case):
    policy = fresh_policy(**settings_of(case))
    graph = Graph(policy)

    def decide(feed: Feed) -> Feed:
        with torch.inference_mode():
            outputs = graph({name: torch.from_numpy(array) for name, array in feed.items()})
        return {name: x.numpy() for name, x in outputs.items()}

    played(policy, decide, json.loads(_metadata(policy, graph.inputs)["inputs"]))


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
    ours = Graph(policy).own(torch.from_numpy(rows)).numpy().reshape(50, -1)
    theirs = [numbers_of(policy, own) for own in policy.translation.layout.own(rows)]
    np.testing.assert_allclose(ours, np.stack(theirs), rtol=1e-5, atol=1e-5)


# --- the command ---
@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"env": "CartPole-v1", "model": "mlp", "rnn": "gru", "rnn_size": 4}
    return save(tmp_path / "runs" / "cartpole", **settings)


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


def test_the_command_writes_what_the_loop_of_the_page_plays(run_dir, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert export.main([run_dir.name, "--onnx", "~/policy.onnx"], "sfrl export") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "onnx": str(Path.cwd() / "policy.onnx"),
        "inputs": {"obs": "float32[batch, 4]", "state": "float32[batch, 4]"},
        "outputs": {
            "action": "int64[batch]",
            "logits": "float32[batch, 2]",
            "value": "float32[batch]",
            "next_state": "float32[batch, 4]",
        },
    }
    model = onnx.load("policy.onnx")
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata["checkpoint"] == "latest-000000001234.pt"
    assert metadata["env_frames"] == "1234"
    assert json.loads(metadata["action"])[0]["choices"] == [2]
    [loop] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)
    ended: dict[str, Any] = {}
    exec(loop, ended)
    assert ended["outputs"]["next_state"].any()
    assert not ended["begin"]["state"].any()
    ended["env"].close()


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


def test_a_summary_that_cannot_be_written_is_told(run_dir):
    line = [sys.executable, "-m", "sfrl", "export", str(run_dir), "--onnx=policy.onnx"]
    with open("/dev/full", "w") as full:
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # as users have it
        ended = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    assert ended.returncode == EXIT_FAILURE
    assert ended.stderr.endswith("the summary cannot be written: No space left on device\n")
    assert "Traceback" not in ended.stderr
    assert Path("policy.onnx").stat().st_size


def test_a_folder_that_is_gone_is_told(run_dir, capsys):
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir("../gone")
    assert export.main([str(run_dir), "--onnx=policy.onnx"], "sfrl export") == EXIT_USAGE
    assert "the folder where this was started is gone" in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    """A limit of the process's stands for a full disk."""
    path = tmp_path / "policy.onnx"
    path.symlink_to("elsewhere.onnx")
    run_folder.write_whole(path, b"older")
    code = f"""import pathlib, resource, signal
from sfrl.records import run_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
run_folder.write_whole(pathlib.Path({str(path)!r}), bytes(5000))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.endswith(f"File too large: '{path.resolve()}'\n")
    assert path.is_symlink()
    assert path.read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere.onnx", "policy.onnx"]


def test_a_file_that_is_written_anew_keeps_its_mode_and_a_pipe_is_written_into(tmp_path):
    path, pipe = tmp_path / ("x" * 250), tmp_path / "pipe"
    path.touch(mode=0o600)
    run_folder.write_whole(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    run_folder.write_whole(
        run_folder.file_to_write("onnx", str(pipe), is_replaced=True), b"through"
    )
    assert os.read(reader, 10) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_run_that_is_not_there_is_told(run_dir, capsys):
    assert export.main(["cartpol", "--onnx=policy.onnx"], "sfrl export") == EXIT_USAGE
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


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([Input("state", (), "float32"), Input("state", (3,), "float32")], "another input"),
        ([Input("obs", (2,), "longdouble")], "'obs' in longdouble, which ONNX has not"),
    ],
)
def test_an_observation_that_onnx_cannot_take_is_told(inputs, text):
    with pytest.raises(ExportError, match=text):
        _check("My-v0", inputs)


@pytest.mark.parametrize(
    ("space", "shape"),
    [(Discrete(3, start=5), (2,)), (MultiDiscrete([3]), (2, 1)), (MultiBinary(1), (2, 1))],
)
def test_one_choice_has_the_axis_that_its_space_has(space, shape):
    layout = ActionLayout("x", space)
    policy = SimpleNamespace(
        translation=SimpleNamespace(layout=layout), config=SimpleNamespace(action_bounds="clip")
    )
    rows = np.array([0, 1])
    own = _Own(policy)(torch.from_numpy(rows))
    assert own.shape == shape
    assert own.tolist() == [np.asarray(action).tolist() for action in layout.own(rows)]
