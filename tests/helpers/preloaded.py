"""What training processes import. A server that has imported it, or a process of tests, forks one in milliseconds."""

import gc

gc.disable()  # a tenth of the time of imports

import pandas  # noqa: F401, E402 - which pyarrow imports where it is installed
import torch._dynamo  # noqa: E402
import torch.distributed.fsdp  # noqa: E402
import torch.distributed.run  # noqa: E402
import torch.utils.tensorboard  # noqa: F401, E402

import tubelet.checkpoint.dcp  # noqa: E402
import tubelet.prediction.pipeline  # noqa: E402
import tubelet.train.trainer  # noqa: F401, E402

gc.collect()
gc.freeze()  # forks neither search it for garbage nor copy it
gc.enable()
gc.set_threshold(100_000, 20, 20)  # as in the processes of tests
