"""Serves a page on this machine: drop in an image, choose a config and a checkpoint, and see boxes, masks or
segmentation with thresholds to move, what the model sees in it, and how long it takes.

The page opens nothing but the folders given here: a config is Python, and is executed when it is read.
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
from mmcasvit.visualization.explore import (
    SHOWN,
    check_choice,
    draw_over,
    enlarge,
    find_runs,
    legend,
    list_found,
    load_model,
    measure,
    predict,
    read_upload,
    seen,
)

try:
    import streamlit as st
    from streamlit.web import cli
except ImportError:
    st = None

HERE = ('127.0.0.1', 'localhost')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'folders',
        type=Path,
        nargs='*',
        default=[Path('work_dirs')],
        metavar='WORK_DIR',
        help='folders whose configs and checkpoints can be chosen (default: work_dirs)',
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (default: 127.0.0.1, this machine alone; there is no password)',
    )
    parser.add_argument('--port', type=int, default=8501, help='(default: 8501)')
    parser.add_argument('--max-upload', type=int, default=20, metavar='MB', help='of an image (default: 20)')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    return parser.parse_args()


@exits_cleanly
def main():
    """Starts the server, which runs this file again whenever somebody does something on the page."""
    args = parse_args()
    if st is None:
        raise UsageError('the page needs streamlit: pip install "mmcasvit[explore]"')
    for folder in args.folders:
        if not folder.is_dir():
            raise UsageError(f'folder not found: {folder.absolute()}')
    if not 0 < args.port < 65536 or args.max_upload < 1:
        raise UsageError('--port must lie between 1 and 65535, and --max-upload be at least 1.')
    options = {
        'server.address': args.host,
        'server.port': args.port,
        'server.maxUploadSize': args.max_upload,
        # No other page may talk to this server.
        'server.enableXsrfProtection': 'true',
        'server.enableCORS': 'true',
        # It tells nobody that it runs, asks nothing, and opens no browser.
        'browser.gatherUsageStats': 'false',
        'server.headless': 'true',
        'client.toolbarMode': 'minimal',
        # What the model has computed is not thrown away because somebody moved a slider meanwhile.
        'runner.fastReruns': 'false',
        'runner.magicEnabled': 'false',
        'server.fileWatcherType': 'none',
        'client.showErrorDetails': 'type',
        'client.showErrorLinks': 'false',
    }
    flags = [f'--{name}={value}' for name, value in options.items()]
    if args.host in HERE:  # nor under another name of this machine
        flags += [f'--server.allowedHosts={host}' for host in HERE]
    cli.main(['run', *flags, __file__, '--', *sys.argv[1:]], prog_name='streamlit')


@contextmanager
def complaints():
    """Shows what goes wrong inside as a message on the page; the log gets what nobody expected in full."""
    try:
        yield
    except Exception as error:
        reason = wrong_input(error)
        if not reason:
            reason = f'{type(error).__name__}: {error}'
            print_log(traceback.format_exc(), 'current', logging.ERROR)
        # Names of files and classes are no Markdown.
        st.error(re.sub(r'([^\w\s])', r'\\\1', reason))


def load(config, checkpoint, device, changed):
    """With the times of its files a model is kept until one of them changes."""
    return load_model(config, checkpoint, device)


def run(config, checkpoint, upload, args):
    picture = read_upload(upload and upload.getvalue())
    files = check_choice(config, checkpoint, args.folders)
    kept = st.cache_resource(load, max_entries=2, show_spinner=False)
    model = kept(*files, args.device or get_device(), [Path(file).stat().st_mtime_ns for file in files])
    start = time.perf_counter()
    prediction = predict(model, picture)
    print_log(f'predicted {upload.name!r} with {files[1]} in {time.perf_counter() - start:.2f} s', 'current')
    height, width = picture.shape[:2]
    caption = f'{upload.name}, {width}x{height} pixels, by {Path(files[0]).stem} with {Path(files[1]).name}'
    return dict(model=model, prediction=prediction, large=enlarge(prediction), caption=caption)


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
            help='Of a run, or one of the project. Another path can be typed in.',
        )
        beside = runs.get(config, [])
        # Another config has another box, which starts with the best checkpoint of that run.
        checkpoint = st.selectbox(
            'Checkpoint',
            list(dict.fromkeys(sum(runs.values(), beside))),
            index=0 if beside else None,
            key=f'checkpoint of {config}',
            accept_new_options=True,
            placeholder='Choose a file, or type its path',
        )
        upload = st.file_uploader('Image', [suffix[1:] for suffix in IMAGE_SUFFIXES])
        asked = st.button('Predict', type='primary', width='stretch')
    if asked:
        st.session_state.shown = None
        with complaints(), st.spinner('Predicting'):
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
    """Draws again what was found whenever a slider moves, and returns the threshold."""
    model, prediction = shown['model'], shown['prediction']
    kind = SHOWN[model.cfg.default_scope]
    left, right = st.columns(2)
    title, usual = ('Score threshold', 0.3) if kind == 'detector' else ('Probability threshold', 0.0)
    score_thr = left.slider(title, 0.0, 1.0, usual, 0.01, key=f'threshold of a {kind}')
    opacity = right.slider('Opacity', 0.0, 1.0, 0.6, 0.05)
    with complaints():
        left.image(shown['large'].picture, 'image', width='stretch', output_format='PNG')
        drawn = draw_over(model, shown['large'], score_thr, opacity)
        right.image(drawn, 'prediction', width='stretch', output_format='PNG')
        if rows := list_found(model, prediction, score_thr):
            show_rows(rows, legend(model))
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
        placeholder='that of the best box, or of the largest area',
        key=f'class of {names}',
    )
    method = second.radio('Activation maps', ['HiResCAM', 'Grad-CAM'], horizontal=True)
    if st.button('Look inside'):
        with complaints(), st.spinner('Looking inside'):
            shown['seen'] = seen(shown['model'], shown['prediction'].picture, category, score_thr, method)
    if 'seen' in shown:
        st.image(shown['seen'], width='stretch')
        st.download_button('Save this figure', shown['seen'], 'seen.png', 'image/png', on_click='ignore')


def show_latency(shown):
    device = next(shown['model'].parameters()).device.type
    rounds = st.number_input('Rounds', 3, 200, 10, help='Every round runs each form once; the forms take turns.')
    if st.button('Measure'):
        with complaints(), st.spinner('Measuring'):
            shown['times'] = measure(shown['model'], shown['prediction'].picture, rounds)
    if 'times' in shown:
        st.dataframe(shown['times'], hide_index=True, width='content')
        st.text(f"One image at a time, from the network's input to the finished prediction, on {machine([device])}")


if __name__ == '__main__':
    if st is not None and st.runtime.exists():
        page(parse_args())
    else:
        main()
