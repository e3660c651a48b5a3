"""All benchmark tasks, by name."""

from eval.composed import ComposedTask
from eval.tasks.avhbench import AVHBench
from eval.tasks.avsd import Avsd
from eval.tasks.clips import Clips, LongClips
from eval.tasks.clips_full import ClipsFull
from eval.tasks.daily_omni import DailyOmni
from eval.tasks.dialogues import Dialogues
from eval.tasks.interface import Task
from eval.tasks.keys import Keys
from eval.tasks.music_avqa import MusicAvqa
from eval.tasks.mvbench import MVBench
from eval.tasks.needles import Needles
from eval.tasks.omnivideobench import OmniVideoBench
from eval.tasks.pass_key import PassKey
from eval.tasks.perplexity import Perplexity
from eval.tasks.transcripts import Transcripts
from eval.tasks.video_mme import VideoMME
from eval.tasks.worldsense import WorldSense

COMPOSED: dict[str, type[ComposedTask]] = {
    "dialogues": Dialogues,
    "needles": Needles,
    "transcripts": Transcripts,
}
TASKS: dict[str, type[Task]] = {
    "clips": Clips,
    "long_clips": LongClips,
    "clips_full": ClipsFull,
    "music_avqa": MusicAvqa,
    "avsd": Avsd,
    "mvbench": MVBench,
    "worldsense": WorldSense,
    "daily_omni": DailyOmni,
    "video_mme": VideoMME,
    "avhbench": AVHBench,
    "omnivideobench": OmniVideoBench,
    "keys": Keys,
    "pass_key": PassKey,
    "perplexity": Perplexity,
    **COMPOSED,
    **{f"{name}_without_sound": task.without("audio") for name, task in COMPOSED.items()},
    **{f"{name}_without_pictures": task.without("video") for name, task in COMPOSED.items()},
}
