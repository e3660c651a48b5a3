"""All benchmark tasks, by name."""

from eval.tasks.avhbench import AVHBench
from eval.tasks.avsd import Avsd
from eval.tasks.clips import Clips
from eval.tasks.clips_full import ClipsFull
from eval.tasks.daily_omni import DailyOmni
from eval.tasks.interface import Task
from eval.tasks.music_avqa import MusicAvqa
from eval.tasks.mvbench import MVBench
from eval.tasks.omnivideobench import OmniVideoBench
from eval.tasks.video_mme import VideoMME
from eval.tasks.worldsense import WorldSense

TASKS: dict[str, type[Task]] = {
    "clips": Clips,
    "clips_full": ClipsFull,
    "music_avqa": MusicAvqa,
    "avsd": Avsd,
    "mvbench": MVBench,
    "worldsense": WorldSense,
    "daily_omni": DailyOmni,
    "video_mme": VideoMME,
    "avhbench": AVHBench,
    "omnivideobench": OmniVideoBench,
}
