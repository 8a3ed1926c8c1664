"""Template: <one line on the idea>, <Author and Author year> (https://arxiv.org/abs/<id>), eq. <n>:

    <the one equation that this algorithm changes>

As it stands this is PPO, and it runs. Uncomment the hooks that your paper changes; those left as comments cost nothing and can go.
What each one gets and returns, with shapes and an example: algos/hooks.py. When each is called: the timeline in algos/agent.py.
"""

from __future__ import annotations

import dataclasses

from algos.agent import Agent
from algos.options import AgentOptions
from core.registry import register_algo


@dataclasses.dataclass(kw_only=True)
class TemplateOptions(AgentOptions):
    """Your keys under train.params.config; they are checked, documented and in every checkpoint."""

    template_coef: float = 1.0
    """Example of a knob: read it as self.options.template_coef."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template_coef < 0:
            raise ValueError(f"template_coef is {self.template_coef}: it must not be negative")


# actions=("continuous",) if it needs Gaussians; player="template" and policy=TemplatePolicy where it plays in a way of its own
@register_algo("template", config=TemplateOptions)
class Template(Agent):
    """Shapes: T horizon, N environments, B minibatch, A actions, V values (usually 1)."""

    # -- built once
    # def setup(self): self.net = self.register("net", net, optimizer=...)       what you add to the model
    # def rollout_fields(self): return {"extra": ((3,), torch.float32)}          more to store per step
    # -- for each of T steps
    # def before_epoch(self): ...                                                before a rollout
    # def before_step(self, n): ...                                              before step n
    # def act(self, obs): return super().act(obs)                                obs (N, ...) -> dict
    # def on_step(self, transition): transition.rewards += ...                   edit rewards (N, V), dones (N,), fill fields
    # def on_episode_end(self, rows, transition): ...                            rows (k,) that ended
    # def episode_mask(self, transition): return None                            (N,) whose episodes count
    # -- from rollout to batch
    # def combine_rewards(self, rollout): return rollout.rewards + bonus, {"bonus": bonus}
    # def advantages(self, rollout, rewards, last_values): ...                   (T, N, V)
    # def combine_advantages(self, advantages): ...                              (L, V) -> (L,)
    # def normalize_advantages(self, advantages, mask): ...                      (L,) -> (L,)
    # def steps_together(self): return self.horizon_length                       minibatches of whole rollouts
    # def transform_batch(self, batch): return batch.replace(...)                L = T * N rows
    # -- the update
    # def update(self, batch): return metrics                                    instead of mini-epochs of PPO
    # def evaluate_actions(self, mb): out = super().evaluate_actions(mb); return out
    # def policy_loss(self, mb, out): ...                                        (B,)
    # def value_loss(self, mb, out): ...                                         (B, V)
    # def extra_losses(self, mb, out): return {"template": loss}                 times template_coef, logged
    # def entropy_weight(self, mb): return self.entropy_coef                     a number or (B,)
    # def optimizer_step(self, loss, group="policy"): ...
    # def policy_kl(self, mb, out): ...                                          (B,)
    # def extra_update(self, batch): return metrics                              discriminators, predictors
    # -- around the epochs
    # def evaluate(self): return metrics                                         every eval_every epochs
    # def after_epoch(self, metrics): metrics["template/x"] = ...
    # def best_metric(self): ...                                                 what best.pth maximises
    # def should_stop(self): return False
    # -- rarely: build_model(), build_optimizers(), on_train_start()
