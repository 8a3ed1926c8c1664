"""What is measured: each workload once, as rl_games' `params`, for every side."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One set of settings. `params` is an rl_games YAML's section `params`; `config.env_config` holds EnvPool's arguments."""

    name: str
    title: str
    params: Params
    epochs: int  # measured ones
    warmup: int  # epochs before them
    ours: tuple[str, ...] = ()  # what our side's command line adds to the YAML
    ours_envs: int | None = None  # environments of our side, where they are more than stock's
    ours_epochs: int | None = None
    algos: tuple[tuple[str, tuple[str, ...]], ...] = ()  # our algorithms to compare: (name, overrides); then stock takes no part
    variants: tuple[tuple[str, tuple[str, ...]], ...] = ()  # beside our side as it is, always: (name, overrides)
    device: str = "cpu"

    @property
    def config(self) -> Params:
        return self.params["config"]

    @property
    def env_id(self) -> str:
        return self.config.get("env_config", {}).get("env_name", self.config["env_name"])

    @property
    def env_options(self) -> Params:
        """Keyword arguments of envpool.make, beside its id."""
        return {key: value for key, value in self.config.get("env_config", {}).items() if key not in ("env_name", "has_lives")}

    @property
    def in_envpool(self) -> bool:
        """Whether EnvPool steps the environment, which can then be measured alone, and which a peer can train on."""
        return self.config["env_name"] == "envpool"

    @property
    def own_processes(self) -> bool:
        """Whether all of a run's processes are its own children; Ray's are not."""
        return self.name != "ray"

    def rows(self, ours: bool) -> int:
        """Rows of an epoch: environments x horizon."""
        return (self.ours_envs if ours and self.ours_envs else self.config["num_actors"]) * self.config["horizon_length"]

    def measured(self, ours: bool) -> int:
        return self.ours_epochs if ours and self.ours_epochs else self.epochs


def _network(units: list[int], activation: str, separate: bool, kind: str, **more: Any) -> Params:
    continuous = {
        "mu_activation": "None",
        "sigma_activation": "None",
        "mu_init": {"name": "default"},
        "sigma_init": {"name": "const_initializer", "val": 0},
        "fixed_sigma": True,
    }
    space: Params = {"continuous": continuous} if kind == "continuous" else {"discrete": {}}
    mlp = {"units": units, "activation": activation, "initializer": {"name": "default"}}
    return {"name": "actor_critic", "separate": separate, "space": space, "mlp": mlp, **more}


def _params(kind: str, network: Params, **config: Any) -> Params:
    """rl_games' params. Nothing stops a run but its epochs, no checkpoint is written inside the measured ones, and nothing is compiled:
    rl_games' `torch_compile` costs its start more than it gains in runs of this length."""
    common = {
        "name": "bench",
        "reward_shaper": {"scale_value": 1},
        "normalize_advantage": True,
        "gamma": 0.99,
        "tau": 0.95,
        "grad_norm": 1.0,
        "truncate_grads": True,
        "e_clip": 0.2,
        "score_to_win": 1e9,
        "save_best_after": 1_000_000,
        "save_frequency": 0,
        "torch_compile": False,
    }
    model = "continuous_a2c_logstd" if kind == "continuous" else "discrete_a2c"
    return {"algo": {"name": f"a2c_{kind}"}, "model": {"name": model}, "network": network, "config": {**common, **config}}


HALFCHEETAH = {
    "env_name": "envpool",
    "env_config": {"env_name": "HalfCheetah-v4"},
    "num_actors": 64,
    "horizon_length": 256,
    "minibatch_size": 2048,
    "mini_epochs": 5,
    "learning_rate": 3e-4,
    "lr_schedule": "adaptive",
    "kl_threshold": 0.008,
    "normalize_input": True,
    "normalize_value": True,
    "value_bootstrap": True,
    "clip_value": False,
    "entropy_coef": 0.0,
    "critic_coef": 2,
    "bounds_loss_coef": 0.0,
}

CARTPOLE = {
    "env_name": "envpool",
    "env_config": {"env_name": "CartPole-v1"},
    "num_actors": 64,
    "horizon_length": 32,
    "minibatch_size": 512,
    "mini_epochs": 4,
    "learning_rate": 3e-4,
    "lr_schedule": None,
    "kl_threshold": 0.008,
    "normalize_input": False,
    "normalize_value": False,
    "value_bootstrap": True,
    "clip_value": True,
    "entropy_coef": 0.01,
    "critic_coef": 1,
}

PONG = {
    "env_name": "envpool",
    "env_config": {"env_name": "Pong-v5", "has_lives": False},
    "num_actors": 16,
    "horizon_length": 128,
    "minibatch_size": 512,
    "mini_epochs": 4,
    "learning_rate": 3e-4,
    "lr_schedule": "adaptive",
    "kl_threshold": 0.01,
    "normalize_input": True,
    "normalize_value": True,
    "value_bootstrap": False,
    "clip_value": False,
    "entropy_coef": 0.01,
    "critic_coef": 2,
}

# Not core.policy's: a workload must stay what it was when a default of ours changes. The settings above are spelt out for that, too.
NATURE_CNN = {
    "permute_input": False,
    "type": "conv2d",
    "activation": "relu",
    "initializer": {"name": "default"},
    "convs": [
        {"filters": 32, "kernel_size": 8, "strides": 4, "padding": 0},
        {"filters": 64, "kernel_size": 4, "strides": 2, "padding": 0},
        {"filters": 64, "kernel_size": 3, "strides": 1, "padding": 0},
    ],
}

TORCH_ENV = "bench_torch"  # stock.py registers it with rl_games; our side takes the task

LSTM = {"name": "lstm", "units": 64, "layers": 1}

# Stock's workers hold one environment each. The minibatches are a quarter of the batch on both sides, as in B.
RAY = {**{k: v for k, v in CARTPOLE.items() if k not in ("env_config", "minibatch_size")}, "env_name": "CartPole-v1"}
RAY.update(env_config={}, num_actors=8, minibatch_size_per_env=8)

A = Workload(
    "A",
    "HalfCheetah, 64 envs",
    _params("continuous", _network([128, 64, 32], "elu", False, "continuous"), **HALFCHEETAH),
    epochs=8,
    warmup=2,
)

GRAPHS = (("graphs", ("train.params.config.cuda_graphs=true",)),)  # recorded in the third epoch: the warm-up must be longer

RECURRENT = ("train.params.network.rnn={name:lstm,units:64,layers:1}", "train.params.config.seq_length=16")


def torch_cartpole(num_envs: int, epochs: int, warmup: int, device: str) -> Workload:
    """B's settings on this project's CartPole in torch: the same class steps the environments of both sides, on `device`."""
    config = {k: v for k, v in CARTPOLE.items() if k != "minibatch_size"}
    config.update(env_name=TORCH_ENV, env_config={"id": "CartPole"}, num_actors=num_envs, minibatch_size_per_env=8)
    return Workload(
        f"torch{num_envs}",
        f"CartPole in torch on {device}, {num_envs:,} envs",
        _params("discrete", _network([64, 64], "relu", True, "discrete"), **config),
        epochs=epochs,
        warmup=warmup,
        ours=("task=TorchCartPole",),
        device=device,
    )


def envpool_cartpole(num_envs: int, epochs: int, warmup: int) -> Workload:
    """B's settings at another number of environments; a minibatch is always a quarter of the batch."""
    config = {k: v for k, v in CARTPOLE.items() if k != "minibatch_size"}
    config.update(num_actors=num_envs, minibatch_size_per_env=8)
    params = _params("discrete", _network([64, 64], "relu", True, "discrete"), **config)
    return Workload(f"envpool{num_envs}", f"CartPole, {num_envs:,} envs", params, epochs=epochs, warmup=warmup)


WORKLOADS = {
    w.name: w
    for w in (
        A,
        Workload(
            "B",
            "CartPole, 64 envs",
            _params("discrete", _network([64, 64], "relu", True, "discrete"), **CARTPOLE),
            epochs=120,
            warmup=10,
        ),
        Workload(
            "C",
            "Pong, 16 envs, CNN",
            _params("discrete", _network([512], "relu", False, "discrete", cnn=NATURE_CNN), **PONG),
            epochs=2,
            warmup=1,
        ),
        Workload(
            "ray",
            "CartPole on Ray: stock 8 actors, ours 64 envs",
            _params("discrete", _network([64, 64], "relu", True, "discrete"), **RAY),
            epochs=25,
            warmup=3,
            ours=("task=gymnasium", "task.id=CartPole-v1", "task.vecenv=ray"),
            ours_envs=64,
            ours_epochs=50,
        ),
        Workload(
            "lstm",
            "HalfCheetah, 64 envs, LSTM",
            _params("continuous", _network([128, 64, 32], "elu", False, "continuous", rnn=LSTM), **HALFCHEETAH, seq_length=16),
            epochs=4,
            warmup=1,
        ),
        dataclasses.replace(
            A,
            name="hooks",
            title="HalfCheetah, our algorithms",
            algos=(
                ("rpo", ("train.params.algo.name=rpo",)),
                ("lstm", RECURRENT),
                ("rnd", ("train.params.algo.name=bench_rnd",)),
                ("rnd_step", ("train.params.algo.name=bench_rnd_step",)),
            ),
        ),
        dataclasses.replace(torch_cartpole(4096, 20, 5, "cuda"), name="gpu4096", variants=GRAPHS),
        dataclasses.replace(torch_cartpole(65_536, 10, 5, "cuda"), name="gpu65536", variants=GRAPHS),
    )
}


def seeded(workload: Workload, seed: int, ours: bool, epochs: int) -> Params:
    """The workload's params for one run: its seed, and its end after warm-up and `epochs` epochs."""
    params = copy.deepcopy(workload.params)
    params["seed"] = seed
    params["config"].update(device=workload.device, device_name=workload.device)
    params["config"]["max_epochs"] = workload.warmup + epochs
    if ours and workload.ours_envs:
        params["config"]["num_actors"] = workload.ours_envs
    return params
