"""The environments of other tests can be played as well as they say."""

import gymnasium
import numpy as np
import pytest

import tests.tiny_envs  # noqa: F401  registers them


def score(env_id, policy, episodes=300):
    """The mean return; the policy knows the environment itself, and the step."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    total = 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        for step in range(10_000):
            obs, reward, terminated, truncated, _ = env.step(policy(env.unwrapped, obs, step))
            total += reward
            if terminated or truncated:
                break
    return total / episodes


def answer(env, obs, step):
    parts = (env.mode - 1, env.keys)
    return {"side": env.side, "parts": parts, "push": obs["vector"] * np.array([2, 4], np.float32)}


@pytest.mark.parametrize(
    ("env_id", "policy", "least", "most"),
    [
        ("Mixed-v0", answer, 40 - 1e-4, 40),
        ("TMaze-v0", lambda env, obs, step: 2 if step < env.LENGTH else env.arm, 4, 4),
        ("TMaze-v0", lambda env, obs, step: 0 if obs[1] else 2, 1.5, 2.4),  # without a memory
        ("Pointer-v0", lambda env, obs, step: obs, 0, 0),
        ("Pointer-v0", lambda env, obs, step: np.zeros(2, np.float32), -0.8, -0.73),
        (
            "MaskedCatch-v0",
            lambda env, obs, step: 1 + np.sign(env.ball_column - env.paddle),
            *(1, 1),
        ),
    ],
)
def test_the_optimum_is_what_is_said(env_id, policy, least, most):
    assert least <= score(env_id, policy) <= most
