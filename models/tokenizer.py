"""A byte-level BPE vocabulary for the embedded model, with Qwen2's way of cutting text into words.

    python tokenizer.py tokenizer.json
"""

import itertools
import random
import sys

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

import problems

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
VOCABULARY = 600
# As llama.cpp cuts text for `tokenizer.ggml.pre = qwen2`; a digit is a word of its own.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = itertools.chain(
        (problems.conversation(p)[0] for p in itertools.islice(problems.problems("train", 0, 1, 8), 3000)),
        (problems.conversation(problems.hello(rng))[0] for _ in range(300)),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = (text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in texts)
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.save(sys.argv[1])


if __name__ == "__main__":
    main()
