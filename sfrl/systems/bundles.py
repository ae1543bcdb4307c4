"""What A3C's family has in common: a process plays, acts and learns, on weights that all share."""

from sfrl.systems.system import Fixed

DEFAULTS = {"rollout_length": 20, "envs_per_worker": 4}
RMSPROP = Fixed("rmsprop", "its means of squares are in the block")
FIXED = {
    "num_splits": Fixed(1, "splits share a copy, and one's unroll would begin within another's"),
    "slots_per_split": Fixed(1, "the next unroll would begin before its own gradient has landed"),
    "num_policy_workers": Fixed(1, "each process has one of its own"),
    "epochs": Fixed(1, "its copy is renewed for the next unroll"),
    "minibatches": Fixed(1, "its copy is renewed after one gradient"),
    "normalize_obs": Fixed(False, "running statistics are not in the block"),
    "precision": Fixed("float32", "a copy is the block's, number by number"),
    "device": Fixed("cpu", "the block is in shared memory"),
    "policy_devices": Fixed("", "it acts where it learns"),
    "torch_threads": Fixed(1, "there are as many learners as processes"),
}
