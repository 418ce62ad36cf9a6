"""Seconds for accuracy against radius on the paper's MNIST net: `accuracy_curve`, and one one-step attack per radius.
Data: the 1,000 test images of mnist5k, pixel recipe, batches of 200 on both sides. Both must give the same raw accuracies.
    python benchmarks/curve.py [--set linf|l2|l1] [--no-box] [--radii 16] [--repetitions 9]"""
import argparse, statistics

import torch
from common import in_turn, machine, ratio

from robust_nb.data import load
from robust_nb.evaluation import accuracy_curve, correct
from robust_nb.models import pretrained
from robust_nb.perturbation import perturb
from robust_nb.uncertainty import L1, L2, Linf

SETS = dict(linf=(Linf, 0.3), l2=(L2, 3.), l1=(L1, 3.))    # and the largest radius, in pixels of [0, 1]
BATCH = 200


def separate(net, x, y, kind, radii, box):
    "An attack of its own for each radius"
    def hits(r, a, b): return correct(net, perturb(net, a, b, kind(r), box=box), b, BATCH)
    hits_at = [torch.cat([hits(r, a, b) for a, b in zip(x.split(BATCH), y.split(BATCH))]) for r in radii]
    return torch.stack(hits_at).double().mean(1)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--set", choices=SETS, default="linf", help="type of the uncertainty set")
    p.add_argument("--no-box", action="store_true", help="steps without the box [0, 1]")
    p.add_argument("--radii", type=int, default=16, help="how many, from 0 on")
    p.add_argument("--samples", type=int, default=1000, help="test images, at most 1,000")
    p.add_argument("--repetitions", type=int, default=9, help="of both sides in turn, after one to warm up; at least 2")
    p.add_argument("--contiguous", action="store_true", help="the net in PyTorch's default memory format; else channels_last, as `fit` leaves it")
    a = p.parse_args()
    net, test = pretrained("baseline"), load("mnist5k", device="cpu").test
    if not a.contiguous: net.to(memory_format=torch.channels_last)
    x, y, box = test.x[:a.samples], test.y[:a.samples], None if a.no_box else (0., 1.)
    kind, most = SETS[a.set]
    radii = torch.linspace(0, most, a.radii).tolist()
    found = dict(separate=[], curve=[])
    times = in_turn(dict(separate=lambda: found["separate"].append(separate(net, x, y, kind, radii, box)),
                         curve=lambda: found["curve"].append(accuracy_curve(net, x, y, kind(0.), radii, box=box, batch_size=BATCH))), a.repetitions)
    assert all(torch.equal(found["curve"][0], o) for side in found.values() for o in side), f"the accuracies differ: {found}"

    print(machine())
    print(f"{a.radii} radii of {a.set} up to {most}, box {box}, {len(y)} images, {'default' if a.contiguous else 'channels_last'} format, {a.repetitions} repetitions")
    print("raw accuracies, identical on both sides:", " ".join(f"{v:.3f}" for v in found["curve"][0].tolist()))
    for name, t in times.items(): print(f"{name:>10}: {statistics.median(t):.3f} s, {min(t):.3f} to {max(t):.3f}")
    middle, low, high = ratio(times["separate"], times["curve"])
    print(f"separate ÷ curve: median {middle:.2f}, quartiles {low:.2f} to {high:.2f}")


if __name__ == "__main__": main()
