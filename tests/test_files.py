"Files that are written, killed, damaged, foreign or missing: what does not belong on the pages of `data`, `models` and `checkpoint`"
import contextlib, copy, hashlib, io, os, pickle, random, signal, stat, subprocess, sys, tempfile, threading, urllib.error, urllib.request, zipfile
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from checkout import ROOT
from robust_nb.checkpoint import FORMAT, load_checkpoint, load_tensors, save_checkpoint, save_tensors, tensors_digest, write_atomically
from robust_nb.data import Split, load
from robust_nb.models import MEAN, PRETRAINED, STD, MLP, MNISTNet, load_net, pretrained, save_net, weights_digest

posix = pytest.mark.skipif(os.name != "posix", reason="rights, signals and forks of POSIX")

def child(code, *args, **kw):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, args)], env=env, capture_output=True, text=True, timeout=120, **kw)

def names(folder): return sorted(p.name for p in folder.iterdir())


# A write that is killed, starved or raced

@posix
@pytest.mark.parametrize("death", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_killed_before_the_rename(tmp_path, death):
    "All bytes are on the disk, the name is not taken over yet"
    path = tmp_path/"net"
    path.write_bytes(b"old")
    r = child(f"import os, signal, sys\nfrom robust_nb.checkpoint import write_atomically\nos.fsync = lambda f: {death}\nwrite_atomically(sys.argv[1], b'new')", path)
    assert r.returncode in (7, -signal.SIGKILL), r.stderr
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2 and names(tmp_path)[0].startswith(".net."), "a hidden part is left, and nothing else"
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from robust_nb.checkpoint import write_atomically
path, contents, rng = Path(sys.argv[1]), [bytes([k]) * 2_000_000 for k in range(4)], random.Random(0)
write_atomically(path, contents[0])
for k in range(25):
    if not (pid := os.fork()):
        while True:
            for c in contents: write_atomically(path, c)
    time.sleep(rng.uniform(0.002, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if path.read_bytes() not in contents: sys.exit(f"a part, after kill {k}")
print(len(os.listdir(path.parent)))
"""

@posix
def test_killed_at_random_moments(tmp_path):
    r = child(KILLED, tmp_path/"net")
    assert r.returncode == 0, r.stdout + r.stderr
    assert int(r.stdout) > 1, "no kill fell into a write: the test proves nothing"

@posix
def test_full_disk(tmp_path):
    path = tmp_path/"net"
    path.write_bytes(b"old")
    r = child("import resource, signal, sys\nfrom robust_nb.checkpoint import write_atomically\n"
              "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
              "try: write_atomically(sys.argv[1], bytes(2000))\nexcept OSError as e: print(e)", path)
    assert "cannot be written: File too large" in r.stdout and str(path) in r.stdout, r.stdout + r.stderr
    assert path.read_bytes() == b"old" and names(tmp_path) == ["net"]

def test_readers_and_writers_at_once(tmp_path):
    path, contents, seen, done = tmp_path/"net", [bytes([k]) * 200_000 for k in range(4)], set(), threading.Event()
    write_atomically(path, contents[0])
    def read():
        while not done.is_set(): seen.add(path.read_bytes())
    def write(c):
        for _ in range(25): write_atomically(path, c)
    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(c,)) for c in contents]
    for t in (reader, *writers): t.start()
    for t in writers: t.join()
    done.set(); reader.join()
    assert seen <= set(contents) and names(tmp_path) == ["net"]


# Rights, links, places

@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_rights_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path/"ours", b"")
        (tmp_path/"plain").write_bytes(b"")
    finally: os.umask(before)
    assert (tmp_path/"ours").stat().st_mode == (tmp_path/"plain").stat().st_mode

@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_rights_of_a_replaced_file_stay(tmp_path, mode):
    path = tmp_path/"net"
    path.write_bytes(b"old"); path.chmod(mode)
    write_atomically(path, b"new")
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, b"new")

@contextlib.contextmanager
def not_root():
    "Root may write anywhere: be somebody else for a while"
    root = os.geteuid() == 0
    if root: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)

@posix
def test_unwritable_folder():
    folder = Path(tempfile.mkdtemp())
    (folder/"net").write_bytes(b"old"); folder.chmod(0o555)
    try:
        for path in (folder/"net", folder/"new"/"net"):
            with not_root(), pytest.raises(PermissionError, match="cannot be written: Permission denied") as e: write_atomically(path, b"new")
            assert e.value.filename == os.path.realpath(path)
        assert (folder/"net").read_bytes() == b"old" and names(folder) == ["net"]
    finally:
        folder.chmod(0o755); (folder/"net").unlink(); folder.rmdir()

@posix
def test_links_stay_links(tmp_path):
    (tmp_path/"real").mkdir(); (tmp_path/"real"/"net").write_bytes(b"old")
    for link, to in (("file", "real/net"), ("dangling", "real/new"), ("folder", "real")): (tmp_path/link).symlink_to(to)
    for link, target in (("file", "real/net"), ("dangling", "real/new"), ("folder/net", "real/net")):
        write_atomically(tmp_path/link, link.encode())
        assert (tmp_path/target).read_bytes() == link.encode()
    assert all((tmp_path/o).is_symlink() for o in ("file", "dangling", "folder"))

@posix
def test_devices_are_left_alone(tmp_path):
    os.mkfifo(tmp_path/"pipe")
    for path in (tmp_path/"pipe", "/dev/null"):
        with pytest.raises(IsADirectoryError, match="a folder or a device"): write_atomically(path, b"")
    assert stat.S_ISFIFO((tmp_path/"pipe").stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)

def test_relative_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("net", "a b/ℓ∞ 0.1 … é.bin", "." + "x" * 200, "é" * 100): write_atomically(name, name.encode()); assert Path(name).read_bytes() == name.encode()
    for wrong in ("", ".", "a b/"):
        with pytest.raises(OSError, match="cannot be written"): write_atomically(wrong, b"")
    for wrong in (None, 3.5, b"net", ["net"]):
        for f in (lambda p: write_atomically(p, b""), load_checkpoint, lambda p: save_checkpoint(p, epoch=1), lambda p: load_tensors(p, "net"), lambda p: save_tensors(p, "net", {}),
                  load_net, lambda p: save_net(MNISTNet(), p)):
            with pytest.raises(TypeError, match="path must be text or a path object, got"): f(wrong)
    for wrong in ("text", [1], None):
        with pytest.raises(TypeError, match="data must be bytes"): write_atomically("net", wrong)
    assert Path("net").read_bytes() == b"net" and names(tmp_path/"a b") == ["ℓ∞ 0.1 … é.bin"]


# Checkpoints

STATE = dict(weights=torch.arange(500.), half=torch.ones(3, dtype=torch.bfloat16), random=torch.get_rng_state(), history=[dict(loss=0.5, epoch=1)], about=dict(a=None, b=(1, "ℓ∞"), c=True))

def same(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b

@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path/"last.pt", **STATE)
    return tmp_path/"last.pt"

def test_checkpoint_comes_back(checkpoint): assert same(load_checkpoint(checkpoint), STATE)

@pytest.mark.parametrize("value", [np.float64(1.), np.zeros(3), Path("x"), range(3), nn.Linear(2, 2), lambda: 0, dict(a=[dict(b=np.float32(1.))]), open, Split], ids=repr)
def test_checkpoint_refuses_what_would_not_come_back(checkpoint, value):
    with pytest.raises(TypeError, match="tensors, numbers, text, and lists and dicts of them: odd could not"): save_checkpoint(checkpoint, odd=value, fine=1)
    assert same(load_checkpoint(checkpoint), STATE), "the old file stays"

def test_damage_is_never_read_as_numbers(checkpoint):
    "Whatever bits flip or bytes are missing: a ValueError, or the state as it was"
    whole, rng, refused = checkpoint.read_bytes(), random.Random(0), 0
    for k in range(400):
        raw = bytearray(whole)
        if k % 4 == 0: raw = raw[:rng.randrange(len(raw))]
        else:
            for _ in range(rng.choice((1, 1, 5))): raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        checkpoint.write_bytes(raw)
        try: assert same(load_checkpoint(checkpoint), STATE)
        except ValueError as e: refused += str(checkpoint) in str(e)
    assert refused > 200

def test_foreign_checkpoints(checkpoint):
    def archive(name, data):
        with zipfile.ZipFile(b := io.BytesIO(), "w") as z: z.writestr(name, data)
        return b.getvalue()
    old = io.BytesIO()
    torch.save(dict(format=FORMAT), old, _use_new_zipfile_serialization=False)
    scripted = archive("x/constants.pkl", b"") , archive("hello.txt", b"hello"), archive("archive/data.pkl", b"nonsense")
    for raw in (b"", b"PK", pickle.dumps(STATE["history"]), old.getvalue(), random.Random(0).randbytes(500), *scripted):
        checkpoint.write_bytes(raw)
        with pytest.raises(ValueError, match="is damaged or not a checkpoint"): load_checkpoint(checkpoint)

class Trap:
    "Makes a file when it is unpickled; harmless, and enough to see that code ran"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (Path(self.path),)

def test_no_file_runs_code(tmp_path):
    sprung, file = tmp_path/"sprung", tmp_path/"trap"
    b = io.BytesIO(); torch.save(dict(format=FORMAT, model=Trap(sprung)), b)
    for raw in (b.getvalue(), pickle.dumps(Trap(sprung)), pickle.dumps(dict(format=FORMAT, x=Trap(sprung)))):
        file.write_bytes(raw)
        for read in (load_checkpoint, load_net):
            with pytest.raises(ValueError): read(file)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap itself works"


# Tensors with a checksum

TENSORS = dict(w=torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), n=torch.arange(7), half=torch.ones(3, dtype=torch.bfloat16), none=torch.zeros(0, 4), one=torch.tensor(2.5), yes=torch.tensor([True, False]))

def test_tensors_come_back(tmp_path):
    save_tensors(tmp_path/"t", "table", TENSORS, about="ℓ∞", more="")
    tensors, texts = load_tensors(str(tmp_path/"t"), "table")
    assert len(tensors) == len(TENSORS) and same({k: tensors[k] for k in TENSORS}, TENSORS)
    assert texts == dict(about="ℓ∞", more="")
    save_tensors(tmp_path/"t", "table", dict(a=torch.arange(12.).view(3, 4).t()))
    assert torch.equal(load_tensors(tmp_path/"t", "table")[0]["a"], torch.arange(12.).view(3, 4).t())

def test_every_change_is_noticed(tmp_path):
    "Whatever byte changes, anywhere in the file: a ValueError, or all as it was (a byte of padding)"
    save_tensors(tmp_path/"t", "table", TENSORS, about="ℓ∞")
    whole, rng, refused = (tmp_path/"t").read_bytes(), random.Random(0), 0
    for k in range(len(whole)):
        raw = bytearray(whole)
        raw[k] = rng.choice([b for b in range(256) if b != whole[k]])
        (tmp_path/"t").write_bytes(raw)
        try: tensors, texts = load_tensors(tmp_path/"t", "table")
        except ValueError as e: refused += "is not a table, or it is damaged" in str(e)
        else: assert same({k: tensors[k] for k in TENSORS}, TENSORS) and texts == dict(about="ℓ∞")
    assert refused > 0.95 * len(whole)

def test_digest_of_weights():
    "Result files quote it: SHA-256 of names and bytes, in the order of the names"
    for net in (MNISTNet(), MLP(5, 4, 3).double(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()):
        h = hashlib.sha256()
        for k, v in sorted(net.state_dict().items()): h.update(k.encode() + bytes(v.reshape(-1).view(torch.uint8).tolist()))
        assert weights_digest(net) == tensors_digest(net.state_dict()) == h.hexdigest()
    net = MNISTNet()
    assert weights_digest(net) == weights_digest(copy.deepcopy(net).to(memory_format=torch.channels_last)) != weights_digest(MNISTNet())

# Nets

def plain_net():
    return nn.Sequential(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, 10))

def test_weights_go_into_plain_pytorch(tmp_path):
    "The file needs nothing of this package: its tensors are those of the paper's layers, in their order"
    torch.manual_seed(0)
    net, plain, x = MNISTNet(), plain_net(), torch.rand(5, 1, 28, 28)
    save_net(net, tmp_path/"net")
    state = load_file(tmp_path/"net")
    for layer, name in zip([l for l in plain if hasattr(l, "weight")], ("conv1", "conv2", "fc1", "fc2")):
        layer.load_state_dict({k: state[f"{name}.{k}"] for k in ("weight", "bias")})
    torch.testing.assert_close(plain((nn.functional.pad(x, [2] * 4) - MEAN) / STD), net(x))

@pytest.mark.parametrize("net", [MNISTNet(), MNISTNet("paper"), MLP(12, 5, 3)], ids=repr)
def test_nets_copy_and_pickle(net):
    x = torch.rand(2, 1, net.side, net.side) if isinstance(net, MNISTNet) else torch.rand(2, 3, 4)
    b = io.BytesIO(); torch.save(net, b); b.seek(0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(b, weights_only=False)):
        assert torch.equal(twin(x), net(x))
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in net.parameters()}

def test_pickled_net_in_another_process(tmp_path):
    net, x = MNISTNet(), torch.rand(2, 1, 28, 28)
    torch.save((net, x, net(x).detach()), tmp_path/"net.pt")
    r = child("import sys, torch\nnet, x, z = torch.load(sys.argv[1], weights_only=False)\ntorch.testing.assert_close(net(x), z)", tmp_path/"net.pt")
    assert r.returncode == 0, r.stderr

@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained(name):
    net = pretrained(name)
    assert net.recipe == "pixel" and not net.training and isinstance(net.about, dict) and all(p.isfinite().all() for p in net.parameters())

@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("where", ["conv1.weight", "fc2.bias"])
def test_weights_that_are_no_numbers(tmp_path, value, where):
    "1e300 is a number in float64, not in the float32 of the file"
    net = MNISTNet().double()
    net.state_dict()[where].view(-1)[1] = value
    with pytest.raises(ValueError, match=f"net must have finite weights, but there is NaN or infinity in {where}"): save_net(net, tmp_path/"net")
    assert names(tmp_path) == []
    weights = {k: v.float() for k, v in net.state_dict().items()}
    save_tensors(tmp_path/"net", "net", weights, net="MNISTNet", recipe="pixel", about="{}")
    with pytest.raises(ValueError, match=f"net does not fit MNISTNet: net must have finite weights, but there is NaN or infinity in {where}"): load_net(tmp_path/"net")

def test_a_changed_weight_is_noticed(tmp_path):
    save_net(MNISTNet(), tmp_path/"net")
    whole = (tmp_path/"net").read_bytes()
    for k in (-1, -1000, -len(whole) // 2):
        raw = bytearray(whole); raw[k] ^= 1
        (tmp_path/"net").write_bytes(raw)
        with pytest.raises(ValueError, match="its SHA-256 is not that of what it holds"): load_net(tmp_path/"net")

def test_net_that_is_cut_anywhere(tmp_path):
    save_net(MNISTNet(), tmp_path/"net")
    whole = (tmp_path/"net").read_bytes()
    for n in (0, 1, 8, 9, 100, 700, len(whole) // 2, len(whole) - 1):
        (tmp_path/"cut").write_bytes(whole[:n])
        with pytest.raises(ValueError, match="is not a safetensors file, or it is cut short"): load_net(tmp_path/"cut")
    (tmp_path/"cut").write_bytes(whole + b"more")
    with pytest.raises(ValueError): load_net(tmp_path/"cut")

def test_failed_save_leaves_the_old_net(tmp_path, monkeypatch):
    net = MNISTNet()
    save_net(net, tmp_path/"net", dict(seed=0))
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"): save_net(MNISTNet(), tmp_path/"net", dict(seed=1))
    assert load_net(tmp_path/"net").about == dict(seed=0) and names(tmp_path) == ["net"]


# Data

def idx(a):
    "The bytes of an idx file: magic number, sizes, values"
    return bytes([0, 0, 8, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape) + a.numpy().tobytes()

@pytest.fixture
def mnist(tmp_path):
    "A folder with torchvision's four files of a made-up MNIST: {file name: tensor}"
    raw, g = tmp_path/"root"/"MNIST"/"raw", torch.Generator().manual_seed(0)
    raw.mkdir(parents=True)
    arrays = {}
    for part, n in (("train", 12), ("t10k", 7)):
        arrays[f"{part}-images-idx3-ubyte"] = torch.randint(256, (n, 28, 28), generator=g, dtype=torch.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = torch.arange(n, dtype=torch.uint8) % 10
    for name, a in arrays.items(): (raw/name).write_bytes(idx(a))
    return tmp_path/"root", arrays

@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__): raise urllib.error.URLError("no route to host")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)

def test_mnist_files(mnist, monkeypatch, no_network):
    root, arrays = mnist
    d = load("mnist", root=root, device="cpu")
    assert torch.equal((d.train.x[:, 0] * 255).round().byte(), arrays["train-images-idx3-ubyte"]) and d.train.x.max() <= 1
    assert torch.equal(d.test.y, arrays["t10k-labels-idx1-ubyte"].long()) and d.classes == list("0123456789")
    assert (d.name, d.box, d.recipe, d.train.x.dtype) == ("mnist", (0., 1.), "pixel", torch.float32)
    assert load("mnist", root=str(root), device="cpu", download=True).test.digest() == d.test.digest(), "what is there is not downloaded"
    monkeypatch.setenv("ROBUST_NB_DATA", str(root))
    assert load("mnist", device="cpu").train.digest() == d.train.digest()
    monkeypatch.setenv("HOME", str(root.parent))
    assert load("mnist", root="~/root", device="cpu").train.digest() == d.train.digest()
    monkeypatch.chdir(root.parent); root.rename("data")
    for unset in ("", None):
        monkeypatch.setenv("ROBUST_NB_DATA", unset) if unset is not None else monkeypatch.delenv("ROBUST_NB_DATA")
        assert load("mnist", device="cpu").train.digest() == d.train.digest(), "./data is the default"

@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_mnist_files(mnist, name):
    root, _ = mnist
    file = root/"MNIST"/"raw"/name
    whole = file.read_bytes()
    for raw in (whole[:-1], whole[:10], b"", b"nonsense" * 10, whole[:4] + bytes(4) + whole[8:]):
        file.write_bytes(raw)
        with pytest.raises(ValueError, match="damaged.*remove them"): load("mnist", root=root)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="download=True"): load("mnist", root=root)

@pytest.mark.parametrize("name, else_", [("mnist", "mnist5k"), ("cifar10", "a folder")])
def test_missing_data(tmp_path, no_network, name, else_):
    with pytest.raises(FileNotFoundError, match=f"{name} is not in .*root=.*ROBUST_NB_DATA.*download=True.*{else_}"): load(name, root=tmp_path)
    with pytest.raises(FileNotFoundError, match="is not in"): load(name, root=tmp_path/"no"/"such"/"folder")
    assert names(tmp_path) == [], "a look leaves nothing behind"
    with pytest.raises(OSError, match=f"(?s)could not download {name}.*no route to host.*{else_}"): load(name, root=tmp_path, download=True)
    with pytest.raises(FileNotFoundError): load(name, root=tmp_path)

def image(path, mode, size=(6, 5), value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)

def folder_of(path, mode="L", suffix="png", **kw):
    for part in ("train", "test"):
        for c in ("no", "yes"): image(path/part/c/f"a.{suffix}", mode, **kw)
    return path

@pytest.mark.parametrize("mode, suffix, channels", [("1", "png", 1), ("L", "png", 1), ("LA", "png", 1), ("P", "png", 3), ("RGB", "png", 3), ("RGBA", "png", 3), ("RGB", "jpg", 3), ("L", "jpg", 1), ("CMYK", "jpg", 3), ("RGB", "bmp", 3)])
def test_folder_of_each_kind(tmp_path, mode, suffix, channels):
    value = 255 if mode == "1" else 200
    d = load(folder_of(tmp_path/"mine", mode, suffix, value=value), device="cpu")
    assert d.train.x.shape == (2, channels, 5, 6) and d.classes == ["no", "yes"] and d.train.y.tolist() == [0, 1] and d.name == "mine"
    torch.testing.assert_close(d.test.x, torch.full_like(d.test.x, value / 255), rtol=0, atol=0.02)
    assert load(str(tmp_path/"mine"), size=4, device="cpu").test.x.shape == (2, channels, 4, 4)

def test_folders_that_do_not_fit(tmp_path):
    def refused(path, error, text):
        with pytest.raises(error, match=text): load(path)
    refused(tmp_path, FileNotFoundError, "train is missing")
    mixed = folder_of(tmp_path/"mixed"); image(mixed/"test"/"no"/"b.png", "RGB")
    refused(mixed, ValueError, "differ in")
    apart = folder_of(tmp_path/"apart")
    for c in ("no", "yes"): image(apart/"test"/c/"a.png", "RGB")
    refused(apart, ValueError, "images of one shape")
    deep = folder_of(tmp_path/"deep"); Image.fromarray(np.zeros((5, 6), np.uint16)).save(deep/"train"/"no"/"a.png")
    refused(deep, ValueError, "a.png cannot be read: it has more than 8 bits")
    cut = folder_of(tmp_path/"cut", size=(60, 50)); file = cut/"train"/"yes"/"a.png"; file.write_bytes(file.read_bytes()[:-30])
    refused(cut, ValueError, "a.png cannot be read")
    fake = folder_of(tmp_path/"fake"); (fake/"train"/"no"/"a.png").write_bytes(b"no image")
    refused(fake, ValueError, "a.png cannot be read")
    none = folder_of(tmp_path/"none"); (none/"test"/"maybe").mkdir()
    refused(none, FileNotFoundError, "maybe")
    other = folder_of(tmp_path/"other"); image(other/"test"/"maybe"/"a.png", "L")
    refused(other, ValueError, "the same classes")
    bare = tmp_path/"bare"; (bare/"train").mkdir(parents=True); (bare/"test").mkdir()
    refused(bare, FileNotFoundError, "bare")

def test_loads_are_independent():
    "The bytes are read once; what a caller does to its images stays with the caller"
    a = load("mnist5k", device="cpu")
    digest = a.test.digest()
    a.test.x.zero_(); a.train.y.zero_()
    b = load("mnist5k", device="cpu")
    assert b.test.digest() == digest and b.train.y.max() == 9

def test_loading_a_net_draws_no_random_numbers():
    torch.manual_seed(1)
    a = torch.rand(3)
    torch.manual_seed(1)
    pretrained("linf")
    assert torch.equal(a, torch.rand(3))
