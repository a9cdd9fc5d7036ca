"""An optimizer, a schedule and LoRA+ in the words of other trainers; what has none is refused.

Exactly the same there are adamw, with its betas and eps, and sgd as it comes: classes of torch. The
schedules are those of transformers for all.
"""

from typing import Any

from gradex.training.optimizers import OptimizerSpec

OPTIM = {"adamw": "adamw_torch", "sgd": "sgd"}
ADAM_WORDS = {"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",)}
LORAPLUS = ("llamafactory", "axolotl")
# open-instruct has AdamW alone, and lists its schedules.
OPEN_INSTRUCT_SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
)  # fmt: skip


def optimizer_words(spec: OptimizerSpec, *, learning_rate: float) -> dict[str, Any]:
    """Keys that LLaMA-Factory, axolotl and trl share, but for the schedule's."""
    words: dict[str, Any] = {"optim": OPTIM[spec.name]}
    for key, value in spec.options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        words |= dict(zip(ADAM_WORDS[key], numbers, strict=True))
    if spec.loraplus_ratio != 1:
        words |= {
            "loraplus_lr_ratio": spec.loraplus_ratio,
            "loraplus_lr_embedding": learning_rate,  # their default all but halts embeddings
        }
    return words


def why_not(trainer: str, spec: OptimizerSpec) -> str | None:
    """Why the trainer cannot take such steps, in words; None where it can."""
    if spec.name not in OPTIM or (trainer == "open_instruct" and spec.name != "adamw"):
        return f"it has no optimizer {spec.name}"
    settable = ADAM_WORDS if spec.name == "adamw" and trainer != "open_instruct" else {}
    for key in spec.options:
        if key not in settable:
            return f"it cannot be told '{key}' of {spec.name}"
    if spec.loraplus_ratio != 1 and trainer not in LORAPLUS:
        return "it has no LoRA+"
    if trainer == "open_instruct" and spec.schedule not in OPEN_INSTRUCT_SCHEDULES:
        return f"it has no schedule {spec.schedule}"
    return None
