"""How strong are the attacks? Ours against torchattacks, foolbox and ART, on mnist5k's test digits, in the box [0, 1].
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/strength.py linear        share of the exact optimum, 200 digits, 3 linear models
    PYTHONPATH=.peers python benchmarks/strength.py nets          success on the four nets at 1, 10 and 40 gradient calls, 1,000 digits
Prints Markdown tables. `linear`: the denominator comes from scipy's linear programs and cvxpy's cone programs, not from our own code."""
import argparse, time

import cvxpy as cp
import numpy as np
import torch
from attacks import NORMS, PEERS, ours, step_then_clip, versions
from common import machine
from scipy.optimize import linprog
from scipy.stats import binomtest
from torch import nn

from robust_nb.data import Split, load
from robust_nb.models import PRETRAINED, pretrained
from robust_nb.objectives import Standard
from robust_nb.training import fit

RADII = dict(linf=(0.055, 0.2), l2=(0.55, 2.), l1=(0.55, 5.))


class Pair(nn.Module):
    "A linear model of two classes: logits (0, f), so every loss is a monotone function of the linear f"
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(784, 1)

    def forward(self, x):
        f = self.f(x.flatten(1))
        return torch.cat([torch.zeros_like(f), f], 1)


def problem(data, pair, n=None):
    "The digits of two classes, labelled 0 and 1"
    keep = ((data.y == pair[0]) | (data.y == pair[1])).nonzero().squeeze(1)[:n]
    return Split(data.x[keep], (data.y[keep] == pair[1]).long())


def optimum(norm, g, x, r):
    "max ⟨g, Δ⟩ over ‖Δ‖ ≤ r and 0 ≤ x + Δ ≤ 1, by other people's solvers"
    lo, hi = -x, 1 - x
    if norm == "linf": return -linprog(-g, bounds=np.c_[lo.clip(-r), hi.clip(max=r)]).fun
    if norm == "l1": return -linprog(np.r_[-g, g], np.ones((1, 2 * len(g))), r, bounds=np.c_[np.zeros(2 * len(g)), np.r_[hi, -lo]]).fun
    D = cp.Variable(len(g))
    return cp.Problem(cp.Maximize(g @ D), [cp.norm2(D) <= r, D >= lo, D <= hi]).solve(solver="CLARABEL")


def linear(a):
    data, tables = load("mnist5k", device="cpu"), {}
    attacks = {"ours": ours, "step, then clip": step_then_clip, **PEERS}
    del attacks["torchattacks APGD"]                        # it returns x where it does not flip the answer, so it has no share
    for pair in ((0, 1), (3, 8), (4, 9)):
        torch.manual_seed(0)
        net = Pair()
        fit(net, problem(data.train, pair), Standard(), epochs=20, lr=0.05, progress=False, device="cpu")
        net.eval()
        test = problem(data.test, pair, a.digits)
        w = net.f.weight.detach()[0].double().numpy()
        sign = 1 - 2 * test.y.double().numpy()              # the loss of label 0 rises with f, that of label 1 falls
        x = test.x.flatten(1).double().numpy()
        for norm, radii in RADII.items():
            for r in radii:
                best = np.array([optimum(norm, s * w, z, r) for s, z in zip(sign, x)])
                for name, attack in attacks.items():
                    for calls in (1, 40):
                        z = attack(net, test.x, test.y, norm, r, calls)
                        if z is None: continue
                        d = z.detach().flatten(1).double().numpy() - x
                        size = NORMS[norm](r).norm(torch.from_numpy(d))
                        ok = bool((size <= r * (1 + 1e-4) + 1e-6).all()) and bool((z >= -1e-6).all() & (z <= 1 + 1e-6).all())
                        tables.setdefault((name, calls), {}).setdefault((norm, r), []).append(((sign * (d @ w)) / best, ok))
        print(f"digits {pair[0]} and {pair[1]} are done", flush=True)
    columns = [(n, r) for n, radii in RADII.items() for r in radii]
    print("\nShare of the exact maximum of the linear function over ball ∩ box, mean (least), in %; * marks points that leave the ball or the box\n")
    print("| attack | gradient calls | " + " | ".join(f"{n} {r}" for n, r in columns) + " |\n|---|---|" + "---|" * len(columns))
    for (name, calls), cells in tables.items():
        said = []
        for c in columns:
            share = np.concatenate([s for s, _ in cells[c]]) if c in cells else None
            said.append("–" if share is None else f"{100 * share.mean():.2f} ({100 * share.min():.2f})" + "*" * (not all(ok for _, ok in cells[c])))
        print(f"| {name} | {calls} | " + " | ".join(said) + " |")


def radius_of(net, x, y, norm, calls):
    "The first radius on a grid at which the best peer flips 40 % or more"
    for r in dict(linf=0.02, l2=0.3, l1=1.)[norm] * 1.2 ** np.arange(24):
        flips = [(net(z).argmax(1) != y).float().mean().item() for peer in PEERS.values() if (z := peer(net, x[:200], y[:200], norm, float(r), calls)) is not None for y in [y[:200]]]
        if max(flips) >= 0.4: return float(np.round(r, 4))
    raise SystemExit(f"no radius flips 40 % for {norm}, {calls} calls")


def nets(a):
    data, rows, sums = load("mnist5k", device="cpu").test, [], {}
    for name in PRETRAINED:
        net = pretrained(name)
        right = net(data.x).argmax(1) == data.y
        x, y = data.x[right], data.y[right]
        for norm in NORMS:
            for calls in (1, 10, 40):
                r = radius_of(net, x, y, norm, calls)
                flipped = {}
                for who, attack in {"ours": ours, **PEERS}.items():
                    start = time.perf_counter()
                    z = attack(net, x, y, norm, r, calls)
                    if z is not None: flipped[who] = (net(z.detach()).argmax(1) != y).numpy(), time.perf_counter() - start
                mine, cells = flipped["ours"][0], [f"{100 * flipped['ours'][0].mean():.1f}"]
                for who in PEERS:
                    if who not in flipped: cells.append("–"); continue
                    won, lost = int((mine & ~flipped[who][0]).sum()), int((~mine & flipped[who][0]).sum())
                    p = binomtest(won, won + lost).pvalue if won + lost else 1.
                    sums.setdefault(who, []).append((won, lost, p))
                    cells.append(f"{100 * flipped[who][0].mean():.1f} (+{won} −{lost}, p = {p:.1g})")
                print(f"| {name} | {norm} | {r} | {calls} | " + " | ".join(cells) + " |", flush=True)
    print("\nin all: images that only our attack flips, that only the peer's flips, cells that the peer wins with p < 0.05")
    for who, cells in sums.items(): print(f"  {who}: {sum(c[0] for c in cells)}, {sum(c[1] for c in cells)}, {sum(c[1] > c[0] and c[2] < 0.05 for c in cells)} of {len(cells)}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("part", choices=("linear", "nets"))
    p.add_argument("--digits", type=int, default=200, help="per linear model")
    a = p.parse_args()
    print(f"{machine()}; {versions()}\n")
    if a.part == "nets": print("| net | norm | radius | gradient calls | ours, % flipped | " + " | ".join(f"{k} (+ only ours, − only theirs)" for k in PEERS) + " |\n|---|---|---|---|---|" + "---|" * len(PEERS))
    dict(linear=linear, nets=nets)[a.part](a)


if __name__ == "__main__": main()
