"""Images per second of Algorithm 1 in one process and in two, on the same machine: with one thread each, and one process with two threads.
Data: mnist5k, 4,000 training images, batch 100 over all processes, the paper's net, pixel recipe, ℓ∞, r = 0.055, float32.
    python benchmarks/scaling.py [--repetitions 5] [--epochs 3] [--out FILE.json]"""
import argparse, statistics

import torch
from common import keep, machine, ratio

from robust_nb.data import load
from robust_nb.distributed import launch
from robust_nb.models import MNISTNet
from robust_nb.objectives import Robust
from robust_nb.training import fit
from robust_nb.uncertainty import Linf

SIDES = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def speed(threads, epochs):
    "Images per second: the fastest epoch after the first"
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load("mnist5k", device="cpu").train
    history = fit(MNISTNet(), data, Robust(Linf(0.055)), epochs=epochs + 1, device="cpu", precision="float32", progress=False)
    return len(data) / min(history.column("seconds")[1:]), history[-1]["loss"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--repetitions", type=int, default=5)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--out")
    a = p.parse_args()
    found, losses = {s: [] for s in SIDES}, {s: [] for s in SIDES}
    for _ in range(a.repetitions):
        for s, (processes, threads) in SIDES.items():
            images, loss = launch(speed, processes, threads, a.epochs)
            found[s].append(images), losses[s].append(loss)
    base = found["1 process, 1 thread"]
    ratios = {f"{s} ÷ 1 process, 1 thread": [round(v, 3) for v in ratio(found[s], base)] for s in list(SIDES)[1:]}
    print(f"{machine()}; {a.repetitions} repetitions\n\n{'':<32}{'images per second':>24}{'per process':>14}{'loss at the end':>20}")
    for s, v in found.items(): print(f"{s:<32}{statistics.median(v):>10.0f} ({min(v):.0f}–{max(v):.0f}){statistics.median(v) / SIDES[s][0]:>14.0f}{statistics.median(losses[s]):>20.5f}")
    print("\nratio (median of pairs; quartiles)")
    for k, v in ratios.items(): print(f"{k:<52}{v[0]:6.2f}  ({v[1]:.2f} – {v[2]:.2f})")
    keep(a.out, what="mnist5k, 4,000 images, batch 100 over all processes, Algorithm 1, the paper's net, float32", images_per_second=found, loss=losses, ratios=ratios)


if __name__ == "__main__": main()
