"""Greedy answers of xllamacpp, a line of JSON each: MODEL FLASH(0|1) TOKENS PROMPT..."""

import json
import sys

import xllamacpp

model, flash, n, *prompts = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx = 2048
params.cpuparams.n_threads = 2
kinds = xllamacpp.llama_flash_attn_type
params.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash == "1" else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
for prompt in prompts:
    reply = server.handle_completions({"prompt": prompt, "max_tokens": int(n), "temperature": 0})
    reply = json.loads(reply) if isinstance(reply, str) else reply
    print(json.dumps(reply["choices"][0]["text"]))
