"""Greedy answers of llama-cpp-python, a line of JSON each: MODEL FLASH(0|1) TOKENS PROMPT..."""

import json
import sys

import llama_cpp

model, flash, n, *prompts = sys.argv[1:]
llama = llama_cpp.Llama(model, n_ctx=2048, n_threads=2, flash_attn=flash == "1", verbose=False)
for prompt in prompts:
    print(json.dumps(llama(prompt, max_tokens=int(n), temperature=0)["choices"][0]["text"]))
