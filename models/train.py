"""Trains the embedded model: a small Qwen2 on endless problems of the training split.

    python train.py run --hours 1.5        # writes run/model.safetensors; run again to go on where it stopped
    torchrun --nproc-per-node 2 train.py run --threads 1      # the same on two CPU cores, twice as fast

It runs on a GPU where there is one. Validation accuracy is that of greedy decoding: the share of problems of which every
token of thinking and summary is the most likely one.
"""

import argparse
import json
import os
import pathlib
import random
import time

import safetensors.torch
import tokenizers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import problems

CONFIG = {
    "vocabulary": 896, "layers": 12, "width": 128, "heads": 4, "kv_heads": 2, "hidden": 320,
    "rope_base": 1000000.0, "norm_epsilon": 1e-6, "context": 2048,
}
# Problems get longer by a link every so many steps, from three links on.
LONGER_EVERY = 100
MOST_LINKS = 8
# The share of rows that are practice in arithmetic; they are short.
SUMS = 0.6
# What a result of arithmetic counts in the loss, other tokens counting 1: it is one token in ten, and the hard one.
RESULT = 4.0


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and, as in Qwen2, a bias on Q, K and V."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.size = c["heads"], c["kv_heads"], c["width"] // c["heads"]
        self.q = nn.Linear(c["width"], c["width"])
        self.k = nn.Linear(c["width"], self.kv_heads * self.size)
        self.v = nn.Linear(c["width"], self.kv_heads * self.size)
        self.output = nn.Linear(c["width"], c["width"], bias=False)

    def forward(self, x, rope):
        batch, length, width = x.shape
        heads = lambda y, n: y.view(batch, length, n, self.size).transpose(1, 2)
        q, k, v = heads(self.q(x), self.heads), heads(self.k(x), self.kv_heads), heads(self.v(x), self.kv_heads)
        q, k = rotate(q, rope), rotate(k, rope)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """Attention, then a gated feed-forward network."""

    def __init__(self, c):
        super().__init__()
        self.attention_norm = nn.RMSNorm(c["width"], eps=c["norm_epsilon"])
        self.attention = Attention(c)
        self.ffn_norm = nn.RMSNorm(c["width"], eps=c["norm_epsilon"])
        self.gate = nn.Linear(c["width"], c["hidden"], bias=False)
        self.up = nn.Linear(c["width"], c["hidden"], bias=False)
        self.down = nn.Linear(c["hidden"], c["width"], bias=False)

    def forward(self, x, rope):
        x = x + self.attention(self.attention_norm(x), rope)
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """Qwen2 with tied embeddings."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embedding = nn.Embedding(c["vocabulary"], c["width"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = nn.RMSNorm(c["width"], eps=c["norm_epsilon"])
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for layer in self.layers:
            nn.init.zeros_(layer.attention.output.weight)
            nn.init.zeros_(layer.down.weight)
        copy_from_the_start(self)

    def forward(self, tokens, keep):
        """Logits at the positions that `keep` marks."""
        x = self.embedding(tokens)
        rope = rope_table(tokens.shape[1], self.config, tokens.device)
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x[keep]) @ self.embedding.weight.T


@torch.no_grad()
def copy_from_the_start(model, scale=0.2):
    """Begins with the circuit that copying from context needs, which takes long to find: induction (Olsson et al. 2022).

    The residual stream's first half holds the token, its other eighths what layer 0's four heads find: the token before,
    the one before that, and a blend of the last eight or so, of which the fourth is one token older than the third. Layer
    1's head 0 looks for the place whose past is most like the present, head 2 for one that comes after this token; both
    copy the token there. All of it is a start alone: training is free to change it.
    """
    c = model.config
    width, size = c["width"], c["width"] // c["heads"]
    token, n = torch.arange(width // 2), width // 8
    before, earlier, present, past = torch.arange(width // 2, width).split(n)
    nn.init.normal_(model.embedding.weight, std=scale)
    model.embedding.weight[:, len(token) :] = 0
    # Logits are to begin small.
    model.norm.weight.fill_(0.1)

    look = model.layers[0].attention
    codes = [nn.init.orthogonal_(torch.empty(n, len(token))) for _ in range(2)]
    sharp, broad = kernel(c, [8.7] * 5), kernel(c, [0, 0, 2.2, 5, 6, 6])
    for head, strength, distance, place, gain in (
        (0, sharp, 1, before, 1), (1, sharp, 2, earlier, 1), (2, broad, 4, present, 2.8), (3, broad, 5, past, 2.8)
    ):
        rows, shared = head * size + torch.arange(size), head // 2 * size + torch.arange(size)
        turn = distance * frequencies(c)
        # Rotary positions turn a constant query against a constant key by their distance.
        look.q.weight[rows] = look.k.weight[shared] = look.v.weight[shared] = 0
        look.q.bias[rows] = torch.cat([strength * turn.cos(), -strength * turn.sin()])
        look.k.bias[shared] = torch.cat([strength, 0 * strength])
        look.v.weight[shared[:n, None], token] = codes[head // 2]
        look.output.weight[place[:, None], rows[:n]] = gain * scale / 2**0.5 * torch.eye(n)

    find = model.layers[1].attention
    # Slow rotations see what, not where.
    slow = torch.cat([torch.arange(size // 4, size // 2), torch.arange(size // 4, size // 2) + size // 2])
    turned = [nn.init.orthogonal_(torch.empty(n, n)) for _ in range(2)]
    likeness = (
        (0, present, past, 2 * torch.eye(n)), (0, token, before, 3 * turned[0]), (0, before, earlier, 2 * turned[1]),
        (2, token, before, 1.8 * torch.eye(n)),
    )
    for head in (0, 2):
        shared = head // 2 * size + torch.arange(size)
        find.q.weight[head * size : (head + 1) * size] = find.k.weight[shared] = find.v.weight[shared] = 0
        found = nn.init.orthogonal_(torch.empty(size, len(token)))
        find.v.weight[shared[:, None], token] = found
        find.output.weight[token[:, None], head * size + torch.arange(size)] = 0.3 * found.T
    for head, query, key, match in likeness:
        find.q.weight[(head * size + slow)[:, None], query] = match @ codes[0] if query is token else match
        find.k.weight[(head // 2 * size + slow)[:, None], key] = match


def kernel(c, weights):
    """Strengths of constant queries and keys that make attention `exp(sum of weight * cos(frequency * distance))`."""
    half = c["width"] // c["heads"] // 2
    padded = torch.tensor(weights + [0] * (half - len(weights)), dtype=torch.float32)
    return (padded * (2 * half) ** 0.5) ** 0.5


@torch.no_grad()
def count_from_the_start(model, tokenizer, scale=0.2):
    """Has the embedding of a number n begin as angles 2 pi n / period, in which a sum is a rotation (Nanda et al. 2023)."""
    half = model.config["width"] // 2
    periods = torch.tensor([2.0, 4, 5, 8, 10, 20, 25, 40, 50, 100, 200, 400])
    plane = nn.init.orthogonal_(torch.empty(half, 2 * len(periods)))
    spaced, bare = scale / 2 * torch.randn(2, half)
    for text, id in tokenizer.get_vocab().items():
        # A leading space shows as this letter.
        digits = text.removeprefix("\u0120")
        if digits.isascii() and digits.isdigit() and len(digits) <= 3:
            angle = 2 * torch.pi * int(digits) / periods
            number = plane @ torch.cat([angle.cos(), angle.sin()]) * scale * (half / len(periods)) ** 0.5 * 0.8
            model.embedding.weight[id, :half] = number + (bare if text == digits else spaced)


def frequencies(c, device=None):
    """Of the rotary positions, in radians a token: `[head size / 2]`."""
    size = c["width"] // c["heads"]
    return c["rope_base"] ** (-torch.arange(0, size, 2, device=device) / size)


def rope_table(length, c, device):
    """Cosines and sines, [length, head size]."""
    angle = torch.outer(torch.arange(length, device=device), frequencies(c, device)).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """Rotary positions, the halves of a head paired (NeoX style, as Qwen2)."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), for the matrices inside the layers."""

    def __init__(self, parameters, lr=0.02, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                state = self.state[p]
                if "buffer" not in state:
                    state["buffer"] = torch.zeros_like(p)
                state["buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["buffer"], group["momentum"])
                shapes.setdefault(p.shape, []).append((p, update))
            for shape, pairs in shapes.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (p, _), update in zip(pairs, updates):
                    p.mul_(1 - group["lr"] * 0.01).add_(update, alpha=-group["lr"] * scale)


def orthogonal(g):
    """The nearest semi-orthogonal matrices, roughly: five Newton-Schulz steps, [n, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x if wide else x.mT


class Batches:
    """Endless batches of the training split, of problems with up to `most` links."""

    def __init__(self, tokenizer, seed, tokens):
        self.tokenizer, self.tokens, self.seed = tokenizer, tokens, seed
        self.rng = random.Random(f"batches {seed}")
        self.streams, self.ready = {}, []

    def next(self, most):
        if not self.ready:
            self.ready = self.fill(most)
        return self.ready.pop()

    def fill(self, most):
        """A few batches of problems of like length."""
        stream = self.streams.setdefault(most, problems.problems("train", f"{self.seed} {most}", 1, most))
        texts, total = [], 0
        while total < 8 * self.tokens:
            dice = self.rng.random()
            problem = problems.hello(self.rng) if dice < 0.01 else (
                problems.sums(self.rng) if dice < SUMS else next(stream))
            text, prompt = problems.conversation(problem)
            texts.append((text, prompt))
            total += len(text) / 3.5
        rows = sorted(encode(self.tokenizer, texts), key=lambda row: len(row[0]))
        batches, batch = [], []
        for row in rows:
            if batch and len(row[0]) * (len(batch) + 1) > self.tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
        self.rng.shuffle(batches)
        return batches


def encode(tokenizer, texts):
    """Tokens of each text and how many of them are prompt."""
    whole = tokenizer.encode_batch([text for text, _ in texts])
    prompts = tokenizer.encode_batch([text[:prompt] for text, prompt in texts])
    return [(w.ids, len(p.ids)) for w, p in zip(whole, prompts)]


def tensors(batch, device):
    """Inputs, targets, and the positions whose target is thinking or summary."""
    length = max(len(ids) for ids, _ in batch)
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    keep = torch.zeros(len(batch), length - 1, dtype=torch.bool)
    for row, (ids, prompt) in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        keep[row, prompt - 1 : len(ids) - 1] = True
    tokens, keep = tokens.to(device), keep.to(device)
    return tokens[:, :-1], tokens[:, 1:], keep


def share(parameters, loss, spent):
    """Averages gradients and loss over all processes; time is that of the first one."""
    if not dist.is_initialized():
        return loss, spent
    own = [p.grad.flatten() for p in parameters] + [torch.tensor([loss, spent if dist.get_rank() == 0 else 0.0])]
    flat = torch.cat(own)
    dist.all_reduce(flat)
    *gradients, numbers = flat.split([part.numel() for part in own])
    for p, gradient in zip(parameters, gradients):
        p.grad.copy_(gradient.view_as(p) / dist.get_world_size())
    return numbers[0].item() / dist.get_world_size(), numbers[1].item()


@torch.no_grad()
def validate(model, tokenizer, device, links, n=64):
    """Loss, and the share of problems with `links` links that greedy decoding gets right token for token."""
    stream = problems.problems("validation", links, links, links)
    rows = encode(tokenizer, [problems.conversation(next(stream)) for _ in range(n)])
    loss, right = 0.0, 0
    for start in range(0, n, 16):
        inputs, targets, keep = tensors(rows[start : start + 16], device)
        logits = model(inputs, keep)
        loss += F.cross_entropy(logits, targets[keep]).item() * 16 / n
        wrong = torch.zeros(keep.shape, dtype=torch.bool, device=device)
        wrong[keep] = logits.argmax(-1) != targets[keep]
        right += (~wrong.any(dim=1)).sum().item()
    return loss, right / n


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tokenizer", default="tokenizer.json")
    parser.add_argument("--hours", type=float, default=1.5, help="training time; the schedule is made of it")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a batch")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # Several processes are for the cores of a CPU; a GPU takes one.
    device = "cuda" if torch.cuda.is_available() and "WORLD_SIZE" not in os.environ else "cpu"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(args.seed)
    args.folder.mkdir(exist_ok=True)
    tokenizer = tokenizers.Tokenizer.from_file(args.tokenizer)
    equals = tokenizer.encode("1 =").ids[-1]
    model = Model(CONFIG)
    count_from_the_start(model, tokenizer)
    model = model.to(device)
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2] + [model.embedding.weight]
    optimizers = [Muon(matrices), torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0)]
    peaks = [args.lr, args.lr / 8]
    spent, step, seen = 0.0, 0, 0
    checkpoint = args.folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        spent, step, seen = saved["spent"], saved["step"], saved["seen"]
    batches = Batches(tokenizer, f"{args.seed} {step} {rank}", args.tokens)
    budget, last = args.hours * 3600, time.time()
    log = open(args.folder / "log.jsonl", "a")
    average = None
    while spent < budget:
        progress = spent / budget
        rate = min(1, (step + 1) / 50) * min(1, (1 - progress) / 0.4)
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * rate
        most = min(MOST_LINKS, 3 + step // LONGER_EVERY)
        inputs, targets, keep = tensors(batches.next(most), device)
        weights = 1 + (RESULT - 1) * (inputs[keep] == equals)
        losses = F.cross_entropy(model(inputs, keep), targets[keep], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        loss, spent = share(list(model.parameters()), loss.item(), spent)
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + inputs.numel() * processes
        average = loss if average is None else 0.95 * average + 0.05 * loss
        spent, last = spent + time.time() - last, time.time()
        if step % 100 == 0 and rank == 0:
            row = {"step": step, "minutes": round(spent / 60, 1), "tokens": seen, "loss": round(average, 4), "most": most}
            if step % 200 == 0:
                save(args.folder, checkpoint, model, optimizers, spent, step, seen)
                for links in (2, 5, 8):
                    value, right = validate(model, tokenizer, device, links)
                    row[f"links {links}"] = {"loss": round(value, 4), "right": right}
            print(json.dumps(row), file=log, flush=True)
            print(json.dumps(row), flush=True)
    if rank == 0:
        save(args.folder, checkpoint, model, optimizers, spent, step, seen)


def save(folder, checkpoint, model, optimizers, spent, step, seen):
    """Writes everything needed to go on, and the weights for the export; beside first, so that a kill leaves the last."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
             "spent": spent, "step": step, "seen": seen}
    torch.save(state, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)
    weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    metadata = {"config": json.dumps(CONFIG)}
    safetensors.torch.save_file(weights, folder / "model.tmp", metadata=metadata)
    (folder / "model.tmp").replace(folder / "model.safetensors")


if __name__ == "__main__":
    main()
