"""Against torch's own GRU and LSTM, and acting against learning."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from sfrl.nets.recurrent import Memory

Kind = Literal["gru", "lstm"]
LENGTH, BATCH, INPUTS, SIZE = 9, 4, 5, 6

each_kind = pytest.mark.parametrize("kind", ["gru", "lstm"])
each_depth = pytest.mark.parametrize("layers", [1, 2, 3])


def make(kind: Kind, layers: int = 1, dtype: torch.dtype = torch.float32) -> Memory:
    """With biases and weights that all differ, which fresh ones do not."""
    torch.manual_seed(0)
    memory = Memory(kind, INPUTS, SIZE, layers)
    for parameter in memory.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return memory.to(dtype)


def make_rows(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """Features, state, valid: one episode end in the first row, two in succession, one in the last
    row, which is not read, and an environment without any.
    """
    dtype = next(memory.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(LENGTH, BATCH, INPUTS, generator=generator, dtype=dtype)
    state = torch.randn(BATCH, memory.state_size, generator=generator, dtype=dtype)
    valid = torch.ones(LENGTH, BATCH, dtype=torch.bool)
    valid[0, 0] = valid[3, 1] = valid[4, 1] = valid[6, 0] = valid[LENGTH - 1, 2] = False
    return features, state, valid


def step_through(memory: Memory, features: Tensor, state: Tensor | None, valid: Tensor) -> Tensor:
    rows = []
    for row, is_valid in zip(features, valid, strict=True):
        output, state = memory.step(row, state)
        rows.append(output)
        state = state * is_valid.unsqueeze(1)
    return torch.stack(rows)


def gradients(outputs: Tensor, sources: list[Tensor]) -> list[Tensor]:
    """Of a sum in which every output has a weight of its own."""
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((outputs * weights).sum(), sources))


@each_kind
@each_depth
@pytest.mark.parametrize("has_state", [True, False])
def test_unroll_is_step_row_by_row_over_episode_ends(
    kind: Kind, layers: int, has_state: bool
) -> None:
    memory = make(kind, layers)
    features, state, valid = make_rows(memory)
    start = state.requires_grad_() if has_state else None
    sources = [features.requires_grad_(), *memory.parameters(), *([state] if has_state else [])]
    learned = memory.unroll(features, start, valid)
    acted = step_through(memory, features, start, valid)
    torch.testing.assert_close(learned, acted, atol=1e-5, rtol=0)
    for ours, autograds in zip(gradients(learned, sources), gradients(acted, sources), strict=True):
        torch.testing.assert_close(ours, autograds, atol=1e-5, rtol=1e-5)


@each_kind
@each_depth
def test_without_episode_ends_it_is_that_of_torch(kind: Kind, layers: int) -> None:
    memory = make(kind, layers)
    features, state, valid = make_rows(memory)
    torchs = (nn.GRU if kind == "gru" else nn.LSTM)(INPUTS, SIZE, layers)
    names = []
    for name, parameter in torchs.named_parameters():
        names.append(name.removesuffix("_l0"))
        parameter.data.copy_(memory.get_parameter(names[-1]))
    states = state.view(BATCH, layers, -1, SIZE).permute(2, 1, 0, 3).contiguous()
    features.requires_grad_()
    expected, _ = torchs(features, states[0] if kind == "gru" else tuple(states))
    outputs = memory.unroll(features, state, torch.ones_like(valid))
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0)
    ours = gradients(outputs, [features, *(memory.get_parameter(name) for name in names)])
    for found, right in zip(
        ours, gradients(expected, [features, *torchs.parameters()]), strict=True
    ):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


@each_kind
def test_episode_after_an_end_knows_nothing_of_what_was_before(kind: Kind) -> None:
    memory = make(kind, layers=2)
    features, state, valid = make_rows(memory)
    outputs = memory.unroll(features.requires_grad_(), state.requires_grad_(), valid)
    fresh = memory.unroll(features[5:, 1:2], None, valid[5:, 1:2])
    torch.testing.assert_close(outputs[5:, 1:2], fresh, atol=1e-6, rtol=0)
    d_features, d_state = gradients(outputs[5:, 1], [features, state])
    assert not d_state.any()
    assert not d_features[:5].any()
    assert d_features[5:, 1].all()


@each_kind
def test_last_rows_valid_is_not_read(kind: Kind) -> None:
    memory = make(kind)
    features, state, valid = make_rows(memory)
    outputs = memory.unroll(features, state, valid)
    valid[-1] = ~valid[-1]
    assert torch.equal(memory.unroll(features, state, valid), outputs)


@each_kind
def test_gradients_are_those_of_finite_differences(kind: Kind) -> None:
    memory = make(kind, layers=2, dtype=torch.float64)
    features, state, valid = make_rows(memory)
    sources = [features[:, :2].clone(), state[:2].clone(), *memory.parameters()]

    def unroll(features: Tensor, state: Tensor, *parameters: Tensor) -> Tensor:
        return memory.unroll(features, state, valid[:, :2])

    inputs = [source.requires_grad_() for source in sources]
    assert torch.autograd.gradcheck(unroll, inputs, fast_mode=True)


@each_kind
@each_depth
def test_sizes(kind: Kind, layers: int) -> None:
    memory = Memory(kind, INPUTS, SIZE, layers)
    outputs, state = memory.step(torch.zeros(BATCH, INPUTS))
    assert memory.num_features == SIZE
    assert outputs.shape == (BATCH, SIZE)
    assert state.shape == (BATCH, memory.state_size)
    assert memory.state_size == (layers if kind == "gru" else 2 * layers) * SIZE


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
def test_one_layer_takes_the_weights_of_a_cell(cell: type[nn.GRUCell] | type[nn.LSTMCell]) -> None:
    kind: Kind = "gru" if cell is nn.GRUCell else "lstm"
    torchs, memory = cell(INPUTS, SIZE), make(kind)
    assert list(memory.state_dict()) == list(torchs.state_dict())  # optimizers count on the order
    memory.load_state_dict(torchs.state_dict())
    features, state, _ = make_rows(memory)
    if isinstance(torchs, nn.GRUCell):
        expected = torchs(features[0], state)
    else:
        expected = torch.cat(torchs(features[0], state.chunk(2, dim=1)), dim=1)
    torch.testing.assert_close(memory.step(features[0], state)[1], expected, atol=1e-6, rtol=0)


@each_kind
def test_every_gate_starts_orthogonal_and_an_lstm_remembers(kind: Kind) -> None:
    memory = Memory(kind, 8, 8, layers=2)
    for name, parameter in memory.named_parameters():
        if name.startswith("weight"):
            for gate in parameter.split(8):
                torch.testing.assert_close(gate @ gate.t(), torch.eye(8), atol=1e-5, rtol=0)
        else:
            ones = (8, 16) if kind == "lstm" and name.startswith("bias_ih") else (0, 0)
            expected = torch.zeros(len(parameter))
            expected[slice(*ones)] = 1
            assert torch.equal(parameter.data, expected)
