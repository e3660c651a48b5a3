"""The model of lmms-eval, against lmms-eval's interface as its model guide documents it (0.7), without lmms-eval.

lmms_eval_plugin/README.md has the output of a run with lmms-eval itself.
"""

import abc
import dataclasses
import inspect
import sys
import tomllib
import types
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import acckv_jax as kv
import models
from eval.answer import DEMO
from models.errors import UserError

PLUGIN = Path(__file__).parents[2] / "lmms_eval_plugin"


class Interface(abc.ABC):
    """lmms_eval.api.model.lmms: what a model has, and what it must define."""

    is_simple: bool = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]: ...

    @abc.abstractmethod
    def generate_until(self, requests: list[Any]) -> list[str]: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: list[Any]) -> list[str]: ...

    @property
    def rank(self) -> int:
        return self._rank


class CacheHook:
    """lmms_eval.api.model.CacheHook, which remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, str]] = []

    def add_partial(self, attr: str, req: Any, res: str) -> None:
        self.told.append((attr, req, res))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """lmms_eval.models.registry_v2.ModelManifest."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass
class Instance:
    """A request; `args` as ConfigurableMessagesTask.construct_requests makes them, or as the guide has them."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def plugin(logged):
    """The plug-in's modules, with lmms-eval's place taken by its interface."""
    theirs = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Interface},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
        "loguru": {"logger": types.SimpleNamespace(error=logged.append)},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PLUGIN)
        for name, content in theirs.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
        import acckv_lmms_eval
        import acckv_lmms_eval.model

        yield acckv_lmms_eval
        for name in [name for name in sys.modules if name.partition(".")[0] == "acckv_lmms_eval"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def logged():
    return []


@pytest.fixture
def made(plugin, small_model, monkeypatch):
    """Makes a model as lmms-eval does, from --model_args and its own arguments; the small SmolAV is what is loaded."""
    monkeypatch.setattr(plugin.model.models, "load", {"small": small_model}.__getitem__)

    def make(**arguments):
        return plugin.model.AccKV(pretrained="small", **arguments, batch_size=1, max_batch_size=None, device="cpu")

    return make


def test_the_entry_point_names_a_chat_model(plugin):
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["lmms_eval.models"] == {"acckv": "acckv_lmms_eval:manifest"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["acckv_lmms_eval"]
    manifest = plugin.manifest()
    module, _, name = manifest.chat_class_path.rpartition(".")
    kind = getattr(sys.modules[module], name)
    assert manifest.model_id == "acckv" and manifest.simple_class_path is None
    assert issubclass(kind, Interface) and kind.is_simple is False and not inspect.isabstract(kind)
    for method in ("generate_until", "generate_until_multi_round", "loglikelihood"):
        theirs, ours = (list(inspect.signature(getattr(of, method)).parameters) for of in (Interface, kind))
        assert theirs == ours


def user(text, *media):
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


VIDEO = {"type": "video", "url": str(DEMO / "demo.mp4")}
GREEDY = {"max_new_tokens": 4, "temperature": 0, "until": ["\n\n"]}


def request(id, options=GREEDY, context=("the text",), messages=None):
    return Instance((*context, messages or (lambda document: document), options, id, "demo", "test"))


@pytest.mark.complete
def test_answers_are_those_of_the_model(made, small_model, tmp_path, logged):
    """Both forms of a request; a system message; a clip that cannot be read."""
    (tmp_path / "broken.mp4").write_bytes(b"")
    model = made(policy="snapkv", budget=0.5, window_size=8)
    assert model.policy == kv.SnapKV(budget=0.5, window_size=8)
    documents = [
        [user("What is shown?", VIDEO)],
        [{"role": "system", "content": "Be brief."}, user("What is heard?", VIDEO)],
        [user("What?", {"type": "video", "url": str(tmp_path / "broken.mp4")})],
    ]
    model.task_dict = {"demo": {"test": documents}}
    found = model.generate_until([request(0), request(1, context=()), request(2)])
    clip = models.encode(small_model, DEMO / "demo.mp4")
    options = {"policy": model.policy, "max_new_tokens": 4}
    wanted = [
        models.answer(small_model, clip, text, **options).text
        for text in ("What is shown?", "Be brief.\nWhat is heard?")
    ]
    assert found == [*wanted, ""]
    assert [line for line in logged if "demo 2 is not answered: " in line and "is empty (0 bytes)" in line]
    assert model.cache_hook.told[0] == ("generate_until", ("the text", GREEDY), found[0])


def test_rounds(made):
    """The messages of a round depend on the answers before it; the protocol is lmms-eval's own."""
    model, seen = made(), []

    def messages(document, round_idx=None, previous_output=None, previous_round_info=None):
        seen.append((round_idx, previous_output, previous_round_info))
        if round_idx is None:
            return [user("What is shown?", VIDEO)]
        return [user(f"After {previous_output[-1]}?", VIDEO)], round_idx == 2, previous_output, {"round": round_idx}

    model.task_dict = {"demo": {"test": [{}]}}
    [said] = model.generate_until_multi_round([request(0, messages=messages)])
    assert len(said) == 2 and all(isinstance(text, str) for text in said)
    assert seen == [(None, None, None), (1, said[:1], None), (2, said, {"round": 1})]


def test_likelihoods_are_refused(made):
    with pytest.raises(NotImplementedError, match="acckv generates answers; choose a task whose output_type"):
        made().loglikelihood([])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"policy": "lru"}, "unknown policy 'lru'"),
        ({"policy": "snapkv", "speed": 9}, "has no option 'speed'"),
        ({"policy": "snapkv", "budget": "some"}, "Budget 'some' is no number"),
        ({"batch_size": 4}, "set --batch_size 1, not 4"),
    ],
)
def test_wrong_arguments(plugin, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        plugin.model.AccKV(**arguments)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 3}, "there is no beam search"),
        ({"temperature": 0.7, "top_p": 0.9}, "there is no nucleus sampling"),
    ],
)
def test_decoding_that_there_is_not(plugin, options, sentence):
    with pytest.raises(UserError, match=sentence):
        plugin.model._sampler(options)


def test_decoding(plugin):
    greedy = [{}, {"temperature": 0, "top_p": 0.9}, {"temperature": 1, "do_sample": False}, {"num_beams": 1}]
    assert [plugin.model._sampler(options) for options in greedy] == [kv.greedy] * 4
    assert plugin.model._sampler({"temperature": 0.5, "top_p": None}) == kv.Sample(temperature=0.5)
    assert plugin.model._until("a\n\nb", ["\n\n"]) == plugin.model._until(" a ", None) == "a"


def test_messages(plugin, tmp_path):
    from acckv_lmms_eval.messages import chat_of

    part = {"type": "video", "url": "a.mp4", "start_time": 2, "end_time": 4.5}
    given = {"type": "video", "url": {"path": "b.mp4", "video_start": 1.0}}
    tone = {"type": "audio", "url": {"array": np.array([0.0, 0.5, -2.0]), "sampling_rate": 8000}}
    picture = {"type": "image", "url": Image.new("RGB", (3, 2), (9, 8, 7))}
    dialogue = [
        {"role": "system", "content": "Short."},
        user("Who?", part, given, tone, picture),
        {"role": "assistant", "content": [{"type": "text", "text": "Ann"}]},
        {"role": "user", "content": "Where?"},
    ]
    with chat_of(dialogue) as chat:
        assert chat.turns == (("Short.\nWho?", "Ann"), ("Where?", None))
        assert chat.media[0] == ("a.mp4", (2.0, 4.5)) and chat.media[1] == ("b.mp4", (1.0, 3 * 3600.0))
        with wave.open(chat.media[2].file) as sound:
            assert (sound.getframerate(), sound.getnchannels()) == (8000, 1)
            assert np.frombuffer(sound.readframes(9), "<i2").tolist() == [0, 16383, -32767]
        assert Image.open(chat.media[3].file).getpixel((0, 0)) == (9, 8, 7)
    assert not Path(chat.media[3].file).exists()


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([{"role": "assistant", "content": "Hi"}], "must begin with the user's, and then take turns"),
        ([user("a"), user("b")], "must begin with the user's, and then take turns"),
        ([], "The last message of a document must be the user's"),
        ([user("a"), {"role": "assistant", "content": "b"}], "The last message of a document must be the user's"),
        ([user("a"), {"role": "assistant", "content": "b"}, user("c", VIDEO)], "with the first question only"),
        ([user("a", {"type": "video", "url": 7})], "A video of type int cannot be shown; give the path of a file"),
    ],
)
def test_messages_that_are_none(plugin, messages, sentence):
    from acckv_lmms_eval.messages import chat_of

    with pytest.raises(UserError, match=sentence), chat_of(messages):
        pass
