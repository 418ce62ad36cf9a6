"""Projected ascent: images per second against torchattacks and foolbox, with as many steps, and at equal success.
Baseline net as shipped, the 1,000 test digits of mnist5k, box [0, 1], at radii at which the peers' 40 steps flip about half.
Equal success: the peer takes 40 steps, ours as few as flip no fewer digits. All sides run on the same module and gradients.
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/ascent.py [--norm linf l2 l1] [--repetitions 5] [--out FILE.json]"""
import argparse, statistics

import torch
from attacks import by_foolbox, by_torchattacks, ours, versions
from common import in_turn, keep, machine, ratio

from robust_nb.data import load
from robust_nb.models import pretrained

RADII = dict(linf=0.1423, l2=1.6367, l1=8.)
COUNTS = (3, 5, 7, 10, 14, 20, 28, 40)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--repetitions", type=int, default=5)
    p.add_argument("--norm", nargs="+", choices=RADII, default=list(RADII))
    p.add_argument("--out")
    a = p.parse_args()
    data, net = load("mnist5k", device="cpu").test, pretrained("baseline")
    x, y = data.x, data.y
    def flipped(z): return int((net(z.detach()).argmax(1) != y).sum())
    print(f"{machine()}; {versions()}; {a.repetitions} repetitions\n")
    print("| norm, radius | peer | peer, 40 steps: misread of 1,000 | ours, 40 steps | peer's time ÷ ours, 40 steps each | ours, k steps: misread | peer's time ÷ ours, k steps | images per second: peer, ours with k |")
    print("|---" * 8 + "|")
    rows = []
    for norm in a.norm:
        r = RADII[norm]
        for name, peer in (("torchattacks", by_torchattacks), ("foolbox", by_foolbox)):
            z = peer(net, x, y, norm, r, 40)
            if z is None: continue
            goal = flipped(z)
            k, mine = next((k, n) for k in COUNTS if (n := flipped(ours(net, x, y, norm, r, k))) >= goal or k == COUNTS[-1])
            times = in_turn(dict(peer=lambda: peer(net, x, y, norm, r, 40), same=lambda: ours(net, x, y, norm, r, 40), fewer=lambda: ours(net, x, y, norm, r, k)), a.repetitions)
            ratios = {s: [round(v, 3) for v in ratio(times["peer"], times[s])] for s in ("same", "fewer")}
            same, fewer = ("{:.2f} ({:.2f}–{:.2f})".format(*v) for v in ratios.values())
            speed = (f"{len(x) / statistics.median(times[s]):.0f}" for s in ("peer", "fewer"))
            rows.append(dict(norm=norm, radius=r, peer=name, misread=goal, steps=k, ours=mine, ratios=ratios, images_per_second={s: round(len(x) / statistics.median(v), 1) for s, v in times.items()}))
            print(f"| {norm}, {r} | {name} | {goal} | {flipped(ours(net, x, y, norm, r, 40))} | {same} | {k}: {mine} | {fewer} | {', '.join(speed)} |", flush=True)
            keep(a.out, versions=versions(), what="baseline net as shipped, 1,000 test digits of mnist5k, box [0, 1], the peer takes 40 steps", rows=rows)


if __name__ == "__main__": main()
