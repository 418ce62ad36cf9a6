"The training loop where a page would be the wrong place: interruptions at every point, foreign files, hidden waiting for the device, odd models."
import copy, os, platform, subprocess, sys, threading, warnings
from dataclasses import replace
from types import SimpleNamespace
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils._python_dispatch import TorchDispatchMode
from robust_nb import training, variants
from robust_nb.checkpoint import load_checkpoint, save_checkpoint
from robust_nb.data import CropFlip, Data, Split, load
from robust_nb.evaluation import accuracy, robust_accuracy
from robust_nb.models import MNISTNet
from robust_nb.objectives import AdversarialMix, Robust, Standard, Surrogate
from robust_nb.perturbation import log_odds
from robust_nb.relatives.goodfellow import Pool
from robust_nb.relatives.music import FedBack
from robust_nb.relatives.tangents import Autoencoder, Reconstruction
from robust_nb.sets import Masked, Subspace
from robust_nb.training import History, OneCycle, fit, memory_kept
from robust_nb.uncertainty import L1, L2, Linf
from robust_nb.variants import Free, Monitor

CLASSES = 4

def some(n=37, seed=0, shape=(1, 8, 8)):
    "Images whose label can be learned: a bright quarter"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=g)
    x = torch.rand(n, *shape, generator=g) * 0.5
    h, w = shape[-2] // 2, shape[-1] // 2
    for i, k in enumerate(y.tolist()): x[i, :, h * (k // 2):h * (k // 2 + 1), w * (k % 2):w * (k % 2 + 1)] += 0.4
    return Split(x, y)

def conv(seed=0, dropout=0.3, norm=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, CLASSES))

def train(objective=None, epochs=3, data=None, model=None, **kw):
    model = model or conv()
    history = fit(model, some() if data is None else data, objective or Standard(), epochs=epochs, device="cpu", **dict(batch_size=8, lr=0.05, progress=False) | kw)
    return model, history

def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def rows(history): return [{k: str(v) for k, v in row.items() if k != "seconds"} for row in history]   # NaN is not NaN, but its text is

# The global state is left alone, and a seed says everything

def test_seeds_repeat_bit_for_bit():
    objective = Robust(L2(0.5), random_start=True, steps=2)
    (a, ha), (b, hb), (c, _) = (train(objective, seed=s) for s in (3, 3, 4))
    assert same(a, b) and rows(ha) == rows(hb)
    assert not same(a, c)

@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_and_modes_are_left_alone(fails):
    class Random(nn.Linear):       # draws even in eval mode, so that the look before the loop counts too
        def forward(self, x): return super().forward(x.flatten(1) + torch.rand(64))
    model = nn.Sequential(Random(64, CLASSES), nn.Dropout(), nn.BatchNorm1d(CLASSES)).eval()
    model[1].train()
    def objective(model, x, y, index):
        assert model.training and all(m.training for m in model.modules())
        if fails: raise RuntimeError("stop")
        return F.cross_entropy(model(x), y)
    before, other = torch.get_rng_state(), np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(RuntimeError, match="stop"): train(objective, model=model)
    else: train(objective, model=model)
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == other).all()
    assert [m.training for m in model.modules()] == [False, False, True, False]

def test_order_comes_from_the_seed_alone():
    def orders(seed, draw):
        seen = []
        def objective(model, x, y, index):
            if draw: torch.rand(5)
            seen.append(index.clone())
            return F.cross_entropy(model(x), y)
        train(objective, epochs=2, seed=seed)
        return torch.cat(seen)
    a = orders(0, False)
    assert torch.equal(a, orders(0, True)) and not torch.equal(a, orders(1, False))
    assert all(torch.equal(e.sort().values, torch.arange(37)) for e in a.split(37)) and not torch.equal(*a.split(37))

def test_authors_order_and_rate():
    seen = []
    class Spy(Standard):
        def __call__(self, model, x, y, index): seen.append(index); return super().__call__(model, x, y)
    train(Spy(), epochs=2, shuffle=False)
    assert torch.equal(torch.cat(seen), torch.arange(37).repeat(2))

def test_torch7_recipe():
    "Weights after three steps on one batch, against the recurrence written out: v₀ = g₀, then v ← 0.9 v + 0.1 g"
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double(), some()
    data = Split(data.x.double(), data.y)
    w, v = [p.detach().clone().requires_grad_() for p in model.parameters()], None
    for t in range(3):
        grads = torch.autograd.grad(F.cross_entropy(F.linear(data.x.flatten(1), *w), data.y), w)
        g = [a + 1e-3 * p.detach() for a, p in zip(grads, w)]
        v = g if t == 0 else [0.9 * a + 0.1 * b for a, b in zip(v, g)]
        w = [(p.detach() - 0.5 / (1 + 0.1 * t) * a).requires_grad_() for p, a in zip(w, v)]
    fit(model, data, Standard(), epochs=3, batch_size=37, lr=0.5, lr_decay=0.1, dampening=0.9, device="cpu", progress=False)
    for p, q in zip(model.parameters(), w): torch.testing.assert_close(p, q)

def test_schedule(tmp_path):
    "Three steps by hand, and a run that was stopped; with other epochs it is another run"
    torch.manual_seed(0)
    model, data, asked = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double(), some(), []
    data = Split(data.x.double(), data.y)
    w = [p.detach().clone().requires_grad_() for p in model.parameters()]
    for factor in (0.25, 0.5, 0.75):
        grads = torch.autograd.grad(F.cross_entropy(F.linear(data.x.flatten(1), *w), data.y), w)
        w = [(p.detach() - 0.5 * factor * a).requires_grad_() for p, a in zip(w, grads)]
    plain = dict(batch_size=37, lr=0.5, lr_decay=0., momentum=0., weight_decay=0., device="cpu", progress=False)
    fit(model, data, Standard(), epochs=3, schedule=lambda t: asked.append(t) or 0.25 + 0.75 * t, **plain)
    assert asked[-3:] == [0, 1 / 3, 2 / 3]
    for p, q in zip(model.parameters(), w): torch.testing.assert_close(p, q)
    whole, _ = train(Standard(), schedule=OneCycle())
    with pytest.raises(KeyboardInterrupt): train(Cut(Standard(), at=8), schedule=OneCycle(), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run: epochs was"): train(Standard(), epochs=9, schedule=OneCycle(), checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match="belongs to another run: schedule was"): train(Standard(), schedule=OneCycle(0.5), checkpoint=tmp_path, resume=True)
    assert same(train(Cut(Standard()), schedule=OneCycle(), checkpoint=tmp_path, resume=True)[0], whole)

# Stopped and gone on

class Cut:
    "Stops at one call; what it computes is another objective's"
    def __init__(self, inner, at=None): self.inner, self.at, self.calls = inner, at, 0
    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.at: raise KeyboardInterrupt
        return self.inner(*args)
    def __repr__(self): return repr(self.inner)

@pytest.mark.parametrize("objective", [Standard(), Robust(Linf(0.1), random_start=True, steps=2, mode="train"), AdversarialMix(L1(torch.linspace(0, 2, 37)), 0.3)], ids=str)
def test_interrupted_run_ends_as_the_uninterrupted_one(tmp_path, objective):
    whole, history = train(Cut(objective))
    for at in (1, 4, 6, 11, 15):                    # five steps an epoch: in the first, at the seam, in the last step
        folder = tmp_path/str(at)
        with pytest.raises(KeyboardInterrupt): train(Cut(objective, at), checkpoint=folder)
        assert {f.name for f in folder.iterdir()} == ({"last.pt"} if at < 6 else {"last.pt", "previous.pt"})
        model, resumed = train(Cut(objective), model=conv(seed=5), checkpoint=folder, resume=True)
        assert same(model, whole) and rows(resumed) == rows(history)

def test_more_epochs_and_a_finished_run(tmp_path):
    whole, history = train(epochs=4)
    train(epochs=2, checkpoint=tmp_path)
    model, resumed = train(epochs=4, checkpoint=str(tmp_path), resume=True)
    assert same(model, whole) and rows(resumed) == rows(history)
    model, again = train(Cut(Standard(), at=1), epochs=4, model=conv(1), checkpoint=tmp_path, resume=True)     # not one step
    assert same(model, whole) and list(again) == list(resumed)

class Noted(Cut):
    "One that says nothing of what it wraps"
    def __repr__(self): return "Noted()"

class Grows(Robust):
    "A radius that follows from the epoch alone"
    def on_epoch(self, epoch): self.U = self.U.with_radius(0.05 * epoch)

class Counts(Standard):
    "State of its own, which is not a function of the epoch"
    weight = 1.
    def on_epoch(self, epoch): self.weight *= 0.7
    def state_dict(self): return dict(weight=self.weight)
    def load_state_dict(self, state): self.weight = state["weight"]
    def __call__(self, *args): return self.weight * super().__call__(*args)

@pytest.mark.parametrize("make", [lambda: Grows(Linf(0.)), Counts])
def test_objectives_that_change_are_resumed(tmp_path, make):
    whole, history = train(make(), epochs=4)
    first = make()
    train(first, epochs=2, checkpoint=tmp_path)
    for objective in (make(), first):
        model, resumed = train(objective, epochs=4, checkpoint=tmp_path, resume=True)
        assert same(model, whole) and rows(resumed) == rows(history)
        for f in tmp_path.iterdir(): f.unlink()
        train(make(), epochs=2, checkpoint=tmp_path)

def test_on_epoch_is_called_once_before_each_epoch():
    calls = []
    class Hook(Standard):
        def on_epoch(self, epoch): calls.append(("epoch", epoch))
        def prepare(self, x, y): calls.append(("prepare", len(x)))
        def __call__(self, *args): calls.append("step"); return super().__call__(*args)
    train(Hook(), epochs=2, batch_size=20)
    assert calls == [("prepare", 37), ("epoch", 0), "step", "step", ("epoch", 1), "step", "step"]

def test_settings_may_be_numpy_numbers(tmp_path):
    kw = dict(epochs=np.int64(1), batch_size=np.int32(8), lr=np.float64(0.05), momentum=np.float32(0.5), seed=np.int64(2), checkpoint=tmp_path)
    train(**kw)
    train(**kw | dict(epochs=2), resume=True)

def ce(z, y): return F.cross_entropy(z, y, reduction="none")
def scaled(c): return lambda z, y: c * ce(z, y)
def toy(seed): return Data("toy", some(), some(seed=seed), [str(k) for k in range(CLASSES)])

# first run, second run, what the error says
DIFFERENT = dict(
    radii=(dict(objective=Robust(Linf(torch.linspace(0, 0.1, 37)))), dict(objective=Robust(Linf(torch.linspace(0, 0.2, 37)))), "digest of the objective was"),
    code=(dict(objective=Robust(Linf(0.1), loss=lambda z, y: ce(z, y))), dict(objective=Robust(Linf(0.1), loss=lambda z, y: 2 * ce(z, y))), "digest of the objective was"),
    closure=(dict(objective=Robust(Linf(0.1), loss=scaled(1))), dict(objective=Robust(Linf(0.1), loss=scaled(2))), "digest of the objective was"),
    function=(dict(objective=lambda m, x, y, i: F.cross_entropy(m(x), y)), dict(objective=lambda m, x, y, i: F.cross_entropy(m(x), y, label_smoothing=0.1)), "digest of the objective was"),
    wrapped=(dict(objective=Noted(Robust(L2(torch.linspace(0, 1, 37))))), dict(objective=Noted(Robust(L2(torch.linspace(0, 2, 37))))), "digest of the objective was"),
    dropout=(dict(model=conv(dropout=0.1)), dict(model=conv(dropout=0.2)), r"module '3' was 'Dropout\(p=0.1, inplace=False\)', now 'Dropout\(p=0.2"),
    activation=(dict(model=nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, CLASSES))), dict(model=nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(64, CLASSES))), "module '1' was 'ReLU"),
    test=(dict(data=toy(1)), dict(data=toy(2)), "test_data was"), no_test=(dict(data=toy(1)), dict(), "test_data was .*, now None"))

@pytest.mark.parametrize("one, other, says", DIFFERENT.values(), ids=DIFFERENT)
def test_what_repr_does_not_show_tells_runs_apart(tmp_path, one, other, says):
    train(epochs=1, checkpoint=tmp_path, **copy.deepcopy(one))
    train(epochs=2, checkpoint=tmp_path, resume=True, **copy.deepcopy(one))
    raw = (tmp_path/"last.pt").read_bytes()
    with pytest.raises(ValueError, match=says): train(epochs=3, checkpoint=tmp_path, resume=True, **copy.deepcopy(other))
    assert (tmp_path/"last.pt").read_bytes() == raw

def test_the_digest_of_an_objective_is_the_same_in_each_process():
    code = "import torch\nimport torch.nn.functional as F\nfrom robust_nb.objectives import Robust\nfrom robust_nb.training import _unsaid\nfrom robust_nb.uncertainty import Linf\n" \
           "print(_unsaid(Robust(Linf(torch.ones(3)), loss=lambda z, y: F.cross_entropy(z, y, reduction='sum') if str(y.dtype) in {'a', 'b', 'c'} else (lambda: 2)())))"
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ, PYTHONHASHSEED=str(k))).stdout for k in range(3)}
    assert len(said) == 1 and len(said.pop()) > 200

def test_a_state_that_is_there_is_not_replaced(tmp_path):
    train(epochs=1, checkpoint=tmp_path)
    raw, model, objective = (tmp_path/"last.pt").read_bytes(), conv(1), Cut(Standard())
    with pytest.raises(FileExistsError, match="last.pt holds a state: say resume=True to go on, or name another folder"): train(objective, model=model, checkpoint=tmp_path)
    assert (tmp_path/"last.pt").read_bytes() == raw and same(model, conv(1)) and objective.calls == 0

def momentum(state): return next(iter(state["optimiser"]["state"].values()))
def set_momentum(value): return lambda s: momentum(s).update(momentum_buffer=value)

def edited(folder, change):
    "A run of two epochs whose last checkpoint is whole, and has wrong entries"
    train(Counts(), epochs=2, checkpoint=folder)
    state = torch.load(folder/"last.pt", weights_only=True)
    state.pop("format"); change(state)
    save_checkpoint(folder/"last.pt", **state)

WRONG = dict(
    optimiser=lambda s: s.update(optimiser={}), optimiser_kind=lambda s: s.update(optimiser=[1]), groups=lambda s: s["optimiser"].update(param_groups=[]), momentum=set_momentum(torch.zeros(2)),
    momentum_kind=set_momentum("a"), random_length=lambda s: s.update(random=s["random"][:1]), random_more=lambda s: s.update(random=s["random"] * 2), random_size=lambda s: s.update(random=[r[:10] for r in s["random"]]),
    random_kind=lambda s: s.update(random=[1, 2]), random_type=lambda s: s.update(random=[r.float() for r in s["random"]]), history=lambda s: s.update(history=5), history_rows=lambda s: s.update(history=[1, 2]),
    history_values=lambda s: s["history"][0].update(loss="low"), history_length=lambda s: s.update(history=s["history"][:1]), epoch=lambda s: s.update(epoch="2"), step=lambda s: s.update(step=None), about=lambda s: s.update(about=3),
    model=lambda s: s.update(model=None), model_entry=lambda s: s["model"].update({"0.weight": 5}), objective=lambda s: s.update(objective={}), objective_kind=lambda s: s.update(objective=7), missing=lambda s: s.pop("random"))

@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_well_formed_file_with_wrong_entries_changes_nothing(tmp_path, change):
    edited(tmp_path, change)
    (tmp_path/"previous.pt").unlink()
    model, objective, before = conv(1), Counts(), torch.get_rng_state()
    with pytest.raises(ValueError, match="last.pt"): train(objective, epochs=3, model=model, checkpoint=tmp_path, resume=True)
    assert same(model, conv(1)) and objective.weight == Counts.weight * 0.7 and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())

FOREIGN = dict(
    lr=(dict(lr=0.1), "lr was 0.05, now 0.1"), seed=(dict(seed=1), "seed was 0, now 1"), batch=(dict(batch_size=9), "batch_size was 8"), shuffle=(dict(shuffle=False), "shuffle was True"),
    precision=(dict(precision="bfloat16"), "bfloat16 was False"), objective=(dict(objective=Robust(Linf(0.1))), r"objective was 'Standard\(\)', now 'Robust\(Linf\(0.1\)\)'"),
    data=(dict(data=some(seed=1)), "data was"), epochs=(dict(epochs=1), "epochs is 1, but .* holds 2"))

@pytest.mark.parametrize("kw, says", FOREIGN.values(), ids=FOREIGN)
def test_checkpoint_of_another_run_is_refused(tmp_path, kw, says):
    train(epochs=2, checkpoint=tmp_path)
    raw, model = (tmp_path/"last.pt").read_bytes(), conv(1)
    with pytest.raises(ValueError, match=says): train(**dict(epochs=3, model=model, checkpoint=tmp_path, resume=True) | kw)
    assert same(model, conv(1)) and (tmp_path/"last.pt").read_bytes() == raw

@pytest.mark.parametrize("model", [lambda: conv(norm=False), lambda: conv().double(), lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)),
                                   lambda: nn.Sequential(*conv()[:6], nn.Linear(64, 5))], ids=["keys", "dtype", "architecture", "shape"])
def test_checkpoint_of_another_model_is_refused(tmp_path, model):
    train(epochs=1, checkpoint=tmp_path)
    model = model()
    before, data = copy.deepcopy(model), some()
    if next(model.parameters()).dtype == torch.float64: data = Split(data.x.double(), data.y)
    with pytest.raises(ValueError, match="belongs to another"): train(model=model, data=data, checkpoint=tmp_path, resume=True)
    assert same(model, before)

@pytest.mark.parametrize("damage", ["cut", "text", "empty", "foreign", "pickle"])
def test_damaged_or_foreign_file_is_refused(tmp_path, damage):
    train(epochs=1, checkpoint=tmp_path)
    f = tmp_path/"last.pt"
    if damage == "cut": f.write_bytes(f.read_bytes()[:1000])
    if damage == "text": f.write_text("not a checkpoint")
    if damage == "empty": f.write_bytes(b"")
    if damage == "foreign": save_checkpoint(f, weights=torch.zeros(3))
    if damage == "pickle": torch.save(SimpleNamespace(a=1), f)
    raw, model = f.read_bytes(), conv(1)
    (tmp_path/"previous.pt").rename(tmp_path/"aside")
    with pytest.raises(ValueError, match="last.pt"): train(model=model, checkpoint=tmp_path, resume=True)
    assert same(model, conv(1)) and f.read_bytes() == raw
    (tmp_path/"aside").rename(tmp_path/"previous.pt")                       # now the last good one is used
    with pytest.warns(UserWarning, match="last.pt is .*damaged.*Going on from .*previous.pt, after epoch 0"): model, history = train(model=conv(2), checkpoint=tmp_path, resume=True)
    whole, expected = train()
    assert same(model, whole) and rows(history) == rows(expected) and (tmp_path/"damaged.pt").read_bytes() == raw

OTHER = {k: v for k, v in WRONG.items() if k != "model_entry"}     # that is another model, and an error

@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_the_last_good_state_is_used_where_the_newest_is_wrong(tmp_path, change):
    edited(tmp_path, change)
    with pytest.warns(UserWarning, match="Going on from .*previous.pt, after epoch 1"): model, history = train(Counts(), model=conv(1), checkpoint=tmp_path, resume=True)
    whole, expected = train(Counts())
    assert same(model, whole) and rows(history) == rows(expected)

def test_a_state_that_was_being_replaced(tmp_path):
    "Killed between the two renames: only the older file is there"
    whole, expected = train()
    train(epochs=2, checkpoint=tmp_path)
    (tmp_path/"last.pt").unlink()
    with pytest.raises(FileExistsError, match="previous.pt holds a state"): train(checkpoint=tmp_path)
    model, history = train(model=conv(1), checkpoint=tmp_path, resume=True)
    assert same(model, whole) and rows(history) == rows(expected)

def test_folder_that_cannot_be_written_is_noticed_before_training(tmp_path):
    (tmp_path/"file").write_text("")
    model, objective = conv(), Cut(Standard())
    with pytest.raises(OSError): train(objective, model=model, checkpoint=tmp_path/"file")
    assert same(model, conv()) and objective.calls == 0 and (tmp_path/"file").read_text() == ""

def test_a_loss_of_nan_keeps_the_last_good_state(tmp_path):
    class Explodes(Standard):
        calls = 0
        def __call__(self, *args): self.calls += 1; return super().__call__(*args) * (float("nan") if self.calls == 8 else 1.)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 8 of the run: .*nonfinite.pt holds the batch and the weights, .*last.pt holds the state before"): train(Explodes(), checkpoint=tmp_path)
    state = torch.load(tmp_path/"last.pt", weights_only=True)
    assert state["epoch"] == 1 and all(v.isfinite().all() for v in state["model"].values())

def test_weights_that_explode_in_the_last_step_are_noticed():
    class Late(Standard):
        calls = 0
        def __call__(self, model, x, y, index):
            self.calls += 1
            loss = super().__call__(model, x, y)
            return loss if self.calls < 5 else loss + (model[0].weight.sum() * 0).sqrt() * 0     # finite, its gradient is not
    with pytest.raises(FloatingPointError, match="a weight is not finite after epoch 1"): train(Late(), epochs=1)

# Speed

class NoWaiting(TorchDispatchMode):
    "Refuses what reads a value from the device"
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if f.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero, torch.ops.aten.equal, torch.ops.aten.masked_select, torch.ops.aten._unique2):
            raise AssertionError(f"{f} waits for the device")
        return f(*args, **(kwargs or {}))

SETS = [S(r) for S in (Linf, L2, L1) for r in (0.1, torch.linspace(0, 1, 37))]
OBJECTIVES = [Standard(), Free(Linf(0.1), replays=1), Free(L2(0.5), replays=1, box=None), Robust(Linf(0.1), warm_up=1, random_start=True, keep="last"), *(Robust(U, **kw) for U in SETS for kw in ({}, dict(steps=3), dict(box=None), dict(random_start=True, restarts=2, steps=2, step_size=0.05))), AdversarialMix(Linf(0.1)), AdversarialMix(L2(0.1), 0), Surrogate(Linf(0.1))]

@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_a_step_waits_for_nothing(monkeypatch, half):
    step, steps = training._step, []
    def watched(*args):
        steps.append(1)
        with NoWaiting(): return step(*args)
    monkeypatch.setattr(training, "_step", watched)
    for objective in OBJECTIVES: train(objective, epochs=1, batch_size=20, precision="bfloat16" if half else "float32")
    assert len(steps) == 2 * len(OBJECTIVES)

def test_watching_works(monkeypatch):
    step = training._step
    def watched(*args):
        with NoWaiting(): return step(*args)
    monkeypatch.setattr(training, "_step", watched)
    for read in (lambda l: l.item(), lambda l: bool(l > 0), lambda l: l[None].nonzero()):
        def objective(model, x, y, index): loss = F.cross_entropy(model(x), y); read(loss); return loss
        with pytest.raises(AssertionError, match="waits for the device"): train(objective)

def test_an_epoch_reads_values_equally_often_whatever_its_steps():
    class Reads(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.n += f.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
            return f(*args, **(kwargs or {}))
    def reads(batch_size):
        with Reads() as r: train(Robust(Linf(0.1)), batch_size=batch_size)
        return r.n
    assert reads(4) == reads(37) > 0

@pytest.mark.slow
def test_bfloat16_trains():
    digits, found = load("mnist5k", device="cpu"), {}
    data = replace(digits, train=digits.train[:1000], test=digits.test[:500])         # bfloat16 is slow where the processor lacks it
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        net = MNISTNet()
        found[precision] = fit(net, data, Robust(Linf(0.05)), epochs=4, lr=0.05, batch_size=50, precision=precision, device="cpu", progress=False)[-1]["test_accuracy"]
        assert all(p.dtype == torch.float32 for p in net.parameters())
    assert min(found.values()) > 0.8 and abs(found["float32"] - found["bfloat16"]) < 0.08

# Memory that is kept

def test_memory_that_is_kept_costs_no_page_faults():
    "A fresh process takes and frees 64 MB again and again: page faults before, inside and after a block"
    if platform.libc_ver()[0] != "glibc": pytest.skip("the allocator is not glibc's")
    script = """
import resource, torch
from robust_nb.training import memory_kept
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds): a = [torch.ones(2_000_000) for _ in range(8)]; del a
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults(10)
with memory_kept(): faults(1); inside = faults(10)
print(before, inside, faults(10))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, inside, after = map(int, said.split())
    assert inside < before / 10 and after < 1.5 * before

def test_blocks_nest_across_threads(monkeypatch):
    told = []
    monkeypatch.setattr(training, "_thresholds", told.append)
    inside, leave = threading.Event(), threading.Event()
    def other():
        with memory_kept(1 << 20): inside.set(); leave.wait(10)
    t = threading.Thread(target=other)
    with memory_kept(1 << 25):
        t.start(); inside.wait(10)
        with pytest.raises(KeyError):
            with memory_kept(1 << 30): raise KeyError
    leave.set(); t.join()
    assert told == [1 << 25, 1 << 25, 1 << 30, 1 << 25, 1 << 20, None] and training._open == []

def test_limits():
    for limit in (0, -1, 1 << 31, 1.5, True, None):
        with pytest.raises(ValueError, match="limit must be"): memory_kept(limit).__enter__()
    assert training._open == []

def test_fit_opens_a_block_and_closes_it(monkeypatch):
    told = []
    monkeypatch.setattr(training, "_thresholds", told.append)
    train(epochs=1)
    with pytest.raises(KeyboardInterrupt): train(Cut(Standard(), 1))
    assert told == [1 << 30, None] * 2

def test_without_glibc_nothing_happens(monkeypatch):
    def none(name): raise OSError
    monkeypatch.setattr(training.ctypes, "CDLL", none)
    with memory_kept(): pass
    monkeypatch.setattr(training.ctypes, "CDLL", lambda name: object())
    with memory_kept(): pass

def test_a_users_own_thresholds_stay(monkeypatch):
    def never(name): raise AssertionError
    monkeypatch.setattr(training.ctypes, "CDLL", never)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    with memory_kept(): pass

# What is measured, and how it is shown

def test_means_are_weighted_by_batch_size():
    "With a rate that is almost 0 the epoch's means are those of the whole split"
    data, model = some(), conv(dropout=0., norm=False)
    with torch.no_grad(): z = model(data.x)
    _, history = train(epochs=1, data=data, model=model, batch_size=30, lr=1e-30, momentum=0.)
    assert history[0]["loss"] == pytest.approx(F.cross_entropy(z, data.y).item(), rel=1e-5)
    assert history[0]["accuracy"] == pytest.approx((z.argmax(1) == data.y).double().mean().item())

def test_history_of_a_split_of_data_and_of_a_bare_function():
    def objective(model, x, y, index): return F.cross_entropy(model(x), y)
    _, history = train(objective, epochs=2)
    assert list(history[0]) == ["epoch", "loss", "accuracy", "seconds"] and np.isnan(history.column("accuracy")).all()
    data = Data("toy", some(), some(seed=1), [str(k) for k in range(CLASSES)])
    class Says(Standard):
        def __call__(self, *args): loss = super().__call__(*args); loss.logs["twice"] = 2 * loss.detach(); return loss
    model, history = train(Says(), epochs=15, data=data)
    assert list(history[0]) == ["epoch", "loss", "accuracy", "twice", "seconds", "test_accuracy"]
    assert history[-1]["test_accuracy"] > 0.7 and history[-1]["twice"] == pytest.approx(2 * history[-1]["loss"])
    assert history.plot() is not None and train(objective, epochs=1)[1].plot() is not None
    assert repr(History()) == "History(no epochs)" and "test_accuracy" in repr(history)

def test_progress_in_a_terminal(capsys):
    data = Data("toy", some(), some(seed=1), [str(k) for k in range(CLASSES)])
    train(data=data, epochs=2, progress=True)
    said = capsys.readouterr()
    assert said.out == "" and "Standard()" in said.err and "10/10" in said.err
    assert all(f"{k}=" in said.err for k in ("loss", "accuracy", "test_accuracy"))
    train(data=data)
    assert capsys.readouterr() == ("", "")

def test_progress_in_a_notebook(tmp_path):
    code = "import torch\nfrom robust_nb.data import Split\nfrom robust_nb.objectives import Standard\nfrom robust_nb.training import fit\n" \
           "h = fit(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), Split(torch.rand(8, 1, 2, 2), torch.arange(8) % 2), Standard(), epochs=2, batch_size=4, device='cpu')"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(nb, timeout=100, kernel_name="python3", extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = nb.cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs)
    assert not any(o.output_type == "stream" for o in outputs), outputs

def test_import_is_light():
    said = subprocess.run([sys.executable, "-c", "import sys, robust_nb.training; print([m for m in ('matplotlib', 'ipywidgets', 'torchvision', 'mlxtend', 'pandas') if m in sys.modules])"], capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said

# Models

@pytest.mark.parametrize("objective", [Standard(), Robust(Linf(0.1)), Robust(L2(0.1), steps=3, restarts=2, mode="train"), AdversarialMix(Linf(0.1))], ids=str)
def test_running_statistics_move_once_per_step(objective):
    model, _ = train(objective, epochs=2)
    assert model[1].num_batches_tracked == 10

def test_frozen_layers_stay():
    model = conv()
    model[0].requires_grad_(False); model[1].eval()
    before = copy.deepcopy(model)
    train(Robust(Linf(0.1)), model=model)
    assert same(model[0], before[0]) and torch.equal(model[1].running_mean, before[1].running_mean) and not model[1].training
    assert not same(model[6], before[6])

def test_a_model_that_calls_view():
    class Views(nn.Sequential):
        def forward(self, x): x = self[0](x).relu(); return self[1](x.view(len(x), -1))
    torch.manual_seed(0)
    model, history = train(Robust(Linf(0.05)), model=Views(nn.Conv2d(1, 6, 3), nn.Linear(216, CLASSES)), epochs=15)
    assert history[-1]["accuracy"] > 0.7

def test_a_model_with_2d_and_3d_convolutions():
    class Both(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv3d(1, 2, 3), nn.Linear(2 * 2 * 4 * 4, CLASSES)
        def forward(self, x): return self.c(self.b(self.a(x)[:, None]).flatten(1))
    _, history = train(model=Both())
    assert history[-1]["loss"] < history[0]["loss"]

def test_double_precision_and_int32_labels():
    d = some()
    a, _ = train(Robust(L2(0.3)), model=conv(dropout=0.).double(), data=Split(d.x.double(), d.y))
    b, _ = train(Robust(L2(0.3)), model=conv(dropout=0.).double(), data=Split(d.x.double(), d.y.int()))
    assert same(a, b) and next(a.parameters()).dtype == torch.float64

def test_gradients_of_the_caller_do_not_count():
    a, b = conv(), conv()
    for p in b.parameters(): p.grad = torch.full_like(p, 1e3)
    train(model=a); train(model=b)
    assert same(a, b) and all(p.grad is None for p in b.parameters())

def test_per_sample_radii_follow_their_samples():
    radius, seen = torch.linspace(0, 0.3, 37), []
    class Spy(Robust):
        def perturbed(self, model, x, y, index):
            z = super().perturbed(model, x, y, index)
            seen.append((index, Linf(0.).norm(z - x)))
            return z
    train(Spy(Linf(radius)), epochs=1)
    for index, size in seen: torch.testing.assert_close(size, radius[index])

# Bad arguments: the weights stay as they were

def odd_logs(logs):
    def objective(model, x, y, index):
        loss = sum(p.sum() for p in model.parameters())
        loss.logs = logs
        return loss
    return objective

@pytest.mark.parametrize("kw, error, says", [
    (dict(data=Data("toy", some(), some(shape=(1, 9, 9)), ["a"])), ValueError, "data.test.x must have the shape of data.train.x"),
    (dict(data=Data("toy", some(), Split(some().x, some().y + 1), ["a"])), ValueError, "y must lie in 0 … 3"),
    (dict(data=Data("toy", some(), Split(some().x * float("inf"), some().y), ["a"])), ValueError, "data.test.x must be finite"),
    (dict(data=Data("toy", some(), Split(some().x.double(), some().y), ["a"])), ValueError, r"data.test.x must have .* its type, got \(37, 1, 8, 8\) and torch.float64"),
    (dict(data=Split(some().x.double(), some().y)), ValueError, "model cannot take samples of shape .* and torch.float64"),
    (dict(device="meta"), ValueError, "device must be one that computes, got 'meta'"),
    (dict(seed=1 << 63), ValueError, "seed must be an integer below 2"),
    (dict(data=Split(some().x, some().y - 1)), ValueError, "y must lie in 0 … 3"),
    (dict(data=Split(some().x + 1, some().y), objective=AdversarialMix(Linf(0.1))), ValueError, "x must lie in box"),
    (dict(objective=Robust(Linf(torch.ones(36)))), ValueError, "radius has 36 values"),
    (dict(objective=Robust(Masked(Linf(0.1), torch.zeros(36, 1, 8, 8, dtype=torch.bool)))), ValueError, "fixed has 36 values, one per sample, but there are 37 training samples"),
    (dict(objective=Robust(Subspace(torch.eye(64)[:2].expand(38, 2, 64), 0.1, per_sample=True))), ValueError, "axes has 38 values"),
    (dict(objective=Robust(Linf(torch.ones(8))), data=DataLoader(TensorDataset(some().x, some().y), 8)), ValueError, "objective must have one radius for all samples, .* batches do not say which samples they hold"),
    (dict(objective=Robust(Masked(Linf(0.1), torch.zeros(8, 1, 8, 8, dtype=torch.bool))), data=DataLoader(TensorDataset(some().x, some().y), 8)), ValueError, "objective must have one fixed for all samples"),
    (dict(objective=Robust(Linf(0.1)), augment=lambda x: 4 * x - 2), ValueError, r"augment must leave samples in the box of the objective, \(0.0, 1.0\), but they range over \[-"),
    (dict(objective=Robust(Linf(0.1)), data=Split(255 * some().x, some().y), augment=lambda x: x), ValueError, "^x must lie in box"),
    (dict(objective=Robust(Linf(0.1), box=(torch.zeros(5), 1.)), augment=lambda x: x), ValueError, "^box must hold numbers or tensors that broadcast to x"),
    (dict(objective=Robust(Linf(torch.ones(0)))), ValueError, "radius has 0 values"),
    (dict(objective=lambda m, x, y: 0), TypeError, "positional argument"),
    (dict(objective=lambda m, x, y, i: 0.), TypeError, "objective must return a scalar tensor, got float"),
    (dict(objective=odd_logs(3)), TypeError, "logs must be a dict"),
    (dict(objective=odd_logs(dict(loss2=torch.ones(2)))), TypeError, "logs must be a dict"),
    (dict(objective="Standard"), TypeError, "objective must be called as"),
    (dict(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 1))), ValueError, "model must return logits"),
    (dict(model=nn.Module()), ValueError, "no parameter"),
    (dict(device="cuda:99"), ValueError, "device must be"),
    (dict(checkpoint=b"x"), TypeError, "checkpoint must be a path"),
])
def test_bad_arguments(kw, error, says):
    kw = dict(model=conv(), objective=Standard()) | kw
    model, before = kw["model"], copy.deepcopy(kw["model"])
    with pytest.raises(error, match=says): fit(**dict(data=some(), epochs=1, batch_size=8, device="cpu", progress=False) | kw)
    assert same(model, before) and all(p.grad is None for p in model.parameters())

def test_the_box_is_asked_for_only_where_there_is_one():
    other = Standard()
    other.box = torch.tensor([0, 0, 3, 3])       # another's word for something else
    for objective in (Standard(), other, Robust(Linf(0.1), box=None)): train(objective, epochs=1, augment=lambda x: 4 * x - 2)
    train(Robust(Linf(0.1)), epochs=1, augment=lambda x: x.clamp(0, 1) * (1 + 1e-7))

def test_no_gradient_is_left_after_an_error():
    model = conv()
    class Stops(Standard):
        calls = 0
        def __call__(self, *args):
            self.calls += 1
            if self.calls == 3: raise RuntimeError("stop")
            return super().__call__(*args)
    with pytest.raises(RuntimeError, match="stop"): train(Stops(), model=model)
    assert all(p.grad is None for p in model.parameters())

@pytest.mark.parametrize("n, batch_size", [(37, 36), (37, 12), (37, 1), (1, 8)])
def test_a_sample_alone_in_a_batch(n, batch_size):
    class Flat(nn.Sequential): pass
    def model(): torch.manual_seed(0); return Flat(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, CLASSES))
    m, objective = model(), Cut(Standard())
    with pytest.raises(ValueError, match=f"batch_size = {batch_size} leaves one of the {n} training samples alone.*choose another batch_size"):
        train(objective, model=m, data=some(n), batch_size=batch_size)
    assert same(m, model()) and objective.calls == 0
    frozen = model(); frozen[1].eval()
    for works in (frozen, conv()): train(model=works, data=some(n), batch_size=batch_size, epochs=1)    # one image is many values per channel

def test_the_look_at_the_last_batch_draws_nothing():
    "The same bits as from a loop that does not look: dropout, and one sample in the last batch"
    def dense(): torch.manual_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(), nn.Linear(20, CLASSES))
    data, a, b = some(37), dense(), dense()
    train(model=a, batch_size=12, epochs=1)
    opt, order = torch.optim.SGD(b.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True), torch.Generator().manual_seed(0)
    state = torch.get_rng_state(); torch.manual_seed(0)
    for t, (x, y, _) in enumerate(data.batches(12, generator=order)):
        opt.param_groups[0]["lr"] = 0.05 / (1 + 5e-6 * t)
        loss = F.cross_entropy(b(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
    torch.set_rng_state(state)
    assert same(a, b)

def test_inside_no_grad():
    with torch.no_grad(), pytest.raises(ValueError, match="inside torch.no_grad"): train()

def test_weights_keep_their_layout():
    "`fit` works in channels_last where that is faster, but the model comes back in the layout that it had: `view` works on its weights"
    net = MNISTNet()
    fit(net, Split(torch.rand(20, 1, 28, 28), torch.arange(20) % 10), Standard(), epochs=1, device="cpu", progress=False)
    assert all(p.is_contiguous() for p in net.parameters())
    torch.nn.utils.parameters_to_vector(net.parameters())

# A loss that is not finite

class Bad(Standard):
    "Not finite in some steps, counted from 1"
    def __init__(self, *at, value=float("nan")): self.at, self.value, self.calls = at, value, 0
    def __repr__(self): return f"Bad({self.at}, {self.value})"
    def __call__(self, *args):
        self.calls += 1
        return super().__call__(*args) * (self.value if self.calls in self.at else 1.)

class BadInside(nn.Module):
    "Passes x on, and NaN at some of its calls in train mode, before the layers that keep statistics"
    def __init__(self, *at): super().__init__(); self.at, self.calls = at, 0
    def forward(self, x):
        self.calls += self.training
        return x * float("nan") if self.training and self.calls in self.at else x

@pytest.mark.parametrize("U", [Linf(0.1), L2(0.5)], ids=str)
def test_statistics_survive_a_bad_step_and_robust_training_goes_on(U):
    moved = []
    class Spy(Robust):
        def perturbed(self, model, x, y, index=None): new = super().perturbed(model, x, y, index); moved.append((new - x).abs().max().item()); return new
    model, history = train(Spy(U, box=None), model=nn.Sequential(BadInside(3), conv(dropout=0.)), nonfinite="skip")
    assert history.column("skipped") == [1, 0, 0] and all(b.isfinite().all() for b in model.buffers()) and min(moved) > 0.05
    assert model[1][1].num_batches_tracked == 14

def test_statistics_of_a_run_that_stops_are_those_before_the_bad_step(tmp_path):
    model = nn.Sequential(BadInside(7), conv(dropout=0.))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 7"): train(model=model, checkpoint=tmp_path)
    good = by_hand((), steps=6, model=conv(dropout=0.))
    for k, v in good.state_dict().items(): assert torch.equal(model.state_dict()[f"1.{k}"], v) and torch.equal(load_checkpoint(tmp_path/"nonfinite.pt")["model"][f"1.{k}"], v), k

@pytest.mark.parametrize("U", [Linf(0.1), L2(0.5)], ids=str)
def test_free_survives_a_bad_step(U):
    class Bad(Free):
        calls = 0
        def __call__(self, *args): self.calls += 1; return super().__call__(*args) * (float("nan") if self.calls == 7 else 1.)
    objective = Bad(U, replays=2)
    _, history = train(objective, nonfinite="skip")
    assert sum(history.column("skipped")) == 1 and objective.delta.isfinite().all() and (objective.delta != 0).any()

def by_hand(skipped, steps=15, model=None):
    "The weights after so many steps of `fit`'s defaults here, some of them left out"
    data, order = some(), torch.Generator().manual_seed(0)
    model = (model or conv(dropout=0.)).train().to(memory_format=torch.channels_last)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)
    batches = [b for epoch in range(3) for b in data.batches(8, generator=order)]
    for t, (x, y, index) in enumerate(batches[:steps]):
        opt.param_groups[0]["lr"] = 0.05 / (1 + 5e-6 * t)
        loss = F.cross_entropy(model(x), y)
        if t + 1 in skipped: continue
        opt.zero_grad(); loss.backward(); opt.step()
    return model

@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_weights_stay_as_they_were_before_the_first_bad_step(tmp_path, value):
    model, objective = conv(dropout=0., norm=False), Bad(7, 9, value=value)
    with pytest.raises(FloatingPointError, match=f"the loss is {-abs(value) if value == -float('inf') else value} in epoch 2, step 7 of the run: try a smaller lr") as e: train(objective, model=model, checkpoint=tmp_path)
    assert same(model, by_hand((), steps=6, model=conv(dropout=0., norm=False)))
    kept = load_checkpoint(tmp_path/"nonfinite.pt")
    assert kept["step"] == 7 and kept["epoch"] == 2 and all(torch.equal(v, kept["model"][k]) for k, v in model.state_dict().items())
    x, y, index = e.value.batch
    assert torch.equal(x, some().x[index]) and torch.equal(kept["x"], x) and torch.equal(kept["y"], y) and torch.equal(kept["index"], index) and len(x) == 8

@pytest.mark.parametrize("at", [(1,), (1, 2, 3, 4, 5, 6), (2, 5, 15), ()])
@pytest.mark.parametrize("fused", [True, False])
def test_bad_steps_are_skipped_and_the_others_are_as_ever(monkeypatch, at, fused):
    if not fused:
        SGD = torch.optim.SGD
        monkeypatch.setattr(torch.optim, "SGD", lambda *args, **kw: SGD(*args, **kw | dict(fused=False)))
    if at == (1, 2, 3, 4, 5, 6):
        with pytest.raises(FloatingPointError, match="not finite in any step of epoch 1"): train(Bad(*at), nonfinite="skip")
        return
    model, history = train(Bad(*at), model=conv(dropout=0., norm=False), nonfinite="skip")
    for p, q in zip(model.parameters(), by_hand(at, model=conv(dropout=0., norm=False)).parameters(), strict=True): torch.testing.assert_close(p, q, rtol=0 if fused else 1e-5, atol=0 if fused else 1e-6)
    assert history.column("skipped") == [sum(5 * k < a <= 5 * k + 5 for a in at) for k in range(3)] and np.isfinite(history.column("loss")).all()

def test_a_batch_of_an_iterable_and_an_augmented_one_are_kept():
    data = some()
    batches = list(zip(data.x.split(10), data.y.split(10)))
    with pytest.raises(FloatingPointError) as e: train(Bad(2), data=batches)
    assert torch.equal(e.value.batch[0], batches[1][0]) and e.value.batch[2] is None
    with pytest.raises(FloatingPointError) as e: train(Bad(2), augment=lambda x: x.flip(3), shuffle=False)
    assert torch.equal(e.value.batch[0], data.x[8:16].flip(3)) and e.value.batch[2].tolist() == list(range(8, 16))

def test_a_long_epoch_is_looked_at_once_in_a_hundred_steps(monkeypatch):
    looks, look = [], training._Guard.look
    monkeypatch.setattr(training._Guard, "look", lambda self, run: (looks.append(len(self.recent)), look(self, run))[1])
    train(epochs=1, data=some(250), batch_size=1, model=conv(norm=False))
    assert looks == [100, 100, 50]
    objective = Bad(3)
    with pytest.raises(FloatingPointError, match="step 3 of the run"): train(objective, epochs=1, data=some(250), batch_size=1, model=conv(norm=False))
    assert objective.calls == 100

# Batches from elsewhere

def loader(shuffle=True, generator=None, n=37): data = some(n); return DataLoader(TensorDataset(data.x, data.y), batch_size=8, shuffle=shuffle, generator=generator)

def test_a_loader_gives_what_a_split_gives():
    a, ha = train(Robust(Linf(0.1)), data=loader(shuffle=False), model=conv(dropout=0.))       # a loader draws too
    b, hb = train(Robust(Linf(0.1)), shuffle=False, model=conv(dropout=0.))
    assert same(a, b) and rows(ha) == rows(hb)

@pytest.mark.parametrize("generator", [lambda: None, torch.Generator], ids=["global", "own"])
def test_a_run_over_a_loader_is_resumed(tmp_path, generator):
    objective = Robust(Linf(0.1), random_start=True)
    whole, history = train(objective, data=loader(generator=generator()))
    other, _ = train(objective, data=loader(generator=generator()), seed=1)
    assert not same(whole, other)
    with pytest.raises(KeyboardInterrupt): train(Cut(objective, 8), data=loader(generator=generator()), checkpoint=tmp_path)
    model, resumed = train(Cut(objective), model=conv(3), data=loader(generator=generator()), checkpoint=tmp_path, resume=True)
    assert same(model, whole) and rows(resumed) == rows(history)
    with pytest.raises(ValueError, match="data was 'DataLoader of 5 batches, . generators', now 'DataLoader of 6 batches, 0 generators'"): train(objective, epochs=4, data=loader(n=45), checkpoint=tmp_path, resume=True)

def test_a_loader_s_generator_and_sampler():
    g = torch.Generator().manual_seed(9)
    before = g.get_state()
    train(data=loader(generator=g))
    assert torch.equal(g.get_state(), before)
    class Told(torch.utils.data.SequentialSampler):
        epochs = ()
        def set_epoch(self, epoch): self.epochs = (*self.epochs, epoch)
    data = some()
    sampler = Told(data)
    train(data=DataLoader(TensorDataset(data.x, data.y), batch_size=8, sampler=sampler))
    assert sampler.epochs == (0, 1, 2)

def test_iterables_without_a_length_and_of_other_kinds():
    class Stream:
        def __iter__(self): return iter(zip(some().x.split(8), some().y.split(8)))
    a, b = train(data=Stream())[0], train(data=[list(b) for b in Stream()])[0]
    assert same(a, b) and same(a, train(shuffle=False)[0])
    class Once:
        left = 2       # one look before the loop, one epoch, and then nothing
        def __iter__(self): self.left -= 1; return iter(zip(some().x.split(8), some().y.split(8))) if self.left >= 0 else iter(())
    with pytest.raises(ValueError, match="data gave no batch in this epoch"): train(data=Once())

def test_augmented_runs_repeat_and_resume(tmp_path):
    kw = dict(augment=CropFlip(2), objective=Robust(Linf(0.1)))
    whole, history = train(**kw)
    assert same(whole, train(**kw)[0]) and not same(whole, train(Robust(Linf(0.1)))[0])
    train(**kw, epochs=2, checkpoint=tmp_path)
    model, resumed = train(**kw, model=conv(1), checkpoint=tmp_path, resume=True)
    assert same(model, whole) and rows(resumed) == rows(history)
    for other in (None, CropFlip(1), lambda x: x): 
        with pytest.raises(ValueError, match="augment was"): train(**kw | dict(augment=other), epochs=4, checkpoint=tmp_path, resume=True)

def test_an_augmentation_in_place_leaves_the_data_alone():
    data = some()
    before, batches = data.x.clone(), [(data.x[:20], data.y[:20])]
    train(data=data, augment=lambda x: x.mul_(0.5)); train(data=batches, augment=lambda x: x.mul_(0.5))
    assert torch.equal(data.x, before)

def test_every_generator_of_a_loader_counts():
    data = some()
    def trained(seed):
        sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator())
        return train(data=DataLoader(TensorDataset(data.x, data.y), batch_sampler=torch.utils.data.BatchSampler(sampler, 8, False)), seed=seed, model=conv(dropout=0.))[0]
    assert same(trained(1), trained(1)) and not same(trained(1), trained(2))

def test_a_loader_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    train(data=loader())
    assert torch.equal(torch.get_rng_state(), before)

def test_workers_that_persist(tmp_path):
    data = some()
    make = lambda: DataLoader(TensorDataset(data.x, data.y), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers=True where checkpoint= is given"): train(data=make(), checkpoint=tmp_path)
    a, b = (train(data=make(), epochs=2)[0] for _ in range(2))
    assert same(a, b)

# What is watched

@pytest.mark.parametrize("make", [lambda: Free(Linf(0.1), replays=3), lambda: Free(L2(0.5), replays=2, warm_up=2), lambda: Robust(Linf(0.1), warm_up=2, random_start=True, keep="last"), lambda: Surrogate(L2(0.5), warm_up=1)], ids=str)
def test_variants_repeat_and_resume(tmp_path, make):
    whole, history = train(make())
    used = make()
    assert same(train(used)[0], whole) and same(train(used)[0], whole)          # also an objective that has been used
    train(make(), epochs=1, checkpoint=tmp_path)
    model, resumed = train(make(), model=conv(1), checkpoint=tmp_path, resume=True)
    assert same(model, whole) and rows(resumed) == rows(history)

def test_replays_are_steps():
    seen = []
    class Spy(Free):
        def __call__(self, model, x, y, index): seen.append(index.tolist()); return super().__call__(model, x, y, index)
    _, history = train(Spy(Linf(0.1), replays=3), epochs=2)
    assert len(seen) == 2 * 5 * 3 and all(seen[k] == seen[k - k % 3] for k in range(30)) and len(history) == 2

def test_a_monitor_stops_and_goes_back_to_the_best(tmp_path):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    class Scripted(Monitor):
        def __call__(self, model, row):
            self.weights_seen = getattr(self, "weights_seen", []) + [copy.deepcopy(model.state_dict())]
            score = next(scores)
            with pytest.MonkeyPatch.context() as m:
                m.setattr(variants, "robust_accuracy", lambda *args, **kw: score)
                super().__call__(model, row)
    monitor = Scripted(some(seed=1), Linf(0.1), patience=2)
    model, history = train(epochs=9, monitor=monitor)
    assert history.column("held_projected") == [0.5, 0.7, 0.6, 0.65] and monitor.stopped
    assert all(torch.equal(v, monitor.weights_seen[1][k]) for k, v in model.state_dict().items())

def test_a_monitored_run_is_resumed_and_stays_stopped(tmp_path):
    make = lambda: Monitor(some(seed=1), Linf(0.2), patience=2)
    whole, history = train(Robust(Linf(0.1)), epochs=30, monitor=make())
    assert len(history) < 30
    with pytest.raises(KeyboardInterrupt): train(Cut(Robust(Linf(0.1)), 5 * len(history) - 6), epochs=30, monitor=make(), checkpoint=tmp_path)
    for _ in range(2):                                                   # the second time there is nothing to do
        model, resumed = train(Cut(Robust(Linf(0.1))), model=conv(1), epochs=30, monitor=make(), checkpoint=tmp_path, resume=True)
        assert same(model, whole) and rows(resumed) == rows(history)
    with pytest.raises(ValueError, match="monitor was"): train(Cut(Robust(Linf(0.1))), epochs=31, monitor=Monitor(some(seed=1), Linf(0.3), patience=2), checkpoint=tmp_path, resume=True)

def test_a_monitor_may_be_a_function():
    seen = []
    def watch(model, row): assert not model.training; seen.append(row["epoch"]); row["twice"] = 2 * row["epoch"]
    model, history = train(monitor=watch)
    assert seen == [1, 2, 3] and history.column("twice") == [2, 4, 6] and model.training

@pytest.mark.parametrize("one, projected, warns", [(0.5, 0.1, True), (0.5, 0.31, False), (0.3, 0.11, False), (0.9, 0.5, False), (0.9, 0.4, True)])
def test_a_monitor_warns_once(monkeypatch, one, projected, warns):
    monkeypatch.setattr(variants, "robust_accuracy", lambda *args, steps, **kw: one if steps == 1 else projected)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(monitor=Monitor(some(seed=1), Linf(0.1)))
    assert len(said) == warns and all("catastrophic overfitting? In epoch 1" in str(w.message) for w in said)

def test_what_a_monitor_may_say(tmp_path):
    def monitor(model, row): row.update(a=torch.tensor(1.5), b=np.float32(2.5), c=3)
    train(monitor=monitor, epochs=1, checkpoint=tmp_path)
    _, history = train(monitor=monitor, epochs=2, checkpoint=tmp_path, resume=True)
    assert [history.column(k) for k in "abc"] == [[1.5] * 2, [2.5] * 2, [3] * 2]
    for v in ("x", None, torch.ones(2), [1]):
        with pytest.raises(TypeError, match="monitor must put numbers into the row, got a="): train(monitor=lambda model, row: row.update(a=v))

def test_a_monitor_with_other_samples_is_another_run(tmp_path):
    train(monitor=Monitor(some(seed=1), Linf(0.1)), epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="digest of the monitor was"): train(monitor=Monitor(some(seed=2), Linf(0.1)), epochs=2, checkpoint=tmp_path, resume=True)

def test_after_a_warm_up_the_radius_is_whole():
    objective = Robust(Linf(0.1), warm_up=4)
    train(objective, epochs=2)
    assert objective.sets().radius == 0.1
    with pytest.raises(KeyboardInterrupt): train(Hurts(Linf(0.1), warm_up=4))
    assert Hurts.last.sets().radius == 0.1

class Hurts(Robust):
    def __call__(self, *args): Hurts.last = self; assert self.sets().radius == pytest.approx(0.02); raise KeyboardInterrupt

def test_a_pool_follows_the_warm_up():
    reached = {}
    class Spy(Pool):
        def on_epoch(self, epoch):
            super().on_epoch(epoch)
            self.epoch = epoch
        def perturbed(self, model, x, y, index):
            z = super().perturbed(model, x, y, index)
            reached.setdefault(self.epoch, []).append((z - x).abs().max().item())
            return z
    train(Spy(Linf(0.1), 0., warm_up=3, refresh=4, box=None), epochs=6)
    assert [round(max(v), 3) for v in reached.values()] == [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    with pytest.raises(TypeError, match="warm_up is not an option of FedBack"): FedBack(conv(), Linf(0.1), warm_up=3)

def test_a_reconstruction_looks_at_no_label():
    split = some()
    data = Data("toy", Split(split.x, split.y + 50), split, ["a"])
    _, history = train(Reconstruction(0.1), data=data, model=Autoencoder(64, 5), epochs=1)
    assert "test_accuracy" not in history[0] and history[0]["reconstruction"] > 0

def test_a_monitor_leaves_the_run_alone():
    a, ha = train(Robust(Linf(0.1), random_start=True))
    b, hb = train(Robust(Linf(0.1), random_start=True), monitor=Monitor(some(seed=1), Linf(0.1)))
    assert same(a, b) and ha.column("loss") == hb.column("loss")

def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(epochs=2, tensorboard=tmp_path/"logs", checkpoint=tmp_path/"run")
    _, history = train(epochs=3, tensorboard=tmp_path/"logs", checkpoint=tmp_path/"run", resume=True)
    read = EventAccumulator(str(tmp_path/"logs")).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "accuracy", "seconds"}
    assert [e.step for e in read.Scalars("loss")] == [1, 2, 3] and [e.value for e in read.Scalars("loss")] == pytest.approx(history.column("loss"), rel=1e-6)

def test_tensorboard_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install .robust_nb.tensorboard"): train(tensorboard="logs", checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="tensorboard must be a path, got bool"): train(tensorboard=True)

def test_compiled():
    a, b = train(Robust(Linf(0.1)), compile=True, model=conv(dropout=0.))[0], train(Robust(Linf(0.1)), model=conv(dropout=0.))[0]
    for p, q in zip(a.parameters(), b.parameters(), strict=True): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert not isinstance(a, torch._dynamo.OptimizedModule) and a(some().x).shape == (37, CLASSES)

def test_ctrl_c_says_what_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2; .*last.pt holds the state before: go on with resume=True"): train(Cut(Standard(), 8), checkpoint=tmp_path)
    assert History.load(tmp_path).column("epoch") == [1]
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2; with checkpoint= it could go on"): train(Cut(Standard(), 8))

# The policy for layers that behave differently in training

@pytest.mark.parametrize("mode", ["eval", "train"])
def test_running_statistics_are_those_of_the_documented_policy(mode):
    "After one robust epoch: Δ from passes in `mode`, which leave no trace; then one pass in train mode at x + Δ, whose statistics count"
    U, data = Linf(0.1), some()
    model, _ = train(Robust(U, mode=mode), epochs=1, model=conv(dropout=0.))
    by_hand, order = conv(dropout=0.).train(), torch.Generator().manual_seed(0)
    opt = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)
    for t, (x, y, _) in enumerate(data.batches(8, generator=order)):
        opt.param_groups[0]["lr"] = 0.05 / (1 + 5e-6 * t)
        twin = copy.deepcopy(by_hand).train(mode == "train")
        leaf = x.clone().requires_grad_()
        grad, = torch.autograd.grad(log_odds(twin(leaf), y).sum(), leaf)
        loss = F.cross_entropy(by_hand((x + 0.1 * grad.sign()).clamp(0, 1)), y)
        opt.zero_grad(); loss.backward(); opt.step()
    for k in ("running_mean", "running_var", "num_batches_tracked"): torch.testing.assert_close(getattr(model[1], k), getattr(by_hand[1], k))
    assert model[1].num_batches_tracked == 5

def test_dropout_of_the_descent_is_on_and_of_the_ascent_by_policy():
    class Counts(nn.Dropout):
        on = 0
        def forward(self, x): self.on += self.training; return super().forward(x)
    for mode, passes in (("eval", 5), ("train", 10)):
        model = conv()
        model[3] = Counts(0.3)
        train(Robust(Linf(0.1), mode=mode), epochs=1, model=model)
        assert model[3].on == passes

def test_evaluation_leaves_modes_gradients_and_statistics_alone():
    model, data = conv().train(), some()
    model[1].eval()
    F.cross_entropy(model(data.x), data.y).backward()
    state, grads, modes = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()], [m.training for m in model.modules()]
    accuracy(model, data.x, data.y); robust_accuracy(model, data.x, data.y, Linf(0.1), steps=3); Monitor(data, Linf(0.1))(model, dict(epoch=1))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads)) and modes == [m.training for m in model.modules()]

def test_statistics_that_are_new_tensors_survive_a_bad_step():
    class Running(nn.Module):
        def __init__(self): super().__init__(); self.register_buffer("mean", torch.zeros(1, 8, 8)); self.register_buffer("wide", torch.ones(1).expand(4)); self.head = nn.Linear(64, CLASSES)
        def forward(self, x):
            if self.training: self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return self.head((x - self.mean).flatten(1))
    data = some()
    batches = [(x * float("nan") if k == 1 else x, y) for k, (x, y) in enumerate(zip(data.x.split(10), data.y.split(10)))]
    model, history = train(model=Running(), data=batches, nonfinite="skip")
    assert history.column("skipped") == [1, 1, 1] and model.mean.isfinite().all() and model.mean.any()

def test_the_number_of_an_epoch_is_the_loop_s_own(tmp_path):
    class Says(Standard):
        def __call__(self, *args): loss = super().__call__(*args); loss.logs["epoch"] = loss.detach(); return loss
    def monitor(model, row): row["epoch"] = 7
    train(Says(), monitor=monitor, epochs=2, checkpoint=tmp_path)
    assert History.load(tmp_path).column("epoch") == [1, 2]
    assert train(Says(), monitor=monitor, checkpoint=tmp_path, resume=True)[1].column("epoch") == [1, 2, 3]

def test_a_loader_without_a_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): data = some(); return iter(zip(data.x, data.y))
    assert same(train(data=DataLoader(Stream(), batch_size=8), model=conv(dropout=0.))[0], train(shuffle=False, model=conv(dropout=0.))[0])

def test_an_objective_that_cannot_finish_leaves_everything_as_it_was():
    class Fails(Standard):
        def finish(self): raise RuntimeError("no")
    model, before = conv().eval(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"): train(Fails(), model=model)
    assert not model.training and model[0].weight.grad is None and torch.equal(torch.get_rng_state(), before)
