import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation, Text

from mmcasvit.benchmark.plots import place_labels, plot_accuracy
from mmcasvit.benchmark.published import PUBLISHED
from mmcasvit.utils.timing import spread


@pytest.mark.parametrize('spacing', [0.02, 0.1])
def test_labels_of_close_points_neither_overlap_nor_leave_the_axes(spacing):
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for i in range(12):
        place = 0.4 + spacing * (i % 4), 0.4 + spacing * (i // 4)
        axes.plot(*place, 'o')
        axes.annotate(f'backbone-{i}', place, textcoords='offset points', xytext=(0, 0), fontsize=7)
    place_labels(axes)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(child) for child in axes.get_children() if isinstance(child, Annotation)]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)


def test_accuracy_has_a_row_of_panels_for_each_setting(tmp_path):
    rows = [
        dict(model=model, threads=threads, seconds=spread([0.01 * (1 + i) / threads]))
        for threads in (1, 2)
        for i, model in enumerate(PUBLISHED)
    ]
    for count in (1, 2):
        plot_accuracy(tmp_path / f'{count}.png', rows[: count * len(PUBLISHED)], ['model', 'threads'], 'title')
    one, two = (imread(tmp_path / f'{count}.png').shape for count in (1, 2))
    assert 1.8 < two[0] / one[0] < 2.1
    assert two[1] == pytest.approx(one[1], rel=0.05)
