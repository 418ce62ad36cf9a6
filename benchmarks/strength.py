"""How strong are the attacks? Ours against torchattacks, foolbox and ART, on mnist5k's test digits, in the box [0, 1].
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/strength.py linear        share of the exact optimum, 200 digits, 3 linear models
    PYTHONPATH=.peers python benchmarks/strength.py nets          success on the four nets at 1, 10 and 40 gradient calls, 1,000 digits
    PYTHONPATH=.peers python benchmarks/strength.py reference     our strongest attack beside AutoAttack, 300 digits
Each prints a Markdown table and writes results/strength/PART.json, which a page of the docs reads.
`linear`: the denominator comes from scipy's linear programs and cvxpy's cone programs, not from our own code.
`nets`, `reference`: digits that the net reads correctly, at a radius at which the peer flips about half of the first 100 of them."""
import argparse, json, time
from pathlib import Path

import cvxpy as cp
import numpy as np
import torch
import torchattacks
from attacks import NORMS, PEERS, ours, step_then_clip, versions
from common import machine
from scipy.optimize import linprog
from scipy.stats import binomtest
from torch import nn

from robust_nb.data import Split, load
from robust_nb.models import PRETRAINED, pretrained
from robust_nb.objectives import Standard
from robust_nb.solvers import multi_targeted
from robust_nb.training import fit

OUT = Path(__file__).resolve().parents[1]/"results/strength"
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
    rows = []
    for (name, calls), cells in tables.items():
        for (norm, r), parts in cells.items():
            share = np.concatenate([s for s, _ in parts])
            rows.append(dict(attack=name, calls=calls, norm=norm, radius=r, n=len(share), mean=float(share.mean()), least=float(share.min()), feasible=all(ok for _, ok in parts)))
    columns = [(n, r) for n, radii in RADII.items() for r in radii]
    print("\nShare of the exact maximum of the linear function over ball ∩ box, mean (least), in %; * marks points that leave the ball or the box\n")
    print("| attack | gradient calls | " + " | ".join(f"{n} {r}" for n, r in columns) + " |\n|---|---|" + "---|" * len(columns))
    for name, calls in tables:
        found = {(q["norm"], q["radius"]): q for q in rows if (q["attack"], q["calls"]) == (name, calls)}
        print(f"| {name} | {calls} | " + " | ".join(f"{100 * q['mean']:.2f} ({100 * q['least']:.2f})" + "*" * (not q["feasible"]) if (q := found.get(c)) else "–" for c in columns) + " |")
    return rows


def flips(net, z, y):
    with torch.no_grad(): return net(z.detach()).argmax(1) != y


def radius_for(net, x, y, norm, attack, goal=0.5):
    "A radius at which `attack`, (x, y, radius) -> moved, flips about `goal` of the samples; None if the attack does not exist"
    grid, lo, hi = dict(linf=0.01, l2=0.1, l1=0.5)[norm] * 1.15 ** np.arange(40), 0, 39
    while hi - lo > 1:                                       # the share need not rise with the radius; it does so nearly enough
        mid = (lo + hi) // 2
        z = attack(x, y, float(grid[mid]))
        if z is None: return None
        lo, hi = (mid, hi) if flips(net, z, y).float().mean() < goal else (lo, mid)
    return float(np.round(grid[hi], 4))


def compared(mine, theirs):
    "Images that only ours flips, that only theirs flips, McNemar's exact p"
    won, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    return dict(ours=int(mine.sum()), peer=int(theirs.sum()), won=won, lost=lost, p=binomtest(won, won + lost).pvalue if won + lost else 1.)


def read_by(net, data, n=None):
    with torch.no_grad(): right = net(data.x).argmax(1) == data.y
    return data.x[right][:n], data.y[right][:n]


def nets(a):
    data, rows = load("mnist5k", device="cpu").test, []
    print("| net | norm | gradient calls | peer | radius | peer, % flipped | ours, % | only ours | only peer | p |\n" + "|---" * 10 + "|")
    for name in PRETRAINED:
        net = pretrained(name)
        x, y = read_by(net, data)
        for norm in NORMS:
            for calls in (1, 10, 40):
                for who, peer in PEERS.items():
                    r = radius_for(net, x[:100], y[:100], norm, lambda x, y, r: peer(net, x, y, norm, r, calls))
                    if r is None: continue
                    c = compared(*(flips(net, attack(net, x, y, norm, r, calls), y) for attack in (ours, peer)))
                    rows.append(dict(net=name, norm=norm, calls=calls, attack=who, radius=r, n=len(x), **c))
                    print(f"| {name} | {norm} | {calls} | {who} | {r} | {100 * c['peer'] / len(x):.1f} | {100 * c['ours'] / len(x):.1f} | {c['won']} | {c['lost']} | {c['p']:.1g} |", flush=True)
    for who in PEERS:
        cells = [q for q in rows if q["attack"] == who]
        print(f"{who}: {sum(q['won'] for q in cells)} images only ours, {sum(q['lost'] for q in cells)} only theirs; cells lost with p < 0.05: {sum(q['lost'] > q['won'] and q['p'] < 0.05 for q in cells)} of {len(cells)}")
    return rows


def parts_of_autoattack(net, x, y, norm, r):
    "The four attacks of AutoAttack with the numbers of steps of its paper, one after the other on what is left"
    kw, z = dict(norm=dict(linf="Linf", l2="L2")[norm], eps=r, n_restarts=1, seed=0), x.clone()
    for attack in (torchattacks.APGD(net, steps=100, loss="ce", **kw), torchattacks.APGDT(net, steps=100, n_classes=10, **kw),
                   torchattacks.FAB(net, steps=100, multi_targeted=True, n_classes=10, **kw), torchattacks.Square(net, n_queries=5000, **kw)):
        left = (~flips(net, z, y)).nonzero().squeeze(1)
        if len(left): z[left] = attack(x[left], y[left]).detach()
    return z


def reference(a):
    data, rows = load("mnist5k", device="cpu").test, []
    print("| net | norm | radius | ours, % flipped | AutoAttack as torchattacks has it, % | its parts with 100 steps, % | seconds, in this order |\n" + "|---" * 7 + "|")
    for name in PRETRAINED:
        net = pretrained(name)
        x, y = read_by(net, data, 300)
        for norm in ("linf", "l2"):
            r = radius_for(net, x[:100], y[:100], norm, lambda x, y, r: ours(net, x, y, norm, r, 10))
            sides = {"ours": lambda: multi_targeted(net, x, y, NORMS[norm](r)), "AutoAttack": lambda: torchattacks.AutoAttack(net, norm=dict(linf="Linf", l2="L2")[norm], eps=r, n_classes=10, seed=0)(x, y),
                     "100 steps": lambda: parts_of_autoattack(net, x, y, norm, r)}
            row = dict(net=name, norm=norm, radius=r, n=len(x))
            for who, attack in sides.items():
                start = time.perf_counter()
                z = attack()
                row[who] = dict(flipped=int(flips(net, z, y).sum()), seconds=round(time.perf_counter() - start, 1), feasible=bool(NORMS[norm](r).contains(z.detach() - x, x, (0., 1.)).all()))
            rows.append(row)
            print(f"| {name} | {norm} | {r} | " + " | ".join(f"{100 * row[who]['flipped'] / len(x):.1f}" for who in sides) + " | " + ", ".join(f"{row[who]['seconds']}" for who in sides) + " |", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("part", choices=("linear", "nets", "reference"))
    p.add_argument("--digits", type=int, default=200, help="per linear model")
    a = p.parse_args()
    print(f"{machine()}; {versions()}\n", flush=True)
    rows = dict(linear=linear, nets=nets, reference=reference)[a.part](a)
    OUT.mkdir(parents=True, exist_ok=True)
    said = dict(command=f"PYTHONPATH=.peers python benchmarks/strength.py {a.part}", machine=machine(), peers=versions(), rows=rows)
    (OUT/f"{a.part}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
