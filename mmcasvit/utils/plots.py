"""Look of the plots: colors that people with color blindness tell apart, and Matplotlib's settings."""

COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#555555', '#000000')
# For matplotlib.rc_context, since a process may have settings of its own.
STYLE = {
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'grid.color': '#dddddd',
    'legend.frameon': False,
}
