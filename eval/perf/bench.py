"""A model, a synthetic prompt, and the time of each stage of a policy on them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import acckv_jax
from acckv_jax import CachePolicy, KVCache, Modality, Prompt, Scored
from acckv_jax.generate import for_decoding
from eval.perf.timing import fastest
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.layers.init import Params, abstract_params, init_params
from models.over_decoder import DecoderStep, with_single_layers
from models.smolav.smollm2 import load_smollm2

TEXT = 64
"""Text tokens of the synthetic prompt, half before and half after the media."""


QWEN2 = DecoderConfig(
    vocab_size=2048,
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=1024,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    max_position_embeddings=32768,
    attention_bias=True,
    tie_word_embeddings=False,
)
"""A small Qwen2: 8 layers, hidden 512."""


def random_qwen2() -> tuple[DecoderConfig, nnx.GraphDef, Params]:
    """QWEN2 with random weights."""
    return QWEN2, *init_params(lambda: Decoder(QWEN2, rngs=nnx.Rngs(0)))


def smollm2() -> tuple[DecoderConfig, nnx.GraphDef, Params]:
    """SmolLM2-135M."""
    config, params = load_smollm2()
    graph, _ = abstract_params(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return config, graph, params


MODELS: dict[str, Callable[[], tuple[DecoderConfig, nnx.GraphDef, Params]]] = {
    "qwen2": random_qwen2,
    "smollm2": smollm2,
}
TAU = {"qwen2": 0.9, "smollm2": 0.6}
"""Threshold of AccKV's gate for the model's family."""


def modalities(tokens: int) -> np.ndarray:
    """[1, tokens]: text, then seconds of 16 video and 10 audio tokens, then text."""
    body = np.resize(np.repeat([Modality.VIDEO, Modality.AUDIO], [16, 10]), max(0, tokens - TEXT))
    return np.concatenate([np.zeros(TEXT // 2), body, np.zeros(TEXT // 2)]).astype(np.int8)[None, :tokens]


def random_prompt(tokens: int, config: DecoderConfig) -> tuple[jax.Array, Prompt]:
    """Random token ids [1, tokens], and their modalities."""
    ids = jax.random.randint(jax.random.key(0), (1, tokens), 0, config.vocab_size)
    return ids, acckv_jax.make_prompt(modalities(tokens))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model and a prompt to measure with.

    Attributes:
        decoder: the decoder, which scans.
        params: its parameters.
        tokens: [1, T] token ids.
        prompt: modalities of them.
        steps: decode steps of a run.
        repeats: runs of which the fastest counts.
    """

    decoder: acckv_jax.Decoder
    params: Params
    tokens: jax.Array
    prompt: Prompt
    steps: int
    repeats: int

    @classmethod
    def make(cls, model: str, context: int, *, steps: int, repeats: int) -> "Bench":
        """Loads a model and makes a prompt of `context` random tokens.

        Args:
            model: a key of MODELS.
            context: tokens of the prompt, more than TEXT.
            steps: decode steps of a run.
            repeats: runs of which the fastest counts.

        Raises:
            UserError: if the prompt is too long for the model.
        """
        config, graph, params = MODELS[model]()
        if context + steps > config.max_position_embeddings:
            raise UserError(
                f"--context and --steps must be at most {config.max_position_embeddings} together for "
                f"{model}, not {context + steps}."
            )
        decoder = acckv_jax.Decoder(DecoderStep(graph), config.num_hidden_layers, scans=True)
        params = with_single_layers(jax.device_put(params))
        return cls(decoder, params, *random_prompt(context, config), steps, repeats)

    def prefill(self, policy: CachePolicy) -> tuple[tuple[jax.Array, Scored], float]:
        """Logits and the whole prompt with the policy's sums, and seconds."""
        arguments = (self.decoder, self.params, self.tokens, self.prompt, (policy,))
        return fastest(lambda: acckv_jax.jitted.score(*arguments), self.repeats)

    def prune(self, scored: Scored, policy: CachePolicy) -> tuple[KVCache, float]:
        """The pruned cache, and seconds."""
        reserved = policy.reserved_slots(self.steps)
        return fastest(lambda: acckv_jax.prune(scored, policy, reserved_slots=reserved), self.repeats)

    def decode(self, logits: jax.Array, cache: KVCache, policy: CachePolicy) -> float:
        """Seconds per decode step."""
        loop = functools.partial(
            acckv_jax.jitted.decode, self.decoder, self.params, policy=policy.while_decoding(), steps=self.steps
        )

        def fresh() -> tuple[acckv_jax.DecodeState]:
            own = for_decoding(self.decoder, jax.tree.map(jnp.copy, cache))
            return (acckv_jax.start_decoding(logits, own, jax.random.key(0)),)

        _, seconds = fastest(lambda state: loop(state=state), self.repeats, fresh)
        return seconds / self.steps

    def prefill_temp_bytes(self, policy: CachePolicy) -> int:
        """Scratch memory of the compiled prefill that prunes layer by layer."""
        lowered = acckv_jax.jitted.prefill.lower(
            self.decoder,
            self.params,
            self.tokens,
            self.prompt,
            policy,
            reserved_slots=policy.reserved_slots(self.steps),
        )
        memory: Any = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes
