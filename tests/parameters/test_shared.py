"""Weights that several learners own together: one block, edited by all of them."""

import pickle
import threading

import pytest
import torch
from torch import nn

from sfrl.algorithms import make_algorithm
from sfrl.ipc.shared_memory import Stopped
from sfrl.parameters.shared import SharedParameters
from tests.tiny_encoder import Counting

SIZES = {
    "env": "CartPole-v1",
    "frameskip": 1,
    "model": "mlp",
    "num_workers": 2,
    "num_splits": 1,
    "envs_per_worker": 2,
    "slots_per_split": 1,
    "rollout_length": 4,
    "batch_size": 8,
    "minibatches": 1,
    "value_encoder": "separate",
}
A3C = {**SIZES, "system": "a3c", "epochs": 1, "loss": "vtrace", "optimizer": "rmsprop"}


def unchanged(model, applied):
    pass


class Learner:
    """Of a process of its own: all that is shared has crossed."""

    def __init__(self, shared, index, seed=0):
        block, stop, target = pickle.loads(
            pickle.dumps((shared.block, shared.stop, shared.target_weights))
        )
        torch.manual_seed(seed)
        self.model = make_algorithm(shared.config, shared.env).make_model()
        args = shared.config, self.model, block, index, stop, target
        self.parameters = SharedParameters(*args)

    def step(self, generator, scale=1.0):
        """A loss whose gradient is random."""
        weights = list(self.model.parameters())
        loss = sum((w * scale * torch.randn(w.shape, generator=generator)).sum() for w in weights)
        return self.parameters.step(loss, unchanged)

    def of_block(self):
        return {n: t.clone() for n, t in self.parameters.shared_model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.mark.parametrize("statistics", ["shared", "private"])
@pytest.mark.parametrize("updates", ["racy", "locked"])
def test_one_writers_steps_are_those_of_rmsprop_in_one_process(make_shared, updates, statistics):
    """To the last bit. With epsilon inside the root, which torch's RMSprop has not."""
    shared = make_shared(
        **A3C, updates=updates, optimizer_statistics=statistics, optimizer_eps=0.01
    )
    learner = Learner(shared, 0)
    learner.parameters.publish(0)
    torch.manual_seed(0)
    model = make_algorithm(shared.config, shared.env).make_model()
    networks = [list(network) for network in model.networks()]
    squares = {p: torch.zeros_like(p) for network in networks for p in network}
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    for rate in torch.linspace(1e-2, 1e-3, 50).tolist():
        learner.parameters.set_learning_rate(rate)
        learner.parameters.pull()
        assert learner.step(generators[0]).applied
        weights = list(model.parameters())
        loss = sum((w * torch.randn(w.shape, generator=generators[1])).sum() for w in weights)
        model.zero_grad()
        loss.backward()
        for network, factor in zip(networks, (1.0, 3.0), strict=True):
            nn.utils.clip_grad_norm_(network, shared.config.max_grad_norm)
            for weight in network:
                d = weight.grad
                squares[weight].mul_(0.99).addcmul_(d, d, value=1 - 0.99)
                root = (squares[weight] + 0.01).sqrt()
                weight.data.addcdiv_(d, root, value=-rate * factor)
    assert same(learner.of_block(), model.state_dict())
    learner.parameters.pull()
    assert same(learner.model.state_dict(), model.state_dict())


def test_a_copy_stays_as_it_was_pulled_while_others_move_the_block(make_shared):
    shared = make_shared(**A3C)
    first, second = Learner(shared, 0), None
    first.parameters.publish(0)
    second = Learner(shared, 1, seed=5)
    assert same(first.of_block(), second.of_block()), (
        "who comes later finds the first one's weights"
    )
    second.parameters.pull()
    before = {n: t.clone() for n, t in second.model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    first.step(generator)
    assert same(second.model.state_dict(), before)
    after_first = second.of_block()
    assert not same(after_first, before)
    second.step(generator)  # a gradient of the old weights, applied to the new
    assert not same(first.of_block(), after_first)
    assert same(first.of_block(), second.of_block())
    assert same(second.model.state_dict(), before)


@pytest.mark.parametrize("statistics", ["shared", "private"])
def test_means_of_squares_are_everybodys_or_each_ones_own(make_shared, statistics):
    """After another's large gradients the same small one moves less, if they are shared."""
    moved = {}
    for with_other in (False, True):
        shared = make_shared(**A3C, optimizer_statistics=statistics, max_grad_norm=1e6)
        first, second = Learner(shared, 0), None
        first.parameters.publish(0)
        second = Learner(shared, 1)
        if with_other:
            first.step(torch.Generator().manual_seed(1), scale=100.0)
        before = second.of_block()
        second.step(torch.Generator().manual_seed(2))
        after = second.of_block()
        moved[with_other] = sum(float((after[n] - before[n]).abs().sum()) for n in after)
    ratio = moved[True] / moved[False]
    assert ratio < 0.1 if statistics == "shared" else ratio == pytest.approx(1, rel=1e-4)


def test_no_locked_update_is_lost(make_shared):
    """Two learners at once, each of whose steps takes 1 from every number."""
    hogwild = {**SIZES, "system": "hogwild", "epochs": 1, "loss": "vtrace", "optimizer": "sgd"}
    # As hogwild, which has no lock, but with one.
    settings = {**hogwild, "system": "a3c", "optimizer": "rmsprop", "updates": "locked"}
    shared = make_shared(**settings, max_grad_norm=1e9, rnn="gru", rnn_size=512)
    learners = [Learner(shared, 0), None]
    learners[0].parameters.publish(0)
    learners[1] = Learner(shared, 1)
    before = learners[0].parameters._weights.clone()

    def work(learner):
        learner.parameters._is_rmsprop = False
        learner.parameters.set_learning_rate(1.0)
        learner.parameters._factors = (1.0, 1.0)
        for _ in range(50):
            loss = sum(weight.sum() for weight in learner.model.parameters())
            learner.parameters.step(loss, unchanged)

    threads = [threading.Thread(target=work, args=(learner,)) for learner in learners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moved = before - learners[0].parameters._weights
    torch.testing.assert_close(moved, torch.full_like(moved, 100.0), rtol=0, atol=1e-3)


def test_a_loss_that_is_not_finite_leaves_the_block_alone(make_shared):
    shared = make_shared(**A3C)
    learner = Learner(shared, 0)
    learner.parameters.publish(0)
    before = learner.of_block()
    loss = next(learner.model.parameters()).sum() * float("nan")
    assert not learner.parameters.step(loss, unchanged).applied
    assert same(learner.of_block(), before)


def test_a_loss_without_rows_leaves_the_block_alone(make_shared):
    learner = Learner(make_shared(**A3C), 0)
    learner.parameters.publish(0)
    before = learner.of_block()
    loss = next(learner.model.parameters()).sum()
    applied, _ = learner.parameters.step(loss, unchanged, has_rows=torch.tensor(False))
    assert not applied
    assert same(learner.of_block(), before)


def test_the_others_wait_for_the_first_and_its_successor_changes_nothing(make_shared):
    shared = make_shared(**A3C)
    made = []
    waiting = threading.Thread(target=lambda: made.append(Learner(shared, 1)))
    waiting.start()
    waiting.join(0.3)
    assert not made
    Learner(shared, 0)  # is killed before it says that there are weights
    first = Learner(shared, 0, seed=3)
    first.parameters.publish(0)
    waiting.join(10)
    assert made
    before = first.of_block()
    successor = Learner(shared, 0, seed=4)
    assert same(successor.of_block(), before)


def test_waiting_ends_with_the_run(make_shared):
    shared = make_shared(**A3C)
    shared.stop.set()
    with pytest.raises(Stopped):
        Learner(shared, 1)


def test_a_checkpoint_has_the_block_whoever_writes_it(make_shared):
    shared = make_shared(**A3C)
    first, second = Learner(shared, 0), None
    first.parameters.publish(0)
    second = Learner(shared, 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        first.step(generator)
    state = second.parameters.state()
    assert same(state["model"], first.of_block())
    assert not same(state["model"], second.model.state_dict())
    for name, weights in state["model"].items():  # else a file has the block with each of them
        assert weights.untyped_storage().nbytes() == weights.nbytes, name
    first.step(generator)
    assert not same(state["model"], first.of_block()), "what was saved does not change any more"

    later = Learner(make_shared(**A3C), 0, seed=9)
    later.parameters.load_state(state)
    assert same(later.of_block(), state["model"])
    assert torch.equal(later.parameters._squares, state["optimizer"]["squares"])
    with pytest.raises(ValueError, match=r"squares \[3\] of weights"):
        later.parameters.load_state({**state, "optimizer": {"squares": torch.zeros(3)}})


def test_a_checkpoint_has_the_buffers_of_whoever_writes_it(make_shared):
    """Not those of the model's beginning."""
    first, second = (
        make_shared(**A3C | {"model": "tests.tiny_encoder:Counting"}, seed=seed) for seed in (1, 2)
    )
    writer, reader = Learner(first, 0), Learner(second, 0)
    for learner in (writer, reader):
        learner.parameters.publish(0)
    for encoder in writer.model.modules():
        if isinstance(encoder, Counting):
            encoder.passes = encoder.passes + 7  # another tensor, which the copy has not
    state = writer.parameters.state()
    names = {name for name in state["model"] if name.endswith("passes")}
    assert len(names) == 2
    assert all(state["model"][name] >= 7 for name in names)
    reader.parameters.load_state(state | {"counters": {"learner_steps": 0}})
    assert all(reader.model.state_dict()[name] == state["model"][name] for name in names)


def test_the_first_renews_the_target_of_all(make_shared):
    sizes = {name: value for name, value in SIZES.items() if name != "value_encoder"}
    settings = {**sizes, "system": "async-qn", "epochs": 1, "optimizer": "rmsprop"}
    shared = make_shared(**settings, target_every=5)
    first, second = Learner(shared, 0), None
    first.parameters.publish(0)
    second = Learner(shared, 1)
    generator = torch.Generator().manual_seed(1)
    first.step(generator)
    for learner, version in ((second, 5), (first, 4)):
        learner.parameters.publish(version)
        target = learner.parameters.target.state_dict()
        assert not same(target, first.of_block()), "not the second's to renew; not yet due"
    first.parameters.publish(6)
    for learner in (first, second):
        learner.parameters.publish(6)
        assert same(learner.parameters.target.state_dict(), first.of_block())
    first.step(generator)
    successor = Learner(shared, 0)
    assert same(successor.parameters.target.state_dict(), second.parameters.target.state_dict())
    successor.parameters.publish(9)
    assert not same(successor.parameters.target.state_dict(), first.of_block()), "due at 10 again"


def test_what_edits_weights_after_a_step_edits_the_block(make_shared):
    """Filters' weights keep a mean of 0 (`CenteredCNN`)."""
    shared = make_shared(**A3C | {"env": "Pong", "frameskip": 4, "model": "a3c_cnn"})
    learner = Learner(shared, 0)
    learner.parameters.publish(0)
    generator = torch.Generator().manual_seed(1)
    weights = list(learner.model.parameters())
    loss = sum((w * torch.randn(w.shape, generator=generator)).sum() for w in weights)
    learner.parameters.step(loss, lambda model, applied: model.center_weights(applied))
    filters = [w for n, w in learner.of_block().items() if n.endswith("weight") and w.ndim == 4]
    assert filters
    for weight in filters:
        assert weight.mean(dim=(1, 2, 3)).abs().max() < 1e-6
