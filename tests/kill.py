"""Runs of `fit` that are killed with SIGKILL at random moments and resumed. Are the final weights those of the run that nobody killed, bit for bit? Is any file half written?
    python tests/kill.py [--runs 20] [--seed 0]"""
import argparse, hashlib, os, random, signal, sys, tempfile, time
from pathlib import Path
import torch
from torch import nn
from robust_nb.checkpoint import load_checkpoint
from robust_nb.data import Split
from robust_nb.objectives import Robust
from robust_nb.training import fit
from robust_nb.uncertainty import Linf

EPOCHS = 40

class Noted(Robust):
    "Writes down before which epoch it starts to train"
    def on_epoch(self, epoch):
        super().on_epoch(epoch)
        self.first = epoch                        # 0 once more before a state is loaded, then the epoch that comes

    def __call__(self, *args):
        if self.first is not None: Path(self.folder, "first").write_text(str(self.first))
        self.first = None
        return super().__call__(*args)

    def __repr__(self): return f"Noted({self.U})"

def train(folder):
    "Short epochs and large files, so that many a kill falls on a file that is being written; dropout and random starts draw from a generator"
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    data = Split(torch.rand(400, 1, 28, 28, generator=g), torch.randint(10, (400,), generator=g))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Dropout(), nn.Linear(300, 10))
    objective = Noted(Linf(0.1), random_start=True)
    objective.folder = folder
    fit(net, data, objective, epochs=EPOCHS, device="cpu", checkpoint=folder, resume=True, progress=False)
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()
    Path(folder, "weights").write_text(weights)

def started(folder):
    "A process that trains; forked from this one, which has computed nothing yet"
    pid = os.fork()
    if pid: return pid
    try: train(folder)
    except BaseException as e: print(f"{type(e).__name__}: {e}", file=sys.stderr); os._exit(1)
    os._exit(0)

def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def check_first(folder, at, run):
    "Stops unless the process went on where the files were; it may have been killed before it could say, or in the middle of it"
    file = Path(folder, "first")
    first = file.read_text() if file.exists() else ""
    if first and at and int(first) < (at[-1] or 0): sys.exit(f"run {run} began again at epoch {first}, after {at[-1]}")

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--runs", type=int, default=20), p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    draw, same, killed, writing = random.Random(a.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if ended(started(folder)): sys.exit("the run that nobody kills failed")
        seconds, weights = time.perf_counter() - start, Path(folder, "weights").read_text()
    for run in range(a.runs):
        with tempfile.TemporaryDirectory() as folder:
            at = []
            while True:
                pid, wait = started(folder), draw.uniform(0, seconds)
                time.sleep(wait)
                os.kill(pid, signal.SIGKILL)
                code = ended(pid)
                if code == 0 and at: break                                 # it was done before
                if code == 0:                                              # and nobody killed it: once more, sooner
                    seconds = wait
                    for f in Path(folder).iterdir(): f.unlink()
                    continue
                if code != -signal.SIGKILL: sys.exit(f"run {run} ended with {code}, and was not killed")
                killed += 1
                check_first(folder, at, run)
                states = [load_checkpoint(f) for f in Path(folder).glob("*.pt")]      # raises for a file that is half written
                writing += any(f.name.startswith(".") for f in Path(folder).iterdir())
                at.append(max((s["epoch"] for s in states), default=None))
                Path(folder, "first").unlink(missing_ok=True)
                if len(at) == 3:
                    if ended(started(folder)): sys.exit(f"run {run} could not be resumed")
                    check_first(folder, at, run)
                    break
            hit = Path(folder, "weights").read_text() == weights
            left = [f.name for f in Path(folder).iterdir() if f.name.startswith(".")]
            same += hit and not left
            print(f"run {run}: killed after epoch {', '.join(map(str, at)) or 'none'}; the same weights: {hit}" + (f"; left behind: {left}" if left else ""), flush=True)
    print(f"{same} of {a.runs} runs ended with the same weights; {killed} kills, {writing} of them while a file was being written, {seconds:.1f} s for a run that nobody kills")
    sys.exit(same != a.runs or not killed)

if __name__ == "__main__": main()
