"""What frozen features are worth: linear probes beside a random encoder and raw patches."""

from tubelet.evaluate.suite import Evaluation, Task, evaluate_encoder, evaluate_run, print_table

__all__ = ["Evaluation", "Task", "evaluate_encoder", "evaluate_run", "print_table"]
