"""The callbacks for other libraries' trainers: what does not belong on their pages.

lightning comes with the development requirements. fastai does not go with nbdev 2: `python tools/fastai_page.py` runs its page, and in
that environment these tests run too.
"""
import copy, importlib, logging, subprocess, sys, warnings
from functools import partial
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from robust_nb.data import Split
from robust_nb.objectives import AdversarialMix, Robust, Standard, Surrogate
from robust_nb.sets import Masked, Subspace
from robust_nb.training import fit
from robust_nb.uncertainty import L2, Linf

def library(name):
    "The library, or skip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f'{name} is not installed: pip install "robust_nb[{name.partition(".")[0]}]"')

def callback(name): return importlib.import_module(f"robust_nb.{name}").AdversarialTraining

def some(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Split(torch.rand(n, 1, 8, 8, generator=g), torch.randint(4, (n,), generator=g))

def net(norm=True):
    "With what a mode changes: batch normalisation and dropout"
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *([nn.BatchNorm1d(16), nn.Dropout(0.2)] if norm else []), nn.ReLU(), nn.Linear(16, 4))

def loader(data, **options): return DataLoader(TensorDataset(data.x, data.y), **dict(batch_size=10) | options)

# The objective

class Twice(Robust):
    "A loss of its own"
    def __call__(self, *args): return 2 * super().__call__(*args)

LOSSES = [Standard(), Surrogate(Linf(0.1)), AdversarialMix(Linf(0.1)), AdversarialMix(Linf(0.1), alpha=0.), Twice(Linf(0.1)), Linf(0.1), Robust, None]
PER_SAMPLE = dict(radius=L2(torch.ones(10)), fixed=Masked(L2(1.), torch.zeros(10, 1, 8, 8, dtype=torch.bool)), axes=Subspace(torch.rand(10, 2, 1, 8, 8), 1., per_sample=True))
SHARED = [Linf(0.1), Masked(L2(1.), torch.zeros(1, 1, 8, 8, dtype=torch.bool)), Subspace(torch.rand(2, 1, 8, 8), 1.)]

@pytest.mark.parametrize("name", ["lightning", "fastai"])
def test_objectives_are_refused_without_the_library_too(name):
    for o in LOSSES:
        with pytest.raises(TypeError, match=r"objective must be a Robust such as Robust\(Linf\(0.1\)\).*got "): callback(name)(o)
    for what, U in PER_SAMPLE.items():
        with pytest.raises(ValueError, match=f"objective must have one {what} for all samples, got one per sample in Robust"): callback(name)(Robust(U))

@pytest.mark.parametrize("name", ["lightning", "fastai"])
def test_a_missing_library_is_named(name):
    "In a process in which it cannot be imported"
    code = f"import sys; sys.modules['{name}'] = None\nfrom robust_nb.{name} import *\nfrom robust_nb.objectives import Robust\n" \
           "from robust_nb.uncertainty import Linf\ntry: AdversarialTraining(Robust(Linf(0.1)))\nexcept ImportError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f'{name} is not installed: pip install "robust_nb[{name}]"\n'

# Lightning

@pytest.fixture
def lightning():
    L = library("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|pytorch_lightning")
        yield L

def module(L, model=None, **options):
    class Module(L.LightningModule):
        def __init__(self): super().__init__(); self.model, self.seen, self.autocast = model or net(), {}, set()
        def forward(self, x): self.autocast.add(torch.is_autocast_enabled("cpu")); return self.model(x)
        def note(self, stage, batch): self.seen.setdefault(stage, []).append(batch[0].clone())
        def training_step(self, batch, batch_idx):
            self.note("train", batch)
            self.flags, self.free = [m.training for m in self.modules()], all(p.grad is None for p in self.parameters()) or batch_idx > 0
            return F.cross_entropy(self(batch[0]), batch[1])
        def validation_step(self, batch, batch_idx): self.note("validate", batch)
        def test_step(self, batch, batch_idx): self.note("test", batch)
        def predict_step(self, batch, batch_idx): self.note("predict", batch)
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), **dict(lr=0.05, momentum=0.9) | options)
    return Module()

def trainer(L, *callbacks, **options):
    quiet = dict(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(**dict(max_epochs=1, callbacks=list(callbacks)) | quiet | options)

def fitted(objective, data, model, **options):
    fit(model, data, objective, **dict(epochs=1, batch_size=10, lr=0.05, lr_decay=0, weight_decay=0, shuffle=False, device="cpu", progress=False) | options)
    return model

def close(a, b): return all(torch.allclose(p, q, rtol=0, atol=1e-6) for p, q in zip(a.state_dict().values(), b.state_dict().values()))

@pytest.mark.parametrize("objective", [Robust(U) for U in SHARED] + [Robust(L2(0.5), steps=3, step_size=0.2, box=None)], ids=str)
def test_lightning_weights_are_those_of_fit(lightning, objective):
    m, data = module(lightning, net(norm=False)), some()
    trainer(lightning, callback("lightning")(objective), max_epochs=2).fit(m, loader(data))
    assert close(m.model, fitted(objective, data, net(norm=False), epochs=2))

@pytest.mark.parametrize("precision, dtype", [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_lightning_precisions(lightning, precision, dtype):
    m, data = module(lightning), some()
    trainer(lightning, callback("lightning")(Robust(Linf(0.1), steps=2)), precision=precision).fit(m, loader(data))
    moved = torch.cat(m.seen["train"])
    assert m.autocast == {precision == "bf16-mixed"}                                                 # in the ascent as in the descent
    assert moved.dtype == dtype and (moved != data.x).any() and torch.get_default_dtype() == torch.float32
    assert (moved.double() - data.x.to(dtype).double()).abs().max() <= 0.1 + 1e-6                     # bfloat16 rounds towards x

def test_lightning_only_training_batches(lightning):
    m, data, other = module(lightning), some(), some(seed=1)
    t = trainer(lightning, callback("lightning")(Robust(Linf(0.1))), num_sanity_val_steps=1, max_epochs=2, val_check_interval=0.5)
    t.fit(m, loader(data), loader(other))
    t.test(m, loader(other)); t.predict(m, loader(other))
    clean = {tuple(x.flatten().tolist()) for x in other.x.split(10)}
    assert len(m.seen["train"]) == 8 and all((x - y).abs().amax((1, 2, 3)).min() > 0.05 for x, y in zip(m.seen["train"], [*data.x.split(10)] * 2))
    for stage in ("validate", "test", "predict"): assert {tuple(x.flatten().tolist()) for x in m.seen[stage]} <= clean, stage
    assert torch.equal(data.x, some().x)

def test_lightning_module_is_left_as_found(lightning):
    m = module(lightning)
    m.model[2].eval()                                                   # a frozen BatchNorm
    running = m.model[2].running_mean.clone()
    trainer(lightning, callback("lightning")(Robust(Linf(0.1)))).fit(m, loader(some()))
    assert m.flags == [k is not m.model[2] for k in m.modules()] and m.free and torch.equal(m.model[2].running_mean, running)
    assert "on_after_batch_transfer" not in vars(m)

def test_lightning_users_own_hooks(lightning):
    "Those of the module, of the data module, and one set on the object: x + Δ comes after each"
    darker = lambda batch, i: [batch[0] / 2, batch[1]]
    class Data(lightning.LightningDataModule):
        def train_dataloader(self): return loader(some())
    class Own(Data):
        def on_after_batch_transfer(self, batch, i): return darker(batch, i)
    for way in ("module", "object", "data", "none"):
        m = module(lightning)
        if way == "module": type(m).on_after_batch_transfer = lambda self, batch, i: darker(batch, i)
        if way == "object": m.on_after_batch_transfer = darker
        d = Own() if way == "data" else Data()
        trainer(lightning, callback("lightning")(Robust(Linf(0.1)))).fit(m, datamodule=d)
        moved, x = torch.cat(m.seen["train"]), some().x / (1 if way == "none" else 2)
        assert 0.05 < (moved - x).abs().max() <= 0.1 + 1e-6, way
        assert vars(m).get("on_after_batch_transfer") is (darker if way == "object" else None) and "on_after_batch_transfer" not in vars(d)

@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_lightning_module_is_left_as_found_after_an_error(lightning, error):
    m = module(lightning)
    def fails(batch, batch_idx): raise error("stop")
    m.training_step = fails
    with pytest.raises((error, SystemExit)): trainer(lightning, callback("lightning")(Robust(Linf(0.1)))).fit(m, loader(some()))
    assert "on_after_batch_transfer" not in vars(m)

class Grows(Robust):
    "A radius that follows from the epoch"
    def on_epoch(self, epoch): self.U = self.U.with_radius(0.05 * epoch)

@pytest.mark.parametrize("make", [lambda: Grows(Linf(0.3)), lambda: Robust(Linf(0.3), warm_up=2), lambda: Robust(Linf(0.3), warm_up=4)])
def test_lightning_epochs_are_told(lightning, make):
    m, data, objective = module(lightning, net(norm=False)), some(), make()
    trainer(lightning, callback("lightning")(objective), max_epochs=3).fit(m, loader(data))
    assert objective.share == 1
    far = [(torch.cat(m.seen["train"][k:k+4]) - data.x).abs().max().item() for k in (0, 4, 8)]
    assert far[0] < far[1] < far[2] and close(m.model, fitted(make(), data, net(norm=False), epochs=3))

def test_lightning_example_input_is_no_batch(lightning):
    m = module(lightning)
    m.example_input_array = some().x[:2]
    trainer(lightning, callback("lightning")(Robust(Linf(0.1))), enable_model_summary=True).fit(m, loader(some()))

def test_lightning_weights_must_be_whole(lightning):
    from lightning.pytorch.strategies import FSDPStrategy
    class Spread: strategy = FSDPStrategy()
    with pytest.raises(ValueError, match="strategy must keep the weights whole .* got FSDPStrategy"): callback("lightning")(Robust(Linf(0.1))).on_train_start(Spread, module(lightning))

def test_lightning_is_not_pytorch_lightning(lightning):
    other = library("pytorch_lightning")
    with pytest.raises(ValueError, match="of lightning.pytorch, got SingleDeviceStrategy of pytorch_lightning"): trainer(other, callback("lightning")(Robust(Linf(0.1)))).fit(module(other), loader(some()))

DDP = """
import logging, warnings, torch
import lightning.pytorch as L
from test_integrations import callback, close, fitted, loader, module, net, some, trainer
from robust_nb.objectives import Robust
from robust_nb.uncertainty import Linf
if __name__ == "__main__":
    m, objective = module(L, net(norm=False)), Robust(Linf(0.1), steps=2)
    trainer(L, callback("lightning")(objective), devices=2, strategy="ddp").fit(m, loader(some(20)))
    assert torch.cat(m.seen["train"]).shape[0] == 10 and close(m.model, fitted(objective, some(20), net(norm=False), batch_size=20))
    print("as fit")
"""

@pytest.mark.slow
def test_lightning_on_two_processes(lightning, tmp_path):
    "Each perturbs its half of the batch; the mean of the gradients is that of the whole"
    import os
    from pathlib import Path
    (tmp_path/"two.py").write_text(DDP)
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    r = subprocess.run([sys.executable, "two.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
    assert r.returncode == 0 and "as fit" in r.stdout, r.stderr[-3000:]

# fastai

@pytest.fixture
def fastai():
    library("fastai.callback.progress")
    from fastai import learner
    return learner

def learn(fastai, model, train, valid=None, *cbs, **options):
    from fastai.data.core import DataLoaders
    from fastai.optimizer import OptimWrapper
    opt = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)
    return fastai.Learner(DataLoaders(train, valid or train, device="cpu"), model, loss_func=F.cross_entropy, opt_func=opt, cbs=list(cbs), **options)

def quietly(l, epochs=1):
    with l.no_bar(), l.no_logging(): l.fit(epochs, lr=0.05)
    return l

@pytest.mark.parametrize("objective", [Robust(U) for U in SHARED] + [Robust(L2(0.5), steps=3, step_size=0.2, box=None), Grows(Linf(0.3)), Robust(Linf(0.3), warm_up=2)], ids=str)
def test_fastai_weights_are_those_of_fit(fastai, objective):
    data = some()
    l = quietly(learn(fastai, net(norm=False), loader(data), None, callback("fastai")(copy.deepcopy(objective))), 3)
    assert close(l.model, fitted(copy.deepcopy(objective), data, net(norm=False), epochs=3)) and torch.equal(data.x, some().x)

def test_fastai_only_training_batches_and_its_own_tensors(fastai):
    from fastai.torch_core import TensorCategory, TensorImage
    from fastai.data.load import DataLoader as Loader
    data, seen = some(), {True: [], False: []}
    class Spy(nn.Sequential):
        def forward(self, x): seen[self.training].append(x.detach().clone()); return super().forward(x)
    items = [(TensorImage(x), TensorCategory(y)) for x, y in zip(data.x, data.y)]
    quietly(learn(fastai, Spy(*net()), Loader(items, bs=10), Loader(items, bs=10), callback("fastai")(Robust(Linf(0.1)))))
    moved = torch.cat(seen[True])
    assert type(moved) is torch.Tensor and 0.05 < (moved - data.x).abs().max() <= 0.1 + 1e-6
    assert torch.equal(torch.cat(seen[False][-4:]), data.x)             # before: the ascent's passes, in eval mode
