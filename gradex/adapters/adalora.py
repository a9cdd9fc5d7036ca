"""AdaLoRA: P diag(E) Q on every layer, and the triplets that matter most of all layers together.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (2023). A rank of
W + s B (E * A) is a triplet: a row of A, a number of E, a column of B. It is dropped by making its
E zero. Of every number w with gradient g (equations 8 to 11):

    sensitivity  I = |w g|               smoothed    S <- beta1 S + (1 - beta1) I
    uncertainty  |I - S|                 smoothed    U <- beta2 U + (1 - beta2) |I - S|
    importance   S U;  of a triplet: that of its E, and the means over its row of A and column of B

The scale s = alpha / init_r stays what it was, however many triplets are dropped.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradex.adapters.rank_budget import Budget
from gradex.adapters.residual import ADAPTER, WRAPPED
from gradex.errors import GradexError

PARTS = ("lora_A", "lora_E", "lora_B")


def svd_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with triplets, by their names in the base model."""
    from peft.tuners.adalora import SVDLinear

    for name, module in model.named_modules():
        if isinstance(module, SVDLinear) and ADAPTER in module.lora_A:
            yield name.removeprefix(WRAPPED), module


def is_adalora(model: nn.Module) -> bool:
    config = getattr(model, "peft_config", {}).get(ADAPTER)
    return config is not None and config.peft_type == "ADALORA"


def kept_ranks(model: nn.Module) -> dict[str, dict[str, int]]:
    """Layer -> how many triplets it has `kept`, and `of` how many; empty for other kinds."""
    return {
        name: {
            "kept": int((layer.lora_E[ADAPTER] != 0).sum()),
            "of": model.peft_config[ADAPTER].init_r,
        }
        for name, layer in svd_layers(model)
    }


def orthogonality(model: nn.Module) -> Float[Tensor, ""]:
    """What is added to the loss so that triplets stay apart: the weighted mean, over all A and B,
    of ||A A^T - 1|| and ||B^T B - 1|| (Frobenius). In float32 under any autocast."""
    if not is_adalora(model):
        return torch.zeros(())
    grams = []
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        for _, layer in svd_layers(model):
            a, b = layer.lora_A[ADAPTER].float(), layer.lora_B[ADAPTER].float()
            grams += [a @ a.T, b.T @ b] if len(a) else []
        distances = [torch.linalg.norm(g - torch.eye(len(g), device=g.device)) for g in grams]
        return model.peft_config[ADAPTER].orth_reg_weight * torch.stack(distances).mean()


class Allocator:
    """Deals out the budget after optimizer steps, while the gradients of the step are there."""

    def __init__(self, model: nn.Module, *, steps: int):
        self.config = model.peft_config[ADAPTER]
        self.layers = dict(svd_layers(model))
        self.budget = _budget_of(self.config, steps)
        self.averages: dict[str, tuple[Tensor, Tensor]] = {}  # of a parameter: S and U
        self.kept: dict[str, Bool[Tensor, " rank"]] = {}  # as it was dealt out last

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Once after every optimizer step, the first being step 1."""
        if step < self.budget.settled:
            self._observe()
        if self.budget.is_dealt_at(step):
            self._deal(self.budget.at(step, len(self.layers)))
        if self.budget.is_dealt_at(step) or step > self.budget.settled:
            self._mask()

    def _observe(self) -> None:
        for name, parameter in self._parameters():
            if parameter.grad is None:  # of a layer that no row has reached
                continue
            sensitivity = (parameter * parameter.grad).abs()
            zero = torch.zeros_like(sensitivity)
            mean, spread = (part.to(zero.device) for part in self.averages.get(name, (zero, zero)))
            mean = torch.lerp(sensitivity, mean, self.config.beta1)
            spread = torch.lerp((sensitivity - mean).abs(), spread, self.config.beta2)
            self.averages[name] = mean, spread

    def _deal(self, budget: int) -> None:
        """The triplets of the largest importance; of equal ones, those that come first."""
        importance = {name: self._importance(name, layer) for name, layer in self.layers.items()}
        order = torch.cat(list(importance.values())).argsort(descending=True, stable=True)
        kept = torch.zeros_like(order, dtype=torch.bool)
        kept[order[:budget]] = True
        parts = kept.split([len(part) for part in importance.values()])
        self.kept = dict(zip(self.layers, parts, strict=True))
        self._tell_peft()

    def _importance(self, name: str, layer: Any) -> Float[Tensor, " rank"]:
        def score(part: str) -> Tensor:
            found = self.averages.get(f"{name}.{part}")
            return found[0] * found[1] if found else torch.zeros_like(getattr(layer, part)[ADAPTER])

        return score("lora_E")[:, 0] + score("lora_A").mean(1) + score("lora_B").mean(0)

    def _mask(self) -> None:
        for name, layer in self.layers.items():
            e = layer.lora_E[ADAPTER]
            e.masked_fill_(~self.kept[name].to(e.device)[:, None], 0.0)

    def _tell_peft(self) -> None:
        """Whose folders say which triplets they hold."""
        if self.kept:
            pattern = {f"{name}.lora_E": kept.tolist() for name, kept in self.kept.items()}
            self.config.rank_pattern = pattern

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self.layers.items():
            for part in PARTS:
                yield f"{name}.{part}", getattr(layer, part)[ADAPTER]

    def state_dict(self) -> dict[str, Any]:
        return {"averages": dict(self.averages), "kept": dict(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.averages = dict(state["averages"])
        self.kept = dict(state["kept"])
        self._tell_peft()


def _budget_of(config: Any, steps: int) -> Budget:
    if config.total_step != steps:
        raise GradexError(
            f"AdaLoRA's total_step is {config.total_step}, but the training is one of {steps} "
            "optimizer steps; the two have to be the same"
        )
    return Budget(
        init_r=config.init_r,
        target_r=config.target_r,
        total=steps,
        tinit=config.tinit,
        tfinal=config.tfinal,
        delta=config.deltaT,
    )


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """peft takes a layer that keeps no rank for a broken one, and AdaLoRA's pattern of ranks for
    that of a LoRA."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LoRA tensor\(s\) have invalid shape")
        warnings.filterwarnings("ignore", r"The following rank_pattern keys.*\.lora_E")
        yield


def forget_lossy_pattern(model: nn.Module) -> None:
    """Between two deals dropped triplets grow again, and peft, which saves those of the pattern
    alone, would save another model: it is to save all then."""
    if is_adalora(model) and _grew_again(model):
        model.peft_config[ADAPTER].rank_pattern = None


def _grew_again(model: nn.Module) -> bool:
    pattern = model.peft_config[ADAPTER].rank_pattern or {}
    # peft leaves the adapter's name out of the pattern, but for one that it has not yet saved.
    kept = {key.removesuffix(f".{ADAPTER}"): kept for key, kept in pattern.items()}
    return any(_is_lossy(layer, kept.get(f"{name}.lora_E")) for name, layer in svd_layers(model))


def _is_lossy(layer: Any, kept: Sequence[bool] | None) -> bool:
    e = layer.lora_E[ADAPTER].detach().flatten()
    if kept is None or len(kept) != len(e):  # a layer that was loaded holds only what it keeps
        return False
    return bool(e[~torch.tensor(kept, device=e.device)].any())
