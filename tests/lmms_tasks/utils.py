"""lmms-eval's own functions of the three benchmarks, for the miniature tasks beside this file."""

from lmms_eval.tasks.longvideobench.utils import *  # noqa: F403
from lmms_eval.tasks.mvbench.utils import *  # noqa: F403
from lmms_eval.tasks.videomme.utils import *  # noqa: F403
