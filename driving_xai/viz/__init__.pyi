from .pictures import curve_plot as curve_plot
from .pictures import overlay as overlay
from .pictures import panel as panel
