"""Tasks of BERT alone: classes of reviews, and answers in contexts."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from mergenet_jax import LossOutput
from models.bert.modeling import BertModel
from models.bert.modeling import Task as Head
from models.bert.params import bert_tensors, hf_config, load_bert, open_bert
from models.bert.tokenizer import load_bert_tokenizer, make_encoder
from models.errors import UserError
from models.hf.config import reading
from models.hf.export import save_params
from models.layers.init import Params
from train.mergenet.checkpoint import fresh_folder
from train.mergenet.distillation import cross_entropy
from train.mergenet.epochs import reader
from train.mergenet.squad import answer_texts, evaluate
from train.mergenet.tasks.interface import Data, Examples, Split
from train.mergenet.tasks.spec import ENCODERS, TaskSpec
from train.mergenet.tasks.vocabulary import build_tokenizer
from train.mergenet.text import Arrays, encode_questions, encode_reviews

LABELS = 2  # of reviews


def check_length(spec: TaskSpec, most: int) -> None:
    """Whether a model has as many positions as a row has tokens.

    Raises:
        UserError: if not.
    """
    if spec.length > most:
        raise UserError(f"Rows of {spec.length} tokens are longer than the model's {most} positions; lower length.")


def tokenizer_for(spec: TaskSpec, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of the weights, or one made of training texts where there are none."""
    if spec.weights is not None:
        return load_bert_tokenizer(Path(spec.weights), vocab_size)
    return build_tokenizer(texts, vocab_size)


class BertTask:
    """Base of both tasks; see `train.mergenet.tasks.interface.Task`."""

    HEAD: ClassVar[Head]
    METRICS: ClassVar[dict[str, str]]

    def __init__(self, spec: TaskSpec) -> None:
        """Makes the model.

        Raises:
            UserError: if the weights cannot be opened, or rows are longer than the model takes.
        """
        self.spec = spec
        self.metrics = self.METRICS
        if spec.weights is None:
            self.model = BertModel(ENCODERS[spec.text], self.HEAD, LABELS)
        else:
            folder = Path(spec.weights)
            with reading(folder) as section:
                self.model = open_bert(folder, section, self.HEAD, self._labels).model
        check_length(spec, self.model.config.max_position_embeddings)

    @property
    def _labels(self) -> int | None:
        return LABELS if self.HEAD == "classification" else None

    def init(self, key: Array) -> tuple[Params, Params]:
        """Random parameters, or those of the weights with what they lack."""
        if self.spec.weights is None:
            return self.model.init(key), {}
        return load_bert(Path(self.spec.weights), self.HEAD, self._labels, key=key)[1], {}

    def shapes(self) -> tuple[Params, Params]:
        """Of the parameters."""
        return self.model.shapes(), {}

    def load(self, folder: Path) -> tuple[Params, Params]:
        """The parameters of an exported model.

        Raises:
            UserError: if the folder holds none, or one of other sizes.
        """
        model, params = load_bert(folder, self.HEAD, self._labels)
        if model != self.model:
            raise UserError(f"{folder} holds a model of other sizes ({model.config}); name the folder of the source's.")
        return params, {}

    def export(self, folder: Path, params: Params, tokenizer: Tokenizer) -> None:
        """Writes a folder that transformers reads."""
        config, labels = self.model.config, self.model.labels
        with TemporaryDirectory() as draft:
            path = Path(draft) / "tokenizer.json"
            tokenizer.save(str(path))
            tensors, written = bert_tensors(config, self.HEAD), hf_config(config, self.HEAD, labels)
            save_params(fresh_folder(folder), params, tensors, written, companions=[path])

    def _outputs(self, params: Params, batch: Any, key: Array | None) -> Any:
        return self.model.apply(params, batch["tokens"], batch["mask"], batch["token_types"], key)


class Reviews(BertTask):
    """Whether a review of imdb_reviews is positive; accuracy."""

    HEAD = "classification"
    METRICS = {"accuracy": "accuracy"}

    def loss(self, params: Params, stats: Params, batch: Any, key: Array) -> tuple[Float[Array, ""], LossOutput]:
        """Cross entropy of the classes."""
        return cross_entropy(self._outputs(params, batch, key), batch["labels"]), LossOutput(stats)

    def answer(self, params: Params, batch: Any) -> dict[str, Array]:
        """The class of each review."""
        return {"class": jnp.argmax(self._outputs(params, batch, None), -1)}

    def prepare(self, data: Data) -> Examples:
        """The reviews."""
        part = data.open("imdb_reviews", "train")
        texts = (example["text"].decode() for example in part)
        tokenizer = tokenizer_for(self.spec, self.model.config.vocab_size, texts)
        encode = make_encoder(tokenizer, self.spec.length)

        def split(name: str) -> Split:
            arrays = encode_reviews(data.open("imdb_reviews", name), encode)
            labels = arrays["labels"]
            return Split(
                len(labels), reader(arrays), lambda found: {"accuracy": float(np.mean(found["class"] == labels))}
            )

        return Examples(split, tokenizer)


class Questions(BertTask):
    """Answers to SQuAD's questions as spans of their contexts; F1 and exact match, as shares."""

    HEAD = "question_answering"
    METRICS = {"f1": "F1", "exact": "EM"}

    def loss(self, params: Params, stats: Params, batch: Any, key: Array) -> tuple[Float[Array, ""], LossOutput]:
        """Mean of the cross entropies of the answer's first and last token."""
        start, end = self._outputs(params, batch, key)
        both = cross_entropy(start, batch["start"]) + cross_entropy(end, batch["end"])
        return both / 2, LossOutput(stats)

    def answer(self, params: Params, batch: Any) -> dict[str, Array]:
        """Logits of the first and the last token."""
        start, end = self._outputs(params, batch, None)
        return {"start": start, "end": end}

    def prepare(self, data: Data) -> Examples:
        """The questions; a long context gives several rows."""
        part = data.open("squad", "train")
        texts = (example[name].decode() for example in part for name in ("question", "context"))
        tokenizer = tokenizer_for(self.spec, self.model.config.vocab_size, texts)

        def split(name: str) -> Split:
            questions = encode_questions(data.open("squad", name), tokenizer, self.spec.length, self.spec.stride)
            accepted = dict(zip(questions.ids, questions.answers, strict=True))

            def score(found: Arrays) -> dict[str, float]:
                scores = evaluate(answer_texts(questions, found["start"], found["end"]), accepted)
                return {metric: scores[metric] / 100 for metric in self.METRICS}

            arrays = questions.arrays
            return Split(len(arrays["start"]), reader(arrays), score)

        return Examples(split, tokenizer)
