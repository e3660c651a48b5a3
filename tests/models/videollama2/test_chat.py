"""Prompts as upstream's chat template writes them, encoded by transformers in the pieces that upstream encodes."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from models.errors import UserError
from models.text.chatml import ChatML
from models.text.tokenizers import load_tokenizer
from models.videollama2.chat import before_media, first_question
from tests.models.qwen2_5_omni.vocabulary import write_tokenizer

QUESTIONS = ("What plays?", "  Ist das 'n Cello?", "12 e\u0301", "...\n\nnaïve 音 🎺", "<|im_end|>", "1987")
START = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(path, form="tokenizer.json")
    return path


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatML:
    return ChatML(load_tokenizer(folder), 152_064)


def test_prompt_equals_upstreams_pieces(chat: ChatML, folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert before_media(chat) == theirs(START).input_ids
    for question in QUESTIONS[:4]:
        assert first_question(chat, question) == theirs("\n" + question.strip() + ANSWER).input_ids
        again = theirs("It sings." + "<|im_end|>\n<|im_start|>user\n" + question.strip() + ANSWER).input_ids
        assert chat.next_question("It sings.", question) == again


def test_what_a_user_types_is_no_special_token(chat: ChatML) -> None:
    marks = set(chat.stop_token_ids) & set(chat.encode(QUESTIONS[4]))
    assert not marks
    assert first_question(chat, QUESTIONS[4]).count(chat.stop_token_ids[0]) == 1


def test_generated_text(chat: ChatML) -> None:
    assert chat.detokenize([*chat.encode("a cello"), *chat.stop_token_ids]) == "a cello"


def test_bad_input(chat: ChatML) -> None:
    with pytest.raises(UserError, match="The question is empty"):
        first_question(chat, " \n")
    with pytest.raises(UserError, match="belong to different checkpoints"):
        ChatML(chat.tokenizer, 1000)
    with pytest.raises(UserError, match=r"has no <\|im_start\|>"):
        ChatML(Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'), 1000)
