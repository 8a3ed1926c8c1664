"""PPG: the terms of the auxiliary phase by hand, which gradients reach the policy, the phase's memory, and a resume inside it."""

from __future__ import annotations

import math

import pytest
import torch

from algos.batch import Batch
from algos.heads import Output
from algos.ppg import Phase, PPGOptions, clone_kl
from core.errors import UserError
from tests.agents import our_agent, seed_all
from tests.command import SMALL, command
from tests.toys import ToyVecEnv, toy_params

N, T = 8, 16


@pytest.fixture
def make(tmp_path):
    def build(action="continuous", separate=False, agents=1, next_step="same_step", **config):
        params = toy_params(action, **{"n_pi": 2, "aux_epochs": 2, "aux_minibatches": 4, **config})
        params["network"]["separate"] = separate
        return our_agent(params, ToyVecEnv(N, action, reset_mode=next_step), tmp_path, "ppg")

    return build


# ---- arithmetic ---------------------------------------------------------------------------------------------------------------


def test_gaussian_clone_kl_is_that_of_the_old_policy_to_the_new_one():
    # one dimension: KL(N(0, 1) || N(1, 2)) = ln 2 + (1 + 1) / 8 - 1/2 = 0.443147; the other: KL(N(2, 1) || N(2, 1)) = 0
    old = {"mus": torch.tensor([[0.0, 2.0]]), "sigmas": torch.tensor([[1.0, 1.0]])}
    new = {"mus": torch.tensor([[1.0, 2.0]]), "sigmas": torch.tensor([[2.0, 1.0]])}
    assert clone_kl(old, new).tolist() == pytest.approx([math.log(2) + 0.25 - 0.5])
    # the other way round: -ln 2 + (4 + 1) / 2 - 1/2 = 1.306853
    assert clone_kl(new, old).tolist() == pytest.approx([-math.log(2) + 2.5 - 0.5])


def test_categorical_clone_kl_sums_over_the_heads():
    # head 0: 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 ln 2 + 1/2 ln 2/3 = 0.143841; head 1: p = (1, 0), a masked choice: ln(1 / 1/2)
    old = {"0": torch.tensor([[0.5, 0.5]]).log(), "1": torch.tensor([[0.0, -1e8]])}
    new = {"0": torch.tensor([[0.25, 0.75]]).log(), "1": torch.tensor([[0.5, 0.5]]).log()}
    assert clone_kl(old, new).tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)])


@pytest.mark.parametrize("separate", [False, True])
def test_auxiliary_losses_and_their_sum(make, separate):
    agent = make(separate=separate)
    old = {"mus": torch.zeros(2, 2), "sigmas": torch.ones(2, 2)}
    out = Output(
        torch.zeros(2), torch.tensor([[1.0], [5.0]]), torch.zeros(2), mus=torch.tensor([[1.0, 0.0], [0.0, 0.0]]), sigmas=torch.ones(2, 2)
    )
    mb = Batch({"actions": torch.zeros(2, 2), "returns": torch.tensor([[3.0], [4.0]]), "mask": None, "old_policy": old})
    agent.features = torch.zeros(2, 8)
    with torch.no_grad():
        if separate:
            agent.aux.bias.fill_(2.0)  # features of 0: V_aux is 2 everywhere
    losses = agent.auxiliary_losses(mb, out)
    # KL: rows 1/2 * 1^2 and 0, mean 0.25.   V: 1/2 (1 - 3)^2 = 2 and 1/2 (5 - 4)^2 = 1/2, mean 1.25.   V_aux: 1/2 and 2, mean 1.25
    assert losses["clone_kl"].item() == pytest.approx(0.25)
    assert losses["aux_value"].item() == pytest.approx(1.25)
    assert ("value" in losses) == separate
    if separate:
        assert losses["value"].item() == pytest.approx(1.25)
    masked = agent.auxiliary_losses(mb.replace(mask=torch.tensor([1.0, 0.0])), out)
    assert masked["clone_kl"].item() == pytest.approx(0.5)


# ---- which layers learn what ----------------------------------------------------------------------------------------------------


def first_batch(agent):
    agent.reset_environments()
    with torch.no_grad():
        last = agent.collect(agent.rollout)
        return agent.make_batch(agent.rollout, last)[0]


@pytest.mark.parametrize("action", ["continuous", "discrete", "multi_discrete"])
def test_the_value_teaches_the_shared_layers_in_the_auxiliary_phase_alone(make, action):
    agent = make(action)
    batch = first_batch(agent)
    trunk = next(agent.model.a2c_network.actor_mlp.parameters())

    def reaches(out):
        return torch.autograd.grad(out.values.sum(), trunk, allow_unused=True, retain_graph=True)[0] is not None

    out = agent.evaluate_actions(batch)
    assert not reaches(out)
    assert torch.autograd.grad(out.neglogp.sum(), trunk)[0].abs().sum() > 0
    assert reaches(agent.auxiliary_output(batch))


def test_the_policy_phase_is_ppo_where_the_networks_are_separate(make, tmp_path):
    agents = [make("discrete", separate=True, n_pi=9, mini_epochs=1)]
    params = toy_params("discrete", mini_epochs=1)
    params["network"]["separate"] = True
    agents.append(our_agent(params, ToyVecEnv(N, "discrete"), tmp_path / "ppo", "ppo"))
    for agent in agents:
        seed_all()  # the own value head's weights were drawn as well
        agent.train()
    for (name, ours), theirs in zip(agents[0].model.named_parameters(), agents[1].model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6), name


@pytest.mark.parametrize("separate", [False, True])
def test_the_auxiliary_phase_lowers_the_value_error_and_a_high_price_holds_the_policy(make, separate):
    def phase(beta):
        torch.manual_seed(3)
        agent = make(separate=separate, n_pi=1, aux_epochs=30, beta_clone=beta, learning_rate=3e-3, lr_schedule="constant")
        batch = first_batch(agent)
        agent.phase.add(batch.replace(returns=torch.sin(batch.obs[:, :1])), T * N)  # targets that have to be learned
        agent.normalize_value = False
        first = agent.auxiliary_losses(
            batch.replace(returns=torch.sin(batch.obs[:, :1]), old_policy={"mus": batch.old_mus, "sigmas": batch.old_sigmas}),
            agent.auxiliary_output(batch),
        )["aux_value"].item()
        return first, agent.auxiliary_phase()

    first, free = phase(0.0)
    _, held = phase(100.0)
    assert free["ppg/aux_value"] < 0.7 * first
    assert held["ppg/clone_kl"] < 0.2 * free["ppg/clone_kl"]


# ---- the phase's memory ---------------------------------------------------------------------------------------------------------


def rows(start, count):
    return Batch({"actions": torch.arange(start, start + count), "obs": {"a": torch.arange(start, start + count).float()}, "mask": None,
                  "old_neglogp": torch.zeros(count)})  # fmt: skip


def test_the_memory_fills_grows_and_clears():
    phase = Phase(2, 1, 2**20, torch.device("cpu"))
    phase.add(rows(0, 3), rows=4)  # a row was no transition
    assert not phase.is_full
    phase.add(rows(3, 7), rows=4)  # more than a rollout: 10 rows where 8 were thought of
    assert phase.is_full
    assert phase.batch().actions.tolist() == list(range(10))
    assert phase.batch().obs["a"].tolist() == list(range(10))
    place = phase.fields["actions"].data_ptr()
    phase.clear()
    phase.add(rows(20, 4), rows=4)
    assert phase.batch().actions.tolist() == [20, 21, 22, 23]
    assert phase.fields["actions"].data_ptr() == place  # used again
    assert phase.rollouts == 1


def test_the_memory_keeps_sequences_whole():
    phase = Phase(2, 2, 2**20, torch.device("cpu"))
    for i in range(2):
        batch = rows(4 * i, 4).replace(rnn_states=[torch.arange(2.0).view(1, 2, 1) + 2 * i], mask=torch.ones(4) if i else None)
        phase.add(batch, rows=4)
    whole = phase.batch()
    assert whole.rnn_states[0].flatten().tolist() == [0, 1, 2, 3]
    assert whole.mask.tolist() == [1] * 8
    second = list(whole.minibatches(2, shuffle=False))[1]
    assert second.actions.tolist() == [4, 5, 6, 7]
    assert second.rnn_states[0].flatten().tolist() == [2, 3]


def test_auxiliary_phases_come_every_n_pi_epochs(make):
    agent = make(n_pi=2, max_epochs=1)
    seen = []
    original = agent.after_epoch
    agent.after_epoch = lambda metrics: (seen.append("ppg/clone_kl" in metrics), original(metrics))
    agent.max_epochs = 5
    agent.train()
    assert seen == [False, True, False, True, False]
    assert agent.phase.rollouts == 1


def test_reset_rows_are_left_out(make):
    agent = make(n_pi=3, max_epochs=2, next_step="next_step")
    agent.train()
    assert 0 < agent.phase.sequences < 2 * T * N


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
@pytest.mark.parametrize("separate", [False, True])
def test_memory_trains(tmp_path, rnn, separate):
    params = toy_params("discrete", rnn=rnn, n_pi=2, aux_epochs=1, aux_minibatches=4)
    params["network"]["separate"] = separate
    agent = our_agent(params, ToyVecEnv(N, "discrete", reset_mode="next_step"), tmp_path, "ppg")
    agent.max_epochs = 2
    agent.train()
    assert agent.metrics["ppg/clone_kl"] >= 0
    assert all(p.isfinite().all() for p in agent.model.parameters())


# ---- resume -----------------------------------------------------------------------------------------------------------------------

RUN = ("task=TorchCartPole", *SMALL, "train=PPG", "train.params.config.n_pi=4", "train.params.config.aux_minibatches=4")


@pytest.mark.parametrize("separate", [False, True])
def test_a_resume_inside_a_phase_is_exact(tmp_path, separate):
    run = (*RUN, f"train.params.network.separate={separate}", "seed=3")
    command(*run, f"run_dir={tmp_path}/whole", "max_epochs=9")
    command(*run, f"run_dir={tmp_path}/parts", "max_epochs=6")  # epoch 4 ends the first phase, 8 the second
    command(f"resume={tmp_path}/parts", "max_epochs=9")
    whole, parts = (torch.load(tmp_path / name / "nn" / "last.pth", weights_only=True) for name in ("whole", "parts"))
    assert whole["gamesmith"]["extras"]["parts"]["phase"]["rollouts"] == 1
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name


def test_a_phase_too_large_for_checkpoints_begins_anew(make, tmp_path):
    agent = make(n_pi=4, max_epochs=2, phase_in_checkpoint_mb=0)
    agent.train()
    assert agent.phase.rollouts == 2
    state = agent.phase.state_dict()
    assert state["fields"] == {}
    with pytest.warns(UserWarning, match="2 rollouts .* phase_in_checkpoint_mb"):
        agent.phase.load_state_dict(state)
    assert agent.phase.rollouts == agent.phase.sequences == 0


# ---- bad input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_pi", 0),
        ("aux_epochs", -1),
        ("aux_minibatches", 0),
        ("beta_clone", -1.0),
        ("aux_learning_rate", 0.0),
        ("phase_in_checkpoint_mb", -1),
    ],
)
def test_bad_knobs_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"{key} is {value}"):
        PPGOptions(**{key: value})


def test_more_minibatches_than_rows_are_refused(make):
    with pytest.raises(UserError, match="aux_minibatches is 129: a rollout here has 128 rows"):
        make(aux_minibatches=129)


def test_a_central_value_is_refused(tmp_path):
    with pytest.raises(UserError, match="central_value_config"):
        our_agent(toy_params(central=True), ToyVecEnv(states=True), tmp_path, "ppg")
