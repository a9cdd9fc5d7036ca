"""One model of several adapters on one base: the weighted mean of their token probabilities.

    p(token) = sum_i w_i p_i(token),  w on the simplex

After EnsembleLoRA (Li et al., 2025, arXiv 2505.21930), which sums the outputs of one adapter a
group of tasks with weights. Probabilities are mixed here, not logits: a mixture needs no sum over
the vocabulary to be normalised, so that what each member gives to the label tokens alone tells its
loss under any weights.
"""

import inspect
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradex.models.load import bare


class Blend(nn.Module):
    """Works like a model of transformers whose logits are the blend's log-probabilities.

    `weights` names adapters of the peft model, each with its share; one of weight 0 is not run.
    Every forward pass is one pass of the base a member, and leaves the last member's adapter set.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, float]):
        super().__init__()
        self.model = model
        self.shares = {name: weight for name, weight in weights.items() if weight > 0}

    def get_base_model(self) -> nn.Module:
        return bare(self.model)

    @property
    def generation_config(self) -> Any:
        return self.get_base_model().generation_config

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """`logits`: log-probabilities, in float32, wherever the members have logits."""
        return SimpleNamespace(logits=self._mixed(lambda _: self.model(**inputs).logits))

    def _mixed(self, logits_of: Any) -> Float[Tensor, "*place vocab"]:
        mixed = None
        for name, share in self.shares.items():
            self.model.set_adapter(name)
            own = logits_of(name).float().log_softmax(-1) + math.log(share)
            mixed = own if mixed is None else torch.logaddexp(mixed, own)
        return mixed

    @torch.inference_mode()
    def generate(
        self,
        *,
        input_ids: Int[Tensor, "sample token"],
        attention_mask: Int[Tensor, "sample token"],
        max_new_tokens: int,
        pad_token_id: int,
        eos_token_id: list[int],
        **_: object,
    ) -> Int[Tensor, "sample written"]:
        """Greedy answers, as the `generate` of transformers gives them: with the prompt, padded on
        its left, for a causal model. Its switches for other kinds of decoding are not looked at."""
        writer = _Writer(self.model, input_ids, attention_mask)
        ends = torch.tensor(eos_token_id, device=input_ids.device)
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            best = self._mixed(writer.next_logits).argmax(-1).masked_fill(ended, pad_token_id)
            writer.append(best)
            ended |= torch.isin(best, ends)
            if ended.all():
                break
        return writer.written


class _Writer:
    """The text so far, and how far each member has read it: its cache of keys and values."""

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor):
        self.model, self.mask = model, attention_mask
        config = bare(model).config
        self.asked = input_ids if config.is_encoder_decoder else None
        begun = torch.full_like(input_ids[:, :1], getattr(config, "decoder_start_token_id", 0) or 0)
        self.written = begun if config.is_encoder_decoder else input_ids
        self.unread = self.written
        self.read: dict[str, Any] = {}
        self.accepted = inspect.signature(bare(model).forward).parameters

    def next_logits(self, member: str) -> Float[Tensor, "sample vocab"]:
        """What the member, whose adapter is set, makes of all that is written."""
        out = self.model(**self._inputs(), past_key_values=self.read.get(member), use_cache=True)
        self.read[member] = out.past_key_values
        return out.logits[:, -1]

    def _inputs(self) -> dict[str, Tensor | int]:
        if self.asked is not None:
            return {
                "input_ids": self.asked,
                "attention_mask": self.mask,
                "decoder_input_ids": self.unread,
            }
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -self.unread.shape[1] :]
        wanted = {"position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in wanted.items() if name in self.accepted}
        return {"input_ids": self.unread, "attention_mask": self.mask, **known}

    def append(self, tokens: Int[Tensor, " sample"]) -> None:
        self.unread = tokens[:, None]
        self.written = torch.cat([self.written, self.unread], dim=1)
        if self.asked is None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.unread)], dim=1)
