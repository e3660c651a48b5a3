"""Makes the videollama2_*.npz beside this file (or in $VIDEOLLAMA2_GOLDEN); README.md says what they are.

Run it from the repository's root with a checkout of the `audio_visual` branch of DAMO-NLP-SG/VideoLLaMA2, and a folder
of further packages (README.md): `python -m tests.golden.make_videollama2 CHECKOUT PACKAGES`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import BEATS, GOLDEN, MODEL, SOUNDS, STC, beats_sizes, model_config, question_ids


def package(name: str, path: Path | None = None, **members: Any) -> types.ModuleType:
    """Registers a module; with a path it is a package whose own __init__ does not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(path)] if path else []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def import_upstream(checkout: Path, packages: Path) -> types.SimpleNamespace:
    """Imports upstream's modules without what they import and these cases do not need (decoders, CUDA builds)."""
    sys.path.append(str(packages))  # only now: transformers would import the torchaudio there, which needs CUDA

    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        package(name, FrozenBatchNorm2d=torch.nn.Identity)  # timm only names it
    for name in ("cv2", "imageio", "decord", "moviepy", "moviepy.editor", "librosa", "soundfile"):
        package(name, VideoReader=None, cpu=None, VideoFileClip=None)
    for name in ("timm", "timm.data", "timm.models", "torchaudio", "pytorchvideo", "pytorchvideo.data"):
        names = {"__version__": "", "IMAGENET_DEFAULT_MEAN": None, "IMAGENET_DEFAULT_STD": None}
        package(name, packages.joinpath(*name.split(".")), **names)
    sys.modules["transformers"].TRANSFORMERS_CACHE = ""  # transformers 5 has none; upstream's downloads alone use it
    package("videollama2", checkout / "videollama2")
    package("videollama2.model", checkout / "videollama2" / "model")
    return types.SimpleNamespace(
        encoder=importlib.import_module("videollama2.model.encoder"),
        projector=importlib.import_module("videollama2.model.projector"),
        beats=importlib.import_module("videollama2.model.beats.BEATs"),
        qwen2=importlib.import_module("videollama2.model.videollama2_qwen2"),
        utils=importlib.import_module("videollama2.mm_utils"),
        kaldi=importlib.import_module("torchaudio.compliance.kaldi"),
    )


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Sets every parameter by the rule of `seeded.weight`, under the first of its names in a checkpoint."""
    first: dict[int, str] = {}
    state = {}
    for name, value in module.state_dict().items():
        name_there = on_disk(first.setdefault(value.data_ptr(), name))
        state[name] = torch.from_numpy(seeded.weight(seed, name_there, tuple(value.shape)))
    module.load_state_dict(state)
    return module.eval()


def on_disk(name: str) -> str:
    """The name in a checkpoint: transformers 5 leaves out a level of SigLIP's names in memory."""
    at = "vision_tower.vision_tower."
    return name.replace(at, at + "vision_model.") if at in name and "vision_model." not in name else name


def stc(upstream: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Outputs of the connector."""
    found = {}
    for number, case in enumerate(STC):
        sizes = types.SimpleNamespace(mm_hidden_size=case.features, hidden_size=case.hidden)
        module = fill(upstream.projector.STCConnectorV35(sizes), case.seed)
        shape = (1, case.frames, case.side**2, case.features)
        found[f"out_{number}"] = module(torch.from_numpy(seeded.array(case.seed, "patches", shape)))[0].numpy()
    return found


def beats(upstream: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Outputs of the audio encoder, and its tags."""
    found = {}
    for number, case in enumerate(BEATS):
        module = fill(upstream.beats.BEATs(upstream.beats.BEATsConfig(beats_sizes(case.sizes))), case.seed)
        banks = torch.from_numpy(seeded.banks(case.seed, (1, case.frames, case.bands)))
        found[f"out_{number}"] = module.extract_features(banks)[0][0].numpy()
        found[f"tags_{number}"] = module.extract_features(banks, feature_only=False)[0][0].numpy()
    return found


def buckets(upstream: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Bucket of every distance between 1,496 patches, at the published sizes."""
    backbone = importlib.import_module("videollama2.model.beats.backbone")
    attention = backbone.MultiheadAttention(
        12, 12, self_attention=True, has_relative_attention_bias=True, num_buckets=320, max_distance=800
    )
    return {"buckets": attention._relative_positions_bucket(torch.arange(-1495, 1496)).numpy().astype(np.int32)}


def model(upstream: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Logits of all positions of the whole model, and 32 tokens that its `generate` adds greedily."""
    found = {}
    for number, case in enumerate(MODEL):
        values = model_config(case)
        siglip = SiglipVisionConfig(**values["mm_vision_tower_config"])
        sizes = beats_sizes(values["mm_audio_tower_config"])
        upstream.encoder.SiglipVisionConfig = types.SimpleNamespace(from_pretrained=lambda name, c=siglip: c)
        upstream.encoder.SiglipVisionModel = types.SimpleNamespace(
            from_pretrained=lambda name, c=siglip: SiglipVisionModel(c)
        )
        upstream.encoder.SiglipImageProcessor = types.SimpleNamespace(from_pretrained=lambda name: None)
        upstream.encoder.BEATsConfig = lambda cfg=None, s=sizes: upstream.beats.BEATsConfig(s)
        config = upstream.qwen2.Videollama2Qwen2Config(**values, attn_implementation="eager")
        module = upstream.qwen2.Videollama2Qwen2ForCausalLM(config)
        module.get_vision_tower().load_model()
        fill(module, case.seed)
        side = values["mm_vision_tower_config"]["image_size"]
        pixels = torch.from_numpy(seeded.image(case.seed, (values["num_frames"], side, side, 3)).transpose(0, 3, 1, 2))
        banks = torch.from_numpy(seeded.banks(case.seed, (1, case.frames, case.bands)))
        media = {"video": pixels.contiguous(), "audio": banks} if case.frames else pixels.contiguous()
        ids = torch.tensor([question_ids(case)])
        found[f"logits_{number}"] = module(input_ids=ids, images=[(media, "video")]).logits[0].numpy()
        tokens = module.generate(
            ids,
            images=[(media, "video")],
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=32,
            min_new_tokens=32,
            pad_token_id=0,
        )
        found[f"tokens_{number}"] = tokens[0].numpy().astype(np.int32)
    return found


def preprocessing(upstream: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Filter banks of short sounds; of whole clips' sounds every 61st frame; numbers of sampled frames."""
    found = {}
    for number, (seconds, seed) in enumerate(SOUNDS):
        wave = seeded.sound(seed, seconds)
        short = torch.from_numpy(wave[:16_000])[None] * 2**15
        found[f"banks_{number}"] = upstream.kaldi.fbank(
            short, num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10
        ).numpy()[::7]
        upstream.utils.load_audio_from_video = lambda path, w=wave: (w, 16_000)
        whole = upstream.utils.process_audio_from_video("", 2)[0]
        found[f"clip_{number}"] = whole[::61].to(torch.float32).numpy()
    for count in (8, 16):
        totals = range(1, 501)
        found[f"frames_{count}"] = np.stack(
            [upstream.utils.frame_sample(n, mode="uniform", num_frames=count) for n in totals]
        ).astype(np.int32)
    return found


def main() -> None:
    torch.set_grad_enabled(False)
    upstream = import_upstream(Path(sys.argv[1]), Path(sys.argv[2]))
    makers = {"stc": stc, "beats": beats, "buckets": buckets, "model": model, "preprocessing": preprocessing}
    for name in sys.argv[3:] or makers:
        np.savez_compressed(GOLDEN / f"videollama2_{name}.npz", **makers[name](upstream))


if __name__ == "__main__":
    main()
