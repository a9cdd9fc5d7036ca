"""Which adapters other trainers have, and the keys of their configs that make one.

A kind that a trainer's documented keys do not say exactly is not in its table.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gradex.adapters.spec import AdapterSpec

Keys = dict[str, Any]
# Kind of adapter -> its keys beside those of LoRA; of `full`, all the keys there are.
Adapters = Mapping[str, Callable[[AdapterSpec], Keys]]


def _always(**keys: Any) -> Callable[[AdapterSpec], Keys]:
    return lambda _: dict(keys)


def _llamafactory_pissa(iterations: int) -> Keys:
    """Converted at the end, the adapter loads on the plain base."""
    return {"pissa_init": True, "pissa_iter": iterations, "pissa_convert": True}


LLAMAFACTORY: Adapters = {
    "lora": _always(),
    "rslora": _always(use_rslora=True),
    "dora": _always(use_dora=True),
    "pissa": lambda _: _llamafactory_pissa(-1),  # the exact decomposition
    "pissa_niter": lambda spec: _llamafactory_pissa(spec.options["niter"]),
    "full": _always(finetuning_type="full"),
}
AXOLOTL: Adapters = {
    "lora": _always(),
    "rslora": _always(peft_use_rslora=True),
    "dora": _always(peft_use_dora=True),
    "pissa": _always(peft_init_lora_weights="pissa"),
    "pissa_niter": lambda spec: {"peft_init_lora_weights": f"pissa_niter_{spec.options['niter']}"},
    "olora": _always(peft_init_lora_weights="olora"),
    "full": _always(),
}
TRL: Adapters = {
    "lora": _always(),
    "rslora": _always(use_rslora=True),
    "dora": _always(use_dora=True),
    "full": _always(use_peft=False),
}
OPEN_INSTRUCT: Adapters = {"lora": _always(), "full": _always(use_lora=False)}


def adapter_keys(spec: AdapterSpec, adapters: Adapters, lora: Mapping[str, Any]) -> Keys:
    """The keys of LoRA and what makes it this kind; where all weights are trained, none of them."""
    own = adapters[spec.kind](spec)
    return own if spec.kind == "full" else {**lora, **own}
