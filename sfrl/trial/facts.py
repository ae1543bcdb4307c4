"""A trial as facts for programs: what the page says."""

from __future__ import annotations

from typing import Any

from sfrl.records.metrics import rounded
from sfrl.settings.machine import machine
from sfrl.trial import verdict
from sfrl.trial.look import RULES, Look, Rule
from sfrl.trial.verdict import FRAMES, Curve, Trial


def facts(trial: Trial) -> dict[str, Any]:
    """docs/try.md explains the keys."""
    found = rounded(
        {
            "env": trial.env,
            "verdict": trial.verdict,
            "reason": trial.reason,
            "seconds": trial.seconds,
            "load": trial.load,
            "machine": machine(),
            "command": trial.command,
            "is": _is_facts(trial),
            "rules": trial.look and _rule_facts(trial.look),
            "random_play": trial.look and _play_facts(trial, trial.look),
            "training": trial.curve and _training_facts(trial, trial.curve),
            "to_set": [tip._asdict() for tip in verdict.advice(trial)],
        }
    )
    assert isinstance(found, dict)
    return found


def _is_facts(trial: Trial) -> dict[str, Any] | None:
    config, spec, seen = trial.config, trial.spec, trial.look
    if config is None or spec is None:
        return None
    return {
        "kind": spec.kind,
        "observation_space": seen and seen.observation_space,
        "action_space": seen and seen.action_space,
        "max_episode_steps": seen and seen.max_episode_steps,
        "frameskip": spec.frameskip,
        "leaves": [
            {
                "name": leaf.name,
                "kind": leaf.kind,
                "shape": leaf.shape,
                "dtype": leaf.dtype,
                "scale": leaf.scale,
                "sizes": leaf.sizes,
            }
            for leaf in spec.leaves
        ],
        "choices": spec.actions.choices,
        "low": spec.actions.low,
        "high": spec.actions.high,
        "assumed": list(trial.caveats),
        "system": config.system,
        "model": config.model,
        "gamma": config.gamma,
    }


def _rule_facts(seen: Look) -> list[dict[str, Any]]:
    """`kept` is None of a rule that was not looked at to the end."""
    broken = {problem.rule: problem.text for problem in seen.problems}

    def kept(rule: Rule) -> bool | None:
        return False if rule in broken else True if rule in seen.checked else None

    return [
        {"rule": rule, "text": text, "kept": kept(rule), "problem": broken.get(rule)}
        for rule, text in RULES.items()
    ]


def _play_facts(trial: Trial, seen: Look) -> dict[str, Any]:
    random = trial.random
    return {
        "decisions": seen.decisions,
        "seconds": seen.seconds,
        "episodes": len(seen.returns),
        "return_mean": random and random.mean,
        "return_interval": random and random.interval,
        "return_min": min(seen.returns, default=None),
        "return_max": max(seen.returns, default=None),
        "length_mean": sum(seen.lengths) / len(seen.lengths) if seen.lengths else None,
        "terminated": seen.terminated,
        "truncated": seen.truncated,
        "rewarded": seen.rewarded,
        "reward_min": seen.reward_low,
        "reward_max": seen.reward_high,
        "largest": seen.largest,
        "info": seen.info,
        "step_us": verdict.step_us(seen) if seen.decisions else None,
        "reset_us": seen.reset_seconds / seen.resets * 1e6 if seen.resets else None,
        "idle": seen.idle,
        "printed_bytes": seen.printed_bytes,
    }


def _training_facts(trial: Trial, curve: Curve) -> dict[str, Any]:
    outlook = trial.outlook
    return {
        "seconds": curve.seconds,
        "frames": curve.frames,
        "score": curve.score,
        "is_better_than_random": curve.is_better,
        "curve": [
            {"seconds": seconds, "frames": frames, "score": score}
            for seconds, frames, score in curve.points
        ],
        "frames_per_s": curve.frames_per_s,
        "minutes_to": {str(frames): verdict.minutes_to(trial, frames) for frames in FRAMES},
        "limit": verdict.limit_of(trial),
        "working": curve.working,
        "work": outlook and outlook.shares,
        "gains": outlook and outlook.gains,
        "worker_restarts": curve.restarts,
    }
