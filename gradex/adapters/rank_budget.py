"""AdaLoRA's budget: how many triplets all layers together may keep after each optimizer step.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (2023), equation 12.
Of b0 triplets at first bT are left in the end, after step t of T:

    b(t) = b0                                                      t <= t_init
    b(t) = bT + (b0 - bT) (1 - (t - t_init) / (T - t_init - t_final))^3        in between
    b(t) = bT                                                      t >= T - t_final

Steps are optimizer steps, and the first is step 1. Every deltaT of them the budget is dealt out
anew, so that a layer may win a triplet back; from step T - t_final on all keep what they have.
"""

import math
from dataclasses import dataclass

from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError

# Shares of the steps. Importance is noise at first, and what is left wants steps of its own.
WARM_UP, FINAL = 0.1, 0.3
DEALS = 200  # the budget is dealt out at most about so often


@dataclass(frozen=True)
class Budget:
    """Ranks are those of one matrix: of all together, as many times as there are matrices."""

    init_r: int
    target_r: int
    total: int
    tinit: int
    tfinal: int
    delta: int = 1

    @property
    def settled(self) -> int:
        """The step from which on nothing is dealt out any more."""
        return self.total - self.tfinal

    def at(self, step: int, matrices: int) -> int:
        """The triplets that all matrices together keep after a step."""
        first, last = self.init_r * matrices, self.target_r * matrices
        if step <= self.tinit:
            return first
        if step >= self.settled:
            return last
        left = 1 - (step - self.tinit) / (self.settled - self.tinit)
        return int((first - last) * left**3 + last)

    def is_dealt_at(self, step: int) -> bool:
        """Whether the budget is dealt out anew after a step; at the settling one it always is."""
        if step >= self.settled:
            return step == self.settled
        return step > self.tinit and step % self.delta == 0


def budget_of(spec: AdapterSpec, steps: int) -> Budget:
    """The budget of a training of so many optimizer steps; 0 where none is planned."""
    options = spec.options
    init_r, tinit, tfinal, delta = (options[key] for key in ("init_r", "tinit", "tfinal", "deltaT"))
    tinit = int(WARM_UP * steps) if tinit is None else tinit
    tfinal = int(FINAL * steps) if tfinal is None else tfinal
    return Budget(
        init_r=default_init_r(spec.rank) if init_r is None else init_r,
        target_r=spec.rank,
        total=steps or tinit + tfinal + 1,
        tinit=tinit,
        tfinal=tfinal,
        delta=max(1, steps // DEALS) if delta is None else delta,
    )


def default_init_r(rank: int) -> int:
    return math.ceil(1.5 * rank)


def require_budget(spec: AdapterSpec, steps: int) -> None:
    """Refuse what leaves nothing to deal out; what hangs on the steps, where these are planned."""
    for key in ("beta1", "beta2"):
        if not 0 < spec.options[key] < 1:
            raise GradexError(f"--adapter_args {key}={spec.options[key]}: expected between 0 and 1")
    budget = budget_of(spec, steps)
    if budget.target_r >= budget.init_r:
        raise GradexError(
            f"--adapter_args init_r={budget.init_r}: AdaLoRA goes down from init_r to --lora_r, "
            f"which is {budget.target_r}; expected an init_r above it, such as "
            f"{default_init_r(budget.target_r)}"
        )
    if steps and budget.tinit >= budget.settled:
        raise GradexError(
            f"--adapter_args: tinit={budget.tinit} and tfinal={budget.tfinal} leave none of the "
            f"{steps} optimizer steps for going down from init_r to --lora_r; expected "
            f"tinit + tfinal below {steps}: lower them, leave them out, or raise --max_steps"
        )
