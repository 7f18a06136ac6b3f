"""A byte-level BPE vocabulary for the embedded model, with GPT-2's way of cutting text into words.

    python tokenizer.py tokenizer.json
"""

import itertools
import random
import sys

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

import problems

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
VOCABULARY = 896
# As llama.cpp cuts text for `tokenizer.ggml.pre = gpt-2`: a number is one word, so that a value is copied in one token.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


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
        # Every value and every name is to be a token, with a space and without.
        (f"{{{value}}} {value}" for value in range(problems.MAX_VALUE + 1) for _ in range(1000)),
        (f"{name} {name}" for name in problems.NAMES for _ in range(1000)),
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
