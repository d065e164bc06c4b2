"""What a model must beat: popularity of all time and of the last week, item-kNN, EASE."""

from longview.models.baselines.ease import EASE
from longview.models.baselines.item_knn import ItemKNN
from longview.models.baselines.popularity import Popularity
from longview.models.baselines.registry import BASELINES, Baseline, build

__all__ = ["BASELINES", "EASE", "Baseline", "ItemKNN", "Popularity", "build"]
