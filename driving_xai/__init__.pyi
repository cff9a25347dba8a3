from . import data as data
from . import errors as errors
from . import explain as explain
from . import metrics as metrics
from . import replay as replay
from . import report as report
from . import targets as targets
from . import types as types
from . import viz as viz
from .checkpoint import Checkpoint as Checkpoint
from .evaluation.api import Evaluation as Evaluation
from .evaluation.api import evaluate as evaluate
from .models.foreign import load as load
from .models.wrap import WrappedModel as WrappedModel
from .models.wrap import wrap as wrap

__version__: str
