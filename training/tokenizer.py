"""Trains the tokenizer: Llama-style BPE with byte fallback and single digits, loadable by transformers and llama.cpp.

python -m training.tokenizer --data DATA --out weights/fano-reader
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.corpus import data_directory, text_sample

SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "<|startoftext|>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train(data: Path, vocab_size: int, characters: int) -> Tokenizer:
    """A BPE tokenizer over a sample of the corpus.

    While training, words, digits, punctuation runs and line ends are kept apart, so no merge crosses such a border; the
    borders therefore need no pre-tokenizer later, and the same merges work in readers that have none (llama.cpp).
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|unk|>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"▁?[^\W\d_]+|\d|\n|▁?[^\w\n▁]+"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL + BYTES + ROLES,
        initial_alphabet=[*string.printable.strip(), "\n", "▁"],
        limit_alphabet=400,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text_sample(data, characters), trainer)
    return portable(tokenizer)


def portable(tokenizer: Tokenizer) -> Tokenizer:
    """The same merges without training-time borders: byte tokens are vocabulary, roles and marks are special."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    state["pre_tokenizer"] = None
    result = Tokenizer.from_str(json.dumps(state))
    result.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL + ROLES])
    return result


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|unk|>",
        "additional_special_tokens": ROLES,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    generation = {
        "bos_token_id": 1,
        "eos_token_id": [2, tokenizer.token_to_id("<|end|>")],
        "pad_token_id": 0,
        "do_sample": False,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, default=Path("weights/fano-reader"))
    parser.add_argument("--vocab-size", type=int, default=16_384)
    parser.add_argument("--characters", type=int, default=45_000_000)
    arguments = parser.parse_args()
    tokenizer = train(data_directory(arguments.data), arguments.vocab_size, arguments.characters)
    save(tokenizer, arguments.out)
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
