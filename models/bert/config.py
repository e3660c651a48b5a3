"""Sizes and options of BERT (arXiv 1810.04805) and DistilBERT (arXiv 1910.01108)."""

import dataclasses
from typing import Any, Literal, Self

from models.errors import UserError
from models.hf.config import Section, model_type

Family = Literal["bert", "distilbert"]
FAMILIES: tuple[Family, ...] = ("bert", "distilbert")
SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
RATES = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"}
"""BERT's keys -> DistilBERT's."""
EPSILON = 1e-12
"""Of LayerNorm: DistilBERT's always, and BERT's where the file, as Google's own, does not mention it."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """An encoder of either family; the names are those of Hugging Face's BertConfig.

    Attributes:
        model_type: "distilbert" has no token types and no pooler.
        type_vocab_size: token types; 0 for DistilBERT.
        hidden_dropout_prob: dropout after the embeddings and each MLP, and in BERT after each attention.
        attention_probs_dropout_prob: dropout of attention weights.
        classifier_dropout: dropout before the classifier (DistilBERT: seq_classif_dropout).
        qa_dropout: dropout before the start and end scores; BERT has none.
        initializer_range: standard deviation of fresh kernels and embeddings.
    """

    model_type: Family
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float
    qa_dropout: float
    initializer_range: float

    def __post_init__(self) -> None:
        """Checks what the modules rely on.

        Raises:
            UserError: if the heads do not divide the width, a dropout is no probability, or token types do not fit.
        """
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"The hidden size {self.hidden_size} must be a multiple of the {self.num_attention_heads} heads."
            )
        for name in (*RATES, "classifier_dropout", "qa_dropout"):
            if not 0 <= (rate := getattr(self, name)) <= 1:
                raise UserError(f"{name} is {rate}, but must be a probability, from 0 to 1.")
        if (self.type_vocab_size > 0) == self.distilled:
            raise UserError(f"A {self.model_type} cannot have type_vocab_size {self.type_vocab_size}.")

    @property
    def distilled(self) -> bool:
        """Whether this is a DistilBERT."""
        return self.model_type == "distilbert"

    @classmethod
    def bert_base_uncased(cls) -> Self:
        """bert-base-uncased: 109,482,240 parameters with its pooler."""
        return cls("bert", 30522, 768, 12, 12, 3072, 512, 2, EPSILON, 0.1, 0.1, 0.1, 0.0, 0.02)

    @classmethod
    def distilbert_base_uncased(cls) -> Self:
        """distilbert-base-uncased: 66,362,880 parameters."""
        return cls("distilbert", 30522, 768, 6, 12, 3072, 512, 0, EPSILON, 0.1, 0.1, 0.2, 0.1, 0.02)

    @classmethod
    def tiny(cls, family: Family = "bert", **changes: Any) -> Self:
        """Two small layers, for tests."""
        base = cls.distilbert_base_uncased() if family == "distilbert" else cls.bert_base_uncased()
        sizes = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 32}
        return dataclasses.replace(base, **(sizes | changes))

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """Reads a config.json of either family.

        May be absent: what says something by its absence (classifier_dropout: as hidden_dropout_prob), and
        layer_norm_eps, which Google's own files do not have.

        Raises:
            UserError: if keys are missing, of a wrong type or ask for what is not supported, or it is of another model.
        """
        kind: Any = model_type(section, FAMILIES)
        distilled = kind == "distilbert"
        section.only("activation" if distilled else "hidden_act", "gelu")
        section.need("activation" if distilled else "hidden_act", str)
        for name, value in (
            ("sinusoidal_pos_embds", False),
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
            ("add_cross_attention", False),
            ("pruned_heads", {}),
        ):
            section.only(name, value)
        values: dict[str, Any] = {
            ours: section.positive(theirs if distilled else ours) for ours, theirs in SIZES.items()
        }
        values |= {ours: section.need(theirs if distilled else ours, float) for ours, theirs in RATES.items()}
        if distilled:
            values |= {"classifier_dropout": section.need("seq_classif_dropout", float), "type_vocab_size": 0}
            values |= {"qa_dropout": section.need("qa_dropout", float), "layer_norm_eps": EPSILON}
        else:
            hidden = values["hidden_dropout_prob"]
            values |= {"classifier_dropout": section.get("classifier_dropout", float, hidden), "qa_dropout": 0.0}
            values |= {"type_vocab_size": section.positive("type_vocab_size")}
            values |= {"layer_norm_eps": section.get("layer_norm_eps", float, EPSILON)}
        values |= {"initializer_range": section.need("initializer_range", float)}
        section.check()
        return cls(kind, **values)

    def to_hf(self) -> dict[str, Any]:
        """What a config.json says of the encoder, for `models.hf.export.save_params`.

        Raises:
            UserError: if a DistilBERT has another layer_norm_eps than its format implies.
        """
        if self.distilled:
            if self.layer_norm_eps != EPSILON:
                raise UserError(f"DistilBERT's format has no layer_norm_eps but {EPSILON}, not {self.layer_norm_eps}.")
            named = {theirs: getattr(self, ours) for ours, theirs in (SIZES | RATES).items()}
            named |= {"activation": "gelu", "sinusoidal_pos_embds": False, "qa_dropout": self.qa_dropout}
            named |= {"seq_classif_dropout": self.classifier_dropout}
        else:
            kept = (*SIZES, *RATES, "classifier_dropout", "type_vocab_size", "layer_norm_eps")
            named = {name: getattr(self, name) for name in kept} | {"hidden_act": "gelu"}
        return named | {"model_type": self.model_type, "initializer_range": self.initializer_range}
