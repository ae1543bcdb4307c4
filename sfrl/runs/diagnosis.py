"""What is wrong with a run, in plain words: a list of small rules, each a function of its record.

A rule looks at the last quarter of what was learned, unless it says otherwise, so that a fault of
the start does not count for ever. docs/runs.md has a table of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from sfrl import envs
from sfrl.records.run_folder import FAILED
from sfrl.runs.reader import Run
from sfrl.systems import DEFAULT_SYSTEM, SYSTEMS

_WINDOW = 100  # episodes of a score
_LONG = 5_000  # decisions: 5.5 minutes of an Atari game, whose random players lose sooner
# The mean of 100 returns varies by about 2% of their range: this is no accident.
_NOISE = 0.1
_LOST = 0.5  # of the rise; the 58 runs in docs/curves had lost a third of it at most in the end
_YOUNG = 0.05  # of --train-frames: until then a score may still rise
_EXPLORES = 0.05  # of the highest entropy; Pong and CartPole are won at a fifth of it and more
_GROWS = 10.0  # times the first quarter's value loss, which is mostly the largest
_EXPLAINS = 0.5  # explained variance: from here on values follow their targets
_CLIPPED = 0.3  # of rows; 0.05 to 0.2 is usual
_FEW = 20.0  # optimizer steps of lag that are comfortable anywhere
_ROUNDS = 4.0  # in which a row is learned from, at the latest, in a run in order
_DROPPED = 0.01  # of all rows
_WAITS = 0.5  # of a process's time
_BUSY = 0.8

_SO_FAR = re.compile(r"NaN or infinity.*\(so far: (\d+)\)", re.S)
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception)\b.*", re.M)  # the line that a traceback ends with


class Finding(NamedTuple):
    """Something that is wrong, or seems so."""

    name: str  # of its rule
    what: str  # in plain words
    figure: str  # what the run has
    rule: str  # from where on that counts
    remedy: str  # the flag to try, and what for


Rule = Callable[[Run], Finding | None]


def diagnose(run: Run) -> list[Finding]:
    """What the rules find, in their order; [] if the run is well, or too young to tell."""
    return [finding for rule in RULES if (finding := rule(run)) is not None]


# --- what has happened to it ---


def _failed(run: Run) -> Finding | None:
    if run.state != "failed":
        return None
    [*_, message] = [text for text in run.messages if text.startswith(FAILED)] or [""]
    return Finding(
        "failed",
        "The run has ended by a failure.",
        _cause(message.removeprefix(FAILED)),
        f"the log tells of one ('{FAILED.strip()}')",
        f"mend what log.txt tells of; {_going_on(run)}",
    )


def _cause(message: str) -> str:
    """Its first line, and the last error of the tracebacks in it."""
    first, *_ = message.splitlines() or ["the log does not say why"]
    errors = _ERROR.findall(message)
    return f"{first} {errors[-1]}" if errors and errors[-1] not in first else first


def _killed(run: Run) -> Finding | None:
    if run.state != "killed":
        return None
    return Finding(
        "killed",
        "The run was killed, or its machine stopped: it has not told how it ended.",
        f"the log's last message: {run.messages[-1].splitlines()[0] if run.messages else ''}",
        "no trainer has the folder, and the log tells of no end",
        f"{_going_on(run)}; if it was the kernel for want of memory (dmesg tells), lower "
        f"--num-workers or --envs-per-worker",
    )


def _going_on(run: Run) -> str:
    if run.checkpoints:
        return "--resume goes on from the last checkpoint"
    if run.settings:
        return "it has no checkpoint yet, so --config starts anew from its config.json"
    return "it has left nothing but its log: start it anew, with the flags that it had"


def _nan(run: Run) -> Finding | None:
    skipped = run.latest("skipped_steps") or 0
    given = [int(match[1]) for text in run.messages if (match := _SO_FAR.search(text))]
    figures = [f"the environment has given it at least {max(given)} times"] if given else []
    if skipped:
        figures.append(f"skipped_steps is {skipped:.0f}")
    if not figures:
        return None
    return Finding(
        "nan",
        "NaN or infinity comes up.",
        "; ".join(figures),
        "more than 0",
        "the environment's: --on-nan=stop ends the run there, and log.txt names the step; skipped "
        "steps alone: lower --learning-rate",
    )


def _restarts(run: Run) -> Finding | None:
    restarts = run.latest("worker_restarts") or 0
    if not restarts:
        return None
    causes = [_cause(text) for text in run.messages if "starting it again" in text]
    lost = run.latest("discarded_steps") or 0
    return Finding(
        "restarts",
        "Rollout workers die or hang, and are started again.",
        f"worker_restarts is {restarts:.0f}, and {lost:.0f} decisions are lost"
        + (f"; at last: {causes[-1]}" if causes else ""),
        "more than 0",
        "mend the environment, whose traceback log.txt has; raise --env-timeout if it is only "
        "slow now and then",
    )


def _endless(run: Run) -> Finding | None:
    environments = run.number("num_workers") * run.number("envs_per_worker")
    steps = (run.latest("env_steps") or 0) / max(environments, 1)
    if run.latest("episodes") != 0 or steps < _LONG:
        return None
    return Finding(
        "episodes-never-end",
        "No episode has ended yet, so there is no score.",
        f"{steps:,.0f} decisions of each environment, and no end",
        f"{_LONG:,} or more without one",
        _advice(
            run,
            wrappers="a limit: --wrappers='TimeLimit{\"max_episode_steps\":1000}', or "
            "max_episode_steps where the environment is registered",
            max_episode_frames="a lower --max-episode-frames",
        ),
    )


# --- what it learns ---


class _Scores(NamedTuple):
    """Means of `_WINDOW` episodes, oldest first, and the extremes of single ones."""

    means: list[float]
    lowest: float
    highest: float

    @property
    def noise(self) -> float:
        return _NOISE * (self.highest - self.lowest)

    @property
    def singles(self) -> str:
        return f"single episodes have {self.lowest:.4g} to {self.highest:.4g}"


def _advice(run: Run, **remedies: str) -> str:
    """Those remedies, by their setting's name, with which the run could begin anew."""
    return "; ".join(remedy for name, remedy in remedies.items() if _can_change(run, name))


def _can_change(run: Run, name: str) -> bool:
    """Whether its system and its game take another value; True if its settings are unknown."""
    settings = run.settings
    if not settings:
        return True
    is_atari, has_memory = envs.atari_game(run.env) is not None, "replay_size" in settings
    correction = settings.get("correction")
    has_no_use = {
        "ppo_clip": settings.get("loss") == "vtrace",
        "loss": settings.get("loss") == "vtrace" or correction in ("decoupled", "impact", "filter"),
        "frameskip": not is_atari,
        "max_episode_frames": not is_atari,
        "wrappers": is_atari,
        "threads_per_worker": is_atari,
        "frame_stack": is_atari or settings.get("frame_stack", 1) != 1,
        "rnn": has_memory
        or settings.get("rnn", "none") != "none"
        or correction in ("decoupled", "impact"),
        "tune": has_memory or not SYSTEMS.get(run.system, SYSTEMS[DEFAULT_SYSTEM]).is_tuned,
        "epochs": settings.get("epochs") == 1,
        "slots_per_split": settings.get("slots_per_split") == 1,
        "forced_lag": not settings.get("forced_lag"),
    }
    system = SYSTEMS.get(run.system)
    is_fixed = system is not None and name in system.fixed
    return name in settings and not is_fixed and not has_no_use.get(name, False)


def _scores(run: Run) -> _Scores | None:
    """None: too few episodes have ended."""
    if (run.latest("episodes") or 0) < 3 * _WINDOW:
        return None
    scored = [record for record in run.records if (record.get("episodes") or 0) >= _WINDOW]

    def of_scored(name: str) -> list[float]:
        return [value for record in scored if (value := record.get(name)) is not None]

    means, highs, lows = map(
        of_scored, ("episode_return_mean", "episode_return_max", "episode_return_min")
    )
    return _Scores(means, min(lows), max(highs)) if means and highs and lows else None


def _fell(run: Run) -> Finding | None:
    scores, best = _scores(run), run.latest("best_episode_return_mean")
    if scores is None or best is None:
        return None
    first, now = scores.means[0], scores.means[-1]
    if best - now <= max(scores.noise, _LOST * (best - first)):
        return None
    return Finding(
        "score-fell",
        "The score has collapsed: it was far higher before.",
        f"{now:.4g} now, {best:.4g} at best, {first:.4g} at first; {scores.singles}",
        f"more than {_LOST:.0%} of the rise is lost, and {_NOISE:.0%} of that range",
        _advice(
            run,
            learning_rate="a third of the --learning-rate",
            epochs="fewer --epochs",
            ppo_clip="a smaller --ppo-clip",
            max_grad_norm="a smaller --max-grad-norm",
        )
        + "; checkpoints/best.pt has the best weights",
    )


def _flat(run: Run) -> Finding | None:
    is_young = (run.latest("env_frames") or 0) < _YOUNG * run.number("train_frames")
    scores = _scores(run)
    if is_young or scores is None or _fell(run):
        return None
    recent = scores.means[-max(1, len(scores.means) // 4) :]
    first, now = scores.means[0], sum(recent) / len(recent)
    if now - first > scores.noise:
        return None
    return Finding(
        "score-flat",
        "The score has not risen since the start.",
        f"{first:.4g} at first, {now:.4g} in the last quarter; {scores.singles}",
        f"a rise of less than {_NOISE:.0%} of that range, after {_YOUNG:.0%} of --train-frames and "
        f"{3 * _WINDOW} episodes",
        _advice(
            run,
            entropy_coef="--entropy-coef three times as high where rewards are rare",
            learning_rate="--learning-rate a third or three times",
            frame_stack="--frame-stack=4 if one observation does not tell enough",
            rnn="--rnn=gru if something has to be remembered",
        ),
    )


def _entropy(run: Run) -> Finding | None:
    now, all_of_it = run.quarter("entropy"), run.values("entropy")
    # That of numbers has no lowest value, and sac holds its own.
    if now is None or min(all_of_it) < 0 or _algorithm(run) != "actor_critic":
        return None
    if now >= _EXPLORES * max(all_of_it):
        return None
    return Finding(
        "entropy-gone",
        "The policy hardly explores any more: it does nearly always the same.",
        f"entropy is {now:.2g} nats, and was up to {max(all_of_it):.2g}",
        f"below {_EXPLORES:.0%} of the highest",
        "raise --entropy-coef, or lower --learning-rate; nothing is wrong if the score is as high "
        "as it can be",
    )


def _value_loss(run: Run) -> Finding | None:
    first, now = run.quarter("value_loss", 0), run.quarter("value_loss")
    explained = run.quarter("explained_variance")
    if first is None or now is None or now <= _GROWS * first:
        return None
    if explained is not None and explained > _EXPLAINS:
        return None
    told = "" if explained is None else f"; explained_variance is {explained:.2g}"
    remedies = {"learning_rate": "lower --learning-rate"}
    if run.settings.get("value_encoder") == "separate":
        remedies["value_lr_factor"] = "lower --value-lr-factor"
    if not run.settings.get("normalize_returns"):
        remedies["normalize_returns"] = "--normalize-returns if rewards are large"
    remedies["target_every"] = "raise --target-every"
    return Finding(
        "value-loss-diverging",
        "The value estimates do not follow the returns: their loss grows.",
        f"value_loss was {first:.3g} in the first quarter, and is {now:.3g}{told}",
        f"more than {_GROWS:.0f} times as large, and less than {_EXPLAINS:g} explained",
        _advice(run, **remedies),
    )


def _clipped(run: Run) -> Finding | None:
    clipped = run.quarter("ppo_clipped_fraction")
    if clipped is None or clipped <= _CLIPPED or run.settings.get("loss") != "appo":
        return None
    return Finding(
        "clip-fraction-high",
        "The policy moves too far between acting and learning: PPO's clip stops much of it.",
        f"ppo_clipped_fraction is {clipped:.2f}",
        f"above {_CLIPPED:g}; 0.05 to 0.2 is usual",
        _advice(run, learning_rate="lower --learning-rate", epochs="fewer --epochs"),
    )


def _lag(run: Run) -> Finding | None:
    if "replay_size" in run.settings:
        return None  # it is the memory's age
    lag, dropped = run.quarter("policy_lag_mean"), run.latest("dropped_rows") or 0
    rows = (run.latest("env_steps") or 0) * run.number("epochs")
    decisions = (
        run.number("num_workers") * run.number("envs_per_worker") * run.number("rollout_length")
    )
    a_round = decisions * run.number("epochs") / max(run.number("batch_size"), 1)
    is_old = lag is not None and lag > max(_FEW, _ROUNDS * a_round)
    if not is_old and dropped <= _DROPPED * rows:
        return None
    return Finding(
        "lag-high",
        "It learns from old data: the policy that acted is far behind.",
        f"policy_lag_mean is {lag or 0:.0f} optimizer steps; a round of all environments takes "
        f"{a_round:.0f}; dropped_rows is {dropped:,.0f}",
        f"above {_FEW:.0f} steps and {_ROUNDS:.0f} rounds, or {_DROPPED:.0%} of all rows dropped",
        _advice(
            run,
            slots_per_split="lower --slots-per-split",
            forced_lag="--forced-lag=0",
            envs_per_worker="fewer --envs-per-worker",
            epochs="fewer --epochs",
            loss="--loss=vtrace stands more of it",
        ),
    )


# --- what its time goes to ---


def _learner_bound(run: Run) -> Finding | None:
    waits, works = run.quarter("rollout/wait_slot"), run.quarter("learner/working")
    if waits is None or works is None or waits <= _WAITS or works <= _BUSY:
        return None
    return Finding(
        "learner-bound",
        "The learner limits this run: the rollout workers wait for it.",
        f"rollout/wait_slot is {waits:.0%} of their time; the learner works {works:.0%} of its own",
        f"above {_WAITS:.0%} and {_BUSY:.0%}",
        _advice(
            run,
            epochs="fewer --epochs",
            batch_size="a larger --batch-size",
            device="--device=cuda if there is a GPU",
            torch_threads="more --torch-threads if cores are free",
            tune="--tune=now measures what suits this machine",
        ),
    )


def _environment_slow(run: Run) -> Finding | None:
    steps, waits = run.quarter("rollout/env_step"), run.quarter("learner/wait_trajectories")
    if steps is None or waits is None or steps <= _BUSY or waits <= _WAITS:
        return None
    decisions_of_frame = (run.latest("env_steps") or 0) / (run.latest("env_frames") or 1)
    decisions_per_s = decisions_of_frame * (run.quarter("frames_per_s") or 0)
    num_workers = max(1, run.number("num_workers"))
    step_ms = 1e3 * steps * num_workers / (decisions_per_s or math.inf)
    return Finding(
        "environment-slow",
        "The environment limits this run: the learner waits for it.",
        f"rollout/env_step is {steps:.0%} of the workers' time, about {step_ms:.2g} ms for a "
        f"decision; the learner waits {waits:.0%} of its own",
        f"above {_BUSY:.0%} and {_WAITS:.0%}",
        _advice(
            run,
            threads_per_worker="--threads-per-worker if it waits for something else than a core",
            num_workers="more --num-workers if cores are free",
            frameskip="a higher --frameskip",
        )
        + "; or a faster environment",
    )


def _algorithm(run: Run) -> str:
    return SYSTEMS.get(run.system, SYSTEMS[DEFAULT_SYSTEM]).algorithm


RULES: tuple[Rule, ...] = (
    *(_failed, _killed, _nan, _restarts, _endless),
    *(_flat, _fell, _entropy, _value_loss, _clipped, _lag),
    *(_learner_bound, _environment_slow),
)
