"What the benchmarks share: the machine in words, repeated timing of several sides in turn, ratios with their spread"
import json, os, platform, shlex, statistics, sys, time
from datetime import datetime, timezone
from importlib.metadata import version

import torch
from torch import nn

from robust_nb.checkpoint import write_atomically
from robust_nb.models import MEAN, STD


def machine():
    "The hardware and the versions, in one line"
    try: cpu = next(l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
    except (OSError, StopIteration): cpu = platform.processor() or platform.machine()
    isa = torch.backends.cpu.get_cpu_capability()
    amx = "amx_bf16" in open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else False
    return f"{torch.get_num_threads()} threads on {os.cpu_count()} cores of {cpu} ({isa}{', AMX' if amx else ''}); PyTorch {torch.__version__}"


def require(name, wanted):
    "Refuses another version of a peer than the one that was compared"
    have = version(name)
    if have != wanted: raise SystemExit(f"{name} {wanted} is what this benchmark compares with; {have} is installed")
    return f"{name} {have}"


def keep(out, **said):
    "Writes what was measured to the file `out`, if it is given, with command, machine and date (UTC), for the page on speed"
    said = dict(command=shlex.join(["python", *sys.argv]), machine=machine(), date=datetime.now(timezone.utc).strftime("%d %B %Y")) | said
    if out: write_atomically(out, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
    return said


def in_turn(sides, repetitions):
    "Calls every side once per repetition, one after the other, so that a busy machine slows all of them: name -> seconds"
    for side in sides.values(): side()
    times = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(a, b):
    "Median of the paired ratios a ÷ b, and their lower and upper quartile"
    r = sorted(x / y for x, y in zip(a, b))
    low, _, high = statistics.quantiles(r, n=4)
    return statistics.median(r), low, high


def written_out():
    "The paper's net from its description: 32×32 inputs, ReLU before pooling. `MNISTNet` computes the same function."
    scale = nn.Conv2d(1, 1, 1).requires_grad_(False)
    scale.weight.fill_(1 / STD), scale.bias.fill_(-MEAN / STD)
    return nn.Sequential(nn.ZeroPad2d(2), scale, nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, 10))
