"""How knowledge is transferred: the options of MergeNet, their checks, and three presets."""

import dataclasses
import math
from typing import Any, Literal, Self, get_args, get_type_hints

from mergenet_jax.renamed import renamed

Encoding = Literal["dense", "factored", "svd"]
Rule = Literal["delta", "delta_k", "exact"]
Merge = Literal["replace", "gated"]
Rescale = Literal["none", "row_norm", "frobenius"]
Momentum = Literal["keep", "reset"]
SourceMode = Literal["real", "zero", "random"]


@renamed(start="init_from_source: True for 'source', False for 'own'")
@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """Options of one transfer (MergeNet, arXiv 2404.13322; authors' repository Fantasylii/mergenet).

    Attributes:
        encoding: what the adapter reads and writes: whole matrices ("dense"), or low-rank factors W = B A which replace
            the matrix in the model and are trained in its place, drawn anew ("factored") or from the singular value
            decomposition of the matrix ("svd").
        rank: of the factors.
        layers: knowledge-transfer layers that are stacked.
        heads: attention heads.
        attention_dropout: share of attention weights that are dropped in training.
        output_dropout: share of a layer's outputs that are dropped in training.
        input_norm: normalise rows and columns before attention. Raw weights are so small that attention hardly
            differs between sources.
        positions: tell rows and columns apart by sinusoidal positions, in queries and keys.
        rule: what the adapter learns from: the written tensor's way over the target's next step ("delta"), over its
            next `inner_steps` steps ("delta_k"), or the gradient of the target's loss through it ("exact").
        inner_steps: steps of "delta_k", from 1 to `cycle`.
        merge: the output takes the tensor's place ("replace"), or the tensor is trained as ever and a residual, which
            starts at zero and which each transfer renews, is added to it ("gated").
        rescale: "row_norm" gives each row of the output the norm that it had in the target, "frobenius" the whole
            matrix. (Outputs end in a LayerNorm, so that otherwise the norm jumps.)
        momentum: whether the target's optimiser forgets ("reset") what it gathered on the tensor that was overwritten.
        init_from_source: the target's kernels start as the source's (`mergenet_jax.selection`) instead of as they are.
        source: "zero" and "random" are controls: the adapter reads zeros, or fixed noise of the source's scale.
        cycle: T_cycle: a transfer takes place before every `cycle`-th step.
        learning_rate: of the adapter's AdamW.
        weight_decay: of the adapter, except biases and norms.
        clip: largest norm of the adapter's gradient.

    Example:
        >>> mn.MergeConfig(cycle=4, rescale="frobenius").rule
        'delta'
        >>> mn.MergeConfig.plus(layers=1).merge
        'gated'
    """

    encoding: Encoding = "dense"
    rank: int = 16
    layers: int = 2
    heads: int = 8
    attention_dropout: float = 0.1
    output_dropout: float = 0.2
    input_norm: bool = False
    positions: bool = False
    rule: Rule = "delta"
    inner_steps: int = 1
    merge: Merge = "replace"
    rescale: Rescale = "none"
    momentum: Momentum = "keep"
    init_from_source: bool = False
    source: SourceMode = "real"
    cycle: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    clip: float = 50.0

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            ValueError: naming the option, its value and what it may be.
        """
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if choices and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
            if (hint is bool and type(value) is not bool) or (hint is float and not isinstance(value, (int, float))):
                raise ValueError(f"{name} must be a {hint.__name__}, not {value!r}.")
        for name in ("rank", "layers", "heads", "inner_steps", "cycle"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}.")
        for name in ("attention_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}.")
        for name in ("learning_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(self, name)!r}.")
        if self.inner_steps != 1 and self.rule != "delta_k":
            raise ValueError(f"inner_steps={self.inner_steps} needs rule='delta_k', not {self.rule!r}.")
        if self.inner_steps > self.cycle:
            raise ValueError(f"inner_steps ({self.inner_steps}) cannot pass cycle ({self.cycle}); lower it.")
        if self.merge == "gated" and self.rescale != "none":
            raise ValueError(f"rescale={self.rescale!r} has no meaning for merge='gated'; leave it at 'none'.")
        if self.init_from_source and self.encoding != "dense":
            raise ValueError(f"init_from_source copies whole kernels, not encoding={self.encoding!r}; use 'dense'.")

    @classmethod
    def authors_code(cls, **changes: Any) -> Self:
        """As the authors' repository does it: dense matrices, the delta rule, replacement."""
        return cls(**changes)

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """As the paper describes it: low-rank factors, trained from the start, are the unit of knowledge."""
        options: dict[str, Any] = {"encoding": "factored"}
        return cls(**options | changes)

    @classmethod
    def plus(cls, **changes: Any) -> Self:
        """A zero-initialised residual, normalised inputs with positions, and the exact gradient."""
        still: dict[str, Any] = {"attention_dropout": 0.0, "output_dropout": 0.0}
        options = {"merge": "gated", "rule": "exact", "input_norm": True, "positions": True}
        return cls(**still | options | changes)


PRESETS = {"authors_code": MergeConfig.authors_code, "paper": MergeConfig.paper, "plus": MergeConfig.plus}
