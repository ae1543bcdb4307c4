"""A trial as one page of text, for a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from sfrl.envs import EnvSpec, Leaf
from sfrl.envs.logs import printable
from sfrl.settings.config import Config
from sfrl.settings.machine import available_cores, machine
from sfrl.trial import verdict
from sfrl.trial.look import RULES, Look
from sfrl.trial.verdict import FRAMES, Curve, Trial

WIDTH, MAX_LINES = 80, 60
_CHART_WIDTH, _CHART_HEIGHT = 56, 7
_MAX_LEAVES = 6
_LOADED = 0.5  # of the cores
_SHORT_S = 0.5  # of play: too short for shares of it

_HEADS: dict[verdict.Verdict, str] = {
    "fine": "can be trained, and keeps the rules",
    "breaks rules": "can be trained, but breaks rules",
    "cannot be trained": "cannot be trained",
    "not known": "not tried to the end",
}


def page(trial: Trial) -> str:
    """At most `MAX_LINES` lines."""
    lines = [*_wrapped(f"{trial.env}: {_HEADS[trial.verdict]}", "")]
    if trial.reason is not None:
        lines += _wrapped(_shortened(trial.reason, 800), "  ")
    if trial.config is not None and trial.spec is not None:
        lines += ["", "What it is", *_what_it_is(trial, trial.config, trial.spec)]
    if trial.look is not None:
        lines += ["", *_rules(trial.look), *_play(trial.look, trial)]
    if (curve := trial.curve) is not None:
        lines += ["", *_learning(trial, curve), *_speed(trial, curve)]
    advice = verdict.advice(trial)
    if advice:
        lines += ["", "What to set"]
        for text, flag in advice:
            lines += _wrapped(text if flag is None else f"{text}: {flag}", "- ")
    if trial.verdict in ("fine", "breaks rules"):
        lines += ["", f"Next: {trial.command}"]  # in one line, to be copied
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], "(more with --json)"]
    return printable("\n".join(lines))


def _wrapped(text: str, indent: str, name: str = "") -> list[str]:
    """In lines of `WIDTH`; those after the first begin below what follows the indent and name."""
    first = f"{indent}{name:14}" if name else indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
    )


def _shortened(text: str, size: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else f"{text[: size - 4]} ..."


def _row(name: str, text: str) -> list[str]:
    return _wrapped(text, "  ", name)


def _what_it_is(trial: Trial, config: Config, spec: EnvSpec) -> Iterator[str]:
    seen = trial.look
    if seen is not None and seen.observation_space is not None:
        yield from _row("observations", _shortened(seen.observation_space, 130))
    if spec.kind == "atari":
        yield from _row("observations", "the game's screen, grey, made smaller, the last 4 of them")
    for leaf in spec.leaves[:_MAX_LEAVES]:
        yield from _row(leaf.name, leaf_in_words(leaf, config))
    if (more := len(spec.leaves) - _MAX_LEAVES) > 0:
        yield from _row("", f"and {more} more")
    if seen is not None and seen.action_space is not None:
        yield from _row("actions", _shortened(seen.action_space, 130))
    yield from _row("decided", actions_in_words(spec, config))
    if spec.frameskip > 1:
        yield from _row("frame skip", f"{spec.frameskip} frames for each decision")
    if seen is not None and seen.max_episode_steps is not None:
        yield from _row("time limit", f"{seen.max_episode_steps:,} decisions, as registered")
    yield from _row("learned by", f"{config.system}, {config.model}, {_returns(config)}")
    for text in trial.caveats:
        yield from _row("assumed", _shortened(text, 300))


def leaf_in_words(leaf: Leaf, config: Config) -> str:
    """What the network gets of it."""
    scaled = "as they are" if leaf.scale == 1 else f"divided by {leaf.scale:g}"
    shape = "x".join(map(str, leaf.shape))
    match leaf.kind:
        case "image":
            return f"an image [channels, height, width] of {shape}, {leaf.dtype}, {scaled}"
        case "vector":
            normal = ", in units of their deviation" if config.normalize_obs else ""
            return f"a vector of {shape} numbers, {leaf.dtype}, {scaled}{normal}"
        case "choice":
            sizes = ", ".join(map(str, leaf.sizes[:8])) + (", ..." if len(leaf.sizes) > 8 else "")
            return f"{shape} of {sizes} values, each with features of its own"
        case "mask":
            return f"which of the {shape} values are legal: others are never chosen"


def actions_in_words(spec: EnvSpec, config: Config) -> str:
    actions, parts = spec.actions, []
    if actions.choices:
        sizes = ", ".join(map(str, actions.choices[:8]))
        sizes += ", ..." if len(actions.choices) > 8 else ""
        parts.append(f"{_count(len(actions.choices), 'choice')} of {sizes} values")
    if actions.num_numbers:
        bounds = [*zip(actions.low, actions.high, strict=True)]
        bounded = sum(math.isfinite(low) and math.isfinite(high) for low, high in bounds)
        text = _count(actions.num_numbers, "number")
        if bounded:
            low, high = min(actions.low), max(actions.high)
            how = "by a tanh" if config.action_bounds == "tanh" else "clipped there"
            text += f", {bounded} with two bounds, within {low:g} to {high:g} ({how})"
        if bounded < len(bounds):
            text += f", {len(bounds) - bounded} without"
        parts.append(text)
    return "; ".join(parts)


def _returns(config: Config) -> str:
    if config.reward_clip != "none":
        rewards = f"rewards by their {config.reward_clip}"
    elif getattr(config, "normalize_returns", False):
        rewards = "returns normalized"
    else:
        rewards = "rewards as they are"
    return f"gamma {config.gamma:g}, {rewards}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _rules(seen: Look) -> Iterator[str]:
    broken = {
        problem.rule: "see above" if problem.is_fatal else _shortened(problem.text, 400)
        for problem in seen.problems
    }
    kept = [rule for rule in seen.checked if rule not in broken]
    if not broken:
        yield f"Rules: all {len(kept)} kept ({', '.join(kept)})"
        return
    yield f"Rules: {len(broken)} broken, {len(kept)} kept"
    for rule, text in broken.items():
        yield from _wrapped(f"{RULES[rule]}: {text}", "- ")


def _play(seen: Look, trial: Trial) -> Iterator[str]:
    if not seen.decisions:
        return
    yield ""
    yield f"Random play: {seen.decisions:,} decisions in {seen.seconds:.1f} s, one process"
    random = trial.random
    if random is None:
        yield from _row("episodes", "none ended")
    else:
        interval = "" if random.interval is None else f" +/- {random.interval:.2g} (95%)"
        low, high = min(seen.returns), max(seen.returns)
        yield from _row(
            "return",
            f"{_number(random.mean)}{interval} in {_count(len(seen.returns), 'episode')}, "
            f"{_number(low)} to {_number(high)}",
        )
        mean = sum(seen.lengths) / len(seen.lengths)
        yield from _row(
            "length",
            f"{mean:,.1f} decisions, {min(seen.lengths):,} to {max(seen.lengths):,}; "
            f"{seen.terminated:,} terminated, {seen.truncated:,} cut off",
        )
    rewards = f"{_number(seen.reward_low)} to {_number(seen.reward_high)}, "
    yield from _row(
        "reward", f"{rewards}not 0 in {seen.rewarded / seen.decisions:.2%} of decisions"
    )
    resets = ""
    if seen.resets:
        resets = f"; a reset {_time(seen.reset_seconds / seen.resets)}"
    waits = f"; it waits {seen.idle:.0%} of the time" if seen.seconds > _SHORT_S else ""
    yield from _row("time", f"a step {_time(verdict.step_us(seen) / 1e6)}{resets}{waits}")


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _learning(trial: Trial, curve: Curve) -> Iterator[str]:
    if curve.score is None:
        yield f"Training: {curve.frames:,} frames in {curve.seconds:.0f} s, no episode has ended"
        yield from _wrapped(_missing(trial, curve), "  ", "no curve")
        return
    better = {True: "better than random play", False: "not yet better than random play"}
    against = f", {better[curve.is_better]}" if curve.is_better is not None else ""
    yield (
        f"Training: score {_number(curve.score)} after {curve.frames:,} frames in "
        f"{curve.seconds:.0f} s{against}"
    )
    yield from chart(curve, trial.random.mean if trial.random else None)


def _missing(trial: Trial, curve: Curve) -> str:
    """How long until episodes end, by the length that they have in random play."""
    seen, training, spec = trial.look, trial.training, trial.spec
    if not (seen and seen.lengths and training and training.environments and spec):
        return "not even in random play: a longer trial may help (--seconds)"
    length = sum(seen.lengths) / len(seen.lengths)
    frames = length * training.environments * spec.frameskip
    told = (
        f"random play's have {length:,.0f} decisions, so {training.environments} environments "
        f"need {frames:,.0f} frames to end theirs"
    )
    if not curve.frames_per_s:
        return f"{told}; raise --seconds"
    more_s = max(0.0, frames - curve.frames) / curve.frames_per_s
    # Half as much again, and to whole half minutes.
    enough_s = 30 * math.ceil((trial.seconds + 1.5 * more_s) / 30)
    return f"{told}, {more_s:.0f} s more at this rate: --seconds={enough_s}"


def chart(curve: Curve, random: float | None) -> list[str]:
    """Score (*) against seconds, with the mean of random play (-)."""
    scores = [score for _, _, score in curve.points]
    levels = scores if random is None else [*scores, random]
    low, high = min(levels), max(levels)
    step = (high - low) / (_CHART_HEIGHT - 1) or 1.0

    def row_of(score: float) -> int:
        return round((high - score) / step)

    rows = [[" "] * _CHART_WIDTH for _ in range(_CHART_HEIGHT)]
    if random is not None:
        rows[row_of(random)] = ["-"] * _CHART_WIDTH
    for seconds, _, score in curve.points:
        column = min(_CHART_WIDTH - 1, int(seconds / curve.seconds * _CHART_WIDTH))
        rows[row_of(score)][column] = "*"
    lines = []
    for number, row in enumerate(rows):
        label = _number(high - number * step) if number in (0, _CHART_HEIGHT - 1) else ""
        if random is not None and number == row_of(random):
            label = f"random {_number(random)}"
        lines.append(f"{label:>16} |{''.join(row)}".rstrip())
    end = f"{curve.seconds:.0f} s"
    lines.append(f"{'':16} 0 s{end:>{_CHART_WIDTH - 2}}")
    return lines


def _speed(trial: Trial, curve: Curve) -> Iterator[str]:
    yield ""
    where = machine()
    yield from _wrapped(f"Speed on {where['cores']} cores of {where['cpu']}", "")
    if trial.load > _LOADED * available_cores():
        yield from _row(
            "others", f"load average {trial.load:.1f} before it began: alone it would be faster"
        )
    if curve.frames_per_s is None:
        yield from _row("frames/s", "not known: no time was left to learn; raise --seconds")
    else:
        minutes = ", ".join(
            f"{verdict.minutes_to(trial, frames) or 0.0:,.1f} minutes to {frames // 10**6}M"
            for frames in FRAMES
        )
        yield from _row("frames/s", f"{curve.frames_per_s:,.0f} in training: {minutes}")
    if limit := verdict.limit_of(trial):
        yield from _row("limit", limit)
    if curve.working:
        names = {"rollout": "rollout workers", "policy": "policy workers"}
        busy = (f"{names.get(c, c)} {share:.0%}" for c, share in curve.working.items())
        yield from _row("busy", ", ".join(busy))
