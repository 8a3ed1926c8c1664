"""Brax: physics in JAX, compiled together with the episodes' ends. docs/tasks/simulators.md"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks.batched_torch import BatchedTorch

BACKENDS = ("generalized", "positional", "spring", "mjx")


class BraxVecEnv(BatchedTorch):
    """A Brax environment behind our contract: one compiled function steps, tells what episodes ended in, and begins the next ones.

    Arrays go from JAX to torch and back through DLPack, without leaving the device. What is handed on is a copy there: JAX's own arrays
    must not change, and torch might write into them.
    """

    def __init__(self, env: Any, num_envs: int, seed: int, device: str, resets: str) -> None:
        """env: of brax.envs.create with its EpisodeWrapper, a batch of num_envs and no automatic reset. resets: see `make`."""
        import jax
        import jax.numpy as jnp

        self._jax, self._jax_device = jax, _jax_device(device)

        def strong(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)  # one type for all steps: compiled once

        def begin(key: Any) -> tuple[Any, Any]:
            key, own = jax.random.split(key)
            return strong(env.reset(own)), key

        def step(state: Any, kept: Any, key: Any, actions: Any) -> tuple[Any, Any, tuple[Any, ...]]:
            state = strong(env.step(state, actions))
            dones = state.done > 0
            told = (state.obs, state.reward, dones, state.info["truncation"] > 0)
            if resets == "cached":
                fresh = kept
            else:
                fresh, key = jax.lax.cond(dones.any(), begin, lambda key: (state, key), key)

            def chosen(new: Any, old: Any) -> Any:
                return jnp.where(dones.reshape(-1, *[1] * (old.ndim - 1)), new, old)

            return jax.tree.map(chosen, fresh, state), key, told

        self._begin, self._step = jax.jit(begin), jax.jit(step)
        # put there: arrays that come from torch are bound to their device, and a state that is not would be compiled for once more
        self._key = jax.device_put(jax.random.PRNGKey(seed), self._jax_device)
        self._state, self._key = self._begin(self._key)
        self._kept = self._state
        box = spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)  # Brax's actions are all in [-1, 1]
        super().__init__(num_envs, device, self._given(self._state.obs), box, 1.0, "state", "privileged_state")

    def reset(self) -> Obs:
        self._state, self._key = self._begin(self._key)
        self._kept = self._state
        return self.read(self._given(self._state.obs))

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        given = self._jax.dlpack.from_dlpack(actions.detach().to(torch.float32).contiguous())
        self._state, self._key, (last, rewards, dones, truncation) = self._step(self._state, self._kept, self._key, given)
        ended, truncated = torch.from_dlpack(dones), torch.from_dlpack(truncation)
        rewards, dones, infos = self.outcome(torch.from_dlpack(rewards), ended & ~truncated, truncated)
        infos["terminal_obs"] = self.read(self._given(last))
        return self.read(self._given(self._state.obs)), rewards, dones, infos

    def _given(self, obs: Any) -> Any:
        return self._jax.tree.map(torch.from_dlpack, obs)


@register_task("brax", needs_modules=("brax", "jax"), extra="brax")
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    backend: str | None = None,
    max_episode_steps: int = 1000,
    action_repeat: int = 1,
    resets: str = "fresh",
    options: dict[str, Any] | None = None,
) -> VecEnv:
    """N environments of Brax.

    Args:
        id: of brax.envs, also one that a module of `modules` registers there.
        backend: generalized, positional, spring, or mjx; null: the environment's own choice.
        max_episode_steps: the time limit, in physics steps as Brax counts it: action_repeat of them make one step.
        resets: fresh: every episode begins with a state drawn anew; cached: with the one that its environment drew at the start, as
            brax's AutoResetWrapper has it, which is cheaper.
        options: keyword arguments of the environment.

    Raises UserError for an unknown id, backend or option, and for a device that JAX does not see.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take three quarters of the GPU from torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brax says of itself, and of what it imports, that it is no longer worked on
        from brax import envs

    if id not in envs._envs:
        raise unknown("brax environment", str(id), envs._envs, "task.id")
    if backend is not None and backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS, "task.backend")
    if resets not in ("fresh", "cached"):
        raise unknown("choice", resets, ("fresh", "cached"), "task.resets")
    if render_mode is not None:
        raise UserError("brax environments are not filmed here: leave video and record out")
    keywords = {**(options or {}), **({} if backend is None else {"backend": backend})}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = envs.create(
                id, episode_length=max_episode_steps, action_repeat=action_repeat, auto_reset=False, batch_size=num_envs, **keywords
            )
    except (TypeError, ValueError) as error:
        raise UserError(f"task.options: brax refuses {keywords} for '{id}': {error}") from error
    entropy = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    return BraxVecEnv(env, num_envs, entropy, device, resets)


def _jax_device(device: str) -> Any:
    """JAX's device of that name. Raises UserError where it has none, as with JAX's CPU build and device=cuda."""
    import jax

    kind, _, index = device.partition(":")
    try:
        return jax.devices("gpu" if kind == "cuda" else kind)[int(index or 0)]
    except (RuntimeError, IndexError) as error:
        raise UserError(f"device '{device}': JAX does not see it ({error}). For a GPU try: pip install 'jax[cuda12]'") from error
