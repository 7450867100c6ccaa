"""Data sets: lists of labelled images, where their pixels come from, and how they are found."""
from .items import Dataset, Item, base_new, few_shot, few_shot_split, read_split
from .images import load_images, normalize, open_image
from .folders import load_csv, load_folder
from .public import REAL
from .check import check_dataset
from .load import load_dataset
