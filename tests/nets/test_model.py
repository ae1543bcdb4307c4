import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict, Discrete, Space
from torch import Tensor, nn

from sfrl import envs
from sfrl.algorithms.actor_critic import ActorCriticNetwork, make_model
from sfrl.envs import OBS
from sfrl.envs.spaces import observation_parts
from sfrl.nets import convolve, images
from sfrl.nets.choose import MODELS, MemorySpec
from sfrl.nets.encoders import A3CCNN, CenteredCNN, ImpalaResNet, NatureCNN, PooledCNN
from sfrl.nets.heads import ValueHead
from sfrl.nets.model import pick_precision, try_model
from sfrl.settings.config import ConfigError
from sfrl.settings.defaults import defaults_for, resolve
from tests import leaves
from tests.leaves import choice, discrete, image, vector

IMAGE = (4, 84, 84)
NUM_ACTIONS = 6
GRU = MemorySpec("gru", 12)
PARTS = (
    image(4, 36, 36, name="obs.camera"),
    vector(5, name="obs.robot.arm"),
    choice(3, 4, name="obs.goal"),
)
GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-model.md"


class TinyCNN(nn.Module):
    """A user's encoder; records what it is given."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(obs_shape[0], 8, 8, stride=8)
        self.last_input = torch.empty(0)

    def forward(self, obs: Tensor) -> Tensor:
        self.last_input = obs
        return self.conv(obs).relu().flatten(1)


class TinyJoint(nn.Module):
    """A user's encoder of `PARTS`; records what it is given."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        assert shapes == {"camera": (4, 36, 36), "robot.arm": (5,), "goal": (2,)}
        self.camera = TinyCNN(shapes["camera"])
        self.arm = nn.Linear(5 + 3, 8)
        self.last_input: dict[str, Tensor] = {}

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        self.last_input = obs
        arm, goal = obs["robot.arm"], F.one_hot(obs["goal"][:, 0], 3)
        return torch.cat([self.camera(obs["camera"]), self.arm(torch.cat([arm, goal], 1))], 1)


class FlatFeatures(nn.Module):
    """Without parameters, and with the wrong number of dimensions."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, obs: Tensor) -> Tensor:
        return obs.sum(dim=1)


def make(name: str = "nature_cnn", **kwargs: Any) -> ActorCriticNetwork:
    torch.manual_seed(0)
    leaf = vector(5) if name in ("mlp", "norm_mlp") else image(*IMAGE)
    return make_model(name, (leaf,), discrete(NUM_ACTIONS), **kwargs)


def random_obs(model: ActorCriticNetwork, *leading: int) -> dict[str, Tensor]:
    return leaves.random_obs(model.leaves, *leading)


each_memory = pytest.mark.parametrize("memory", [None, GRU, MemorySpec("lstm", 8, 2)])
each_encoder = pytest.mark.parametrize(
    "name",
    [
        "a3c_cnn",
        "nature_cnn",
        "pooled_cnn",
        "impala_resnet",
        "mlp",
        "norm_mlp",
        f"{__name__}:TinyCNN",
    ],
)


@each_encoder
@each_memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_float32_of_the_documented_shapes(
    name: str, memory: MemorySpec | None, dtype: torch.dtype
) -> None:
    model = make(name, memory=memory)
    actor = model.inference_copy(dtype)
    output = actor.step(random_obs(model, 3))
    assert output.logits.shape == (3, NUM_ACTIONS)
    assert output.values.shape == (3,)
    assert output.logits.dtype == output.values.dtype == torch.float32
    if memory:
        assert output.rnn_state is not None
        assert output.rnn_state.shape == (3, memory.state_size)
        assert output.rnn_state.dtype == torch.float32
    else:
        assert output.rnn_state is None

    valid = torch.ones(3, 2, dtype=torch.bool)
    model.learn_in(dtype)
    logits, values = model.unroll(random_obs(model, 3, 2), None, valid)
    assert logits.shape == (3, 2, NUM_ACTIONS)
    assert values.shape == (3, 2)
    assert logits.dtype == values.dtype == torch.float32
    (logits.sum() + values.sum()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("size", [(84, 84), (36, 40), (87, 90)])
@pytest.mark.parametrize("encoder_class", [NatureCNN, A3CCNN])
def test_a_cnn_equals_its_plain_convolutions(
    encoder_class: type[NatureCNN], size: tuple[int, int]
) -> None:
    """With space-to-depth and 1/255 in the weights: the paper's layers."""
    torch.manual_seed(0)
    encoder = encoder_class((4, *size))
    nn.init.normal_(encoder.conv1.bias)
    obs = torch.randint(0, 256, (3, 4, *size), dtype=torch.uint8)
    blocks = encoder.conv1.weight.unflatten(1, (4, 4, 4))  # [F, C, 4, 4, 2, 2]
    kernel = blocks.permute(0, 1, 4, 2, 5, 3).flatten(2, 3).flatten(3)  # [F, C, 8, 8]
    x = F.relu(F.conv2d(obs.float() / 255, kernel, encoder.conv1.bias, stride=4))
    x = F.relu(encoder.conv2(x))
    if encoder.conv3 is not None:
        x = F.relu(encoder.conv3(x))
    expected = F.relu(encoder.linear(x.permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(encoder(obs, torch.float32), expected, rtol=1e-4, atol=1e-5)


class CenteredTinyCNN(CenteredCNN, TinyCNN):
    """One that asks for what the built-in CNNs have."""


@pytest.mark.parametrize(
    "name", ["a3c_cnn", "nature_cnn", "pooled_cnn", "impala_resnet", f"{__name__}:CenteredTinyCNN"]
)
def test_filters_do_not_see_what_all_their_inputs_have_in_common(name: str) -> None:
    """At the start, and once `after_optimizer_step` has followed a step."""
    model = make(name)

    def gap() -> float:
        layers = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        flat = [torch.ones(1, *layer.weight.shape[1:]) for layer in layers]
        outputs = [
            F.conv2d(x, m.weight) if isinstance(m, nn.Conv2d) else F.linear(x, m.weight)
            for x, m in zip(flat, layers, strict=True)
        ]
        return max(output.abs().max().item() for output in outputs)

    assert gap() < 1e-4
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    assert gap() > 0.1
    model.after_optimizer_step(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert gap() < 1e-4


@pytest.mark.parametrize("name", ["mlp", "norm_mlp", f"{__name__}:TinyCNN"])
def test_weights_of_other_encoders_are_not_touched(name: str) -> None:
    model = make(name)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.after_optimizer_step(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("has_extension", [True, False])
def test_blocks_do_not_depend_on_the_memory_format(
    has_extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "HAS_EXTENSION", has_extension)
    torch.manual_seed(0)
    batch = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    strided = batch.contiguous(memory_format=torch.channels_last)
    expected = images.pixel_blocks(batch, torch.float32)
    torch.testing.assert_close(images.pixel_blocks(strided, torch.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 84, 84), (1, 1, 36, 40), (1, 1, 36, 36), (2, 3, 87, 90)])
def test_blocks_from_the_extension_equal_torchs(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    batch = torch.randint(0, 256, shape, dtype=torch.uint8)
    batch.flatten()[:256] = torch.arange(256)
    assert images.HAS_EXTENSION
    blocks = images.pixel_blocks(batch, dtype)
    monkeypatch.setattr(images, "HAS_EXTENSION", False)
    expected = images.pixel_blocks(batch, dtype)
    assert blocks.dtype == expected.dtype == dtype
    assert blocks.stride() == expected.stride()
    torch.testing.assert_close(blocks, expected, rtol=0, atol=0)


@pytest.mark.parametrize("encoder_class", [NatureCNN, PooledCNN, ImpalaResNet])
def test_pixels_are_scaled_to_the_unit_range(
    encoder_class: type[NatureCNN | ImpalaResNet],
) -> None:
    """Biases are 0 and relu scales, so features are 255 times larger if the scale is lost."""
    torch.manual_seed(0)
    features = encoder_class(IMAGE)(random_obs(make(), 8)[OBS], torch.float32)
    root_mean_square = features.square().mean().sqrt().item()
    assert 0.1 < root_mean_square < 5.0


def assert_acting_copy_and_learner_agree_in_bfloat16(model: ActorCriticNetwork) -> None:
    """A gap between them would be a spurious off-policy correction in every update.

    Rows are much alike, so that layers may multiply what changes alone, as they learn: then sums
    have another order, and now and then a number for the next layer is rounded the other way.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, convolve.Convolution)]
    gap = 5e-3 if any(layer.multiplies_changes for layer in layers) else 1e-3
    with torch.no_grad():  # as after training: logits of the order of 1, and no parameter of 0 or 1
        model.policy_head.weight.mul_(100)
        for parameter in model.encoder.parameters():
            if parameter.ndim == 1:  # biases, and the weights of normalization
                parameter.add_(0.1 * torch.randn_like(parameter))
    obs = random_obs(model, 16)
    for leaf in model.leaves:
        if leaf.kind == "image":
            obs[leaf.name][1:] = obs[leaf.name][0]
            for row, image in enumerate(obs[leaf.name]):
                image[..., row % 3 :: 5, row::8] = 0
    with torch.no_grad():
        exact = model.step(obs)
    acting = model.inference_copy(torch.bfloat16).step(obs)
    model.learn_in(torch.bfloat16)
    rows = {name: leaf[:, None] for name, leaf in obs.items()}
    valid = torch.ones(16, 1, dtype=torch.bool)
    logits, values = (x.detach()[:, 0] for x in model.unroll(rows, None, valid))
    torch.testing.assert_close(logits, acting.logits, rtol=gap, atol=gap)
    torch.testing.assert_close(values, acting.values, rtol=gap, atol=gap)
    torch.testing.assert_close(acting.logits, exact.logits, rtol=0.1, atol=0.1)
    assert not torch.equal(acting.logits, exact.logits)  # it really was bfloat16


@each_encoder
def test_acting_copy_and_learner_agree_in_bfloat16(name: str) -> None:
    assert_acting_copy_and_learner_agree_in_bfloat16(make(name))


def test_they_agree_where_torch_computes_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolve, "PAYS", False)
    assert_acting_copy_and_learner_agree_in_bfloat16(make("nature_cnn"))


@pytest.mark.parametrize("name", ["small_cnn", "mlp", "norm_mlp"])
def test_acting_copy_and_learner_agree_on_small_images_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    model = make_model(name, (image(4, 12, 12),), discrete(NUM_ACTIONS))
    assert_acting_copy_and_learner_agree_in_bfloat16(model)


def test_small_cnn_sees_codes_alike_whatever_number_its_space_allows() -> None:
    codes = torch.randint(0, 11, (16, 3, 7, 7), dtype=torch.uint8)
    logits = []
    for largest in (10, 255):
        torch.manual_seed(0)
        model = make_model("small_cnn", (image(3, 7, 7, scale=float(largest)),), discrete(3))
        with torch.no_grad():
            model.encoder.conv1.bias.copy_(torch.linspace(-1, 1, 16))
        logits.append(model.step({"obs": codes}).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-4)


each_joint = pytest.mark.parametrize(
    "name", ["nature_cnn", "impala_resnet", "small_cnn", "mlp", f"{__name__}:TinyJoint"]
)


def make_joint(name: str) -> ActorCriticNetwork:
    """Of `PARTS`, normalized by statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = make_model(name, PARTS, discrete(NUM_ACTIONS), normalize_obs=True)
    shown = {"obs.robot.arm": 3 + 2 * torch.randn(10, 5, 5)}
    model.update_normalizers(shown, torch.ones(10, 5, dtype=torch.bool))
    return model


@each_joint
def test_acting_copy_and_learner_agree_on_image_vector_and_choice_in_bfloat16(name: str) -> None:
    assert_acting_copy_and_learner_agree_in_bfloat16(make_joint(name))


@each_encoder
def test_acting_copy_takes_new_weights_from_the_learners_state_dict(name: str) -> None:
    model = make(name, memory=GRU, normalize_returns=True)
    actor = model.inference_copy(torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in actor.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    model.after_optimizer_step(torch.tensor([[1.0, 5.0]]), torch.tensor([[True, True]]))
    obs = random_obs(model, 4)
    expected = model.inference_copy(torch.bfloat16).step(obs)
    assert not torch.equal(actor.step(obs).logits, expected.logits)
    actor.load_state_dict(model.state_dict())
    assert torch.equal(actor.step(obs).logits, expected.logits)
    assert torch.equal(actor.step(obs).values, expected.values)


@pytest.mark.parametrize("value_encoder", ["shared", "separate"])
@each_memory
def test_steps_one_by_one_equal_the_unroll_across_an_episode_boundary(
    memory: MemorySpec | None, value_encoder: str
) -> None:
    num_steps, batch_size = 6, 3
    model = make("mlp", memory=memory, value_encoder=value_encoder)
    obs = random_obs(model, num_steps + 1, batch_size)
    valid = torch.ones(num_steps + 1, batch_size, dtype=torch.bool)
    valid[2, 0] = valid[0, 1] = valid[num_steps - 1, 1] = False
    state = torch.randn(batch_size, model.state_size) if memory else None

    logits, values = model.unroll(obs, state, valid)
    for t in range(num_steps + 1):
        output = model.step({OBS: obs[OBS][t]}, state)
        torch.testing.assert_close(logits[t], output.logits, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(values[t], output.values, rtol=1e-4, atol=1e-5)
        if output.rnn_state is not None:
            state = output.rnn_state * valid[t].unsqueeze(1)


@pytest.mark.parametrize("memory", [GRU, MemorySpec("lstm", 8, 2)])
def test_memory_lasts_an_episode_and_no_longer(memory: MemorySpec) -> None:
    model = make("mlp", memory=memory)
    obs = random_obs(model, 5, 2)
    changed = {OBS: obs[OBS].clone()}
    changed[OBS][0] += 1.0
    valid = torch.tensor([[True, True], [True, False], [True, True], [True, True], [True, True]])
    _, values = model.unroll(obs, None, valid)
    _, other_values = model.unroll(changed, None, valid)
    differs = values != other_values
    assert differs[:, 0].all()  # one episode: the first observation matters to the end
    assert differs[:2, 1].all()  # row 1 is still the first episode's, its final observation
    assert not differs[2:, 1].any()


@pytest.mark.parametrize("name", ["nature_cnn", "mlp", "norm_mlp"])
@each_memory
def test_separate_networks_share_no_parameter(name: str, memory: MemorySpec | None) -> None:
    model = make(name, memory=memory, value_encoder="separate")
    policy, value = model.networks()
    assert {id(p) for p in [*policy, *value]} == {id(p) for p in model.parameters()}
    assert len(policy) + len(value) == len(list(model.parameters()))
    valid = torch.ones(3, 2, dtype=torch.bool)
    for outputs, own, other in ((0, policy, value), (1, value, policy)):
        model.zero_grad(set_to_none=True)
        model.unroll(random_obs(model, 3, 2), None, valid)[outputs].sum().backward()
        assert all(p.grad is not None for p in own)
        assert not any(p.grad is not None and p.grad.any() for p in other)


@pytest.mark.parametrize(
    ("name", "value_encoder", "count"),
    [("nature_cnn", "shared", 4), ("norm_mlp", "separate", 4), ("flat", "shared", 0)],
)
def test_matrices_are_the_weights_of_the_encoders_layers(
    name: str, value_encoder: str, count: int
) -> None:
    memory = MemorySpec("gru", 8, 1)
    model = make(name, memory=memory, value_encoder=value_encoder)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in model.matrices()]
    assert len(found) == count
    assert all("encoder." in name and name.endswith(".weight") for name in found)


def test_matrices_leave_out_a_weight_that_is_computed() -> None:
    model = make("mlp")
    torch.nn.utils.parametrizations.weight_norm(model.encoder.linear1)
    assert model.matrices() == [model.encoder.linear2.weight]


@pytest.mark.parametrize(("value_encoder", "size"), [("shared", 1.0), ("separate", 10.0)])
def test_the_value_loss_is_in_units_of_the_size_or_of_the_layers_outputs(
    value_encoder: str, size: float
) -> None:
    model = make("mlp", value_encoder=value_encoder, normalize_returns=True)
    returns = 5 + torch.randn(20, 5)
    model.after_optimizer_step(returns, torch.ones(20, 5, dtype=torch.bool))
    assert model.normalize_returns(returns).square().mean().sqrt().item() == pytest.approx(size)


@pytest.mark.parametrize(
    "name", ["a3c_cnn", "nature_cnn", "pooled_cnn", "impala_resnet", "mlp", "norm_mlp", "own"]
)
def test_pixels_are_divided_by_the_largest_that_the_space_allows(
    name: str,
) -> None:
    """Planes of 0 and 1 give what the same picture in 0 and 255 gives, to float precision."""
    name = f"{__name__}:TinyCNN" if name == "own" else name
    features = []
    for largest in (1, 255):
        torch.manual_seed(0)
        leaf = image(*IMAGE, scale=float(largest))
        model = make_model(name, (leaf,), discrete(NUM_ACTIONS))
        planes = torch.randint(0, 2, (2, *IMAGE), generator=torch.Generator().manual_seed(2))
        features.append(model.encoder((planes * largest).to(torch.uint8), torch.float32))
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
    assert features[0].abs().max() > 1e-3


@pytest.mark.parametrize("memory", [GRU, MemorySpec("lstm", 8, 2)])
def test_gradients_do_not_cross_an_episode_boundary(memory: MemorySpec) -> None:
    model = make("mlp", memory=memory)
    obs = random_obs(model, 4, 1)[OBS].requires_grad_()
    valid = torch.tensor([[True], [False], [True], [True]])
    _, values = model.unroll({OBS: obs}, None, valid)
    values[3].sum().backward()
    assert obs.grad is not None
    assert (obs.grad[:2] == 0).all()
    assert (obs.grad[2:] != 0).any(dim=-1).all()


def test_policy_starts_almost_uniform() -> None:
    model = make()
    assert (
        model.step(random_obs(model, 16)).logits.softmax(-1) - 1 / NUM_ACTIONS
    ).abs().max() < 0.02


# --- return normalization ---


def trained_head() -> ValueHead:
    torch.manual_seed(0)
    return ValueHead(8, normalize_returns=True)


def test_update_of_the_return_size_preserves_the_outputs() -> None:
    head, features = trained_head(), torch.randn(100, 8)
    before = head(features).detach()
    for scale, shift in ((10.0, 300.0), (0.5, -2.0), (50.0, 0.0)):
        returns = shift + scale * torch.randn(16, 4)
        for _ in range(3):
            head.update_size(returns, torch.ones(16, 4, dtype=torch.bool))
        torch.testing.assert_close(head(features).detach(), before, rtol=1e-4, atol=1e-4)
    assert head.size.item() > 50.0  # it did move


def test_the_first_update_takes_over_the_size_of_the_masked_targets() -> None:
    head = trained_head()
    returns = torch.tensor([[1.0, -5.0, torch.nan], [3.0, 7.0, 900.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    head.update_size(returns, mask)
    assert head.size.item() == pytest.approx(21.0**0.5)
    normalized = head.normalize(returns)[mask]
    assert normalized.square().mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("usual", [1.0, 1000.0])
def test_absurd_targets_in_the_first_update_are_forgotten(usual: float) -> None:
    """One reward reaches all the targets before it: those of a whole trajectory."""
    head = trained_head()
    mask = torch.ones(32, 8, dtype=torch.bool)
    returns = usual * torch.randn(32, 8)
    returns[:, 3] = 1e18
    head.update_size(returns, mask)
    for _ in range(20):
        head.update_size(usual * torch.randn(32, 8), mask)
    assert 0.5 * usual < head.size.item() < 3 * usual


@pytest.mark.parametrize("usual", [1e3, 1e6])
def test_large_returns_from_the_start_are_the_unit_within_a_few_updates(usual: float) -> None:
    head = trained_head()
    mask = torch.ones(32, 8, dtype=torch.bool)
    for _ in range(8):
        head.update_size(usual * torch.randn(32, 8), mask)
    assert 0.5 * usual < head.size.item() < 1.5 * usual


def test_the_return_size_is_the_debiased_exponential_average() -> None:
    head = trained_head()
    batches = [torch.randn(10, 4) * (i + 1) + i for i in range(20)]
    mask = torch.ones(10, 4, dtype=torch.bool)
    for batch in batches:
        head.update_size(batch, mask)
    weights = [(1 - head.BETA) ** (19 - i) for i in range(20)]
    second_moment = sum(
        w * b.square().mean().item() for w, b in zip(weights, batches, strict=True)
    ) / sum(weights)
    assert head.size.item() == pytest.approx(second_moment**0.5, rel=1e-4)


def test_an_empty_mask_and_returns_of_zero_leave_a_size() -> None:
    head, features = trained_head(), torch.randn(10, 8)
    before = head(features).detach()
    head.update_size(torch.full((2, 2), torch.nan), torch.zeros(2, 2, dtype=torch.bool))
    assert (head.size.item(), head.weight.item()) == (1.0, 0.0)
    head.update_size(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    assert head.size.item() == pytest.approx(ValueHead.MIN_SIZE)
    torch.testing.assert_close(head(features).detach(), before, rtol=1e-4, atol=1e-5)


def test_rewards_that_are_rare_do_not_become_many_units() -> None:
    head = trained_head()
    returns, mask = torch.zeros(32, 16), torch.ones(32, 16, dtype=torch.bool)
    returns[0, 0] = 0.5
    for _ in range(1000):
        head.update_size(returns, mask)
    assert head.size == 1
    assert head.normalize(returns).max() == 0.5


def test_constant_returns_do_not_make_the_layer_grow() -> None:
    """A deviation would fall to nothing, and the layer grow by as much."""
    head = trained_head()
    mask = torch.ones(16, 4, dtype=torch.bool)
    for _ in range(100):
        head.update_size(100 + 20 * torch.randn(16, 4), mask)
    norm = head.linear.weight.norm().item()
    for _ in range(3000):
        head.update_size(torch.full((16, 4), 100.0), mask)
    assert head.size.item() == pytest.approx(100.0, rel=1e-2)
    assert head.linear.weight.norm().item() == pytest.approx(norm, rel=0.1)


@pytest.mark.parametrize("glitch", [1e20, -1e30, torch.inf, torch.nan])
def test_a_single_absurd_target_leaves_the_size_near_what_it_was(glitch: float) -> None:
    head, features = trained_head(), torch.randn(10, 8)
    mask = torch.ones(32, 8, dtype=torch.bool)
    for _ in range(10):
        head.update_size(1000 * torch.randn(32, 8), mask)
    before = head(features).detach()
    returns = 1000 * torch.randn(32, 8)
    returns[3, 3] = glitch
    head.update_size(returns, mask)
    assert head.size.item() < 2000
    torch.testing.assert_close(head(features).detach(), before, rtol=1e-4, atol=1e-3)
    for _ in range(3000):
        head.update_size(1000 * torch.randn(32, 8), mask)
    assert head.size.item() == pytest.approx(1000, rel=0.05)


def test_a_size_that_was_too_small_is_made_up_for_within_twenty_updates() -> None:
    head = trained_head()
    mask = torch.ones(16, 4, dtype=torch.bool)
    for _ in range(100):
        head.update_size(torch.zeros(16, 4), mask)
    for _ in range(20):
        head.update_size(torch.full((16, 4), 100.0), mask)
    assert head.size.item() > 10


def test_values_of_format_3_are_those_of_its_mean_and_deviation() -> None:
    features, old = torch.randn(100, 8), nn.Linear(8, 1)
    state = {f"linear.{name}": tensor for name, tensor in old.state_dict().items()}
    stats = {"mean": torch.tensor(70.0), "std": torch.tensor(3.0), "weight": torch.tensor(0.4)}
    head = trained_head()
    head.load_state_dict(state | stats)
    torch.testing.assert_close(head(features), old(features).squeeze(1) * 3 + 70)
    assert head.size.item() == pytest.approx((70**2 + 3**2) ** 0.5)


def test_the_return_size_travels_with_the_weights() -> None:
    model, other = make("mlp", normalize_returns=True), make("mlp", normalize_returns=True)
    model.after_optimizer_step(torch.randn(4, 4) * 9, torch.ones(4, 4, dtype=torch.bool))
    other.load_state_dict(model.state_dict())
    returns = torch.randn(5)
    assert torch.equal(model.normalize_returns(returns), other.normalize_returns(returns))
    assert not torch.equal(model.normalize_returns(returns), returns)


def test_without_normalization_returns_pass_unchanged_and_nothing_is_stored() -> None:
    model = make("mlp")
    returns = torch.randn(5)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.after_optimizer_step(returns[None], torch.ones(1, 5, dtype=torch.bool))
    assert model.normalize_returns(returns) is returns
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(name.endswith(("mean", "std")) for name in state)


# --- encoders of the user's own ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_user_encoder_gets_scaled_images_in_the_compute_dtype(dtype: torch.dtype) -> None:
    model = make(f"{__name__}:TinyCNN").inference_copy(dtype)
    obs = random_obs(model, 2)
    model.step(obs)
    pixels = obs[OBS] / 255
    net = model.encoder.net
    assert isinstance(net, TinyCNN)
    assert net.last_input.dtype == dtype
    expected = pixels - pixels.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(net.last_input.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_user_encoder_of_several_parts_gets_a_dict_by_their_names(dtype: torch.dtype) -> None:
    """Images scaled and centered, vectors normalized, choices as they are."""
    model = make_joint(f"{__name__}:TinyJoint").inference_copy(dtype)
    obs = random_obs(model, 2)
    model.step(obs)
    seen = model.encoder.net.last_input
    assert list(seen) == ["camera", "robot.arm", "goal"]
    pixels = obs["obs.camera"] / 255
    [norm] = model.normalizers
    expected = {
        "camera": (pixels - pixels.mean((1, 2, 3), keepdim=True)).to(dtype),
        "robot.arm": ((obs["obs.robot.arm"] - norm.mean) / norm.variance.sqrt()).to(dtype),
        "goal": obs["obs.goal"].long(),
    }
    torch.testing.assert_close(seen, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("natur_cnn", f"none of {', '.join(MODELS)}"),
        ("no_such_module:Encoder", "cannot import 'no_such_module'"),
        (f"{__name__}:NoSuchClass", "NoSuchClass"),
        (f"{__name__}:make", "must be a subclass of torch.nn.Module"),
        (
            f"{__name__}:FlatFeatures",
            "features [B, F], floats; with B=2 it returned [2, 84, 84] float32",
        ),
    ],
)
def test_unusable_encoder_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NoSize", "TypeError in float32: NoSize.__init__() takes 1 positional argument but 2"),
        ("RaisesWhenMade", "KeyError in float32: 'width' ("),
        ("TakesOthers", "RuntimeError in float32: mat1 and mat2 shapes cannot be multiplied (2x"),
        ("FailsInForward", "AttributeError in float32: there are no features ("),
        ("ReturnsTwo", "to features [B, F], floats; with B=2 it returned tuple"),
        ("ReturnsRows", "to features [B, F], floats; with B=2 it returned [1, "),
        ("ReturnsNothing", "to features [B, F], floats; with B=2 it returned [2, 0] float32"),
        ("ReturnsWhole", "to features [B, F], floats; with B=2 it returned [2, "),
        ("KnowsOneType", "RuntimeError in bfloat16: mat1 and mat2 must have the same dtype"),
        ("CannotBeCopied", "TypeError in float32: cannot pickle '_thread.lock' object"),
        ("CannotLearn", "RuntimeError in float32: one of the variables needed for gradient"),
        ("HasPrimes", "its state travels as float32, which does not hold encoder.net.primes; if"),
    ],
)
def test_an_encoder_that_cannot_work_is_told_in_a_line_before_anything_starts(
    name: str, text: str
) -> None:
    env = "Pong" if "bfloat16" in text else "CartPole-v1"  # whose numbers are never rounded
    path = f"tests.faulty_encoder:{name}"
    config = dataclasses.replace(defaults_for(env), model=path)
    with pytest.raises(ConfigError) as refusal:
        resolve(config, envs.describe(env))
    [line] = str(refusal.value).splitlines()
    assert line.startswith(f"model={path}: ")
    assert text in line
    has_place = "tests/faulty_encoder.py, line " in line
    assert has_place == any(kind in name for kind in ("Raises", "Fails", "Knows"))


@pytest.mark.parametrize("name", ["Lazy", "KeepsPrimes"])
def test_an_encoder_that_works_is_taken_in_both_places(name: str) -> None:
    model = f"tests.faulty_encoder:{name}"
    config = dataclasses.replace(defaults_for("CartPole-v1"), model=model)
    assert config.value_encoder == "separate"
    assert resolve(config, envs.describe("CartPole-v1")) == config


@pytest.mark.parametrize("name", ["a3c_cnn", "nature_cnn", "pooled_cnn", "impala_resnet"])
def test_cnn_for_vectors_is_an_error_that_names_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match="choose --model=norm_mlp"):
        make_model(name, (vector(4),), discrete(2))


@pytest.mark.parametrize(("size", "places"), [((84, 84), 16), ((84, 140), 28), ((36, 36), 1)])
def test_pooled_cnn_averages_what_nature_cnn_flattens(size: tuple[int, int], places: int) -> None:
    nature, pooled = NatureCNN((4, *size)), PooledCNN((4, *size))
    assert pooled.linear.weight.shape == (512, 64 * places)
    images: list[Tensor] = []
    pooled.conv3.register_forward_hook(lambda _, __, output: images.append(output))
    features = pooled(torch.randint(0, 256, (3, 4, *size), dtype=torch.uint8), torch.float32)
    [image] = images
    assert nature.linear.weight.shape == (512, image[0].numel())
    # At the border a square may be cut: the mean is of the places that there are.
    squares = [rows.split(2, 3) for rows in image.split(2, 2)]
    means = torch.stack([square.mean((2, 3)) for row in squares for square in row], 1) * 1.5
    expected = (means.flatten(1) @ pooled.linear.weight.T + pooled.linear.bias).relu()
    torch.testing.assert_close(features, expected)


def test_too_small_image_for_nature_cnn_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 36x36 pixels, got 35x84"):
        make_model("nature_cnn", (image(4, 35, 84),), discrete(2))


def test_observations_of_another_shape_or_dtype_raise() -> None:
    model = make()
    obs = random_obs(model, 2)[OBS]
    for wrong, got in ((obs[:, :, :80], r"\[2, 4, 80, 84\]"), (obs.double(), ".* torch.float64")):
        with pytest.raises(ValueError, match=rf"obs must be \[B, .*\] uint8, got {got}"):
            model.step({OBS: wrong})


@pytest.mark.parametrize("name", ["a3c_cnn", "nature_cnn", "pooled_cnn", "impala_resnet"])
def test_images_of_floats_are_seen_as_those_of_pixels(name: str) -> None:
    pixels, floats = (
        make_model(name, (dataclasses.replace(image(*IMAGE), dtype=dtype),), discrete(NUM_ACTIONS))
        for dtype in ("uint8", "float32")
    )
    floats.load_state_dict(pixels.state_dict())
    obs = random_obs(pixels, 2)
    seen = floats.step({OBS: obs[OBS].float()})
    torch.testing.assert_close(seen.logits, pixels.step(obs).logits)


@pytest.mark.parametrize("name", ["my_encoder:MyEncoder", "my_joint:MyJoint"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_guides_examples_work_as_printed(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GUIDE.read_text()
    assert re.findall(r"--model=(\w+:\w+)", text) == ["my_encoder:MyEncoder", "my_joint:MyJoint"]
    module, _, class_name = name.partition(":")
    [example] = [
        code
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        if f"class {class_name}(" in code
    ]
    (tmp_path / f"{module}.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    torch.manual_seed(0)
    space: Space[Any] = Dict(  # as the guide has it
        camera=Box(0, 255, (64, 64, 3), np.uint8),
        goal=Discrete(4),
        robot=Dict(arm=Box(-1, 1, (6,))),
    )
    if module == "my_encoder":
        space = space["camera"]
    shown = tuple(part.leaf for part in observation_parts("guide", space))
    try_model(name, shown, [precision])
    model = make_model(name, shown, discrete(NUM_ACTIONS))
    if precision == "float32":
        assert model.step(random_obs(model, 2)).logits.shape == (2, NUM_ACTIONS)
    else:
        assert_acting_copy_and_learner_agree_in_bfloat16(model)


# --- precision ---


def test_precision_is_one_that_can_act() -> None:
    model = make()
    assert pick_precision(model, random_obs(model, 8)) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_precision_is_the_faster_one(slow: torch.dtype) -> None:
    class SlowInOne(nn.Module):
        def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
            for _ in range(100 if dtype == slow else 1):
                obs = obs + 1
            return obs.to(dtype)

    model = ActorCriticNetwork(SlowInOne(), (vector(1000),), discrete(NUM_ACTIONS))
    assert pick_precision(model, random_obs(model, 64)) != slow


def test_a_step_that_was_not_applied_changes_nothing() -> None:
    model = make("a3c_cnn", normalize_returns=True)
    with torch.no_grad():
        model.encoder.conv1.weight.add_(0.1)  # its filters do not sum to 0 now
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = torch.ones((2, 3), dtype=torch.bool)
    model.after_optimizer_step(torch.full((2, 3), 7.0), mask, torch.tensor(False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.after_optimizer_step(torch.full((2, 3), 7.0), mask, torch.tensor(True))
    assert model.encoder.conv1.weight.flatten(1).sum(1).abs().max() < 1e-4
    assert model.value_head.size == pytest.approx(7.0)
