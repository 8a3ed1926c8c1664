"""TRPO: Trust Region Policy Optimization, Schulman et al. 2015 (https://arxiv.org/abs/1502.05477), eq. 14 and appendix C:

    maximize  L(theta) = E[ pi(a|s) / pi_old(a|s) A ]   subject to   E[ KL(pi_old(.|s) || pi(.|s)) ] <= max_kl

One step per rollout: x = F^-1 g by conjugate gradient on products with the Fisher matrix F (the Hessian of that KL), then
theta += beta x with beta = sqrt(2 max_kl / x^T F x), shrunk until L has risen and the KL is within max_kl. Advantages: GAE (1506.02438).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal, kl_divergence

from algos.agent import Agent
from algos.heads import Output
from algos.options import AgentOptions
from core.registry import register_algo


@dataclasses.dataclass(kw_only=True)
class TRPOOptions(AgentOptions):
    max_kl: float = 0.01
    """delta of the paper: how far one epoch may move the policy on average, in nats."""

    cg_iterations: int = 15
    """Steps of the conjugate gradient: as many Fisher-vector products, each about two passes over the rollout."""

    cg_damping: float = 0.1
    """Added to the diagonal of the Fisher matrix."""

    line_search_steps: int = 10
    """How many fractions of the step are tried before the policy is left as it is."""

    line_search_shrink: float = 0.8
    """Each is this times the one before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("cg_iterations", 1), ("line_search_steps", 1), ("cg_damping", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.max_kl <= 0:
            raise ValueError(f"max_kl is {self.max_kl}: it must be positive")
        if not 0 < self.line_search_shrink < 1:
            raise ValueError(f"line_search_shrink is {self.line_search_shrink}: it must lie between 0 and 1")


@register_algo("trpo", config=TRPOOptions)
class TRPO(Agent):
    def update(self, batch):
        with torch.backends.cudnn.flags(enabled=not self.is_rnn):  # its recurrent layers cannot be differentiated twice
            metrics, moved = self.policy_step(batch)
        metrics.update(self.fit_critic(batch, moved))
        if not self.is_adaptive_lr:  # that one follows the KL, which max_kl bounds here
            self._schedule(torch.zeros(()))
        return metrics

    def policy_loss(self, mb, out):
        return -torch.exp(mb.old_neglogp - out.neglogp) * mb.advantages  # (B,)

    def surrogate(self, batch, out):
        """-L, averaged over the kept rows; with an entropy bonus where `entropy_coef` is not 0, as it is in the paper."""
        return self.mean(self.policy_loss(batch, out) - self.entropy_weight(batch) * out.entropy, batch.mask)

    def policy_step(self, batch):
        """The natural-gradient step. Returns metrics, and the parameters on which the policy depends: those that it moves."""
        with torch.no_grad():
            old = distributions(self.evaluate_actions(batch))
        if self.normalize_input:
            self.model.running_mean_std.eval()  # all that follows must see one normalization (with update_normalizer_once it does)
        out = self.evaluate_actions(batch)
        loss = self.surrogate(batch, out)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        parameters = [p for p, g in zip(trained, gradients, strict=True) if g is not None]
        gradient = self.ranks.mean_(flat(g for g in gradients if g is not None))
        hessian = hessian_product(self.mean(divergence(old, distributions(out)), batch.mask), parameters)

        def fisher(v: Tensor) -> Tensor:
            return self.ranks.mean_(hessian(v)) + self.options.cg_damping * v

        direction = conjugate_gradient(fisher, -gradient, self.options.cg_iterations)
        step = step_length(direction, fisher(direction), self.options.max_kl) * direction
        start = flat(parameters).detach()

        @torch.no_grad()
        def measure(fraction: float) -> tuple[float, float]:
            move(parameters, start + fraction * step)
            new = self.evaluate_actions(batch)
            parts = (self.surrogate(batch, new), self.mean(divergence(old, distributions(new)), batch.mask))
            loss, kl = self.ranks.mean_(torch.stack(parts)).tolist()
            return loss, kl

        before = self.ranks.mean(loss.detach()).item()
        fraction, after, distance = line_search(measure, before, self.options)
        metrics = {"trpo/improvement": before - after, "trpo/step_fraction": fraction, "trpo/step_norm": fraction * step.norm().item()}
        entropy = self.mean(out.entropy.detach(), batch.mask).item()
        return {"losses/a_loss": after, "losses/entropy": entropy, "info/kl": distance, **metrics}, parameters

    def fit_critic(self, batch, moved):
        """`mini_epochs` passes over minibatches, which leave the parameters `moved` by the policy's step alone. Returns metrics."""
        if not self.has_value_loss:
            return {}
        losses = []
        for parameter in moved:
            parameter.requires_grad_(False)
        for _ in range(self.mini_epochs_num):
            for mb in batch.minibatches(self.num_minibatches, self.options.shuffle):
                loss = self.mean(self.value_loss(mb, self.evaluate_actions(mb)), mb.mask)
                self.optimizer_step(0.5 * self.critic_coef * loss)
                losses.append(loss.detach())
        for parameter in moved:
            parameter.requires_grad_(True)
        return {"losses/c_loss": torch.stack(losses).mean().item()}


def distributions(out: Output) -> list[Distribution]:
    """The policy of an Output, for B rows: a Gaussian (B, A), or one categorical distribution (B, choices) per head."""
    if out.mus is not None:
        return [Normal(out.mus, out.sigmas, validate_args=False)]
    heads = out.logits if isinstance(out.logits, list) else [out.logits]
    return [Categorical(logits=logits, validate_args=False) for logits in heads]


def divergence(old: list[Distribution], new: list[Distribution]) -> Tensor:
    """KL(old || new) per row (B,), exact, summed over action dimensions or heads."""
    parts = [kl_divergence(p, q) for p, q in zip(old, new, strict=True)]
    return sum((part.sum(-1) if part.dim() > 1 else part for part in parts), start=torch.zeros(()))


def hessian_product(scalar: Tensor, parameters: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """v -> H v with the Hessian of a scalar by P parameters, both (P,). The Hessian of KL(old || new) at old is the Fisher matrix."""
    slope = flat(torch.autograd.grad(scalar, parameters, create_graph=True))
    return lambda v: flat(torch.autograd.grad(slope @ v, parameters, retain_graph=True, materialize_grads=True))


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-10) -> Tensor:
    """x (P,) with product(x) = b, approximately: product is v -> A v, with A symmetric and positive definite. At most `iterations`
    products; fewer where the squared residual falls below `tolerance`."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = residual @ residual
    for _ in range(iterations):
        if square < tolerance:
            break
        along = product(direction)
        alpha = square / (direction @ along)
        x += alpha * direction
        residual -= alpha * along
        square, last = residual @ residual, square
        direction = residual + square / last * direction
    return x


def step_length(x: Tensor, product: Tensor, max_kl: float) -> Tensor:
    """beta = sqrt(2 max_kl / x^T F x): beta x has a KL of max_kl, to second order. 0 where x is. x, product = F x: (P,)."""
    curvature = x @ product
    return torch.where(curvature > 0, torch.sqrt(2 * max_kl / curvature), 0.0)


def line_search(measure: Callable[[float], tuple[float, float]], before: float, options: TRPOOptions) -> tuple[float, float, float]:
    """The first of the fractions 1, shrink, shrink^2, ... of the step at which the loss is below `before` and the KL within max_kl.

    measure(fraction): goes there and returns (loss, KL). Returns fraction, loss, KL; fraction 0, where it goes back to, if none will do.
    """
    for i in range(options.line_search_steps):
        fraction = options.line_search_shrink**i
        loss, kl = measure(fraction)
        if loss < before and kl <= options.max_kl:
            return fraction, loss, kl
    return 0.0, *measure(0.0)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Their numbers one after the other (P,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def move(parameters: list[Tensor], to: Tensor) -> None:
    """Writes (P,) numbers into the parameters, where they lie."""
    for parameter, piece in zip(parameters, to.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(piece.view_as(parameter))
