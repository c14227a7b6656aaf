"""Serve a page on this machine that shows a model's predictions for an image, its feature maps and its latency.

The page opens only the given folders, because reading a config executes it.
"""

import argparse
import logging
import re
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

from mmengine.device import get_device
from mmengine.logging import print_log

from mmcasvit.apis.config import list_configs
from mmcasvit.cli import exits_cleanly, wrong_input
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import IMAGE_SUFFIXES
from mmcasvit.utils.timing import machine
from mmcasvit.visualization import explore
from mmcasvit.visualization.choices import check_choice, find_runs

try:
    import streamlit as st
    from streamlit.web import cli
except ImportError:
    st = None


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'folders',
        type=Path,
        nargs='*',
        default=[Path('work_dirs')],
        metavar='WORK_DIR',
        help='folders with configs and checkpoints to choose from (default: work_dirs)',
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (default: 127.0.0.1, only this machine); there is no password',
    )
    parser.add_argument('--port', type=int, default=8501, help='port to listen on (default: 8501)')
    parser.add_argument(
        '--max-upload', type=int, default=20, metavar='MB', help='maximum size of an image (default: 20)'
    )
    parser.add_argument('--device', help='device, such as cpu or cuda:0 (default: a GPU if there is one)')
    return parser.parse_args()


@exits_cleanly
def main():
    """Start the server, which runs this file again after every action on the page."""
    args = parse_args()
    if st is None:
        raise UsageError('the page needs streamlit: pip install "mmcasvit[explore]"')
    for folder in args.folders:
        if not folder.is_dir():
            raise UsageError(f'folder not found: {folder.absolute()}')
    if not 0 < args.port < 65536 or args.max_upload < 1:
        raise UsageError('--port must lie between 1 and 65535, and --max-upload must be at least 1.')
    flags = explore.server_flags(args.host, args.port, args.max_upload)
    cli.main(['run', *flags, __file__, '--', *sys.argv[1:]], prog_name='streamlit')


@contextmanager
def errors_shown():
    """Show an error inside the context on the page, and write the traceback of an unexpected one to the log."""
    try:
        yield
    except Exception as error:
        reason = wrong_input(error)
        if not reason:
            reason = f'{type(error).__name__}: {error}'
            print_log(traceback.format_exc(), 'current', logging.ERROR)
        # Names of files and classes must not be read as Markdown.
        st.error(re.sub(r'([^\w\s])', r'\\\1', reason))


def load(config, checkpoint, device, changed):
    """Load a model. The cache of the page reloads it when ``changed``, the times of its files, differs."""
    return explore.load_model(config, checkpoint, device)


def run(config, checkpoint, upload, args):
    """Run the chosen model on the upload, and return what the tabs show."""
    image = explore.read_upload(upload and upload.getvalue())
    files = check_choice(config, checkpoint, args.folders)
    kept = st.cache_resource(load, max_entries=2, show_spinner=False)
    model = kept(*files, args.device or get_device(), [Path(file).stat().st_mtime_ns for file in files])
    start = time.perf_counter()
    prediction = explore.predict(model, image)
    print_log(f'predicted {upload.name!r} with {files[1]} in {time.perf_counter() - start:.2f} s', 'current')
    height, width = image.shape[:2]
    caption = f'{upload.name}, {width}x{height} pixels, by {Path(files[0]).stem} with {Path(files[1]).name}'
    return dict(model=model, prediction=prediction, large=explore.enlarge(prediction), caption=caption)


def page(args):
    st.set_page_config('mmcasvit', layout='wide', initial_sidebar_state=420)
    with st.sidebar:
        st.title('mmcasvit')
        runs = find_runs(args.folders)
        config = st.selectbox(
            'Config',
            [*runs, *list_configs()],
            key='config',
            accept_new_options=True,
            help='A config of a run or of the project. You can also type a path.',
        )
        own = runs.get(config, [])
        # Each config has a box of its own, which starts with the best checkpoint of its run.
        checkpoint = st.selectbox(
            'Checkpoint',
            list(dict.fromkeys(sum(runs.values(), own))),
            index=0 if own else None,
            key=f'checkpoint of {config}',
            accept_new_options=True,
            placeholder='Choose a file or type a path',
        )
        upload = st.file_uploader('Image', [suffix[1:] for suffix in IMAGE_SUFFIXES])
        pressed = st.button('Predict', type='primary', width='stretch')
    if pressed:
        st.session_state.shown = None
        with errors_shown(), st.spinner('Predicting'):
            st.session_state.shown = run(config, checkpoint, upload, args)
    elif 'shown' not in st.session_state:
        st.info('Choose a config and a checkpoint, drop in an image, and press Predict.')
    if shown := st.session_state.get('shown'):
        st.text(shown['caption'])
        first, second, third = st.tabs(['Prediction', 'What the model sees', 'Latency'])
        with first:
            score_thr = show_prediction(shown)
        with second:
            show_maps(shown, score_thr)
        with third:
            show_latency(shown)


def show_prediction(shown):
    """Draw the prediction with the settings of the sliders, and return the threshold."""
    model, prediction = shown['model'], shown['prediction']
    kind = explore.KINDS[model.cfg.default_scope]
    left, right = st.columns(2)
    title, default = ('Score threshold', 0.3) if kind == 'detector' else ('Probability threshold', 0.0)
    score_thr = left.slider(title, 0.0, 1.0, default, 0.01, key=f'threshold of a {kind}')
    opacity = right.slider('Opacity', 0.0, 1.0, 0.6, 0.05)
    with errors_shown():
        left.image(shown['large'].image, 'image', width='stretch', output_format='PNG')
        drawn = explore.draw_over(model, shown['large'], score_thr, opacity)
        right.image(drawn, 'prediction', width='stretch', output_format='PNG')
        if rows := explore.list_found(model, prediction, score_thr):
            show_rows(rows, explore.legend(model))
        else:
            st.write('Nothing lies above this threshold.')
    return score_thr


def show_rows(rows, colors):
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame.insert(0, '', '■')
    styles = [f'color: {colors.get(name, "gray")}' for name in frame['class']]
    table = frame.style.format(lambda cell: f'{cell:g}' if isinstance(cell, float) else cell)
    st.dataframe(table.apply(lambda _: styles, subset=['']), hide_index=True, width='content')


def show_maps(shown, score_thr):
    first, second = st.columns(2)
    names = shown['model'].dataset_meta['classes']
    category = first.selectbox(
        'Class of the activation maps',
        names,
        index=None,
        placeholder='the class of the best box, or of the largest area',
        key=f'class of {names}',
    )
    method = second.radio('Activation maps', ['HiResCAM', 'Grad-CAM'], horizontal=True)
    if st.button('Look inside'):
        with errors_shown(), st.spinner('Looking inside'):
            shown['maps'] = explore.draw_maps(shown['model'], shown['prediction'].image, category, score_thr, method)
    if 'maps' in shown:
        st.image(shown['maps'], width='stretch')
        st.download_button('Save this figure', shown['maps'], 'seen.png', 'image/png', on_click='ignore')


def show_latency(shown):
    device = next(shown['model'].parameters()).device.type
    rounds = st.number_input('Rounds', 3, 200, 10, help='In each round, the forms take turns.')
    if st.button('Measure'):
        with errors_shown(), st.spinner('Measuring'):
            shown['times'] = explore.measure(shown['model'], shown['prediction'].image, rounds)
    if 'times' in shown:
        st.dataframe(shown['times'], hide_index=True, width='content')
        st.text(f"One image at a time, from the network's input to the finished prediction, on {machine([device])}")


if __name__ == '__main__':
    if st is not None and st.runtime.exists():
        page(parse_args())
    else:
        main()
