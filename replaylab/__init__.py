"""replaylab: record algorithmic trading, play it again, and see what other parameters would have done.

>>> from replaylab import Lab
>>> lab = Lab.sample()                      # doctest: +SKIP

Every name loads its module when first used, so ``import replaylab`` costs a bot nothing.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*__all__, "__version__"])
