"""Step-Saliency by PyTorch's autograd on dequantized weights, to hold `stepflow saliency --method gradient` against.

    pip install torch transformers accelerate gguf
    python benches/autograd.py model.gguf trace.json [threads]

prints seconds and peak memory of a forward pass alone, and of the forward and backward pass over the trace's tokens that
give |A dL/dA| of every layer, pooled into the trace's steps.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def maps(attentions, steps):
    """Mean of |A dL/dA| over heads and pairs of tokens, for every layer and pair of steps."""
    place = torch.zeros(attentions[0].shape[-1], len(steps))
    for step, span in enumerate(steps):
        place[span["start"] : span["end"], step] = 1.0 / (span["end"] - span["start"])
    return [place.T @ (a * a.grad).abs().mean(1)[0] @ place for a in attentions]


def main(model_path, trace_path, threads="2"):
    torch.set_num_threads(int(threads))
    path = Path(model_path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, attn_implementation="eager", dtype=torch.float32
    )
    trace = json.loads(Path(trace_path).read_text())
    ids = torch.tensor([[token["id"] for token in trace["tokens"]]])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda *of: of[2].requires_grad_())
    with torch.no_grad():
        started = time.monotonic()
        model(ids)
        forward = time.monotonic() - started
    started = time.monotonic()
    out = model(ids, labels=ids, output_attentions=True, use_cache=False)
    for attention in out.attentions:
        attention.retain_grad()
    out.loss.backward()
    pooled = maps(out.attentions, trace["steps"])
    both = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{ids.shape[1]} tokens: forward {forward:.1f} s, with backward {both:.1f} s, peak {peak:.0f} MiB")
    print(f"loss {out.loss.item():.4f}, layer 0: {[round(x, 10) for x in pooled[0].flatten().tolist()][:4]}")


main(*sys.argv[1:])
