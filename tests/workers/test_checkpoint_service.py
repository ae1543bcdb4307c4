"""Whoever writes a checkpoint says so, also while it waits for another one's disk."""

from contextlib import contextmanager

from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, CheckpointSaved
from sfrl.records.metrics import RunMetrics
from sfrl.run.roles import make_learner


def test_one_that_waits_for_anothers_disk_counts_as_saving(make_shared):
    sizes = {"num_workers": 2, "num_splits": 1, "slots_per_split": 1, "envs_per_worker": 2}
    rounds = {"rollout_length": 4, "batch_size": 8, "minibatches": 1, "epochs": 1}
    a3c = {"system": "a3c", "loss": "vtrace", "optimizer": "rmsprop", "frameskip": 1}
    shared = make_shared(env="CartPole-v1", model="mlp", **a3c, **sizes, **rounds)
    reports, requests = Mailbox(), Mailbox()
    make_learner(shared, reports, requests, None, 0)
    shared.progress.saving[1] = True  # of a predecessor that was killed in the midst of it
    second = make_learner(shared, reports, requests, None, 1)
    assert not shared.progress.is_saving
    waited = []

    @contextmanager
    def another_saves():
        waited.append(shared.progress.saving.tolist())
        yield

    second.checkpoints._alone = another_saves()
    assert not second.step()
    assert waited == []
    requests.put(CheckpointRequest(RunMetrics().state(), None))
    second.step()
    assert waited == [[0, 1]]
    assert not shared.progress.is_saving
    assert any(isinstance(report, CheckpointSaved) for report in reports.get_all())
