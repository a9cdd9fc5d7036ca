"""Tokens: exactly the completion is labelled, whatever template brings the conversation to text."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.data.formats import BadRow, Row, content_id
from gradex.data.tokens import (
    IGNORED,
    Encoder,
    Example,
    collate,
    encode_all,
    label_names,
    log_bad,
    plain_text,
    token_batches,
)
from gradex.errors import GradexError

TURN = "{{ '<|' + m['role'] + '|>' }}"
HEAD = "{{ bos_token }}{% for m in messages %}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
MARKED = (
    HEAD + "{% if m['role'] == 'assistant' %}<|assistant|>{%- generation -%}"
    "{{ m['content'] + eos_token }}{%- endgeneration -%}"
    "{% else %}" + TURN + "{{ m['content'] }}{% endif %}" + TAIL
)
UNMARKED = (
    HEAD + TURN + "{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}" + TAIL
)
# As some chat models do: a system message that nobody wrote.
WITH_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|system|>be kind{% endif %}" + UNMARKED
# As reasoning models do: the prompt opens a thought that a written answer does not hold.
WITH_THOUGHT = UNMARKED.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
STRICT = (
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('no user first') }}{% endif %}"
    + UNMARKED
)
TEMPLATES = {
    "plain": None,
    "chat-generation": MARKED,
    "chat-prefix": UNMARKED,
    "with a system message": WITH_SYSTEM,
    "strict": STRICT,
}


def make_tokenizer(template=None, merges=(), **special):
    """One token a character (and a merge), so that ids can be read back."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127)), "\n", *map("".join, merges)]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
    backend.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = template
    return tokenizer


def make_encoder(template=None, family="causal", max_length=512, label_ids=None, **tokenizer):
    return Encoder(
        make_tokenizer(template, **tokenizer),
        family=family,
        max_length=max_length,
        label_ids=label_ids,
    )


def a_row(*turns, label=None):
    return Row(id=content_id(turns, label), messages=turns, label=label)


ROW = a_row(("user", "2+2?"), ("assistant", "It is 4."))
LONG = a_row(
    ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"),
    ("assistant", "4"),
)  # fmt: skip


def read(encoder, ids):
    return encoder.tokenizer.decode([int(i) for i in ids])


def learned(encoder, example):
    """The labelled spans as texts."""
    spans, last = [], None
    for position in np.flatnonzero(example.labels != IGNORED):
        if last is None or position != last + 1:
            spans.append([])
        spans[-1].append(example.labels[position])
        last = position
    return [read(encoder, span) for span in spans]


# ---- causal models


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_the_completion_is_labelled(template):
    encoder = make_encoder(TEMPLATES[template])
    example = encoder.encode(ROW)
    assert learned(encoder, example) == ["It is 4.</s>"]
    kept = example.labels != IGNORED
    np.testing.assert_array_equal(example.labels[kept], example.input_ids[kept])
    assert example.input_ids.dtype == example.labels.dtype == np.int64
    assert example.row_id == ROW.id
    assert example.length == len(example.input_ids)
    assert example.n_labels == len("It is 4.") + 1


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("row", [ROW, LONG], ids=["short", "long"])
def test_what_generation_reads_is_the_row_without_its_completion(template, row):
    encoder = make_encoder(TEMPLATES[template])
    prompt = encoder.prompt_ids(row)
    completion = [*encoder.tokenizer(row.completion)["input_ids"], 2]
    np.testing.assert_array_equal(encoder.encode(row).input_ids, [*prompt, *completion])


@pytest.mark.parametrize("template", ["chat-generation", "chat-prefix", "with a system message"])
def test_every_assistant_turn_of_a_chat_is_learned(template):
    encoder = make_encoder(TEMPLATES[template])
    assert learned(encoder, encoder.encode(LONG)) == ["Hello</s>", "4</s>"]


def test_the_template_that_is_taken_is_told():
    told = {
        template: make_encoder(template).template for template in (None, MARKED, UNMARKED, STRICT)
    }
    assert list(told.values()) == ["plain", "chat-generation", "chat-prefix", "chat-prefix"]
    assert "concatenated" in make_encoder().describe()
    assert "{% generation %}" in make_encoder(UNMARKED).describe()
    assert "marks what is learned" in make_encoder(MARKED).describe()
    assert make_encoder(MARKED, family="seq2seq").template == "plain"


@pytest.mark.parametrize("mark", ["{% generation %}", "{%- generation %}", "{% generation -%}"])
def test_the_generation_mark_may_trim_white_space(mark):
    template = MARKED.replace("{%- generation -%}", mark)
    assert make_encoder(template).template == "chat-generation"


def test_a_tokenizer_with_several_templates_uses_its_default():
    encoder = make_encoder({"default": UNMARKED, "tool_use": MARKED})
    assert encoder.template == "chat-prefix"
    assert learned(encoder, encoder.encode(ROW)) == ["It is 4.</s>"]


def test_marked_and_unmarked_templates_agree():
    for row in (ROW, LONG):
        one, two = make_encoder(MARKED).encode(row), make_encoder(UNMARKED).encode(row)
        np.testing.assert_array_equal(one.input_ids, two.input_ids)
        np.testing.assert_array_equal(one.labels, two.labels)


def test_a_prompt_that_opens_a_thought_leaves_the_whole_answer():
    encoder = make_encoder(WITH_THOUGHT)
    assert read(encoder, encoder.prompt_ids(ROW)).endswith("<think>")
    assert learned(encoder, encoder.encode(ROW)) == ["It is 4.</s>"]


def test_a_token_across_the_seam_belongs_to_the_completion():
    encoder = make_encoder(UNMARKED, merges=[(">", "I")])
    assert learned(encoder, encoder.encode(ROW)) == [">It is 4.</s>"]


def test_thoughts_that_the_template_drops_from_earlier_turns():
    said = "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}"
    encoder = make_encoder(UNMARKED.replace("{{ m['content'] }}", said))
    turns = [("user", "Hi"), ("assistant", "hm</think>Hello"), ("user", "Bye"), ("assistant", "ok")]
    example = encoder.encode(a_row(*turns))
    assert "hm" not in read(encoder, example.input_ids)
    assert learned(encoder, example) == ["ok</s>"]
    assert learned(encoder, encoder.encode(a_row(*turns[:2]))) == ["hm</think>Hello</s>"]


@pytest.mark.parametrize("template", ["plain", "chat-generation", "chat-prefix", "strict"])
def test_a_text_is_learned_whole(template):
    encoder = make_encoder(TEMPLATES[template])
    row = a_row(("assistant", "Once upon"))
    assert learned(encoder, encoder.encode(row)) == ["Once upon</s>"]
    assert read(encoder, encoder.prompt_ids(row)) == "<s>"


@pytest.mark.parametrize("template", ["plain", "chat-generation", "chat-prefix"])
def test_an_empty_prompt(template):
    encoder = make_encoder(TEMPLATES[template])
    row = a_row(("user", ""), ("assistant", "Once upon"))
    example = encoder.encode(row)
    assert learned(encoder, example) == ["Once upon</s>"]
    prompt = encoder.prompt_ids(row)
    assert len(prompt) > 0
    np.testing.assert_array_equal(example.input_ids[: len(prompt)], prompt)


def test_nothing_predicts_the_first_token():
    encoder = make_encoder(bos_token=None)
    example = encoder.encode(a_row(("assistant", "abc")))
    assert read(encoder, example.input_ids) == "abc</s>"
    assert learned(encoder, example) == ["bc</s>"]
    bare = make_encoder(bos_token=None, eos_token=None)
    with pytest.raises(BadRow, match="no label token"):
        bare.encode(a_row(("assistant", "a")))


def test_a_class_as_a_completion():
    for template in (None, MARKED, UNMARKED):
        encoder = make_encoder(template)
        row = a_row(("user", "fine film "), label="good")
        assert read(encoder, encoder.encode(row).input_ids) == "<s>fine film good</s>"
        assert read(encoder, encoder.prompt_ids(row)) == "<s>fine film "


def test_a_row_the_template_refuses_is_a_bad_row():
    row = a_row(("assistant", "Hello"), ("user", "Hi"), ("assistant", "Yes?"))
    with pytest.raises(BadRow, match="the chat template refuses it: no user first"):
        make_encoder(STRICT).encode(row)


def test_an_answer_that_follows_nothing():
    row = a_row(("assistant", "Hello"), ("user", "Hi"), ("assistant", "Yes?"))
    encoder = make_encoder(UNMARKED)
    assert learned(encoder, encoder.encode(row)) == ["Yes?</s>"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_truncation_cuts_the_end_and_leaves_no_unlabelled_row(template):
    whole = make_encoder(TEMPLATES[template]).encode(ROW)
    first = int(np.flatnonzero(whole.labels != IGNORED)[0])
    for length in (first + 1, first + 3, 500):
        example = make_encoder(TEMPLATES[template], max_length=length).encode(ROW)
        np.testing.assert_array_equal(example.input_ids, whole.input_ids[:length])
        np.testing.assert_array_equal(example.labels, whole.labels[:length])
    with pytest.raises(BadRow, match=f"no label token within {first} tokens"):
        make_encoder(TEMPLATES[template], max_length=first).encode(ROW)


def test_prompts_that_are_too_long_keep_their_end():
    encoder = make_encoder(max_length=4)
    assert read(encoder, encoder.prompt_ids(a_row(("user", "abcdefg"), ("assistant", "h")))) == (
        "defg"
    )


@pytest.mark.parametrize("template", ["plain", "chat-generation", "chat-prefix"])
def test_very_long_texts(template):
    encoder = make_encoder(TEMPLATES[template])
    example = encoder.encode(a_row(("user", "short"), ("assistant", "long " * 20_000)))
    assert example.length == 512
    with pytest.raises(BadRow, match="no label token within 512 tokens"):
        encoder.encode(a_row(("user", "long " * 20_000), ("assistant", "short")))


def test_plain_text():
    assert plain_text(()) == ""
    assert plain_text((("user", "Hi"),)) == "Hi"
    assert plain_text(LONG.prompt) == "system: Be brief.\nuser: Hi\nassistant: Hello\nuser: 2+2?\n"


# ---- the other families


def test_seq2seq_reads_the_prompt_and_is_labelled_with_the_completion():
    encoder = make_encoder(MARKED, family="seq2seq")
    example = encoder.encode(ROW)
    assert read(encoder, example.input_ids) == "2+2?</s>"
    assert read(encoder, example.labels) == "It is 4.</s>"
    assert example.length == example.n_labels == 9
    np.testing.assert_array_equal(encoder.prompt_ids(ROW), example.input_ids)


def test_seq2seq_truncation():
    encoder = make_encoder(family="seq2seq", max_length=4)
    example = encoder.encode(ROW)
    assert read(encoder, example.input_ids) == "2+2</s>", "the text's end is marked"
    assert read(encoder, example.labels) == "It i", "an end that was not reached is not taught"


def test_seq2seq_without_a_token():
    encoder = make_encoder(family="seq2seq", eos_token=None)
    with pytest.raises(BadRow, match="no token in the text or in the completion"):
        encoder.encode(a_row(("assistant", "a")))


def test_classifiers_are_labelled_with_a_class():
    encoder = make_encoder(family="classifier", label_ids={"bad": 0, "good": 1}, max_length=6)
    example = encoder.encode(a_row(("user", "fine film"), label="good"))
    assert read(encoder, example.input_ids) == "fine f"
    assert example.labels.tolist() == [1]
    assert (example.length, example.n_labels) == (6, 1)


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [("fine", "great", "label 'great' is not one of the model's"), ("", "good", "no token in the")],
)
def test_rows_that_classifiers_cannot_use(text, label, reason):
    encoder = make_encoder(family="classifier", label_ids={"good": 1})
    with pytest.raises(BadRow, match=reason):
        encoder.encode(a_row(("user", text), label=label))


def test_label_names():
    rows = [a_row(("user", "x"), label=label) for label in ("10", "9", "pos", "0", "neg", "9")]
    assert label_names(rows) == ["0", "9", "10", "neg", "pos"]
    assert label_names(reversed(rows)) == label_names(rows)
    with pytest.raises(GradexError, match="a classifier needs labelled rows"):
        label_names([])


# ---- many rows


def test_bad_rows_are_kept_apart_with_their_reason(caplog):
    rows = [a_row(("user", "x" * n), ("assistant", "y")) for n in (3, 90, 5, 80)]
    examples, bad = encode_all(make_encoder(max_length=20), rows)
    assert [e.row_id for e in examples] == [rows[0].id, rows[2].id]
    assert bad == dict.fromkeys((rows[1].id, rows[3].id), "no label token within 20 tokens")
    log_bad("skill", bad)
    assert caplog.messages == ["data: skill: rows left out: 2 x no label token within 20 tokens"]


def an_example(length, labels=None):
    ids = np.arange(1, length + 1)
    return Example(f"row{length}", ids, ids if labels is None else np.array(labels))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_collate_pads_on_one_side_and_loses_nothing(side, family):
    examples = [an_example(3), an_example(5), an_example(1)]
    batch = collate(examples, family=family, pad_id=9, padding_side=side)
    assert {name: tuple(t.shape) for name, t in batch.items()} == dict.fromkeys(batch, (3, 5))
    for i, example in enumerate(examples):
        kept = batch["attention_mask"][i].bool()
        expected = torch.arange(5) < example.length
        assert torch.equal(kept, expected if side == "right" else expected.flip(0))
        assert batch["input_ids"][i][kept].tolist() == example.input_ids.tolist()
        assert batch["labels"][i][kept].tolist() == example.labels.tolist()
        assert (batch["input_ids"][i][~kept] == 9).all()
        assert (batch["labels"][i][~kept] == IGNORED).all()


def test_collate_pads_the_labels_of_seq2seq_by_themselves():
    examples = [an_example(3, [7]), an_example(1, [7, 8])]
    batch = collate(examples, family="seq2seq", pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch["labels"].tolist() == [[7, IGNORED], [7, 8]]


def test_collate_of_classes():
    batch = collate([an_example(3, [2]), an_example(1, [0])], family="classifier", pad_id=0)
    assert batch["labels"].tolist() == [2, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


lengths_of_rows = st.lists(st.integers(1, 300), max_size=60)


@settings(max_examples=100, deadline=None)
@given(lengths_of_rows, st.integers(1, 1000))
def test_batches_cover_every_row_within_the_budget(lengths, budget):
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@settings(max_examples=50, deadline=None)
@given(lengths_of_rows)
def test_a_batch_only_ends_for_want_of_room_or_for_too_much_padding(lengths):
    batches = list(token_batches(lengths, 500))
    for batch, after in pairwise(batches):
        padded = (len(batch) + 1) * lengths[batch[0]]
        tokens = sum(lengths[i] for i in batch) + lengths[after[0]]
        assert padded > 500 or tokens < 0.95 * padded
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize("rows", [20, 512])
def test_little_of_any_shard_is_padding(rows):
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(16), np.log(256), rows)).astype(int).tolist()
    padded = sum(len(batch) * lengths[batch[0]] for batch in token_batches(lengths, 4096))
    assert sum(lengths) / padded >= 0.95


def test_batches_do_not_depend_on_the_order_of_equal_rows():
    assert list(token_batches([2, 3, 2, 3], 6)) == [[1, 3], [0, 2]]
    assert list(token_batches([], 6)) == []
