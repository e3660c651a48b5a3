"""Random thinkers of transformers, ours with the same parameters, and random prompts for both."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from flax import nnx
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

import acckv_jax
from models.decoder import Decoder
from models.hf.checkpoint import open_checkpoint
from models.hf.load import load_params
from models.interface import EmbeddedPrompt
from models.layers.init import FastRngs, Params, abstract_params
from models.over_decoder import DecoderStep, OverDecoder
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.encoders import encode_frames, encode_sound, place_features
from models.qwen2_5_omni.images import patchify
from models.qwen2_5_omni.modeling import Thinker, thinker_tensors
from models.qwen2_5_omni.prompt import AudioItem, ImageItem, Part, Tokens, VideoItem, expand
from tests.models.qwen2_5_omni.towers import randomise

WORDS = 40  # ids below are ordinary tokens in tiny configurations


def reference_thinker(config: ThinkerConfig, seed: int) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A random model of transformers."""
    sizes = dataclasses.asdict(config)
    text = sizes.pop("text")
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta"), "mrope_section": text.pop("mrope_section")}
    for name in ("head_dim", "attention_bias", "tie_word_embeddings"):
        del text[name]
    parts = {f"{name}_config": sizes.pop(name) for name in ("vision", "audio")}
    hf = Qwen2_5OmniThinkerConfig(text_config=text | {"rope_parameters": rope}, **parts, **sizes)
    hf._attn_implementation = "eager"
    model = Qwen2_5OmniThinkerForConditionalGeneration(hf).eval().float()
    randomise(model, seed)
    model.lm_head.weight.data[WORDS : WORDS + 7] = 0  # tokens of media are never the likeliest in an answer
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@dataclasses.dataclass(frozen=True)
class Ours:
    """Our model, as its parts are called."""

    config: ThinkerConfig
    graph: nnx.GraphDef
    params: Params
    decoder: acckv_jax.Decoder

    @staticmethod
    def make(config: ThinkerConfig) -> Thinker:
        return Thinker(config, rngs=FastRngs(0))

    @classmethod
    def of(cls, config: ThinkerConfig, params: Params) -> "Ours":
        graph, _ = abstract_params(lambda: cls.make(config))
        decoder, _ = abstract_params(lambda: Decoder(config.text, rngs=FastRngs(0)))
        return cls(
            config, graph, params, acckv_jax.Decoder(DecoderStep(decoder), config.text.num_hidden_layers, scans=True)
        )


def loaded_thinker(config: ThinkerConfig, reference: torch.nn.Module, folder: Path) -> Ours:
    """Ours with the reference's parameters, through a checkpoint on disk."""
    reference.save_pretrained(folder)
    _, shapes = abstract_params(lambda: Ours.make(config))
    return Ours.of(config, load_params(open_checkpoint(folder), thinker_tensors(config), shapes))


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt with its media.

    Attributes:
        parts: as `expand` takes them.
        interleaved: whether videos are interleaved with their sound.
        frames: of each picture and video, in the order of the prompt.
        mels: log-mel spectrogram of each sound.
    """

    parts: Sequence[Part]
    interleaved: bool
    frames: list[np.ndarray]
    mels: list[np.ndarray]


def random_case(rng: np.random.Generator, config: ThinkerConfig, *, interleaved: bool) -> Case:
    """Text, one to three media, text; pictures among them."""
    side = config.vision.patch_size
    frames, mels = [], []

    def text() -> list[int]:
        return rng.integers(0, WORDS, rng.integers(1, 6)).tolist()

    def grid(times: int) -> tuple[int, int, int]:
        height, width = 2 * rng.integers(1, 5, 2)
        frames.append(rng.integers(0, 256, (2 * times - 1, height * side, width * side, 3), np.uint8))
        return times, int(height), int(width)

    def sound() -> AudioItem:
        frames = int(rng.choice([rng.integers(3, 30), rng.integers(30, 450)]))
        mels.append(rng.standard_normal((config.audio.num_mel_bins, frames)).astype(np.float32))
        return AudioItem(frames)

    def video() -> list[Part]:
        item = VideoItem(grid(int(rng.integers(1, 5))), 2 / float(rng.choice([0.4, 1, 2, 3.3])))
        if interleaved:
            return [dataclasses.replace(item, audio=sound())]
        return [item, sound()] if rng.random() < 0.7 else [item]

    parts: list[Part] = [text(), *video(), text()]
    for _ in range(rng.integers(0, 2)):
        parts += [ImageItem(grid(1)) if rng.random() < 0.5 else sound(), text()]
    return Case(parts, interleaved, frames, mels)


def theirs(case: Case, tokens: Tokens, config: ThinkerConfig) -> dict[str, object]:
    """A prompt as transformers takes it."""
    ids = torch.tensor(tokens.ids.astype(np.int64))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_audio_in_video": case.interleaved}
    visual = [part for part in case.parts if isinstance(part, ImageItem | VideoItem)]
    for kind, grids, values in (
        (ImageItem, "image_grid_thw", "pixel_values"),
        (VideoItem, "video_grid_thw", "pixel_values_videos"),
    ):
        mine = [(part, frames) for part, frames in zip(visual, case.frames, strict=True) if isinstance(part, kind)]
        if mine:
            inputs[grids] = torch.tensor([part.grid for part, _ in mine])
            patches = [patchify(frames, config.vision) for _, frames in mine]
            inputs[values] = torch.from_numpy(np.concatenate([p.reshape(-1, p.shape[-1]) for p in patches]))
    videos = [part for part in case.parts if isinstance(part, VideoItem)]
    inputs["video_second_per_grid"] = torch.tensor([part.seconds_per_grid for part in videos])
    if case.mels:
        longest = max(mel.shape[1] for mel in case.mels)
        padded = [np.pad(mel, ((0, 0), (0, longest - mel.shape[1]))) for mel in case.mels]
        mask = [np.arange(longest) < mel.shape[1] for mel in case.mels]
        inputs["input_features"] = torch.from_numpy(np.stack(padded))
        inputs["feature_attention_mask"] = torch.from_numpy(np.stack(mask)).long()
    return inputs


def embedded(ours: Ours, case: Case) -> tuple[Tokens, EmbeddedPrompt]:
    """A prompt's tokens, and the prompt with its media encoded."""
    tokens = expand(case.parts, ours.config)
    where = ours.graph, ours.params, ours.config
    video = [encode_frames(*where, frames) for frames in case.frames]
    audio = [encode_sound(*where, mel) for mel in case.mels]
    decoder = OverDecoder("tiny", ours.config.text, ours.graph, ours.params)
    return tokens, place_features(decoder.embed_text(tokens.text_ids), tokens, video, audio)
