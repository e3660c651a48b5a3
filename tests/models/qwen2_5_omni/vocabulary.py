"""The tokenizer of Qwen2.5-Omni as checkpoints hold it: Qwen2.5's, with other names for some special tokens."""

import json
from pathlib import Path
from typing import Any

from models.hub.weights import fetch

RENAMED = {
    151646: "<|AUDIO|>",
    151647: "<|audio_bos|>",
    151648: "<|audio_eos|>",
    151652: "<|vision_bos|>",
    151653: "<|vision_eos|>",
    151655: "<|IMAGE|>",
    151656: "<|VIDEO|>",
}
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


def write_tokenizer(folder: Path, *, form: str) -> None:
    """Writes one of the forms that checkpoints come in.

    Args:
        folder: to write into.
        form: "tokenizer.json", "vocab.json" (with merges.txt), or "added_tokens.json" (the same of older releases).
    """
    content: dict[str, Any] = json.loads(fetch("qwen2.5-tokenizer").read_text())
    for token in content["added_tokens"]:
        token["content"] = RENAMED.get(token["id"], token["content"])
    added = content["added_tokens"]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    special = [token["content"] for token in added if token["special"] and token["content"] != "<|endoftext|>"]
    config = names | {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": special}
    if form == "tokenizer.json":
        (folder / form).write_text(json.dumps(content))
    else:
        model = content["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps({token["content"]: token["id"] for token in added}))
        config["pad_token"] = {"__type": "AddedToken", "content": "<|endoftext|>"} | PLAIN
    else:
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
