"""Whether two forms of a model say the same: their logits on the same random tokens.

A form is only handed out after this was looked at. Up to 1e-4 of the largest logit (of 1, where all
are smaller) is what float32 leaves open; weights that are kept in fewer bits are rounded when
they are changed, and a few of their last bits are allowed for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.errors import GradexError
from gradex.models.load import DTYPES, Base

TOLERANCE = 1e-4
LAST_BITS = 4  # roundings of the weights' dtype
SAMPLES, TOKENS = 4, 16


@dataclass(frozen=True)
class Agreement:
    """The largest difference of two models' logits, what it is allowed to be, and for comparison
    how far the adapter moves the logits of its base."""

    difference: float
    allowed: float
    moved: float

    def sentence(self) -> str:
        return (
            f"the logits differ by at most {self.difference:.2g} (the adapter moves them by "
            f"{self.moved:.2g})"
        )

    def require(self, what: str) -> None:
        if self.difference > self.allowed:
            raise GradexError(
                f"{what}: the logits differ by {self.difference:.2g} from those of the adapter on "
                f"its base, at most {self.allowed:.2g} was expected; nothing is kept of it"
            )


def probe(base: Base, *, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens as the input of a model of this family, on its device."""
    generator = torch.Generator().manual_seed(seed)
    count = base.model.get_input_embeddings().num_embeddings

    def drawn() -> Tensor:
        ids = torch.randint(count, (SAMPLES, TOKENS), generator=generator)
        return ids.to(base.model.device)

    inputs = {"input_ids": drawn()}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if base.family == "seq2seq":
        inputs["decoder_input_ids"] = drawn()
    return inputs


@torch.inference_mode()
def answers(model: nn.Module, inputs: Mapping[str, Tensor], *, of: object) -> Float[Tensor, "..."]:
    """The model's logits, without dropout; `of` names the model in an error."""
    logits = model.eval()(**inputs).logits.float().cpu()
    if not logits.isfinite().all():
        raise GradexError(f"{of}: its logits are not finite; there is a NaN in its weights")
    return logits


def compare(found: Tensor, wanted: Tensor, plain: Tensor, *, dtype: str) -> Agreement:
    """Logits of the new form, of the adapter on its base, and of the base alone."""
    rounding = 0.0 if dtype == "float32" else LAST_BITS * torch.finfo(DTYPES[dtype]).eps
    relative = max(TOLERANCE, rounding)
    return Agreement(
        difference=float((found - wanted).abs().max()),
        allowed=relative * max(1.0, float(wanted.abs().max())),
        moved=float((wanted - plain).abs().max()),
    )
