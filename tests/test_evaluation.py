"Evaluation and plots where a page would be too long for it: any radii, any net, any damage to a file, memory, and what importing does."
import copy, json, math, os, subprocess, sys
from pathlib import Path
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from robust_nb.data import load
from robust_nb.distributed import sharded
from robust_nb.checkpoint import save_tensors
from robust_nb.evaluation import (AdversarialCollection, accuracy, accuracy_curve, clustered_interval, correct, mcnemar, robust_accuracy, robust_correct,
                                  weights_digest, wilson)
from robust_nb.models import MLP, Linear, MNISTNet, pretrained
from robust_nb.perturbation import perturb
from robust_nb.radii import smallest_radius
from robust_nb.sets import Ellipsoid, Masked, Subspace
from robust_nb.solvers import multi_targeted
from robust_nb.uncertainty import L1, L2, Linf, UncertaintySet

ROOT = Path(__file__).resolve().parents[1]
FEW = settings(max_examples=25, deadline=None, derandomize=True)
RADII = st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=6)

@pytest.fixture(scope="module")
def digits(): return load("mnist5k", device="cpu").test[torch.arange(60)]

@pytest.fixture(scope="module")
def net(): return pretrained("baseline")

def made_up(n=40, dim=6, seed=0):
    "Samples in [0, 1], labels, and a small net that gets some of them right"
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x, model = torch.rand(n, dim, generator=g), MLP(dim, 8, 3).eval()
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return x, y, model

# What is refused

def noisy_net():
    "Batch normalisation, frozen, and dropout, all else in train mode"
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(784), torch.nn.Dropout(0.5), torch.nn.Linear(784, 10)).train()
    model[1].eval()
    return model

def with_logit(net, value):
    broken = copy.deepcopy(net)
    broken.fc2.bias.data[3] = value
    return broken

def refused(f, *args, error=(TypeError, ValueError), match, **kw):
    with pytest.raises(error) as e: f(*args, **kw)
    assert match in str(e.value), e.value

def test_correct_refuses(net, digits):
    x, y = digits.x, digits.y
    for args, text in (((x[:, 0, 0, 0], y), "x must have shape (n, ...)"), ((x.long(), y), "x must be floating point"), ((x * torch.nan, y), "x must be finite"),
                       ((None, y), "x must be a tensor"), ((x, None), "y must be a tensor of int64 labels"), ((x, y[:-1]), "y must have shape (60,)"),
                       ((x, y.float()), "y must be a tensor of int64 labels"), ((x, y + 9), "y must lie in 0 … 9"), ((x, y - 1), "y must lie in 0 … 9"),
                       *(((x, y, size), "batch_size must be an integer of at least 1") for size in (0, -1, 2.5, True, None))): refused(correct, net, *args, match=text)
    refused(correct, torch.nn.Flatten(0), x, y, match="model must return logits of shape (60, K)")
    refused(correct, lambda x: x, x, y, match="model must be an nn.Module")
    refused(accuracy, net, x[:0], y[:0], match="x must hold at least one sample")

@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers(net, digits, value):
    broken, x, y = with_logit(net, value), digits.x, digits.y
    for f in (correct, accuracy): refused(f, broken, x, y, match="model must return finite logits, got NaN or infinity for 60 of 60")
    for f in (robust_correct, robust_accuracy): refused(f, broken, x, y, Linf(0.1), match="model must return finite logits")
    refused(accuracy_curve, broken, x, y, Linf(0.), [0.1], match="model must return finite logits")
    refused(AdversarialCollection.build, broken, x, y, Linf(0.1), match="model must return finite logits")

def test_types_that_do_not_fit(net, digits):
    "PyTorch's own message names neither argument"
    x, y, text = digits.x, digits.y, "x must have the type and device of the model's weights, {}, got {} on cpu"
    for model, a in ((net, x.double()), (copy.deepcopy(net).double(), x), (net, x.bfloat16()), (Linear(), x.half())):
        said = text.format(f"{next(model.parameters()).dtype} on cpu", a.dtype)
        for f in (correct, accuracy): refused(f, model, a, y, error=TypeError, match=said)
        for f in (robust_correct, robust_accuracy): refused(f, model, a, y, Linf(0.1), error=TypeError, match=said)
        refused(accuracy_curve, model, a, y, Linf(0.), [0.1], error=TypeError, match=said)
    class Casts(torch.nn.Module):
        "A model that takes any type is not refused"
        def __init__(self): super().__init__(); self.net = net
        def forward(self, x): return self.net(x.float())
    assert torch.equal(correct(Casts(), x.double(), y), correct(net, x, y))
    class Fails(Casts):
        def forward(self, x): raise RuntimeError("a fault of its own")
    refused(correct, Fails(), x, y, error=RuntimeError, match="a fault of its own")

def test_robust_correct_refuses(net, digits):
    x, y = digits.x, digits.y
    for U, text in ((0.1, "U must be an UncertaintySet"), (None, "U must be an UncertaintySet"), (Linf(torch.full((50,), 0.1)), "U has 50 radii, one per sample, but there are 60 samples")):
        refused(robust_accuracy, net, x, y, U, match=text)
    refused(robust_accuracy, net, x[:0], y[:0], Linf(0.1), match="at least one sample")
    refused(robust_accuracy, net, x, y, Linf(0.1), targeted=True, match="targeted must be False")
    refused(robust_accuracy, net, x + 1, y, Linf(0.1), match="x must lie in box")
    refused(robust_accuracy, net, x, y, Linf(0.1), steps=0, match="steps must be")

def test_curve_refuses(net, digits):
    x, y = digits.x, digits.y
    for radii, text in ((0.1, "radii must be an iterable of numbers"), (None, "radii must be an iterable of numbers"), (["a"], "radii must be an iterable of numbers"), ([], "radii must hold at least one number"),
                        ([torch.ones(60)], "one number per radius"), ([-0.1], "radius must be finite and at least 0"), ([math.nan], "radius must be finite")):
        refused(accuracy_curve, net, x, y, Linf(1.), radii, match=text)
    refused(accuracy_curve, net, x, y, 0.1, [0.1], match="U must be an UncertaintySet")
    refused(accuracy_curve, net, 2 * x, y, Linf(1.), [0.1], match="x must lie in box")
    refused(accuracy_curve, net, x, y + 9, Linf(1.), [0.1], match="y must lie in 0 … 9")
    refused(accuracy_curve, net, x[:0], y[:0], Linf(1.), [0.1], match="at least one sample")

def test_radii_in_any_form(net, digits):
    x, y, few = digits.x, digits.y, [0.3, 0., 0.1]
    curve = accuracy_curve(net, x, y, Linf(1.), few)
    assert (curve.dtype, curve.shape) == (torch.float64, (3,))
    for radii in (np.array(few), torch.tensor(few, dtype=torch.float64), (r for r in few)): assert torch.equal(accuracy_curve(net, x, y, Linf(1.), radii, batch_size=33), curve)
    assert torch.equal(accuracy_curve(net, x, y, Linf(1.), [0.1, 0.1]), curve[2].expand(2))
    worst = accuracy_curve(net, x, y, Linf(1.), sorted(few), monotone=True)
    assert torch.equal(accuracy_curve(net, x, y, Linf(1.), few, monotone=True), worst[[2, 0, 1]])

def test_train_mode_and_half_precision(net, digits):
    x, y, noisy, half = digits.x, digits.y, noisy_net(), copy.deepcopy(net).bfloat16()
    state = copy.deepcopy(noisy.state_dict())
    assert torch.equal(correct(noisy, x, y), correct(noisy, x, y))
    assert torch.equal(accuracy_curve(noisy, x, y, Linf(1.), [0.1]), accuracy_curve(noisy, x, y, Linf(1.), [0.1]))
    torch.testing.assert_close(dict(noisy.state_dict()), dict(state), rtol=0, atol=0)
    assert [m.training for m in noisy.modules()] == [True, True, False, True, True] and all(p.grad is None for p in noisy.parameters())
    assert correct(half, x.bfloat16(), y).dtype == robust_correct(half, x.bfloat16(), y, Linf(0.1)).dtype == torch.bool
    assert accuracy_curve(half, x.bfloat16(), y, Linf(1.), [0.1]).dtype == torch.float64

def test_robust_correct_sample_by_sample(net, digits):
    x, y = digits.x[:40], digits.y[:40]
    for U in (Linf(0.), L2(0.), L1(0.)): assert torch.equal(robust_correct(net, x, y, U), correct(net, x, y))
    for box in (None, (0., 1.)):
        each = torch.cat([robust_correct(net, x[k:k+1], y[k:k+1], L2(1. + k / 20), box=box) for k in range(40)])
        assert torch.equal(robust_correct(net, x, y, L2(1 + torch.arange(40) / 20), box=box, batch_size=16), each)
    assert robust_correct(net, x[:0], y[:0], Linf(0.1)).shape == (0,)

# One gradient for all radii

@FEW
@given(RADII, st.sampled_from([Linf, L2, L1]), st.sampled_from([None, (0., 1.), (-1., 2.)]), st.integers(1, 50), st.integers(0, 3))
def test_curve_is_separate_attacks(radii, kind, box, batch_size, seed):
    x, y, model = made_up(seed=seed)
    parts = [slice(k, k + batch_size) for k in range(0, len(x), batch_size)]
    one = lambda r: torch.cat([correct(model, perturb(model, x[p], y[p], kind(r), box=box), y[p]) for p in parts]).double().mean()
    raw = accuracy_curve(model, x, y, kind(0.), radii, box=box, batch_size=batch_size)
    assert torch.equal(raw, torch.stack([one(r) for r in radii]))

@FEW
@given(RADII, st.sampled_from([Linf, L2, L1]), st.integers(0, 3))
def test_monotone_is_the_worst_so_far(radii, kind, seed):
    x, y, model = made_up(seed=seed)
    raw, worst = (accuracy_curve(model, x, y, kind(0.), radii, box=None, monotone=m) for m in (False, True))
    assert (worst <= raw).all() and (worst <= accuracy(model, x, y)).all()
    falling = worst[torch.tensor(radii, dtype=torch.float64).argsort()]
    assert (falling.diff() <= 0).all()
    for r, v in zip(radii, worst):
        smaller = [s for s in radii if s <= r]
        hits = torch.stack([correct(model, perturb(model, x, y, kind(s), box=None), y) for s in [0., *smaller]]).all(0)
        assert v == hits.double().mean()

@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("wrap", ["plain", "channels_last", "double", "inference", "half"])
def test_curve_of_the_paper_net(net, digits, kind, wrap):
    model, x, y = copy.deepcopy(net), digits.x, digits.y
    if wrap == "channels_last": model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if wrap == "double": model, x = model.double(), x.double()
    if wrap == "half": model, x = model.bfloat16(), x.bfloat16()
    if wrap == "inference":
        with torch.inference_mode(): x = x.clone()
    raw = accuracy_curve(model, x, y, kind(0.), [0, 0.1, 2.])
    assert raw.tolist() == [accuracy(model, perturb(model, x, y, kind(r)), y) for r in (0, 0.1, 2.)]

def test_model_is_left_as_it_was():
    x, y, _ = made_up()
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.BatchNorm1d(9), torch.nn.Dropout(), torch.nn.Linear(9, 3))
    model[2].eval()
    flags, before = [m.training for m in model.modules()], weights_digest(model)
    accuracy(model, x, y), accuracy_curve(model, x, y, L2(0.), [0, 1, 2], monotone=True), robust_correct(model, x, y, L1(1.), steps=3, restarts=2)
    AdversarialCollection.build(model, x, y, [Linf(0.5)])
    assert flags == [m.training for m in model.modules()] and before == weights_digest(model)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

def test_curve_holds_one_batch():
    "On 4,000 images of CIFAR's size and 16 radii: all gradients, or all perturbed images, would be 49 MB"
    code = """
import resource, torch
from robust_nb.evaluation import accuracy_curve
from robust_nb.models import Linear
from robust_nb.uncertainty import Linf
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.manual_seed(0)
x, y, model = torch.rand(4000, 3, 32, 32), torch.randint(10, (4000,)), Linear(3072)
accuracy_curve(model, x[:400], y[:400], Linf(0.), [0.1, 0.2])
before = peak()
accuracy_curve(model, x, y, Linf(0.), [k / 50 for k in range(16)], monotone=True)
print(peak() - before)
"""
    pytest.importorskip("resource")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}    # what is freed goes back at once, so the peak is what is held
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert r.returncode == 0, r.stderr
    assert float(r.stdout) / (1024 if sys.platform == "darwin" else 1) < 25, f"{r.stdout} MB more than for two batches"

# Under attack

@FEW
@given(st.integers(0, 20), st.sampled_from([(Linf, 1), (L2, 2), (L1, torch.inf)]))
def test_linear_net_is_robust_where_its_margin_is_wide(seed, kind):
    g = torch.Generator().manual_seed(seed)
    w, x, y, r = torch.randn(5, generator=g), torch.randn(50, 5, generator=g), torch.randint(2, (50,), generator=g), torch.rand(50, generator=g)
    model = Linear(5, 2).requires_grad_(False)
    model[1].weight.copy_(torch.stack([-w, w]) / 2); model[1].bias.zero_()
    margin = (2 * y - 1) * (x @ w)
    expected, sure = margin > r * torch.linalg.vector_norm(w, kind[1]), (margin - r * torch.linalg.vector_norm(w, kind[1])).abs() > 1e-4
    found = robust_correct(model, x, y, kind[0](r), box=None, batch_size=7)
    assert torch.equal(found[sure], expected[sure])

def test_misread_samples_are_not_robust():
    x, y, model = made_up()
    wrong = ~correct(model, x, y)
    assert wrong.any()
    for U in (Linf(0.), Linf(0.5), L2(3.), L1(3.)): assert not robust_correct(model, x, y, U)[wrong].any()

@pytest.mark.parametrize("hits, n", [(0, 1), (1, 1), (17, 20), (9909, 10_000)])
def test_wilson(hits, n):
    from scipy.stats import binomtest
    reference = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n, 1.959963985) == pytest.approx((reference.low, reference.high), abs=1e-9)

@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
@pytest.mark.parametrize("together", [0., 0.7, 1.])
def test_clustered_interval_covers(share, together):
    "In 95 % of made-up collections; with Wilson's too few, where the members of a digit go together"
    g, held = torch.Generator().manual_seed(0), torch.zeros(2)
    for _ in range(600):
        groups = torch.arange(200).repeat_interleave(torch.randint(1, 4, (200,), generator=g))
        own, shared = torch.rand(len(groups), generator=g) < share, (torch.rand(200, generator=g) < share)[groups]
        hits = torch.where((torch.rand(200, generator=g) < together)[groups], shared, own)
        ends = wilson(int(hits.sum()), len(hits)), clustered_interval(hits, groups)
        held += torch.tensor([lo <= share <= hi for lo, hi in ends])
    assert 0.92 <= held[1] / 600 <= 0.985, held
    if together == 1: assert held[0] / 600 < 0.87, held

@FEW
@given(st.lists(st.tuples(st.integers(-3, 9), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_clusters(rows):
    groups, first, second = (torch.tensor(column) for column in zip(*rows))
    lo, hi = clustered_interval(first, groups)
    assert 0 <= lo <= first.double().mean() <= hi <= 1
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert clustered_interval(first[order], groups[order]) == pytest.approx((lo, hi))
    b, c, p = mcnemar(first, second, groups)
    assert mcnemar(second, first, groups) == (c, b, p) and 0 < p <= 1 and b + c <= len(groups.unique())
    from scipy.stats import binomtest
    ahead = [sum(int(f) - int(s) for g, f, s in rows if g == k) for k in {g for g, *_ in rows}]
    assert (b, c) == (sum(a > 0 for a in ahead), sum(a < 0 for a in ahead))
    assert p == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.)

# Collections

@pytest.fixture(scope="module")
def A(net, digits): return AdversarialCollection.build(net, digits.x, digits.y, [Linf(0.2), L2(2.)])

def test_members_are_found_again_one_by_one(A, net, digits):
    assert len(A) and not A.correct(net).any()
    for k in range(min(5, len(A))):
        U = (Linf, L2)[A.norm[k]](A.radius[k].item())
        z = perturb(net, digits.x[A.index[[k]]], A.y[[k]], U)
        torch.testing.assert_close(z, A.x[[k]], rtol=0, atol=1e-5)

def test_every_flipped_sample_is_a_member(A, net, digits):
    flipped = correct(net, digits.x, digits.y) & ~correct(net, perturb(net, digits.x, digits.y, Linf(0.2)), digits.y)
    assert A.index[A.norm == 0].tolist() == flipped.nonzero()[:, 0].tolist()

def test_candidates_that_a_last_bit_saves_are_struck_off():
    "A net whose logits depend on the batch: what counts is what `correct` says of the collection"
    class Fickle(torch.nn.Module):
        def __init__(self): super().__init__(); self.bias = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x):
            z = x.flatten(1)[:, :1] - 0.5 + self.bias
            return torch.cat([z, -z], 1) * (1 if len(x) % 2 == 0 else -1)
    x, y = torch.full((7, 2), 0.9), torch.zeros(7, dtype=torch.int64)
    y[3:] = 1
    A = AdversarialCollection.build(Fickle(), x, y, [Linf(0.1), Linf(0.6)], batch_size=4)
    assert not len(A) or not A.correct(Fickle()).any()

def test_collections_of_all_kinds(net, digits, tmp_path):
    "None to find, no box, all wrong before, another batch size, bfloat16, one set"
    x, y, sets = digits.x, digits.y, [Linf(0.1), L2(1.), L1(1.)]
    none = AdversarialCollection.build(net, x[:20], y[:20], [Linf(0.)])
    assert (len(none), none.tried, none.x.shape[1:]) == (0, int(correct(net, x[:20], y[:20]).sum()), (1, 28, 28)) and "0 by Linf(0.0)" in repr(none)
    refused(none.accuracy, net, match="no members")
    assert none.correct(net).shape == (0,)
    assert AdversarialCollection.build(net, x[:20], (net(x[:20]).argmax(1) + 1) % 10, sets).tried == 0
    free = AdversarialCollection.build(net, x, y, [L1(1.5), Linf(0.2)], box=None)
    assert free.box is None and (free.x < 0).any() and not free.correct(net).any() and len(free)
    for B in (none, free):
        B.save(tmp_path/"B")
        C = AdversarialCollection.load(tmp_path/"B")
        assert torch.equal(B.x, C.x) and B.box == C.box and len(B) == len(C)
    A, again = (AdversarialCollection.build(net, x, y, sets, batch_size=size) for size in (200, 33))
    torch.testing.assert_close(again.x, A.x)
    half = copy.deepcopy(net).bfloat16()
    halves = AdversarialCollection.build(half, x.bfloat16(), y, dict(linf=Linf(0.2)).values())
    assert halves.x.dtype == torch.float32 and not halves.correct(half).any()
    one = AdversarialCollection.build(net, x, y, Linf(0.2))
    assert one.sets == ["Linf(0.2)"] and torch.equal(one.x, AdversarialCollection.build(net, x, y, [Linf(0.2)]).x)
    for wrong in ([], (), [Linf(torch.ones(60))], [0.1], 0.1, None, "Linf", Linf):
        refused(AdversarialCollection.build, net, x, y, wrong, match="sets must be one or more uncertainty sets with one radius each")
    refused(AdversarialCollection.build, net, x[:9], y[:9], sets, recipe="other", match="recipe must be one of")
    refused(AdversarialCollection.build, net, 2 * x, y, sets, match="x must lie in box")
    refused(A.accuracy, MNISTNet("paper"), match="model takes images of the paper recipe")

def tampered(path, A, text=None, **new):
    "Loads A from a file that was made with other contents, and a checksum that fits them"
    about = dict(sets=A.sets, recipe=A.recipe, box=A.box, baseline=A.baseline, tried=A.tried)
    about |= {k: v for k, v in new.items() if k in about}
    save_tensors(path, "collection", {k: new.get(k, getattr(A, k)) for k in ("x", "y", "index", "norm", "radius")}, about=text or json.dumps(about))
    return AdversarialCollection.load(path)

def test_contents_that_do_not_fit(A, net, tmp_path):
    path, n = tmp_path/"A", len(A)
    assert len(tampered(path, A)) == n
    cases = [(dict(x=A.x.double()), "x must be a tensor of torch.float32"), (dict(x=A.x.half()), "x must be a tensor"), (dict(x=A.x * torch.nan), "x must be finite"),
             (dict(x=A.x + 0.5), "x must lie in box"), (dict(x=A.x[:, 0, 0, 0].clone()), "x must have shape (n, ...)"), (dict(y=A.y.int()), "y must be a tensor of torch.int64"),
             (dict(y=A.y - 10), "y must not be negative"), (dict(y=A.y[:-1].clone()), "y must have one value per member"), (dict(index=A.index - 1000), "index must not be negative"),
             (dict(index=A.index * 0), "index must not repeat"), (dict(norm=A.norm + 1), "radius must be that of"), (dict(norm=A.norm + 3), "norm must point into sets"),
             (dict(radius=A.radius * 2), "radius must be that of Linf(0.2)"), (dict(radius=A.radius.double()), "radius must be a tensor"), (dict(radius=A.radius * torch.nan), "radius must be one number"),
             (dict(radius=A.radius + torch.arange(n)), "radius must be one number"), (dict(sets=["Cube(0.1)", *A.sets[1:]]), "sets must name uncertainty sets"), (dict(sets=[]), "sets must be a list"),
             (dict(sets="Linf(0.1)"), "sets must be a list"), (dict(sets=[1, 2, 3]), "sets must name"), (dict(recipe="x"), "recipe must be one of"), (dict(box=(0., 0.5)), "x must lie in box"),
             (dict(box=(1., 0.)), "lo <= hi"), (dict(box=["a", "b"]), "box must be None or two numbers"), (dict(baseline="abc"), "SHA-256"), (dict(tried=3), "tried must cover all members"),
             (dict(tried="3"), "tried must be a count"), (dict(text="[" * 100_000), "damaged"), (dict(text="{"), "damaged"), (dict(text="{}"), "box"), (dict(text='{"box": null}'), "missing")]
    for new, text in cases: refused(tampered, path, A, error=ValueError, match=text, **new)
    refused(tampered(path, A, y=A.y + 9).accuracy, net, match="y must lie in 0 … 9, the model's classes")
    for raw in (b"hello", b""):
        path.write_bytes(raw)
        refused(AdversarialCollection.load, path, error=ValueError, match="is not a collection, or it is damaged")
    save_tensors(path, "net", dict(x=A.x))
    refused(AdversarialCollection.load, path, match="does not hold a collection that robust_nb saved")
    refused(AdversarialCollection.load, tmp_path/"none", error=FileNotFoundError, match="there is no collection")
    for f in (A.save, AdversarialCollection.load): refused(f, None, error=TypeError, match="path must be text or a path object, got None")

def test_collection_keeps_float32(A, net, tmp_path):
    double = AdversarialCollection.build(pretrained().double(), load("mnist5k", device="cpu").test.x[:20].double(), load("mnist5k", device="cpu").test.y[:20], [Linf(0.3)])
    double.save(tmp_path/"a")
    assert AdversarialCollection.load(tmp_path/"a").x.dtype == torch.float32

@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_refused(A, data, tmp_path_factory):
    "A file that was cut or changed anywhere raises ValueError, or holds the very same collection"
    folder = tmp_path_factory.getbasetemp()
    A.save(folder/"whole")
    raw = bytearray((folder/"whole").read_bytes())
    head = 8 + int.from_bytes(raw[:8], "little")
    at = data.draw(st.one_of(st.integers(0, head + 200), st.integers(0, len(raw) - 1)))
    if data.draw(st.booleans()): raw = raw[:at]
    else: raw[at] ^= data.draw(st.integers(1, 255))
    (folder/"damaged").write_bytes(raw)
    try: B = AdversarialCollection.load(folder/"damaged")
    except ValueError as e: assert "is not a collection, or it is damaged" in str(e)
    else: assert all(torch.equal(getattr(A, k), getattr(B, k)) for k in ("x", "y", "index", "norm", "radius")) and all(getattr(A, k) == getattr(B, k) for k in ("sets", "recipe", "box", "baseline", "tried"))

def test_a_failed_save_keeps_the_old_file(A, tmp_path, monkeypatch):
    A.save(tmp_path/"a")
    old = (tmp_path/"a").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): A.save(tmp_path/"a")
    assert (tmp_path/"a").read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a"]

def test_a_set_of_ones_own_is_known_by_its_class(net, digits, tmp_path):
    class Half(Linf):
        def __repr__(self): return f"Half({self.radius}, 0.5)"
    A = AdversarialCollection.build(net, digits.x[:20], digits.y[:20], [Half(0.3)])
    A.save(tmp_path/"a")
    assert AdversarialCollection.load(tmp_path/"a").sets == ["Half(0.3, 0.5)"]

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_another_device(A, digits):
    net = pretrained("baseline", "cuda")
    assert A.correct(net).device.type == "cpu"
    B = AdversarialCollection.build(net, digits.x.cuda(), digits.y.cuda(), [Linf(0.2)])
    assert B.x.device.type == "cpu" and B.accuracy(net) == 0
    assert accuracy_curve(net, digits.x.cuda(), digits.y.cuda(), Linf(0.), [0, 0.1]).device.type == "cpu"

# Plots

def test_importing_plots_changes_nothing():
    code = ("import matplotlib; matplotlib.use('svg'); import matplotlib.pyplot as plt; plt.show = lambda *a, **k: 1/0\n"
            "rc = dict(matplotlib.rcParams); import robust_nb.plots\n"
            "assert matplotlib.get_backend() == 'svg' and not plt.get_fignums() and rc == dict(matplotlib.rcParams)")
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 0, r.stderr

def test_evaluation_needs_no_matplotlib():
    r = subprocess.run([sys.executable, "-c", "import sys, robust_nb.evaluation as e; assert 'matplotlib' not in sys.modules"], capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 0, r.stderr

@pytest.fixture
def plots():
    matplotlib.use("Agg")
    import robust_nb.plots as p
    yield p
    p.plt.close("all")

def test_pairs_ring_what_changed(plots, digits):
    x = digits.x[:4]
    z = x.clone()
    z[1, 0, 3, 20] = 1 - z[1, 0, 3, 20]
    z[2, 0, :2, :2] += 0.5
    z[3] += 0.1
    fig = plots.plot_pairs(x, z, list("abcd"))
    assert [[p.center for p in ax.patches] for ax in fig.axes] == [[], [], [], [], [], [(20, 3)], [(0, 0), (1, 0), (0, 1), (1, 1)], []]
    assert [ax.get_title() for ax in fig.axes[:4]] == list("abcd")

def test_saved_figures_are_whole(plots, digits, tmp_path):
    "Nothing is cut off in a file, which has no tight bounding box"
    figs = [plots.plot_pairs(digits.x[:10], digits.x[:10], ["7 → 3"] * 10), plots.plot_curves({"linf": ([0, 0.1], [1, 0.5])}).figure,
            plots.plot_history([dict(epoch=k, loss=1., accuracy=0.5, test_accuracy=0.5) for k in (1, 2)]).figure]
    for fig in figs:
        fig.savefig(tmp_path/"f.png", dpi=100)
        box, r = fig.bbox, fig.canvas.get_renderer()
        for ax in fig.axes:
            texts = [*ax.texts, ax.title, *([ax.xaxis.label, ax.yaxis.label] if ax.axison else []), *(ax.get_legend().get_texts() if ax.get_legend() else [])]
            for t in texts:
                b = t.get_window_extent(r)
                assert not t.get_text() or box.x0 - 1 <= b.x0 and b.x1 <= box.x1 + 1 and box.y0 - 1 <= b.y0 and b.y1 <= box.y1 + 1, (t.get_text(), b)

def test_curves_take_what_reproduce_gives(plots):
    ax = plots.plot_curves({"baseline": ([0, 0.1], [0.9, 0.2]), "other": (torch.tensor([0., 0.1]), torch.tensor([0.9, 0.5]))}, xlabel="ε")
    assert ax.get_xlabel() == "ε" and [l.get_label() for l in ax.get_lines()] == ["baseline", "other"]
    assert ax.get_lines()[1].get_ydata() == pytest.approx([90, 50]) and ax.get_lines()[1].get_color() not in plots.COLOURS.values()

# The benchmark

def test_benchmark_runs():
    r = subprocess.run([sys.executable, "benchmarks/curve.py", "--samples", "30", "--radii", "3", "--repetitions", "2"], capture_output=True, text=True,
                       cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert r.returncode == 0 and "separate ÷ curve" in r.stdout, r.stdout + r.stderr


def test_another_solver_may_attack():
    torch.manual_seed(0)
    net, x = torch.nn.Linear(6, 4), torch.rand(30, 6)
    y = net(x).argmax(1)
    by_default, by_another = (robust_accuracy(net, x, y, L2(0.3), batch_size=8, solver=f, steps=5) for f in (perturb, multi_targeted))
    assert by_another <= by_default == robust_accuracy(net, x, y, L2(0.3), steps=5)
    with pytest.raises(TypeError, match="solver must be a function"): robust_accuracy(net, x, y, L2(0.3), solver="pgd")


class OwnSet(UncertaintySet):
    "A set of one's own: no norm, no projection"
    def steepest_ascent(self, grad, x=None, box=None, check=True): return Linf(self.radius).steepest_ascent(grad, x, box, check)

def test_a_solver_that_cheats_is_found_out():
    net, x = torch.nn.Linear(6, 4), torch.rand(10, 6)
    y = net(x).argmax(1)
    for solver, error, text in ((lambda m, x, y, U, **k: 1 - x, ValueError, "with Δ in U"), (lambda *a, **k: None, TypeError, "solver must return x . Δ like x"), (lambda m, x, y, U, **k: x.double(), TypeError, "like x")):
        with pytest.raises(error, match=text): robust_accuracy(net, x, y, L2(0.01), solver=solver)
    mask, far = Masked(L2(0.01), torch.tensor([[True] + [False] * 5])), lambda m, x, y, U, **k: x + 5
    for U, solver in ((mask, lambda m, x, y, U, **k: 1 - x), (mask, far), (Ellipsoid(torch.eye(6), 0.01), far), (Subspace(torch.eye(6)[:2], 0.01), far), (OwnSet(0.1), far)):
        with pytest.raises(ValueError, match="with Δ in U and x . Δ in the box"): robust_accuracy(net, x, y, U, solver=solver)
        with pytest.raises(ValueError, match="with Δ in U and x . Δ in the box"): AdversarialCollection.build(net, x, y, U, solver=solver)


def test_a_set_of_ones_own_and_a_plane_without_room_are_measured():
    x, y, net = made_up(n=40)
    assert robust_accuracy(net, x, y, OwnSet(0.1)) == robust_accuracy(net, x, y, Linf(0.1)) and len(AdversarialCollection.build(net, x, y, OwnSet(2.)))
    corner, linear = torch.tensor([[0., 0., 0.5]], dtype=torch.float64), torch.nn.Linear(3, 3).double()
    plane = Subspace(torch.tensor([[1., -1., 0.]]), 0.3)             # no step keeps both pixels in the box
    assert robust_correct(linear, corner, linear(corner).argmax(1), plane).all()
    half = net.bfloat16()
    robust_accuracy(half, (x * 0.75).bfloat16(), y, Linf(0.5), box=(torch.zeros(6), torch.full((6,), 0.8)))


def test_masks_are_counted():
    x, y, net = made_up(n=40)
    for n in (30, 50):
        U = Masked(L2(0.5), torch.rand(n, 6) > 0.5)
        for measure in (lambda: robust_accuracy(net, x, y, U), lambda: accuracy_curve(net, x, y, U, [0.1]), lambda: AdversarialCollection.build(net, x, y, U)):
            with pytest.raises(ValueError, match=f"U has {n} values of fixed, one per sample, but there are 40 samples"): measure()


def test_what_each_sample_has_of_its_own_is_cut_with_the_batches():
    "Masks, radii, step sizes and boxes: all samples in one batch, or in many"
    x, y, net = made_up(n=40)
    masks = torch.arange(6) % 5 == torch.arange(40)[:, None] % 5
    ball, box = Masked(L2(2.), masks), (x - torch.linspace(0, 0.9, 40)[:, None], x + 0.8)
    for U, attack in ((ball, {}), (ball, dict(box=box)), (L2(torch.linspace(0, 4, 40)), dict(box=None, steps=3, step_size=torch.linspace(0, 2, 40)))):
        whole, parts = (robust_correct(net, x, y, U, batch_size=n, **attack) for n in (40, 7))
        assert torch.equal(whole, parts) and 0 < whole.sum() < 30
        shared = robust_correct(net, x, y, U, batch_size=40, solver=sharded(), **attack)
        if attack.get("box"): assert torch.equal(whole, robust_correct(net, x, y, U, batch_size=7, box=torch.stack(box)))
        assert torch.equal(whole, shared)
    for box in ((0., 1.), box):
        whole, parts = (accuracy_curve(net, x, y, ball, [0, 1., 2.], box=box, batch_size=n) for n in (40, 7))
        assert torch.equal(whole, parts) and whole[0] > whole[2]
    whole, parts = (AdversarialCollection.build(net, x, y, [ball], batch_size=n) for n in (40, 7))
    assert torch.equal(whole.index, parts.index) and torch.equal(whole.x, parts.x) and len(whole)
    assert torch.equal((whole.x != x[whole.index]) & masks[whole.index], torch.zeros_like(whole.x, dtype=torch.bool))


def test_a_solver_of_ones_own_meets_the_same_conditions_everywhere():
    "Eval mode, gradients enabled, and a box, in `robust_accuracy` and in `smallest_radius`"
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)).train()
    x, seen = torch.rand(12, 6), []
    y = net.eval()(x).argmax(1)
    def own(model, x, y, U, *, box):
        seen.append((model.training, box))
        leaf = x.clone().requires_grad_()
        grad, = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        return x + U.steepest_ascent(grad, x, box)
    robust_accuracy(net.train(), x, y, L2(0.3), solver=own)
    smallest_radius(net, x, y, L2(0.3), solver=own)
    assert net.training and len(seen) > 1 and set(seen) == {(False, (0., 1.))}


def test_train_mode_leaves_frozen_parts_frozen():
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)).train()
    net[1].eval()
    flags, x = [], torch.rand(12, 6)
    net[1].register_forward_hook(lambda m, *_: flags.append(m.training))
    robust_accuracy(net, x, torch.zeros(12, dtype=torch.int64), L2(0.3), mode="train")
    assert flags and not any(flags) and net.training and not net[1].training
