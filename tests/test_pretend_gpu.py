"""What would only fail on a GPU, found without one: every algorithm, memory and kind of task on a pretended device (tests/pretend_gpu.py)."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import nn

from algos import graphs
from algos.capture import Watch
from algos.rollout import summed_up
from core import checkpoint, registry
from core.build import seed_everything
from tasks.torch_task import ENVS
from tests import ranks
from tests.agents import our_agent
from tests.command import command
from tests.pretend_gpu import PretendGpu
from tests.recorded_graph import RecordedGraph
from tests.sim_stand_ins import installed
from tests.test_algos_all import CASES, arguments, multi_choice  # noqa: F401  a fixture that every test here takes by itself
from tests.toys import toy_params

# ---- the pretender itself --------------------------------------------------------------------------------------------------


def test_two_devices_in_one_operation_are_an_error():
    with PretendGpu():
        layer = nn.Linear(3, 2).to("cuda")
        assert (layer.weight.device.type, layer.weight.is_cuda) == ("cuda", True)
        here, there = torch.ones(5, 3), torch.ones(5, 3, device="cuda")
        for wrong in (
            lambda: layer(here),
            lambda: there + here,
            lambda: torch.cat([here, there]),
            lambda: here[there > 0],
            lambda: here.add_(there),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        layer(there).sum().backward()
        assert layer.weight.grad.is_cuda
        assert (there * torch.tensor(2.0)).is_cuda  # a number may lie anywhere
        assert there[torch.tensor([0, 1])].is_cuda  # indices too
        moved = there[1:].cpu()
        assert not moved.is_cuda
        assert (moved + here[1:]).tolist() == [[2.0] * 3] * 4
        there.copy_(here)
        assert (there.is_cuda, here.to("cuda").is_cuda, here.is_cuda) == (True, True, False)


def test_two_gpus_are_two_devices():
    with PretendGpu(count=2):
        one, other = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
        assert (torch.ones(3, device="cuda").device, other.device.index) == (one.device, 1)
        with pytest.raises(RuntimeError, match="same device"):
            one + other
        assert (one + other.to("cuda:0")).device == one.device


def test_what_the_host_waits_for_is_counted():
    with PretendGpu() as gpu:
        x = torch.arange(4.0, device="cuda")
        (x.sum() + torch.where(x > 1, x, 0.0).mean()).clamp(0)
        assert not gpu.waits
        for wait in (
            lambda: x.sum().item(),
            lambda: bool((x > 1).any()),
            lambda: x[x > 1],
            lambda: x.tolist(),
            lambda: x.cpu(),
            lambda: x.nonzero(),
        ):
            before = gpu.waits.total()
            wait()
            assert gpu.waits.total() > before
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


def test_a_generator_draws_for_its_own_device_only():
    with PretendGpu():
        for device, other in (("cuda", "cpu"), ("cpu", "cuda")):
            generator = torch.Generator(device=device).manual_seed(1)
            assert torch.rand(3, generator=generator, device=device).device.type == device
            with pytest.raises(RuntimeError, match="for generator"):
                torch.rand(3, generator=generator, device=other)


def test_kernels_without_a_deterministic_twin_are_refused_where_one_is_asked_for(steady):
    with PretendGpu():
        x, n = torch.ones(3, device="cuda"), torch.ones(3, dtype=torch.long, device="cuda")
        seed_everything(1, deterministic=True)
        assert n.cumsum(0).tolist() == [1, 2, 3]
        assert summed_up(x).tolist() == [1, 2, 3]
        with pytest.raises(RuntimeError, match="cumsum does not have a deterministic"):
            x.cumsum(0)
        seed_everything(1)
        assert x.cumsum(0).tolist() == [1, 2, 3]


def test_nothing_of_it_stays():
    functions = (torch.load, torch.autocast, torch.Generator, torch.cuda.is_available, torch.cuda.device_count)
    with PretendGpu():
        x = torch.zeros(2, device="cuda")
        assert torch.cuda.is_available()
    assert functions == (torch.load, torch.autocast, torch.Generator, torch.cuda.is_available, torch.cuda.device_count)
    assert (x + torch.ones(2)).device.type == "cpu"


# ---- runs: training, resuming, playing -------------------------------------------------------------------------------------


def lives(words, tmp_path, gpu=None):
    with gpu or PretendGpu():
        result = command(*words, f"run_dir={tmp_path}/run", "max_epochs=2", "device=cuda")
        assert command(f"resume={tmp_path}/run", "max_epochs=3")["epochs"] == 3
        played = command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=2", "player.num_envs=2")
    assert played["episodes"] == 2
    if gpu is None:  # what was learned on a GPU is played without one
        assert command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=2", "device=cpu")["episodes"] == 2


@pytest.fixture
def steady(monkeypatch):
    """Leaves no deterministic kernels behind."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    torch.use_deterministic_algorithms(False)


FIRST = {registry.algos.get(case.values[0]).actions[0] + case.values[0] for case in CASES}


@pytest.mark.parametrize(
    ("name", "kind"), [c if c.values[1] + c.values[0] in FIRST else pytest.param(*c.values, marks=pytest.mark.long) for c in CASES]
)
def test_every_algorithm(name, kind, tmp_path, steady):
    lives([*arguments(name, kind, tmp_path), "torch_deterministic=True"], tmp_path)


CONFIG = "train.params.config."
SIZE = (
    *(CONFIG + s for s in ("horizon_length=16", "minibatch_size=32", "mini_epochs=2", "seq_length=8")),
    "num_envs=4",
    "train.params.torch_threads=1",
)
CENTRAL = CONFIG + "central_value_config.minibatch_size=32"


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(first, second, tmp_path):
    """Where it stood, with other numbers than there, but always the same ones."""
    with PretendGpu():
        command("task=TorchPendulum", *SIZE, f"run_dir={tmp_path}/run", "max_epochs=2", f"device={first}")
        shutil.copytree(tmp_path / "run", tmp_path / "again")
        for run in ("run", "again"):
            assert command(f"resume={tmp_path}/{run}", "max_epochs=3", f"device={second}")["epochs"] == 3
    one, other = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in ("run", "again"))
    assert torch.equal(one["env_state"]["state"], other["env_state"]["state"])
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


def test_a_generator_goes_on_or_begins_anew():
    with PretendGpu():
        here = torch.Generator().manual_seed(1)
        saved = here.get_state()
        drawn = torch.rand(4, generator=here)
        checkpoint.set_generator(here, saved)
        assert torch.equal(torch.rand(4, generator=here), drawn)
        there = [torch.Generator(device="cuda").manual_seed(seed) for seed in (1, 2)]
        for generator in there:
            checkpoint.set_generator(generator, saved)
        numbers = [torch.rand(4, generator=generator, device="cuda").cpu() for generator in there]
        assert torch.equal(*numbers)
        assert not torch.equal(numbers[0], drawn)


CENTRALLY = ("task=PendulumNoVel", "tuned=PendulumNoVel-central", CENTRAL)
PICTURE = ("task=gymnasium", "task.id=Picture-v0", "+task.options.actions=continuous")
WORDS = {
    "lstm": ("task=CartPoleNoVel", "tuned=CartPoleNoVel-LSTM"),
    "lstm, plain": ("task=CartPoleNoVel", "tuned=CartPoleNoVel-LSTM", CONFIG + "fused=false"),
    "gtrxl": ("task=CartPoleNoVel", "tuned=CartPoleNoVel-GTrXL"),
    "central value": CENTRALLY,
    "team": ("task=SimpleSpread", "tuned=SimpleSpread-central", CENTRAL),
    "dict": ("task=FetchReach",),
    "masks": ("task=ConnectFour",),
    "pictures, bf16": (*PICTURE, CONFIG + "precision=bf16"),
    "nature_cnn": (*PICTURE, "train.params.network.name=nature_cnn"),
    "gymnasium": ("task=gymnasium", "task.id=CartPole-v1"),
    "hidden": ("task=TorchPendulum", "task.hidden_obs=[2]"),
    "plain": ("task=TorchPendulum", CONFIG + "fused=false"),
    "mixed": ("task=TorchPendulum", CONFIG + "mixed_precision=true"),
    "evaluated": ("task=TorchPendulum", CONFIG + "eval_every=2"),
}


FAST = ("lstm", "gtrxl", "central value", "dict", "masks", "pictures, bf16", "mixed", "hidden")


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in FAST else pytest.mark.long) for case in WORDS])
def test_every_kind_of_run(case, tmp_path):
    lives([*SIZE, *WORDS[case]], tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("task=isaaclab", "task.id=Isaac-Count-v0"),
        ("task=isaaclab", "task.id=Isaac-Count-Direct-v0"),
        ("task=isaacgymenvs", "task.id=Hand"),
        ("task=maniskill", "task.id=PickCube-v1"),
    ],
    ids=lambda words: words[1],
)
def test_simulators_by_their_stand_ins(words, tmp_path):
    with installed(tmp_path / "packages"):
        lives([*SIZE, *words], tmp_path)


RANK = """
import sys
from tests.command import command
from tests.pretend_gpu import PretendGpu

with PretendGpu(count=2) as gpu:
    command(*sys.argv[1:])
    print("devices", sorted({str(device) for ref, device in gpu.held.values()}))
"""


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("task=TorchPendulum",), id="ppo"),
        pytest.param(("task=TorchPendulum", "train.params.algo.name=rnd"), id="rnd"),
        pytest.param(CENTRALLY, id="central"),
    ],
)
@pytest.mark.long  # among the fast tests a rank was once aborted while Python ended, all being done ("terminate called without an active exception")
def test_two_ranks_each_on_a_gpu_of_its_own(words, tmp_path):
    """Weights are compared by the run itself, after every epoch."""
    command_of = ["-c", RANK, *SIZE, *words, f"run_dir={tmp_path}/run", "max_epochs=3"]
    ended = ranks.finish(ranks.start(command_of, command_of))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert [out.splitlines()[-1] for _, out, _ in ended] == ["devices ['cuda:0']", "devices ['cuda:1']"]
    resumed = ["-c", RANK, f"resume={tmp_path}/run", "max_epochs=4"]
    ended = ranks.finish(ranks.start(resumed, resumed))
    assert [status for status, _, _ in ended] == [0, 0], ended


# ---- what the host waits for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVS)
def test_a_step_of_a_torch_task_waits_for_nothing(name):
    with PretendGpu() as gpu:
        env = ENVS[name](num_envs=6, seed=3, device="cuda", max_episode_steps=3)
        env.reset()
        space = env.action_space
        actions = torch.zeros(6, dtype=torch.long, device="cuda") if hasattr(space, "n") else torch.zeros(6, *space.shape, device="cuda")
        for _ in range(4):
            obs, rewards, dones, infos = env.step(actions)
        assert all(x.is_cuda for x in (obs, rewards, dones, infos["time_outs"], infos["terminal_obs"]))
        assert not gpu.waits, gpu.places


def agent_on(kind, path, **settings):
    env = ENVS["CartPole" if kind == "discrete" else "Pendulum"](num_envs=8, seed=3, device="cuda", max_episode_steps=5)
    agent = our_agent(toy_params(kind, device="cuda", device_name="cuda", **settings), env, path)
    agent.reset_environments()
    return agent


def waits_of_an_epoch(path, kind, **settings):
    with PretendGpu() as gpu:
        agent = agent_on(kind, path, **settings)
        agent.train_epoch()
        before = gpu.waits.total()
        agent.train_epoch()
    return gpu.waits.total() - before


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_an_epoch_waits_as_often_however_many_steps_and_minibatches_it_has(kind, tmp_path):
    few = waits_of_an_epoch(tmp_path / "few", kind, horizon_length=8, minibatch_size=64, mini_epochs=1)
    many = waits_of_an_epoch(tmp_path / "many", kind, horizon_length=32, minibatch_size=32, mini_epochs=4)
    assert few == many
    assert few < 25


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_what_a_graph_records_waits_for_nothing(kind, tmp_path, monkeypatch):
    """A wait would end the recording of a real one with an error."""
    with PretendGpu() as gpu:

        class Watched(RecordedGraph):
            def capture(self, function):
                before = gpu.waits.copy()
                result = super().capture(function)
                assert gpu.waits == before, gpu.places
                return result

        monkeypatch.setitem(graphs.GRAPHS, "cuda", Watched)
        monkeypatch.setattr(Watch, "_check_devices", lambda *args: None)  # below Python all lies on the CPU; the pretended GPU looks itself
        agent = agent_on(kind, tmp_path, cuda_graphs=True)
        for _ in range(4):
            agent.train_epoch()
        assert agent.graphs.reasons == {"rollout": None, "update": None}
        assert {part.graph.replays for part in agent.graphs.captured.values()} == {2}


@pytest.fixture
def warp_there(monkeypatch):
    """MuJoCo Warp computes on the CPU, and its arrays are seen on the pretended GPU."""
    warp = pytest.importorskip("warp")
    pytest.importorskip("mujoco_warp")
    here, device_of, zeros, seen, gpu = warp.ScopedDevice, warp.get_device, warp.zeros, warp.to_torch, PretendGpu()
    monkeypatch.setattr(warp, "ScopedDevice", lambda device: here("cpu"))
    monkeypatch.setattr(warp, "get_device", lambda name=None: device_of("cpu"))
    monkeypatch.setattr(warp, "zeros", lambda *args, **kwargs: zeros(*args, **{**kwargs, "device": "cpu"}))
    monkeypatch.setattr(warp, "to_torch", lambda array: gpu.put(seen(array)))
    monkeypatch.setattr(warp, "is_mempool_enabled", lambda device: True)
    monkeypatch.setattr(warp, "is_conditional_graph_supported", lambda: True)
    for stream in ("current_stream", "default_stream"):
        monkeypatch.setattr(torch.cuda, stream, lambda device: "the default stream")
    return gpu


@pytest.mark.parametrize("name", ["Ant", "Humanoid"])
def test_a_step_of_warp_waits_for_nothing(name, warp_there):
    from tasks.warp_task import make

    with warp_there as gpu:
        env = make(id=name, num_envs=4, seed=3, device="cuda", max_episode_steps=3)
        env.reset()
        gpu.waits.clear()
        for _ in range(4):
            obs, rewards, dones, infos = env.step(torch.zeros(4, *env.action_space.shape, device="cuda"))
        assert all(x.is_cuda for x in (obs, rewards, dones, infos["time_outs"], infos["terminal_obs"]))
        assert not gpu.waits, gpu.places
        env.set_env_state(env.get_env_state())


def test_warp_trains_resumes_and_plays(warp_there, tmp_path):
    lives([*SIZE, "task=WarpAnt"], tmp_path, warp_there)


def test_mjlab_trains_resumes_and_plays(warp_there, tmp_path):
    pytest.importorskip("mjlab")
    lives([*SIZE, "task=mjlab", "task.id=Mjlab-Cartpole-Balance"], tmp_path, warp_there)


def test_brax_trains_resumes_and_plays(tmp_path, monkeypatch):
    """JAX computes on the CPU; only what lies on the pretended GPU is handed to it, and all that it returns lies there."""
    pytest.importorskip("brax")
    jax, gpu = pytest.importorskip("jax"), PretendGpu()
    given, returned = jax.dlpack.from_dlpack, torch.from_dlpack

    def to_jax(tensor):
        assert tensor.is_cuda
        return given(tensor.cpu())

    monkeypatch.setattr(jax.dlpack, "from_dlpack", to_jax)
    monkeypatch.setattr(torch, "from_dlpack", lambda array: gpu.put(returned(array)))
    monkeypatch.setattr("tasks.brax_task._jax_device", lambda device: jax.devices("cpu")[0])
    lives([*SIZE, "task=brax", "task.id=inverted_pendulum", "task.backend=generalized"], tmp_path, gpu)
