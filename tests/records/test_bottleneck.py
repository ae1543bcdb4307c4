"""What limits a run, by where the time of its components went."""

import pytest

from sfrl.records.bottleneck import bottleneck_of, limit_of, limiting_components
from sfrl.records.timing import COMPONENT_STAGES


@pytest.mark.parametrize(
    ("expected", "rollout", "policy", "learner", "wait_actions", "wait_slot"),
    [
        ("environments", 0.97, 0.5, 0.4, 0.03, 0.0),
        ("inference", 0.3, 0.95, 0.3, 0.7, 0.0),
        ("learning", 0.4, 0.2, 0.95, 0.1, 0.5),
        ("cores", 0.9, 0.4, 0.95, 0.05, 0.05),
        ("rollout", 0.5, 0.6, 0.3, 0.4, 0.1),
        ("learning", 0.5, 0.4, 0.7, 0.1, 0.4),
        ("learning", None, None, 0.9, None, None),  # others have not ended a stage
        (None, 0.1, None, None, 0.9, 0.0),  # policy workers still start
        (None, None, None, None, None, None),
    ],
)
def test_who_never_waits_is_what_the_others_wait_for(
    expected, rollout, policy, learner, wait_actions, wait_slot
):
    shares = {"rollout": rollout, "policy": policy, "learner": learner}
    record = {f"{component}/working": shares[component] for component in COMPONENT_STAGES}
    record["rollout/env_step"] = 0.6 * rollout if rollout else None
    record |= {"rollout/wait_actions": wait_actions, "rollout/wait_slot": wait_slot}
    assert bottleneck_of(record) == expected
    components = {
        "environments": ["rollout"],
        "inference": ["policy"],
        "learning": ["learner"],
        "cores": ["rollout", "learner"],
        "rollout": ["rollout"],
        None: [],
    }
    assert limiting_components(record) == components[expected]


def test_what_rollout_workers_do_beside_their_environments_may_be_the_limit():
    record = {"rollout/working": 0.9, "policy/working": 0.5, "learner/working": 0.4}
    assert bottleneck_of(record | {"rollout/env_step": 0.5}) == "environments"
    assert bottleneck_of(record | {"rollout/env_step": 0.4}) == "python"
    assert limiting_components(record | {"rollout/env_step": 0.4}) == ["rollout"]


def test_one_thread_that_does_all_lacks_no_cores():
    record = {f"{component}/working": 1.0 for component in COMPONENT_STAGES}
    assert limit_of(record, is_serial=False) == "limited by the cores"
    assert limit_of(record, is_serial=True).startswith("limited by one thread")
    assert limit_of({}, is_serial=True) is None
