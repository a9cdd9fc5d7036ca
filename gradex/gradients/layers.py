"""What an adapter trains: every trainable parameter's place in the flat gradient, by layer.

The flat gradient has the parameters in the order of `model.named_parameters()`.
"""

from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Float
from torch import Tensor, nn

from gradex.errors import GradexError
from gradex.gradients.formulas import LayerAlone, Rule, linear_weight, rules_of

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


@dataclass(frozen=True)
class Slot:
    """A trainable parameter: its place in the flat gradient, and in the layer that uses it."""

    name: str
    parameter: nn.Parameter
    offset: int
    layer: nn.Module
    layer_name: str
    key: str  # the parameter's name within the layer
    rule: Rule | None

    @property
    def size(self) -> int:
        return self.parameter.numel()

    @cached_property
    def adapter(self) -> str:
        """The adapter's name in peft's dictionaries, where the parameter lies in one."""
        return self.key.split(".")[1] if "." in self.key else ""

    def gradient(
        self, kept: Float[Tensor, "sample token _"], g: Float[Tensor, "sample token out"]
    ) -> Float[Tensor, "sample param"]:
        assert self.rule is not None
        return self.rule.formula(self.layer, self.adapter, kept, g).flatten(1)


@dataclass(eq=False)
class Layer:
    """Slots of one module whose gradients come from the same kept tensor: one tap."""

    name: str
    module: nn.Module
    slots: list[Slot] = field(default_factory=list)
    alone: LayerAlone | None = None

    @cached_property
    def reads_output(self) -> bool:
        return any(slot.rule is not None and slot.rule.reads == "output" for slot in self.slots)

    @cached_property
    def shareable(self) -> Slot | None:
        """The slot whose matrix product may be joined with others' on the same input."""
        found = [s for s in self.slots if s.rule is not None and s.rule.formula is linear_weight]
        return found[0] if found else None


def trainable_slots(model: nn.Module) -> list[Slot]:
    """A slot for each trainable parameter, in their order."""
    modules = dict(model.named_modules())
    slots: list[Slot] = []
    offset = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer_name, rule = _user(name, modules)
        key = name[len(layer_name) + 1 :] if layer_name else name
        layer = modules[layer_name]
        slots.append(Slot(name, parameter, offset, layer, layer_name, key, rule))
        offset += parameter.numel()
    if not slots:
        raise GradexError(
            "the model has no trainable parameters, so there are no gradients to take; attach an "
            "adapter first"
        )
    return slots


def _user(name: str, modules: dict[str, nn.Module]) -> tuple[str, Rule | None]:
    """The layer that knows a formula for the parameter, or else the innermost that is called."""
    above = [name[:at] for at, letter in enumerate(name) if letter == "."][::-1]
    for layer_name in above:
        attribute = name[len(layer_name) + 1 :].split(".")[0]
        for rule in rules_of(modules[layer_name]):
            if rule.attribute == attribute:
                return layer_name, rule
    called = [layer_name for layer_name in above if not isinstance(modules[layer_name], CONTAINERS)]
    return (called[0] if called else ""), None


def layers_of(slots: list[Slot]) -> list[Layer]:
    """The slots by module and by what their formula reads."""
    layers: dict[tuple[str, str], Layer] = {}
    for slot in slots:
        reads = slot.rule.reads if slot.rule is not None else "alone"
        layer = layers.setdefault((slot.layer_name, reads), Layer(slot.layer_name, slot.layer))
        layer.slots.append(slot)
    for (_, reads), layer in layers.items():
        if reads == "alone":
            layer.alone = LayerAlone([slot.key for slot in layer.slots])
    return list(layers.values())


def param_count(slots: list[Slot]) -> int:
    return slots[-1].offset + slots[-1].size


def loop_reason(model: nn.Module) -> str | None:
    """Why no tap can tell this model's gradients apart; None where taps do."""
    places: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            if id(parameter) in places:
                return f"{name} is the same parameter as {places[id(parameter)]}"
            places[id(parameter)] = name
    configs = getattr(model, "peft_config", {})
    if any(config.is_prompt_learning for config in configs.values()):
        return "its trained prompts stand before every sample"
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            return f"{name} is an embedding table, too large for a gradient a sample of the batch"
    return None
