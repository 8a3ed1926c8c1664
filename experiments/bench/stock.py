"""Stock rl_games from the installed wheel, as its own runner drives it: `python -m experiments.bench.stock params.json`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from rl_games.common.algo_observer import DefaultAlgoObserver  # noqa: E402
from rl_games.torch_runner import Runner  # noqa: E402

from experiments.bench.meter import Meter  # noqa: E402


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


def main() -> None:
    params = json.loads(Path(sys.argv[1]).read_text())
    runner = Runner(Watch())
    runner.load(params)
    runner.run({"train": True})


if __name__ == "__main__":
    main()
