"""Time per step on the paper's MNIST net: standard training, Algorithm 1, and the loop that one writes with plain PyTorch and torchattacks.
The plain loop runs on the net as one writes it from its description, and again on our rearranged module, which computes the same function faster.
Data: mnist5k, 4,000 training images, batch 100, pixel recipe, ℓ∞, r = 0.055. Accuracy on its 1,000 test images, over 3 seeds, beside the times.
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/training_step.py [--repetitions 9] [--epochs 10] [--out FILE.json]"""
import argparse, statistics

import torch
import torch.nn.functional as F
import torchattacks
from common import in_turn, keep, machine, ratio, require, written_out

from robust_nb.data import load
from robust_nb.evaluation import accuracy, robust_accuracy
from robust_nb.models import MNISTNet
from robust_nb.objectives import Robust, Standard
from robust_nb.training import fit
from robust_nb.uncertainty import Linf

RADIUS = 0.055


def plain_loop(net, data, epochs, seed, attack=False):
    "What a user of PyTorch writes: the same net, data in memory, SGD, and torchattacks' FGSM where asked for"
    fgsm = torchattacks.FGSM(net, eps=RADIUS) if attack else None
    opt = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        net.train()
        for i in torch.randperm(len(data), generator=order).split(100):
            x, y = data.x[i], data.y[i]
            if fgsm: x = fgsm(x, y)
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--repetitions", type=int, default=9)
    p.add_argument("--epochs", type=int, default=10, help="for the accuracies")
    p.add_argument("--out")
    a = p.parse_args()
    data = load("mnist5k", device="cpu")
    ours = lambda objective, precision="float32": lambda net, epochs, seed: fit(net, data.train, objective, epochs=epochs, seed=seed, device="cpu", precision=precision, progress=False, lr_decay=0.)
    plain = lambda attack: lambda net, epochs, seed: plain_loop(net, data.train, epochs, seed, attack)
    robust = Robust(Linf(RADIUS))
    sides = {"ours, standard, float32": (MNISTNet, ours(Standard())), "ours, standard, bfloat16": (MNISTNet, ours(Standard(), "bfloat16")),
             "plain loop, standard, net written out": (written_out, plain(False)), "plain loop, standard, our net": (MNISTNet, plain(False)),
             "ours, Algorithm 1, float32": (MNISTNet, ours(robust)), "ours, Algorithm 1, bfloat16": (MNISTNet, ours(robust, "bfloat16")),
             "torchattacks loop, net written out": (written_out, plain(True)), "torchattacks loop, our net": (MNISTNet, plain(True))}

    def timed(side):
        net = side[0]()
        return lambda: side[1](net, 1, 0)

    times = in_turn({k: timed(s) for k, s in sides.items()}, a.repetitions)
    print(f"{machine()}; {require('torchattacks', '3.5.1')}\n{a.repetitions} repetitions of one epoch of 40 steps, the sides in turn\n")
    print(f"{'':<48}{'ms per step':>12}{'clean, %':>17}{'one step, %':>17}")
    for k, side in sides.items():
        clean, attacked = [], []
        for seed in range(3):
            torch.manual_seed(seed)
            net = side[0]()
            side[1](net, a.epochs, seed)
            clean.append(100 * accuracy(net, data.test.x, data.test.y))
            attacked.append(100 * robust_accuracy(net, data.test.x, data.test.y, Linf(RADIUS)))
        cell = lambda v: f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}"
        print(f"{k:<48}{1e3 * statistics.median(times[k]) / 40:>12.1f}{cell(clean):>17}{cell(attacked):>17}", flush=True)
    print("\nratio (median of pairs; quartiles); plain loops are in float32")
    ratios = {}
    for text, num, den in (("Algorithm 1 ÷ standard, both ours, float32", "ours, Algorithm 1, float32", "ours, standard, float32"),
                           ("Algorithm 1 ÷ standard, both ours, bfloat16", "ours, Algorithm 1, bfloat16", "ours, standard, bfloat16"),
                           *((f"{loop} ÷ ours, {precision}", loop, f"ours, {what}, {precision}") for loop, what in
                             (("plain loop, standard, net written out", "standard"), ("plain loop, standard, our net", "standard"),
                              ("torchattacks loop, net written out", "Algorithm 1"), ("torchattacks loop, our net", "Algorithm 1")) for precision in ("float32", "bfloat16"))):
        ratios[text] = [round(v, 3) for v in ratio(times[num], times[den])]
        print(f"{text:<60}{{:6.2f}}  ({{:.2f}} – {{:.2f}})".format(*ratios[text]))
    keep(a.out, versions=require("torchattacks", "3.5.1"), what="mnist5k, 4,000 images, batch 100, the paper's net; one epoch of 40 steps per repetition",
         milliseconds={k: [round(1e3 * s / 40, 3) for s in v] for k, v in times.items()}, ratios=ratios)


if __name__ == "__main__": main()
