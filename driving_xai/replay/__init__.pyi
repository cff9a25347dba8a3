from .api import write as write
from .config import ReplayConfig as ReplayConfig
