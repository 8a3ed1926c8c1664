"""A plain MLP actor-critic, run by hand: the same numbers as rl_games' network with a tenth of the calls.

Small networks spend most of their time between the kernels. Here a step of the rollout writes into buffers that stay where they are,
and a minibatch is one node of the autograd graph whose backward pass is written out. core/fused_memory.py adds memory; what is neither
(pictures, normalisation layers, a network of one's own) keeps its own forward pass and loses nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rl_games.algos_torch.network_builder import A2CBuilder
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten
MUCH = 2**14  # numbers; fewer are quicker in one call than in four
PLAIN_PATH = "set train.params.config.fused=false for the plain path, which autograd differentiates as often as you like"


def differentiated_once(backward: Any) -> Any:
    """For a backward pass written out: refuses `create_graph=True`. torch's `once_differentiable` would let a constant through where
    the incoming gradient is one, and a gradient penalty would be silently without effect."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(f"the fast path has no second derivative: {PLAIN_PATH}")
        return backward(ctx, *grads)

    return checked


def _relu(x: Tensor, room: Tensor) -> None:
    torch.relu_(x)


def _tanh(x: Tensor, room: Tensor) -> None:
    torch.tanh_(x)


def _elu(x: Tensor, room: Tensor) -> None:
    """max(x, exp(min(x, 0)) - 1) where there is much of it: torch's elu takes expm1, which on CPUs costs several times exp."""
    if x.numel() < MUCH or x.is_cuda:
        F.elu_(x)
    else:
        torch.clamp_max(x, 0.0, out=room).exp_().sub_(1.0)
        torch.maximum(x, room, out=x)


def _relu_backward(grad: Tensor, out: Tensor) -> None:
    aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)


def _elu_backward(grad: Tensor, out: Tensor) -> None:
    aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, True, out, grad_input=grad)


def _tanh_backward(grad: Tensor, out: Tensor) -> None:
    aten.tanh_backward.grad_input(grad, out, grad_input=grad)


# in place: the layer's output, with room for as many numbers; and the gradient at its output into the one at its input
ACTIVATIONS: dict[type, tuple[Any, Any]] = {
    nn.ReLU: (_relu, _relu_backward),
    nn.ELU: (_elu, _elu_backward),
    nn.Tanh: (_tanh, _tanh_backward),
}


class Layer(NamedTuple):
    """A linear layer's parameters (a module's attributes take longer to look up than the smallest kernels to run), its activation."""

    weight: nn.Parameter
    bias: nn.Parameter
    forward: Any = None
    backward: Any = None


class Sequences(NamedTuple):
    """What a network with memory reads beside a minibatch's observations, whose rows stand sequence by sequence: index = s * T + t."""

    rnn_states: list[Tensor]  # (layers, S, units) each
    seq_length: int = 1  # T
    dones: Tensor | None = None  # (S * T,) 1 where the memory is zeroed before the row; None: nowhere


class Work:
    """The hidden activations of one forward pass and room for their gradients: (B, units) each, by trunk and layer."""

    def __init__(self, rows: int, trunks: list[list[Layer]], like: Tensor) -> None:
        def buffers() -> list[list[Tensor]]:
            return [[like.new_empty(rows, layer.bias.shape[0]) for layer in trunk] for trunk in trunks]

        self._whole = (buffers(), buffers())
        self.capacity = rows
        self.resize(rows)
        self.taken = 0  # counts forward passes: a backward pass finds out that a later one has overwritten it

    def resize(self, rows: int) -> None:
        """Uses the first rows of the buffers; minibatches differ by a few rows where reset rows are left out."""
        self.rows = rows
        self.tops: list[Tensor] = []  # each trunk's output (B, units), which the heads read
        self.hidden, self.grads = ([[x[:rows] for x in trunk] for trunk in whole] for whole in self._whole)


class FusedNet:
    """`FusedNet.of(model)` for models of rl_games' `actor_critic` that are plain MLPs; None for every other.

    Calling it with (B, O) normalized observations returns the policy head's output (B, A) (means or logits) and values (B, V),
    differentiable once; gradients go to the network's own parameters.
    """

    def __init__(self, net: Any) -> None:
        self.separate: bool = net.separate
        self.trunks = [_layers(net.actor_mlp)] + ([_layers(net.critic_mlp)] if net.separate else [])
        head = net.mu if net.is_continuous else net.logits
        self.policy_head, self.value_head = Layer(head.weight, head.bias), Layer(net.value.weight, net.value.bias)
        heads = [[layer.weight, layer.bias] for layer in (self.policy_head, self.value_head)]
        parts = [self._trunk_parameters(i) for i in range(len(self.trunks))] + heads
        self.parameters: list[nn.Parameter] = [p for part in parts for p in part]
        self.counts = [len(part) for part in parts]  # parameters of each trunk, of the policy's head, of the values'
        self._free: list[Work] = []
        self._step_work: Work | None = None
        self.refresh()

    @staticmethod
    def of(model: nn.Module) -> FusedNet | None:
        net: Any = getattr(model, "a2c_network", None)
        return FusedNet(net) if of_plain_layers(net) and not net.has_rnn else None

    @property
    def values_later(self) -> bool:
        """Whether a rollout may compute the values of all its steps at its end."""
        return self.separate

    # ---- a step of the rollout ----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Takes the parameters' views for the steps of a rollout: to transpose one costs as much as a small product."""
        self._step_trunks = [[_for_steps(layer) for layer in trunk] for trunk in self.trunks]
        self._step_heads = _for_steps(self.policy_head), _for_steps(self.value_head)

    def act(self, obs: Tensor, head: Tensor, values: Tensor | None, rnn_states: Any = None) -> None:
        """Writes the policy head's output into `head` (N, A) and, where given, the normalized values into `values` (N, V).
        Without gradients; obs: (N, O), normalized. The parameters are those of the last `refresh`."""
        work = self._step_work
        if work is None or work.rows != obs.shape[0]:
            work = self._step_work = Work(obs.shape[0], self.trunks, obs)
        (policy_bias, policy, _), (value_bias, value, _) = self._step_heads
        hidden = self._step_trunk(0, obs, work)
        torch.addmm(policy_bias, hidden, policy, out=head)
        if values is not None:
            hidden = self._step_trunk(1, obs, work) if self.separate else hidden
            torch.addmm(value_bias, hidden, value, out=values)

    def _step_trunk(self, which: int, obs: Tensor, work: Any) -> Tensor:
        return self._step_mlp(which, obs, work)

    def _step_mlp(self, which: int, hidden: Tensor, work: Work) -> Tensor:
        for (bias, transposed, forward), out, room in zip(self._step_trunks[which], work.hidden[which], work.grads[which], strict=True):
            torch.addmm(bias, hidden, transposed, out=out)
            forward(out, room)
            hidden = out
        return hidden

    def values(self, obs: Tensor, rnn_states: Any = None) -> Tensor:
        """(L, O) normalized -> normalized values (L, V), without gradients."""
        hidden = obs
        for layer in self.trunks[-1]:
            hidden = F.linear(hidden, layer.weight, layer.bias)
            layer.forward(hidden, torch.empty_like(hidden))
        return F.linear(hidden, self.value_head.weight, self.value_head.bias)

    # ---- a minibatch --------------------------------------------------------------------------------------------------

    def __call__(self, obs: Tensor, sequences: Sequences | None = None) -> tuple[Tensor, Tensor]:
        return _Forward.apply(self, obs, sequences, *self.parameters)

    def take_work(self, obs: Tensor, sequences: Sequences | None = None) -> Any:
        """Room for a forward pass over a minibatch and its backward pass."""
        rows = obs.shape[0]
        work = self._free.pop() if self._free else None
        if work is None or work.capacity < rows:
            with torch.inference_mode(False):  # the next to use it may be autograd
                work = Work(rows, self.trunks, obs)
        if work.rows != rows:
            work.resize(rows)
        work.taken += 1
        return work

    def give_back(self, work: Work) -> None:
        self._free.append(work)

    def _trunk_parameters(self, which: int) -> list[nn.Parameter]:
        return [p for layer in self.trunks[which] for p in (layer.weight, layer.bias)]

    def _trunk(self, which: int, obs: Tensor, work: Any) -> Tensor:
        return self._mlp(which, obs, work)

    def _mlp(self, which: int, obs: Tensor, work: Work) -> Tensor:
        hidden = obs
        for layer, out, room in zip(self.trunks[which], work.hidden[which], work.grads[which], strict=True):
            torch.addmm(layer.bias, hidden, layer.weight.t(), out=out)
            layer.forward(out, room)
            hidden = out
        return hidden

    def forward_by_hand(self, obs: Tensor, work: Any) -> tuple[Tensor, Tensor]:
        work.tops = [self._trunk(i, obs, work) for i in range(len(self.trunks))]
        head = F.linear(work.tops[0], self.policy_head.weight, self.policy_head.bias)
        return head, F.linear(work.tops[-1], self.value_head.weight, self.value_head.bias)

    def backward_by_hand(
        self, obs: Tensor, work: Any, head: Tensor | None, values: Tensor | None, into: Sequence[Tensor] | None = None
    ) -> list[Tensor | None]:
        """Gradients of `parameters`, from those at the two outputs (None: that output was not used).

        into: a tensor for each of `parameters`, which its gradient may be written into and then is.
        """
        value_trunk = len(self.trunks) - 1
        room = self._by_trunk(into)
        grads: list[Tensor | None] = []
        for i in range(len(self.trunks)):
            above = [(g, layer) for g, layer, at in ((head, self.policy_head, 0), (values, self.value_head, value_trunk))
                     if g is not None and at == i]  # fmt: skip
            grads += self._trunk_backward(i, obs, work, above, room[i])
        for grad, at, (weight, bias) in ((head, 0, room[-2]), (values, value_trunk, room[-1])):
            grads += [None, None] if grad is None else linear_gradients(grad, work.tops[at], weight, bias)
        return grads

    def backward_into(self, obs: Tensor, work: Any, head: Tensor, values: Tensor, into: Sequence[Tensor]) -> None:
        """`backward_by_hand` with every gradient written into `into`."""
        grads = self.backward_by_hand(obs, work, head, values, into)
        late = [(place, grad) for place, grad in zip(into, grads, strict=True) if grad is not None and grad is not place]
        if late:
            torch._foreach_copy_([place for place, _ in late], [grad for _, grad in late])

    def _by_trunk(self, into: Sequence[Any] | None) -> list[Sequence[Any]]:
        """A list for `parameters`, in parts: those of each trunk, of the policy's head, of the values'."""
        found, start = [], 0
        into = into or [None] * len(self.parameters)
        for count in self.counts:
            found.append(into[start : start + count])
            start += count
        return found

    def _trunk_backward(
        self, which: int, obs: Tensor, work: Any, above: list[tuple[Tensor, Layer]], into: Sequence[Any]
    ) -> list[Tensor | None]:
        """Gradients of `_trunk_parameters`, from those at the outputs of the heads that read the trunk."""
        if not above:
            return [None] * len(into)
        grad = heads_backward(above, work.grads[which][-1])
        return self._mlp_backward(which, obs, work, grad, into)[0]

    def _mlp_backward(self, which: int, obs: Tensor, work: Work, grad: Tensor, into: Sequence[Any]) -> tuple[list[Tensor | None], Tensor]:
        """From the gradient at the MLP's output, which is overwritten: its parameters', and that at its first linear layer's output."""
        layers, hidden, buffers = self.trunks[which], work.hidden[which], work.grads[which]
        found: list[Tensor | None] = []
        for i in reversed(range(len(layers))):
            layers[i].backward(grad, hidden[i])
            below = obs if i == 0 else hidden[i - 1]
            found = [*linear_gradients(grad, below, into[2 * i], into[2 * i + 1]), *found]
            if i > 0:
                grad = torch.mm(grad, layers[i].weight, out=buffers[i - 1])
        return found, grad


def _for_steps(layer: Layer) -> tuple[Tensor, Tensor, Any]:
    """bias (out,), weight (in, out), activation"""
    return layer.bias.detach(), layer.weight.detach().t(), layer.forward


def heads_backward(above: list[tuple[Tensor, Layer]], grad: Tensor) -> Tensor:
    """Writes into `grad` (B, units) what comes back through the heads: pairs of the gradient at a head's output and the head."""
    torch.mm(above[0][0], above[0][1].weight, out=grad)
    for more, head in above[1:]:
        grad.addmm_(more, head.weight)
    return grad


def of_plain_layers(net: Any) -> bool:
    """Whether a network is rl_games' `actor_critic` of vectors whose layers outside its memory are written out here."""
    if type(net) is not A2CBuilder.Network or net.has_cnn or net.is_multi_discrete or not len(net.units):
        return False
    acts = [net.value_act] + ([net.mu_act] if net.is_continuous else [])
    if not all(isinstance(act, nn.Identity) for act in acts) or (net.is_continuous and not net.fixed_sigma):
        return False
    for mlp in [net.actor_mlp] + ([net.critic_mlp] if net.separate else []):
        kinds = [type(module) for module in mlp] if isinstance(mlp, nn.Sequential) else []
        if not kinds or len(kinds) % 2 or any(kind is not nn.Linear for kind in kinds[::2]):
            return False
        if any(kind not in ACTIVATIONS for kind in kinds[1::2]) or any(getattr(m, "alpha", 1.0) != 1.0 for m in mlp[1::2]):
            return False
    return True


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: FusedNet, obs: Tensor, sequences: Sequences | None, *parameters: nn.Parameter) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.net, ctx.work = net, net.take_work(obs, sequences)
        ctx.taken = ctx.work.taken
        ctx.save_for_backward(obs)
        return net.forward_by_hand(obs, ctx.work)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, head: Tensor | None, values: Tensor | None) -> tuple[Any, ...]:
        (obs,) = ctx.saved_tensors
        if ctx.work.taken != ctx.taken:
            raise RuntimeError("this forward pass was overwritten by a later one: backward() twice through the same graph")
        if ctx.needs_input_grad[1]:
            raise RuntimeError(f"the fused network gives no gradient with respect to its observations: {PLAIN_PATH}")
        grads = ctx.net.backward_by_hand(obs, ctx.work, head, values)
        ctx.net.give_back(ctx.work)
        return None, None, None, *grads


def linear_gradients(grad: Tensor, below: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """grad (B, out), below (B, in) -> those of a layer's weight (out, in) and bias (out,), written into `weight` and `bias` where given.

    The narrower one stands left: with the wider one there, 4 by 64 take five times longer.
    """
    if below.shape[1] < grad.shape[1]:
        of_weight = torch.mm(below.t(), grad, out=None if weight is None else weight.t()).t()
    else:
        of_weight = torch.mm(grad.t(), below, out=weight)
    return of_weight if weight is None else weight, torch.sum(grad, 0, out=bias)


def _layers(mlp: Any) -> list[Layer]:
    return [Layer(linear.weight, linear.bias, *ACTIVATIONS[type(act)]) for linear, act in zip(mlp[::2], mlp[1::2], strict=True)]
