from .api import write as write
