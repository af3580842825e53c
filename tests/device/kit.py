"""What a machine with one GPU is asked in at most ten minutes: does it work, how fast is it, how good does it get.

    python tests/device/kit.py --root /path/to/chest_xray --out results/device

Needs the package, torch and lightning, and ZhangLab's folder; films are drawn where ``--root`` is left out. Parts:

a. Every detector of the package trains for 20 steps in float32, in bf16-mixed, with and without resident films,
   resumes, builds its bank, predicts, and exports from the device; its scores are compared with the CPU's.
b. Times of AnatPaste's step at 256² (64 + 64 images) and of SimCLR's with ResNet-50, whole and in parts, beside the
   bare networks.
c. AnatPaste's paper recipe with its schedule cut to the time that is left, and its figures on the test split.

``--tiny`` does the same at the size of a test. Everything is printed and kept in ``report.json``.
"""

import argparse
import copy
import inspect
import json
import logging
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback
from torch.nn import functional as F

import anomalib_cxr.models
from anomalib_cxr.augmentations import jitter_intensity
from anomalib_cxr.data import PhantomCXR, ZhangLab
from anomalib_cxr.metrics import read_predictions
from anomalib_cxr.models import AnatPaste, MultiResPatchSSL
from anomalib_cxr.models.components.step_training import StepTrainingMixin

PUBLISHED_STEPS = 256 * 256
PUBLISHED_AUROC = "91.4 ± 1.3"
RELATIVE = 1e-3
PIECE = 15 * 2**20


class Kit:
    """The machine, the films, the time that is left, and what was found.

    Args:
        root: ZhangLab's folder; None draws films.
        out: Folder of the report and of the state.
        device: "cuda" or "cpu", as Lightning's accelerator.
        minutes: Time for everything.
        tiny: The size of a test.
    """

    def __init__(self, root: Path | None, out: Path, device: str, minutes: float, tiny: bool) -> None:
        self.root, self.out, self.tiny = root, out, tiny
        self.device = torch.device(device)
        self.ends = time.monotonic() + 60 * minutes
        self.work = Path(tempfile.mkdtemp())
        self.found: dict[str, Any] = {"machine": _machine(self.device), "failed": []}
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def data(self, batch: int = 64, drawn: bool = False) -> Any:
        """A new datamodule of the films, or of drawn ones."""
        batch = 4 if self.tiny else batch
        loading: dict[str, Any] = {"train_batch_size": batch, "eval_batch_size": batch, "num_workers": 0, "seed": 0}
        if self.root is None or drawn:
            count = 8 if self.tiny else 200
            counts = {"num_train": count, "val_per_class": 6, "test_per_class": 6}
            return PhantomCXR(root=self.work / "phantoms", **counts, **loading)
        return ZhangLab(root=self.root, **(loading | ({} if self.tiny else {"num_workers": 8})))

    def engine(self, name: str, **arguments: Any) -> Engine:
        """An engine on the device, quiet."""
        return Engine(
            default_root_dir=self.work / name, accelerator="gpu" if self.device.type == "cuda" else self.device.type,
            devices=1, enable_progress_bar=False, logger=False, **arguments,
        )  # fmt: skip

    def say(self, name: str, value: Any) -> None:
        """Print and keep a finding."""
        print(f"{name}: {value}", flush=True)
        self.found[name] = value
        (self.out / "report.json").write_text(json.dumps(self.found, indent=1, default=str))

    @contextmanager
    def tried(self, name: str) -> Iterator[None]:
        """Go on after a failure, and list it."""
        start = time.monotonic()
        try:
            yield
        except Exception:  # noqa: BLE001 - one failure must not cost the rest of the machine's time
            self.found["failed"].append(name)
            self.say(f"FAILED {name}", traceback.format_exc())
        finally:
            print(f"   {name}: {time.monotonic() - start:.1f} s, {self.left:.0f} s left", flush=True)


# ---------------------------------------------------------------------- a: does it work


def detectors() -> list[type[Any]]:
    """Every detector of the package that is trained by steps, or by none."""
    classes = [value for _, value in inspect.getmembers(anomalib_cxr.models, inspect.isclass)]
    return [each for each in classes if issubclass(each, StepTrainingMixin)]


def small(detector: type[Any], tiny: bool, **arguments: Any) -> Any:
    """A detector for 20 steps, or few and small ones, of the arguments that it has."""
    arguments = {"max_steps": 20, "steps_per_epoch": 10, "seed": 0, "pre_trained": False, **arguments}
    if tiny:
        sizes = {"image_size": 64, "patch_sizes": (32,), "encoder_size": 32, "backbone": "resnet10t"}
        arguments |= {"max_steps": 4, "steps_per_epoch": 2, "patches_per_step": 8, **sizes}
    known = inspect.signature(detector).parameters
    return detector(**{name: value for name, value in arguments.items() if name in known})


class _StopAfterFirstEpoch(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        if trainer.current_epoch == 1:
            trainer.should_stop = True
            raise _Stopped


class _Stopped(Exception):  # noqa: N818 - not an error
    pass


def check(kit: Kit) -> None:
    """Part a."""
    for detector in detectors():
        name = detector.__name__
        weights = {}
        torch.use_deterministic_algorithms(True, warn_only=True)  # or two runs of the same films differ
        for precision in ("32-true", "bf16-mixed"):
            for resident in (True, False):
                label = f"{name} {precision} {'resident' if resident else 'read'}"
                with kit.tried(label):
                    model = small(detector, kit.tiny, films_in_memory=resident)
                    kit.engine(label.replace(" ", "_"), precision=precision).fit(
                        model, datamodule=kit.data(16, drawn=True)
                    )
                    weights[precision, resident] = {key: value.cpu() for key, value in model.state_dict().items()}
                    finite = all(value.isfinite().all() for value in weights[precision, resident].values())
                    kit.say(f"{label}: finite", bool(finite))
        torch.use_deterministic_algorithms(False)
        for precision in ("32-true", "bf16-mixed"):
            with kit.tried(f"{name} {precision}: resident films change nothing"):
                pair = [weights[precision, resident] for resident in (True, False)]
                kit.say(f"{name} {precision}: largest difference to films read anew", _largest(*pair))
        with kit.tried(f"{name}: resume"):
            kit.say(f"{name}: largest difference of resumed weights", _resumed(kit, detector))
        with kit.tried(f"{name}: scores against the CPU's"):
            model = small(detector, kit.tiny)
            model.load_state_dict(weights["32-true", True], strict=False)
            kit.say(f"{name}: largest relative difference of scores to the CPU's", _against_cpu(kit, model))
        with kit.tried(f"{name}: predict and export"):
            model = small(detector, kit.tiny)
            engine = kit.engine(f"{name}_export")
            engine.fit(model, datamodule=kit.data(16, drawn=True))
            count = sum(
                len(batch.pred_score) for batch in engine.predict(model, datamodule=kit.data(16, drawn=True)) or []
            )
            exported = engine.export(model.to(kit.device), "onnx", export_root=kit.work / f"{name}_onnx")
            kit.say(f"{name}: films predicted, size of its ONNX file", (count, exported and exported.stat().st_size))


def _largest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    pairs = [(first[key].float(), second[key].float()) for key in first if first[key].numel()]
    return max(float((a - b).abs().max()) for a, b in pairs)


def _resumed(kit: Kit, detector: type[Any]) -> float:
    """Largest difference of a resumed run's weights to an unbroken one's, trained deterministically."""
    name = detector.__name__
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = small(detector, kit.tiny, checkpoint="last")
        kit.engine(f"whole_{name}").fit(whole, datamodule=kit.data(16, drawn=True))
        broken = small(detector, kit.tiny, checkpoint="last")
        engine = kit.engine(f"broken_{name}", callbacks=[_StopAfterFirstEpoch()])
        with suppress(_Stopped):
            engine.fit(broken, datamodule=kit.data(16, drawn=True))
        half = next((kit.work / f"broken_{name}").rglob("model.ckpt"))
        resumed = small(detector, kit.tiny, checkpoint="last")
        kit.engine(f"resumed_{name}").fit(resumed, datamodule=kit.data(16, drawn=True), ckpt_path=half)
    finally:
        torch.use_deterministic_algorithms(False)
    return _largest(whole.cpu().state_dict(), resumed.cpu().state_dict())


def _against_cpu(kit: Kit, model: Any) -> dict[str, float]:
    """Bank and scores of the same weights on the device and on the CPU."""
    data = kit.data(16, drawn=True)
    data.setup()
    size = model.input_size
    batch = next(iter(data.val_dataloader()))
    images = model.pre_processor.transform(batch.image)
    assert images.shape[-2:] == tuple(size)
    model.eval()
    here = copy.deepcopy(model.model).eval()
    there = copy.deepcopy(model.model).to(kit.device).eval()
    found = {}
    for exact in (True, False):
        torch.backends.cudnn.allow_tf32 = not exact
        with torch.no_grad():
            a, b = here(images), there(images.to(kit.device))
        scores = (a.pred_score - b.pred_score.cpu()).abs() / a.pred_score.abs().clamp(min=1e-9)
        maps = (a.anomaly_map - b.anomaly_map.cpu()).abs().max() / a.anomaly_map.abs().max()
        found |= {f"scores, tf32 {not exact}": float(scores.max()), f"maps, tf32 {not exact}": float(maps)}
    if not found["scores, tf32 False"] < RELATIVE:
        msg = f"{found} exceeds {RELATIVE}"
        raise RuntimeError(msg)
    return found


# ---------------------------------------------------------------------- b: how fast is it


def seconds_of(kit: Kit, step: Callable[[], Any], repeats: int = 40) -> float:
    """Median time of a step, the device waited for."""
    repeats = 2 if kit.tiny else repeats
    times = []
    for turn in range(repeats + 5):
        start = time.perf_counter()
        step()
        if kit.device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 5 or kit.tiny:
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(kit: Kit, precisions: list[str]) -> None:
    """Part b."""
    batch, side = (4, 64) if kit.tiny else (64, 256)
    for precision in precisions:
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
        with kit.tried(f"times of AnatPaste in {precision}"):
            kit.say(
                f"AnatPaste {side}², {batch} + {batch}, {precision}: ms", _anatpaste_times(kit, batch, side, precision)
            )
        with kit.tried(f"times of SimCLR in {precision}"):
            kit.say(f"SimCLR ResNet-50, {precision}: ms", _simclr_times(kit, precision))
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def _train_step(kit: Kit, parameters: Any, loss_of: Callable[[], torch.Tensor], mixed: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=3e-5)

    def step() -> None:
        with torch.autocast(kit.device.type, torch.bfloat16, enabled=mixed):
            loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _anatpaste_times(kit: Kit, batch: int, side: int, precision: str) -> dict[str, float]:
    device, mixed = kit.device, precision == "bf16"
    bare = timm.create_model("resnet18", in_chans=1, num_classes=2).to(device, memory_format=torch.channels_last)
    prepared = torch.rand(2 * batch, 1, side, side, device=device)
    labels = torch.arange(2, device=device).repeat_interleave(batch)
    times = {
        "bare network": _train_step(kit, bare.parameters(), lambda: F.cross_entropy(bare(prepared), labels), mixed)
    }

    model = AnatPaste(preset="paper", image_size=side).to(device)
    ours = model.model.train()
    raw = torch.rand(batch, 1, side, side, device=device)
    lungs = torch.zeros(batch, 1, side, side, dtype=torch.bool, device=device)
    lungs[..., side // 4 : -side // 4, side // 8 : side // 3] = True
    generator = torch.Generator().manual_seed(0)

    def paste() -> torch.Tensor:
        images = jitter_intensity(raw, 0.1, generator)
        return torch.cat([images, model.pasting(images, lungs, generator)[0].image])

    times["our network"] = _train_step(
        kit, ours.parameters(), lambda: F.cross_entropy(ours.logits(prepared), labels), mixed
    )
    times["pasting"] = paste
    times["pasting and network"] = _train_step(
        kit, ours.parameters(), lambda: F.cross_entropy(ours.logits(paste()), labels), mixed
    )
    found = {name: round(1000 * seconds_of(kit, step), 2) for name, step in times.items()}
    found |= _step_in_a_fit(kit, {"preset": "paper", "image_size": side}, "bf16-mixed" if mixed else "32-true")
    return found


class _FitTime(Callback):
    """Time of all steps but the first ten, without waiting at each."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        del pl_module, outputs, batch
        last = trainer.num_training_batches - 1
        if batch_idx in (min(10, last - 1), last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if batch_idx == last:
                self.seconds = (time.perf_counter() - self.start) / (last - min(10, last - 1))
            self.start = time.perf_counter()


def _step_in_a_fit(kit: Kit, arguments: dict[str, Any], precision: str) -> dict[str, float]:
    """A whole step of a fit with resident films and with films read anew."""
    found = {}
    for name, resident, steps in (("a fit, resident", True, 110), ("a fit, films read", False, 20)):
        timing = _FitTime()
        steps = 3 if kit.tiny else steps
        small_network = {"backbone": "resnet10t"} if kit.tiny else {}
        model = AnatPaste(
            **arguments, **small_network, max_steps=steps, steps_per_epoch=steps, films_in_memory=resident
        )
        engine = kit.engine("timing", precision=precision, callbacks=[timing], limit_val_batches=1)
        engine.fit(model, datamodule=kit.data())
        found[name] = round(1000 * timing.seconds, 2)
    return found


def _simclr_times(kit: Kit, precision: str) -> dict[str, float]:
    device, mixed = kit.device, precision == "bf16"
    patches, side = (4, 32) if kit.tiny else (256, 128)
    backbone = "resnet10t" if kit.tiny else "resnet50"
    bare = timm.create_model(backbone, in_chans=1, num_classes=128).to(device)
    prepared = torch.rand(2 * patches, 1, side, side, device=device)
    model = MultiResPatchSSL(
        preset="paper", image_size=8 * side, patch_sizes=(side,), backbone=backbone, patches_per_step=patches,
        epochs=None, max_steps=1,
    ).to(device)  # fmt: skip
    model.model.train()

    class Batch:
        image = torch.rand(4 if kit.tiny else 16, 3, 8 * side, 8 * side, device=device)

    generator = torch.Generator().manual_seed(0)
    steps: dict[str, Callable[[], Any]] = {
        "bare network": _train_step(kit, bare.parameters(), lambda: bare(prepared).square().mean(), mixed),
        "our step": _train_step(
            kit, model.model.parameters(), lambda: sum(model.training_loss(Batch, generator).values()), mixed
        ),
        "views": lambda: model.views(prepared[:patches], generator),
    }
    return {name: round(1000 * seconds_of(kit, step, 15), 2) for name, step in steps.items()}


# ---------------------------------------------------------------------- c: how good does it get


def train(kit: Kit, precision: str, keep_optimizer: bool) -> None:
    """Part c: the paper's recipe, its schedule cut to the time that is left."""
    reserve = 5 if kit.tiny else 45
    probe = _FitTime()
    options: dict[str, Any] = {"preset": "paper", "lung_method": "otsu", "films_in_memory": True, "seed": 0}
    if kit.tiny:
        options |= {"image_size": 64, "backbone": "resnet10t", "num_workers": 0}
    with kit.tried("lung masks and probe"):
        steps = 3 if kit.tiny else 150
        started = time.monotonic()
        kit.engine("probe", precision=precision, callbacks=[probe]).fit(
            AnatPaste(**options, max_steps=steps, steps_per_epoch=steps), datamodule=kit.data()
        )
        overhead = time.monotonic() - started - steps * probe.seconds
    epochs = 2 if kit.tiny else 8
    seconds = kit.left - reserve - overhead - (epochs - 1) * 0.15 * overhead
    per_epoch = max(2, min(PUBLISHED_STEPS // epochs, int(seconds / probe.seconds) // epochs))
    if kit.tiny:
        per_epoch = 2
    total = per_epoch * epochs
    kit.say("steps planned, ms a step, seconds besides", (total, 1000 * probe.seconds, overhead))
    with kit.tried("AnatPaste's paper recipe"):
        model = AnatPaste(**options, max_steps=total, steps_per_epoch=per_epoch)
        engine = kit.engine("paper", precision=precision)
        started = time.monotonic()
        engine.fit(model, datamodule=kit.data())
        kit.say("training took, seconds", time.monotonic() - started)
        kit.say("share of the published 65,536 steps", f"{total / PUBLISHED_STEPS:.1%}")
        measured = engine.test(model, datamodule=kit.data())
        kit.say("test", measured)
        table = read_predictions(next((kit.work / "paper").rglob("predictions.csv")))
        kit.say("test films", table["label"].value_counts().to_dict())
        kit.say("AUROC, accuracy, F1", _figures(table))
        kit.say("published AUROC on all 624 test films, mean and deviation of the runs", PUBLISHED_AUROC)
        for path in (kit.work / "paper").rglob("*.csv"):
            (kit.out / path.name).write_bytes(path.read_bytes())
        _save_pieces(kit, keep_optimizer)


def _figures(table: pd.DataFrame) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    truth = (table["label"] == "abnormal").astype(int)
    decided = (table["score"] >= 0.5).astype(int)  # films that are not assessable are decided on, too
    return {
        "AUROC": round(float(roc_auc_score(truth, table["raw_score"])), 4),
        "accuracy": round(float(accuracy_score(truth, decided)), 4),
        "F1": round(float(f1_score(truth, decided)), 4),
    }


def _save_pieces(kit: Kit, keep_optimizer: bool) -> None:
    """The last state in pieces of less than 16 MB: ``cat state.* > last.ckpt`` joins them."""
    source = sorted((kit.work / "paper").rglob("*.ckpt"), key=lambda path: path.name != "last.ckpt")[0]
    if not keep_optimizer:
        state = torch.load(source, map_location="cpu", weights_only=False)
        state.pop("optimizer_states", None)
        source = kit.work / "weights.ckpt"
        torch.save(state, source)
    content = source.read_bytes()
    for number, begin in enumerate(range(0, len(content), PIECE)):
        (kit.out / f"state.{number:03d}").write_bytes(content[begin : begin + PIECE])
    kit.say("state", f"{source.name}, {len(content)} bytes in {-(-len(content) // PIECE)} pieces")


def _machine(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {"card": card, "torch": torch.__version__, "python": platform.python_version()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the parts asked for, and return what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="ZhangLab's folder; films are drawn where it is left out")
    parser.add_argument("--out", type=Path, default=Path("results/device"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything")
    parser.add_argument("--parts", default="abc")
    parser.add_argument("--timed", nargs="+", default=["float32", "tf32", "bf16"], help="precisions of part b")
    parser.add_argument("--precision", default="bf16-mixed", help="of part c")
    parser.add_argument("--keep-optimizer", action="store_true", help="state with the optimiser's, twice the size")
    parser.add_argument("--tiny", action="store_true", help="the size of a test")
    asked = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    kit = Kit(asked.root, asked.out, asked.device, asked.minutes, asked.tiny)
    kit.say("machine", kit.found["machine"])
    if "a" in asked.parts:
        check(kit)
    if "b" in asked.parts:
        measure(kit, asked.timed)
    if "c" in asked.parts:
        train(kit, asked.precision, asked.keep_optimizer)
    kit.say("failed", kit.found["failed"])
    return kit.found


if __name__ == "__main__":
    main()
