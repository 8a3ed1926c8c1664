"""CUDA graphs over rollout and update: recorded and replayed they do what they do as they are, and what cannot be recorded says why."""

from __future__ import annotations

import warnings

import pytest
import torch
from rl_games.common.schedulers import AdaptiveScheduler

from algos import graphs
from algos.agent import Agent
from algos.capture import Captured, NotCapturable, Watch, attribute
from algos.device_rate import adapted
from algos.options import AgentOptions
from core import registry
from core.observers import Observer
from core.policy import Policy
from tasks.torch_task import ENVS, CartPole
from tests.agents import our_agent, weights
from tests.recorded_graph import RecordedGraph
from tests.toys import ToyVecEnv, toy_params

CPU = torch.device("cpu")


class OnDevice(Agent):
    """Takes the ways of a GPU, which ask nothing of the device."""

    on_gpu = property(lambda self: True, lambda self, value: None)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setitem(graphs.GRAPHS, "cpu", RecordedGraph)


def agent_of(monkeypatch, path, cls=OnDevice, env="CartPole", policy=None, observers=(), limit=9, **settings):
    registry.discover()
    monkeypatch.setitem(
        registry.algos._entries, "mine", registry.AlgoEntry("mine", cls, AgentOptions, "default", policy, registry.ACTION_KINDS)
    )
    if isinstance(env, str):
        env = ENVS[env](num_envs=8, seed=3, device=settings.get("device", "cpu"), max_episode_steps=limit)
    separate, rnn, unit = settings.pop("separate", False), settings.pop("rnn", None), settings.pop("activation", "elu")
    kind = "discrete" if hasattr(env.action_space, "n") else "continuous"
    params = toy_params(kind, rnn=rnn, **{"max_epochs": 5, **settings})
    params["network"]["separate"] = separate
    params["network"]["mlp"]["activation"] = unit
    return our_agent(params, env, path, "mine", observers)


def state(agent):
    """Everything that an epoch changes."""
    found = {f"weights.{name}": value for name, value in weights(agent).items()}
    found.update({f"rollout.{name}": value for name, value in agent.rollout.fields.items()})
    found.update({f"env.{name}": value for name, value in agent.vec_env.get_env_state().items()})
    optimizer = agent.optimizer.state_dict()["state"]
    found.update({f"optimizer.{i}.{name}": value for i, part in optimizer.items() for name, value in part.items()})
    found.update(obs=agent.obs["obs"], dones=agent.dones, running=agent.game_rewards.running)
    return {name: value.clone() for name, value in found.items()}


def run(agent, epochs, between=lambda agent, epoch: None):
    """Epochs, each with its metrics and its state."""
    torch.manual_seed(11)
    agent.reset_environments()
    seen = []
    for epoch in range(epochs):
        between(agent, epoch)
        metrics = {k: v for k, v in agent.train_epoch().items() if not k.startswith(("time/", "fps"))}
        metrics.update(lr=agent.last_lr, entropy_coef=agent.entropy_coef, kept=agent.optimizer.param_groups[0]["lr"])
        seen.append((metrics, state(agent)))
    return seen


def assert_same(ours, theirs):
    for (metrics, tensors), (other_metrics, others) in zip(ours, theirs, strict=True):
        assert metrics == other_metrics
        assert tensors.keys() == others.keys()
        for name in tensors:
            assert torch.equal(tensors[name], others[name]), name


CASES = {
    "discrete": {},
    "separate": {"separate": True},
    "continuous": {"env": "Pendulum"},
    "continuous_standard": {"env": "Pendulum", "schedule_type": "standard", "separate": True, "bounds_loss_coef": None},
    "linear": {"lr_schedule": "linear", "schedule_entropy": True, "max_epochs": 7},
    "constant": {"lr_schedule": None, "normalize_input": False, "normalize_value": False, "clip_value": False, "truncate_grads": False},
    "in_order": {"env": "Pendulum", "shuffle": False},
    "acrobot": {"env": "Acrobot"},
    "point_mass": {"env": "PointMass"},
    "quadcopter": {"env": "Quadcopter"},
    "current_obs": {"bootstrap_from": "current_obs", "normalize_advantage": False},
    "several_normalizer_updates": {"env": "Pendulum", "mini_epochs": 2, "horizon_length": 20, "minibatch_size": 40},
}


@pytest.mark.parametrize("case", CASES)
def test_five_epochs_replayed_equal_five_as_they_are(case, tmp_path, monkeypatch, recorded):
    settings = {"learning_rate": 3e-3, "kl_threshold": 0.002, **CASES[case]}
    replayed = agent_of(monkeypatch, tmp_path / "graphs", cuda_graphs=True, **settings)
    eager = agent_of(monkeypatch, tmp_path / "eager", **settings)
    assert replayed.graphs.reasons == {"rollout": None, "update": None}
    ours, theirs = run(replayed, 5), run(eager, 5)
    assert_same(ours, theirs)
    for captured in replayed.graphs.captured.values():
        assert (captured.graph.warm_ups, captured.graph.captures, captured.graph.replays) == (2, 1, 3)
        assert captured.graph.outside() <= captured.kept.keys()  # nothing that a replay reaches may be freed
    assert any(tensors["rollout.time_outs"].any() for _, tensors in ours[2:])
    if settings.get("lr_schedule", "adaptive") is not None:
        assert len({metrics["lr"] for metrics, _ in ours}) > 1
    if "schedule_entropy" in settings:
        assert len({metrics["entropy_coef"] for metrics, _ in ours}) > 1


@pytest.mark.parametrize("env", ["CartPole", "Pendulum"])
def test_the_device_schedules_as_the_host_does(env, tmp_path, monkeypatch):
    """Adam reads the rate in float32 on the device and in float64 from the host; nothing else differs."""
    device, host = agent_of(monkeypatch, tmp_path / "d", env=env), agent_of(monkeypatch, tmp_path / "h", Agent, env=env)
    assert device.device_rate is not None
    assert host.device_rate is None
    for (metrics, tensors), (others, other) in zip(run(device, 3), run(host, 3), strict=True):
        assert metrics == pytest.approx(others, rel=1e-3, abs=1e-5)
        assert metrics["lr"] == others["lr"] == metrics["kept"]  # the very same number
        for name, value in tensors.items():
            if name != "rollout.state_values":  # a GPU fills all rows, the host only those that are read
                torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_adaptive_schedule_is_rl_games():
    scheduler = AdaptiveScheduler(0.008)
    generator = torch.Generator().manual_seed(0)
    host, device = 3e-4, torch.tensor(3e-4, dtype=torch.float64)
    kls = [*(0.03 * torch.rand(300, generator=generator)).tolist(), 0.016, 0.004, float("nan"), *[1.0] * 40, *[0.0] * 40]
    reached = set()
    for kl in (torch.tensor(k) for k in kls):
        host, _ = scheduler.update(host, 0.0, 0, 0, kl.item())
        device = adapted(device, kl, scheduler)
        assert device.item() == host
        reached.add(host)
    assert {scheduler.min_lr, scheduler.max_lr} <= reached


def test_a_reset_and_a_loaded_state_reach_the_replay(tmp_path, monkeypatch, recorded):
    def between(agent, epoch):
        if epoch == 3:
            agent.reset_environments()
        if epoch == 4:
            agent.vec_env.set_env_state({key: value.clone() for key, value in kept.items()})
            agent.obs = agent.read_obs(agent.vec_env.current_obs())

    other = CartPole(num_envs=8, seed=77, device="cpu", max_episode_steps=9)
    other.reset()
    kept = {key: value.clone() for key, value in other.get_env_state().items()}
    replayed, eager = (agent_of(monkeypatch, tmp_path / str(g), cuda_graphs=g) for g in (True, False))
    assert_same(run(replayed, 6, between), run(eager, 6, between))
    assert replayed.graphs.captured["rollout"].graph.replays == 4


def test_a_changed_number_is_recorded_anew(tmp_path, monkeypatch, recorded):
    def between(agent, epoch):
        if epoch == 4:
            agent.e_clip = 0.05
            agent.vec_env.FORCE = 5.0  # an attribute of the environment from now on

    replayed, eager = (agent_of(monkeypatch, tmp_path / str(g), cuda_graphs=g) for g in (True, False))
    assert_same(run(replayed, 8, between), run(eager, 8, between))
    for captured in replayed.graphs.captured.values():
        assert (captured.graph.captures, captured.graph.replays) == (2, 4)


def test_numbers_that_never_stay_are_named_and_not_recorded(tmp_path, monkeypatch, recorded):
    class Counting(CartPole):
        counted = 0

        def step(self, actions):
            self.counted += 1
            return super().step(actions)

    replayed, eager = (
        agent_of(monkeypatch, tmp_path / str(g), cuda_graphs=g, env=Counting(num_envs=8, seed=3, device="cpu")) for g in (True, False)
    )
    with pytest.warns(RuntimeWarning, match=r"the rollout runs without a graph: .*environment\.counted is 128, was 112"):
        ours = run(replayed, 10)
    assert_same(ours, run(eager, 10))
    assert replayed.graphs.reasons["update"] is None


# ---- what cannot be recorded ----------------------------------------------------------------------------------------------


class Asking(CartPole):
    def step(self, actions):
        result = super().step(actions)
        if bool(result[2].any()):
            self.state = self.state * 1.0
        return result


class Choosing(CartPole):
    def step(self, actions):
        result = super().step(actions)
        self.state[result[2]] = self.state[result[2]]
        return result


class Making(CartPole):
    def _initial(self, uniform):
        return uniform * torch.tensor([0.05] * 4)


class Failing(CartPole):
    """Raises in the middle of the recording, as CUDA does."""

    calls = torch.zeros(())

    def step(self, actions):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None and self.left[0] == 0:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.left[0] -= 1
        return super().step(actions)

    left = (0,)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left = [2 * 16 + 5]  # two rollouts, and five steps of the recording


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(Asking, r"aten\._local_scalar_dense: the host reads a number"), (Choosing, r"aten\.index: the size of the result"),
     (Making, r"aten\.lift_fresh: a tensor is made from Python numbers"),
     (Failing, r"RuntimeError at aten\.\w+: operation not permitted when stream is capturing$")],
)  # fmt: skip
def test_an_operation_that_cannot_be_recorded_is_named_and_training_goes_on(cls, reason, tmp_path, monkeypatch, recorded):
    def env():
        return cls(num_envs=8, seed=3, device="cpu", max_episode_steps=9)

    replayed, eager = (agent_of(monkeypatch, tmp_path / str(g), env=env(), cuda_graphs=g) for g in (True, False))
    with pytest.warns(RuntimeWarning, match=f"the rollout runs without a graph: {reason}") as told:
        ours = run(replayed, 5)
    assert len(told) == 1
    assert_same(ours, run(eager, 5))
    assert "rollout" not in replayed.graphs.captured
    assert replayed.graphs.captured["update"].graph.replays == 3


class OwnStep(OnDevice):
    def before_step(self, n):
        pass


class OwnLoss(OnDevice):
    def value_loss(self, mb, out):
        return super().value_loss(mb, out)


class OwnUpdate(OnDevice):
    def update(self, batch):
        return self.ppo_update(batch)


class OwnSample(OnDevice):
    def _sample(self, steps, n, noise):
        return super()._sample(steps, n, noise)


class OwnPolicy(Policy):
    def augment_obs(self, obs):
        return obs


class Silent(CartPole):
    capturable = False


@pytest.mark.parametrize(
    ("settings", "rollout", "update"),
    [
        ({"cls": OwnStep}, "'before_step' is overridden", None),
        ({"cls": OwnSample}, "'_sample' is overridden", None),
        ({"cls": OwnLoss}, None, "'value_loss' is overridden"),
        ({"cls": OwnUpdate}, None, "'update' is overridden"),
        ({"policy": OwnPolicy}, "'augment_obs' is overridden", None),
        ({"use_diagnostics": True}, None, "use_diagnostics is true"),
        ({"env": Silent(num_envs=8, seed=1, device="cpu")}, "Silent does not say", None),
        ({"env": ToyVecEnv(reset_mode="next_step")}, "ToyVecEnv is not written in torch", "never the same size"),
        ({"use_smooth_clamp": True}, None, "autograd"),
        ({"rnn": "lstm"}, "memory", "memory"),
        ({"activation": "swish"}, "no plain MLP", "no plain MLP"),
        ({"precision": "bf16"}, "bfloat16", "bfloat16"),
        ({"fused": False}, "fused is false", "fused is false"),
        ({"env": ToyVecEnv(states=True), "central": True}, "central value", "central value"),
    ],
)
def test_what_cannot_be_recorded_says_why_and_trains(settings, rollout, update, tmp_path, monkeypatch, recorded):
    expected = {"rollout": rollout, "update": update}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        agent = agent_of(monkeypatch, tmp_path, cuda_graphs=True, max_epochs=4, **settings)
    said = [str(w.message) for w in told if "cuda_graphs" in str(w.message)]
    assert len(said) == sum(reason is not None for reason in expected.values())
    for part, reason in expected.items():
        if reason is None:
            assert agent.graphs.reasons[part] is None
        else:
            assert any(f"the {part} runs without a graph" in line and reason in line for line in said)
    agent.train()
    assert {captured.graph.replays for captured in agent.graphs.captured.values()} <= {2}


def test_an_observer_that_reads_infos_plays_the_rollout_as_it_is(tmp_path, monkeypatch, recorded):
    class Reading(Observer):
        def __init__(self):
            self.calls = 0

        def process_infos(self, infos, done_indices):
            self.calls += 1

    reading = Reading()
    agent = agent_of(monkeypatch, tmp_path, observers=[reading], cuda_graphs=True)
    with pytest.warns(RuntimeWarning, match="an observer reads the infos of every step"):
        run(agent, 4)
    assert reading.calls == 4 * 16


def test_a_batch_of_another_size_every_epoch_is_named(tmp_path, monkeypatch, recorded):
    class Dropping(OnDevice):
        def transform_batch(self, batch):
            return batch.take(torch.arange(len(batch) - self.epoch_num))

    agent = agent_of(monkeypatch, tmp_path, Dropping, cuda_graphs=True)
    with pytest.warns(RuntimeWarning, match=r"the update runs without a graph: .*is \(\(119,"):
        run(agent, 10)


def test_on_a_cpu_true_warns_and_auto_and_false_do_not(tmp_path, monkeypatch):
    with pytest.warns(RuntimeWarning, match=r"the (rollout|update) runs without a graph: the device is cpu, not cuda"):
        agent_of(monkeypatch, tmp_path / "true", cuda_graphs=True)
    for value in ("auto", False):
        agent = agent_of(monkeypatch, tmp_path / str(value), cuda_graphs=value)  # a warning would be an error
        assert set(agent.graphs.reasons.values()) == {"the device is cpu, not cuda" if value else "cuda_graphs is false"}


# ---- the parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: float(x.sum()), "_local_scalar_dense"),
        (lambda x: x.tolist() if x.sum() > 0 else x, "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.__setitem__(x > 0, x[:1]), "index_put_"),
        (lambda x: x.to("meta"), "meta, not on cpu"),
        (lambda x: torch.zeros(3, device="meta"), "meta, not on cpu"),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0]), "lift_fresh"),
        (lambda x: torch.unique(x), "_unique"),
    ],
)
def test_the_watch_names_what_waits_or_changes_size(function, reason):
    with pytest.raises(NotCapturable, match=reason), Watch(CPU):
        function(torch.ones(3))


def test_the_watch_lets_arithmetic_pass():
    x = torch.randn(5)
    with Watch(CPU) as watch:
        y = torch.where(x > 0, x, -x)[torch.arange(5)].clamp(0, 1).sum() * 2.0
        x[1] = 3.0
    assert y.dim() == 0
    assert x.untyped_storage().data_ptr() in watch.kept
    assert y.untyped_storage().data_ptr() not in watch.kept  # the graph's own


def test_slots_that_trade_places_are_carried():
    class Pair:
        a, b = torch.tensor([1.0]), torch.tensor([2.0])

    def trade(inputs):
        Pair.a, Pair.b = Pair.b, Pair.a
        return Pair.a + inputs["x"]

    captured = Captured(trade, CPU, RecordedGraph(CPU, list))
    slots = {name: attribute(Pair, name) for name in ("a", "b")}
    results = [captured({"x": torch.tensor([10.0 * i])}, slots, {}).clone() for i in range(5)]
    assert [float(r) for r in results] == [2.0, 11.0, 22.0, 31.0, 42.0]
    assert (float(Pair.a), float(Pair.b)) == (2.0, 1.0)
    assert captured.graph.replays == 3


def test_a_slot_that_changes_its_form_is_refused():
    class Growing:
        x = torch.zeros(2)

    def grow(inputs):
        Growing.x = torch.cat([Growing.x, Growing.x])
        return Growing.x.sum()

    captured = Captured(grow, CPU, RecordedGraph(CPU, list))
    captured.WARM_UP = 0
    captured({}, {"x": attribute(Growing, "x")}, {})
    assert "'x' is ((2,)" in captured.reason
    assert Growing.x.shape == (4,)  # by the call as it is


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("env", ["Acrobot", "CartPole", "Pendulum", "PointMass", "Quadcopter"])
def test_on_a_gpu_replayed_epochs_equal_those_as_they_are(env, tmp_path, monkeypatch):
    settings = {"env": env, "device": "cuda", "device_name": "cuda"}
    replayed, eager = (agent_of(monkeypatch, tmp_path / str(g), Agent, cuda_graphs=g, **settings) for g in (True, False))
    ours, theirs = run(replayed, 5), run(eager, 5)
    assert all(captured.recorded for captured in replayed.graphs.captured.values())
    assert len(replayed.graphs.captured) == 2
    for (metrics, tensors), (other_metrics, others) in zip(ours, theirs, strict=True):
        assert metrics == pytest.approx(other_metrics, rel=1e-3, abs=1e-4)
        for name, value in tensors.items():
            torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
