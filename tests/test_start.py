"""What a start costs: nothing is imported that a run does not use, and what is put off is there when it is wanted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core import process
from core.cli import as_job, read
from tasks import envpool_families
from tests.command import SMALL, command

ROOT = Path(__file__).resolve().parents[1]

UNUSED = ("torch._dynamo", "torch._inductor", "matplotlib", "wandb", "ray", "pandas", "scipy", "sympy", "IPython", "tensorboard", "gym", "jax",
          "envpool.jumanji", "envpool.mujoco.dmc")  # fmt: skip

SPY = """
import json, sys
from core.observers import Observer
from core.registry import register_observer

@register_observer("spy")
class Spy(Observer):
    seen = None

    def process_infos(self, infos, done_indices):
        self.seen = self.seen or sorted(sys.modules)

    def on_train_end(self, result):
        with open(self.run.dir.path / "seen.json", "w") as file:
            json.dump({"first step": self.seen, "end": sorted(sys.modules)}, file)
"""


def python(code: str, *arguments: str) -> str:
    """The code's output, run in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- a run ------------------------------------------------------------------------------------------------------------------


def test_a_run_imports_nothing_that_it_does_not_use(tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    started = time.perf_counter()
    arguments = (
        "task=HalfCheetah",
        "~tuned",
        *SMALL,
        "max_epochs=2",
        f"run_dir={tmp_path}/run",
        f"modules=[{tmp_path}/spy.py]",
        "observers=[spy]",
    )
    subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    seen = json.loads((tmp_path / "run" / "seen.json").read_text())
    assert "envpool.mujoco.gym" in seen["first step"]
    assert [name for name in UNUSED if name in seen["first step"]] == []
    assert [name for name in UNUSED if name in seen["end"]] == []  # neither did the update and the checkpoints
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["seconds"] < seconds
    assert 0.0 < result["time/start"] < seconds - result["seconds"] + 0.1  # of the process, not of the training
    assert 100.0 < result["peak_memory_mb"] < 1000.0


def test_the_start_is_told_once_in_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_runs", 0)
    results = [command("task=TorchPendulum", *SMALL, "max_epochs=1", f"run_dir={tmp_path}/{i}") for i in range(2)]
    assert 0.0 < results[0]["time/start"] <= process.age()
    assert results[1]["time/start"] is None  # its process had trained for a while
    assert results[0]["peak_memory_mb"] <= results[1]["peak_memory_mb"]


def test_the_first_step_is_noted_and_then_left_alone(monkeypatch):
    monkeypatch.setattr(process, "_runs", 0)

    class Env:
        def step(self, actions: int) -> int:
            return 2 * actions

    env = Env()
    kept = process.FirstStep(env)
    held = env.step  # as of somebody who has looked the method up before
    assert kept.seconds is None
    assert env.step(3) == 6
    first = kept.seconds
    assert first is not None
    assert held(4) == 8
    assert kept.seconds == first
    assert "step" not in vars(env)  # the class's own method again: no wrapper in the rollout


def test_age_and_peak_memory_of_a_process():
    started = time.perf_counter()
    code = "import time; from core import process as p; time.sleep(0.3); a = p.peak_memory_mb(); b = bytearray(b'1') * 2**27; print(p.age(), a, p.peak_memory_mb())"
    age, before, after = map(float, python(code).split())
    assert 0.3 < age < time.perf_counter() - started + 0.02  # the kernel counts in hundredths
    assert 120.0 < after - before < 136.0


# ---- core/lean.py -----------------------------------------------------------------------------------------------------------

OPTIMIZERS = """
import sys
import torch
from torch import nn, optim

MAKE = {
    "adam": lambda p: optim.Adam(p, 0.01), "fused": lambda p: optim.Adam(p, 0.01, fused=True), "amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.01), "sgd": lambda p: optim.SGD(p, 0.01, momentum=0.9), "rmsprop": lambda p: optim.RMSprop(p, 0.01),
}

def trained(make, step=lambda optimizer: optimizer.step):
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3), torch.randn(8, 5)
    optimizer = make(net.parameters())
    calls = []
    optimizer.register_step_post_hook(lambda *unused: calls.append(1))
    one = step(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        one()
        assert torch.is_grad_enabled()
    assert len(calls) == 5
    optimizer.load_state_dict(optimizer.state_dict())
    return [p.detach().clone() for p in net.parameters()]

def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
"""


def test_optimizers_do_the_same_without_and_with_the_compiler(tmp_path):
    code = OPTIMIZERS + (
        "from core import lean\n"
        "without = {name: trained(make) for name, make in MAKE.items()}\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "lean.put_off_compiler()\n"  # twice is once
        "doubled = torch.compile(lambda x: x * 2, backend='eager')\n"
        "assert doubled(torch.ones(2)).tolist() == [2.0, 2.0]\n"
        "assert 'torch._dynamo' in sys.modules\n"
        "assert all(same(without[name], trained(make)) for name, make in MAKE.items())\n"
        "compiled = trained(MAKE['adam'], lambda optimizer: torch.compile(optimizer.step, backend='eager'))\n"
        "assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(without['adam'], compiled, strict=True))\n"
        "torch.save(without, sys.argv[1])\n"
    )
    stock = OPTIMIZERS + (
        "assert 'core.lean' not in sys.modules\n"
        "lean = torch.load(sys.argv[1])\n"
        "assert all(same(lean[name], trained(make)) for name, make in MAKE.items())\n"
        "assert 'torch._dynamo' in sys.modules, 'torch has mended it: core.lean.put_off_compiler can go'\n"
    )
    file = tmp_path / "optimizers.pt"
    python(code, str(file))
    python(stock, str(file))


def test_what_is_put_off_is_there_when_wanted(tmp_path):
    code = """
import sys, torch
from core import lean
calls = []
@lean.compile_at_first_call(backend="eager")
def half(x):
    "Half."
    return x / 2
assert half.__doc__ == "Half."
from rl_games.envs.test_network import SimpleNet
from rl_games.algos_torch import sac_agent
assert not {"torch._dynamo", "torch.utils.tensorboard"} & set(sys.modules)
writer = sac_agent.SummaryWriter(sys.argv[1])
writer.add_scalar("a", 1.0, 0)
writer.close()
import torch.utils.tensorboard
assert type(writer) is torch.utils.tensorboard.SummaryWriter
assert half(torch.ones(1)).item() == 0.5
assert "torch._dynamo" in sys.modules
import gc
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""
    python(code, str(tmp_path))
    assert list(tmp_path.glob("events.out.*"))


# ---- EnvPool ----------------------------------------------------------------------------------------------------------------


def test_envpool_is_imported_by_family_and_knows_every_environment_when_asked():
    code = """
import sys, json
from tasks import envpool_families
envpool = envpool_families.load("CartPole-v1")
first = [name for name in sys.modules if name.startswith("envpool.") and name.endswith(".registration")]
assert envpool_families.load("Ant-v4") is envpool
pool = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=1)
mid = [name for name in sys.modules if name.startswith("envpool.") and name.endswith(".registration")]
other = envpool.make_spec("Ant-v4").config.max_episode_steps  # of a family that was left out
registry = envpool.registration.registry
print(json.dumps([first, mid, other, sorted(envpool.list_all_envs()), len(registry.specs) == len(registry.envpools), "Nothing-v1" in registry.specs]))
"""
    first, mid, other, known, alike, nothing = json.loads(python(code))
    assert set(first) == set(mid) == {"envpool.registration", "envpool.classic_control.registration"}
    assert (other, alike, nothing) == (1000, True, False)
    assert known == json.loads(python("import envpool, json; print(json.dumps(sorted(envpool.list_all_envs())))"))


def test_a_filling_dict_fills_before_it_answers():
    def filled(**content: int) -> tuple[dict[str, Any], list[int]]:
        calls: list[int] = []
        made: envpool_families.Filling

        def fill() -> None:
            if not calls:
                calls.append(1)
                made["b"] = 2

        made = envpool_families.Filling(content, fill)
        return made, calls

    made, calls = filled(a=1)
    assert ("a" in made, made["a"], calls) == (True, 1, [])
    assert made["b"] == 2
    for ask in (list, len, lambda d: d.keys(), lambda d: d.values(), lambda d: d.items(), lambda d: "b" in d):
        made, calls = filled(a=1)
        ask(made)
        assert calls == [1], ask
        assert dict.__len__(made) == 2
    with pytest.raises(KeyError, match="c"):
        made["c"]


# ---- one composition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [("--multirun", "seed=1,2"), ("--cfg", "job"), ("--info", "all"), ("hydra.verbose=true",), ("++hydra.job.env_set.A=b",), ("--help",)],
)
def test_what_asks_hydra_for_more_is_left_to_hydra(argv: tuple[str, ...]) -> None:
    arguments, own = read(["task=Pendulum", *argv])
    assert own is None
    assert "task=Pendulum" in arguments


def test_a_plain_run_gets_what_hydra_would_hand_over(tmp_path):
    from hydra.core.hydra_config import HydraConfig

    argv = ["task=Pendulum", "train=RPO", "seed=7", "+where=${hydra:runtime.cwd}/${hydra:job.name}"]
    arguments, own = read(argv)
    assert own is not None
    try:
        job = as_job(own)
        assert job.where == f"{Path.cwd()}/train"
        assert [o for o in HydraConfig.get().overrides.task if o.startswith(("task", "train"))] == ["task=Pendulum", "train=RPO"]
        assert HydraConfig.get().runtime.choices.task == "Pendulum"
        mine = dict(job)
    finally:
        HydraConfig.instance().cfg = None
    assert "hydra" not in mine
    program = tmp_path / "program.py"
    program.write_text(
        "import hydra, sys\nfrom omegaconf import OmegaConf\nfrom core.config import CONFIG_DIR\n"
        "@hydra.main(version_base='1.3', config_path=str(CONFIG_DIR), config_name='config')\n"
        "def main(cfg):\n    cfg.where = None\n    print(OmegaConf.to_yaml(cfg, resolve=False))\nmain()\n"
    )
    code = "import runpy, sys; sys.argv = [sys.argv[1], *sys.argv[2:]]; sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    from omegaconf import OmegaConf

    theirs = python(code, str(program), *arguments)
    job.where = None
    assert OmegaConf.to_yaml(job, resolve=False).strip() == theirs.strip()
