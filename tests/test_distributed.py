"Training in two processes: the same steps, only one writes, resumed and stopped together; and `torchrun`."
import os, subprocess, sys
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from robust_nb import training
from robust_nb.data import Data, Split, load
from robust_nb.distributed import gather, join_group, launch, processes
from robust_nb.models import MLP, MNISTNet
from robust_nb.objectives import AdversarialMix, Robust, Standard
from robust_nb.training import fit
from robust_nb.uncertainty import L2, Linf
from robust_nb.variants import Free, Monitor

pytestmark = pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="PyTorch has no gloo")

def digits(n=101): data = load("mnist5k", device="cpu"); return Data("few", data.train[:n], data.test[:51], data.classes)

def net(seed=0):
    torch.manual_seed(seed)
    return MLP(784, 30, 10)

def train(objective=None, model=None, epochs=3, data=None, **kw):
    model = model or net()
    history = fit(model, data or digits(), objective or Robust(Linf(0.1)), epochs=epochs, device="cpu", **dict(batch_size=20, lr=0.05, progress=False) | kw)
    return model, history

def difference(a, b): return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))
def same(a, b): return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
def rows(history): return [{k: v for k, v in row.items() if k != "seconds"} for row in history]

OBJECTIVES = dict(standard=Standard, robust=lambda: Robust(Linf(0.1)), steps=lambda: Robust(L2(0.5), steps=3), radii=lambda: Robust(Linf(torch.linspace(0, 0.2, 101))), mix=lambda: AdversarialMix(Linf(0.1)), free=lambda: Free(Linf(0.1), replays=2))

def everything():
    "In a group or alone: models and histories of all objectives, with a monitor too; the last batch has one sample"
    found = {k: train(o()) for k, o in OBJECTIVES.items()}
    monitor = Monitor(load("mnist5k", device="cpu").train[500:600], Linf(0.1), patience=2)
    found["monitor"] = train(Robust(Linf(0.1)), epochs=60, monitor=monitor, lr=0.03)
    agree = gather([[p.detach() for p in model.parameters()] for model, _ in found.values()])
    assert all(torch.equal(p, q) for other in agree for a, b in zip(agree[0], other) for p, q in zip(a, b))
    assert all(h == rows(found["robust"][1]) for h in gather(rows(found["robust"][1])))
    return found

def test_two_processes_do_what_one_does():
    alone, together = everything(), launch(everything, 2)
    for k, (model, history) in together.items():
        assert difference(model, alone[k][0]) < 1e-5, k
        assert len(history) == len(alone[k][1]) and list(history[0]) == list(alone[k][1][0])
        for a, b in zip(rows(history), rows(alone[k][1])): assert a == pytest.approx(b, abs=1e-4), k
    assert len(together["monitor"][1]) < 60

def fifty():
    "In a group or alone: the paper's net after 50 steps, and a dense one; in float32, where the sign of a tiny gradient depends on rounding, and in float64"
    data, found = load("mnist5k", device="cpu").train[:1000], {}
    noise = torch.rand(data.x.shape, generator=torch.Generator().manual_seed(0))     # on an even background pooling has ties, which rounding decides
    data = Split(0.98 * data.x + 0.02 * noise, data.y)
    cases = [(MNISTNet, o, torch.float64) for o in (Standard(), Robust(Linf(0.055)), Robust(L2(0.55)))] + [(MNISTNet, Standard(), torch.float32), (net, Robust(Linf(0.055)), torch.float32)]
    for make, objective, dtype in cases:
        torch.manual_seed(0)
        model = make().to(dtype)
        fit(model, Split(data.x.to(dtype), data.y), objective, epochs=5, device="cpu", progress=False)
        found[f"{make.__name__}, {objective}, {dtype}"] = model
    return found

@pytest.mark.slow
def test_after_fifty_steps():
    alone, together = fifty(), launch(fifty, 2)
    torch.manual_seed(0)
    assert difference(alone["MNISTNet, Standard(), torch.float32"], MNISTNet()) > 0.01
    for k, model in together.items(): assert difference(model, alone[k]) < (1e-12 if "float64" in k else 1e-5), (k, difference(model, alone[k]))

def interrupted(folder):
    "Stopped after one epoch of three and resumed; random starts, an objective with state, and who writes"
    writes, save = [], training.save_checkpoint
    training.save_checkpoint = lambda *args, **kw: (writes.append(1), save(*args, **kw))[1]
    join_group()
    found = []
    for k, make in enumerate((lambda: Robust(Linf(0.1), random_start=True), lambda: Free(Linf(0.1), replays=2))):
        whole, expected = train(make())
        train(make(), epochs=1, checkpoint=f"{folder}/{k}")
        model, history = train(make(), model=net(1), checkpoint=f"{folder}/{k}", resume=True)
        found.append((same(model, whole), rows(history) == rows(expected)))
    return gather((found, len(writes)))

def test_runs_are_resumed_and_one_process_writes(tmp_path):
    first, second = launch(interrupted, 2, str(tmp_path))
    assert first[0] == second[0] == [(True, True), (True, True)]
    assert first[1] == 2 * 4 and second[1] == 0                          # at the start and after each of three epochs, twice
    with pytest.raises(ValueError, match="belongs to another run: processes was 2, now None"): train(Robust(Linf(0.1), random_start=True), checkpoint=tmp_path/"0", resume=True)

class Bad(Standard):
    "Not a number for the rank that has sample 7"
    def __call__(self, model, x, y, index): return super().__call__(model, x, y) + torch.where((index == 7).any(), torch.nan, 0.)

def sampled():
    "What a DistributedSampler gives each process"
    join_group()
    data = digits(100).train
    loader = lambda **kw: DataLoader(TensorDataset(data.x, data.y), batch_size=10, **kw)
    sampler = DistributedSampler(range(100), shuffle=False)
    model, _ = train(data=loader(sampler=sampler))
    try: train(data=loader())
    except ValueError as e: return model, str(e)

def test_loaders_give_each_process_its_own():
    model, refused = launch(sampled, 2)
    assert difference(model, train(data=digits(100).train, shuffle=False)[0]) < 1e-5          # 2 × 10 samples a step are one batch of 20
    assert refused == "data must give each process its own samples: a DataLoader needs a DistributedSampler of rank 0 of 2, made in this process, got none"
    data = digits(100).train
    with pytest.raises(TypeError, match="data must be a Data or a Split with processes="): train(data=DataLoader(TensorDataset(data.x, data.y)), processes=2)

def test_errors_come_back_as_they_are(tmp_path):
    model = net()
    with pytest.raises(ValueError, match="lr must be finite and positive, got -1"): train(model=model, lr=-1, processes=2)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step .*nonfinite.pt") as e: train(Bad(), processes=2, checkpoint=tmp_path)
    x, y, index = e.value.batch
    assert (index == 7).any() and torch.equal(x, digits().train.x[index]) and len(set(index.tolist())) == 20
    assert (tmp_path/"nonfinite.pt").is_file()
    with pytest.raises(TypeError, match="objective must be called as"): train(Robust, processes=2)
    assert same(model, net())

def test_what_came_out_is_brought_back():
    objective, monitor, model = Free(Linf(0.1), replays=2), Monitor(digits().test, Linf(0.1)), net()
    _, history = train(objective, model=model, monitor=monitor, processes=2)
    assert len(history) == 3 and not same(model, net()) and monitor.best == max(history.column("held_projected")) and objective.delta is not None
    assert processes() == (0, 1) and "RANK" not in os.environ

SCRIPT = """
import sys, torch
from robust_nb.data import load
from robust_nb.distributed import processes
from robust_nb.models import MLP
from robust_nb.objectives import Robust
from robust_nb.training import fit
from robust_nb.uncertainty import Linf
for seed in (0, 1):                        # two runs in one script share a group
    torch.manual_seed(seed)
    net = MLP(784, 30, 10)
    history = fit(net, load("mnist5k", device="cpu").train[:101], Robust(Linf(0.1)), epochs=3, batch_size=20, lr=0.05, device="cpu", progress=False)
    if processes()[0] == 0: torch.save(net.state_dict(), f"{sys.argv[1]}/net-{seed}.pt")
open(f"{sys.argv[1]}/rank-{processes()[0]}.txt", "w").write("of {1}".format(*processes()))
"""

def test_torchrun(tmp_path):
    (tmp_path/"train.py").write_text(SCRIPT)
    said = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path/"train.py", tmp_path], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert said.returncode == 0, said.stderr
    assert [(tmp_path/f"rank-{k}.txt").read_text() for k in (0, 1)] == ["of 2"] * 2    # files: lines of two processes may mix
    for seed in (0, 1):
        model = net(seed)
        model.load_state_dict(torch.load(tmp_path/f"net-{seed}.pt", weights_only=True))
        assert difference(model, train(model=net(seed), data=digits().train)[0]) < 1e-5
