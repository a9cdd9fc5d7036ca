"""Which layers an adapter is asked to change: every name must be that of one.

peft refuses only where none of the names is, and leaves out the others without a word.
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from gradex.adapters.residual import lora_layers
from gradex.adapters.spec import ALL_LINEAR
from gradex.errors import GradexError

FLAG = "--lora_target_modules"
MOST_NAMED = 40


def require_targets(model: nn.Module, targets: Sequence[str], *, where: str = FLAG) -> None:
    """Names are matched as peft does: a module's whole name, or its last parts."""
    paths = [name for name, _ in model.named_modules() if name]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            raise GradexError(
                f"{where}: {target or 'a name of no letters'} is in no layer of this model"
                f"{_near(model, target)}; its layers "
                f"are {', '.join(layer_names(model)[:MOST_NAMED])}, or say {ALL_LINEAR}"
            )


def _near(model: nn.Module, target: str) -> str:
    near = get_close_matches(target.split(".")[-1], layer_names(model), n=3)
    return f" (near: {', '.join(near)})" if near else ""


def layer_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all Linear and Conv1D layers."""
    kinds = ("Linear", "Conv1D")
    names = [n for n, m in model.named_modules() if type(m).__name__ in kinds]
    return sorted({name.split(".")[-1] for name in names})


def require_takeable(model: nn.Module, kind: str) -> None:
    """Refuse layers of which no part can be taken out: embeddings have matrices of another form,
    and a weight that is another layer's too would change below both."""
    from peft.tuners.lora import LoraLayer

    linear = dict(lora_layers(model))
    users = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if name not in linear or users[id(module.get_base_layer().weight)] > 1:
            raise GradexError(
                f"{FLAG}: {name} is an embedding or shares its weight with another layer, so that "
                f"--adapter {kind} cannot take a part of it out; leave it out"
            )
