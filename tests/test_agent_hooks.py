"""Every hook is called when its docstring says, with what it says, and what it returns counts."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

from algos.agent import Agent
from algos.options import AgentOptions
from core import registry
from core.errors import UserError
from core.policy import Policy
from tests.agents import our_agent
from tests.command import SMALL, command
from tests.toys import ToyVecEnv, toy_params

T, N = 16, 8


@dataclasses.dataclass(kw_only=True)
class HookedOptions(AgentOptions):
    smooth_coef: float = 0.25


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Builds an agent of a class given in the test."""

    def build(cls, policy=None, env=None, **settings):
        action = settings.get("action", "continuous")
        entry = registry.AlgoEntry("hooked", cls, HookedOptions, "default", policy, registry.ACTION_KINDS)
        monkeypatch.setitem(registry.algos._entries, "hooked", entry)
        return our_agent(toy_params(**{"max_epochs": 2, **settings}), ToyVecEnv(action=action, **(env or {})), tmp_path, "hooked")

    return build


def test_order_of_the_timeline(make):
    class Recorder(Agent):
        calls: ClassVar[list[str]] = []

    def recording(name):
        original = getattr(Agent, name)

        def hook(self, *args, **kwargs):
            if not Recorder.calls or Recorder.calls[-1] != name:
                Recorder.calls.append(name)
            return original(self, *args, **kwargs)

        return hook

    names = [
        "build_model", "build_optimizers", "setup", "rollout_fields", "on_train_start", "before_epoch", "combine_rewards",
        "advantages", "combine_advantages", "normalize_advantages", "transform_batch", "update", "extra_update", "evaluate", "after_epoch", "best_metric",
    ]  # fmt: skip
    for name in names:
        setattr(Recorder, name, recording(name))
    make(Recorder, max_epochs=1, eval_every=1).train()
    assert Recorder.calls == names


def test_step_hooks_see_every_step_and_may_change_it(make):
    class Shaped(Agent):
        def setup(self):
            self.seen = []

        def rollout_fields(self):
            return {"distance": ((2,), torch.float32)}

        def before_step(self, n):
            self.seen.append(("before", n))

        def act(self, obs):
            result = super().act(obs)
            result["actions"] = torch.zeros_like(result["actions"])
            return result

        def on_step(self, transition):
            self.seen.append(("after", transition.n))
            assert transition.obs.shape == (N, 3)
            assert transition.rewards.shape == (N, 1)
            transition.rewards = transition.rewards + 5.0
            transition.fields["distance"] = transition.next_obs[:, :2].abs()
            if transition.n == 3:
                transition.dones = torch.ones_like(transition.dones)

        def on_episode_end(self, rows, transition):
            self.seen.append(("ended", len(rows)))

        def transform_batch(self, batch):
            self.batch = batch
            return batch

    agent = make(Shaped, max_epochs=1)
    agent.train()
    assert [c for c in agent.seen if c[0] != "ended"] == [x for n in range(T) for x in (("before", n), ("after", n))]
    assert ("ended", N) in agent.seen
    assert (agent.rollout.actions == 0).all()
    assert torch.allclose(agent.rollout.rewards, agent.rollout.raw_rewards * 0.5 + 5.0)
    assert agent.rollout.dones_after[3].all()
    assert agent.rollout.dones_before[4].all()
    assert agent.batch.distance.shape == (T * N, 2)
    assert torch.equal(agent.batch.distance[:T], agent.rollout.distance[:, 0])


def test_an_undeclared_field_is_refused(make):
    class Sloppy(Agent):
        def on_step(self, transition):
            transition.fields["novelty"] = torch.zeros(N)

    with pytest.raises(KeyError, match="novelty"):
        make(Sloppy).train()


def test_combined_rewards_are_learned_from_and_logged(make):
    class Bonus(Agent):
        def combine_rewards(self, rollout):
            bonus = torch.full_like(rollout.rewards, 2.0)
            return rollout.rewards * 0 + bonus, {"bonus": bonus}

        def advantages(self, rollout, rewards, last_values):
            self.seen_rewards = rewards
            return super().advantages(rollout, rewards, last_values)

    agent = make(Bonus, value_bootstrap=False)
    agent.train()
    assert (agent.seen_rewards == 2.0).all()
    assert agent.metrics["rewards/bonus"] == 2.0


def test_advantages_reach_the_policy_loss(make):
    class Fixed(Agent):
        def advantages(self, rollout, rewards, last_values):
            return torch.arange(T * N, dtype=torch.float32).view(T, N, 1)

        def normalize_advantages(self, advantages, mask):
            return advantages / 2

        def policy_loss(self, mb, out):
            self.seen.append(mb.advantages)
            assert mb.advantages.shape == out.neglogp.shape
            return super().policy_loss(mb, out)

        def setup(self):
            self.seen = []

    agent = make(Fixed, max_epochs=1, mini_epochs=1)
    agent.train()
    # returns = advantages + values and back again cost a rounding
    expected = torch.arange(T * N, dtype=torch.float32) / 2
    assert torch.allclose(torch.cat(agent.seen).sort().values, expected, atol=1e-4)


def test_value_streams_are_combined_as_the_hook_says(make):
    class Second(Agent):
        def advantages(self, rollout, rewards, last_values):
            return torch.stack([torch.full((T, N), 1.0), torch.full((T, N), 10.0)], dim=2)

        def combine_advantages(self, advantages):
            assert advantages.shape == (T * N, 2)
            return 2 * advantages[:, 0] - advantages[:, 1]

        def policy_loss(self, mb, out):
            assert torch.allclose(mb.advantages, torch.tensor(2.0 - 10.0), atol=1e-4)
            return super().policy_loss(mb, out)

    make(Second, env={"value_size": 2}, normalize_advantage=False, max_epochs=1).train()


def test_extra_losses_are_averaged_weighed_and_logged(make):
    class Extra(Agent):
        def extra_losses(self, mb, out):
            return {"smooth": torch.full_like(out.neglogp, 8.0), "plain": torch.tensor(3.0)}

    agent = make(Extra)
    mb = next(iter_minibatch(agent))
    out = agent.evaluate_actions(mb)
    total, parts = agent.total_loss(mb, out)
    base, _ = super(Extra, agent).total_loss(mb, out), None
    agent_without = base[0] - 0.25 * 8.0 - 3.0
    expected = parts["a_loss"] + parts["c_loss"] - 0.01 * parts["entropy"] + 0.001 * parts["bounds_loss"]
    assert agent_without.item() == pytest.approx(expected.item(), abs=1e-5)
    assert total.item() == pytest.approx(expected.item() + 0.25 * 8.0 + 3.0, abs=1e-5)
    agent.train()
    assert agent.metrics["losses/smooth"] == 8.0
    assert agent.metrics["losses/plain"] == 3.0


def iter_minibatch(agent):
    agent.reset_environments()
    with torch.no_grad():
        last = agent.collect(agent.rollout)
        batch, _ = agent.make_batch(agent.rollout, last)
    return batch.minibatches(4, True)


def test_entropy_weight_may_be_per_sample(make):
    class PerSample(Agent):
        def entropy_weight(self, mb):
            return torch.full((len(mb),), 0.5)

    agent = make(PerSample)
    mb = next(iter_minibatch(agent))
    out = agent.evaluate_actions(mb)
    total, parts = agent.total_loss(mb, out)
    expected = parts["a_loss"] + parts["c_loss"] - 0.5 * parts["entropy"] + 0.001 * parts["bounds_loss"]
    assert total.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_whole_update_can_be_replaced(make):
    class Nothing(Agent):
        def update(self, batch):
            return {"losses/mine": float(len(batch))}

        def extra_update(self, batch):
            return {"extra/rows": float(len(batch))}

    agent = make(Nothing)
    before = [p.clone() for p in agent.model.parameters()]
    agent.train()
    assert all(torch.equal(a, b) for a, b in zip(before, agent.model.parameters(), strict=True))
    assert agent.metrics["losses/mine"] == agent.metrics["extra/rows"] == T * N


def test_a_batch_may_change_its_length(make):
    class Longer(Agent):
        def transform_batch(self, batch):
            return batch.take(torch.arange(len(batch)).repeat(2)[:200])

    assert make(Longer).train()["epochs"] == 2


def test_registered_parts_are_trained_saved_restored_and_given_to_the_player(make, tmp_path):
    class WithNet(Agent):
        def setup(self):
            net = torch.nn.Linear(3, 1)
            self.net = self.register("net", net, optimizer=torch.optim.SGD(net.parameters(), 0.1), grad_norm=0.5, player=True)

        def extra_update(self, batch):
            assert self.net.training
            self.optimizer_step(self.net(batch.obs).square().mean(), group="net")
            return {}

    agent = make(WithNet)
    before = agent.net.weight.clone()
    agent.train()
    assert not torch.equal(before, agent.net.weight)
    agent.save(str(tmp_path / "a.pth"))
    again = make(WithNet)
    assert not torch.equal(again.net.weight, agent.net.weight)
    again.restore(str(tmp_path / "a.pth"))
    assert torch.equal(again.net.weight, agent.net.weight)
    extras = again.get_full_state_weights()["gamesmith"]["extras"]
    assert extras["for_player"] == ["net"]
    assert torch.equal(extras["parts"]["net"]["weight"], agent.net.weight)


def test_registration_refuses_what_cannot_work(make):
    class Twice(Agent):
        def setup(self):
            self.register("net", torch.nn.Linear(1, 1))
            self.register("net", torch.nn.Linear(1, 1))

    with pytest.raises(ValueError, match="taken"):
        make(Twice)

    class Plain(Agent):
        def setup(self):
            self.register("list", [1, 2])

    with pytest.raises(ValueError, match="state_dict"):
        make(Plain)


def test_gradient_of_a_group_is_clipped(make):
    class Clipped(Agent):
        def setup(self):
            net = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.ones_(net.weight)
            self.net = self.register("net", net, optimizer=torch.optim.SGD(net.parameters(), 1.0), grad_norm=0.5)

    agent = make(Clipped)
    agent.optimizer_step(100.0 * agent.net.weight.sum(), group="net")
    assert agent.net.weight.item() == pytest.approx(1.0 - 0.5, abs=1e-4)
    with pytest.raises(ValueError, match="no optimizer 'nett'"):
        agent.optimizer_step(agent.net.weight.sum(), group="nett")


def test_should_stop_best_metric_and_metrics(make):
    class Picky(Agent):
        def should_stop(self):
            return self.epoch_num >= 1

        def best_metric(self):
            return 7.0

        def after_epoch(self, metrics):
            metrics["mine/x"] = 1.5
            self.kept = metrics

    agent = make(Picky, max_epochs=5, save_best_after=1)
    result = agent.train()
    assert result["exit_reason"] == "should_stop"
    assert result["return_best"] == 7.0
    assert agent.best_path.exists()
    assert agent.kept["mine/x"] == 1.5


def test_episode_mask_decides_whose_episodes_count(make):
    class FirstTwo(Agent):
        def episode_mask(self, transition):
            return torch.arange(N) < 2

    agent, everyone = make(FirstTwo), make(Agent)
    agent.train()
    everyone.train()
    assert 0 < agent.game_rewards.finished < everyone.game_rewards.finished


def test_policy_augments_observations_everywhere(make):
    import numpy as np
    from gymnasium import spaces

    class Latent(Policy):
        def augment_env_info(self, env_info):
            env_info["observation_space"] = spaces.Box(-10.0, 10.0, (4,), np.float32)
            return env_info

        def augment_obs(self, obs):
            return torch.cat([obs, torch.ones(len(obs), 1)], dim=1)

    agent = make(Agent, policy=Latent)
    agent.train()
    assert agent.rollout.obs.shape == (T, N, 4)
    assert (agent.rollout.obs[..., 3] == 1).all()
    assert agent.model.running_mean_std.running_mean.shape == (4,)


def test_modules_of_the_policy_are_saved_and_loaded_by_both(make, tmp_path):
    class WithEncoder(Policy):
        def build_extra_modules(self):
            return {"encoder": torch.nn.Linear(3, 3)}

    agent = make(Agent, policy=WithEncoder)
    agent.train()
    agent.save(str(tmp_path / "a.pth"))
    alone = WithEncoder(toy_params(), ToyVecEnv().get_env_info(), 2, "cpu")
    from core import checkpoint

    alone.load(checkpoint.load(tmp_path / "a.pth"))
    assert torch.equal(alone.extra_modules["encoder"].weight, agent.policy.extra_modules["encoder"].weight)


@pytest.mark.parametrize("bad", ["obs", "rewards", "loss"])
def test_a_nan_stops_the_run_and_is_named(make, bad):
    from core.errors import UserError

    class Broken(Agent):
        def policy_loss(self, mb, out):
            loss = super().policy_loss(mb, out)
            return loss * float("nan") if bad == "loss" and self.epoch_num == 2 else loss

    agent = make(Broken)
    step = agent.vec_env.step

    def stepping(actions):
        obs, rewards, dones, infos = step(actions)
        if agent.epoch_num == 2:
            if bad == "obs":
                obs[5, 1] = float("nan")
            if bad == "rewards":
                rewards[5] = float("inf")
        return obs, rewards, dones, infos

    agent.vec_env.step = stepping
    expected = {"obs": "'obs' is not finite in epoch 2, step 1, environment 5",
                "rewards": "'raw_rewards' is not finite in epoch 2, step 0, environment 5", "loss": "'losses/a_loss' is nan in epoch 2"}  # fmt: skip
    with pytest.raises(UserError, match=expected[bad]):
        agent.train()
    from core import checkpoint

    assert checkpoint.load(agent.last_path)["epoch"] == 1  # the last good one


def test_an_algorithm_without_options_of_its_own_has_those_of_the_class_below(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.algos, "_entries", dict(registry.algos._entries))

    @registry.register_algo("bare")
    class Bare(Agent):
        pass

    @registry.register_algo("knob", config=HookedOptions)
    class Knob(Agent):
        pass

    @registry.register_algo("finer_knob")
    class FinerKnob(Knob):
        pass

    agents = {name: our_agent(toy_params(max_epochs=1), ToyVecEnv(), tmp_path / name, name) for name in ("bare", "finer_knob")}
    assert type(agents["bare"].options) is AgentOptions
    assert agents["finer_knob"].options.smooth_coef == 0.25
    agents["bare"].train()


def test_a_run_can_be_refused_before_it_has_a_directory(monkeypatch, tmp_path):
    seen = {}

    class Choosy(Agent):
        @classmethod
        def check_run(cls, options, policy, env):
            seen.update(coef=options.smooth_coef, policy=policy, num_envs=env.num_envs)
            if policy.is_rnn:
                raise UserError("no memory here")

    registry.discover()
    monkeypatch.setitem(
        registry.algos._entries, "choosy", registry.AlgoEntry("choosy", Choosy, HookedOptions, "default", None, registry.ACTION_KINDS)
    )
    ask = ["task=TorchPendulum", *SMALL, "train.params.algo.name=choosy", "train.params.config.smooth_coef=0.5", "max_epochs=1"]
    rnn = "++train.params.network.rnn={name: lstm, units: 8, layers: 1}"
    with pytest.raises(UserError, match="no memory here"):
        command(*ask, rnn, f"run_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()
    assert command(*ask, f"run_dir={tmp_path}/run")["epochs"] == 1
    assert seen["coef"] == 0.5
    assert seen["num_envs"] == 4
    assert seen["policy"].device.type == "cpu"
