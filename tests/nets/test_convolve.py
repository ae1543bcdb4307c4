"""Convolutions that skip zeros and what does not change: torch's, and a relu, whatever that is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfrl.nets import convolve as convolve_module
from sfrl.nets.convolve import Environments, convolve, convolve_blocks, linear
from sfrl.nets.encoders import NatureCNN, PooledCNN, lower
from sfrl.nets.images import pixel_blocks

needs_extension = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="needs AVX2"
)
# images [C, H, W], filters, size of the kernel, stride
NATURE = [((64, 21, 21), 32, 2, 1), ((32, 20, 20), 64, 4, 2), ((64, 9, 9), 64, 3, 1)]
OTHERS = [
    ((16, 20, 20), 32, 4, 2),  # A3C's second one
    ((16, 9, 7), 8, 2, 1),  # rows of 32 numbers, height and width that differ
    ((32, 10, 9), 24, 3, 2),  # a last line that no filter sees
    ((64, 2, 2), 8, 2, 1),  # one position
    ((8, 20, 30), 8, 4, 1),  # 459 positions, which are no multiple of a list
]


def case(
    shape: tuple[int, int, int], filters: int, size: int, *, changes: float = 1.0, batch: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, C, H, W] in channels_last, weights and biases, all leaves.

    Args:
        changes: the share of an image's numbers that differ from those of the one before it.
    """
    random = torch.Generator().manual_seed(1)
    images = torch.randn(batch, *shape, generator=random)
    stays = torch.rand(images.shape, generator=random) >= changes
    for b in range(1, batch):
        images[b] = torch.where(stays[b], images[b - 1], images[b])
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(filters, shape[0], size, size, generator=random)
    bias = torch.randn(filters, generator=random)
    return images.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def linear_case(
    batch: int, inputs: int, outputs: int, changes: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [batch, inputs], weights and biases, all leaves."""
    images, weight, bias = case((inputs, 1, 1), outputs, 1, changes=changes, batch=max(batch, 1))
    leaves = images[:batch].flatten(1), weight.flatten(1), bias
    rows, weight, bias = (leaf.detach().contiguous().requires_grad_() for leaf in leaves)
    return rows, weight, bias


def gradients(
    out: Tensor, sums: Tensor, leaves: tuple[Tensor, ...], density: float
) -> tuple[Tensor, ...]:
    """Of `out`, the relu of `sums`, where these are not so near to 0 that their order decides."""
    random = torch.Generator().manual_seed(2)
    grad = torch.randn(out.shape, generator=random)
    grad *= torch.rand(out.shape, generator=random) < density
    grad *= sums.abs() > 1e-3
    return torch.autograd.grad(out, leaves, grad, retain_graph=True)


@pytest.fixture
def skips_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    assert convolve_module.HAS_EXTENSION
    monkeypatch.setattr(convolve_module, "PAYS", True)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The extension's functions that make numbers, by name, as they are called."""
    names: list[str] = []

    def note_calls(owner: Any, function_name: str, name: str) -> None:
        function = getattr(owner, function_name)

        def call(*args: Any) -> Any:
            names.append(name)
            return function(*args)

        monkeypatch.setattr(owner, function_name, call)

    extension = convolve_module._sparse_conv
    note_calls(extension.Changes, "forward", "changes_forward")
    note_calls(extension.Changes, "of_blocks", "of_blocks")
    note_calls(extension.Changes, "weights_grad", "changes_weights_grad")
    note_calls(extension, "images_grad", "images_grad")
    note_calls(extension, "weights_grad", "weights_grad")
    for name in LINEAR:
        note_calls(extension, name, name)
    return names


BY_CHANGES = ["changes_forward", "images_grad", "changes_weights_grad"]
BY_ZEROS = ["images_grad", "weights_grad"]
LINEAR = ["linear_forward", "linear_rows_grad", "linear_weights_grad"]


@needs_extension
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("changes", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("shape", "filters", "size", "stride"), NATURE + OTHERS)
def test_results_and_gradients_are_those_of_torch(
    shape: tuple[int, int, int],
    filters: int,
    size: int,
    stride: int,
    changes: float,
    density: float,
    skips_zeros: None,
    called: list[str],
) -> None:
    leaves = case(shape, filters, size, changes=changes)
    out, sums = convolve(*leaves, stride), F.conv2d(*leaves, stride)
    expected = sums.relu()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * float(expected.detach().max()))
    found = gradients(out, sums, leaves, density)
    assert called == (BY_CHANGES if changes < 0.4 else BY_ZEROS)
    for ours, theirs in zip(found, gradients(expected, sums, leaves, density), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert (density == 0) == (not found[1].any())


@needs_extension
@pytest.mark.parametrize("shape", [(64, 9, 9), (32, 20, 20)])
def test_where_nothing_changes_results_are_the_same_to_the_bit(
    shape: tuple[int, int, int], skips_zeros: None
) -> None:
    """So that layers behind it have no change either."""
    images, weight, bias = case(shape, 64, 3, changes=0.0, batch=40)
    out = convolve(images, weight, bias)
    assert (out == out[:1]).all()


@needs_extension
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_without_an_image_before(batch: int, skips_zeros: None) -> None:
    leaves = case((64, 9, 9), 64, 3, batch=batch)
    out, sums = convolve(*leaves), F.conv2d(*leaves)
    torch.testing.assert_close(out, sums.relu())
    for ours, theirs in zip(
        *(gradients(relu, sums, leaves, 0.5) for relu in (out, sums.relu())), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@needs_extension
def test_images_that_need_no_gradient_get_none(skips_zeros: None, called: list[str]) -> None:
    images, weight, bias = case((64, 9, 9), 64, 3)
    images = images.detach()
    sums = F.conv2d(images, weight, bias)
    ours, theirs = (
        gradients(out, sums, (weight, bias), 0.5)
        for out in (convolve(images, weight, bias), sums.relu())
    )
    assert called == ["weights_grad"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@needs_extension
@pytest.mark.parametrize("changes", [0.1, 1.0])
@pytest.mark.parametrize("where", ["gradient", "inputs"])
@pytest.mark.parametrize("layer", [convolve, linear])
def test_nan_is_not_skipped(
    layer: Callable[[Tensor, Tensor, Tensor], Tensor],
    where: str,
    changes: float,
    skips_zeros: None,
) -> None:
    if layer is linear:
        inputs, weight, bias = linear_case(6, 128, 64, changes)
    else:
        inputs, weight, bias = case((64, 9, 9), 64, 3, changes=changes)
    with torch.no_grad():
        if where == "inputs":
            inputs[0, 5] = np.nan
    out = layer(inputs, weight, bias)
    assert out[0].isnan().any() == (where == "inputs")
    grad = torch.ones_like(out)
    if where == "gradient":
        grad[1][out[1] == out[1].max()] = np.nan  # where the relu lets it through
    inputs_grad, weight_grad, _ = torch.autograd.grad(out, (inputs, weight, bias), grad)
    assert weight_grad.isnan().any()
    assert inputs_grad.isnan().any() == (where == "gradient")


@needs_extension
@pytest.mark.parametrize(
    ("shape", "filters", "size"),
    [((64, 9, 9), 12, 3), ((4, 9, 9), 8, 3)],
    ids=["filters that are no multiple of 8", "channels that are no multiple of 8"],
)
def test_other_sizes_are_left_to_torch(
    shape: tuple[int, int, int], filters: int, size: int, skips_zeros: None, called: list[str]
) -> None:
    for changes in (0.1, 1.0):
        convolve(*case(shape, filters, size, changes=changes)).sum().backward()
    assert called == []


@needs_extension
def test_it_stays_out_of_other_precisions_and_of_acting(
    skips_zeros: None, called: list[str]
) -> None:
    images, weight, bias = case((64, 9, 9), 64, 3, changes=0.1)
    with torch.inference_mode():
        convolve(images, weight, bias)
    low = [leaf.bfloat16() for leaf in (images, weight, bias)]
    convolve(*low, dtype=torch.bfloat16).sum().backward()
    assert called == []


@needs_extension
@pytest.mark.parametrize("changes", [0.1, 1.0])
def test_in_bfloat16_float32_images_are_multiplied_by_what_changes_or_by_torch(
    changes: float, skips_zeros: None, called: list[str]
) -> None:
    leaves = case((64, 9, 9), 64, 3, changes=changes)
    with torch.autocast("cpu", torch.bfloat16):
        out = convolve(*leaves, dtype=torch.bfloat16)
    out.float().sum().backward()
    assert called == (BY_CHANGES if changes < 0.4 else [])
    assert out.dtype == (torch.float32 if changes < 0.4 else torch.bfloat16)
    expected = F.conv2d(*leaves).relu()
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.3)  # of up to 100
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32


@needs_extension
@pytest.mark.parametrize(
    ("images", "weights", "out"),
    [
        ((2, 9, 9, 64), (64, 3, 3, 64), (2, 7, 8, 64)),
        ((2, 9, 9, 64), (64, 3, 3, 64), (3, 7, 7, 64)),
        ((2, 9, 9, 64), (32, 3, 3, 64), (2, 7, 7, 64)),
        ((2, 9, 9, 64), (64, 3, 3, 32), (2, 7, 7, 64)),
        ((2, 9, 9, 64), (64, 3, 2, 64), (2, 7, 7, 64)),
        ((2, 9, 9, 64), (12, 3, 3, 64), (2, 7, 7, 12)),
        ((2, 9, 9, 4), (64, 3, 3, 4), (2, 7, 7, 64)),
        ((9, 9, 64), (64, 3, 3, 64), (2, 7, 7, 64)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    images: tuple[int, ...], weights: tuple[int, ...], out: tuple[int, ...]
) -> None:
    from sfrl.nets import _sparse_conv

    arrays = [np.zeros(shape, np.float32) for shape in (images, weights, out)]
    bias = np.zeros(weights[0], np.float32)
    with pytest.raises(ValueError, match="must"):
        _sparse_conv.weights_grad(arrays[0], *arrays[2:] * 2, arrays[1], bias, 1)
    with pytest.raises(ValueError, match="must"):
        _sparse_conv.images_grad(*arrays[2:] * 2, arrays[1], arrays[0], 1)
    rest = (*arrays[2:] * 2, arrays[1], bias, 1)
    with pytest.raises(ValueError, match="must"):
        _sparse_conv.Changes(arrays[0], weights[0]).weights_grad(*rest)
    with pytest.raises(ValueError, match="must"):
        _sparse_conv.Changes(arrays[0], weights[0]).forward(arrays[1], bias, arrays[2], 1)


@needs_extension
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("batch", "changes"), [(6, 0.0), (6, 0.1), (40, 0.3), (1, 1.0), (0, 1.0)])
@pytest.mark.parametrize(("inputs", "outputs"), [(3136, 512), (64, 64), (128, 192), (192, 64)])
def test_linear_results_and_gradients_are_those_of_torch(
    inputs: int,
    outputs: int,
    batch: int,
    changes: float,
    density: float,
    skips_zeros: None,
    called: list[str],
) -> None:
    leaves = linear_case(batch, inputs, outputs, changes)
    out, sums = linear(*leaves), F.linear(*leaves)
    torch.testing.assert_close(out, sums.relu(), rtol=0, atol=1e-5 * size_of(sums))
    found = gradients(out, sums, leaves, density)
    assert called == (LINEAR if batch > 1 else [])
    for ours, theirs in zip(found, gradients(sums.relu(), sums, leaves, density), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * size_of(theirs))


def size_of(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0


@needs_extension
def test_a_linear_layer_whose_rows_do_not_change_has_the_same_outputs_to_the_bit(
    skips_zeros: None, called: list[str]
) -> None:
    out = linear(*linear_case(20, 128, 64, 0.0))
    assert called == ["linear_forward"]
    assert (out == out[:1]).all()


@needs_extension
def test_rows_that_need_no_gradient_get_none(skips_zeros: None, called: list[str]) -> None:
    rows, weight, bias = linear_case(6, 128, 64, 0.1)
    linear(rows.detach(), weight, bias).sum().backward()
    assert called == ["linear_forward", "linear_weights_grad"]
    assert weight.grad is not None


@needs_extension
@pytest.mark.parametrize(
    ("inputs", "outputs", "changes"), [(96, 64, 0.1), (64, 96, 0.1), (64, 64, 1.0)]
)
def test_other_linear_layers_are_left_to_torch(
    inputs: int, outputs: int, changes: float, skips_zeros: None, called: list[str]
) -> None:
    """And those whose rows change much, that act, or that are in another precision."""
    leaves = linear_case(6, inputs, outputs, changes)
    assert torch.equal(linear(*leaves), F.linear(*leaves).relu())
    same = linear_case(6, 64, 64, 0.1)
    with torch.inference_mode():
        assert torch.equal(linear(*same), F.linear(*same).relu())
    linear(*(leaf.bfloat16() for leaf in same))
    assert called == []


@needs_extension
@pytest.mark.parametrize(
    ("rows", "weights", "bias", "out"),
    [
        ((2, 96), (64, 96), (64,), (2, 64)),
        ((2, 128, 1), (64, 128), (64,), (2, 64)),
        ((2, 128), (32, 128), (32,), (2, 32)),
        ((2, 128), (64, 64), (64,), (2, 64)),
        ((2, 128), (64, 128, 1), (64,), (2, 64)),
        ((2, 128), (64, 128), (32,), (2, 64)),
        ((2, 128), (64, 128), (64,), (3, 64)),
        ((2, 128), (64, 128), (64,), (2, 128)),
        ((2, 128), (64, 128), (64,), (128,)),
    ],
)
def test_arrays_that_do_not_fit_a_linear_layer_are_refused(
    rows: tuple[int, ...], weights: tuple[int, ...], bias: tuple[int, ...], out: tuple[int, ...]
) -> None:
    from sfrl.nets import _sparse_conv

    x, w, c, y = (np.zeros(shape, np.float32) for shape in (rows, weights, bias, out))
    with pytest.raises(ValueError, match="must"):
        _sparse_conv.linear_forward(_sparse_conv.RowChanges(x), w, c, y)
    with pytest.raises(ValueError, match="must"):
        _sparse_conv.linear_weights_grad(_sparse_conv.RowChanges(x), y, y, w, c)
    if bias == (64,):
        with pytest.raises(ValueError, match="must"):
            _sparse_conv.linear_rows_grad(y, y, w, x)


def acting(layer: convolve_module.Convolution, num_environments: int) -> Environments:
    """Has the layer act, and keep; says for whom."""
    environments = Environments(num_environments)
    layer.requires_grad_(False).keep(environments)
    return environments


@needs_extension
@pytest.mark.parametrize("pixels", ["blocks", "numbers"])
@pytest.mark.parametrize("changes", [0.0, 0.05, 1.0])
def test_what_acts_keeps_outputs_as_long_as_the_weights_stay(
    pixels: str, changes: float, skips_zeros: None
) -> None:
    """Batches are of other environments each time, in any order."""
    random = np.random.default_rng(1)
    torch.manual_seed(1)
    layer = convolve_module.Convolution(64, 32, 2)
    environments = acting(layer, 6)
    shape = (6, 4, 22, 21) if pixels == "blocks" else (6, 64, 9, 7)  # 21: not all of it is seen
    images = torch.from_numpy(random.integers(0, 256, shape, np.uint8))
    for step in range(8):
        if step == 5:
            torch.nn.init.normal_(layer.weight)
            environments.renewals += 1
        environments.rows = random.permutation(6)[: 1 + step % 6].astype(np.int32)
        seen = images[torch.from_numpy(environments.rows).long()]
        if pixels == "blocks":
            out = convolve_blocks(seen, layer.weight, layer.bias, layer.kept)
            sums = F.conv2d(pixel_blocks(seen, torch.float32), layer.weight, layer.bias)
        else:
            out, sums = layer(seen.float()), F.conv2d(seen.float(), layer.weight, layer.bias)
        size = float(sums.abs().max())
        torch.testing.assert_close(out, sums.relu(), rtol=0, atol=1e-5 * size)
        new = torch.from_numpy(random.integers(0, 256, shape, np.uint8))
        images = torch.where(torch.rand(shape) < changes, new, images)


@needs_extension
def test_what_acts_multiplies_changes_alone(skips_zeros: None) -> None:
    """Weights that change without a word are not seen but by what changes: nothing."""
    layer = convolve_module.Convolution(64, 32, 2)
    environments = acting(layer, 2)
    environments.rows = np.arange(2, dtype=np.int32)
    images = torch.rand(2, 64, 5, 5)
    before = layer(images)  # by torch
    assert (layer(images) == before).all()
    layer.weight.zero_()
    assert (layer(images) == before).all()
    environments.renewals += 1
    assert not (layer(images) - layer.bias.relu()[:, None, None]).any()


@needs_extension
def test_nothing_is_kept_of_rows_whose_environments_are_not_known(skips_zeros: None) -> None:
    layer = convolve_module.Convolution(64, 32, 2)
    acting(layer, 2)
    images = torch.rand(3, 64, 5, 5)
    assert torch.equal(layer(images), F.conv2d(images, layer.weight, layer.bias).relu())


@needs_extension
@pytest.mark.parametrize("rows", [[0, 0], [0, 2], [-1, 0], [0]])
def test_rows_of_no_environment_or_of_one_twice_are_refused(
    rows: list[int], skips_zeros: None
) -> None:
    layer = convolve_module.Convolution(64, 32, 2)
    acting(layer, 2).rows = np.array(rows, np.int32)
    with pytest.raises(ValueError, match="must"):
        layer(torch.rand(2, 64, 5, 5))


@needs_extension
def test_images_smaller_than_the_kernel_are_refused() -> None:
    from sfrl.nets import _sparse_conv

    shapes = ((2, 2, 2, 64), (2, 1, 1, 64), (64, 3, 3, 64), (64,))
    images, out, weights, bias = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match="images must be"):
        _sparse_conv.weights_grad(images, out, out, weights, bias, 2)


@needs_extension
def test_biases_and_outputs_that_do_not_fit_are_refused() -> None:
    from sfrl.nets import _sparse_conv

    shapes = ((2, 9, 9, 64), (2, 7, 7, 64), (64, 3, 3, 64))
    images, out, weights = (np.zeros(shape, np.float32) for shape in shapes)
    changes = _sparse_conv.Changes(images, 64)
    bias, short = np.zeros(64, np.float32), np.zeros(63, np.float32)
    for of, of_bias, message in ((out, short, "bias must be"), (out[:1], bias, "same shape")):
        with pytest.raises(ValueError, match=message):
            changes.weights_grad(out, of, weights, of_bias, 1)
        with pytest.raises(ValueError, match=message):
            _sparse_conv.weights_grad(images, out, of, weights, of_bias, 1)
    with pytest.raises(ValueError, match="bias must be"):
        changes.forward(weights, short, out, 1)
    with pytest.raises(ValueError, match="same shape"):
        _sparse_conv.images_grad(out, out[:1], weights, images, 1)


@needs_extension
def test_changes_are_of_use_for_as_many_filters_as_they_were_listed_for() -> None:
    from sfrl.nets import _sparse_conv

    changes = _sparse_conv.Changes(np.zeros((2, 9, 9, 64), np.float32), 64)
    shapes = ((2, 7, 7, 32), (32, 3, 3, 64), (32,))
    out, grad, bias_grad = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match="this number of filters"):
        changes.weights_grad(out, out, grad, bias_grad, 1)


# Sides that are no multiple of 4 lose the rest; 1 or 3 channels are 16 or 48 of blocks.
@needs_extension
@pytest.mark.parametrize("changes", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 43, 57), (1, 20, 36), (4, 8, 8)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_pixels_are_convolved_as_if_they_were_made(
    shape: tuple[int, int, int],
    changes: float,
    memory_format: torch.memory_format,
    skips_zeros: None,
    called: list[str],
) -> None:
    random = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (6, *shape), generator=random, dtype=torch.uint8)
    for b in range(1, 6):
        stays = torch.rand(shape, generator=random) >= changes
        images[b] = torch.where(stays, images[b - 1], images[b])
    images = images.contiguous(memory_format=memory_format)
    weight = torch.randn(32, 16 * shape[0], 2, 2, generator=random).requires_grad_()
    bias = torch.randn(32, generator=random).requires_grad_()
    out = convolve_blocks(images, weight, bias)
    sums = F.conv2d(pixel_blocks(images, torch.float32), weight, bias)
    expected = sums.relu()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * float(expected.detach().max()))
    found = gradients(out, sums, (weight, bias), 0.5)
    by_changes = ["of_blocks", "changes_forward", "changes_weights_grad"]
    assert called == (by_changes if changes < 0.4 else ["weights_grad"])
    for ours, theirs in zip(found, gradients(expected, sums, (weight, bias), 0.5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@needs_extension
def test_images_in_float32_become_blocks_first(skips_zeros: None) -> None:
    images = torch.rand(1, 4, 84, 84).repeat(3, 1, 1, 1)
    weight, bias = torch.randn(32, 64, 2, 2, requires_grad=True), torch.zeros(32)
    expected = F.conv2d(pixel_blocks(images, torch.float32), weight, bias).relu()
    torch.testing.assert_close(convolve_blocks(images, weight, bias), expected, rtol=0, atol=1e-4)


@needs_extension
def test_pixels_become_blocks_where_changes_do_not_pay(
    skips_zeros: None, called: list[str]
) -> None:
    """In acting, and in bfloat16 where much changes."""
    images = torch.zeros((3, 4, 84, 84), dtype=torch.uint8)
    weight, bias = torch.zeros(32, 64, 2, 2, requires_grad=True), torch.zeros(32)
    with torch.inference_mode():
        convolve_blocks(images, weight, bias)
    images[1] = 1
    out = convolve_blocks(images, weight, bias, dtype=torch.bfloat16)
    assert called == []
    assert out.dtype == torch.bfloat16
    images[1, 1:] = 0
    assert convolve_blocks(images, weight, bias, dtype=torch.bfloat16).dtype == torch.float32
    assert called == ["of_blocks", "changes_forward"]


@needs_extension
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder_class", [NatureCNN, PooledCNN])
def test_all_layers_of_nature_cnn_learn_by_it(
    skips_zeros: None,
    called: list[str],
    encoder_class: type[NatureCNN],
    precision: torch.dtype,
) -> None:
    """In bfloat16 all but the linear one, of which torch then makes less work."""
    encoder = encoder_class((4, 84, 84))
    obs = torch.full((3, 4, 84, 84), 100, dtype=torch.uint8)
    obs[1, 3, :8, :8] = 0  # little of any layer's output
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        features = encoder(obs, precision)
    assert features.dtype == precision
    features.sum().backward()
    assert called.count("changes_forward") == called.count("changes_weights_grad") == 3
    assert called.count("images_grad") == 2
    linear = [name for name in called if name in LINEAR]
    assert linear == (LINEAR if precision == torch.float32 else [])


@needs_extension
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_target_has_the_numbers_of_the_model_that_it_is_a_copy_of(
    skips_zeros: None, called: list[str], precision: torch.dtype
) -> None:
    encoder = NatureCNN((4, 84, 84))
    target = copy.deepcopy(encoder).requires_grad_(False)
    obs = torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8).repeat(3, 1, 1, 1)
    obs[1, 3, :8, :8] = 0
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        features = encoder(obs, precision)
        with torch.no_grad():
            assert torch.equal(target(obs, precision), features)
    assert called.count("changes_forward") == 6


@needs_extension
def test_what_acts_in_bfloat16_keeps_convolutions_in_float32(
    skips_zeros: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = NatureCNN((4, 84, 84))
    weights = encoder.state_dict()
    actor = copy.deepcopy(encoder)
    lower(actor, torch.bfloat16)
    for name, weight in actor.state_dict().items():
        is_exact = name.startswith("conv")
        assert weight.dtype == (torch.float32 if is_exact else torch.bfloat16)
        assert torch.equal(weight, weights[name]) or not is_exact
    monkeypatch.setattr(convolve_module, "PAYS", False)
    lower(actor, torch.bfloat16)
    assert {weight.dtype for weight in actor.state_dict().values()} == {torch.bfloat16}


@needs_extension
def test_what_acts_leaves_images_that_change_much_to_torch_until_weights_are_renewed(
    skips_zeros: None,
) -> None:
    actor = NatureCNN((4, 84, 84)).requires_grad_(False)
    lower(actor, torch.bfloat16)
    layers = [layer for layer in actor.modules() if isinstance(layer, convolve_module.Convolution)]
    environments = Environments(2)
    for layer in layers:
        layer.keep(environments)
    environments.rows = np.arange(2, dtype=np.int32)
    noise, same = torch.randint(0, 256, (2, 2, 4, 84, 84), dtype=torch.uint8)
    for images, keep in ((same, 3), (same, 3), (noise, 0), (same, 0), (same, 0)):
        features = actor(images, torch.bfloat16)
        assert features.dtype == torch.bfloat16
        assert sum(layer.kept is not None for layer in layers) == keep
    environments.renewals += 1
    assert torch.equal(actor(same, torch.bfloat16), actor(same, torch.bfloat16))
    assert all(layer.kept is not None for layer in layers)
    out = layers[1](torch.zeros(2, 32, 20, 20, dtype=torch.bfloat16), torch.bfloat16)
    assert out.dtype == torch.bfloat16, "the layer before left its images to torch"
