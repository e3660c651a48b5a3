"""Models of acckv_jax as a chat model of lmms-eval: `--model acckv --model_args pretrained=smolav,policy=snapkv`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

import acckv_jax as kv
import models
from acckv_lmms_eval.messages import Chat, Medium, chat_of
from models.acckv_tau import TAU
from models.answering import Answer, EncodedClip, check_fits, check_policy, read_prompt, write_answer
from models.errors import UserError
from models.media.paths import clip_path
from models.policies import build_policy, parse_budget

MAX_NEW_TOKENS = 64
"""Of an answer, where a task does not say."""

IGNORED = ("device", "max_batch_size")
"""What lmms-eval gives every model; the device is JAX's choice."""


class AccKV(lmms):
    """A model whose cache is pruned by a policy before it answers."""

    is_simple = False

    def __init__(
        self,
        pretrained: str = "smolav",
        policy: str = "full",
        budget: float | int | str = 0.2,
        layout: str | None = None,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        """Loads a model.

        Args:
            pretrained: as `models.load`: a model's name, a checkpoint's folder, or OWNER/NAME of the Hugging Face hub.
            policy: name of a policy, or one in wrappers, such as protected(snapkv).
            budget: what is kept: with a decimal point a fraction of the prompt, an integer is a number of slots.
            layout: of media tokens; None is the model's own.
            batch_size: 1; documents are asked one by one.
            **options: of the policy, such as window_size=16.

        Raises:
            UserError: if one of them is wrong, or the model cannot be loaded.
        """
        super().__init__()
        if f"{batch_size}" != "1":
            raise UserError(f"Documents are asked one by one; set --batch_size 1, not {batch_size}.")
        own = [f"{name}={value}" for name, value in options.items() if name not in IGNORED]
        kept = 1.0 if policy == "full" else parse_budget(f"{budget}")
        build_policy(policy, kept, own)  # mistakes are found before a large model is loaded
        self.model = models.load(pretrained)
        self.policy = build_policy(policy, kept, own, tau=TAU[self.model.family])
        self._layout = layout
        self._shown: dict[tuple[Medium, ...], EncodedClip] = {}  # the last clip: its next question shares its prefill

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers of documents; "", and a line in the log, where media cannot be read."""
        answers = []
        for request in tqdm(requests, desc="Model responding", disable=self.rank != 0):
            *context, to_messages, options, id, task, split = request.args
            messages = to_messages(self.task_dict[task][split][id])
            answers.append(self._answer(messages, options, f"{task} {id}"))
            self.cache_hook.add_partial("generate_until", (*context[:1], options), answers[-1])
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """As `generate_until`, for tasks whose messages of a round depend on the answers before it."""
        answers = []
        for request in tqdm(requests, desc="Model responding in rounds", disable=self.rank != 0):
            *_, to_messages, options, id, task, split = request.args
            document, said, info = self.task_dict[task][split][id], list[str](), None
            messages = to_messages(document)
            while messages is not None:
                said.append(self._answer(messages, options, f"{task} {id}"))
                after = {"round_idx": len(said), "previous_output": list(said), "previous_round_info": info}
                following = to_messages(document, **after)
                messages, done, _, info = following if isinstance(following, tuple) else (None, True, None, None)
                messages = None if done else messages
            answers.append(said)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not possible: lmms-eval asks chat models to generate, and never to score.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("acckv generates answers; choose a task whose output_type is generate_until.")

    def _answer(self, messages: Any, options: Mapping[str, Any], where: str) -> str:
        messages = [message if isinstance(message, Mapping) else message.model_dump() for message in messages]
        with chat_of(messages) as chat:
            try:
                clip = self._encode(chat.media)
            except UserError as error:
                logger.error(f"{where} is not answered: {error}")
                return ""
            return _until(self._ask(clip, chat, options), options.get("until"))

    def _encode(self, media: tuple[Medium, ...]) -> EncodedClip:
        if media not in self._shown:
            read = [self.model.load_media(clip_path(one.file), None, one.span) for one in media]
            self._shown = {media: models.encode(self.model, read, layout=self._layout)}
        return self._shown[media]

    def _ask(self, clip: EncodedClip, chat: Chat, options: Mapping[str, Any]) -> str:
        prompt, before = clip.prompt, None
        for question, answer in chat.turns:
            text = (
                self.model.encode_question(question)
                if before is None
                else self.model.encode_next_question(before, question)
            )
            prompt, before = prompt.then(text), answer
        most = int(options.get("max_new_tokens") or MAX_NEW_TOKENS)
        check_fits(self.model, prompt, most)
        check_policy(self.policy, prompt, self.model.decoder.num_layers)
        reading = read_prompt(self.model, clip, prompt, chat.turns[-1][0], self.policy, most)
        *_, found = write_answer(self.model, reading, most, _sampler(options))
        assert isinstance(found, Answer)
        return found.text


def _sampler(options: Mapping[str, Any]) -> Any:
    """Greedy, unless a task asks for samples.

    Raises:
        UserError: if it asks for beams, or for samples of the likeliest tokens by their mass.
    """
    if (options.get("num_beams") or 1) > 1:
        raise UserError(f"num_beams={options['num_beams']}: there is no beam search; set num_beams=1.")
    temperature = options.get("temperature") or 0
    if not temperature or options.get("do_sample") is False:
        return kv.greedy
    if options.get("top_p") not in (None, 1):
        raise UserError(f"top_p={options['top_p']}: there is no nucleus sampling; set top_p=1, or temperature=0.")
    return kv.Sample(temperature=float(temperature))


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """A text up to the first of several texts."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0] if stop else text
    return text.strip()
