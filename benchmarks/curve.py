"""How much faster is `accuracy_curve` than separate one-step attacks, with the same accuracies?

    python benchmarks/curve.py [--set linf|l2|l1] [--box 0 1 | --no-box] [--radii 16] [--samples 1000] [--repeat 7]

Both sides classify the same test digits of mnist5k with the same net and batches, in turns in one process. Each repetition gives
one ratio. Wall time is what a user waits; processor time, summed over threads, says the same where other work shares the machine.
"""
import argparse, os, platform, statistics, time
import torch
from robust_nb.data import load
from robust_nb.evaluation import accuracy, accuracy_curve
from robust_nb.models import pretrained
from robust_nb.perturbation import perturb
from robust_nb.uncertainty import L1, L2, Linf

SETS = dict(linf=(Linf(1.), 0.3), l2=(L2(1.), 3.), l1=(L1(1.), 3.))    # and the largest radius, in pixels of [0, 1]

def separate(net, x, y, U, radii, box):
    "Accuracy after one step, an attack of its own for each radius"
    return torch.tensor([accuracy(net, perturb(net, x, y, U.with_radius(r), box=box), y) for r in radii], dtype=torch.float64)

def separate_in_batches(net, x, y, U, radii, box, size=200):
    "The same in batches of the size that `accuracy_curve` takes"
    parts = [separate(net, a, b, U, radii, box) * len(b) for a, b in zip(x.split(size), y.split(size))]
    return torch.stack(parts).sum(0) / len(y)

def timed(f, *args):
    wall, cpu = time.perf_counter(), time.process_time()
    out = f(*args)
    return out, time.perf_counter() - wall, time.process_time() - cpu

def machine():
    "Processor and memory, in words"
    try:
        cpu = next(l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
        memory = int(next(l.split()[1] for l in open("/proc/meminfo") if l.startswith("MemTotal"))) / 2**20
    except (OSError, StopIteration): return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB"

def spread(values): return f"median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--set", choices=SETS, default="linf")
    p.add_argument("--no-box", action="store_true", help="steps without the box [0, 1]")
    p.add_argument("--radii", type=int, default=16)
    p.add_argument("--samples", type=int, default=1000, help="at most 1000")
    p.add_argument("--repeat", type=int, default=7, help="repetitions of both sides")
    p.add_argument("--contiguous", action="store_true", help="the net in PyTorch's default memory format, not channels_last as `fit` leaves it")
    a = p.parse_args()
    net, test = pretrained("baseline"), load("mnist5k", device="cpu").test
    if not a.contiguous: net = net.to(memory_format=torch.channels_last)
    x, y, (U, most) = test.x[:a.samples], test.y[:a.samples], SETS[a.set]
    radii, box = [most * k / max(1, a.radii - 1) for k in range(a.radii)], None if a.no_box else (0., 1.)
    curve = lambda *args: accuracy_curve(*args[:-1], box=args[-1])

    print(f"{machine()}; {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f} before the run" if hasattr(os, "getloadavg") else machine())
    print(f"Python {platform.python_version()}, torch {torch.__version__}; {a.set}, {a.radii} radii up to {most}, box {box}, {len(y)} digits, "
          f"{'default' if a.contiguous else 'channels_last'} format, {a.repeat} repetitions after one to warm up")
    sides, times = dict(separate=separate_in_batches, curve=curve), {}
    for k in range(a.repeat + 1):
        out = {}
        for name in (list(sides), list(sides)[::-1])[k % 2]:
            out[name], *seconds = timed(sides[name], net, x, y, U, radii, box)
            if k: times.setdefault(name, []).append(seconds)
        assert torch.equal(out["separate"], out["curve"]), f"the accuracies differ: {out}"
    print("accuracies identical:", " ".join(f"{v:.3f}" for v in out["curve"].tolist()))
    for j, clock in enumerate(("wall", "processor")):
        one, other = ([t[j] for t in times[name]] for name in sides)
        print(f"{clock} seconds: separate {spread(one)}; curve {spread(other)}; ratio {spread([s / t for s, t in zip(one, other)])}")

if __name__ == "__main__": main()
