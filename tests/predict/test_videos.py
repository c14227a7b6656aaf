"""Videos and cameras are predicted on frame by frame, and what was done before an interruption is kept."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import get_inferencer
from mmcasvit.predict import videos
from mmcasvit.predict.outputs import Output
from mmcasvit.predict.predictor import Predictor
from mmcasvit.predict.sources import Source
from mmcasvit.utils.errors import UsageError


class Brightness:
    """Predictor that knows how bright a frame is, and draws it inverted."""

    def predict(self, images):
        return [float(image.mean()) for image in images]

    def values(self, sample):
        return dict(mean=sample)

    def draw(self, image, sample):
        return 255 - image


def output_of(source, folder):
    return Output(source, folder / 'vis/x.mp4', folder / 'preds/x.jsonl')


def read(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1])
    return frames


def lines(folder):
    return [json.loads(line) for line in (folder / 'preds/x.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('batch_size', [1, 3])
def test_each_frame_has_a_line_and_a_drawing(batch_size, clip, tmp_path):
    said = videos.predict_video(Brightness(), output_of(str(clip), tmp_path), batch_size)
    assert said.startswith('clip.mp4: 7 frames, ')
    assert [line['frame'] for line in lines(tmp_path)] == list(range(7))
    assert [line['seconds'] for line in lines(tmp_path)] == pytest.approx([i / 5 for i in range(7)])
    frames, drawings = read(clip), read(tmp_path / 'vis/x.mp4')
    assert [line['mean'] for line in lines(tmp_path)] == pytest.approx([frame.mean() for frame in frames])
    assert len(drawings) == 7
    for frame, drawing in zip(frames, drawings):  # the video is compressed
        assert np.abs(255 - frame.astype(int) - drawing).mean() < 12
    assert cv2.VideoCapture(str(tmp_path / 'vis/x.mp4')).get(cv2.CAP_PROP_FPS) == 5
    assert len(list(tmp_path.rglob('*.*'))) == 2


def test_a_number_of_frames_ends_a_video(clip, tmp_path):
    videos.predict_video(Brightness(), output_of(str(clip), tmp_path), 2, max_frames=3)
    assert len(lines(tmp_path)) == len(read(tmp_path / 'vis/x.mp4')) == 3


class Interrupted(Brightness):
    calls = 0

    def predict(self, images):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().predict(images)


def test_an_interrupted_video_keeps_what_was_done(clip, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r'The first 4 frames of clip.mp4'):
        videos.predict_video(Interrupted(), output_of(str(clip), tmp_path), 2)
    assert len(lines(tmp_path)) == len(read(tmp_path / 'vis/x.mp4')) == 4


class Camera:
    """Camera that gives the frames of a video, one each second."""

    def __init__(self, clip, clock):
        self.video, self.clock = cv2.VideoCapture(str(clip)), clock

    def read(self):
        self.clock.time += 1
        return self.video.read()

    def __getattr__(self, name):
        return getattr(self.video, name)


def test_a_camera_ends_with_ctrl_c_and_is_drawn_in_real_time(clip, tmp_path, monkeypatch):
    clock = type('Clock', (), dict(time=0.0, monotonic=lambda self: self.time))()
    camera = Camera(clip, clock)
    monkeypatch.setattr(videos, 'time', clock)
    monkeypatch.setattr(videos.cv2, 'VideoCapture', lambda index: camera)
    said = videos.predict_video(Interrupted(), output_of(0, tmp_path))
    assert said.startswith('camera 0: 2 frames, ')
    assert [line['seconds'] for line in lines(tmp_path)] == [1, 2]
    monkeypatch.undo()
    assert len(read(tmp_path / 'vis/x.mp4')) == 10  # two seconds


def test_a_camera_that_is_not_there_is_an_error(tmp_path):
    for attempt in (
        lambda: videos.predict_video(Brightness(), output_of(63, tmp_path)),
        lambda: videos.check_videos([Source(63, Path('camera63.mp4'))]),
    ):
        with pytest.raises(UsageError, match='camera 63 cannot be opened'):
            attempt()


@pytest.mark.parametrize('kind', ['text', 'empty', 'cut', 'list'])
def test_what_is_not_a_video_is_refused_and_leaves_nothing(kind, clip, tmp_path):
    """A list of FFmpeg's is refused as well: it names files to read."""
    bad = tmp_path / 'bad.mp4'
    shutil.copy(clip, tmp_path / 'secret.mp4')
    bad.write_bytes(
        dict(
            text=b'not a video', empty=b'', cut=clip.read_bytes()[:500], list=b'ffconcat version 1.0\nfile secret.mp4\n'
        )[kind]
    )
    if kind == 'list':
        assert cv2.VideoCapture(str(bad), cv2.CAP_FFMPEG).isOpened()  # otherwise this would prove nothing
    with pytest.raises(UsageError, match=r'bad.mp4 cannot be read as a video|no frame'):
        videos.predict_video(Brightness(), output_of(str(bad), tmp_path))
    assert not list(tmp_path.rglob('*.jsonl'))


@pytest.mark.parametrize('name', ['det', 'seg'])
def test_frames_are_predicted_on_as_images_are(name, files, clip):
    cfg = load_config(str(files / f'{name}.py'))
    predictor = Predictor(get_inferencer(cfg, str(files / f'{name}.pth'), 'cpu'), cfg.default_scope, 0.0)
    frames = read(clip)[:3]
    frames[1] = frames[1][:48]  # of another size
    samples = predictor.predict(frames)
    for frame, sample in zip(frames, samples):
        alone = predictor.inferencer(frame)['predictions']
        found = predictor.values(sample)
        assert len(found['labels']) == len(found['label_names']) > 0
        if name == 'seg':
            assert found['labels'] == np.unique(alone).tolist()
            assert sum(found['pixels']) == alone.size
        else:
            np.testing.assert_allclose(found['scores'], alone[0]['scores'], rtol=1e-4)
            assert {tuple(mask['size']) for mask in found['masks']} == {frame.shape[:2]}
        json.dumps(found)
        drawing = predictor.draw(frame, sample)
        assert drawing.shape == frame.shape
        assert (drawing != frame).any()


GROWTH = """
import resource, sys
import numpy as np
from mmcasvit.predict.videos import Video
peaks = []
for name in sys.argv[1:]:
    assert sum(frame.image.size > 0 for frame in Video(name).frames()) > 3
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    for name, frames in (('short', 5), ('long', 150)):
        writer = cv2.VideoWriter(str(tmp_path / f'{name}.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25, (960, 720))
        for i in range(frames):
            writer.write(np.full((720, 960, 3), i, np.uint8))
        writer.release()
    command = [sys.executable, '-c', GROWTH, 'short.mp4', 'long.mp4']
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert int(printed) < 60 * 1024  # KiB: 150 frames take 300 MiB
