"""Defects of rl_games 1.6.5 on this path: each test holds for our agent and shows that the stock one fails it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.agents import our_agent, stock_agent, train_stock
from tests.toys import LENGTH, ToyVecEnv, toy_params


def pair(tmp_path, env=None, **settings):
    """Our agent and a maker of the stock one, for the same config and environment."""
    env = env or {}
    action = settings.get("action", "continuous")
    params = toy_params(**settings)
    ours = our_agent(params, ToyVecEnv(action=action, **env), tmp_path / "ours")
    return ours, lambda: stock_agent(params, ToyVecEnv(action=action, **env), tmp_path)


def test_max_steps_is_max_frames(tmp_path):
    ours, stock = pair(tmp_path, max_steps=200, max_epochs=-1)
    assert ours.train()["exit_reason"] == "max_frames"
    with pytest.raises(np.exceptions.AxisError):
        stock()


def test_linear_schedule_anneals_over_max_frames(tmp_path):
    frames = 4 * 8 * 16
    ours, stock = pair(tmp_path, lr_schedule="linear", max_frames=frames, max_epochs=-1)
    ours.train()
    assert ours.last_lr == pytest.approx(1e-6)
    assert train_stock(stock()).last_lr == pytest.approx(1e-3)


class DictNetwork(torch.nn.Module):
    """A network that reads one key; rl_games' actor_critic reads none."""

    def __init__(self):
        super().__init__()
        self.mu, self.value = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)

    def forward(self, inputs):
        mu = self.mu(inputs["obs"]["a"])
        return mu, torch.zeros_like(mu), self.value(inputs["obs"]["b"]), None

    def is_rnn(self):
        return False

    def get_aux_loss(self):
        return None


class DictBuilder:
    def load(self, params):
        pass

    def build(self, name, **kwargs):
        return DictNetwork()


def test_dict_observations_are_normalized(tmp_path, monkeypatch):
    from rl_games.algos_torch import network_builder

    from core import registry

    monkeypatch.setitem(registry.networks._entries, "dict_reader", DictBuilder)
    params = toy_params()
    params["network"]["name"] = "dict_reader"
    ours = our_agent(params, ToyVecEnv(dict_obs=True), tmp_path / "ours")
    ours.train()
    stats = ours.model.running_mean_std.running_mean_std
    assert stats["a"].count == stats["b"].count == 1 + 3 * 8 * 16
    seen = ours.rollout.obs["b"]
    assert (ours.model.norm_obs({"a": ours.rollout.obs["a"][0], "b": seen[0]})["b"] - seen[0]).abs().max() > 0.1
    monkeypatch.setattr(network_builder.A2CBuilder, "build", lambda self, name, **kwargs: DictNetwork())
    with pytest.raises(RuntimeError):  # dies in TorchScript
        train_stock(stock_agent(toy_params(), ToyVecEnv(dict_obs=True), tmp_path))


def test_rms_advantage_normalization_trains_and_is_saved(tmp_path):
    ours, stock = pair(tmp_path, normalize_rms_advantage=True)
    ours.train()
    assert ours.advantage_stats.step == 3
    assert "advantage_stats" in ours.get_full_state_weights()["gamesmith"]["extras"]["parts"]
    with pytest.raises(TypeError):
        stock()


def test_rms_advantage_by_hand():
    from core.normalizers import MovingMeanStd

    stats = MovingMeanStd(decay=0.5)
    x = torch.tensor([1.0, 3.0])  # mean 2, mean of squares 5, variance 1
    assert stats(x).tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)
    y = torch.tensor([6.0, 6.0])  # mean (0.25 * 2 + 0.5 * 6) / 0.75 = 14/3; squares (0.25 * 5 + 0.5 * 36) / 0.75 = 77/3
    std = (77 / 3 - (14 / 3) ** 2) ** 0.5
    assert stats(y).tolist() == pytest.approx([(6 - 14 / 3) / std] * 2, abs=1e-5)
    masked = MovingMeanStd(decay=0.5)  # rows that only reset are no part of the statistics
    assert masked(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])).tolist() == pytest.approx([-1.0, 1.0, 5.0], abs=1e-5)


def test_bounds_loss_coef_null(tmp_path):
    ours, stock = pair(tmp_path, bounds_loss_coef=None)
    ours.train()
    with pytest.raises(AttributeError):
        train_stock(stock())


def test_next_step_reset_rows_are_no_transitions(tmp_path):
    ours, _ = pair(tmp_path, env={"reset_mode": "next_step", "end": 0.0}, horizon_length=2 * (LENGTH + 1), minibatch_size=64, max_epochs=1)
    batches = []
    ours.transform_batch = lambda batch: batches.append(batch) or batch
    ours.train()
    resets = 2 * 8  # in each of 8 environments: LENGTH steps and a reset row, twice
    assert (~ours.rollout.valid).sum() == resets
    assert len(batches[0]) == 8 * 16 - resets
    assert ours.frame == 8 * 16 - resets
    assert set(ours.game_rewards.lengths) == {float(LENGTH)}
    params = toy_params(horizon_length=16, minibatch_size=64, max_epochs=1)
    stock = train_stock(stock_agent(params, ToyVecEnv(reset_mode="next_step", end=0.0), tmp_path))
    assert stock.frame == 8 * 16  # counted, and trained on


def test_memory_is_kept_for_the_last_observation_and_zeroed_after_it(tmp_path):
    ours, _ = pair(tmp_path, env={"reset_mode": "next_step", "end": 0.0}, rnn="lstm", max_epochs=1)
    ours.train()
    rollout = ours.rollout
    reset_rows = ~rollout.valid
    assert torch.equal(rollout.rnn_dones[1:].bool(), reset_rows[:-1])
    assert torch.equal(reset_rows[1:], rollout.dones_after[:-1].bool())


@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
def test_time_out_bootstraps_from_the_terminal_observation(tmp_path, reset_mode):
    ours, _ = pair(tmp_path, env={"reset_mode": reset_mode, "end": 0.0}, max_epochs=1, normalize_value=False)

    def value_of(obs):
        return obs.sum(dim=-1, keepdim=True)

    act = ours.policy.act

    def acting(obs, *rest):
        result = act(obs, *rest)
        result["values"] = value_of(obs)
        return result

    ours.policy.act = acting
    ours.fast.acts = False  # decided when the agent was built
    terminal = []
    step = ours.vec_env.step

    def stepping(actions):
        obs, rewards, dones, infos = step(actions)
        last = infos["terminal_obs"] if reset_mode == "same_step" else obs
        terminal.append(torch.as_tensor(last).clone())
        return obs, rewards, dones, infos

    ours.vec_env.step = stepping
    ours.reset_environments()
    with torch.no_grad():
        last_values = ours.collect(ours.rollout)
    bootstrap = ours.bootstrap(ours.rollout, last_values)
    outs = ours.rollout.time_outs
    assert outs.sum() == 16  # two per environment in 16 steps
    expected = 0.99 * value_of(torch.stack(terminal)) * outs.unsqueeze(2)
    assert torch.allclose(bootstrap, expected)
    current = 0.99 * value_of(ours.rollout.obs) * outs.unsqueeze(2)  # what rl_games takes
    assert not torch.allclose(bootstrap, current)


def test_minibatches_are_shuffled(tmp_path):
    ours, _ = pair(tmp_path)
    from algos.batch import Batch

    batch = Batch({"actions": torch.arange(128), "mask": None})
    seen = [[mb.actions.tolist() for mb in batch.minibatches(4, ours.options.shuffle)] for _ in range(2)]
    assert seen[0] != seen[1]
    stock = stock_agent(toy_params(), ToyVecEnv(), tmp_path)
    stock.dataset.update_values_dict({"actions": torch.arange(128)})
    stock.dataset.apply_permutation()
    assert torch.equal(stock.dataset[0]["actions"], torch.arange(32))


def test_the_normalizer_sees_each_row_once(tmp_path):
    ours, stock = pair(tmp_path)
    ours.train()
    rows = 3 * 8 * 16
    assert ours.model.running_mean_std.count == 1 + rows
    assert train_stock(stock()).model.running_mean_std.count == 1 + 3 * rows  # once per mini-epoch


def test_masks_of_unequal_heads_are_respected(tmp_path):
    params = toy_params("multi_discrete", use_action_masks=True, max_epochs=1)
    ours = our_agent(params, ToyVecEnv(action="multi_discrete", masks=True), tmp_path / "ours")
    ours.train()
    assert (ours.rollout.actions > 0).all()  # choice 0 is forbidden in both heads
    with pytest.raises(ValueError, match="equal division"):
        train_stock(stock_agent(params, ToyVecEnv(action="multi_discrete", masks=True), tmp_path))


def test_a_forward_pass_leaves_the_batch_as_it_was(tmp_path):
    ours, stock = pair(tmp_path)
    from algos.batch import Batch

    ours.train()
    mb = Batch({"obs": torch.randn(8, 3), "actions": torch.zeros(8, 2), "mask": None})
    ours.model.eval()
    first, second = ours.evaluate_actions(mb), ours.evaluate_actions(mb)
    assert torch.equal(first.mus, second.mus)
    theirs = train_stock(stock())
    theirs.model.eval()
    inputs = {"is_train": True, "obs": torch.randn(8, 3), "prev_actions": torch.zeros(8, 2)}
    assert not torch.equal(theirs.model(inputs)["mus"], theirs.model(inputs)["mus"])


def test_the_best_return_survives_a_resume(tmp_path):
    settings = {"save_best_after": 1, "max_epochs": 3}
    ours, stock = pair(tmp_path, **settings)
    ours.train()
    ours.last_mean_rewards = 1e6
    ours.save(str(tmp_path / "ckpt"))
    again, _ = pair(tmp_path / "again", **{**settings, "max_epochs": 4})
    again.restore(str(tmp_path / "ckpt.pth"))
    again.train()
    assert again.last_mean_rewards == 1e6
    assert not again.best_path.exists()
    theirs = stock()
    theirs.max_epochs = 4
    theirs.set_full_state_weights({**ours.get_full_state_weights(), "last_mean_rewards": 1e6})
    assert train_stock(theirs).last_mean_rewards < 1e6


def test_asking_for_values_leaves_the_central_memory_alone(tmp_path):
    params = toy_params(rnn="lstm", central=True)
    params["config"]["central_value_config"]["network"]["rnn"] = {"name": "lstm", "units": 8, "layers": 1, "before_mlp": False}
    ours = our_agent(params, ToyVecEnv(states=True), tmp_path)
    ours.train()
    before = [s.clone() for s in ours.central_value_net.rnn_states]
    ours.values_of(ours.obs)
    assert all(torch.equal(a, b) for a, b in zip(before, ours.central_value_net.rnn_states, strict=True))
    ours.get_values({**ours.obs})  # rl_games' own
    assert not torch.equal(before[0], ours.central_value_net.rnn_states[0])


def test_linear_central_value_schedule_over_frames(tmp_path):
    params = toy_params(central=True, max_epochs=-1, max_frames=3 * 128)
    params["config"]["central_value_config"]["lr_schedule"] = "linear"
    ours = our_agent(params, ToyVecEnv(states=True), tmp_path / "ours")
    ours.train_rates = []
    ours.after_epoch = lambda metrics: ours.train_rates.append(metrics["info/cval_lr"])
    ours.train()
    assert ours.train_rates == pytest.approx([1e-3 * 2 / 3, 1e-3 / 3, 1e-6], rel=0.01)
    theirs = train_stock(stock_agent(params, ToyVecEnv(states=True), tmp_path))
    assert theirs.central_value_net.lr == pytest.approx(1e-6)  # from the first epoch on: max_steps is -1


def test_model_continuous_a2c_works(tmp_path):
    params = toy_params(max_epochs=1)
    params["model"]["name"] = "continuous_a2c"
    params["network"]["space"]["continuous"]["sigma_init"]["val"] = 0.7
    ours = our_agent(params, ToyVecEnv(), tmp_path / "ours")
    ours.train()
    assert (ours.rollout.sigmas[0] == 0.7).all()
    with pytest.raises(NameError):
        train_stock(stock_agent(params, ToyVecEnv(), tmp_path))


def test_seed_zero_is_a_seed(tmp_path):
    from core.build import seed_everything

    draws = []
    for _ in range(2):
        torch.rand(3)
        seed_everything(0)
        draws.append((torch.rand(3), np.random.rand(3)))
    assert torch.equal(draws[0][0], draws[1][0])
    assert np.array_equal(draws[0][1], draws[1][1])


def test_mixed_precision_needs_no_gradient_scaler(tmp_path):
    ours, _ = pair(tmp_path, mixed_precision=True)
    assert not ours.scaler.is_enabled()
    assert ours.train()["epochs"] == 3
