"""Seconds per epoch of robust training: ours, a plain PyTorch loop with torchattacks, ART's adversarial trainer, and standard training beside them.
All sides train the same net with the same optimiser and radius, per seed from the same initial weights, on the same batches in the same order.
They take turns, one epoch each, so that a busy machine slows all of them. Seconds are those of the steps alone.
Then: is ours no less accurate than the peers, by more than a margin? Clean 0.2 points; under one exact step and under 10 steps of projected ascent 1 point.
MNIST: the paper's net, pixel recipe, ℓ∞ r = 0.055. Ours is `MNISTNet`; peers get the same net as one writes it from its description, which computes the same function.
CIFAR-10: `CIFARNet`, the same module for all, ℓ∞ r = 8/255, no augmentation. Times, and that the losses are finite; accuracies after so few steps mean nothing.
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/epoch.py [--data mnist|mnist5k|cifar10|FOLDER] [--root DIR] [--images N] [--epochs 5] [--seeds 3] [--precision float32 bfloat16] [--out FILE.json]"""
import argparse, contextlib, io, logging, math, statistics, tempfile, time, warnings

import numpy as np
import torch
import torch.nn.functional as F
from common import keep, ratio, require, written_out
from scipy.stats import t

warnings.filterwarnings("ignore", category=FutureWarning)
logging.getLogger("art").setLevel(logging.ERROR)
import torchattacks
from art.attacks.evasion import FastGradientMethod
from art.data_generators import DataGenerator
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier

from robust_nb.data import load
from robust_nb.evaluation import accuracy, robust_accuracy
from robust_nb import models
from robust_nb.objectives import Robust, Standard
from robust_nb.training import fit
from robust_nb.uncertainty import Linf

MARGINS = {"clean": 0.2, "one step": 1., "10 steps": 1.}    # points that ours may lose against a peer


class Ours:
    "`fit`, one more epoch at each call; the seconds are those that its history reports"
    def __init__(self, net, train, batch, seed, objective, precision):
        self.net, self.folder, self.k = net, tempfile.TemporaryDirectory(), 0
        self.run = lambda k: fit(net, train, objective, epochs=k, batch_size=batch, lr_decay=0., seed=seed, device="cpu", precision=precision,
                                 checkpoint=self.folder.name, resume=True, progress=False)

    def epoch(self):
        self.k += 1
        return self.run(self.k)[-1]["seconds"]


class Plain:
    "What a user of PyTorch writes, with torchattacks' FGSM where a radius is given"
    def __init__(self, net, train, batch, seed, radius=None):
        self.net, self.train, self.batch, self.order = net, train, batch, torch.Generator().manual_seed(seed)
        self.attack = radius and torchattacks.FGSM(net, eps=radius)
        self.opt = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3)

    def epoch(self):
        start = time.perf_counter()
        self.net.train()
        for i in torch.randperm(len(self.train), generator=self.order).split(self.batch):
            x, y = self.train.x[i], self.train.y[i]
            if self.attack: x = self.attack(x, y)
            loss = F.cross_entropy(self.net(x), y)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
        return time.perf_counter() - start


class SameOrder(DataGenerator):
    "Gives ART the batches of the other sides"
    def __init__(self, x, y, batch, seed):
        super().__init__(len(x), batch)
        self.x, self.y, self.order, self.left = x, y, torch.Generator().manual_seed(seed), []

    def get_batch(self):
        if not self.left: self.left = list(torch.randperm(self.size, generator=self.order).split(self.batch_size))
        i = self.left.pop(0).numpy()
        return self.x[i], self.y[i]


class ART:
    "ART's `AdversarialTrainer`. ratio=1: no clean samples; FastGradientMethod takes one gradient per batch, from the labels, clipped to clip_values"
    def __init__(self, net, train, batch, seed, radius):
        self.net, self.batches = net, SameOrder(train.x.numpy(), F.one_hot(train.y, 10).numpy().astype(np.float32), batch, seed)
        opt = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3)
        c = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), input_shape=train.x.shape[1:], nb_classes=10, optimizer=opt, clip_values=(0., 1.), device_type="cpu")
        self.trainer = AdversarialTrainer(c, FastGradientMethod(c, norm=np.inf, eps=radius, batch_size=batch), ratio=1.)

    def epoch(self):
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()): self.trainer.fit_generator(self.batches, nb_epochs=1)
        return time.perf_counter() - start


def sides(train, seed, radius, batch, ours, plain, precisions):
    "name -> a trainer with a net of its own; `ours` and `plain` make nets that compute the same function"
    torch.manual_seed(seed)
    start = list(ours().parameters())
    def fresh(make):
        net = make()
        free = [p for p in net.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, q in zip(free, start, strict=True): p.copy_(q)
        return net
    robust = Robust(Linf(radius))
    mine = {f"ours, {what}, {precision}": Ours(fresh(ours), train, batch, seed, objective, precision)
            for what, objective in (("standard", Standard()), ("Algorithm 1", robust)) for precision in precisions}
    return mine | {"plain PyTorch, standard": Plain(fresh(plain), train, batch, seed), "torchattacks loop": Plain(fresh(plain), train, batch, seed, radius),
                   "ART trainer": ART(fresh(plain), train, batch, seed, radius)}


RATIOS = (("robust ÷ standard, ours, float32", "ours, Algorithm 1, float32", "ours, standard, float32"), ("robust ÷ standard, ours, bfloat16", "ours, Algorithm 1, bfloat16", "ours, standard, bfloat16"),
          ("torchattacks loop ÷ ours, float32", "torchattacks loop", "ours, Algorithm 1, float32"), ("torchattacks loop ÷ ours, bfloat16", "torchattacks loop", "ours, Algorithm 1, bfloat16"),
          ("ART ÷ ours, float32", "ART trainer", "ours, Algorithm 1, float32"), ("ART ÷ ours, bfloat16", "ART trainer", "ours, Algorithm 1, bfloat16"),
          ("plain standard ÷ ours, float32", "plain PyTorch, standard", "ours, standard, float32"))


def interval(a, b):
    "Mean of the paired differences a − b over the seeds, and the half width of its 95 % interval, None for a single seed"
    d = [x - y for x, y in zip(a, b)]
    half = float(t.ppf(0.975, len(d) - 1)) * statistics.stdev(d) / math.sqrt(len(d)) if len(d) > 1 else None
    return [round(statistics.mean(d), 3), half if half is None else round(half, 3)]


def not_worse(m, mean, half):
    "Is the lower end of the interval above minus the margin?"
    return half is not None and mean - half > -MARGINS[m]


def summary(said):
    "Ratios of times and differences of accuracy, of what was measured so far"
    flat = {k: [s for seed in v for s in seed] for k, v in said["seconds"].items()}
    if all(len(v) > 2 for v in flat.values()): said["ratios"] = {k: [round(v, 3) for v in ratio(flat[num], flat[den])] for k, num, den in RATIOS if {num, den} <= flat.keys()}
    pairs = [(f"ours, Algorithm 1, {precision}", peer) for precision in said["precisions"] for peer in ("torchattacks loop", "ART trainer")]
    if said["accuracy"]: said["differences"] = {f"{mine} − {peer}": {m: interval(v, said["accuracy"][peer][m]) for m, v in said["accuracy"][mine].items()} for mine, peer in pairs}
    return said


def report(said):
    "The JSON in words"
    flat = {k: [s for seed in v for s in seed] for k, v in said["seconds"].items()}
    print(f"\n{said['machine']}; {said['versions']}; {said['date']}\n{said['what']}\n")
    measures = list(next(iter(said["accuracy"].values()), {}))
    print(f"{'':<32}{'s per epoch':>24}" + "".join(f"{m + ', %':>24}" for m in measures))
    for k, v in flat.items():
        cells = "".join(f"{statistics.mean(a):>14.2f} ({min(a):.2f}–{max(a):.2f})" for a in said["accuracy"].get(k, {}).values())
        print(f"{k:<32}{statistics.median(v):>10.2f} ({min(v):.2f}–{max(v):.2f}){cells}")
    if said["ratios"]: print("\nratio of times: median of pairs (quartiles)")
    for k, v in said["ratios"].items(): print(f"{k:<40}{v[0]:6.2f}  ({v[1]:.2f} – {v[2]:.2f})")
    if said["differences"]: print("\naccuracy, ours minus peer, points: mean over seeds ± half of the 95 % interval; + where its lower end is above minus the margin")
    cell = lambda m, d, h: f"{m} {d:+.2f}" + ("" if h is None else f" ± {h:.2f}") + f" (margin {MARGINS[m]:g}{', +' if not_worse(m, d, h) else ''})"
    for k, v in said["differences"].items(): print(f"{k:<64}" + ", ".join(cell(m, *d) for m, d in v.items()))
    print(f"\nloss on the first batch, largest over sides and seeds: {max(max(v) for v in said['loss'].values()):.3f}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", default="mnist5k", help="mnist5k, mnist, cifar10, or a folder with train/ and test/; colour images are taken for CIFAR-10's")
    p.add_argument("--root"), p.add_argument("--out")
    p.add_argument("--images", type=int, help="use so many of the training images only")
    p.add_argument("--epochs", type=int, default=5), p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"), help="of our own sides; bfloat16 is slow on processors without it")
    a = p.parse_args()
    data = load(a.data, root=a.root, device="cpu")
    cifar = data.train.x.shape[1] == 3
    some = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:a.images]      # a folder is sorted by class
    train, radius, batch = data.train[some.sort().values], 8 / 255 if cifar else 0.055, 128 if cifar else 100
    peers = ", ".join(require(k, v) for k, v in {"torchattacks": "3.5.1", "adversarial-robustness-toolbox": "1.20.1"}.items())
    what = f"{data.name}, {len(train):,} training images, batch {batch}, {'CIFARNet' if cifar else 'the paper net, pixel recipe'}, ℓ∞ r = {radius:.4g}, {a.epochs} epochs, seeds 0–{a.seeds - 1}"
    said = dict(versions=peers, what=what, margins=MARGINS, precisions=list(a.precision), seconds={}, accuracy={}, loss={}, ratios={}, differences={})
    make = (*((models.CIFARNet, models.CIFARNet) if cifar else (models.MNISTNet, written_out)), a.precision)
    U, x, y = Linf(radius), data.test.x, data.test.y
    for name, s in sides(train[:2 * batch], 0, radius, batch, *make).items(): s.epoch()        # warm-up, not counted
    for seed in range(a.seeds):
        trainers = sides(train, seed, radius, batch, *make)
        for k in trainers: said["seconds"].setdefault(k, []).append([])
        for epoch in range(a.epochs):
            for k, side in trainers.items(): said["seconds"][k][-1].append(round(side.epoch(), 3))
            spent = sum(v[-1][-1] for v in said["seconds"].values())
            total = "" if seed or epoch else f"; about {spent * a.epochs * a.seeds / 60:.1f} minutes for all epochs and seeds"
            print(f"seed {seed}, epoch {epoch + 1}: {spent:.0f} s for all sides{total}", flush=True)
            keep(a.out, **summary(said))
        for k, side in trainers.items():
            with torch.no_grad(): loss = F.cross_entropy(side.net.eval()(train.x[:batch]), train.y[:batch]).item()
            assert math.isfinite(loss) and all(p.isfinite().all() for p in side.net.parameters()), k
            said["loss"].setdefault(k, []).append(round(loss, 4))
            if cifar: continue
            found = {"clean": accuracy(side.net, x, y), "one step": robust_accuracy(side.net, x, y, U), "10 steps": robust_accuracy(side.net, x, y, U, steps=10)}
            for m, v in found.items(): said["accuracy"].setdefault(k, {}).setdefault(m, []).append(round(100 * v, 3))
        said = keep(a.out, **summary(said))
    report(said)


if __name__ == "__main__": main()
