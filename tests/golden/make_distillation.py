"""Makes distillation.npz beside this file; README.md says what it is.

python -m tests.golden.make_distillation MDISTILLER CLS_KD
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
SHAPES = ((6, 10, 5, 7), (4, 3, 8, 8))  # rows, classes, width of the student, of the teacher


def module(file: Path, name: str, package: str = "") -> types.ModuleType:
    """One file of upstream's, as a module; what stands beside it is found where `package` is given."""
    spec = importlib.util.spec_from_file_location(f"{package}.{name}" if package else name, file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def upstream(mdistiller: Path, cls_kd: Path) -> dict:
    """Upstream's four losses as functions of student and teacher (logits, features) and labels."""
    folder = mdistiller / "mdistiller" / "distillers"
    package = types.ModuleType("distillers")
    package.__path__ = [str(folder)]
    sys.modules["distillers"] = package
    kd, dkd, rkd = (module(folder / f"{name}.py", name, "distillers") for name in ("KD", "DKD", "RKD"))
    registry = types.ModuleType("mmcls.registry")
    registry.MODELS = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
    sys.modules["mmcls"], sys.modules["mmcls.registry"] = types.ModuleType("mmcls"), registry
    nkd = module(cls_kd / "mmcls" / "models" / "dis_losses" / "nkd.py", "nkd")
    return {
        "kd": lambda s, t, y: 0.1 * F.cross_entropy(s[0], y) + 0.9 * kd.kd_loss(s[0], t[0], 4),
        "dkd": lambda s, t, y: F.cross_entropy(s[0], y) + min(5 / 20, 1.0) * dkd.dkd_loss(s[0], t[0], y, 1.0, 8.0, 4.0),
        "rkd": lambda s, t, y: F.cross_entropy(s[0], y) + rkd.rkd_loss(s[1], t[1], False, 1e-12, 25, 50),
        "nkd": lambda s, t, y: F.cross_entropy(s[0], y) + nkd.NKDLoss("", True, 3.0, 3.5)(s[0], t[0], y),
        "nkd_imagenet": lambda s, t, y: F.cross_entropy(s[0], y) + nkd.NKDLoss("", True)(s[0], t[0], y),
    }


def main() -> None:
    losses = upstream(Path(sys.argv[1]), Path(sys.argv[2]))
    arrays: dict[str, np.ndarray] = {}
    for number, (rows, classes, own, other) in enumerate(SHAPES):
        rng = np.random.default_rng(number)
        arrays |= {
            f"student_logits_{number}": rng.normal(0, 3, (rows, classes)).astype(np.float32),
            f"teacher_logits_{number}": rng.normal(0, 3, (rows, classes)).astype(np.float32),
            f"student_features_{number}": rng.exponential(1, (rows, own)).astype(np.float32),
            f"teacher_features_{number}": rng.exponential(1, (rows, other)).astype(np.float32),
            f"labels_{number}": rng.integers(0, classes, rows).astype(np.int32),
        }
        for name, loss in losses.items():
            student = [
                torch.tensor(arrays[f"student_{part}_{number}"], dtype=torch.float64, requires_grad=True)
                for part in ("logits", "features")
            ]
            teacher = [
                torch.tensor(arrays[f"teacher_{part}_{number}"], dtype=torch.float64) for part in ("logits", "features")
            ]
            value = loss(student, teacher, torch.tensor(arrays[f"labels_{number}"], dtype=torch.int64))
            value.backward()
            arrays[f"{name}_loss_{number}"] = np.float64(value.item())
            for part, tensor in zip(("logits", "features"), student, strict=True):
                grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                arrays[f"{name}_{part}_grad_{number}"] = grad.numpy()
    np.savez_compressed(HERE / "distillation.npz", **arrays)


if __name__ == "__main__":
    main()
