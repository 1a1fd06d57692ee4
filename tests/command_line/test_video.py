"""Videos: frames come out as they went in, upright, and damage is reported."""

from __future__ import annotations

import fractions

import numpy as np
import pytest

from kmaskformer.command_line.video import VideoFrames, VideoWriter, import_av

av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")


def frame(number, height=48, width=64):
    """A grey picture, brighter with each number, whose upper left quarter is white."""
    image = np.full((height, width, 3), 20 + 20 * number, np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


@pytest.fixture()
def video(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", fractions.Fraction(10)) as writer:
        for number in range(7):
            writer.add(frame(number))
    return tmp_path / "clip.mp4"


def test_frames_come_out_as_they_went_in(video):
    frames = VideoFrames(video)
    assert (frames.rate, frames.count) == (10, 7)
    found = list(frames)
    assert [round(seconds, 3) for seconds, _ in found] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for number, (_, image) in enumerate(found):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - frame(number)).mean() < 6  # of lossy colours


def test_every_third_frame(video):
    frames = VideoFrames(video, step=3)
    assert frames.rate == fractions.Fraction(10, 3) and frames.count == 3
    assert [round((int(image[-1, -1, 0]) - 20) / 20) for _, image in frames] == [0, 3, 6]


def test_a_clip_held_upright_comes_out_upright(tmp_path):
    """A phone stores its pixels lying and the turn beside them."""
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(0), format="rgb24")))
        container.mux(stream.encode())
    ((_, image),) = VideoFrames(tmp_path / "turned.mp4")
    assert image.shape == (64, 48, 3)
    assert np.abs(image.astype(int) - np.rot90(frame(0))).mean() < 6


def test_odd_sizes_lose_a_row(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", fractions.Fraction(10)) as writer:
        writer.add(frame(0, 33, 47))
    ((_, image),) = VideoFrames(tmp_path / "odd.mp4")
    assert image.shape == (32, 46, 3)


def test_what_is_no_video(video, tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4: cannot be read as a video"):
        VideoFrames(tmp_path / "text.mp4")
    content = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4: "):
        list(VideoFrames(tmp_path / "cut.mp4"))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"needs av, .*install\.sh video"):
        import_av()
