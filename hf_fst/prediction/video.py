"""Videos in, videos out, through PyAV."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_fst.drawing.overlays import overlay, with_legend
from hf_fst.errors import DataError, RunError, printable
from hf_fst.prediction.files import write_whole
from hf_fst.prediction.segmenter import Segmenter, batches, one_by_one_if_it_fails

logger = logging.get_logger(__name__)
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm")


def check_video_support() -> None:
    """Raises `RunError` where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise RunError('Videos are read and written by PyAV, which is not installed: pip install "hf_fst[video]".')


def predict_video(
    segmenter: Segmenter,
    source: Path,
    output: Path,
    batch_size: int = 1,
    bar: tqdm | None = None,
    stamp: str | None = None,
) -> int:
    """Lays the predicted classes over each frame of a video, with a legend of all classes under it; keeps its timing.

    Writes H.264 in MP4 with the sound as it is, and `stamp` as its comment. Returns the number of frames.

    Raises:
        DataError: a file that is no video, or breaks off in the middle; nothing is written then.
        RunError: PyAV is not installed, or the video cannot be written.
    """
    check_video_support()
    import av

    count = 0

    def write(file) -> None:
        nonlocal count
        try:
            with (
                av.open(str(source)) as video,
                av.open(str(source)) as heard,
                av.open(file, "w", format="mp4") as result,
            ):
                if stamp is not None:
                    result.metadata["comment"] = stamp
                if not video.streams.video:
                    raise DataError(f"{source} holds no video; remove it from the folder.")
                stream = None
                rate = video.streams.video[0].average_rate or Fraction(25)
                for batch in batches(_frames(video), batch_size):
                    pictures = [segmenter.look(pixels) for pixels, _, _ in batch]
                    found = one_by_one_if_it_fails(segmenter.classes, pictures)
                    for (pixels, moment, unit), classes in zip(batch, found, strict=True):
                        if isinstance(classes, Exception):
                            raise DataError(f"{source}, frame {count}: {classes}")
                        mixed = overlay(pixels, classes, segmenter.palette)
                        drawn = _even(with_legend(mixed, segmenter.names, segmenter.palette))
                        if stream is None:
                            stream = result.add_stream("libx264", rate=rate, options={"crf": "18"})
                            stream.height, stream.width = drawn.shape[:2]
                            stream.pix_fmt = "yuv420p"
                            if unit is not None:
                                stream.codec_context.time_base = unit
                            sound = _sound(heard, result, source)
                            packet = next(sound, None)
                        frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                        frame.pts, frame.time_base = moment, unit
                        result.mux(stream.encode(frame))
                        while None not in (packet, moment) and packet.dts * packet.time_base <= moment * unit:
                            result.mux(packet)
                            packet = next(sound, None)
                        count += 1
                        if bar is not None:
                            bar.set_postfix_str(printable(f"{source.name}: frame {count}"))
                if stream is None:
                    raise DataError(f"{source} has no frame; remove it from the folder.")
                result.mux(stream.encode())
                for rest in itertools.chain([packet] if packet is not None else [], sound):
                    result.mux(rest)
        except av.error.FFmpegError as error:
            reason = error.strerror or error
            raise DataError(f"{source} is damaged ({reason}); replace it or remove it from the folder.") from error

    write_whole(output, write)
    return count


def _sound(video, result, source: Path) -> Iterator:
    """The packets of the sound of a video, each for its new stream of `result`. Sound that MP4 cannot hold is left out,
    with a warning."""
    streams = {}
    for stream in video.streams.audio:
        codec = stream.codec_context.codec.canonical_name
        if codec in result.supported_codecs:
            streams[stream.index] = result.add_stream_from_template(stream)
        else:
            logger.warning(f"The sound of {printable(source.name)} is {codec}, which MP4 cannot hold; it is left out.")
    return _onto(streams, video.demux([stream for stream in video.streams.audio if stream.index in streams]))


def _onto(streams: dict, packets: Iterator) -> Iterator:
    for packet in packets:
        if packet.dts is not None and packet.stream.index in streams:
            packet.stream = streams[packet.stream.index]
            yield packet


def video_stamp(path: Path) -> str | None:
    """The comment of a video that `predict_video` wrote, None if it has none or cannot be read."""
    import av

    try:
        with av.open(str(path)) as video:
            return video.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None


def _frames(video) -> Iterator[tuple[np.ndarray, int | None, Fraction | None]]:
    """Each frame upright, its time and the unit of its time. Times ascend, which those in AVI files need not do."""
    stream = video.streams.video[0]
    stream.thread_type = "AUTO"
    last = None
    for frame in video.decode(stream):
        pixels = frame.to_ndarray(format="rgb24")
        turns = round(frame.rotation / 90) % 4  # counterclockwise, as telephones tell it
        last = frame.pts if None in (frame.pts, last) else max(frame.pts, last + 1)
        yield np.ascontiguousarray(np.rot90(pixels, turns)), last, frame.time_base


def _even(picture: np.ndarray) -> np.ndarray:
    """With a white row and column more where a side is odd, which the codec does not take."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
