"""Which operations the time of one step of Algorithm 1 goes into: ours in float32 and bfloat16, and the torchattacks loop.
The paper's MNIST net: mnist5k, batch 100, pixel recipe, ℓ∞, r = 0.055; the loop trains the net as written. With --cifar: `CIFARNet` for all, random images, batch 128, r = 8/255. Shares of the time that PyTorch's profiler sees; it slows small operations more than large ones.
    python -m pip install --no-deps --target .peers -r benchmarks/peers.txt
    PYTHONPATH=.peers python benchmarks/operations.py [--cifar] [--steps 40] [--out FILE.json]"""
import argparse
from collections import Counter

import torch
import torch.nn.functional as F
import torchattacks
from common import keep, machine, require, written_out
from torch.profiler import ProfilerActivity, profile

from robust_nb.data import Split, load
from robust_nb.models import CIFARNet, MNISTNet
from robust_nb.objectives import Robust
from robust_nb.training import fit
from robust_nb.uncertainty import Linf

GROUPS = {"convolution, forward": ("aten::mkldnn_convolution",), "convolution, backward": ("aten::convolution_backward",), "max-pooling": ("aten::max_pool2d_with_indices",), "max-pooling, backward": ("aten::max_pool2d_with_indices_backward",),
          "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"), "filling and copying": ("aten::fill_", "aten::copy_", "aten::zero_", "aten::_to_copy"), "ReLU": ("aten::clamp_min", "aten::threshold_backward", "aten::relu", "aten::clamp_min_"),
          "batch normalisation": ("aten::native_batch_norm", "aten::native_batch_norm_backward", "aten::batch_norm"), "dropout": ("aten::bernoulli_", "aten::native_dropout", "aten::mul"),
          "optimiser": ("aten::_fused_sgd_", "Optimizer.step#SGD.step", "aten::_foreach_add_", "aten::_foreach_mul_")}


def shares(run):
    with profile(activities=[ProfilerActivity.CPU]) as p: run()
    times = Counter()
    for e in p.key_averages(): times[next((g for g, names in GROUPS.items() if e.key in names), "the rest")] += e.self_cpu_time_total
    return {g: round(t / sum(times.values()), 4) for g, t in times.most_common()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--cifar", action="store_true")
    p.add_argument("--out")
    a = p.parse_args()
    batch, radius, make = (128, 8 / 255, CIFARNet) if a.cifar else (100, 0.055, MNISTNet)
    g = torch.Generator().manual_seed(0)
    data = Split(torch.rand(batch * a.steps, 3, 32, 32, generator=g), torch.randint(10, (batch * a.steps,), generator=g)) if a.cifar else load("mnist5k", device="cpu").train[:batch * a.steps]
    torch.manual_seed(0)
    nets = {precision: make() for precision in ("float32", "bfloat16")}
    ours = lambda precision: lambda: fit(nets[precision], data, Robust(Linf(radius)), epochs=1, batch_size=batch, device="cpu", precision=precision, progress=False)
    net = CIFARNet() if a.cifar else written_out()
    attack, opt = torchattacks.FGSM(net, eps=radius), torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3)
    def loop():
        net.train()
        for x, y in zip(data.x.split(batch), data.y.split(batch)):
            loss = F.cross_entropy(net(attack(x, y)), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
    sides = {"ours, float32": ours("float32"), "ours, bfloat16": ours("bfloat16"), "torchattacks loop, float32": loop}
    for run in sides.values(): run()                                   # warm-up
    found = {k: shares(run) for k, run in sides.items()}
    print(machine() + "\n")
    print(f"{'share of the time, %':<28}" + "".join(f"{k:>28}" for k in found))
    for g in [*GROUPS, "the rest"]: print(f"{g:<28}" + "".join(f"{100 * v.get(g, 0):>28.1f}" for v in found.values()))
    keep(a.out, versions=require("torchattacks", "3.5.1"), what="one step of Algorithm 1 on " + ("CIFARNet, batch 128, random images" if a.cifar else "the paper's net, batch 100, digits of mnist5k"), shares=found)


if __name__ == "__main__": main()
