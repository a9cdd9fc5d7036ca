"""Per-sample gradients equal a batch-of-one autograd loop: every adapter, family and padding."""

import peft
import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from gradex.data.tokens import collate
from gradex.errors import GradexError
from gradex.gradients.layers import param_count, trainable_slots
from gradex.gradients.per_sample import (
    GradientPass,
    LoopPass,
    make_pass,
    per_sample_gradients,
)
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}
TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": "SEQ_CLS"}


def lora(**settings):
    return lambda **common: peft.LoraConfig(r=3, lora_alpha=5, **settings, **common)


def miss(init_weights, **settings):
    return lambda **common: peft.MissConfig(r=4, init_weights=init_weights, **settings, **common)


ADAPTERS = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "mica": lora(init_lora_weights="mica"),
    "lora biases": lora(bias="lora_only"),
    "all biases": lora(bias="all"),
    "milora": lora(),
    "corda": lora(),
    "adalora": lambda **common: peft.AdaLoraConfig(init_r=3, total_step=10, **common),
    "adalora biases": lambda **common: peft.AdaLoraConfig(
        init_r=3, total_step=10, bias="all", **common
    ),
    "miss": miss(True),
    "miss mini": miss("mini", mini_r=4),
    "bone": miss("bat"),
    "vera": lambda **common: peft.VeraConfig(r=3, **common),
    "ia3": peft.IA3Config,
}
NAMED = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "t5": ["q", "v", "wo"],
    "bert": ["query", "value", "output.dense"],
}
FEEDFORWARD = {
    "llama": ["down_proj"], "gpt2": ["mlp.c_proj"], "t5": ["wo"], "bert": ["output.dense"],
}  # fmt: skip
# peft has no MiSS for GPT-2's Conv1D, and its OLoRA takes the wrong side of it.
WITHOUT_CONV1D = ("miss", "miss mini", "bone", "olora")
PAIRS = [(a, k) for a in ADAPTERS for k in FAMILIES if k != "gpt2" or a not in WITHOUT_CONV1D]


def adapted(folder, adapter: str, kind: str, **loading):
    """A tiny base with an adapter whose every trainable parameter is away from its start."""
    model = load_base(BaseSpec(str(folder(kind)), **loading)).model
    common = {"task_type": TASKS[FAMILIES[kind]], "target_modules": NAMED[kind]}
    if adapter == "ia3":
        common["feedforward_modules"] = FEEDFORWARD[kind]
    if kind == "gpt2":
        common["fan_in_fan_out"] = True
    torch.manual_seed(0)
    model = peft.get_peft_model(model, ADAPTERS[adapter](**common))
    if adapter in ("milora", "corda"):
        take_out_of_base(model, minor=adapter == "milora")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.data += noise.to(parameter.dtype)
    return model.eval()


def take_out_of_base(model, *, minor: bool):
    """MiLoRA's start (the minor singular directions, not the residual, are trained) or CorDA's.

    CorDA's is U U^T W for the left singular vectors U of W C, here with a random covariance C.
    """
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            base, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
            weight = base.weight.data.T if layer.fan_in_fan_out else base.weight.data
            seen = weight if minor else weight @ torch.randn(weight.shape[1], weight.shape[1])
            u = torch.linalg.svd(seen, full_matrices=False).U
            u = u[:, -3:] if minor else u[:, :3]
            a.weight.data, b.weight.data = u.T @ weight, u / layer.scaling["default"]
            weight -= u @ u.T @ weight


def loop_gradients(model, examples, family, objective="loss"):
    """The obvious slow way: one backward a sample, parameters in their order."""
    rows = []
    for example in examples:
        model.zero_grad()
        batch = collate([example], family=family, pad_id=0)
        sample_objectives(model, batch, family)[0][objective].sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        rows.append(torch.cat([part.flatten().float() for part in parts]))
    model.zero_grad()
    return torch.stack(rows)


def fused(model, batch, family, objective="loss"):
    """By the taps alone, without a way out."""
    gradients = GradientPass(model, family)
    out = torch.zeros(len(batch["input_ids"]), param_count(gradients.slots))

    def keep(part, offset, samples):
        out[samples, offset : offset + part.shape[1]] = part

    with gradients.hooked():
        gradients.run(batch, {objective: keep})
    return out


def error(fast, slow):
    assert slow.norm(dim=1).min() > 0
    return float(((fast - slow).norm(dim=1) / slow.norm(dim=1)).max())


@pytest.mark.parametrize(("adapter", "kind"), PAIRS)
def test_equals_a_loop_over_single_samples(model_folder, toy_batch, adapter, kind):
    family, model = FAMILIES[kind], adapted(model_folder, adapter, kind)
    examples, batch = toy_batch(family)
    assert error(fused(model, batch, family), loop_gradients(model, examples, family)) < 1e-5
    assert isinstance(make_pass(model, family, batch), GradientPass)


@pytest.mark.parametrize("kind", FAMILIES)
def test_margins_too(model_folder, toy_batch, kind):
    family, model = FAMILIES[kind], adapted(model_folder, "lora", kind)
    examples, batch = toy_batch(family)
    slow = loop_gradients(model, examples, family, "margin")
    assert error(fused(model, batch, family, "margin"), slow) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_left_padding_gives_the_same_gradients(model_folder, toy_batch, kind):
    model = adapted(model_folder, "lora", kind)
    examples, batch = toy_batch("causal", padding_side="left")
    if kind == "gpt2":  # learned positions do not follow the mask by themselves
        examples = [e for e in examples if e.length == max(x.length for x in examples)]
        batch = collate(examples, family="causal", pad_id=0, padding_side="left")
    assert error(fused(model, batch, "causal"), loop_gradients(model, examples, "causal")) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_either_attention(model_folder, toy_batch, kind, attention):
    family, model = FAMILIES[kind], adapted(model_folder, "lora", kind)
    model.get_base_model().set_attn_implementation(attention)
    examples, batch = toy_batch(family)
    assert error(fused(model, batch, family), loop_gradients(model, examples, family)) < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_gradient_checkpointing(model_folder, toy_batch, kind, adapter, reentrant):
    family, model = FAMILIES[kind], adapted(model_folder, adapter, kind)
    examples, batch = toy_batch(family)
    slow = loop_gradients(model, examples, family)
    base = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    for module in model.modules():  # they only checkpoint in training mode; no dropout, though
        module.training = isinstance(module, GradientCheckpointingLayer)
    if reentrant and kind == "t5":
        pytest.skip("its encoder states reach the decoder by keyword, which reentrant cuts off")
    assert error(fused(model, batch, family), slow) < 1e-5


@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora", "miss", "vera", "ia3"])
def test_bfloat16_is_within_its_rounding(model_folder, toy_batch, adapter):
    model = adapted(model_folder, adapter, "llama", dtype="bfloat16")
    examples, batch = toy_batch("causal")
    slow = loop_gradients(model, examples, "causal")
    assert error(fused(model, batch, "causal"), slow) < 1e-2
    assert isinstance(make_pass(model, "causal", batch), GradientPass)


def test_samples_are_invariant_to_their_batch(model_folder, toy_batch):
    model = adapted(model_folder, "lora", "llama")
    examples, batch = toy_batch("causal")
    order = [2, 0, 3, 1]
    shuffled = collate([examples[i] for i in order], family="causal", pad_id=0)
    together = per_sample_gradients(model, batch)[order]
    assert error(per_sample_gradients(model, shuffled), together) < 1e-5


def test_the_pass_leaves_the_model_as_it_was(model_folder, toy_batch):
    model = adapted(model_folder, "lora", "llama")
    _, batch = toy_batch("causal")
    before = [(n, p.requires_grad) for n, p in model.named_parameters()]
    per_sample_gradients(model, batch)
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == before
    assert all(p.grad is None for p in model.parameters() if p.requires_grad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_weight_gradient_is_asked_of_autograd(model_folder, toy_batch):
    model = adapted(model_folder, "lora", "llama")
    gradients = GradientPass(model, "causal")
    with gradients.hooked():
        assert not any(p.requires_grad for p in model.parameters())


def with_modules(model_folder, kind: str, *modules: str, **settings):
    """LoRA, and whole modules trained beside it."""
    base = load_base(BaseSpec(str(model_folder(kind)))).model
    config = peft.LoraConfig(
        r=2, task_type=TASKS[FAMILIES[kind]], modules_to_save=list(modules) or None,
        fan_in_fan_out=kind == "gpt2", **settings,
    )  # fmt: skip
    return peft.get_peft_model(base, config).eval()


@pytest.mark.parametrize("module", ["lm_head", "mlp.down_proj"])
def test_whole_layers_beside_the_adapter(model_folder, toy_batch, module):
    model = with_modules(model_folder, "llama", module)
    examples, batch = toy_batch("causal")
    assert error(fused(model, batch, "causal"), loop_gradients(model, examples, "causal")) < 1e-5


@pytest.mark.parametrize(("kind", "module"), [("llama", "input_layernorm"), ("gpt2", "ln_1")])
def test_a_layer_without_a_formula_is_differentiated_alone(
    model_folder, toy_batch, kind, module, caplog
):
    model = with_modules(model_folder, kind, module)
    examples, batch = toy_batch("causal")
    with caplog.at_level("INFO"):
        gradients = make_pass(model, "causal", batch)
    assert module in str(gradients.slow_layers()) and f"{module}.modules_to_save" in caplog.text
    assert set(gradients.slow_layers().values()) == {"vmap"}
    assert error(fused(model, batch, "causal"), loop_gradients(model, examples, "causal")) < 1e-5


class Stubborn(nn.Module):
    """A layer that vmap refuses: what it does depends on the data."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return x * self.scale if float(x.detach().abs().max()) >= 0 else x


def test_what_vmap_refuses_is_differentiated_sample_by_sample(model_folder, toy_batch):
    model = load_base(BaseSpec(str(model_folder("llama")))).model.requires_grad_(False)
    model.model.norm = Stubborn(32)
    examples, batch = toy_batch("causal")
    gradients = make_pass(model, "causal", batch)
    assert gradients.slow_layers() == {"model.norm": "loop"}
    assert error(fused(model, batch, "causal"), loop_gradients(model, examples, "causal")) < 1e-5


def test_a_layer_that_runs_twice_has_the_sum(model_folder, toy_batch):
    model = with_modules(model_folder, "llama", target_modules=["q_proj", "v_proj", "gate_proj"])
    layers = model.get_base_model().model.layers
    layers[1].mlp = layers[0].mlp
    examples, batch = toy_batch("causal")
    assert error(fused(model, batch, "causal"), loop_gradients(model, examples, "causal")) < 1e-5


def full(model_folder, kind: str):
    return load_base(BaseSpec(str(model_folder(kind)))).model.eval()


def prompts(model_folder, kind: str):
    config = peft.PromptTuningConfig(task_type=TASKS[FAMILIES[kind]], num_virtual_tokens=3)
    return peft.get_peft_model(full(model_folder, kind), config).eval()


def dora_with_biases(model_folder, kind: str):
    """peft's DoRA takes the base layer's bias off outside of that layer."""
    model = with_modules(model_folder, kind, use_dora=True, bias="all")
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.5
    return model


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (full, "llama", "embedding table"),
        (full, "t5", "is the same parameter as"),
        (prompts, "llama", "prompts stand before"),
        (dora_with_biases, "bert", "where no hook sees it"),
    ],
)
def test_what_no_tap_can_tell_apart_goes_by_the_loop(
    model_folder, toy_batch, make, kind, reason, caplog
):
    family, model = FAMILIES[kind], make(model_folder, kind)
    examples, batch = toy_batch(family)
    assert isinstance(make_pass(model, family, batch), LoopPass)
    assert reason in caplog.text and "one backward a sample" in caplog.text
    fast = per_sample_gradients(model, batch, family=family)
    assert error(fast, loop_gradients(model, examples, family)) < 1e-5


def test_a_model_without_trainable_parameters_is_refused(model_folder):
    model = full(model_folder, "llama").requires_grad_(False)
    with pytest.raises(GradexError, match="no trainable parameters"):
        trainable_slots(model)


def test_slots_lie_in_the_order_of_the_parameters(model_folder):
    model = adapted(model_folder, "dora", "llama")
    slots = trainable_slots(model)
    trained = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    assert [(slot.name, slot.size) for slot in slots] == trained
    assert [slot.offset for slot in slots] == [
        sum(n for _, n in trained[:i]) for i in range(len(trained))
    ]
