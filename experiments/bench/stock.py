"""Stock rl_games from the installed wheel, as its own runner drives it: `python -m experiments.bench.stock params.json`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # before the imports below, which warn: hence the noqa

from rl_games.common.algo_observer import DefaultAlgoObserver  # noqa: E402
from rl_games.torch_runner import Runner  # noqa: E402

from experiments.bench.meter import Meter  # noqa: E402
from experiments.bench.workloads import TORCH_ENV  # noqa: E402


class Watch(DefaultAlgoObserver):
    """rl_games' default observer, which also times `train_epoch` from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    def after_init(self, algo):
        super().after_init(algo)
        train_epoch = algo.train_epoch

        def timed():
            self.meter.first_step()
            result = train_epoch()
            self.meter.epoch(*result[:3])  # step_time, play_time, update_time
            return result

        algo.train_epoch = timed


def register_torch_environments() -> None:
    """Our torch environments under the name that the workloads give them, as rl_games' users register a simulator."""
    from rl_games.common import env_configurations, vecenv
    from rl_games.common.ivecenv import IVecEnv

    from tasks.torch_task import ENVS

    class Torch(IVecEnv):
        def __init__(self, config_name, num_actors, id, device, seed=None):
            self.env = ENVS[id](num_envs=num_actors, seed=seed, device=device)

        def reset(self):
            return self.env.reset()

        def step(self, actions):
            return self.env.step(actions)

        def get_env_info(self):
            return {"observation_space": self.env.observation_space, "action_space": self.env.action_space}

    vecenv.register("BENCH_TORCH", lambda config_name, num_actors, **kwargs: Torch(config_name, num_actors, **kwargs))
    env_configurations.register(TORCH_ENV, {"vecenv_type": "BENCH_TORCH", "env_creator": None})


def main() -> None:
    params = json.loads(Path(sys.argv[1]).read_text())
    config = params["params"]["config"]
    if config["env_name"] == TORCH_ENV:
        register_torch_environments()
        config["env_config"]["device"] = config["device"]
    runner = Runner(Watch())
    runner.load(params)
    runner.run({"train": True})


if __name__ == "__main__":
    main()
