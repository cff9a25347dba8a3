from .api import Report as Report
from .api import read as read
from .api import write as write
from .page import PageConfig as PageConfig
