"""The peer: Mult-VAE in PyTorch, with dense input as common toolkits have it and at its best (sparse
input through embedding_bag, fused Adam), on the same histories as ours.

usage: torch_multvae.py FOLDER ITEMS BATCH THREADS [--device cpu|cuda] [--dtype f32|bf16] [--compile]
FOLDER holds indptr.u64 and indices.u32. Prints a line that names it, then answers each line
"train|infer sparse|dense STEPS" on stdin with the seconds of a step: on the CPU the median of the steps,
on a device the mean of steps that are issued without waiting; nan where it failed, and why on stderr.
"""

import argparse
import contextlib
import os
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("items", type=int)
parser.add_argument("batch", type=int)
parser.add_argument("threads", type=int)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--compile", action="store_true")
options = parser.parse_args()
items, batch, device = options.items, options.batch, options.device
on_host = device == "cpu"
HIDDEN, LATENT, DROPOUT, BETA, K = 600, 200, 0.5, 0.2, 100
torch.set_num_threads(options.threads)
torch.manual_seed(1)
indptr = np.fromfile(os.path.join(options.folder, "indptr.u64"), np.uint64).astype(np.int64)
indices = np.fromfile(os.path.join(options.folder, "indices.u32"), np.uint32)
order = np.random.default_rng(0).permutation(len(indptr) - 1)
if not on_host:
    # The data lie on the device, as ours do; only the number of events of a batch is known to the host.
    events = indptr[order + 1] - indptr[order]
    all_indices = torch.from_numpy(indices.astype(np.int64)).to(device)
    starts, counts = (torch.from_numpy(x).to(device) for x in (indptr[order], events))
    places = torch.arange(batch, device=device)


class MultVae(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(nn.init.xavier_uniform_(torch.empty(items, HIDDEN)))
        self.b1 = nn.Parameter(torch.zeros(HIDDEN))
        self.stats = nn.Linear(HIDDEN, 2 * LATENT)
        self.hidden = nn.Linear(LATENT, HIDDEN)
        self.out = nn.Linear(HIDDEN, items)

    def forward(self, x):
        if isinstance(x, tuple):
            at, start, value = x
            value = F.dropout(value, DROPOUT, self.training)
            h = F.embedding_bag(at, self.w1, start, mode="sum", per_sample_weights=value) + self.b1
        else:
            h = F.dropout(F.normalize(x), DROPOUT, self.training) @ self.w1 + self.b1
        mu, logvar = self.stats(torch.tanh(h)).split(LATENT, 1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.out(torch.tanh(self.hidden(z))), mu, logvar


def loss_of(x, row, at):
    f, mu, logvar = net(x)
    log = F.log_softmax(f, 1)
    nll = -log[row, at].sum() / batch if isinstance(x, tuple) else -(log * x).sum(1).mean()
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
    return nll + BETA * kl


def best_of(x, row, at):
    f, _, _ = net(x)
    f[row, at] = -np.inf
    return f.topk(K, 1).indices


net = MultVae().to(device)
optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
step = 0
narrow = torch.autocast(device, torch.bfloat16) if options.dtype == "bf16" else contextlib.nullcontext()


def next_batch(dense):
    """Input of the network, and row and column of every event."""
    global step
    step += 1
    first = step * batch % max(len(order) - batch + 1, 1)
    if on_host:
        rows = [indices[indptr[u] : indptr[u + 1]] for u in order[first : first + batch]]
        n = np.array([len(r) for r in rows])
        at = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        row = torch.from_numpy(np.repeat(np.arange(batch), n))
        start = torch.from_numpy(np.concatenate([[0], np.cumsum(n)[:-1]]))
        value = torch.from_numpy(np.repeat(1 / np.sqrt(np.maximum(n, 1)), n).astype(np.float32))
    else:
        total = int(events[first : first + batch].sum())
        n = counts[first : first + batch]
        start = n.cumsum(0) - n
        row = torch.repeat_interleave(places, n, output_size=total)
        at = all_indices[(starts[first : first + batch] - start)[row] + torch.arange(total, device=device)]
        value = n.clamp(min=1).float().rsqrt()[row]
    if dense:
        x = torch.zeros(batch, items, device=device)
        x[row, at] = 1.0
        return x, row, at
    return (at, start, value), row, at


def train(dense):
    net.train()
    optimizer.zero_grad(set_to_none=True)
    with narrow:
        loss = loss_of(*next_batch(dense))
    loss.backward()
    optimizer.step()


def infer(dense):
    net.eval()
    with torch.no_grad(), narrow:
        return best_of(*next_batch(dense)).cpu()


compiled = ""
if options.compile:
    eager = loss_of, best_of
    loss_of, best_of = torch.compile(loss_of), torch.compile(best_of)
    try:
        # The second and third batch have other numbers of events: what is compiled then takes any.
        for _ in range(3):
            train(False)
            infer(False)
        compiled = ", compiled"
    except Exception as error:  # Whatever a compiler may raise.
        loss_of, best_of = eager
        first_line = str(error).strip().splitlines() or [type(error).__name__]
        print(f"the peer runs without torch.compile, which failed: {first_line[0]}", file=sys.stderr, flush=True)


def seconds_of(work, dense, steps):
    wait = (lambda: None) if on_host else torch.cuda.synchronize
    work(dense)
    wait()
    seconds = []
    begin = time.perf_counter()
    for _ in range(steps):
        start = time.perf_counter()
        work(dense)
        seconds.append(time.perf_counter() - start)
    wait()
    return float(np.median(seconds)) if on_host else (time.perf_counter() - begin) / steps


where = f"{options.threads} threads" if on_host else torch.cuda.get_device_name()
kind = "" if options.dtype == "f32" else f", {options.dtype} autocast"
print(f"PyTorch {torch.__version__} on {device}, {where}{kind}{compiled}", flush=True)
for line in sys.stdin:
    what, form, steps = line.split()
    try:
        print(seconds_of({"train": train, "infer": infer}[what], form == "dense", int(steps)), flush=True)
    except RuntimeError as error:  # Out of memory is one.
        print(f"the peer cannot {what} with {form} input: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        optimizer.zero_grad(set_to_none=True)
        print("nan", flush=True)
