"""An encoder's work in pieces: what it computes, in which threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from sfrl.algorithms.actor_critic import ActorCriticNetwork, make_model
from sfrl.nets import pieces
from sfrl.nets.pieces import encode_in_pieces
from tests.leaves import discrete, image, vector

CASES = {
    "nature_cnn": (image(4, 84, 84),),
    "pooled_cnn": (image(4, 84, 84),),
    "small_cnn": (image(4, 10, 10),),
    "norm_mlp": (vector(6),),
    "of several leaves": (image(4, 84, 84, name="obs.camera"), vector(3, name="obs.speed")),
}


def make(case: str, **settings: str) -> ActorCriticNetwork:
    torch.manual_seed(0)
    model = case if " " not in case else "nature_cnn"
    return make_model(model, CASES[case], discrete(5), **settings)


def rows(model: ActorCriticNetwork, *leading: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        leaf.name: torch.randint(0, 256, (*leading, *leaf.shape), dtype=torch.uint8)
        if leaf.kind == "image"
        else torch.randn(*leading, *leaf.shape)
        for leaf in model.leaves
    }


def learned(model: ActorCriticNetwork, threads: int) -> tuple[Tensor, list[Tensor]]:
    """What a pass over 7 rows gives, and the gradients."""
    model.learn_in(torch.float32, threads)
    model.zero_grad()
    logits, values = model.unroll(rows(model, 7, 1), None, torch.ones(7, 1, dtype=torch.bool))
    (logits.square().sum() + values.square().sum()).backward()
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None for grad in grads)
    return torch.cat([logits[:, 0], values], dim=1), [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("value_encoder", ["shared", "separate"])
@pytest.mark.parametrize("case", CASES)
def test_pieces_give_what_a_single_pass_does(case: str, value_encoder: str, threads: int) -> None:
    model = make(case, value_encoder=value_encoder)
    whole, whole_grads = learned(model, 1)
    cut, cut_grads = learned(model, threads)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(cut_grads, whole_grads, rtol=1e-4, atol=1e-5)


def test_the_same_gradients_each_time_to_the_last_bit() -> None:
    model = make("nature_cnn")
    first, *others = (learned(model, 3)[1] for _ in range(5))
    for grads in others:
        assert all(torch.equal(*pair) for pair in zip(first, grads, strict=True))


def test_bfloat16_is_that_of_a_single_pass() -> None:
    """In every piece: autocast is each thread's own."""
    model, features = make("nature_cnn"), {}
    for threads, precision in ((1, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16)):
        model.learn_in(precision, threads)
        with torch.no_grad():
            [found] = model.unroll_features(rows(model, 6, 1), None, torch.ones(6, 1) > 0)
        features[threads, precision] = found[:, 0]
    of_pieces = features[2, torch.bfloat16]
    exact, rounded = features[1, torch.float32], features[1, torch.bfloat16]
    for row in range(6):
        gap = (rounded[row] - exact[row]).abs().max()
        assert (of_pieces[row] - rounded[row]).abs().max() < 0.1 * gap


class Remembering(nn.Linear):
    """A user's encoder that notes in which threads it ran."""

    ran_in: list[int]

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(*obs_shape, 4)
        self.ran_in = []

    def forward(self, obs: Tensor) -> Tensor:
        self.ran_in.append(threading.get_ident())
        return super().forward(obs)


def test_a_users_encoder_has_one_thread() -> None:
    model = make_model(f"{__name__}:Remembering", (vector(6),), discrete(5))
    model.encoder.net.ran_in.clear()
    model.learn_in(torch.float32, 3)
    model.unroll(rows(model, 7, 1), None, torch.ones(7, 1, dtype=torch.bool))
    assert model.encoder.net.ran_in == [threading.get_ident()]


def test_a_copy_to_act_with_has_one_thread() -> None:
    model = make("nature_cnn")
    model.learn_in(torch.float32, 4)
    actor = model.inference_copy(torch.float32)
    calls: list[int] = []
    actor.encoder.register_forward_pre_hook(lambda *_: calls.append(threading.get_ident()))
    with torch.inference_mode():
        actor.step(rows(model, 4))
    assert calls == [threading.get_ident()]


@pytest.mark.parametrize(("num_rows", "num_threads"), [(7, 3), (2, 2), (1, 1)])
def test_each_piece_has_a_thread_of_its_own(num_rows: int, num_threads: int) -> None:
    """Of 3; with fewer rows there are fewer pieces. None is made before another has begun."""
    begun, encoder = threading.Barrier(num_threads), nn.Linear(2, 2)
    threads = set()
    pieces._helpers.cache_clear()  # new threads, which must not have torch's usual number
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def encode(piece: Tensor) -> Tensor:
        begun.wait(timeout=10)
        threads.add(threading.get_ident())
        assert torch.get_num_threads() == 1 or threading.current_thread() is threading.main_thread()
        features: Tensor = encoder(piece)
        return features

    x = torch.randn(num_rows, 2)
    features = encode_in_pieces(encode, x, encoder.parameters(), 3)
    torch.set_num_threads(before)
    torch.testing.assert_close(features, encoder(x))
    assert len(threads) == num_threads
    assert threading.get_ident() in threads


def test_without_gradients_none_are_kept() -> None:
    encoder = nn.Linear(2, 2)
    x = torch.randn(4, 2)
    kept: list[bool] = []
    encoder.register_forward_hook(lambda *call: kept.append(call[2].requires_grad))
    with torch.no_grad():
        features = encode_in_pieces(encoder, x, encoder.parameters(), 2)
    assert not features.requires_grad
    assert kept == [False, False]  # in neither thread
    fixed = encode_in_pieces(encoder.requires_grad_(False), x, encoder.parameters(), 2)
    assert not fixed.requires_grad
    torch.testing.assert_close(fixed, encoder(x))


def test_what_a_piece_raises_reaches_the_caller() -> None:
    def encode(piece: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("row 3 is odd")
        return piece

    with pytest.raises(ValueError, match="row 3 is odd"):
        encode_in_pieces(encode, torch.zeros(4, 2), [], 2)
