"""Rollout worker: environments -> rows of a slot -> action requests. Imports no torch."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.envs import OBS
from sfrl.envs.logs import own_logger
from sfrl.experience.trajectory_buffer import Owner, TrajectoryBuffer
from sfrl.ipc.channels import Channels
from sfrl.ipc.index_queue import IndexQueue, Message, QueueFullError, unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import EpisodeEnded, Report
from sfrl.ipc.progress import Progress
from sfrl.ipc.topology import Role
from sfrl.records.timing import ROLLOUT_STAGES, StageTimer
from sfrl.settings.config import Config

log = own_logger(__name__)

# Splits start this many times --rollout-length decisions apart, at most.
_MAX_STAGGER = 8
_STAGGER_S = 5.0  # of a worker's splits together, in which slow ones do not get as far apart
_LOOK_S = 0.0005  # how often is looked whether threads have stepped a split
_RESEND_S = 0.05  # how often a request that finds no room is put again


class Split:
    """A group of environments that step together, and the slot they write."""

    def __init__(
        self,
        index: int,
        config: Config,
        seed: Sequence[int] = (),  # beside the config's and the index, if it is not the first one
        stepping: NDArray[np.int64] | None = None,  # [1], see `VecEnv`
        free_slots: Iterable[int] = (),  # of its pool
        timer: StageTimer | None = None,  # ends a lap between making them and their first reset
    ) -> None:
        self.index = index
        self._name = config.env
        seeds = np.random.SeedSequence([config.seed, index, *seed])
        self.env = envs.make_vec_env(
            config.env,
            config.envs_per_split,
            int(seeds.generate_state(1)[0] >> 1),
            config.env_options,
            stepping=stepping,
        )
        if timer is not None:
            timer.lap("env_step")
        self.obs = self.env.reset()  # leaf -> [N, *shape], what the next row shows
        self.ended = np.zeros(config.envs_per_split, np.bool_)  # [N], the next row is no decision
        self.returns = np.zeros(config.envs_per_split, np.float64)  # [N], of the running games
        self.lengths = np.zeros(config.envs_per_split, np.int64)
        self.slot = -1  # -1: waits for a free one
        self.t = 0
        self.has_begun = False
        self.sent_s = 0.0  # when the actions were sent; with threads alone
        self.free_slots = deque(free_slots)

    def recv(self) -> tuple[envs.StepResult, list[EpisodeEnded]]:
        """Take the environments' answer to the actions sent, and the scores it completed."""
        result = self.env.recv()
        self.returns += result.rewards
        # A row that only reset is no step of an episode, and has no reward to learn from.
        self.lengths += ~self.ended
        result = result._replace(rewards=np.where(self.ended, np.float32(0), result.rewards))
        self.obs = result.obs
        self.ended, scored = result.ended, result.scored
        if not scored.any():
            return result, []
        first = self.index * len(self.ended)  # of its environments, among all of the run
        episodes = []
        for i in np.flatnonzero(scored).tolist():
            episode_return = float(self.returns[i])
            if not math.isfinite(episode_return):  # of a class of the user's, which nobody checks
                raise envs.NonFiniteError(
                    f"{self._name}: the rewards of an episode add up to {episode_return}, in "
                    f"environment {first + i}; let it give finite numbers"
                )
            info = envs.numbers_in(self.env.episode_info(i))
            episodes.append(EpisodeEnded(episode_return, int(self.lengths[i]), first + i, info))
        self.returns[scored] = 0
        self.lengths[scored] = 0
        return result, episodes

    _STATE = ("obs", "ended", "returns", "lengths", "slot", "t", "has_begun")

    def state(self) -> dict[str, Any] | None:
        """None if the environments cannot tell theirs."""
        env = self.env.state()
        if env is None:
            return None
        own = {name: copy.deepcopy(getattr(self, name)) for name in self._STATE}
        return {**own, "free_slots": list(self.free_slots), "env": env}

    def load_state(self, state: dict[str, Any]) -> None:
        self.env.load_state(state["env"])
        for name in self._STATE:
            setattr(self, name, state[name])
        if isinstance(state["obs"], np.ndarray):  # from when every observation was one array
            self.obs = {OBS: state["obs"]}
        self.free_slots = deque(state["free_slots"])


class RolloutWorker:
    """Steps its splits in turn: while one waits for its actions, another's environments work.

    A split's message comes back as it was put, (slot, t, generation): row t has its actions, or,
    with t = T, the learner is done with the whole slot.

    The same code starts a worker whose predecessor was killed, at whatever instruction. What that
    one had put is the learner's; all else that it had begun is discarded, and late answers to it
    are known by their generation.
    """

    def __init__(
        self,
        index: int,
        config: Config,
        buffer: TrajectoryBuffer,
        channels: Channels,
        progress: Progress,
        reports: Mailbox[Report],
    ) -> None:
        self.role = role = Role("rollout", index)
        self.buffer = buffer
        self.inbox = channels.inbox(role)
        topology = channels.topology
        slots, learner = topology.slots, topology.learner_of(role)
        self.trajectories = channels.outbox(role, learner)
        self.reports = reports
        self.rollout_length = config.rollout_length
        self.progress = progress
        self.timer = StageTimer(ROLLOUT_STAGES, progress.stage_seconds(role))
        restarts, stepping = int(progress.restarts[index]), progress.stepping[index]
        # What has died in the same process has lent nothing.
        is_alone = topology.process_of(role) != topology.process_of(learner)
        lent = self._inherit(slots.of_worker(index), from_living=is_alone) if restarts else set()
        # A worker that was started again, or a run that goes on, plays other episodes.
        earlier = (restarts, int(progress.env_steps[-1]))
        seed = earlier if any(earlier) else ()
        self.splits = [
            Split(
                split,
                config,
                seed,
                stepping[i : i + 1],
                [slot for slot in slots.of_split(split) if slot not in lent],
                self.timer,
            )
            for i, split in enumerate(slots.splits_of(index))
        ]
        self._by_slot = {s: split for split in self.splits for s in slots.of_split(split.index)}
        self._action_requests = {  # by split
            split.index: channels.outbox(role, Role("policy", slots.policy[split.index]))
            for split in self.splits
        }
        self.stepping: deque[Split] = deque()  # actions sent, oldest first
        # Of splits that step in threads, the first that is ready goes on. Serially the order stays.
        self._has_threads = config.threads_per_worker > 1 and not config.serial
        self._longest_s = config.env_timeout / 2
        self._has_predecessor = restarts > 0
        self._unsent: deque[Split] = deque()  # their requests find no room in the queue
        # A serial run with the same seed plays the same, however long that takes.
        share_s = math.inf if config.serial else _STAGGER_S / len(self.splits)
        for split in self.splits:
            if not restarts:
                self._stagger(split, config.seed, share_s)
            self._begin_slot(split)
        self.timer.lap("env_step")

    def _inherit(self, slots: list[int], *, from_living: bool) -> set[int]:
        """Those of a dead worker's slots that the learner has; discards what is in the others.

        It has those that were put and that it has not given back. They are among the last messages:
        the queue has room for all slots, and they come back in the order in which they were put.

        Args:
            from_living: the learner has a process of its own. One that died with the worker has
                none; its successor knows messages to it by their generation.
        """
        buffer, progress = self.buffer, self.progress
        self.inbox.get_many(2 * buffer.num_slots)  # answers to the dead: its queue must not fill up
        queue, producer = self.trajectories
        put = [unpack(message) for message in queue.recent(producer)] if from_living else []
        lent = {m.slot for m in put if buffer.is_current(m) and buffer.is_filled[m.slot]}
        num_discarded = 0
        for slot in slots:
            if slot not in lent:
                if buffer.is_filled[slot]:
                    num_discarded += int(progress.env_steps[slot] - progress.begun_steps[slot])
                progress.begun_steps[slot] = progress.env_steps[slot]
                buffer.reclaim(slot)
        log.info("%s discards %d decisions of its predecessor", self.role.name, num_discarded)
        return lent

    def _stagger(self, split: Split, seed: int, seconds: float) -> None:
        """Decorrelate start states: split i begins after i * T random decisions (i modulo 8).

        Within a split the random actions differ from environment to environment. Without this all
        environments would play the same phase of the game in the same training batch.

        Args:
            seconds: from the second row on; the first one may have to compile or load something.
        """
        rng = np.random.default_rng([seed, split.index])
        end_s = math.inf
        num_rows = split.index % _MAX_STAGGER * self.rollout_length
        for row in range(num_rows):
            if time.monotonic() > end_s:
                log.info(
                    "%s begins its split %d after %d random steps, and not after %d: they are slow",
                    *(self.role.name, split.index, row, num_rows),
                )
                return
            split.env.send(envs.random_actions(split.env.actions, split.obs, rng))
            split.recv()
            self.timer.lap("env_step")
            if row == 0:
                end_s = time.monotonic() + seconds

    def step(self) -> bool:
        """Send the actions that have come, then finish the split that has stepped longest.

        With threads it is the one of those that are ready.
        """
        if self._unsent:
            self._send_again()
        messages = self.inbox.get_many(self.buffer.num_slots)
        for message in messages:
            self._take(unpack(message))
        if not self.stepping:
            return bool(messages)
        split = self._next_ready() if self._has_threads else self.stepping.popleft()
        if split is None:
            return bool(messages)
        self.timer.lap("store")
        self._finish_step(split)
        return True

    def _next_ready(self) -> Split | None:
        """The split that has stepped longest of those that are ready, taken out of `stepping`.

        The worker waits in the end for one that is not: the watchdog sees that, not that one of
        several splits stands still.
        """
        oldest = self.stepping[0]
        if time.monotonic() - oldest.sent_s > self._longest_s:
            return self.stepping.popleft()
        for split in self.stepping:
            if envs.is_ready(split.env):
                self.stepping.remove(split)
                return split
        return None

    def _take(self, message: Message) -> None:
        slot, t, _ = message
        if not self.buffer.is_current(message):
            return  # to a worker that has died, about a slot that its successor has reclaimed
        split = self._by_slot[slot]
        if t < self.rollout_length:
            split.env.send(self.buffer.actions[slot, t])
            if self._has_threads:
                split.sent_s = time.monotonic()
            self.stepping.append(split)
        else:
            split.free_slots.append(slot)
            if split.slot < 0:
                self._begin_slot(split)

    def _finish_step(self, split: Split) -> None:
        buffer, slot, t = self.buffer, split.slot, split.t
        buffer.check_owner(slot, Owner.ROLLOUT_WORKER)
        result, episodes = split.recv()
        self.timer.lap("env_step")
        buffer.rewards[slot, t] = result.rewards
        buffer.terminated[slot, t] = result.terminated
        buffer.truncated[slot, t] = result.truncated
        self.progress.env_steps[slot] += int(buffer.valid[slot, t].sum())
        for episode in episodes:
            self.reports.put(episode)
        split.t = t + 1
        self._write_row(split)
        if split.t == self.rollout_length:
            # The slot is the learner's from the put on. The next one starts from the split's own
            # copy of the last observation, never from a slot that was given away.
            buffer.transfer(slot, Owner.ROLLOUT_WORKER, Owner.LEARNER)
            queue, producer = self.trajectories
            queue.put(buffer.message(slot, split.t), producer)
            self._begin_slot(split)
        else:
            self._request_actions(split)
        self.timer.lap("store")

    def _begin_slot(self, split: Split) -> None:
        if not split.free_slots:
            split.slot = -1  # back-pressure: the learner is behind
            return
        slot = split.free_slots.popleft()
        split.slot, split.t = slot, 0
        self.buffer.transfer(slot, Owner.FREE, Owner.ROLLOUT_WORKER)
        # In this order the accounts are right wherever between the lines the worker is killed.
        self.progress.begun_steps[slot] = self.progress.env_steps[slot]
        self.buffer.generation[slot] += 1
        self.buffer.starts[slot] = not split.has_begun
        split.has_begun = True
        self._write_row(split)
        self._request_actions(split)

    def _write_row(self, split: Split) -> None:
        for name, array in split.obs.items():
            self.buffer.obs[name][split.slot, split.t] = array
        self.buffer.valid[split.slot, split.t] = ~split.ended

    def _request_actions(self, split: Split) -> None:
        """Lend the row to the split's policy worker: its data is written, so put its index."""
        self.buffer.transfer(split.slot, Owner.ROLLOUT_WORKER, Owner.POLICY_WORKER)
        self._put_request(split)

    def _put_request(self, split: Split) -> None:
        queue, producer = self._action_requests[split.index]
        try:
            queue.put(self.buffer.message(split.slot, split.t), producer)
        except QueueFullError:
            if not self._has_predecessor:
                raise
            # Of requests that the dead have left, to a policy worker that is stopped itself.
            self._unsent.append(split)

    def _send_again(self) -> None:
        for _ in range(len(self._unsent)):
            self._put_request(self._unsent.popleft())

    def state(self) -> dict[str, Any] | None:
        """None if the environments cannot tell theirs."""
        splits = [split.state() for split in self.splits]
        if None in splits:
            return None
        return {"splits": splits, "stepping": [split.index for split in self.stepping]}

    def load_state(self, state: dict[str, Any]) -> None:
        for split, saved in zip(self.splits, state["splits"], strict=True):
            split.load_state(saved)
        by_index = {split.index: split for split in self.splits}
        self.stepping = deque(by_index[index] for index in state["stepping"])

    def wait(self, timeout_s: float, others: Sequence[IndexQueue] = ()) -> None:
        if self.stepping:  # in threads
            self.inbox.wait(_LOOK_S, others)
            self.timer.lap("env_step")
            return
        self.inbox.wait(_RESEND_S if self._unsent else timeout_s, others)
        self.waited()

    def waited(self) -> None:
        stalled = all(split.slot < 0 for split in self.splits)
        self.timer.lap("wait_slot" if stalled else "wait_actions")

    def close(self) -> None:
        for split in self.splits:
            split.env.close()
