"What the benchmarks share: the machine in words, repeated timing of several sides in turn, ratios with their spread"
import os, platform, statistics, time
from importlib.metadata import version

import torch


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
