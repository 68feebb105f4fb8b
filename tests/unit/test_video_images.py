"""Images of every mode, animations and folders as videos."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from video_clips import number_of, picture

import video
from video import VideoError, read
from video.images import list_frames


def one(path):
    frames = read(path).frames
    assert len(frames) == 1
    return frames[0].permute(1, 2, 0).numpy()


def test_a_grey_palette_or_cmyk_image_becomes_rgb(tmp_path):
    grey = np.arange(48 * 64).reshape(48, 64).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (one(tmp_path / "grey.png") == grey[..., None]).all()
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    assert (one(tmp_path / "bits.png") == 255 * (grey > 100)[..., None]).all()
    Image.fromarray(picture(3)).quantize(16).save(tmp_path / "palette.png")
    assert abs(one(tmp_path / "palette.png").astype(int) - picture(3)).max() < 40
    Image.fromarray(picture(3)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert abs(one(tmp_path / "print.jpg").astype(int) - picture(3)).mean() < 5


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    deep = (np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    assert (one(tmp_path / "deep.png") == (deep >> 8)[..., None]).all()
    assert (one(tmp_path / "deep.tif") == (deep >> 8)[..., None]).all()


@pytest.mark.parametrize("mode", ["I;16", "L", "RGB", "RGBA", "1"])
@pytest.mark.parametrize("name", ["a.tif", "packed.tif", "a.png"])
def test_pictures_of_every_mode_are_turned_upright(tmp_path, mode, name):
    grey = np.arange(48 * 64).reshape(48, 64) // 12
    stored = Image.fromarray((grey << 8).astype(np.uint16))
    if mode != "I;16":
        stored = Image.fromarray(grey.astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    packed = {"compression": "tiff_deflate"} if name == "packed.tif" else {}
    stored.save(tmp_path / name, exif=exif, **packed)
    wanted = grey if mode == "I;16" else np.asarray(stored.convert("L"))
    assert (one(tmp_path / name) == np.rot90(wanted, -1)[..., None]).all()
    info = video.probe(tmp_path / name)
    assert (info.width, info.height, info.rotation) == (48, 64, 90)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparent_pixels_are_shown_on_white(tmp_path, suffix):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = 200, 0, 0, 255
    pixels[:, 6:, 3] = 128
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", lossless=True)
    seen = one(tmp_path / f"a.{suffix}")
    assert seen[0, 0].tolist() == [200, 0, 0]
    assert seen[0, 4].tolist() == [255, 255, 255]
    assert abs(int(seen[0, 7, 0]) - 127) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation):
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes it
    picture_ = Image.fromarray(picture(9))
    stored = (
        picture_.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else picture_
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    info = video.probe(tmp_path / "a.jpg")
    assert (info.width, info.height) == (64, 48)
    assert abs(one(tmp_path / "a.jpg").astype(int) - picture(9)).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(9)).save(tmp_path / "a.jpg", exif=exif)
    info = video.probe(tmp_path / "a.jpg")
    assert (info.width, info.height, info.rotation) == (64, 48, 0)
    assert number_of(one(tmp_path / "a.jpg")) == 9


def test_the_name_of_an_image_does_not_matter(clips, tmp_path):
    (tmp_path / "photo.mp4").write_bytes(clips("tiny.png").read_bytes())
    assert number_of(one(tmp_path / "photo.mp4")) == 5


def test_an_animation_frame_without_duration_is_shown_for_a_tenth_of_a_second(tmp_path):
    frames = [Image.fromarray(picture(n)) for n in range(3)]
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[0, 10, 60]
    )
    clip = read(tmp_path / "a.gif")
    torch.testing.assert_close(clip.pts, torch.tensor([0, 0.1, 0.2], dtype=torch.float64))
    assert clip.info.duration == pytest.approx(0.26)


def test_an_animation_can_be_resampled_and_cut(clips):
    clip = read(clips("moving.webp"), fps=25)
    assert [number_of(f) for f in clip.frames] == [0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 4, 5, 5]
    part = read(clips("moving.gif"), clip=(0.1, 0.4))
    assert [number_of(f) for f in part.frames] == [2, 3, 4]


def test_frames_of_a_folder_are_in_natural_order_at_25_or_any_rate(clips):
    clip = read(clips("frames"))
    assert [number_of(f) for f in clip.frames] == list(range(12))
    assert float(clip.pts[1]) == 0.04
    clip = read(clips("frames"), fps=10)
    assert len(clip.frames) == 12
    assert float(clip.pts[1]) == 0.1
    assert clip.fps == 10


def test_natural_order_takes_any_name(tmp_path):
    names = ["01.png", "1.png", "2b.png", "10.png", "a²9.png", "a²10.png", "b.PNG"]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [os.path.basename(file) for file in list_frames(str(tmp_path))] == names


def test_a_folder_with_two_sizes_is_refused_after_the_frames_before(tmp_path):
    for number, size in enumerate([(48, 64), (48, 64), (50, 64)]):
        Image.fromarray(picture(number, *size)).save(tmp_path / f"{number}.png")
    with video.open_video(tmp_path) as reader:
        chunks = iter(reader)
        assert len(next(chunks)[0]) == 2
        with pytest.raises(VideoError, match=r"2\.png is 64x50 .* 64x48"):
            next(chunks)


def test_a_folder_with_a_broken_frame_names_it(tmp_path, clips):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(clips("tiny.png").read_bytes())
    (tmp_path / "b.png").write_bytes(clips("tiny.png").read_bytes()[:60])
    with pytest.raises(VideoError, match=r"b\.png"):
        read(tmp_path)


def test_a_folder_with_a_link_to_nowhere_names_it(tmp_path, clips):
    (tmp_path / "a.png").write_bytes(clips("tiny.png").read_bytes())
    (tmp_path / "b.png").symlink_to("nowhere.png")
    with pytest.raises(VideoError, match=r"b\.png cannot be opened"):
        read(tmp_path)


def test_an_image_that_claims_to_be_huge_is_refused_unread(tmp_path):
    (tmp_path / "bomb.bmp").write_bytes(
        b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + (60000).to_bytes(4, "little") * 2
        + b"\1\0\x18\0" + bytes(24) + bytes(100)
    )  # fmt: skip
    with pytest.raises(VideoError, match="3600000000 pixels"):
        video.probe(tmp_path / "bomb.bmp")
