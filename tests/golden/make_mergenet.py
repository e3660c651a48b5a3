"""Makes mergenet_adapter.npz beside this file; README.md says what it is.

Run it from the repository's root with a checkout of Fantasylii/mergenet:
`python -m tests.golden.make_mergenet CHECKOUT`. It prints by how much a float32 run of upstream's differs from the
float64 run that is stored.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.mergenet_jax import seeded
from tests.mergenet_jax.cases import CASES, GOLDEN, PUBLISHED, Case, moves, shapes, vector_shapes

CONSTRUCTION = 16
"""Power iterations that building a module with spectral norm makes: 15, and 1 when torch tries the parametrization."""


class Sizes(dict):
    """Upstream's configuration; it asks 'd_attention' for the target's size, then for the source's, then in vain."""

    def __init__(self, case: Case) -> None:
        super().__init__(num_layers=case.layers, h=case.heads, mode=5)
        self.answers = iter([case.target, case.source])

    def __missing__(self, key: str) -> tuple[int, int] | None:
        assert key == "d_attention"
        return next(self.answers, None)


def import_upstream(checkout: Path) -> dict[str, Any]:
    """Upstream's adapter class, and two functions out of its script, whose import would start loading CIFAR-100."""
    sys.path.insert(0, str(checkout))
    members: dict[str, Any] = {"np": np, "torch": torch}
    script = checkout / "run_res50_mbv2.py"
    wanted = ("stats_params", "hypernetwork_update")
    body = [f for f in ast.parse(script.read_text()).body if isinstance(f, ast.FunctionDef) and f.name in wanted]
    exec(compile(ast.Module(body, []), script, "exec"), members)
    return members | {"adapter": importlib.import_module("model.param_attention").ParamAttention}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Upstream prints the size of every attention matrix."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def build(upstream: dict[str, Any], case: Case, dtype: torch.dtype) -> torch.nn.Module:
    """Upstream's adapter with seeded weights, dropout 0, and vectors as construction makes them from seeded ones."""
    module = upstream["adapter"](Sizes(case)).to(dtype)
    used = {name: tuple(p.shape) for name, p in module.named_parameters() if not name.startswith("linear1.")}
    assert used == shapes(case)
    state = seeded.weights(case) | seeded.unset_vectors(case)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    assert set(missing) == {"linear1.weight", "linear1.bias"} and not unexpected
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if hasattr(part, "parametrizations"):
            norm = part.parametrizations.weight
            norm[0]._power_method(norm.original, CONSTRUCTION)
    return module


def matrices(case: Case, step: int, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What upstream hands to the adapter: the target as the kernel of a 1 x 1 convolution, and the source."""
    kernel = torch.from_numpy(seeded.target(case, step)).to(dtype)[:, :, None, None]
    return {"conv": kernel}, {"linear_weight": torch.from_numpy(seeded.source(case, step)).to(dtype)}


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters and vectors."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def vectors(case: Case, module: torch.nn.Module) -> np.ndarray:
    """The vectors of spectral norm, joined."""
    state = arrays(module)
    return np.concatenate([state[name] for name in vector_shapes(case)])


def forwards(upstream: dict[str, Any], case: Case, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Output in eval mode; outputs and vectors of three training forwards; gradients of the first of them."""
    module = build(upstream, case, dtype)
    inputs = matrices(case, 0, dtype)
    states, outs, grads = [vectors(case, module)], [], np.empty(0)
    with torch.no_grad():
        found = {"eval": module.eval()(*inputs)[..., 0, 0].numpy()}
    module.train()
    for call in range(3):
        out = module(*inputs)[..., 0, 0]
        outs.append(out.detach().numpy())
        states.append(vectors(case, module))
        if call == 0:
            delta = out.detach() - torch.from_numpy(seeded.final(case)).to(dtype)
            values = torch.autograd.grad([out], list(module.parameters()), grad_outputs=delta, allow_unused=True)
            named = zip((name for name, _ in module.named_parameters()), values, strict=True)
            grads = seeded.summaries(case, {name: value.numpy() for name, value in named if value is not None})
    return found | {"train": np.stack(outs), "vectors": np.stack(states), "grads": grads}


def steps(upstream: dict[str, Any], case: Case, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Outputs and parameters over two updates by upstream's rule and optimiser."""
    module = build(upstream, case, dtype).train()
    optimizer = torch.optim.AdamW(upstream["stats_params"](module, case.decay), lr=1e-2)
    outs = []
    for step in range(2):
        out = module(*matrices(case, step, dtype))
        outs.append(out.detach()[..., 0, 0].numpy())
        final = torch.from_numpy(seeded.final(case, step)).to(dtype)[:, :, None, None]
        upstream["hypernetwork_update"](module, out, final, optimizer, None, 0)
    return {"step_outs": np.stack(outs), "stepped": seeded.summaries(case, arrays(module))}


def published(upstream: dict[str, Any], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The published sizes: how many numbers the used parameters hold, and 512 entries and more of the output."""
    module = build(upstream, PUBLISHED, dtype).eval()
    count = sum(p.numel() for name, p in module.named_parameters() if not name.startswith("linear1."))
    with torch.no_grad():
        out = module(*matrices(PUBLISHED, 0, dtype))[..., 0, 0].numpy()
    return {
        "published_count": np.array(count, np.int32),
        "published_eval": seeded.summary(PUBLISHED, "out", out, entries=512),
    }


def everything(upstream: dict[str, Any], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """All that the file holds, in the precision of the run."""
    found = published(upstream, dtype)
    for number, case in enumerate(CASES):
        values = forwards(upstream, case, dtype) | steps(upstream, case, dtype)
        found |= {f"{key}_{number}": value for key, value in values.items()}
    return found


def main() -> None:
    upstream = import_upstream(Path(sys.argv[1]))
    with silence():
        exact, single = (everything(upstream, dtype) for dtype in (torch.float64, torch.float32))
    for number, case in enumerate(CASES):
        exact[f"stepped_{number}"][[not moves(name) for name in shapes(case)]] = np.nan
    for key, value in exact.items():
        print(f"{key}: {np.nanmax(np.abs(value - single[key])):.1e}, of {np.nanmax(np.abs(value)):.1e}")
    small = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in exact.items()}
    np.savez_compressed(GOLDEN, **small)


if __name__ == "__main__":
    main()
