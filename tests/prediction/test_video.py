"""A tiny video goes in, and comes out with the classes laid over its frames."""

import json
import logging
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from hf_fst import cli
from hf_fst.drawing.overlays import overlay
from hf_fst.prediction import video as module
from tests.evaluation.conftest import run_dir  # noqa: F401  the fixture

av = pytest.importorskip("av", reason="PyAV, of the extra `video`, is not installed")
FRAMES, HEIGHT, WIDTH = 5, 48, 80


def scene(index):
    pixels = np.full((HEIGHT, WIDTH, 3), (40, 90, 160), dtype=np.uint8)
    pixels[:, : 16 * index] = (200, 180, 60)
    return pixels


def make_video(path, moments=range(FRAMES)):
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for index, moment in enumerate(moments):
            frame = av.VideoFrame.from_ndarray(scene(index), format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 10)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def frames(path):
    with av.open(str(path)) as video:
        return [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in video.decode(video=0)]


def test_videos_become_videos_beside_images(run_dir, tmp_path, capsys):  # noqa: F811
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    make_video(source / "drive.mp4", moments=[0, 1, 2, 6, 7])  # a gap, as cameras leave them
    make_video(source / "drive.mkv")
    (source / "broken.avi").write_bytes(b"no video")
    whole = (source / "drive.mp4").read_bytes()
    (source / "cut.mov").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(scene(2)).save(source / "still.png")
    argv = ["predict", str(run_dir), str(source), "-o", str(out), "--batch_size", "2", "--json"]
    assert cli.main(argv) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["videos"], result["frames"]) == (1, 2, 2 * FRAMES)
    assert [entry["file"].rpartition("/")[2] for entry in result["failed"]] == ["broken.avi", "cut.mov"]
    assert "broken.avi is damaged (Invalid data" in result["failed"][0]["reason"]
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["drive.mkv.mp4", "drive.mp4.mp4"]

    written = frames(out / "videos/drive.mp4.mp4")
    assert [moment for _, moment in written] == pytest.approx([0.0, 0.1, 0.2, 0.6, 0.7])
    assert written[0][0].shape[0] > HEIGHT and written[0][0].shape[1] == WIDTH  # the legend is below
    segmenter = module.Segmenter(run_dir)
    for (pixels, _), (picture, _) in zip(frames(source / "drive.mp4"), written, strict=True):
        expected = overlay(pixels, segmenter.classes([segmenter.look(pixels)])[0], segmenter.palette)
        assert np.abs(picture[:HEIGHT].astype(int) - expected).mean() < 10
    assert np.abs(written[0][0].astype(int) - written[4][0]).mean() > 10

    kept = (out / "videos/drive.mp4.mp4").stat().st_mtime_ns
    (source / "broken.avi").unlink()
    (source / "cut.mov").unlink()
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3
    assert (out / "videos/drive.mp4.mp4").stat().st_mtime_ns == kept


def make_loud_video(path, codec, rate=8000):
    """A second of the scene with a tone of 440 Hz."""
    with av.open(str(path), "w") as video:
        pictures, sound = video.add_stream("libx264", rate=10), video.add_stream(codec, rate=rate, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        wave = av.AudioFrame.from_ndarray((20000 * tone).astype(np.int16)[None], format="s16", layout="mono")
        wave.sample_rate, wave.pts = rate, 0
        resampler = av.AudioResampler(sound.codec_context.format.name, "mono", rate, frame_size=1024)
        for frame in (*resampler.resample(wave), *resampler.resample(None)):
            video.mux(sound.encode(frame))
        video.mux(sound.encode())
        for index in range(10):
            video.mux(pictures.encode(av.VideoFrame.from_ndarray(scene(index % FRAMES), format="rgb24")))
        video.mux(pictures.encode())


def packets(path):
    """The sound of a video as it is stored, with its times, and the tone that is strongest in it, in Hz."""
    with av.open(str(path)) as video:
        stored = [(float(p.pts * p.time_base), bytes(p)) for p in video.demux(audio=0) if p.size]
    with av.open(str(path)) as video:
        wave = np.concatenate([frame.to_ndarray().ravel() for frame in video.decode(audio=0)])
        return stored, np.abs(np.fft.rfft(wave)).argmax() * video.streams.audio[0].rate / len(wave)


def test_the_sound_of_a_video_is_kept_as_it_is(run_dir, tmp_path):  # noqa: F811
    make_loud_video(tmp_path / "in.mp4", "aac")
    assert module.predict_video(module.Segmenter(run_dir), tmp_path / "in.mp4", tmp_path / "out.mp4", 4) == 10
    (before, tone), (after, same_tone) = packets(tmp_path / "in.mp4"), packets(tmp_path / "out.mp4")
    assert len(before) > 5 and [data for _, data in after] == [data for _, data in before]
    assert [moment for moment, _ in after] == pytest.approx([moment for moment, _ in before], abs=1e-3)
    assert tone == pytest.approx(440, abs=5) and same_tone == tone
    assert len(frames(tmp_path / "out.mp4")) == 10


def test_sound_that_does_not_fit_is_left_out_and_that_is_said(run_dir, tmp_path, caplog):  # noqa: F811
    make_loud_video(tmp_path / "in.avi", "pcm_u8")
    logging.getLogger("transformers").propagate = True
    assert module.predict_video(module.Segmenter(run_dir), tmp_path / "in.avi", tmp_path / "out.mp4") == 10
    assert "The sound of in.avi is pcm_u8, which MP4 cannot hold; it is left out." in caplog.messages
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert not video.streams.audio


def test_pictures_of_odd_sizes_and_turned_ones_fit_the_codec(run_dir, tmp_path, monkeypatch):  # noqa: F811
    make_video(tmp_path / "in.mp4")
    real = module._frames
    monkeypatch.setattr(module, "_frames", lambda v: ((np.rot90(p[:, :77]).copy(), t, u) for p, t, u in real(v)))
    assert module.predict_video(module.Segmenter(run_dir), tmp_path / "in.mp4", tmp_path / "out.mp4") == FRAMES
    height, width, _ = frames(tmp_path / "out.mp4")[0][0].shape
    assert width == HEIGHT and height > 77 and height % 2 == 0


def test_without_pyav_it_says_what_to_install(run_dir, tmp_path, monkeypatch, capsys):  # noqa: F811
    (tmp_path / "in.mp4").write_bytes(b"")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["predict", str(run_dir), str(tmp_path / "in.mp4"), "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        'hf-fst: Videos are read and written by PyAV, which is not installed: pip install "hf_fst[video]".\n'
    )
