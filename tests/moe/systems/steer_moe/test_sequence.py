"""The one sequence of training and decoding: its order, its labels, its padding."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe.system import IGNORED
from moe.systems.steer_moe.language_model import token_losses, utterance_losses
from moe.systems.steer_moe.sequence import AUDIO, PADDING, Surroundings, padded, surroundings, text_ids, training_rows, unpadded
from tests.toys.steer import toy_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
)
AROUND = Surroundings((7,), (8, 9))


def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=32, n_embd=8, n_layer=2, n_head=2)).eval()


def test_the_order_is_beginning_audio_prompt_end_text_and_its_end() -> None:
    opening = AROUND.opening(2)
    sequence, labels = training_rows([opening], [[3, 4, 0]])
    assert opening == [7, AUDIO, AUDIO, 8, 9] and sequence.tolist() == [[*opening, 3, 4, 0]]
    assert labels.tolist() == [[IGNORED] * 5 + [3, 4, 0]]


def test_training_reads_what_decoding_reads_and_the_text() -> None:
    openings, texts = [AROUND.opening(1), AROUND.opening(3)], [[3, 0], [4, 5, 0]]
    sequence, _ = training_rows(openings, texts)
    decoded = unpadded(padded(openings, left=True))
    assert [[*opening, *text] for opening, text in zip(decoded, texts, strict=True)] == unpadded(sequence)


def test_padding_is_right_in_training_and_left_in_decoding() -> None:
    rows = [[1], [1, 2]]
    assert padded(rows).tolist() == [[1, PADDING], [1, 2]] and padded(rows, left=True).tolist() == [[PADDING, 1], [1, 2]]


def test_an_empty_text_teaches_its_end_alone_and_the_id_of_padding_does_not_matter() -> None:
    tokenizer = toy_tokenizer()
    assert text_ids(tokenizer, "") == [tokenizer.eos_token_id] == [tokenizer.pad_token_id]
    _, labels = training_rows([AROUND.opening(1)] * 2, [text_ids(tokenizer, ""), text_ids(tokenizer, "oak elm")])
    assert (labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_a_chat_template_surrounds_audio_and_prompt() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = TEMPLATE
    around = surroundings(tokenizer, "say:", "auto")
    said = [tokenizer.decode(list(ids)).strip() for ids in (around.before, around.after)]
    assert said == ["[user]", "say:[answer]"]
    assert surroundings(tokenizer, "say:", "none").before == ()
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(ValueError, match="chat_template=auto"):
        surroundings(tokenizer, "say:", "auto")


def test_labels_of_another_text_or_length_are_refused() -> None:
    model, prompts = language_model(), torch.randn(1, 8)
    sequence, labels = training_rows([AROUND.opening(1)], [[3, 4, 0]])
    wrong = labels.clone()
    wrong[0, -2] = 5
    for bad in (wrong, labels[:, :-1]):
        with pytest.raises(ValueError, match="labels must be the codes"):
            token_losses(model, sequence, bad, prompts)
    with pytest.raises(ValueError, match="1 places for 2 vectors"):
        token_losses(model, sequence, labels, torch.randn(2, 8))


def test_neither_company_nor_its_padding_changes_a_loss_and_only_text_is_scored() -> None:
    model, prompts = language_model(), torch.randn(4, 8)
    openings, texts = [AROUND.opening(1), AROUND.opening(3)], [[3, 4, 0], [5, 6, 1, 2, 0]]
    together = utterance_losses(model, *training_rows(openings, texts), prompts)
    alone = [
        utterance_losses(model, *training_rows([opening], [text]), part)
        for opening, text, part in zip(openings, texts, (prompts[:1], prompts[1:]), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    logits = model(inputs_embeds=_embedded(model, prompts[:1])).logits[0].log_softmax(-1)
    wanted = -(logits[3, 3] + logits[4, 4] + logits[5, 0]) / 3  # the codes 7, audio, 8, 9, 3, 4: each says the next
    torch.testing.assert_close(together[0], wanted)


def _embedded(model: GPT2LMHeadModel, prompt: torch.Tensor) -> torch.Tensor:
    table = model.get_input_embeddings().weight
    return torch.stack([table[7], prompt[0], table[8], table[9], table[3], table[4]])[None]
