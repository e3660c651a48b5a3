"""Pictures, folders of pictures and animations: as Pillow and the models' own processors have them."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from models.errors import UserError
from models.media.clip import Media, Sampling, read_clip
from models.media.clip_writer import write_clip
from models.media.pictures import find_pictures, natural
from tests.models.media.numbered import frame, number_of, numbers_of
from tests.models.media.readers import qwen, smolav, videollama2
from tests.models.media.written import write_video

NUMBER = 0b110010100101  # differs from itself in all eight orientations


def frame_of(media: Media) -> np.ndarray:
    assert media.frames is not None and len(media.frames) == 1
    return media.frames[0]


def picture(path: Path) -> np.ndarray:
    return frame_of(read_clip(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(frame(NUMBER)).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(picture(tmp_path / f"a.{suffix}"), expected)


# What ffmpeg 5.1 shows of the number with each display matrix (a, b, c, d of ISO 14496-12).
MATRICES = {
    (1, 0, 0, 1): 3237,
    (-1, 0, 0, 1): 858,
    (1, 0, 0, -1): 1452,
    (-1, 0, 0, -1): 2643,
    (0, 1, -1, 0): 1944,
    (0, -1, 1, 0): 366,
    (0, 1, 1, 0): 3729,
    (0, -1, -1, 0): 2151,
}


@pytest.mark.parametrize("size", [None, (60, 120)])
@pytest.mark.parametrize("matrix", MATRICES)
def test_videos_that_are_turned_or_mirrored(matrix, size, tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, frame(NUMBER)[None], 1)
    data = path.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :])
    media = read_clip(path, Sampling(size=size))
    assert numbers_of(media.frames) == [MATRICES[matrix]]
    assert media.frames is not None and media.frames.shape[1:3] == (size or ((64, 96) if a else (96, 64)))


def as_qwen_omni_utils(image: Image.Image) -> Image.Image:
    """Its `to_rgb` (0.0.9): an alpha channel is pasted on white, all else is converted."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.split()[3])
    return white


MODES = {"png": ("RGBA", "LA", "P", "RGB", "L", "1"), "webp": ("RGBA", "RGB"), "tiff": ("RGBA", "LA", "RGB", "CMYK")}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_transparent_places(suffix, mode, tmp_path):
    image = Image.new("RGBA", (84, 56), (200, 30, 90, 0))
    ImageDraw.Draw(image).rectangle((20, 20, 60, 40), fill=(0, 0, 0, 255))
    ImageDraw.Draw(image).rectangle((30, 25, 40, 30), fill=(0, 0, 255, 100))
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as opened:
        expected, dropped = np.asarray(as_qwen_omni_utils(opened)), np.asarray(opened.convert("RGB"))
        transparent = opened.has_transparency_data
    np.testing.assert_array_equal(frame_of(qwen(path)), expected)  # 84 x 56 is a size that Qwen keeps
    shown = np.asarray(Image.fromarray(dropped).resize((384, 384), Image.Resampling.BICUBIC)).astype(int)
    np.testing.assert_allclose(frame_of(videollama2(path)).astype(int), shown, atol=2)  # `convert("RGB")`
    if transparent:
        assert picture(path)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits(suffix, tmp_path):
    grey = frame(NUMBER)[:, :, 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(picture(tmp_path / f"a.{suffix}"), frame(NUMBER))


def test_a_picture_is_known_by_its_content(tmp_path):
    Image.fromarray(frame(NUMBER)).save(tmp_path / "a.png")
    for name in ("png named.jpg", "no suffix", "wrong.mp4"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
        assert number_of(picture(tmp_path / name)) == NUMBER


ANIMATIONS = {"a.webp": {"lossless": True}, "a.png": {}, "a.avif": {"quality": 95}, "a.gif": {}}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animations(name, tmp_path):
    """A tenth of a second, a whole one, then a fifth each."""
    durations = [100, 1000, *[200] * 8]
    images = [Image.fromarray(frame(number)) for number in range(10)]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=durations, **ANIMATIONS[name])
    assert numbers_of(smolav(tmp_path / name).frames) == [0, 1, 6]
    assert numbers_of(qwen(tmp_path / name).frames) == [0, 3, 6, 9]
    shown = videollama2(tmp_path / name)
    assert numbers_of(shown.frames)[::5] == [0, 3, 6, 9] and shown.fps == pytest.approx(16 / 2.7)


def test_a_picture_that_is_no_animation(tmp_path):
    for name in ("a.webp", "a.png", "a.avif"):
        Image.fromarray(frame(NUMBER)).save(tmp_path / name)
        assert qwen(tmp_path / name).frames.shape[0] == 1


def test_pages_that_are_left_out_are_told(tmp_path):
    images = [Image.fromarray(frame(number)) for number in range(3)]
    images[0].save(tmp_path / "a.tiff", save_all=True, append_images=images[1:])
    media = read_clip(tmp_path / "a.tiff")
    assert numbers_of(media.frames) == [0]
    assert media.notes == (f"{tmp_path / 'a.tiff'} holds 3 pictures, of which the first was read.",)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_qwen_sees_all_pictures_of_a_folder(count, tmp_path):
    """qwen-omni-utils repeats the last of an odd number; one picture is a picture."""
    for number in range(count):
        Image.fromarray(frame(number)).save(tmp_path / f"{number}.png")
    expected = [*range(count), *[count - 1] * (count % 2 if count > 1 else 0)]
    media = qwen(tmp_path)
    assert numbers_of(media.frames) == expected and media.fps == 2 and media.notes == ()
    assert numbers_of(smolav(tmp_path).frames) == list(range(count))


def test_pictures_that_a_model_does_not_take_are_told(tmp_path):
    for number in range(20):
        Image.fromarray(frame(number)).save(tmp_path / f"{number}.png")
    assert videollama2(tmp_path).notes == ("16 of the 20 pictures were read; the model takes no more.",)


def test_names(tmp_path):
    """Numbers of other scripts, a folder named like a picture, hidden files, and files that are no pictures."""
    folder = tmp_path / "album.jpg"
    (folder / "sub.jpg").mkdir(parents=True)
    for name in ("①1.jpg", "10m²_3.jpg", "2.jpg", "10.jpg", "é.jpg", "٣.jpg"):
        Image.fromarray(frame(NUMBER)).save(folder / name)
    for name in ("._2.jpg", ".DS_Store", "notes.txt", "film.mp4"):
        (folder / name).write_bytes(b"\0")
    media = smolav(folder)
    assert len(numbers_of(media.frames)) == 6
    assert media.notes == (f"{folder} also holds files that are not read as pictures: film.mp4, notes.txt.",)
    assert [path.name for path in find_pictures(folder)[0]][:4] == ["2.jpg", "٣.jpg", "10.jpg", "10m²_3.jpg"]
    assert len(numbers_of(smolav(folder / "*.jpg").frames)) == 6
    assert natural(Path("a10")) > natural(Path("a9"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"text", b"RIFF\0\0\0\0WEBPVP8X"])
def test_pictures_that_are_none(content, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match="empty|damaged") as error:
        read_clip(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_picture_in_a_folder_that_is_damaged(tmp_path):
    Image.fromarray(frame(1)).save(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:300])
    with pytest.raises(UserError, match=r"2\.jpg is damaged"):
        smolav(tmp_path)


def test_a_picture_that_is_too_large(tmp_path):
    Image.new("1", (20_000, 9_500)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="too large; scale it down"):
        read_clip(tmp_path / "a.png")


def test_damaged_tiff_of_several_pages(tmp_path):
    pages = [Image.new("RGB", (30, 20), (value,) * 3) for value in (0, 80, 160, 240)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    data = (tmp_path / "a.tiff").read_bytes()
    for size in range(100, len(data), 23):
        (tmp_path / "cut.tiff").write_bytes(data[:size])
        try:
            read_clip(tmp_path / "cut.tiff")
        except UserError as error:
            assert "damaged" in str(error)


def test_damaged_avif(tmp_path):
    Image.new("RGB", (32, 32), (200, 30, 60)).save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    for place in range(8, 300, 3):
        (tmp_path / "flipped.avif").write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        try:
            read_clip(tmp_path / "flipped.avif")
        except UserError:
            continue


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_of_32_bits_are_told(kind, tmp_path):
    Image.fromarray(np.linspace(0, 65_000, 4800).reshape(60, 80).astype(kind)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="32 bits do not say what is white; save it with 8 or 16 bits"):
        read_clip(tmp_path / "a.tiff")


def test_a_video_named_as_a_picture(tmp_path):
    write_video(tmp_path / "a.mp4", 10, 10)
    (tmp_path / "a.mp4").rename(tmp_path / "a.jpg")
    assert len(read_clip(tmp_path / "a.jpg").frames) == 1


def test_what_is_no_file_in_a_folder_is_told(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    assert "2.png" in read_clip(tmp_path).notes[0]
