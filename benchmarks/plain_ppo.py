"""Plain synchronous PPO in one process, in CleanRL's manner: what one would otherwise write.

    python -m benchmarks.plain_ppo --envs=ale --epochs=4 --seconds=60
    python -m benchmarks.plain_ppo --envs=envpool --num-envs=32

PPO (Schulman et al. 2017, arXiv:1707.06347) with CleanRL's settings for Atari: the Nature CNN in
float32, PyTorch's own choice of threads, a C++ vector env, raw frames. All environments step, then
the network acts for all of them, then it learns; nothing overlaps. Rewards are clipped to their
sign. The last line printed is JSON: peer, setting, frames_per_s (start-up left out), seconds.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import ale_py  # noqa: F401  registers its games with Gymnasium
import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.runs import SCORE_EPISODES, Point, throughput

FRAMESKIP = 4
OBS_SHAPE = (4, 84, 84)
LEARNING_RATE, ADAM_EPS, MAX_GRAD_NORM = 2.5e-4, 1e-5, 0.5
GAMMA, GAE_LAMBDA = 0.99, 0.95
CLIP, VALUE_COEF, ENTROPY_COEF = 0.1, 0.5, 0.01

ObsArray = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Settings:
    env: str = "Pong"
    """An Atari game, as ALE and EnvPool spell it."""
    envs: Literal["ale", "envpool"] = "ale"
    """Whose vector env."""
    seconds: float = 60.0
    """Time for the run, start-up included."""
    num_envs: int = 8
    """Environments (N)."""
    num_steps: int = 128
    """Decisions of each environment per iteration (T)."""
    minibatches: int = 4
    """Optimizer steps per epoch."""
    epochs: int = 4
    """Passes over each iteration's decisions."""
    seed: int = 1
    """Seeds environments, weights and actions."""


class Agent(nn.Module):
    """The Nature CNN with a policy head and a value head; uint8 [B, 4, 84, 84] in."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(init(nn.Conv2d(4, 32, 8, stride=4)), nn.ReLU()),
            *(init(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU()),
            *(init(nn.Conv2d(64, 64, 3)), nn.ReLU(), nn.Flatten()),
            *(init(nn.Linear(64 * 7 * 7, 512)), nn.ReLU()),
        )
        self.policy_head = init(nn.Linear(512, num_actions), gain=0.01)
        self.value_head = init(nn.Linear(512, 1), gain=1.0)

    def forward(self, obs: Tensor) -> tuple[Categorical, Tensor]:
        features = self.body(obs / 255)
        return Categorical(logits=self.policy_head(features)), self.value_head(features).squeeze(1)


def init(layer: nn.Linear | nn.Conv2d, gain: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def start_envs(settings: Settings) -> tuple[VectorEnv, ObsArray]:
    """N environments and their first observations [N, 4, 84, 84].

    Autoreset is NEXT_STEP, episodes are whole games, and no actions are sticky.
    """
    envs: VectorEnv
    if settings.envs == "ale":
        envs = gymnasium.make_vec(
            f"ALE/{settings.env}-v5", settings.num_envs, repeat_action_probability=0.0
        )
        return envs, envs.reset(seed=settings.seed)[0]
    try:
        import envpool
    except ImportError as error:
        raise SystemExit(
            "--envs=envpool needs EnvPool, which is not installed here: "
            "pip install envpool==1.2.5, or choose --envs=ale"
        ) from error
    envs = envpool.make_gymnasium(
        f"{settings.env}-v5", num_envs=settings.num_envs, seed=settings.seed, reward_clip=True
    )
    return envs, envs.reset()[0]


def train(settings: Settings) -> Iterator[Point]:
    """Train without end, one point per iteration. Frames of rows that only reset do not count."""
    start_s = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    num_envs, num_steps = settings.num_envs, settings.num_steps
    envs, next_obs = start_envs(settings)
    assert isinstance(envs.single_action_space, Discrete)
    agent = Agent(int(envs.single_action_space.n)).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=ADAM_EPS)

    obs = torch.zeros(num_steps + 1, num_envs, *OBS_SHAPE, dtype=torch.uint8, device=device)
    ended = torch.zeros(num_steps + 1, num_envs, dtype=torch.bool, device=device)
    values = torch.zeros(num_steps + 1, num_envs, device=device)
    actions = torch.zeros(num_steps, num_envs, dtype=torch.long, device=device)
    log_probs = torch.zeros(num_steps, num_envs, device=device)
    rewards = torch.zeros(num_steps, num_envs, device=device)

    frames = 0
    running_returns = np.zeros(num_envs)
    returns: deque[float] = deque(maxlen=SCORE_EPISODES)
    obs[-1] = torch.as_tensor(next_obs)
    while True:
        obs[0], ended[0] = obs[-1], ended[-1]
        for t in range(num_steps):
            with torch.no_grad():
                policy, values[t] = agent(obs[t])
            actions[t] = policy.sample()
            log_probs[t] = policy.log_prob(actions[t])
            next_obs, step_rewards, terminated, truncated, _ = envs.step(actions[t].cpu().numpy())
            # A truncated episode counts as terminated, as in CleanRL.
            step_ended = terminated | truncated
            obs[t + 1] = torch.as_tensor(next_obs)
            rewards[t] = torch.as_tensor(step_rewards)
            ended[t + 1] = torch.as_tensor(step_ended)

            running_returns += step_rewards
            returns.extend(running_returns[step_ended])
            running_returns[step_ended] = 0
        with torch.no_grad():
            _, values[-1] = agent(obs[-1])
        advantages = estimate_advantages(rewards, values, ended)

        # Where an episode has ended, the action is ignored and the row only resets.
        valid = (~ended[:-1]).flatten()
        batch = [
            rows.flatten(0, 1)[valid]
            for rows in (obs[:-1], actions, log_probs, advantages, advantages + values[:-1])
        ]
        num_rows = len(batch[0])
        for _ in range(settings.epochs):
            for rows in torch.randperm(num_rows, device=device).chunk(settings.minibatches):
                loss = ppo_loss(agent, *(column[rows] for column in batch))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()

        frames += num_rows * FRAMESKIP
        score = float(np.mean(returns)) if len(returns) == SCORE_EPISODES else None
        yield Point(time.monotonic() - start_s, frames, score)


def estimate_advantages(rewards: Tensor, values: Tensor, ended: Tensor) -> Tensor:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438).

    Rewards are [T, N], values and `ended` [T+1, N]; ended[t] says that obs[t] is an episode's last.
    """
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        goes_on = (~ended[t + 1]).float()
        delta = rewards[t] + GAMMA * goes_on * values[t + 1] - values[t]
        carried = delta + GAMMA * GAE_LAMBDA * goes_on * carried
        advantages[t] = carried
    return advantages


def ppo_loss(
    agent: Agent, obs: Tensor, actions: Tensor, log_probs: Tensor, advantages: Tensor, vs: Tensor
) -> Tensor:
    """PPO's loss of one minibatch [B]; `vs` are the value targets."""
    policy, values = agent(obs)
    ratios = (policy.log_prob(actions) - log_probs).exp()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    gains = torch.minimum(ratios * advantages, ratios.clamp(1 - CLIP, 1 + CLIP) * advantages)
    value_loss = 0.5 * (values - vs).square().mean()
    entropy = policy.entropy().mean()
    loss: Tensor = -gains.mean() + VALUE_COEF * value_loss - ENTROPY_COEF * entropy
    return loss


def main(settings: Settings) -> None:
    points = []
    for point in train(settings):
        points.append(point)
        if point.time_s >= settings.seconds:
            break
    result = {
        "peer": "plain-ppo",
        "setting": f"{settings.envs} {settings.num_envs}x{settings.num_steps}"
        f" epochs={settings.epochs}",
        "frames_per_s": round(throughput(points)),
        "seconds": settings.seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings))
