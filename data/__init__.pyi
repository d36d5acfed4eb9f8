from .build import build_dataset as build_dataset
from .build import label_format as label_format
from .contents import contents_of as contents_of
from .dataset import IGNORE_INDEX as IGNORE_INDEX
from .dataset import ImageDataset as ImageDataset
from .dataset import SegmentationDataset as SegmentationDataset
from .label_checks import first_look as first_look
from .roots import check_root as check_root
