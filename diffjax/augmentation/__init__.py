"""Random changes of training images, for data sets that are small.

`choices` has changes after which an image is one of the data's distribution, more or less: the
model learns to draw changed images, too. `non_leaking` changes images further and gives the network
the change as a condition, so that at sampling it draws images without any.
"""

from diffjax.augmentation import choices, non_leaking
from diffjax.augmentation.choices import Augmentation
from diffjax.augmentation.non_leaking import NonLeaking

__all__ = ["Augmentation", "NonLeaking", "choices", "non_leaking"]
