"What the page on perturbations does not show: properties on random input, the state of the model, odd types, no waiting for a GPU."
import contextlib, copy, math, warnings
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from robust_nb import models
from robust_nb.objectives import Robust, Standard
from robust_nb.perturbation import check_labels, check_logits, cross_entropy, in_mode, log_odds, perturb, shift, value_and_gradient
from robust_nb.uncertainty import L1, L2, Linf

BALLS = [Linf, L2, L1]
CLASSES = 4
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])

def mlp(d=6, dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, CLASSES)).to(dtype)

NET = mlp()

@st.composite
def batches(draw, dtype=torch.float64, least=1):
    "x in [0, 1], some of its entries on the bounds, and y"
    n, seed = draw(st.integers(least, 5)), draw(st.integers(0, 2 ** 31))
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, 1, 2, 3, generator=g, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1).to(dtype)
    return x, torch.randint(0, CLASSES, (n,), generator=g)

balls = st.sampled_from(BALLS)
radii = st.floats(0, 3, allow_subnormal=False)
boxes = st.sampled_from([(0., 1.), None, (-1., 1.5)])
solvers = st.fixed_dictionaries(dict(steps=st.integers(1, 4), targeted=st.booleans(), random_start=st.booleans(), restarts=st.integers(1, 3)))
plain = st.fixed_dictionaries(dict(steps=st.integers(1, 4), targeted=st.booleans()))
odds = lambda z, y, net=NET: log_odds(net(z), y).detach()


# Properties of the result

@quick
@given(batches(), balls, radii, boxes, solvers, st.floats(0, 1) | st.none())
def test_result_lies_in_set_and_box(batch, ball, r, box, solver, share):
    x, y = batch
    before, U = x.clone(), ball(r)
    z = perturb(NET, x, y, U, box=box, step_size=None if share is None else share * r, generator=torch.Generator().manual_seed(0), **solver)
    assert z.shape == x.shape and z.dtype == x.dtype and not z.requires_grad and torch.equal(x, before)
    assert U.contains(z - x, tol=1e-9).all()
    if box: assert ((z >= box[0]) & (z <= box[1])).all()

@quick
@given(batches(dtype=torch.float32), balls, st.floats(0, 1), plain, st.sampled_from([torch.bfloat16, torch.float16]))
def test_rounding_never_leaves_set_or_box(batch, ball, r, solver, dtype):
    x, y = batch
    x, U = x.to(dtype), ball(r)
    z = perturb(mlp(dtype=dtype), x, y, U, **solver)
    assert z.dtype == dtype and ((z >= 0) & (z <= 1)).all()
    assert U.contains(z.double() - x.double(), tol=1e-6).all()

@quick
@given(batches(), balls, radii, boxes, plain)
def test_alone_as_in_the_batch(batch, ball, r, box, solver):
    x, y = batch
    alone = torch.cat([perturb(NET, x[i:i+1], y[i:i+1], ball(r), box=box, **solver) for i in range(len(x))])
    assert_close(alone, perturb(NET, x, y, ball(r), box=box, **solver), rtol=0, atol=1e-9)

@quick
@given(batches(), balls, st.lists(radii, min_size=5, max_size=5), plain)
def test_radius_per_sample(batch, ball, rs, solver):
    x, y = batch
    r = torch.tensor(rs[:len(x)], dtype=torch.float64)
    each = torch.cat([perturb(NET, x[i:i+1], y[i:i+1], ball(rs[i]), **solver) for i in range(len(x))])
    assert_close(perturb(NET, x, y, ball(r), **solver), each, rtol=0, atol=1e-6)

@quick
@given(batches(least=0), balls, boxes, solvers)
def test_radius_zero_returns_x(batch, ball, box, solver):
    x, y = batch
    assert torch.equal(perturb(NET, x, y, ball(0.), box=box, **solver), x)

@quick
@given(batches(), balls, radii, boxes, st.integers(2, 5), st.booleans())
def test_ascent_never_falls_below_one_step_or_none(batch, ball, r, box, steps, targeted):
    x, y = batch
    sign = -1 if targeted else 1
    at = lambda z: sign * odds(z, y)
    one, many = (perturb(NET, x, y, ball(r), steps=n, box=box, targeted=targeted) for n in (1, steps))
    assert (at(many) >= torch.maximum(at(one), at(x))).all()

@quick
@given(batches(), balls, radii, st.integers(1, 3), st.integers(2, 4), st.integers(0, 99))
def test_restarts_never_lower_the_loss(batch, ball, r, steps, restarts, seed):
    x, y = batch
    run = lambda k: odds(perturb(NET, x, y, ball(r), steps=steps, restarts=k, random_start=True, generator=torch.Generator().manual_seed(seed)), y)
    assert (run(restarts) >= run(1)).all()

@quick
@given(batches(), balls, radii, boxes)
def test_same_step_for_cross_entropy(batch, ball, r, box):
    x, y = batch
    assert_close(*(perturb(NET, x, y, ball(r), box=box, loss=f) for f in (log_odds, cross_entropy)), rtol=0, atol=1e-9)

def test_restarts_are_kept_per_sample():
    x, y = torch.rand(40, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(40) % CLASSES
    run = lambda k: odds(perturb(NET, x, y, Linf(0.5), steps=1, random_start=True, restarts=k, generator=torch.Generator().manual_seed(1)), y)
    better = run(4) > run(1)
    assert better.any() and not better.all()
    assert not torch.equal(*(perturb(NET, x, y, Linf(0.5), steps=2, restarts=k, generator=torch.Generator().manual_seed(1)) for k in (1, 4)))

def test_gradients_are_those_of_single_samples():
    value, grad = value_and_gradient(NET, X, Y)
    for i in range(len(X)):
        v, g = value_and_gradient(NET, X[i:i+1], Y[i:i+1])
        assert_close(v, value[i:i+1]), assert_close(g, grad[i:i+1])

def test_first_step_is_the_step_of_14():
    "With a model that one step solves, the ascent returns that very step"
    line, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), torch.rand(9, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    for ball in BALLS:
        one, many = (perturb(line, x, torch.zeros(9, dtype=torch.long), ball(0.7), steps=n) for n in (1, 3))
        value = [odds(z, torch.zeros(9, dtype=torch.long), line) for z in (one, many)]
        assert_close(*value)
        assert (value[1] >= value[0]).all()

def test_constant_steps():
    x, y = torch.full((1, 1, 2, 3), 0.5, dtype=torch.float64), torch.tensor([0])
    for n in (1, 2, 3):
        z = perturb(NET, x, y, Linf(0.4), steps=n, step_size=0.01)
        assert (z - x).abs().max() <= n * 0.01 + 1e-12 and odds(z, y) > odds(x, y)
    each = torch.tensor([0.01, 0.02], dtype=torch.float64)
    z = perturb(NET, x.expand(2, -1, -1, -1), y.expand(2), Linf(0.4), steps=1, step_size=each)
    assert_close((z - x).flatten(1).abs().amax(1), each)

def test_misclassified_points_move_on():
    x = torch.rand(30, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    y = (NET(x).argmax(1) + 1) % CLASSES
    assert (odds(x, y) > 0).any() and (odds(perturb(NET, x, y, Linf(0.1), steps=5), y) > odds(x, y)).all()

def test_zero_gradient_stays():
    dead = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES))
    nn.init.zeros_(dead[1].weight)
    x = torch.rand(3, 1, 2, 3)
    with pytest.warns(UserWarning, match='exactly 0 for 3 of 3 samples'):
        for ball in BALLS: assert torch.equal(perturb(dead, x, torch.zeros(3, dtype=torch.long), ball(1.), steps=2), x)


# The losses

@quick
@given(st.integers(0, 9999), st.sampled_from([1., 30., 300., 1e4]), st.integers(2, 12))
def test_log_odds(seed, scale, k):
    g = torch.Generator().manual_seed(seed)
    z, y = scale * torch.randn(6, k, generator=g, dtype=torch.float64), torch.randint(0, k, (6,), generator=g)
    others = torch.ones(6, k, dtype=torch.bool).scatter(1, y[:, None], False)
    expected = z[others].view(6, k - 1).logsumexp(1) - z[range(6), y]
    assert_close(log_odds(z, y), expected)
    assert_close(cross_entropy(z, y), F.cross_entropy(z, y, reduction='none'))
    assert_close(log_odds(z.float(), y), expected.float(), rtol=1e-5, atol=1e-5 * scale)
    leaf = z.clone().requires_grad_()
    grad, = torch.autograd.grad(log_odds(leaf, y).sum(), leaf)
    assert_close(grad[range(6), y], -torch.ones(6, dtype=torch.float64))
    assert_close(grad.sum(1), torch.zeros(6, dtype=torch.float64))

def test_losses_have_second_derivatives():
    z, y = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.tensor([0, 1, 3])
    for f in (log_odds, cross_entropy): assert torch.autograd.gradcheck(lambda z: f(z, y), z) and torch.autograd.gradgradcheck(lambda z: f(z, y), z)

def test_losses_take_other_types():
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 3])
    for dtype in (torch.bfloat16, torch.float16): assert log_odds(z.to(dtype), y).dtype == torch.float32
    assert_close(log_odds(z, y.int()), log_odds(z, y))
    with pytest.raises(ValueError, match='logits must have shape'): log_odds(z, y[:, None])
    with pytest.raises(ValueError, match='logits must have shape'): log_odds(z[0], y)


# The state that is left behind

class Everything(nn.Module):
    "BatchNorm, one of them frozen, dropout, and a buffer that is replaced instead of written into"
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen, self.drop, self.out = nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(18, CLASSES)
        self.register_buffer('seen', torch.zeros(()))
    def forward(self, x):
        if self.training: self.seen = self.seen + len(x)
        return self.out(self.drop(self.frozen(self.norm(self.conv(x)))).flatten(1))

@pytest.mark.parametrize('mode', ['eval', 'train'])
@pytest.mark.parametrize('solver', [dict(), dict(steps=3), dict(restarts=2, steps=2)], ids=['step', 'ascent', 'restarts'])
def test_model_is_left_as_it_was(mode, solver):
    torch.manual_seed(0)
    model, x, y = Everything(), torch.rand(8, 1, 2, 3), torch.arange(8) % CLASSES
    model.frozen.eval(), model.out.weight.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    flags, state, wants = [m.training for m in model.modules()], copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    same = {k: v.data_ptr() for k, v in model.state_dict().items()}
    perturb(model, x, y, L2(1.), mode=mode, **solver)
    assert [m.training for m in model.modules()] == flags and [p.requires_grad for p in model.parameters()] == wants
    for k, v in model.state_dict().items(): assert torch.equal(v, state[k]) and v.data_ptr() == same[k], k
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight)) and model.out.bias.grad is None

def test_model_is_left_as_it_was_when_it_raises():
    model = Everything()
    model.drop.eval()
    flags = [m.training for m in model.modules()]
    for mode in ('eval', 'train'):
        with pytest.raises(ZeroDivisionError):
            with in_mode(model, mode):
                model(torch.rand(2, 1, 2, 3))
                1 / 0
        assert [m.training for m in model.modules()] == flags and model.seen == 0 and model.norm.num_batches_tracked == 0

def test_modes():
    model = Everything()
    model.frozen.eval()
    with in_mode(model, 'train'): assert model.norm.training and not model.frozen.training
    with in_mode(model, 'eval'): assert not any(m.training for m in model.modules())
    model.eval()
    with in_mode(model, 'train'): assert all(m.training for m in model.modules())
    assert not any(m.training for m in model.modules())

def test_global_random_numbers_are_left_alone():
    x, y = torch.rand(3, 1, 2, 3).double(), torch.zeros(3, dtype=torch.long)
    before = torch.get_rng_state()
    for solver in (dict(), dict(steps=3), dict(random_start=True, restarts=2, generator=torch.Generator())): perturb(NET, x, y, L1(1.), **solver)
    assert torch.equal(before, torch.get_rng_state())
    perturb(NET, x, y, L1(1.), random_start=True)
    assert not torch.equal(before, torch.get_rng_state())

@pytest.mark.parametrize('around', [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize('solver', [dict(), dict(steps=2, restarts=2, generator=True)], ids=['step', 'restarts'])
def test_surroundings(around, solver):
    x, y = torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2])
    run = lambda x, y: perturb(NET, x, y, L2(1.), **solver | (dict(generator=torch.Generator().manual_seed(0)) if solver else {}))
    expected = run(x, y)
    with around():
        assert torch.equal(run(x, y), expected)
        assert torch.equal(run(x.clone(), y.clone()), expected)      # made here: inference tensors where the block is inference_mode
    leaf = x.clone().requires_grad_()
    assert not run(leaf, y).requires_grad and leaf.grad is None

def test_channels_last():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    for ball in BALLS:
        for steps in (1, 3):
            z = perturb(net, x.to(memory_format=torch.channels_last), y, ball(0.5), steps=steps)
            assert z.is_contiguous(memory_format=torch.channels_last)
            assert_close(z, perturb(net, x, y, ball(0.5), steps=steps), rtol=0, atol=1e-4)

@pytest.mark.parametrize('ball', BALLS)
def test_bfloat16_model(ball):
    half, x = mlp(dtype=torch.bfloat16), torch.rand(6, 1, 2, 3)
    y = torch.arange(6) % CLASSES
    z = perturb(half, x.bfloat16(), y, ball(0.5), steps=3)
    assert z.dtype == torch.bfloat16 and (odds(z, y, half) >= odds(x.bfloat16(), y, half)).all()
    with torch.autocast('cpu', torch.bfloat16): z = perturb(mlp(dtype=torch.float32), x, y, ball(0.5), steps=2)
    assert z.dtype == torch.float32 and ball(0.5).contains(z - x).all()


# Work and waiting

class Watch(TorchDispatchMode):
    "Fails on what would wait for a GPU, and counts gradients of weights"
    weight = 0
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert not any(k in str(op) for k in ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'unique')), f'{op} waits for the device'
        if 'convolution_backward' in str(op): self.weight += bool(args[-1][1])
        return op(*args, **(kwargs or {}))

@pytest.mark.parametrize('ball', BALLS)
@pytest.mark.parametrize('box', [(0., 1.), None])
def test_nothing_waits_without_checks(ball, box):
    net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 64, CLASSES))
    x, y = torch.rand(3, 1, 12, 12), torch.tensor([0, 1, 2])
    for U in (ball(0.3), ball(torch.rand(3))):
        for solver in (dict(), dict(steps=3), dict(steps=2, restarts=2, random_start=True), dict(steps=2, step_size=0.1, targeted=True)):
            with Watch() as watch: perturb(net, x, y, U, box=box, check=False, **solver)
            assert not watch.weight
    with pytest.raises(AssertionError, match='waits'), Watch(): perturb(net, x, y, ball(0.3), box=box)

def test_papers_net_computes_weight_gradients_once():
    x, y, made = torch.rand(4, 1, 28, 28), torch.arange(4), {}
    for objective in (Standard(), Robust(Linf(0.1))):
        net = models.MNISTNet()
        with Watch() as watch: objective(net, x, y).backward()
        made[repr(objective)] = watch.weight
    assert len(set(made.values())) == 1, made


# Boxes, and input that is refused

def test_boxes_of_tensors():
    x, y = torch.rand(2, 3, 1, 2, generator=torch.Generator().manual_seed(0)).double() / 2 + 0.25, torch.tensor([0, 1])
    lo, hi = torch.tensor([0., 0.1, 0.2]).view(3, 1, 1), torch.tensor([1., 0.9, 0.8]).view(3, 1, 1)
    for ball in BALLS:
        for box in ((lo, hi), (0., hi), (lo.double(), 1.)):
            z = perturb(NET, x, y, ball(2.), steps=2, box=box)
            assert z.dtype == x.dtype and ((z >= box[0]) & (z <= box[1])).all() and not torch.equal(z, x)

def test_shift():
    x = torch.rand(5, 7)
    assert torch.equal(shift(x, torch.zeros_like(x)), x)
    assert_close(shift(x, torch.full_like(x, 0.25)), x + 0.25)
    assert torch.equal(shift(x, torch.ones_like(x), (0., 1.)), torch.ones_like(x))
    assert torch.equal(shift(x.bfloat16(), torch.full_like(x, 1e-5)), x.bfloat16())
    with pytest.raises(ValueError, match='delta must have the shape of x'): shift(x, torch.zeros(7))

X, Y = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2, 3])
NAN = X.clone()
NAN[0, 0, 0, 0] = math.nan

class Times(nn.Module):
    "Logits times a number"
    def __init__(self, factor): super().__init__(); self.factor = factor
    def forward(self, x): return NET(x).abs() * self.factor

@pytest.mark.parametrize('error, says, change', [
    (TypeError, 'U must be an UncertaintySet', dict(U=0.1)),
    (TypeError, 'x must be a tensor', dict(x=[[0.]])),
    (TypeError, 'x must be floating point', dict(x=X.long())),
    (TypeError, r'got torch.uint8: for images say x.float\(\) / 255', dict(x=X.byte())),
    (ValueError, 'divide images of 0…255 by 255', dict(x=255 * X)),
    (ValueError, 'x must have shape', dict(x=X[:, 0, 0, 0])),
    (ValueError, 'x must be finite', dict(x=NAN)),
    (ValueError, 'x must lie in box', dict(x=X + 1)),
    (TypeError, 'y must be a tensor of int64', dict(y=[0, 1, 2, 3])),
    (TypeError, 'y must be a tensor of int64', dict(y=Y.double())),
    (ValueError, r'y must have shape \(4,\)', dict(y=Y[:, None])),
    (ValueError, r'y must have shape \(4,\)', dict(y=Y[:3])),
    (ValueError, r'y must lie in 0 … 3.*\[1, 4\]', dict(y=Y + 1)),
    (ValueError, r'y must lie in 0 … 3.*\[-1, 2\]', dict(y=Y - 1)),
    (ValueError, 'y must be on the device of x', dict(y=Y.to('meta'))),
    (ValueError, 'radius', dict(U=Linf(torch.tensor([0.1, 0.2])))),
    (ValueError, 'steps must be an integer', dict(steps=0)),
    (ValueError, 'steps must be an integer', dict(steps=2.)),
    (ValueError, 'steps must be an integer', dict(steps=True)),
    (ValueError, 'restarts must be an integer', dict(restarts=-1)),
    (ValueError, 'step_size must be finite', dict(step_size=-0.1, steps=2)),
    (ValueError, 'step_size must be finite', dict(step_size=math.nan)),
    (TypeError, 'step_size must be', dict(step_size='big')),
    (TypeError, 'box must be', dict(box=1.)),
    (ValueError, 'box must satisfy', dict(box=(1., 0.))),
    (ValueError, "mode must be 'eval' or 'train'", dict(mode='test')),
    (TypeError, 'model must be an nn.Module', dict(model=lambda x: NET(x))),
    (ValueError, 'model must return logits', dict(model=nn.Identity())),
    (ValueError, 'model must return logits', dict(model=nn.Sequential(nn.Flatten(), nn.Linear(6, 1).double()))),
    (ValueError, 'gradient of the loss at x must be finite.*1 of 4', dict(loss=lambda z, y: log_odds(z, y) * torch.tensor([1., math.nan, 1., 1.]))),
    (ValueError, r"loss must return one value per sample, shape \(4,\), got \(\).*reduction='none'", dict(loss=F.cross_entropy)),
    (ValueError, 'loss must depend on x', dict(loss=lambda z, y: log_odds(z, y).detach())),
    (ValueError, 'model must return logits, got probabilities', dict(model=nn.Sequential(NET, nn.Softmax(1)))),
    (ValueError, 'model must return finite logits, got NaN or infinity for 4 of 4', dict(model=Times(math.inf))),
    (ValueError, 'model must return finite logits, got NaN or infinity for 4 of 4', dict(model=Times(math.nan))),
    (TypeError, "the model's weights, torch.float64 on cpu, got torch.float32 on cpu", dict(x=X.float())),
    (ValueError, r'y must lie in 0 … 3.*\[-100, 3\]', dict(y=Y.where(Y > 0, -100))),
    (ValueError, r'step_size must be a number or have shape \(4,\), one per sample, got \(3,\)', dict(step_size=torch.ones(3), steps=2)),
    (ValueError, r'dimensions of x or of one sample, got \(3,\)', dict(box=(torch.zeros(3), 1.))),
    (ValueError, 'box must satisfy lo <= hi', dict(box=(torch.ones(1, 2, 3), torch.zeros(1, 2, 3)))),
])
def test_bad_input_is_named(error, says, change):
    call = dict(model=NET, x=X, y=Y, U=Linf(0.1)) | change
    with pytest.raises(error, match=says): perturb(call.pop('model'), call.pop('x'), call.pop('y'), call.pop('U'), **call)

def test_bad_input_to_parts():
    with pytest.raises(TypeError, match='x must be floating point'): value_and_gradient(NET, X.long(), Y)
    with pytest.raises(ValueError, match='y must have shape'): value_and_gradient(NET, X, Y[:2])
    with pytest.raises(ValueError, match='y must lie in'): check_labels(Y, 4, 3)
    check_labels(Y[:0], 0, 3)

def test_logits_that_look_like_probabilities():
    check_logits(torch.tensor([[0.2, 0.8], [0.2, 0.9]]), 2, values=True)                   # one row that sums to 1 proves nothing
    check_logits(torch.tensor([[-1., 2.], [0.5, 0.5]]), 2, values=True)
    check_logits(torch.tensor([[0.5, 0.5]]), 1)
    check_logits(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).log_softmax(1), 50, values=True)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for k in (2, 10, 1000):
            z = torch.randn(50, k, generator=torch.Generator().manual_seed(0)) * 5
            with pytest.raises(ValueError, match='got probabilities'): check_logits(z.softmax(1).to(dtype), 50, values=True)
            check_logits(z.to(dtype), 50, values=True)

@pytest.mark.parametrize('alive, warned', [(0, True), (1, True), (2, False), (4, False)])
def test_zero_gradients_warn(alive, warned):
    net = Times((torch.arange(4) < alive).double()[:, None])                  # the logits of the others are 0 whatever x is
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        perturb(net, X, Y, Linf(0.1))
        perturb(net, X, Y, Linf(0.1), check=False)                            # reads no values
    assert [str(w.message).split(':')[0] for w in seen] == [f'the gradient of the loss at x is exactly 0 for {4 - alive} of 4 samples'] * warned

@pytest.mark.parametrize('ball', BALLS)
def test_empty_batch(ball):
    for solver in (dict(), dict(steps=2), dict(restarts=2)): assert perturb(NET, X[:0], Y[:0], ball(0.1), **solver).shape == (0, 1, 2, 3)
