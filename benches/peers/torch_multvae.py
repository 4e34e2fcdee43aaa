"""The peer: Mult-VAE in PyTorch, with dense input as common toolkits have it and at its best (sparse
input through embedding_bag, fused Adam), on the same histories as ours.

usage: torch_multvae.py FOLDER ITEMS BATCH THREADS [DEVICE]
FOLDER holds indptr.u64 and indices.u32. Prints a line that names it, then answers each line
"train|infer sparse|dense STEPS" on stdin with the median seconds of a step.
"""

import os
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

folder, items, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
device = sys.argv[5] if len(sys.argv) > 5 else "cpu"
HIDDEN, LATENT, DROPOUT, BETA, K = 600, 200, 0.5, 0.2, 100
torch.set_num_threads(threads)
torch.manual_seed(1)
indptr = np.fromfile(os.path.join(folder, "indptr.u64"), np.uint64).astype(np.int64)
indices = np.fromfile(os.path.join(folder, "indices.u32"), np.uint32)
order = np.random.default_rng(0).permutation(len(indptr) - 1)


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


net = MultVae().to(device)
optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
step = 0


def next_batch(dense):
    """Input of the network, and row and column of every event."""
    global step
    step += 1
    first = step * batch % max(len(order) - batch + 1, 1)
    rows = [indices[indptr[u] : indptr[u + 1]] for u in order[first : first + batch]]
    n = np.array([len(r) for r in rows])
    at = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(device)
    row = torch.from_numpy(np.repeat(np.arange(batch), n)).to(device)
    if dense:
        x = torch.zeros(batch, items, device=device)
        x[row, at] = 1.0
        return x, row, at
    start = torch.from_numpy(np.concatenate([[0], np.cumsum(n)[:-1]])).to(device)
    value = torch.from_numpy(np.repeat(1 / np.sqrt(np.maximum(n, 1)), n).astype(np.float32)).to(device)
    return (at, start, value), row, at


def train(dense):
    net.train()
    x, row, at = next_batch(dense)
    f, mu, logvar = net(x)
    log = F.log_softmax(f, 1)
    nll = -(log * x).sum(1).mean() if dense else -log[row, at].sum() / batch
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
    optimizer.zero_grad(set_to_none=True)
    (nll + BETA * kl).backward()
    optimizer.step()


def infer(dense):
    net.eval()
    with torch.no_grad():
        x, row, at = next_batch(dense)
        f, _, _ = net(x)
        f[row, at] = -np.inf
        return f.topk(K, 1).indices.cpu()


print(f"PyTorch {torch.__version__} on {device}, {threads} threads", flush=True)
for line in sys.stdin:
    what, form, steps = line.split()
    work, dense, seconds = {"train": train, "infer": infer}[what], form == "dense", []
    work(dense)
    for _ in range(int(steps)):
        start = time.perf_counter()
        work(dense)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(float(np.median(seconds)), flush=True)
