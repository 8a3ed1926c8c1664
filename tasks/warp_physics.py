"""N MuJoCo worlds that step together on one device, through MuJoCo Warp. What a task sees of them are torch tensors on the same memory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from core.errors import UserError


class Physics:
    """The worlds of one MJCF model; every field of MuJoCo's data is an attribute: `qpos` (N, nq), `qvel` (N, nv), `xpos` (N, nbody, 3), ...

    They are views of the simulator's own memory: what `step` computes is in them, and a task that keeps one for later has to clone it.
    Their names and shapes are those of mujoco's MjData with N in front, in float32.

    A step and a reset are recorded once, as a CUDA graph on a GPU and as warp's own recording on a CPU, and replayed. Nothing in them waits
    for the device.

    Raises UserError for a model that MuJoCo Warp cannot simulate.
    """

    def __init__(
        self, model: Any, num_worlds: int, device: str, frame_skip: int, nconmax: int | None = None, njmax: int | None = None
    ) -> None:
        """model: mujoco.MjModel. nconmax, njmax: room for contacts and constraints, per world; None: as MuJoCo Warp guesses."""
        import mujoco_warp
        import warp

        self._warp, self._mjw = warp, mujoco_warp
        self._model, self.num_worlds, self.device = model, num_worlds, device
        self._views: dict[str, torch.Tensor] = {}
        self.records = device == "cpu" or (warp.is_mempool_enabled(device) and warp.is_conditional_graph_supported())
        with warp.ScopedDevice(device):
            try:
                self.warp_model = mujoco_warp.put_model(model)
            except NotImplementedError as error:
                raise UserError(f"task.mjcf: MuJoCo Warp cannot simulate this model: {error}") from error
            self.warp_data = mujoco_warp.make_data(model, nworld=num_worlds, nconmax=nconmax, njmax=njmax)
            self._mask = warp.zeros(num_worlds, dtype=bool)
        self.mask = warp.to_torch(self._mask)

        def step() -> None:
            for _ in range(frame_skip):
                mujoco_warp.step(self.warp_model, self.warp_data)
            mujoco_warp.rne_postconstraint(self.warp_model, self.warp_data)  # cfrc_ext and cacc, as gymnasium's environments ask for

        self._step = self._record(step)
        self._clear = self._record(lambda: mujoco_warp.reset_data(self.warp_model, self.warp_data, reset=self._mask))
        self._forward = self._record(lambda: mujoco_warp.forward(self.warp_model, self.warp_data))
        self.reset(torch.ones_like(self.mask), self.qpos.clone(), torch.zeros_like(self.qvel))

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name in ("warp_data", "warp_model"):
            raise AttributeError(name)
        view = self._views.get(name)
        if view is None:
            field = getattr(self.warp_data, name, None)
            if not isinstance(field, self._warp.array):
                raise AttributeError(f"MuJoCo's data have no array '{name}'")
            view = self._views[name] = self._warp.to_torch(field)
        return view

    def step(self, controls: torch.Tensor) -> None:
        """Runs `frame_skip` steps with the same controls (N, nu). As in mujoco.mj_step, positions of bodies are those before the last
        integration."""
        self.ctrl.copy_(controls)
        self._step()

    def reset(self, mask: torch.Tensor, qpos: torch.Tensor, qvel: torch.Tensor) -> None:
        """Puts the worlds of `mask` (N,) bool into their rows of qpos (N, nq) and qvel (N, nv), all else as mj_resetData leaves it.

        Everything that follows from the positions is computed anew in all worlds, and none of it moves those that go on."""
        self.mask.copy_(mask)
        self._clear()
        self.qpos.copy_(torch.where(mask[:, None], qpos, self.qpos))
        self.qvel.copy_(torch.where(mask[:, None], qvel, self.qvel))
        self._forward()
        for name in ("cfrc_ext", "cfrc_int", "cacc"):  # mj_resetData clears them, MuJoCo Warp's does not
            view = getattr(self, name)
            view.masked_fill_(mask.view(-1, *[1] * (view.dim() - 1)), 0.0)

    def state(self) -> torch.Tensor:
        """(N, S): all that the next step starts from (mjSTATE_INTEGRATION)."""
        state = self._whole()
        with self._on_device():
            self._mjw.get_state(self.warp_model, self.warp_data, state, int(self._mjw.State.INTEGRATION))
        return self._warp.to_torch(state).clone()

    def set_state(self, state: torch.Tensor) -> None:
        """Goes on from what `state` returned, (N, S). What follows from the positions is that of the next step's beginning."""
        held = self._whole()
        self._warp.to_torch(held).copy_(state)
        with self._on_device():
            self._mjw.set_state(self.warp_model, self.warp_data, held, int(self._mjw.State.INTEGRATION))

    def _whole(self) -> Any:
        import mujoco

        size = mujoco.mj_stateSize(self._model, int(mujoco.mjtState.mjSTATE_INTEGRATION))
        return self._warp.zeros((self.num_worlds, size), dtype=float, device=self.device)

    def _record(self, function: Callable[[], None]) -> Callable[[], None]:
        """`function` as one launch. It is run once before, since what it launches must be compiled and loaded by then.

        On a GPU without memory pools or a driver of CUDA 12.4, which the solver's loop in a graph takes, `function` runs as it is."""
        with self._warp.ScopedDevice(self.device):
            function()
            if not self.records:
                return self._plain(function)
            collecting = gc.isenabled()
            gc.disable()  # a graph of another environment that is freed now would be freed again by every replay
            try:
                with self._warp.ScopedCapture() as capture:
                    function()
            finally:
                if collecting:
                    gc.enable()
        return self._plain(lambda: self._warp.capture_launch(capture.graph))

    def _plain(self, function: Callable[[], None]) -> Callable[[], None]:
        def launch() -> None:
            with self._on_device():
                function()

        return launch

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Warp works on this device; on a GPU in the stream that torch works in, so that what one wrote the other reads. Torch's default
        stream waits for warp's and warp's for torch's: they need no more than that."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._warp.ScopedDevice(self.device))
            if self.device != "cpu":
                device = torch.device(self.device)
                stream = torch.cuda.current_stream(device)
                if stream != torch.cuda.default_stream(device):
                    stack.enter_context(self._warp.ScopedStream(self._warp.stream_from_torch(stream)))
            yield
