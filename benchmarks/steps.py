"""What does the exact step inside the box cost, as a share of the input gradient that it needs?
The paper's MNIST net (baseline, as shipped), batches of 100 digits of mnist5k, box [0, 1], float32; ℓ∞, ℓ2, ℓ1 at two radii, and some further sets.
    python benchmarks/steps.py [--repetitions 15]
The value of each step is compared with that of the same step in float64."""
import argparse

import torch
from common import in_turn, machine, ratio

from robust_nb.data import load
from robust_nb.models import pretrained
from robust_nb.perturbation import value_and_gradient
from robust_nb.sets import Group, Lp
from robust_nb.uncertainty import L1, L2, Linf

BOX = (0., 1.)
SETS = [Linf(0.055), Linf(0.2), L2(0.55), L2(2.), L1(0.55), L1(5.), L1(20.), Lp(1.5, 1.), Lp(4, 0.5), Group(1, torch.inf, 3, 1.)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--repetitions", type=int, default=15)
    a = p.parse_args()
    data, net = load("mnist5k", device="cpu").train, pretrained("baseline")
    batches = [(x, y, value_and_gradient(net, x, y)[1]) for x, y in zip(data.x.split(100)[:10], data.y.split(100)[:10])]

    def gradient():
        for x, y, _ in batches: value_and_gradient(net, x, y, check=False)

    def step(U):
        for x, _, g in batches: U.steepest_ascent(g, x, BOX, check=False)

    times = in_turn({"gradient": gradient} | {repr(U): (lambda U=U: step(U)) for U in SETS}, a.repetitions)
    print(f"{machine()}; {a.repetitions} repetitions of {len(batches)} batches; gradient: {1000 * sorted(times['gradient'])[a.repetitions // 2] / len(batches):.2f} ms per batch, median\n")
    print("| step | share of the gradient, median (quartiles), % | value ÷ value in float64, least |\n|---|---|---|")
    for U in SETS:
        middle, low, high = (100 * v for v in ratio(times[repr(U)], times["gradient"]))
        value = min((U.support(g, x, BOX) / U.support(g.double(), x.double(), BOX)).min().item() for x, _, g in batches)
        print(f"| {U!r} | {middle:.1f} ({low:.1f}–{high:.1f}) | {value:.7f} |")


if __name__ == "__main__": main()
