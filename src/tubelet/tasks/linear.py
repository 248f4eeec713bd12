"""Classification by linear heads on the mean token of a file."""

from functools import partial

from tubelet.datasets import ClassificationDataset, ProbeProtocol
from tubelet.heads.linear import LinearProbe, fit_standardization
from tubelet.tasks.common.pooled_features import PooledDataset, evaluate_heads
from tubelet.tasks.common.result import Result
from tubelet.tasks.common.task import EvaluationContext, Task

PROTOCOL = ProbeProtocol(
    epochs=50, batch_size=256, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), weight_decays=(0.0, 0.03, 0.3)
)


def evaluate(context: EvaluationContext) -> Result:
    """Train linear heads on pooled features and score them on the test files.

    Raises:
        TubeletError: if something in the data set is wrong.
    """
    data = PooledDataset(context)
    make_head = partial(LinearProbe, *fit_standardization(data.table), len(data.plan.classes))
    text = "Softmax regression on the mean token of the last level, channels standardized"
    return evaluate_heads(context, data, make_head, PROTOCOL, text)


TASK = Task(name="linear", evaluate=evaluate, dataset=ClassificationDataset, metric="top-1", head=LinearProbe)
