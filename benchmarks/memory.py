"""Peak memory of one epoch of robust training, above that of a process that has imported the same libraries and loaded the data.
Data: mnist5k, 4,000 training images, batch 100, pixel recipe, ℓ∞, r = 0.055. Each measurement is a process of its own; the sides take turns.
Ours keeps a checkpoint and lets glibc keep freed memory (`memory_kept`), as `fit` does by default; both count.
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/memory.py [--repetitions 5] [--out FILE.json]"""
import argparse, resource, statistics, subprocess, sys

SIDES = ("ours, float32", "ours, bfloat16", "torchattacks loop", "ART trainer")


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024     # MiB on Linux


def child(side):
    import torch
    from epoch import ART, Ours, Plain, models, written_out
    from robust_nb.data import load
    from robust_nb.objectives import Robust
    from robust_nb.uncertainty import Linf
    train = load("mnist5k", device="cpu").train
    torch.manual_seed(0)
    before = peak()
    if side.startswith("ours"): run = Ours(models.MNISTNet(), train, 100, 0, Robust(Linf(0.055)), side.split(", ")[1])
    else: run = {"torchattacks loop": Plain, "ART trainer": ART}[side](written_out(), train, 100, 0, 0.055)
    run.epoch()
    print(before, peak() - before)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--repetitions", type=int, default=5)
    p.add_argument("--out")
    p.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.side: return child(a.side)
    if a.repetitions < 3: p.error("--repetitions must be at least 3, for a spread")
    from common import keep, machine, ratio, require
    found, before = {s: [] for s in SIDES}, {s: [] for s in SIDES}
    for _ in range(a.repetitions):
        for s in SIDES:
            said = subprocess.run([sys.executable, __file__, "--side", s], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-2:]
            for kept, mib in zip((before, found), said): kept[s].append(round(float(mib), 1))
    peers = ", ".join(require(k, v) for k, v in {"torchattacks": "3.5.1", "adversarial-robustness-toolbox": "1.20.1"}.items())
    ratios = {f"{peer} ÷ {mine}": [round(v, 2) for v in ratio(found[peer], found[mine])] for peer in SIDES[2:] for mine in SIDES[:2]}
    print(f"{machine()}; {peers}; {a.repetitions} repetitions\n")
    for s, v in found.items(): print(f"{s:<24}{statistics.median(v):>8.0f} MiB  ({min(v):.0f}–{max(v):.0f}), above {statistics.median(before[s]):.0f} MiB")
    print("\nratio (median of pairs; quartiles)")
    for k, v in ratios.items(): print(f"{k:<44}{v[0]:6.2f}  ({v[1]:.2f} – {v[2]:.2f})")
    keep(a.out, versions=peers, what="mnist5k, 4,000 images, batch 100, one epoch; MiB above a process that has loaded the data", mib=found, mib_before=before, ratios=ratios)


if __name__ == "__main__": main()
