"""What can be asked of predictions where no answer is known: that they are sure, and not all alike.

The surrogate loss of an unlabelled target in ParetoDA (Lv et al., NeurIPS 2021) is minus the mutual
information of a batch's rows and their predictions,

    H(mean over rows of p) - mean over rows of H(p),

which grows as each prediction p becomes sure while their mean stays spread over the options. It
does not say which option is right for which row: that is for the sources to teach.

`refined` is ParetoDA's use of a discriminator that is given the option: by Bayes' rule,
p(option | row, target) is proportional to p(option | row) p(target | row, option), so that the
logarithms add. (The published code multiplies logits by probabilities, which is no posterior: there
a likely option with a negative logit becomes likelier the less the discriminator believes in it.)

A classifier's prediction is the distribution of its classes. A language model's is that of the
answer's first token: all further ones depend on an answer that is not there.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from gradex.data.tokens import IGNORED, Batch, Family
from gradex.models.load import bare
from gradex.models.losses import head_on

Logits = Float[Tensor, "sample option"]


def mutual_information(logits: Logits) -> Float[Tensor, ""]:
    """In nats and in float32: 0 where all rows are alike, at most the logarithm of the number of
    rows or of options, whichever is smaller."""
    log_p = logits.float().log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    return _entropy(log_mean) - _entropy(log_p).mean()


def unlabelled_surrogate(logits: Logits) -> Float[Tensor, ""]:
    """The loss of a batch without answers: lower is better."""
    return -mutual_information(logits)


def refined(logits: Logits, domain_logits: Logits) -> Logits:
    """The predictions for rows that are known to be the target's, as logits.

    `domain_logits` are the log odds that a row with this option comes from the target.
    """
    return logits.float().log_softmax(-1) + logsigmoid(domain_logits.float())


def answer_logits(model: nn.Module, batch: Batch, family: Family) -> Logits:
    """The prediction for each row, made from its prompt: its answer is not read."""
    inputs: dict[str, Any] = {
        "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]
    }  # fmt: skip
    if family == "classifier":
        return model(**inputs).logits
    if family == "seq2seq":
        # What the decoder says to its start token alone.
        start = bare(model).prepare_decoder_input_ids_from_labels(batch["labels"])[:, :1]
        return model(**inputs, decoder_input_ids=start).logits[:, 0]
    # No token sees those after it: the one before the answer knows nothing of the answer.
    learned = batch["labels"] != IGNORED
    last = learned[:, 1:].int().argmax(1)
    rows = torch.arange(len(last), device=last.device)
    with head_on(bare(model), learned, rows * learned.shape[1] + last) as shown:
        logits = model(**inputs, use_cache=False).logits
    return logits if shown else logits[:, -learned.shape[1] :][rows, last]


def _entropy(log_p: Float[Tensor, "*sample option"]) -> Float[Tensor, "*sample"]:
    return -(log_p.exp() * log_p).sum(-1)
