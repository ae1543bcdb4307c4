"""Memory of a network: GRU and LSTM layers, whose state is zeroed where an episode ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NUM_GATES = {"gru": 3, "lstm": 4}


class Memory(nn.Module):
    """One or several layers of GRU or LSTM, each of which reads the outputs of the one before.

    Parameters have the names, layouts and order of gates of `nn.GRUCell` and `nn.LSTMCell`; those
    of the second layer end in "_l1", of the third in "_l2". Everything is float32.

    The state of an environment is that of the first layer, then that of the second, and so on; of
    an LSTM's layer first the outputs, then the cells. Zeros before an episode's first observation.
    Whoever calls `step` zeroes it where an episode has ended; `unroll` does so by itself.

    Attributes:
        state_size: H, numbers per environment.
        num_features: of the outputs, which are those of the last layer.
    """

    def __init__(
        self, kind: Literal["gru", "lstm"], input_size: int, size: int, layers: int = 1
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_features = size
        self._num_states = layers if kind == "gru" else 2 * layers  # each [B, size]
        self.state_size = self._num_states * size
        self._suffixes = ["", *(f"_l{layer}" for layer in range(1, layers))]
        rows = _NUM_GATES[kind] * size
        for suffix in self._suffixes:
            for name, columns in (("ih", input_size), ("hh", size)):
                gates = [
                    nn.init.orthogonal_(torch.empty(size, columns)) for _ in range(rows // size)
                ]
                self.register_parameter(f"weight_{name}{suffix}", nn.Parameter(torch.cat(gates)))
            for name in ("ih", "hh"):  # after the weights, as an optimizer's saved state has them
                self.register_parameter(f"bias_{name}{suffix}", nn.Parameter(torch.zeros(rows)))
            if kind == "lstm":  # remember, until it learns to forget
                nn.init.ones_(self.get_parameter(f"bias_ih{suffix}").data[size : 2 * size])
            input_size = size

    def step(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """To act: outputs [B, size] and the state after them [B, H].

        Args:
            features: [B, F].
            state: [B, H]; None: zeros.
        """
        states = iter(self._split(features, state))
        after: list[Tensor] = []
        for weights in self._weights():
            if self.kind == "gru":
                features = torch.gru_cell(features, next(states), *weights)
                after.append(features)
            else:
                hidden, cells = next(states), next(states)
                features, cells = torch.lstm_cell(features, (hidden, cells), *weights)
                after += [features, cells]
        return features, torch.cat(after, dim=1)

    def unroll(self, features: Tensor, state: Tensor | None, valid: Tensor) -> Tensor:
        """To learn: outputs [T+1, B, size] of trajectories, as `step`.

        Args:
            features: [T+1, B, F].
            state: [B, H] before row 0; None: zeros.
            valid: [T+1, B] bool; after a row that is not valid the next episode begins, with a
                state of zeros. Row T is not read.
        """
        keep = features.new_ones(*valid.shape, 1)  # of the state before each row
        keep[1:, :, 0] = valid[:-1]
        states = iter(self._split(features[0], state))
        for weight_ih, weight_hh, bias_ih, bias_hh in self._weights():
            if self.kind == "gru":
                inputs = F.linear(features, weight_ih, bias_ih)
                features = _UnrollGRU.apply(inputs, next(states), weight_hh, bias_hh, keep)  # type: ignore[no-untyped-call]
            else:
                inputs = F.linear(features, weight_ih, bias_ih + bias_hh)
                hidden, cells = next(states), next(states)
                features = _UnrollLSTM.apply(inputs, hidden, cells, weight_hh, keep)  # type: ignore[no-untyped-call]
        return features

    def _split(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, ...]:
        """[B, size] each, layer by layer."""
        if state is None:
            state = features.new_zeros(len(features), self.state_size)
        return state.chunk(self._num_states, dim=1)

    def _weights(self) -> list[list[nn.Parameter]]:
        """Of each layer, in the order of torch's functions."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [[getattr(self, name + suffix) for name in names] for suffix in self._suffixes]


# The loops over time have a backward pass of their own. All of it that does not depend on the
# gradients of later rows is computed for all rows at once, and so are the weights' gradients; each
# row is left a few operations on [B, size], and one product. Nothing waits for a GPU.
#
# A slope is the derivative of the new outputs (for an LSTM's i, f and g: of the new cells) by what
# the gate's sigmoid or tanh is given. docs/experiments.md has the times ("GRU and LSTM").


class _UnrollGRU(torch.autograd.Function):
    """r, z = sigmoid(x + W h + b); n = tanh(x + r (W h + b)); h' = (1 - z) n + z h."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,  # [T, B, 3 * size]
        hidden: Tensor,  # [B, size] before row 0
        weight: Tensor,  # [3 * size, size]
        bias: Tensor,  # [3 * size]
        keep: Tensor,  # [T, B, 1]; 0 where the state before a row is not its episode's
    ) -> Tensor:
        size = weight.shape[1]
        before = inputs.new_empty(*inputs.shape[:2], size)
        new, outputs = torch.empty_like(before), torch.empty_like(before)
        gates = inputs + bias
        gates[..., 2 * size :] = bias[2 * size :]  # of n: its reset gate comes before the input
        r, z, n = gates.chunk(3, dim=2)
        rz, input_n = gates[..., : 2 * size], inputs[..., 2 * size :]
        rows = (keep, before, gates, rz, r, z, n, input_n, new, outputs)
        for k, h, g, rz_t, r_t, z_t, n_t, i_t, new_t, out in _by_row(*rows):
            torch.mul(hidden, k, out=h)
            g.addmm_(h, weight.t())
            rz_t.sigmoid_()
            torch.addcmul(i_t, r_t, n_t, out=new_t).tanh_()
            hidden = torch.lerp(new_t, h, z_t, out=out)
        ctx.save_for_backward(before, gates, new, weight, keep)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before, gates, new, weight, keep = ctx.saved_tensors
        length, batch, size = before.shape
        r, z, n = gates.chunk(3, dim=2)
        slope_new = (1 - z).mul_(1 - new * new)
        slopes = gates.new_empty(length, batch, 3, size)
        torch.mul(slope_new, r, out=slopes[:, :, 2])
        torch.mul(slopes[:, :, 2] * n, 1 - r, out=slopes[:, :, 0])
        torch.mul((before - new).mul_(z), 1 - z, out=slopes[:, :, 1])
        d_gates, d_outputs = torch.empty_like(slopes), torch.empty_like(before)
        carry = torch.zeros_like(before[0])
        rows = (grad, slopes, z, keep, d_gates, d_outputs)
        for g, s, z_t, k, d, dh in _by_row(*rows, backwards=True):
            torch.add(g, carry, out=dh)
            torch.mul(s, dh.unsqueeze(1), out=d)
            carry = torch.addmm(dh * z_t, d.flatten(1), weight).mul_(k)
        d_gates = d_gates.flatten(2)
        d_weight, d_bias = _weight_grads(d_gates, before)
        torch.mul(slope_new, d_outputs, out=d_gates[..., 2 * size :])
        return d_gates, carry, d_weight, d_bias, None


class _UnrollLSTM(torch.autograd.Function):
    """i, f, o = sigmoid(x + W h); g = tanh(x + W h); c' = f c + i g; h' = o tanh(c')."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,  # [T, B, 4 * size], with both biases
        hidden: Tensor,  # [B, size] before row 0
        cells: Tensor,  # [B, size] before row 0
        weight: Tensor,  # [4 * size, size]
        keep: Tensor,  # [T, B, 1]; 0 where the state before a row is not its episode's
    ) -> Tensor:
        size = weight.shape[1]
        before = inputs.new_empty(*inputs.shape[:2], size)
        cells_before, squashed = torch.empty_like(before), torch.empty_like(before)
        gates, outputs = torch.empty_like(inputs), torch.empty_like(before)
        i, f, g, o = gates.chunk(4, dim=2)
        i_f = gates[..., : 2 * size]
        rows = (inputs, keep, before, cells_before, gates, i_f, i, f, g, o, squashed, outputs)
        for x, k, h, c, gates_t, if_t, i_t, f_t, g_t, o_t, tanh_c, out in _by_row(*rows):
            torch.mul(hidden, k, out=h)
            torch.mul(cells, k, out=c)
            torch.addmm(x, h, weight.t(), out=gates_t)
            if_t.sigmoid_()
            g_t.tanh_()
            o_t.sigmoid_()
            cells = (i_t * g_t).addcmul_(f_t, c)
            torch.tanh(cells, out=tanh_c)
            hidden = torch.mul(o_t, tanh_c, out=out)
        ctx.save_for_backward(before, cells_before, gates, squashed, weight, keep)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before, cells_before, gates, squashed, weight, keep = ctx.saved_tensors
        length, batch, size = before.shape
        i, f, g, o = gates.chunk(4, dim=2)
        slopes = gates.new_empty(length, batch, 4, size)
        torch.mul((1 - i).mul_(i), g, out=slopes[:, :, 0])
        torch.mul((1 - f).mul_(f), cells_before, out=slopes[:, :, 1])
        torch.mul(1 - g * g, i, out=slopes[:, :, 2])
        torch.mul((1 - o).mul_(o), squashed, out=slopes[:, :, 3])
        slope_cells = (1 - squashed * squashed).mul_(o)
        d_gates = torch.empty_like(slopes)
        dh, dc = torch.zeros_like(before[0]), torch.zeros_like(before[0])
        s_ifg, s_o = slopes[:, :, :3], slopes[:, :, 3]
        d_ifg, d_o = d_gates[:, :, :3], d_gates[:, :, 3]
        rows = (grad, s_ifg, s_o, slope_cells, f, keep, d_gates, d_ifg, d_o)
        for g_t, s_ifg_t, s_o_t, s_c, f_t, k, d, d_ifg_t, d_o_t in _by_row(*rows, backwards=True):
            dh = dh + g_t
            dc.addcmul_(dh, s_c)
            torch.mul(s_ifg_t, dc.unsqueeze(1), out=d_ifg_t)
            torch.mul(s_o_t, dh, out=d_o_t)
            dc.mul_(f_t).mul_(k)
            dh = torch.mm(d.flatten(1), weight).mul_(k)
        d_gates = d_gates.flatten(2)
        d_weight, _ = _weight_grads(d_gates, before)
        return d_gates, dh, dc, d_weight, None


def _weight_grads(d_gates: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Of the weight and the bias, from [T, B, G * size] and [T, B, size]."""
    rows = d_gates.flatten(0, 1)
    return rows.t() @ before.flatten(0, 1), rows.sum(0)


def _by_row(*tensors: Tensor, backwards: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same row of all tensors, row by row."""
    step = -1 if backwards else 1
    return zip(*(tensor.unbind()[::step] for tensor in tensors), strict=True)
