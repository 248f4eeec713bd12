"""Tasks on labels, one module each; a module is a task if it defines `LABEL_TASK`."""
