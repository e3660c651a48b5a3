"""SmolAV, ready to answer questions."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from tokenizers import Tokenizer

from models.errors import UserError
from models.hub.package_index import DownloadProgress
from models.hub.weights import fetch
from models.interface import EmbeddedPrompt
from models.layers.init import Params
from models.media.clip import Media, Progress, Sampling, read_clip
from models.over_decoder import OverDecoder
from models.smolav.config import LAYOUTS, Layout, SmolAVConfig
from models.smolav.encoders import FRAME_SIZE, Encoders
from models.smolav.params import load_smolav
from models.smolav.preprocess import Chat, EncodedMedia, Tokens, concatenate, media_rows, media_tokens, text_tokens
from models.text.tokenizers import load_smollm2_tokenizer

PRETRAINED = ("smollm2", "whisper-tiny-en", "efficientnet-lite0")


@functools.partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, params: Params, *inputs: jax.Array) -> Float[jax.Array, "B T D"]:
    return nnx.merge(graph, params).embed(*inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class SmolAVModel(OverDecoder):
    """A loaded SmolAV: what `models.interface.AVModel` describes."""

    config: SmolAVConfig
    encoders: Encoders
    tokenizer: Tokenizer
    chat: Chat

    family = "smolav"
    layouts = LAYOUTS

    @classmethod
    def load(cls, folder: Path | None = None, progress: DownloadProgress | None = None) -> Self:
        """Loads the embedded model, or one exported to `folder`; `progress` is told of downloads.

        Raises:
            UserError: if weights cannot be fetched or read.
        """
        for asset in PRETRAINED:
            fetch(asset, progress=progress)
        config, graph, params = load_smolav(folder) if folder else load_smolav()
        tokenizer = load_smollm2_tokenizer()
        chat = Chat.smollm2(lambda text: tokenizer.encode(text).ids)
        tokenizer.encode_special_tokens = True  # what a user types is never a special token
        name = str(folder) if folder else "smolav"
        params = jax.device_put(params)
        return cls(name, config.decoder, graph, params, config, Encoders.load(config), tokenizer, chat)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        return (self.chat.end,)

    def load_media(self, clip: Path, progress: Progress | None = None) -> Media:
        """Decodes a clip: one frame per second."""
        return read_clip(clip, Sampling(size=(FRAME_SIZE, FRAME_SIZE)), progress=progress)

    def encode_media(self, media: Media, layout: str) -> EmbeddedPrompt:
        """Turn start and media.

        Raises:
            UserError: on an unknown layout, or if there are neither frames nor enough sound for one token.
        """
        if layout not in LAYOUTS:
            raise UserError(f"Unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
        chosen: Layout = "blocks" if layout == "blocks" else "interleaved"
        frames = np.zeros((0, FRAME_SIZE, FRAME_SIZE, 3), np.uint8) if media.frames is None else media.frames
        sound = np.zeros(0, np.float32) if media.audio is None else media.audio
        return self.encode_features(EncodedMedia(self.encoders.frames(frames), self.encoders.audio(sound)), chosen)

    def encode_features(self, encoded: EncodedMedia, layout: Layout) -> EmbeddedPrompt:
        """Turn start and media that the encoders have seen already.

        Raises:
            UserError: if there are none.
        """
        tokens = media_tokens(len(encoded.video), len(encoded.audio), layout, self.config)
        if not len(tokens):
            raise UserError("The clip has neither a frame nor a tenth of a second of sound; choose a longer one.")
        return self._chunk(concatenate([text_tokens(self.chat.before), tokens]), encoded)

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The question, and the start of the answer's turn.

        Raises:
            UserError: if the question is empty.
        """
        if not text.strip():
            raise UserError("The question is empty; ask something about the clip.")
        ids = [*self.tokenizer.encode(text.strip()).ids, *self.chat.after]
        return self._chunk(text_tokens(ids), self._no_media())

    def encode_next_question(self, answer: str, text: str) -> EmbeddedPrompt:
        """A further question after an answer: the answer, its end, and a new turn of the user."""
        ids = [*self.tokenizer.encode(answer).ids, self.chat.end, *self.chat.before]
        return self._chunk(text_tokens(ids), self._no_media()).then(self.encode_question(text))

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text."""
        return self.tokenizer.decode([token for token in tokens if token != self.chat.end])

    def _no_media(self) -> EncodedMedia:
        return EncodedMedia(
            np.zeros((0, self.config.frame_tokens, self.config.video_width), np.float32),
            np.zeros((0, self.config.audio_width), np.float32),
        )

    def _chunk(self, tokens: Tokens, media: EncodedMedia) -> EmbeddedPrompt:
        video, audio = media_rows(tokens, media)
        extra = -len(tokens) % 64  # few lengths, few compilations

        def padded(x: np.ndarray) -> Any:
            return jnp.asarray(np.pad(x, ((0, extra),) + ((0, 0),) * (x.ndim - 1)))[None]

        inputs = (padded(x) for x in (tokens.ids, tokens.modality, tokens.seconds, video, audio))
        embedded = _embed(self.graph, self.all_params, *inputs)
        return EmbeddedPrompt(np.asarray(embedded)[0, : len(tokens)], tokens.modality)
