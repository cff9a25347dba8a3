from .drives import Route as Route
from .images import ImageSet as ImageSet
from .images import LabelledImages as LabelledImages
from .shards import ShardSet as ShardSet
from .shards import open as open
