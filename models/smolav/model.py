"""SmolAV, ready to answer questions."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from acckv_jax import bucket_length
from models.batching import filled, joined
from models.errors import UserError
from models.hub.package_index import DownloadProgress
from models.hub.weights import fetch
from models.interface import EmbeddedPrompt, media_sequence
from models.layers.init import FastRngs, Params
from models.media.clip import Media, Progress, Span
from models.over_decoder import OverDecoder
from models.placement import place
from models.smolav.config import LAYOUTS, Layout, SmolAVConfig
from models.smolav.encoders import BATCH, Encoders
from models.smolav.frames import FRAME_SIZE, load_clip
from models.smolav.modeling import SmolAV
from models.smolav.params import load_smolav
from models.smolav.preprocess import (
    Chat,
    ClipRows,
    EncodedMedia,
    Tokens,
    concatenate,
    sequence_tokens,
    text_tokens,
)
from models.text.tokenizers import load_smollm2_tokenizer

PRETRAINED = ("smollm2", "whisper-tiny-en", "efficientnet-lite0")


@functools.partial(jax.jit, static_argnums=0)
def _embed(
    graph: nnx.GraphDef, params: Params, tokens: Tokens, video: Float[Array, "V W"], audio: Float[Array, "A W"]
) -> Float[Array, "T D"]:
    rows = video[tokens.row], audio[tokens.row]  # of the wrong kind where the other kind stands; not looked at
    inputs = (tokens.ids, tokens.modality, tokens.seconds, *rows)
    return nnx.merge(graph, params).embed(*(x[None] for x in inputs))[0]


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
        """Loads the embedded model, or one exported to `folder`; `progress` is called while downloading.

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
        params = place(params, lambda: SmolAV(config, rngs=FastRngs(0)))
        return cls(name, config.decoder, graph, params, config, Encoders.load(config), tokenizer, chat)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        return (self.chat.end,)

    def load_media(self, clip: Path, progress: Progress | None = None, span: Span | None = None) -> Media:
        """Decodes a clip, or a part of it: one frame per second."""
        return load_clip(clip, self.config, progress, span)

    def encode_media(self, media: Media | Sequence[Media], layout: str) -> EmbeddedPrompt:
        """Turn start and media; several clips are shown one after the other, as one.

        Raises:
            UserError: on an unknown layout, or if there are neither frames nor enough sound for one token.
        """
        if layout not in LAYOUTS:
            raise UserError(f"Unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
        chosen: Layout = "blocks" if layout == "blocks" else "interleaved"
        clips, video, audio = [], [], []
        for clip in media_sequence(media):
            frames = np.zeros((0, FRAME_SIZE, FRAME_SIZE, 3), np.uint8) if clip.frames is None else clip.frames
            sound = np.zeros(0, np.float32) if clip.audio is None else clip.audio
            first = len(video) * BATCH * self.config.frame_tokens, len(audio) * self.encoders.window_tokens
            clips.append(ClipRows(len(frames), self.encoders.audio_tokens(len(sound)), *first))
            video += self.encoders.frame_batches(frames)
            audio += self.encoders.audio_windows(sound)
        if not video:
            video = [np.zeros((BATCH, self.config.frame_tokens, self.config.video_width), np.float32)]
        if not audio:
            audio = [np.zeros((self.encoders.window_tokens, self.config.audio_width), np.float32)]
        return self._embed_media(clips, chosen, joined(video), joined(audio))

    def encode_features(self, encoded: EncodedMedia, layout: Layout) -> EmbeddedPrompt:
        """Turn start and media that the encoders have seen already.

        Raises:
            UserError: if there are none.
        """
        video, audio = filled(encoded.video, BATCH), filled(encoded.audio, self.encoders.window_tokens)
        return self._embed_media([ClipRows(len(encoded.video), len(encoded.audio))], layout, video, audio)

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The question, and the start of the answer's turn.

        Raises:
            UserError: if the question is empty.
        """
        return self.embed_text(self._question(text))

    def encode_next_question(self, answer: str | Sequence[int], text: str) -> EmbeddedPrompt:
        """A further question: the rest of an answer (its text, or its last tokens), its end, a new turn of the user.

        Raises:
            UserError: if the question is empty.
        """
        rest = self.tokenizer.encode(answer).ids if isinstance(answer, str) else answer
        spoken = [token for token in rest if token != self.chat.end]
        return self.embed_text([*spoken, self.chat.end, *self.chat.before, *self._question(text)])

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text."""
        return self.tokenizer.decode([token for token in tokens if token != self.chat.end])

    def _question(self, text: str) -> list[int]:
        if not text.strip():
            raise UserError("The question is empty; ask something about the clip.")
        return [*self.tokenizer.encode(text.strip()).ids, *self.chat.after]

    def _embed_media(
        self, clips: Sequence[ClipRows], layout: Layout, video: Float[Array, "F P W"], audio: Float[Array, "A W"]
    ) -> EmbeddedPrompt:
        media = sequence_tokens(clips, layout, self.config)
        if not len(media):
            raise UserError("The clip has neither a frame nor a tenth of a second of sound; choose a longer one.")
        tokens = concatenate([text_tokens(self.chat.before), media])
        extra = bucket_length(len(tokens)) - len(tokens)
        padded = jax.tree.map(lambda x: np.pad(x, (0, extra)), tokens)
        rows = video.reshape(-1, video.shape[-1])
        return EmbeddedPrompt.of(_embed(self.graph, self.all_params, padded, rows, audio), tokens.modality)
